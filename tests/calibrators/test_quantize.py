"""The quantization formulas against ONNX Runtime's own operators, bit for bit."""

from __future__ import annotations

import functools
import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quantlab.calibrators import (
    INT8_SYMMETRIC,
    SCHEMES,
    UINT8_AFFINE,
    Scheme,
    dequantize,
    fake_quantize,
    parameters,
    quantize,
    weight_scales,
)
from quantlab.calibrators.quantize import SMALLEST_SCALE

BOTH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
BOUNDS = st.tuples(FLOATS, FLOATS).map(sorted)


@functools.cache
def _operators(scheme: Scheme) -> Any:
    """QuantizeLinear and DequantizeLinear with scale and zero-point as inputs."""
    kind = TensorProto.INT8 if scheme.dtype == "int8" else TensorProto.UINT8
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "operators",
        [value("x", TensorProto.FLOAT, ["n"]), value("scale", TensorProto.FLOAT, []), value("zero", kind, [])],
        [value("q", kind, ["n"]), value("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@BOTH
@settings(max_examples=150, deadline=None)
@given(bounds=BOUNDS, shares=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-2, 2, width=32)))
def test_equals_onnxruntime_bit_for_bit(scheme: Scheme, bounds: list[float], shares: NDArray[np.float32]) -> None:
    chosen = parameters(*bounds, scheme)
    width = np.float32(chosen.scale * 255)
    assume(np.isfinite(width * 2))
    x = np.concatenate([shares * width, np.float32([0, -0.0, np.inf, -np.inf, bounds[0], bounds[1]])])
    halves = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * np.float32(chosen.scale)
    x = np.concatenate([x, halves])
    zero = np.array(chosen.zero_point, scheme.dtype)
    codes, values = _operators(scheme).run(None, {"x": x, "scale": np.array(chosen.scale, np.float32), "zero": zero})
    ours = quantize(x, chosen.scale, chosen.zero_point, scheme)
    assert ours.dtype == codes.dtype
    np.testing.assert_array_equal(ours, codes)
    np.testing.assert_array_equal(dequantize(ours, chosen.scale, chosen.zero_point).view(np.uint32), values.view("u4"))
    np.testing.assert_array_equal(fake_quantize(x, chosen.scale, chosen.zero_point, scheme), values)


@BOTH
@given(bounds=BOUNDS)
def test_parameters(scheme: Scheme, bounds: list[float]) -> None:
    chosen = parameters(*bounds, scheme)
    assert chosen.scale >= SMALLEST_SCALE
    assert float(np.float32(chosen.scale)) == chosen.scale, "exact in float32"
    assert scheme.qmin <= chosen.zero_point <= scheme.qmax
    zero = fake_quantize(np.zeros(1, np.float32), chosen.scale, chosen.zero_point, scheme)
    assert zero[0] == 0.0, "zero is represented exactly"
    if scheme.symmetric:
        assert chosen.zero_point == 0


@BOTH
@given(bounds=BOUNDS, share=st.floats(0, 1))
def test_error_within_the_range(scheme: Scheme, bounds: list[float], share: float) -> None:
    """Rounding loses half a step; the affine grid, moved to hold zero, another half at its ends."""
    low, high = bounds
    chosen = parameters(low, high, scheme)
    x = np.float32(low + share * (high - low))
    error = abs(float(fake_quantize(x[None], chosen.scale, chosen.zero_point, scheme)[0]) - float(x))
    assert error <= chosen.scale * (0.5 if scheme.symmetric else 1.0) * (1 + 1e-4)


def test_symmetric_scale_is_amax_over_127() -> None:
    assert parameters(-1.0, 2.54, INT8_SYMMETRIC).scale == float(np.float32(2.54 / 127))
    assert parameters(-5.08, 2.54, INT8_SYMMETRIC).scale == float(np.float32(5.08 / 127))


def test_affine_range_is_widened_to_zero() -> None:
    assert parameters(1.0, 2.55, UINT8_AFFINE) == parameters(0.0, 2.55, UINT8_AFFINE)
    assert parameters(-2.55, -1.0, UINT8_AFFINE).zero_point == 255
    assert parameters(-1.0, 1.55, UINT8_AFFINE).zero_point == 100
    assert parameters(-1.0, 1.56, UINT8_AFFINE).zero_point == 100, "99.6 is rounded"
    assert parameters(-1.0, 1.54, UINT8_AFFINE).zero_point == 100, "100.4 is rounded"


@BOTH
def test_empty_range_has_scale_one(scheme: Scheme) -> None:
    assert parameters(0.0, 0.0, scheme).scale == 1.0


@BOTH
@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0), (1.0, 0.5)])
def test_impossible_ranges(scheme: Scheme, bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not a range"):
        parameters(*bounds, scheme)


@BOTH
def test_largest_range_has_a_finite_scale(scheme: Scheme) -> None:
    """2 * max / 255 would be infinite if the width were computed in float32."""
    largest = float(np.finfo(np.float32).max)
    expected = largest / 127 if scheme.symmetric else 2 * largest / 255
    assert parameters(-largest, largest, scheme).scale == pytest.approx(expected, rel=1e-6)


class TestWeightScales:
    @given(
        weight=hnp.arrays(
            np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=st.floats(-100, 100, width=32)
        ),
        data=st.data(),
    )
    def test_equals_a_loop_over_channels(self, weight: NDArray[np.float32], data: st.DataObject) -> None:
        axis = data.draw(st.integers(0, weight.ndim - 1))
        scales = weight_scales(weight, axis)
        assert scales.dtype == np.float32
        assert scales.shape == (weight.shape[axis],)
        for scale, channel in zip(scales, np.moveaxis(weight, axis, 0).astype(np.float64), strict=True):
            amax = max(abs(value) for value in channel.ravel())
            expected = 1.0 if amax == 0 else max(amax / 127, SMALLEST_SCALE)
            assert scale == np.float32(expected)
            codes = np.rint(channel / float(scale))
            assert np.abs(codes).max() <= 127
            if amax > 127 * SMALLEST_SCALE:
                assert np.abs(codes).max() == 127, "the largest weight takes the last code"

    def test_dead_channels_stay_zero(self) -> None:
        weight = np.zeros((3, 4), np.float32)
        weight[1] = [1, -2, 0.5, 0]
        assert weight_scales(weight, 0).tolist() == [1.0, float(np.float32(2 / 127)), 1.0]

    def test_one_scale_for_all(self) -> None:
        assert weight_scales(np.float32([[1, -2.54], [0, 0]]), None) == np.float32(2.54 / 127)
