"""The Q/DQ writer: where the pairs stand, what is in them, and what the quantized graph computes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from qdq_checks import (
    UNLIMITED,
    Graph,
    check,
    noise,
    outputs,
    prepared_sample,
    quantized,
    ranges,
    sqnr,
)

from quantlab.calibrators import fake_quantize
from quantlab.degradation import DegradationCode
from quantlab.engines.kernels import integer_kernels
from quantlab.errors import ConfigError, EngineBuildError, ModelError
from quantlab.graph.model import Model, Optimization
from quantlab.graph.prepare import prepare
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile

BOTH = pytest.mark.parametrize("target", [UNLIMITED, ONNXRUNTIME], ids=lambda target: target.name)
SAMPLES = pytest.mark.parametrize("name", ["fashion-resnet", "fashion-mobilenet"])


def layer(op_type: str, weight: NDArray[np.float32], *, bias: NDArray[np.float32] | None = None, **attributes: object):
    """One weighted layer, x -> y."""
    inputs = ["x", "w", *(["b"] if bias is not None else [])]
    stored = [numpy_helper.from_array(weight.astype(np.float32), "w")]
    stored += [numpy_helper.from_array(bias.astype(np.float32), "b")] if bias is not None else []
    spatial = op_type.startswith("Conv")
    n_in = weight.shape[0 if op_type == "ConvTranspose" or not spatial else 1]
    n_in = weight.shape[1] if attributes.get("transB") else n_in
    shape = ["n", n_in, 6, 6] if spatial else ["n", n_in]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["y"], name="layer", **attributes)],
        "one",
        [value("x", 1, shape)],
        [value("y", 1, ["n", "c", "h", "w"] if spatial else ["n", "c"])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RNG = np.random.default_rng(11)
LAYERS = {
    "Conv": layer("Conv", RNG.standard_normal((5, 3, 3, 3)), bias=RNG.standard_normal(5)),
    "Conv without bias": layer("Conv", RNG.standard_normal((5, 3, 3, 3))),
    "grouped Conv": layer("Conv", RNG.standard_normal((6, 1, 3, 3)), bias=RNG.standard_normal(6), group=1),
    "ConvTranspose": layer("ConvTranspose", RNG.standard_normal((3, 4, 2, 2)), bias=RNG.standard_normal(4)),
    "Gemm": layer("Gemm", RNG.standard_normal((8, 4)), bias=RNG.standard_normal(4)),
    "Gemm transB": layer("Gemm", RNG.standard_normal((4, 8)), bias=RNG.standard_normal(4), transB=1),
    "Gemm scaled": layer("Gemm", RNG.standard_normal((8, 4)), bias=RNG.standard_normal(4), alpha=0.5, beta=2.0),
    "Gemm scalar bias": layer("Gemm", RNG.standard_normal((8, 4)), bias=RNG.standard_normal(1)),
    "Gemm row bias": layer("Gemm", RNG.standard_normal((8, 4)), bias=RNG.standard_normal((1, 4))),
    "MatMul": layer("MatMul", RNG.standard_normal((8, 4))),
}


class TestLayers:
    @BOTH
    @pytest.mark.parametrize("name", LAYERS)
    def test_each_kind(self, target: TargetProfile, name: str) -> None:
        proto = LAYERS[name]
        if proto.graph.node[0].op_type not in target.weighted_ops:
            with pytest.raises(EngineBuildError, match="no layer could be quantized"):
                quantized(proto, target)
            return
        result, feed = quantized(proto, target)
        assert result.layers == ("layer",)
        assert result.degradations == ()
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed)[0]) > 35

    @pytest.mark.parametrize("name", ["Conv", "Gemm", "Gemm transB"])
    def test_int32_bias_has_the_scale_of_the_accumulator(self, name: str) -> None:
        result, _ = quantized(LAYERS[name], ONNXRUNTIME)
        graph = Graph(result.proto)
        node = graph.named("layer")
        bias, weight = graph.dequantizer(node.input[2]), graph.dequantizer(node.input[1])
        assert bias is not None
        assert weight is not None
        codes, scale, zero = (graph.constants[tensor] for tensor in bias.input)
        assert (codes.dtype, zero.dtype) == (np.int32, np.int32)
        assert not zero.any()
        expected = graph.constants[weight.input[1]].astype(np.float64) * result.tensors["x"].scale
        np.testing.assert_allclose(scale, expected, rtol=1e-6)
        original = numpy_helper.to_array(LAYERS[name].graph.initializer[1])
        np.testing.assert_allclose(codes * expected, original, atol=expected.max())

    @pytest.mark.parametrize("name", ["Gemm scaled", "Gemm scalar bias", "Gemm row bias"])
    def test_a_bias_that_is_not_simply_added_stays_float(self, name: str) -> None:
        result, _ = quantized(LAYERS[name], ONNXRUNTIME)
        graph = Graph(result.proto)
        assert graph.dequantizer(graph.named("layer").input[2]) is None


class TestNumerics:
    @BOTH
    def test_two_layers_equal_a_numpy_reference(self, target: TargetProfile, build) -> None:
        """Every operand through fake_quantize, everything between in float64."""
        proto = build.mlp()
        result, feed = quantized(proto, target)
        weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}

        def rounded(name: str, value: NDArray[np.float64]) -> NDArray[np.float64]:
            if name not in result.tensors:
                return value
            chosen = result.tensors[name]
            values = fake_quantize(value.astype(np.float32), chosen.scale, chosen.zero_point, target.activation)
            return values.astype(np.float64)

        def per_column(weight: NDArray[np.float64]) -> NDArray[np.float64]:
            scale = np.float32(np.abs(weight).max(axis=0) / 127).astype(np.float64)
            return np.rint(weight / scale) * scale

        hidden = rounded("x", feed["x"].astype(np.float64)) @ per_column(weights["w1"]) + weights["b1"]
        expected = rounded("r", np.maximum(hidden, 0)) @ per_column(weights["w2"])
        got = outputs(result.proto, feed, Optimization.NONE)[0]
        assert set(result.tensors) == {"x", "r"}
        # A value at a rounding border may fall to the other side in float32: at most one step of one operand.
        step = result.tensors["r"].scale * np.abs(weights["w2"]).max()
        assert np.abs(got - expected).max() <= step
        assert np.median(np.abs(got - expected)) < 1e-4 * np.abs(expected).max()

    @BOTH
    @SAMPLES
    def test_optimized_and_plain_graphs_agree(self, target: TargetProfile, name: str) -> None:
        """Integer kernels compute what the Q/DQ graph means."""
        prepared, table, feed, _ = prepared_sample(name)
        proto = quantize_model(prepared.model, table, target).proto
        plain, fast = (
            outputs(prepared.model.with_proto(proto), feed, level)[0] for level in (Optimization.NONE, Optimization.ALL)
        )
        assert sqnr(plain, fast) > 25
        assert (plain.argmax(axis=1) == fast.argmax(axis=1)).mean() > 0.97


class TestSampleModels:
    @BOTH
    @SAMPLES
    def test_keeps_the_promises_and_the_answers(self, target: TargetProfile, name: str) -> None:
        prepared, table, feed, labels = prepared_sample(name)
        result = quantize_model(prepared.model, table, target)
        check(prepared.model.proto, result, target)
        weighted = [n.name for n in prepared.model.proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
        assert list(result.layers) == weighted
        expected, got = outputs(prepared.model, feed)[0], outputs(prepared.model.with_proto(result.proto), feed)[0]
        right, kept = (expected.argmax(1) == labels).mean(), (got.argmax(1) == labels).mean()
        # The MobileNet is bundled because min-max ranges hurt it: its swish activations have long tails.
        assert kept >= right - (0.03 if name == "fashion-resnet" else 0.5)

    @SAMPLES
    def test_onnxruntime_runs_every_convolution_in_integers(self, name: str, tmp_path: Path) -> None:
        prepared, table, _, _ = prepared_sample(name)
        result = quantize_model(prepared.model, table, ONNXRUNTIME)
        onnx.save(result.proto, tmp_path / "m.onnx")
        assert integer_kernels(tmp_path / "m.onnx") == len(result.layers)

    def test_resnet_has_a_qlinearconv_for_every_conv(self, tmp_path: Path) -> None:
        import onnxruntime

        prepared, table, _, _ = prepared_sample("fashion-resnet")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        data = quantize_model(prepared.model, table, ONNXRUNTIME).proto.SerializeToString()
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
        assert kinds["QLinearConv"] == sum(node.op_type == "Conv" for node in prepared.model.proto.graph.node)
        assert kinds["Conv"] == kinds["FusedConv"] == 0

    def test_residual_additions_quantize_the_skip_branch_for_tensorrt(self) -> None:
        prepared, table, _, _ = prepared_sample("fashion-resnet")
        graph = Graph(quantize_model(prepared.model, table, TENSORRT).proto)
        additions = graph.of_type("Add")
        assert additions
        for node in additions:
            behind_pair = [graph.quantized_tensor(name) is not None for name in node.input]
            assert sorted(behind_pair) == [False, True], "the convolution fuses with the addition, the skip is INT8"


class TestPlacement:
    def test_residual(self, build) -> None:
        """The pair on the skip branch is the one that the convolution's input already has."""
        proto = prepare(Model.of(build.cnn())).model.proto
        result, _ = quantized(proto, TENSORRT)
        graph = Graph(result.proto)
        (add,) = graph.of_type("Add")
        conv = graph.named("conv2")
        assert conv.input[0] in add.input
        assert conv.output[0] in add.input

    def test_onnxruntime_quantizes_both_sides(self, build) -> None:
        proto = prepare(Model.of(build.cnn())).model.proto
        result, _ = quantized(proto, ONNXRUNTIME)
        graph = Graph(result.proto)
        (add,) = graph.of_type("Add")
        assert all(graph.quantized_tensor(name) is not None for name in add.input)
        assert "r1" in result.tensors, "quantized behind the Relu that fuses, not before"
        assert "a1" not in result.tensors

    @BOTH
    def test_a_tensor_that_is_output_and_input(self, target: TargetProfile, build) -> None:
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1"),
            helper.make_node("MatMul", ["h", "w2"], ["y"], name="fc2"),
        ]
        stored = [build.weight("w1", 8, 8), build.weight("b1", 8), build.weight("w2", 8, 4)]
        proto = build.model(
            nodes, [build.value("x", ["n", 8])], [build.value("h", ["n", 8]), build.value("y", ["n", 4])], stored
        )
        result, feed = quantized(proto, target)
        hidden, last = outputs(result.proto, feed, Optimization.NONE)
        assert result.layers == ("fc1", "fc2")
        assert sqnr(outputs(proto, feed)[0], hidden) > 35
        assert sqnr(outputs(proto, feed)[1], last) > 30
        scale = result.tensors["h"].scale
        assert np.abs(hidden / scale - np.rint(hidden / scale)).max() > 0.01, "the output itself is not rounded"

    @BOTH
    def test_shared_weights_are_stored_once(self, target: TargetProfile, build) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
            helper.make_node("MatMul", ["t", "w"], ["y"], name="second"),
        ]
        proto = build.model(
            nodes, [build.value("x", ["n", 8])], [build.value("y", ["n", 8])], [build.weight("w", 8, 8)]
        )
        result, feed = quantized(proto, target)
        graph = Graph(result.proto)
        assert graph.named("first").input[1] == graph.named("second").input[1]
        assert sum(value.dtype == np.int8 and value.ndim == 2 for value in graph.constants.values()) == 1
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed)[0]) > 30

    @BOTH
    def test_a_weight_that_another_operator_reads_too_stays(self, target: TargetProfile, build) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
            helper.make_node("ReduceSum", ["w"], ["total"], name="sum"),
            helper.make_node("Mul", ["h", "total"], ["y"], name="mul"),
        ]
        proto = build.model(
            nodes, [build.value("x", ["n", 8])], [build.value("y", ["n", 8])], [build.weight("w", 8, 8)]
        )
        result, feed = quantized(proto, target)
        assert "w" in Graph(result.proto).constants
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed)[0]) > 35

    def test_an_addition_that_ends_the_graph_stays_float(self, build) -> None:
        """Its result is an output, which is not rounded, so no integer kernel takes it."""
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="layer"),
            helper.make_node("Tanh", ["z"], ["t"], name="tanh"),
            helper.make_node("Add", ["a", "t"], ["y"], name="add"),
        ]
        inputs = [build.value("x", ["n", 8]), build.value("z", ["n", 6])]
        proto = build.model(nodes, inputs, [build.value("y", ["n", 6])], [build.weight("w", 8, 6)])
        result, _ = quantized(proto, ONNXRUNTIME)
        assert "t" not in result.tensors

    @BOTH
    def test_several_inputs(self, target: TargetProfile, build) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["a"], name="left"),
            helper.make_node("MatMul", ["z", "w2"], ["b"], name="right"),
            helper.make_node("Add", ["a", "b"], ["s"], name="add"),
            helper.make_node("MatMul", ["s", "w3"], ["y"], name="last"),
        ]
        proto = build.model(
            nodes,
            [build.value("x", ["n", 8]), build.value("z", ["n", 3])],
            [build.value("y", ["n", 4])],
            [build.weight("w1", 8, 6), build.weight("w2", 3, 6), build.weight("w3", 6, 4)],
        )
        result, feed = quantized(proto, target)
        assert result.layers == ("left", "right", "last")
        assert {"x", "z", "s"} <= set(result.tensors)
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed)[0]) > 30

    @BOTH
    @pytest.mark.parametrize("bases", [["x_quantized", "w_int8", "b_int32", "y_quantized"], []])
    def test_names_that_are_taken(self, target: TargetProfile, bases: list[str], build) -> None:
        """A model may already call its tensors and nodes what the writer would."""
        taken = [*bases, "x_quantized_scale", "x_quantized_zero", "x_quantized_dq", "x_quantized_q"]
        taken += ["w_int8_scale", "w_int8_zero", "w_int8_dq", "b_int32_scale", "b_int32_zero", "b_int32_dq"]
        source, nodes = "x", []
        for name in taken:
            nodes.append(helper.make_node("Tanh", [source], [name], name=f"{name}_q"))
            source = name
        nodes.append(helper.make_node("Add", ["x", source], ["s"], name="x_quantized_1"))
        nodes.append(helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="layer"))
        nodes.append(helper.make_node("Add", ["g", "s"], ["y"], name="sum"))
        stored = [build.weight("w", 8, 8), build.weight("b", 8)]
        proto = build.model(nodes, [build.value("x", ["n", 8])], [build.value("y", ["n", 8])], stored)
        result, feed = quantized(proto, target)
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed)[0]) > 35

    @BOTH
    def test_the_input_model_is_not_changed(self, target: TargetProfile, build) -> None:
        proto = build.mlp()
        before = proto.SerializeToString(deterministic=True)
        quantized(proto, target)
        assert proto.SerializeToString(deterministic=True) == before


