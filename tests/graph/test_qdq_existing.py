"""Models that hold Q/DQ pairs already: refused, or completed without touching what is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper
from qdq_checks import Feed, Graph, noise, outputs, quantized, ranges, sqnr
from qdq_graphs import Sketch, concat, pooled, residual, transformer

from quantlab.errors import EngineBuildError, ModelError
from quantlab.graph.model import Model, Optimization
from quantlab.graph.prepare import prepare
from quantlab.graph.qdq import ExistingPolicy, QuantizationKind, Quantized, check_quantized, quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile


def completed(
    proto: ModelProto,
    target: TargetProfile = TENSORRT,
    kind: QuantizationKind = QuantizationKind.INT8,
    left_out: Sequence[str] = (),
) -> tuple[Quantized, Feed]:
    model, feed = Model.of(proto), noise(proto)
    table = ranges(model, feed, left_out)
    result = quantize_model(model, table, target, kind=kind, existing=ExistingPolicy.COMPLETE)
    check_quantized(result.proto)
    return result, feed


def partly(proto: ModelProto, *excluded: str) -> ModelProto:
    """The graph with some layers left in floating point, as another tool may hand it over."""
    return quantized(proto, TENSORRT, excluded)[0].proto


def tensors_with_pairs(graph: Graph) -> list[str]:
    return sorted(node.input[0] for node in graph.of_type("QuantizeLinear"))


def one_layer(zero: object, dtype: type = np.int8, scale: object = 0.05, **attributes: int) -> ModelProto:
    """A pair on ``x`` in front of a product whose weight has none."""
    s = Sketch("n", 32)
    inputs = ["x", s.const("s", scale), *([s.const("z", zero, dtype)] if zero is not None else [])]
    s.nodes.append(helper.make_node("QuantizeLinear", inputs, ["xq"], name="q", **attributes))
    s.nodes.append(helper.make_node("DequantizeLinear", ["xq", *inputs[1:]], ["xdq"], name="dq", **attributes))
    return s.model(s.add("MatMul", "layer", "xdq", s.weight("w", 32, 16)))


class TestComplete:
    @pytest.mark.parametrize("excluded", ["first", "second", "last"])
    def test_the_same_graph_as_in_one_go(self, excluded: str) -> None:
        """Quantizing all but one layer and completing it gives what quantizing all at once gives."""
        whole, feed = quantized(residual(), TENSORRT)
        result, _ = completed(partly(residual(), excluded))
        assert result.layers == (excluded,)
        assert set(result.kept) == {"stem", "first", "second", "last"} - {excluded}
        graph = Graph(result.proto)
        assert tensors_with_pairs(graph) == tensors_with_pairs(Graph(whole.proto))
        expected = outputs(whole.proto, feed, Optimization.NONE)[0]
        assert sqnr(expected, outputs(result.proto, feed, Optimization.NONE)[0]) > 35

    def test_existing_pairs_stay_as_they_are(self) -> None:
        before = partly(residual(), "last")
        result, _ = completed(before)
        stored = {t.name: numpy_helper.to_array(t) for t in result.proto.graph.initializer}
        nodes = {node.name: node.SerializeToString() for node in result.proto.graph.node}
        for node in before.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert nodes[node.name] == node.SerializeToString()
                for name, value in Graph(before).constants.items():
                    if name in node.input:
                        np.testing.assert_array_equal(stored[name], value)

    @pytest.mark.parametrize("left_out", [[], ["hidden"]])
    def test_a_tensor_with_a_pair_gets_no_second_one(self, left_out: list[str]) -> None:
        """A float layer reads the tensor itself; its pair, further down in the graph, is read, and needs no range."""
        s = Sketch("n", 32)
        hidden = s.add("Tanh", "hidden", "x")
        late = s.add("MatMul", "float", hidden, s.weight("w1", 32, 16))
        scale, zero = s.const("s", 0.01), s.const("z", 0, np.int8)
        codes = s.add("QuantizeLinear", "q", hidden, scale, zero)
        pair = s.add("DequantizeLinear", "dq", codes, scale, zero)
        proto = s.model(late, s.add("MatMul", "other", pair, s.weight("w2", 32, 16)))
        result, feed = completed(proto, left_out=left_out)
        graph = Graph(result.proto)
        assert tensors_with_pairs(graph) == ["hidden"]
        assert graph.named("float").input[0] == graph.named("other").input[0] == "dq"
        assert result.tensors == {}
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed, Optimization.NONE)[0]) > 25

    def test_only_the_weight_has_none(self) -> None:
        result, _ = completed(one_layer(0))
        graph = Graph(result.proto)
        assert (result.layers, result.tensors) == (("layer",), {})
        assert graph.named("layer").input[0] == "xdq"
        assert graph.dequantizer(graph.named("layer").input[1]) is not None

    def test_moved_values_of_a_pair_get_no_second_one(self) -> None:
        """The layer reads dequantized values, through a Transpose and a Reshape."""
        s = Sketch("n", 32, 16)
        scale, zero = s.const("s", 0.05), s.const("z", 0, np.int8)
        pair = s.add("DequantizeLinear", "dq", s.add("QuantizeLinear", "q", "x", scale, zero), scale, zero)
        turned = s.add("Transpose", "turned", pair, perm=[0, 2, 1])
        flat = s.add("Reshape", "flat", turned, s.const("shape", [0, 512], np.int64))
        result, _ = completed(s.model(s.add("MatMul", "layer", flat, s.weight("w", 512, 16))))
        assert result.layers == ("layer",)
        assert tensors_with_pairs(Graph(result.proto)) == ["x"]

    @pytest.mark.parametrize("target", [TENSORRT, ONNXRUNTIME], ids=lambda target: target.name)
    def test_weights_behind_a_pair_and_a_transpose(self, target: TargetProfile) -> None:
        """PyTorch writes float weights with Q and DQ behind them, transposed for MatMul."""
        s = Sketch("n", 32)
        scale, zero = s.const("s", 0.02), s.const("z", 0, np.int8)
        codes = s.add("QuantizeLinear", "wq", s.weight("w", 16, 32), scale, zero)
        weight = s.add("Transpose", "wt", s.add("DequantizeLinear", "wdq", codes, scale, zero), perm=[1, 0])
        result, _ = completed(s.model(s.add("MatMul", "layer", "x", weight)), target)
        graph = Graph(result.proto)
        assert (result.layers, result.degradations) == (("layer",), ())
        assert graph.named("layer").input[1] == "wt"
        assert tensors_with_pairs(graph) == ["w", "x"]

    def test_a_new_pair_takes_the_scale_of_the_one_that_it_moves_to(self) -> None:
        before = partly(pooled(), "behind")
        result, _ = completed(before)
        kept = next(
            node for node in before.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "source"
        )
        assert result.tensors["half"].scale == Graph(before).constants[kept.input[1]]

    def test_nothing_left_to_do(self) -> None:
        before = quantized(transformer(), TENSORRT)[0].proto
        result, _ = completed(before)
        assert (result.layers, result.tensors) == ((), {})
        assert len(result.kept) == 6
        assert sorted(n.name for n in result.proto.graph.node) == sorted(n.name for n in before.graph.node)

    def test_attention_is_completed(self) -> None:
        result, _ = completed(partly(transformer(), "scores", "mixed"))
        assert result.layers == ("scores", "mixed")

    def test_weights_alone(self) -> None:
        before = partly(concat(), "after")
        model = Model.of(before)
        result = quantize_model(
            model, None, TENSORRT, kind=QuantizationKind.INT8_WEIGHTS, existing=ExistingPolicy.COMPLETE
        )
        assert result.layers == ("after",)
        assert tensors_with_pairs(Graph(result.proto)) == tensors_with_pairs(Graph(before))

    def test_preparing_keeps_the_pairs(self) -> None:
        before = partly(residual(), "last")
        prepared = prepare(Model.of(before)).model.proto
        result, feed = completed(prepared)
        assert result.layers == ("last",)
        assert sqnr(outputs(residual(), feed)[0], outputs(result.proto, feed, Optimization.NONE)[0]) > 30

    def test_onnxruntime_takes_zero_points(self) -> None:
        """Its own output is completed: INT32 biases and UINT8 codes with zero-points."""
        before = quantized(residual(), ONNXRUNTIME, ["last"])[0].proto
        result, feed = completed(before, ONNXRUNTIME)
        assert result.layers == ("last",)
        assert sqnr(outputs(residual(), feed)[0], outputs(result.proto, feed)[0]) > 30


class TestRefusals:
    def test_by_default(self) -> None:
        model = Model.of(one_layer(0))
        with pytest.raises(ModelError, match="already holds QuantizeLinear"):
            quantize_model(model, ranges(model, noise(model.proto)), TENSORRT)

    @pytest.mark.parametrize(
        ("proto", "message", "got"),
        [
            (one_layer(3), r"tensor 'x' \(node 'q'\) has a zero-point, which target tensorrt refuses", "3"),
            (one_layer(0, np.uint8), r"tensor 'x' \(node 'q'\) has a type that target tensorrt does not", "uint8"),
            (one_layer(None), r"tensor 'x' \(node 'q'\) has a type that target tensorrt does not", "uint8"),
            (
                one_layer(np.zeros(32), scale=np.full(32, 0.1), axis=1),
                r"tensor 'x' \(node 'q'\) has a scale for each channel",
                "32 scales",
            ),
        ],
    )
    def test_pairs_that_tensorrt_does_not_take(self, proto: ModelProto, message: str, got: str) -> None:
        with pytest.raises(ModelError, match=message) as caught:
            completed(proto)
        assert caught.value.got is not None
        assert str(caught.value.got) == got

    def test_another_kind(self) -> None:
        with pytest.raises(ModelError, match="has a type that target tensorrt does not take") as caught:
            completed(partly(residual(), "last"), kind=QuantizationKind.FP8)
        assert (caught.value.got, caught.value.expected) == ("int8", "float8e4m3fn")

    def test_integer_biases(self) -> None:
        """ONNX Runtime's INT32 biases are no form that TensorRT has."""
        s = Sketch("n", 32)
        codes, scale = s.const("b", np.arange(16), np.int32), s.const("s", 0.01)
        bias = s.add("DequantizeLinear", "bias", codes, scale)
        proto = s.model(s.add("Gemm", "layer", "x", s.weight("w", 32, 16), bias))
        with pytest.raises(ModelError, match="'bias'") as caught:
            completed(proto)
        assert caught.value.got == "int32"

    def test_integer_operators(self) -> None:
        s = Sketch("n", 32)
        s.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
        dequantized = s.add("DequantizeLinear", "dq", "q", "s", "z")
        proto = s.model(s.add("MatMul", "layer", dequantized, s.weight("w", 32, 16)))
        with pytest.raises(ModelError, match="'dynamic' is an integer operator, DynamicQuantizeLinear"):
            completed(proto)

    def test_nothing_quantized_and_nothing_to_quantize(self) -> None:
        s = Sketch("n", 32)
        scale, zero = s.const("s", 0.01), s.const("z", 0, np.int8)
        pair = s.add("DequantizeLinear", "dq", s.add("QuantizeLinear", "q", "x", scale, zero), scale, zero)
        with pytest.raises(EngineBuildError, match="no layer could be quantized"):
            completed(s.model(s.add("Relu", "y", pair)))
