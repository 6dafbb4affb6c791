"""What ONNX Runtime's optimizer makes of 8-bit graphs, and the options that keep it from changing results."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from qdq_checks import UNLIMITED, Feed, noise, outputs, quantized, ranges, sqnr
from qdq_graphs import Sketch, residual, transformer

from quantlab.calibrators.quantize import INT8_WEIGHT, fake_quantize, weight_scales
from quantlab.graph.model import Model, Optimization, open_session
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.session import DISABLED_OPTIMIZERS, FLOAT_PRODUCTS, holds_fp8
from quantlab.graph.targets import TENSORRT

LEVELS = onnxruntime.GraphOptimizationLevel


def plain_run(proto: ModelProto, feed: Feed, level: object) -> NDArray[np.float32]:
    """A session as anybody would open it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(DISABLED_OPTIMIZERS),
    )
    result: NDArray[np.float32] = session.run(None, feed)[0]
    return result


def fp8(proto: ModelProto) -> tuple[ModelProto, Feed]:
    result, feed = quantized(proto, UNLIMITED, kind=QuantizationKind.FP8)
    return result.proto, feed


def product() -> ModelProto:
    """One matrix product of the sizes of a small transformer."""
    s = Sketch("n", 128)
    return s.model(s.add("MatMul", "layer", "x", s.weight("w", 128, 128)))


class TestFp8:
    """ONNX Runtime 1.31 fuses FP8 pairs into its integer operators; once it does not, `holds_fp8` is not needed."""

    @pytest.mark.parametrize("level", [LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL], ids=lambda level: level.name)
    def test_the_optimizer_refuses_products(self, level: object) -> None:
        proto, feed = fp8(transformer())
        with pytest.raises(Exception, match=r"INVALID_GRAPH.*float8e4m3fn"):
            plain_run(proto, feed, level)

    @pytest.mark.parametrize("level", [LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL], ids=lambda level: level.name)
    def test_the_optimizer_silently_ruins_convolutions(self, level: object) -> None:
        original = residual()
        proto, feed = fp8(original)
        expected = outputs(original, feed)[0]
        assert sqnr(expected, plain_run(proto, feed, LEVELS.ORT_DISABLE_ALL)) > 24
        assert sqnr(expected, plain_run(proto, feed, level)) < 10, "wrong results without a word"

    @pytest.mark.parametrize("graph", [residual, transformer])
    @pytest.mark.parametrize("level", Optimization)
    def test_is_never_optimized(self, level: Optimization, graph) -> None:  # type: ignore[no-untyped-def]
        proto, feed = fp8(graph())
        expected = plain_run(proto, feed, LEVELS.ORT_DISABLE_ALL)
        np.testing.assert_array_equal(outputs(proto, feed, level)[0], expected)

    def test_is_found_wherever_it_is_stated(self) -> None:
        make, kind = helper.make_node, TensorProto.FLOAT8E4M3FN
        zero = helper.make_tensor("z", kind, [], [0])
        stored, constant = fp8(residual())[0], residual()
        constant.graph.node.append(make("Constant", [], ["z"], value=zero))
        cast, typed = residual(), residual()
        cast.graph.node.append(make("Cast", ["x"], ["y"], to=kind))
        typed.graph.node.append(make("QuantizeLinear", ["x", "s"], ["y"], output_dtype=kind))
        assert all(holds_fp8(proto) for proto in (stored, constant, cast, typed))
        assert not holds_fp8(residual())
        assert not holds_fp8(quantized(residual(), TENSORRT)[0].proto)


class TestWeightsOnly:
    def test_products_are_not_computed_with_rounded_activations(self) -> None:
        """By default ONNX Runtime computes them as MatMulNBits with accuracy level 4: activations in INT8."""
        proto = product()
        feed = noise(proto)
        feed["x"][:, 0] *= 100  # what one large value does to the others in its row
        model = Model.of(proto)
        made = quantize_model(model, ranges(model, feed), TENSORRT, kind=QuantizationKind.INT8_WEIGHTS).proto
        weight = np.asarray(np.frombuffer(proto.graph.initializer[0].raw_data, np.float32)).reshape(128, 128)
        rounded = fake_quantize(weight, weight_scales(weight, 1)[None, :], 0, INT8_WEIGHT)
        expected = (feed["x"].astype(np.float64) @ rounded.astype(np.float64)).astype(np.float32)
        assert sqnr(expected, plain_run(made, feed, LEVELS.ORT_ENABLE_ALL)) < 60, "if not, the option is needless"
        for level in Optimization:
            assert sqnr(expected, outputs(made, feed, level)[0]) > 100

    def test_a_caller_may_say_otherwise(self) -> None:
        proto = product()
        feed = noise(proto)
        made = Model.of(quantize_model(Model.of(proto), None, TENSORRT, kind=QuantizationKind.INT8_WEIGHTS).proto)
        sessions = [open_session(made, threads=1, config={FLOAT_PRODUCTS[0]: level}) for level in ("1", "4")]
        exact, rounded = (session.run(None, feed)[0] for session in sessions)
        assert 20 < sqnr(exact, rounded) < 80
