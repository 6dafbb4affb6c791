"""Min-max: the whole range, nothing clipped."""

from __future__ import annotations

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import Scheme


class MinMax:
    """The exact minimum and maximum; amax for symmetric schemes (``IInt8MinMaxCalibrator``)."""

    name = "minmax"
    searches = False

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        if scheme.symmetric:
            return MethodRange(-distribution.amax, distribution.amax)
        return MethodRange(distribution.minimum, distribution.maximum)
