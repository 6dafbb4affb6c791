"""FP8 and weight-only INT8: formats, ranges, opset, and results against a reference in NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from qdq_checks import Graph, noise, outputs, quantized, ranges, sqnr
from qdq_graphs import Sketch, dead_channels, depthwise, residual, transformer

from quantlab.calibrators.quantize import FP8_E4M3, INT8_WEIGHT, fake_quantize, weight_scales
from quantlab.errors import ConfigError, ModelError
from quantlab.graph.model import Model, Optimization
from quantlab.graph.opset import raise_opset
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT

FP8, WEIGHTS = QuantizationKind.FP8, QuantizationKind.INT8_WEIGHTS


def two_layers(opset: int = 17):  # type: ignore[no-untyped-def]
    s = Sketch("n", 32, opset=opset)
    hidden = s.add("Relu", "r", s.dense("first", "x", 32, 48))
    return s.model(s.add("MatMul", "second", hidden, s.weight("w2", 48, 16)))


def rounded_weight(weight: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    scheme_scales = weight_scales(weight, axis, FP8_E4M3)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return fake_quantize(weight, scheme_scales.reshape(shape), 0, FP8_E4M3).astype(np.float64)


class TestFp8:
    def test_equals_a_numpy_reference(self) -> None:
        """Every operand rounded to E4M3 by `fake_quantize`, everything between in float64."""
        proto = two_layers()
        result, feed = quantized(proto, TENSORRT, kind=FP8)
        stored = Graph(proto).constants

        def rounded(name: str, value: NDArray[np.float64]) -> NDArray[np.float64]:
            return fake_quantize(value.astype(np.float32), result.tensors[name].scale, 0, FP8_E4M3).astype(np.float64)

        hidden = rounded("x", feed["x"].astype(np.float64)) @ rounded_weight(stored["first.w"], 1) + stored["first.b"]
        expected = rounded("r", np.maximum(hidden, 0)) @ rounded_weight(stored["w2"], 1)
        got = outputs(result.proto, feed, Optimization.NONE)[0]
        # A value at a rounding border may fall to the other side in float32: one step of one operand at most.
        assert np.median(np.abs(got - expected)) < 1e-5 * np.abs(expected).max()
        assert sqnr(expected.astype(np.float32), got) > 45

    def test_scale_is_the_largest_magnitude_over_448(self) -> None:
        """Whatever the method: clipping buys no precision where steps grow with the value."""
        model = Model.of(two_layers())
        feed = noise(model.proto)
        table = ranges(model, feed)
        narrow = [
            dataclasses.replace(
                entry,
                ranges={
                    scheme: {m: dataclasses.replace(r, low=-0.1, high=0.1) for m, r in methods.items()}
                    for scheme, methods in entry.ranges.items()
                },
            )
            for entry in table.tensors
        ]
        result = quantize_model(model, dataclasses.replace(table, tensors=tuple(narrow)), TENSORRT, kind=FP8)
        assert result.tensors["x"].scale == pytest.approx(np.abs(feed["x"]).max() / 448, rel=1e-6)

    def test_values_beyond_the_range_saturate(self) -> None:
        result, feed = quantized(two_layers(), TENSORRT, kind=FP8)
        largest = result.tensors["x"].scale * 448
        many = [
            outputs(result.proto, {"x": np.full_like(feed["x"], largest * f)}, Optimization.NONE)[0] for f in (1, 9)
        ]
        np.testing.assert_array_equal(many[0], many[1])

    @pytest.mark.parametrize(("opset", "expected"), [(13, 19), (17, 19), (19, 19), (21, 21)])
    def test_opset_is_raised_where_needed(self, opset: int, expected: int) -> None:
        proto = two_layers(opset)
        result, feed = quantized(proto, TENSORRT, kind=FP8)
        assert [entry.version for entry in result.proto.opset_import] == [expected]
        assert result.proto.ir_version >= 9
        assert proto.opset_import[0].version == opset
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed, Optimization.NONE)[0]) > 26

    def test_an_opset_that_cannot_be_raised(self) -> None:
        """The converter does not know every operator."""
        s = Sketch("n", 32)
        proto = s.model(s.add("MatMul", "layer", "x", s.weight("w", 32, 32)))
        proto.graph.node[0].op_type = "MatMulOfTheFuture"
        with pytest.raises(ModelError, match="cannot be converted to opset 19"):
            raise_opset(proto, 19, 9)

    def test_depthwise_convolutions_stay_float(self) -> None:
        s = Sketch("n", 32, 8, 8)
        depth = s.conv("depth", s.add("Relu", "relu", s.conv("expand", "x", 32, 64, 1)), 64, 64, group=64)
        result, _ = quantized(s.model(s.conv("project", depth, 64, 32, 1)), TENSORRT, kind=FP8)
        assert result.layers == ("expand", "project")
        assert list(result.skipped) == ["depth"]

    def test_attention(self) -> None:
        proto = transformer()
        result, feed = quantized(proto, TENSORRT, kind=FP8)
        assert result.layers == ("qkv", "scores", "mixed", "out", "up", "down")
        assert sqnr(outputs(proto, feed)[0], outputs(result.proto, feed, Optimization.NONE)[0]) > 26

    def test_onnxruntime_has_none(self) -> None:
        with pytest.raises(ConfigError, match="target onnxruntime has no fp8 quantization"):
            quantized(two_layers(), ONNXRUNTIME, kind=FP8)


class TestWeightsOnly:
    @pytest.mark.parametrize("target", [TENSORRT, ONNXRUNTIME], ids=lambda target: target.name)
    @pytest.mark.parametrize("graph", [residual, depthwise, dead_channels])
    def test_is_the_model_with_rounded_weights(self, target, graph) -> None:  # type: ignore[no-untyped-def]
        proto = graph()
        model = Model.of(proto)
        result = quantize_model(model, None, target, kind=WEIGHTS)
        assert result.tensors == {}
        assert result.degradations == ()
        expected = type(proto)()
        expected.CopyFrom(proto)
        for tensor in expected.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.ndim == 4:
                scales = weight_scales(value, 0).reshape(-1, 1, 1, 1)
                tensor.CopyFrom(numpy_helper.from_array(fake_quantize(value, scales, 0, INT8_WEIGHT), tensor.name))
        feed = noise(proto)
        for level in (Optimization.NONE, Optimization.ALL):
            got = outputs(result.proto, feed, level)[0]
            np.testing.assert_allclose(got, outputs(expected, feed, level)[0], rtol=1e-4, atol=1e-5)

    def test_products_of_two_activations_have_no_weight(self) -> None:
        result, _ = quantized(transformer(), TENSORRT, kind=WEIGHTS)
        assert result.layers == ("qkv", "out", "up", "down")
        assert result.degradations == ()

    def test_exclusion(self) -> None:
        result, _ = quantized(residual(), TENSORRT, ["stem", "f*"], kind=WEIGHTS)
        assert (result.layers, result.excluded) == (("second", "last"), ("first", "stem"))

    @pytest.mark.parametrize("kind", [QuantizationKind.INT8, FP8])
    def test_the_other_kinds_need_a_table(self, kind: QuantizationKind) -> None:
        with pytest.raises(ConfigError, match=f"{kind} needs a calibration table"):
            quantize_model(Model.of(two_layers()), None, TENSORRT, kind=kind)
