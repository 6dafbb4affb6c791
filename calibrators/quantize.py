"""The quantization formulas, each written once: scale, zero-point, quantize, dequantize, fake-quantize.

All follow ONNX ``QuantizeLinear``/``DequantizeLinear`` and TensorRT's explicit quantization:
``q = clip(round_half_even(x / scale) + zero_point, qmin, qmax)`` and ``x' = (q - zero_point) * scale``, where scale
is float32. FP8 has no zero-point and rounds to its own grid: ``q = e4m3(clip(x / scale, -448, 448))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
CodeArray = NDArray[Any]
"""Codes of a scheme: int8, uint8 or float8_e4m3fn."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales below the smallest normal float32 would divide by zero on hardware that flushes subnormals."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """An 8-bit grid.

    Attributes:
        name: Name in tables.
        dtype: ``int8``, ``uint8`` or ``float8_e4m3fn``.
        qmin: Smallest code.
        qmax: Largest code.
        symmetric: Zero-point is 0 and one positive number, amax, gives the range.
    """

    name: str
    dtype: str
    qmin: int
    qmax: int
    symmetric: bool

    @property
    def floating(self) -> bool:
        """Whether codes are small floating-point numbers instead of integers."""
        return self.dtype == "float8_e4m3fn"

    @property
    def code_type(self) -> np.dtype[Any]:
        """NumPy type of the codes."""
        if not self.floating:
            return np.dtype(self.dtype)
        import ml_dtypes

        kind: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
        return kind


INT8_SYMMETRIC = Scheme("int8-symmetric", "int8", -128, 127, symmetric=True)
"""TensorRT activations: scale = amax / 127, zero-point 0, codes -128..127."""

INT8_WEIGHT = Scheme("int8-weight", "int8", -127, 127, symmetric=True)
"""Weights: as activations, without the code -128, so that each has its negative."""

UINT8_AFFINE = Scheme("uint8-affine", "uint8", 0, 255, symmetric=False)
"""ONNX Runtime CPU activations: scale = (high - low) / 255, range always includes zero."""

FP8_E4M3 = Scheme("fp8-e4m3", "float8_e4m3fn", -448, 448, symmetric=True)
"""FP8 activations and weights: scale = amax / 448, the largest E4M3 number; no zero-point, saturating."""

SCHEMES = {scheme.name: scheme for scheme in (INT8_SYMMETRIC, UINT8_AFFINE)}
"""Schemes that range methods choose ranges for. FP8 is not among them: its grid is so wide that nothing is clipped."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Scale and zero-point of a per-tensor quantizer.

    Attributes:
        scale: Positive, exactly representable in float32.
        zero_point: Code of 0.0.
    """

    scale: float
    zero_point: int


def parameters(low: float, high: float, scheme: Scheme) -> Parameters:
    """Scale and zero-point that represent ``[low, high]``.

    The symmetric scheme uses ``amax = max(|low|, |high|)``; the affine one widens the range to include 0.
    An empty range gives scale 1.

    Raises:
        ValueError: If a bound is not finite or ``low > high``.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise ValueError(f"not a range: [{low}, {high}]")
    if scheme.symmetric:
        width, steps = max(abs(low), abs(high)), float(scheme.qmax)
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        width, steps = high - low, float(scheme.qmax - scheme.qmin)
    scale = float(np.float32(width / steps)) if width > 0 else 1.0
    scale = min(max(scale, SMALLEST_SCALE), float(np.finfo(np.float32).max))
    if scheme.symmetric:
        return Parameters(scale, 0)
    zero_point = int(np.clip(np.rint(scheme.qmin - low / scale), scheme.qmin, scheme.qmax))
    return Parameters(scale, zero_point)


def quantize(x: FloatArray, scale: FloatArray | float, zero_point: int, scheme: Scheme) -> CodeArray:
    """Codes of ``x``; ``scale`` is a scalar or broadcasts against ``x``.

    FP8 rounds to the nearest E4M3 number, ties to even, and saturates at +-448 (ONNX ``QuantizeLinear`` with
    ``saturate=1``); its zero-point is 0.
    """
    scaled: FloatArray = np.asarray(x / np.asarray(scale, np.float32), np.float32)
    if not scheme.floating:
        scaled = np.asarray(np.rint(scaled) + np.float32(zero_point), np.float32)
    clipped: CodeArray = np.clip(scaled, scheme.qmin, scheme.qmax).astype(scheme.code_type)
    return clipped


def dequantize(q: CodeArray, scale: FloatArray | float, zero_point: int) -> FloatArray:
    """Values of codes; ``scale`` is a scalar or broadcasts against ``q``."""
    codes: CodeArray = (q.astype(np.int32) - zero_point) if np.issubdtype(q.dtype, np.integer) else q
    values: FloatArray = codes.astype(np.float32) * np.asarray(scale, np.float32)
    return values


def fake_quantize(x: FloatArray, scale: FloatArray | float, zero_point: int, scheme: Scheme) -> FloatArray:
    """``dequantize(quantize(x))``."""
    return dequantize(quantize(x, scale, zero_point, scheme), scale, zero_point)


def weight_scales(weight: FloatArray, axis: int | None, scheme: Scheme = INT8_WEIGHT) -> FloatArray:
    """Max-abs scales of a symmetric scheme, one a channel along ``axis``, or one in all for None.

    Channels of zeros get scale 1, so that they stay exact zeros instead of becoming NaN.
    """
    reduced = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    amax = np.max(np.abs(weight), axis=reduced, initial=0.0).astype(np.float64)
    scales = np.where(amax > 0, np.maximum(amax / scheme.qmax, SMALLEST_SCALE), 1.0)
    result: FloatArray = scales.astype(np.float32)
    return result
