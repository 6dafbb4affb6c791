"""MSE: the range of least expected squared quantization error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.error import mean_squared_errors
from quantlab.calibrators.histogram import Distribution
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import Scheme

_SMALLEST_SHARE = 2.0**-7
_COARSE, _FINE, _ROUNDS = 33, 9, 3
_AFFINE_SWEEPS = 2
_COARSENING = 8

Ranges = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


class MeanSquaredError:
    """Searches the share of the full range, on a geometric grid that is refined three times, that loses least.

    The error is the closed form of `quantlab.calibrators.error`. Affine ranges are searched one end at a time.
    """

    name = "mse"

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        whole = MinMax().choose(distribution, scheme)
        if whole.high <= whole.low:
            return MethodRange(whole.low, whole.high, "constant")
        search = _Search(distribution, scheme)
        if scheme.symmetric:
            amax = distribution.amax
            share = search.best(lambda s: (-amax * s, amax * s))
            return MethodRange(-amax * share, amax * share, candidates=search.candidates)
        low, high = whole.low, whole.high
        for _ in range(_AFFINE_SWEEPS):
            if whole.high > 0.0:
                high = whole.high * search.best(_moving_high(min(low, 0.0), whole.high))
            if whole.low < 0.0:
                low = whole.low * search.best(_moving_low(whole.low, max(high, 0.0)))
            if whole.low >= 0.0 or whole.high <= 0.0:
                break
        return MethodRange(low, high, candidates=search.candidates)


def _moving_high(low: float, high: float) -> Ranges:
    return lambda shares: (np.full_like(shares, low), high * shares)


def _moving_low(low: float, high: float) -> Ranges:
    return lambda shares: (low * shares, np.full_like(shares, high))


class _Search:
    """Finds the share in (0, 1] of least error; the first, widest grid looks at a coarser distribution."""

    def __init__(self, distribution: Distribution, scheme: Scheme) -> None:
        self.fine, self.coarse = distribution, distribution.coarsened(_COARSENING)
        self.scheme = scheme
        self.candidates = 0

    def best(self, ranges: Ranges) -> float:
        """Share of least error; ties go to the larger share, so that nothing is clipped for no gain."""
        grid = np.geomspace(_SMALLEST_SHARE, 1.0, _COARSE)
        best = self._least(self.coarse, ranges, grid)
        for _ in range(_ROUNDS):
            grid = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], _FINE)
            best = self._least(self.fine, ranges, grid)
        return float(grid[best])

    def _least(self, distribution: Distribution, ranges: Ranges, grid: NDArray[np.float64]) -> int:
        lows, highs = ranges(grid)
        # Values below half the smallest step become zero under every candidate: they cannot tell them apart.
        step = float((highs - lows).min()) / (self.scheme.qmax - self.scheme.qmin)
        telling = distribution.reaching(0.45 * step)
        if telling.mass.size == 0:  # nothing but subnormals that count as zeros
            telling = distribution
        errors = mean_squared_errors(telling, lows, highs, self.scheme)
        self.candidates += len(grid)
        return len(grid) - 1 - int(np.argmin(errors[::-1]))
