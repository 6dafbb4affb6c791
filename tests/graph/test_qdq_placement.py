"""Where pairs stand and which parameters they share, by TensorRT's rules; one graph for each rule."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from qdq_checks import UNLIMITED, Graph, outputs, quantized, sqnr
from qdq_graphs import (
    GRAPHS,
    Sketch,
    concat,
    concat_plain,
    moved,
    pooled,
    residual,
    residual_downsample,
    residual_sum_scaled,
    transformer,
    transposed_gemm,
    upsampling,
    weight_first,
)

from quantlab.calibrators.quantize import INT8_SYMMETRIC, fake_quantize
from quantlab.graph.model import Optimization
from quantlab.graph.qdq import QuantizationKind
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT


@pytest.mark.parametrize("kind", QuantizationKind)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_keeps_the_promises_and_its_results(name: str, kind: QuantizationKind) -> None:
    """SQNR near what 8 bits allow: about 40 dB for INT8 on these data, 31 dB for the 3 mantissa bits of FP8."""
    proto = GRAPHS[name]()
    result, feed = quantized(proto, UNLIMITED, kind=kind)
    assert result.degradations == ()
    assert result.skipped == {}
    floor = 24 if kind is QuantizationKind.FP8 else 33
    for expected, got in zip(outputs(proto, feed), outputs(result.proto, feed, Optimization.NONE), strict=True):
        assert sqnr(expected, got) > floor


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_large_enough_for_the_limits_of_int8(name: str) -> None:
    assert quantized(GRAPHS[name](), TENSORRT)[0].skipped == {}


class TestResidual:
    def test_the_skip_branch_is_quantized_and_the_layer_is_not(self) -> None:
        graph = Graph(quantized(residual(), TENSORRT)[0].proto)
        assert [graph.quantized_tensor(name) for name in graph.named("sum").input] == [None, "skip"]

    @pytest.mark.parametrize("swapped", [False, True])
    def test_of_two_layers_the_deeper_one_fuses(self, swapped: bool) -> None:
        graph = Graph(quantized(residual_downsample(swapped=swapped), TENSORRT)[0].proto)
        behind = [graph.quantized_tensor(name) for name in graph.named("sum").input]
        assert behind == (["shortcut", None] if swapped else [None, "shortcut"])

    def test_sum_and_unfolded_scale(self) -> None:
        graph = Graph(quantized(residual_sum_scaled(), TENSORRT)[0].proto)
        assert [graph.quantized_tensor(name) for name in graph.named("sum").input] == [None, "skip"]

    def test_nothing_fuses_with_an_excluded_layer(self) -> None:
        graph = Graph(quantized(residual(), TENSORRT, ["second"])[0].proto)
        assert [graph.quantized_tensor(name) for name in graph.named("sum").input] == [None, None]

    def test_a_layer_that_is_read_elsewhere_does_not_fuse(self) -> None:
        proto = residual()
        proto.graph.output.append(helper.make_tensor_value_info("second", 1, ["n", 16, 8, 8]))
        graph = Graph(quantized(proto, TENSORRT)[0].proto)
        assert [graph.quantized_tensor(name) for name in graph.named("sum").input] == [None, None]

    def test_the_stream_of_a_transformer_stays_float(self) -> None:
        """Products do not fuse with a residual addition, and the stream has outliers."""
        graph = Graph(quantized(transformer(), TENSORRT)[0].proto)
        for name in ("stream1", "stream2"):
            assert [graph.quantized_tensor(tensor) for tensor in graph.named(name).input] == [None, None]


class TestSharedScales:
    def test_concat_takes_the_widest_of_its_quantized_branches(self) -> None:
        proto = concat()
        result, feed = quantized(proto, TENSORRT)
        assert {"narrow", "joined"} <= set(result.tensors)
        assert "wide" not in result.tensors, "only the Concat reads it"
        assert result.tensors["narrow"] == result.tensors["joined"]
        wide = np.abs(_values(proto, feed, "wide")[0]).max()
        assert result.tensors["joined"].scale == pytest.approx(wide / 127, rel=1e-6)

    def test_a_concat_that_only_one_layer_reads_has_one_pair(self) -> None:
        result, _ = quantized(concat_plain(), TENSORRT)
        assert set(result.tensors) == {"x", "pool"}

    def test_pooling_and_slicing(self) -> None:
        result, _ = quantized(pooled(), TENSORRT)
        assert result.tensors["source"] == result.tensors["half"]
        alone = quantized(pooled(), TENSORRT, ["before"])[0].tensors["half"]
        assert alone.scale < result.tensors["half"].scale, "the slice alone has a smaller range"

    def test_transposing_and_reshaping(self) -> None:
        result, _ = quantized(moved(), TENSORRT)
        assert result.tensors["hidden"] == result.tensors["shaped"]

    def test_parts_of_one_tensor_keep_their_own(self) -> None:
        """Query, key and value come from one product that no layer reads whole."""
        result, _ = quantized(transformer(), TENSORRT)
        scales = {result.tensors[name].scale for name in ("scaled", "k.t", "v.heads.t")}
        assert len(scales) == 3

    def test_not_for_onnxruntime(self) -> None:
        result, _ = quantized(pooled(), ONNXRUNTIME)
        assert result.tensors["source"] != result.tensors["half"]

    def test_the_pair_commutes_with_a_maxpool(self) -> None:
        """With one scale on both sides, quantizing before the MaxPool gives exactly what quantizing behind it does."""
        result, feed = quantized(pooled(), TENSORRT)
        shared = result.tensors["half"]
        source, half = _values(pooled(), feed, "source", "half")
        before = fake_quantize(source, shared.scale, 0, INT8_SYMMETRIC)
        padded = np.pad(before, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :8, ::2, ::2]
        np.testing.assert_array_equal(windows.max(axis=(-1, -2)), fake_quantize(half, shared.scale, 0, INT8_SYMMETRIC))


class TestWeights:
    def test_one_weight_on_two_axes(self) -> None:
        graph = Graph(quantized(transposed_gemm(), TENSORRT)[0].proto)
        stored = [graph.dequantizer(graph.named(name).input[1]) for name in ("first", "second")]
        axes = [next(a.i for a in node.attribute if a.name == "axis") for node in stored if node is not None]
        assert axes == [0, 1]

    @pytest.mark.parametrize("group", [1, 4])
    def test_transposed_convolutions(self, group: int) -> None:
        """One scale a place on axis 1, which all groups share: the largest weight of any of them."""
        proto = upsampling(group=group)
        graph = Graph(quantized(proto, TENSORRT)[0].proto)
        stored = graph.dequantizer(graph.named("up").input[1])
        assert stored is not None
        weight = Graph(proto).constants["up.w"]
        expected = np.abs(weight).max(axis=(0, 2, 3)) / 127
        np.testing.assert_allclose(graph.constants[stored.input[1]], expected, rtol=1e-6)
        assert expected.shape == (48 // group,)

    def test_weight_first(self) -> None:
        graph = Graph(quantized(weight_first(), TENSORRT)[0].proto)
        for name, rows, other in (("first", 40, "x"), ("second", 16, "tanh")):
            node = graph.named(name)
            stored = graph.dequantizer(node.input[0])
            assert stored is not None
            assert graph.constants[stored.input[1]].shape == (rows,)
            assert graph.quantized_tensor(node.input[1]) == other

    def test_onnxruntime_takes_weights_only_as_second_operand(self) -> None:
        s = Sketch(32, 24)
        hidden = s.add("MatMul", "first", s.weight("w1", 40, 32), "x")
        proto = s.model(s.add("MatMul", "second", hidden, s.weight("w2", 24, 16)))
        result, _ = quantized(proto, ONNXRUNTIME)
        assert result.layers == ("second",)
        assert [d.subjects for d in result.degradations] == [("first",)]


class TestTransformer:
    def test_both_operands_of_every_product_are_quantized(self) -> None:
        result, _ = quantized(transformer(), TENSORRT)
        assert result.layers == ("qkv", "scores", "mixed", "out", "up", "down")
        graph = Graph(result.proto)
        assert [graph.quantized_tensor(name) for name in graph.named("scores").input] == ["scaled", "k.t"]
        assert [graph.quantized_tensor(name) for name in graph.named("mixed").input] == ["attention", "v.heads.t"]

    def test_norms_softmax_and_gelu_stay_float(self) -> None:
        graph = Graph(quantized(transformer(), TENSORRT)[0].proto)
        for node in graph.nodes:
            if node.op_type in ("LayerNormalization", "Softmax", "Erf", "Div", "Mul", "Add"):
                assert all(graph.dequantizer(name) is None for name in node.input), node.name

    @pytest.mark.parametrize(("kind", "largest"), [(QuantizationKind.INT8, 127), (QuantizationKind.FP8, 448)])
    def test_softmax_has_the_range_of_the_table(self, kind: QuantizationKind, largest: int) -> None:
        """What attention puts out is far below 1 where many tokens share it."""
        proto = transformer()
        result, feed = quantized(proto, TENSORRT, kind=kind)
        (attention,) = _values(proto, feed, "attention")
        assert attention.max() < 0.9
        assert result.tensors["attention"].scale == np.float32(attention.max() / largest)

    @pytest.mark.parametrize(("kind", "largest"), [(QuantizationKind.INT8, 127), (QuantizationKind.FP8, 448)])
    def test_softmax_without_a_range_takes_0_to_1(self, kind: QuantizationKind, largest: int) -> None:
        result, _ = quantized(transformer(), TENSORRT, left_out=["attention"], kind=kind)
        assert result.tensors["attention"].scale == np.float32(1 / largest)
        assert "mixed" in result.layers

    def test_a_product_with_one_range_missing_stays_float(self) -> None:
        result, _ = quantized(transformer(), TENSORRT, left_out=["k.t"])
        assert "scores" not in result.layers
        assert [d.subjects for d in result.degradations] == [("scores",)]
        assert "scaled" not in result.tensors

    def test_products_of_activations_can_be_excluded(self) -> None:
        result, _ = quantized(transformer(), TENSORRT, ["scores", "mix*"])
        assert result.excluded == ("mixed", "scores")
        assert result.layers == ("qkv", "out", "up", "down")


def _values(proto, feed, *names):  # type: ignore[no-untyped-def]
    copy = type(proto)()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return outputs(copy, feed)


class TestOnnxRuntime:
    """Convolutions and what lies between them in integers from end to end; products give floating-point numbers."""

    def test_behind_products_nothing_is_quantized_but_the_next_layers_inputs(self) -> None:
        graph = Graph(quantized(transformer(), ONNXRUNTIME)[0].proto)
        read = {graph.quantized_tensor(name) for node in graph.of_type("MatMul") for name in node.input} - {None}
        assert len(read) == 4  # of the six products two have no constant weight
        assert {node.input[0] for node in graph.of_type("QuantizeLinear")} == read

    def test_a_sum_of_convolutions_is_quantized_on_all_sides(self) -> None:
        graph = Graph(quantized(residual(), ONNXRUNTIME)[0].proto)
        assert None not in [graph.quantized_tensor(name) for name in graph.named("sum").input]
        assert "out" in {node.input[0] for node in graph.of_type("QuantizeLinear")}
