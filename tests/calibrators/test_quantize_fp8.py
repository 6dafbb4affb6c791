"""FP8 E4M3: codes, rounding, saturation; expected values from the format's definition and from ONNX Runtime."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quantlab.calibrators.quantize import FP8_E4M3, dequantize, fake_quantize, parameters, quantize, weight_scales

FINITE = st.floats(-1e6, 1e6, width=32)
VECTORS = arrays.arrays(np.float32, st.integers(1, 40), elements=FINITE)
SCALES = st.floats(2**-10, 1024, width=32)


def grid() -> NDArray[np.float64]:
    """All finite E4M3 numbers: 4 exponent bits with bias 7, 3 mantissa bits, no infinity; the largest is 448."""
    positive = [m / 8 * 2.0**-6 for m in range(8)]
    positive += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return np.array(sorted({*positive, *(-value for value in positive)}))


def test_the_grid_is_the_formats() -> None:
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(np.unique(codes[np.isfinite(codes)]), grid())
    assert grid().max() == 448 == FP8_E4M3.qmax


@given(VECTORS, SCALES)
def test_rounds_to_the_nearest_and_saturates(x: NDArray[np.float32], scale: float) -> None:
    got = quantize(x, scale, 0, FP8_E4M3).astype(np.float64)
    scaled = np.clip((x / np.float32(scale)).astype(np.float64), -448, 448)
    best = np.abs(scaled[:, None] - grid()).min(axis=1)
    np.testing.assert_array_equal(np.abs(scaled - got), best)


def test_ties_go_to_the_even_mantissa() -> None:
    x = np.array([1.0625, 1.1875, -1.0625, 17.0, 19.0], np.float32)
    np.testing.assert_array_equal(quantize(x, 1.0, 0, FP8_E4M3).astype(np.float32), [1.0, 1.25, -1.0, 16.0, 20.0])


@given(VECTORS, SCALES)
def test_rounding_twice_is_rounding_once(x: NDArray[np.float32], scale: float) -> None:
    power = float(2.0 ** np.rint(np.log2(scale)))  # exact to multiply and to divide by
    once = fake_quantize(x, power, 0, FP8_E4M3)
    np.testing.assert_array_equal(fake_quantize(once, power, 0, FP8_E4M3), once)


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=FINITE.filter(lambda value: abs(value) > 1e-3)))
def test_relative_error_within_the_range(x: NDArray[np.float32]) -> None:
    """Half a unit in the last of 3 mantissa bits, 2**-4, where numbers are normal."""
    scale = parameters(float(x.min()), float(x.max()), FP8_E4M3).scale
    normal = np.abs(x) >= scale * 2.0**-6
    error = np.abs(fake_quantize(x, scale, 0, FP8_E4M3) - x)
    assert (error[normal] <= np.abs(x[normal]) * (2.0**-4 + 1e-5)).all()


def test_parameters_span_the_range() -> None:
    chosen = parameters(-3.0, 1.0, FP8_E4M3)
    assert chosen.zero_point == 0
    assert chosen.scale == np.float32(3 / 448)
    assert fake_quantize(np.float32([-3.0]), chosen.scale, 0, FP8_E4M3)[0] == pytest.approx(-3.0, rel=1e-6)


def test_weight_scales_by_channel() -> None:
    weight = np.array([[1.0, -4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, 0, FP8_E4M3), [4 / 448, 1.0], rtol=1e-7)


@given(VECTORS, SCALES)
def test_is_what_onnxruntime_computes(x: NDArray[np.float32], scale: float) -> None:
    session = _session()
    codes, values = session.run(None, {"x": x, "scale": np.array(scale, np.float32)})
    expected = quantize(x, scale, 0, FP8_E4M3)
    np.testing.assert_array_equal(codes, expected.astype(np.float32))
    np.testing.assert_array_equal(values, dequantize(expected, scale, 0))


_SESSIONS: list[onnxruntime.InferenceSession] = []


def _session() -> onnxruntime.InferenceSession:
    """x and scale -> codes as float32, and dequantized values; made once."""
    if not _SESSIONS:
        zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.FLOAT),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["values"]),
        ]
        value = helper.make_tensor_value_info
        inputs = [value("x", TensorProto.FLOAT, ["n"]), value("scale", TensorProto.FLOAT, [])]
        results = [value(name, TensorProto.FLOAT, ["n"]) for name in ("codes", "values")]
        graph = helper.make_graph(nodes, "fp8", inputs, results, [zero])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        _SESSIONS.append(
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        )
    return _SESSIONS[0]
