"""Percentile: clip a fixed share of the values."""

from __future__ import annotations

from quantlab.calibrators.histogram import Distribution
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import Scheme


class Percentile:
    """Keeps ``percentile`` per cent of the values.

    Symmetric schemes clip the largest magnitudes; affine ones clip half of the rest at each end. With fewer values
    than one would be clipped, or where more than ``percentile`` per cent are exact zeros, a percentile says nothing
    about the range, and min-max is used.
    """

    name = "percentile"

    def __init__(self, percentile: float = 99.99) -> None:
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")
        self.percentile = percentile

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        whole = MinMax().choose(distribution, scheme)
        dropped = 1.0 - self.percentile / 100.0
        if dropped == 0.0:
            return whole
        if distribution.total * dropped < 1.0:
            reason = f"only {distribution.total:.0f} values, too few for the {self.percentile} percentile"
            return MethodRange(whole.low, whole.high, reason)
        if scheme.symmetric:
            amax = distribution.magnitudes().quantile(1.0 - dropped)
            low, high = -amax, amax
        else:
            low, high = distribution.quantile(dropped / 2.0), distribution.quantile(1.0 - dropped / 2.0)
        low, high = max(low, whole.low), min(high, whole.high)
        if high <= 0.0 <= low and whole.high > whole.low:
            return MethodRange(
                whole.low, whole.high, f"{100 * distribution.zero_fraction:.2f} % of the values are zeros"
            )
        return MethodRange(low, high)
