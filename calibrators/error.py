"""Expected quantization error of a distribution, in closed form.

Values are taken as spread evenly within each interval of a `Distribution`. Within the range the squared rounding
error integrates exactly through G(t) = integral of (u - round(u))**2 from 0 to t = n/12 + f**3/3, where n = round(t)
and f = t - n; outside it the clipping error integrates as a cubic.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.histogram import Distribution
from quantlab.calibrators.quantize import Scheme, parameters

Array = NDArray[np.float64]


def _rounding_integral(t: Array) -> Array:
    whole = np.rint(t)
    part = t - whole
    result: Array = whole / 12.0 + part * part * part / 3.0
    return result


def mean_squared_errors(distribution: Distribution, lows: Array, highs: Array, scheme: Scheme) -> Array:
    """Expected squared error of quantizing to each candidate range.

    Args:
        distribution: Values to be quantized.
        lows: Lower bounds, (C,).
        highs: Upper bounds, (C,).
        scheme: Integer grid.

    Returns:
        (C,) mean squared errors, in squared units of the tensor.
    """
    candidates = [parameters(float(low), float(high), scheme) for low, high in zip(lows, highs, strict=True)]
    scale = np.array([c.scale for c in candidates])[:, None]
    zero = np.array([c.zero_point for c in candidates])[:, None]
    bottom, top = (scheme.qmin - zero) * scale, (scheme.qmax - zero) * scale
    a, b, mass = distribution.low[None, :], distribution.high[None, :], distribution.mass
    spread = distribution.high > distribution.low
    width = np.where(spread, distribution.high - distribution.low, 1.0)
    inner_a, inner_b = np.clip(a, bottom, top), np.clip(b, bottom, top)
    inside = scale**3 * (_rounding_integral(inner_b / scale) - _rounding_integral(inner_a / scale))
    below = (np.minimum(b - bottom, 0.0) ** 3 - np.minimum(a - bottom, 0.0) ** 3) / 3.0
    above = (np.maximum(b - top, 0.0) ** 3 - np.maximum(a - top, 0.0) ** 3) / 3.0
    errors = np.maximum(inside + below + above, 0.0) / width
    if not spread.all():
        points = distribution.low[~spread][None, :]
        nearest = np.clip(np.rint(points / scale) * scale, bottom, top)
        errors[:, ~spread] = (points - nearest) ** 2
    result: Array = errors @ mass / mass.sum()
    return result


def sqnr_db(distribution: Distribution, low: float, high: float, scheme: Scheme) -> float:
    """Expected signal-to-quantization-noise ratio in dB; inf if nothing is lost."""
    error = float(mean_squared_errors(distribution, np.array([low]), np.array([high]), scheme)[0])
    power = distribution.power
    if error <= 0.0 or power <= 0.0:
        return math.inf
    return 10.0 * math.log10(power / error)


def clipped_fraction(distribution: Distribution, low: float, high: float) -> float:
    """Share of values outside ``[low, high]``, widened to hold zero, as every quantizer's range is."""
    low, high = min(low, 0.0), max(high, 0.0)
    a, b = distribution.low, distribution.high
    spread = b > a
    width = np.where(spread, b - a, 1.0)
    outside = (np.maximum(np.minimum(b, low) - a, 0.0) + np.maximum(b - np.maximum(a, high), 0.0)) / width
    outside = np.where(spread, np.minimum(outside, 1.0), (a < low) | (a > high))
    return float((outside * distribution.mass).sum()) / distribution.total