class TestExclusion:
    @BOTH
    @pytest.mark.parametrize(
        ("pattern", "kept"), [("conv1", ["conv1"]), ("conv*", ["conv1", "conv2"]), ("*2", ["conv2"])]
    )
    def test_names_and_patterns(self, target: TargetProfile, pattern: str, kept: list[str], build) -> None:
        proto = prepare(Model.of(build.cnn())).model.proto
        result, feed = quantized(proto, target, [pattern])
        assert list(result.excluded) == kept
        assert not set(result.layers) & set(kept)
        graph = Graph(result.proto)
        for name in kept:
            assert graph.dequantizer(graph.named(name).input[1]) is None
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed)[0]) > 20

    @BOTH
    def test_a_name_with_brackets_is_a_name(self, target: TargetProfile, build) -> None:
        proto = build.mlp()
        proto.graph.node[0].name = "fc[1]"
        result, _ = quantized(proto, target, ["fc[1]"])
        assert result.excluded == ("fc[1]",)
        assert result.layers == ("fc2",)

    @BOTH
    @pytest.mark.parametrize("pattern", ["fc3", "relu", "conv*", "FC1"])
    def test_unknown(self, target: TargetProfile, pattern: str, build) -> None:
        with pytest.raises(ConfigError, match="nothing to exclude") as caught:
            quantized(build.mlp(), target, [pattern])
        assert "fc1, fc2" in str(caught.value)

    @BOTH
    def test_everything(self, target: TargetProfile, build) -> None:
        with pytest.raises(EngineBuildError, match="no layer could be quantized"):
            quantized(build.mlp(), target, ["*"])


