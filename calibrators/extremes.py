"""Extremes: what min-max calibration needs of a tensor, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Extremes:
    """Exact minimum and maximum of one tensor's values; not thread-safe, callers hold a lock.

    Attributes:
        minimum: Least finite value; infinity if there was none.
        maximum: Largest finite value; minus infinity if there was none.
        total: Finite values seen.
        non_finite: NaN and infinite values seen.
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    total: int = 0
    non_finite: int = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in all of ``values`` (any shape, float32). NaN and infinities are counted apart."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        size = values.size
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = values[np.isfinite(values)]
            low, high = float(finite.min(initial=math.inf)), float(finite.max(initial=-math.inf))
            self.non_finite += size - finite.size
            size = finite.size
        self._widen(low, high, size)

    def add_maxima(self, maxima: NDArray[np.float32], bound: float, size: int) -> None:
        """Take in ``size`` values none of which is below ``bound``, of which only some maxima are known.

        The minimum becomes ``bound`` at most: what a Relu or Clip guarantees, whether or not a value reached it.
        """
        self.add(maxima)
        self._widen(bound, -math.inf, size - maxima.size)

    def _widen(self, low: float, high: float, size: int) -> None:
        # Plus zero: whether an extreme is 0.0 or -0.0 must not depend on which of them came first.
        self.minimum, self.maximum = min(self.minimum, low) + 0.0, max(self.maximum, high) + 0.0
        self.total += size

    def merge(self, other: Extremes) -> None:
        """Take in another one; the result equals that of all values together."""
        self._widen(other.minimum, other.maximum, other.total)
        self.non_finite += other.non_finite
