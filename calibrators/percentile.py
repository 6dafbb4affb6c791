"""Percentile: clip a fixed share of the values."""

from __future__ import annotations

import math
from fractions import Fraction

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import Scheme


class Percentile:
    """Keeps ``percentile`` per cent of the values.

    Of N values k = floor(N * (100 - percentile) / 100) may be clipped, and the bound is the largest value that is not:
    the (k + 1)-th from the end, which ``numpy.quantile`` calls ``inverted_cdf``. Symmetric schemes count magnitudes.
    Affine ones give half of the share to each end, and all of it to the only end of one-sided tensors.

    A percentile says nothing about the range, and min-max is used, for constant, discrete and sparse tensors
    (`Distribution.kind`: the percentile would be one of a few values, or of the zeros), where k is 0, and where so many
    values are zeros that the range would have no width.
    """

    name = "percentile"
    searches = False

    def __init__(self, percentile: float = 99.99) -> None:
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")
        self.percentile = percentile

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        whole = MinMax().choose(distribution, scheme)
        # The decimal that was asked for, not its binary neighbour: 0.01 % of 10,000 is one value.
        share = 1 - Fraction(str(self.percentile)) / 100
        if share == 0:
            return whole
        ends = 1 if scheme.symmetric or distribution.one_sided else 2
        total = int(distribution.total)
        clipped = math.floor(total * share / ends)
        reason = self._meaningless(distribution, clipped)
        if reason is not None:
            return MethodRange(whole.low, whole.high, reason)
        low, high = whole.low, whole.high
        if scheme.symmetric:
            high = min(distribution.ranked_magnitude(total - clipped), high)
            low = -high
        else:
            if low < 0.0:
                low = max(distribution.ranked(clipped + 1), low)
            if high > 0.0:
                high = min(distribution.ranked(total - clipped), high)
        if high <= 0.0 <= low:
            zeros = f"{100 * distribution.zero_fraction:.2f} % of the values are zeros, and so is the percentile"
            return MethodRange(whole.low, whole.high, zeros)
        return MethodRange(low, high)

    def _meaningless(self, distribution: Distribution, clipped: int) -> str | None:
        match distribution.kind:
            case "constant":
                return "constant: every value is the same"
            case "discrete":
                return f"discrete: only {distribution.distinct} different values besides zero"
            case "sparse":
                return f"sparse: {100 * distribution.zero_fraction:.2f} % of the values are zeros"
        if clipped == 0:
            return f"only {distribution.total:.0f} values, too few for the {self.percentile} percentile"
        return None