class TestDeadChannels:
    @BOTH
    @pytest.mark.parametrize("weak", [0.0, 1e-30, 1e-12, 1e-6])
    @pytest.mark.parametrize("strong_bias", [0.0, 0.3, 1000.0])
    def test_finite_and_close(self, target: TargetProfile, weak: float, strong_bias: float) -> None:
        """Wide inputs and small weights, so that a bias rounded to the input's own step would be lost."""
        rng = np.random.default_rng(2)
        weight = rng.standard_normal((4, 3, 3, 3)) * 1e-3
        weight[1] *= weak / 1e-3
        bias = np.array([0.1, strong_bias, -0.2, 0.0])
        proto = layer("Conv", weight, bias=bias)
        model = Model.of(proto)
        feed = {"x": noise(proto)["x"] * np.float32(30)}
        result = quantize_model(model, ranges(model, feed), target)
        check(proto, result, target)
        expected = outputs(proto, feed)[0]
        for level in (Optimization.NONE, Optimization.ALL):
            got = outputs(result.proto, feed, level)[0]
            assert np.isfinite(got).all()
            error = np.abs(got - expected).max(axis=(0, 2, 3))
            assert error[1] <= 1e-3 * strong_bias + 2e-5, "what the channel adds is its bias"
            assert error[[0, 2, 3]].max() < 0.02 * np.abs(expected[:, [0, 2, 3]]).max()

    def test_biases_of_all_layers_that_share_a_weight_fit(self, build) -> None:
        """The second layer's bias on a nearly dead channel is far beyond INT32 at the weight's own scale."""
        weight = np.random.default_rng(4).standard_normal((6, 6)).astype(np.float32)
        weight[:, 2] = 1e-9
        nodes = [
            helper.make_node("Gemm", ["x", "w"], ["h"], name="first"),
            helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
            helper.make_node("Gemm", ["t", "w", "b"], ["y"], name="second"),
        ]
        stored = [build.const("w", weight), build.const("b", [0, 0, 500.0, 0, 0, 0])]
        proto = build.model(nodes, [build.value("x", ["n", 6])], [build.value("y", ["n", 6])], stored)
        result, feed = quantized(proto, ONNXRUNTIME)
        got = outputs(result.proto, feed)[0]
        np.testing.assert_allclose(got[:, 2], 500.0, rtol=1e-4)

    @BOTH
    def test_all_weights_zero(self, target: TargetProfile) -> None:
        proto = layer("Gemm", np.zeros((8, 4)), bias=np.array([1.0, -2.0, 0.0, 1e-3]))
        result, feed = quantized(proto, target)
        np.testing.assert_allclose(outputs(result.proto, feed)[0], outputs(proto, feed)[0], rtol=1e-5)


