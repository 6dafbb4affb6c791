"""Expected quantization error of a distribution, in closed form.

Values are taken as spread evenly within each interval of a `Distribution`. Quantizing x >= 0 to steps of size s takes
s off the error x**2 at each border b = (k + 1/2) s that x is beyond, in the sense that

    (x - q(x))**2 = x**2 - 2 s * (sum over the borders b below x of (x - b))

because passing b changes q from k s to (k + 1) s, and so (x - q)**2 by s**2 (2 k + 1) - 2 s x = -2 s (x - b). The last
code has no border behind it, so clipping is in the same formula; negative values mirror it. Summed over all values, the
sum at a border is `Distribution.excess`, one look-up in prefix sums: 255 of them give the error of an 8-bit grid,
however many values and intervals there are.

Rounding: both terms are about the power of the tensor, and the error is their difference. Each look-up is right to a
few times 2**-53 of the magnitudes beyond its border, so the error is right to about 1e-15 of the power: to a millionth
at 90 dB, far above what 8 bits reach on anything that spreads. Errors below 1e-14 of the power (140 dB) are called
zero: a float32 scale cannot do better even for values that lie exactly on the grid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.quantize import Scheme, parameters

Array = NDArray[np.float64]

LOSSLESS = 1e-14
"""Share of the power below which an error is rounding."""


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
    scales = np.array([c.scale for c in candidates])
    zeros = np.array([c.zero_point for c in candidates])
    borders = (np.arange(scheme.qmin, scheme.qmax) + 0.5 - zeros[:, None]) * scales[:, None]
    return errors_of(distribution, scales, distribution.excess(borders).sum(axis=1))


def errors_of(distribution: Distribution, scales: Array, gains: Array) -> Array:
    """Mean squared errors from the sums of `Distribution.excess` over the borders of a grid; shapes broadcast."""
    power = distribution.power
    errors = power - 2.0 * scales * gains / distribution.total
    result: Array = np.where(errors < LOSSLESS * power, 0.0, errors)
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
    return distribution.outside(min(low, 0.0), max(high, 0.0)) / distribution.total