class TestRefusals:
    @BOTH
    def test_a_model_that_is_quantized_already(self, target: TargetProfile, build) -> None:
        result, feed = quantized(build.mlp(), target)
        model = Model.of(result.proto)
        with pytest.raises(ModelError, match="already holds QuantizeLinear"):
            quantize_model(model, ranges(model, feed), target)

    @BOTH
    def test_layers_without_a_range_are_counted(self, target: TargetProfile, build) -> None:
        result, feed = quantized(build.mlp(), target, left_out=["r"])
        assert result.layers == ("fc1",)
        (degradation,) = result.degradations
        assert degradation.code is DegradationCode.NOT_QUANTIZED
        assert (degradation.count, degradation.subjects) == (1, ("fc2",))
        assert np.isfinite(outputs(result.proto, feed)[0]).all()

    @BOTH
    def test_a_tensor_that_is_always_zero_has_no_range(self, target: TargetProfile, build) -> None:
        proto = build.mlp()
        proto.graph.initializer[1].CopyFrom(build.const("b1", np.full(64, -1e6)))  # the Relu never opens
        result, feed = quantized(proto, target)
        assert result.layers == ("fc1",)
        assert [d.subjects for d in result.degradations] == [("fc2",)]
        assert not outputs(result.proto, feed)[0].any()

    @BOTH
    def test_nothing_has_a_range(self, target: TargetProfile, build) -> None:
        with pytest.raises(EngineBuildError, match="no layer could be quantized") as caught:
            quantized(build.mlp(), target, left_out=["x", "h", "r", "y"])
        assert "2 layers without a range" in str(caught.value)

    @BOTH
    def test_a_method_that_the_table_lacks(self, target: TargetProfile, build) -> None:
        model = Model.of(build.mlp())
        table = ranges(model, noise(model.proto))
        with pytest.raises(ConfigError, match="no entropy range of tensor") as caught:
            table.with_method("entropy")
        assert "minmax" in str(caught.value)
        with pytest.raises(ConfigError, match="no entropy range of tensor 'x'") as caught:
            quantize_model(model, dataclasses.replace(table, method="entropy"), target)
        assert "minmax" in str(caught.value)

    @BOTH
    def test_layers_that_the_target_does_not_quantize_are_counted(self, target: TargetProfile, build) -> None:
        """Products with a vector and, for ONNX Runtime, of two activations: nobody asked for FP32, so it is said."""
        proto = build.mlp()
        proto.graph.initializer.append(build.const("vector", np.ones(4)))
        proto.graph.node.append(helper.make_node("MatMul", ["y", "vector"], ["dot"], name="dot"))
        proto.graph.node.append(helper.make_node("Transpose", ["y"], ["yt"], name="transposed", perm=[1, 0]))
        proto.graph.node.append(helper.make_node("MatMul", ["y", "yt"], ["gram"], name="gram"))
        result, _ = quantized(proto, target)
        left_out = ("dot",) if target.free_products else ("dot", "gram")
        assert not set(left_out) & set(result.layers)
        (degradation,) = result.degradations
        assert degradation.code is DegradationCode.NOT_QUANTIZED
        assert (degradation.count, degradation.subjects) == (len(left_out), left_out)
