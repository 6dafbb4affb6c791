"""Intervals of percentiles from order statistics, without any assumption on the distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from quantlab.statistics.interval import Interval


def percentile_ranks(n: int, share: float, confidence: float) -> tuple[int, int] | None:
    """Ranks, from 1, of the two order statistics that enclose a percentile.

    The number of values below the percentile is binomial of ``n`` and ``share``; each rank leaves at most half of
    ``1 - confidence`` outside (David and Nagaraja, "Order Statistics", 3rd edition, section 7.1). The values must be
    independent.

    Args:
        n: Number of values.
        share: Of the values below the percentile, 0 to 1 exclusive: 0.9 for the 90th.
        confidence: Least coverage.

    Returns:
        None if there are too few values for an interval with two ends.
    """
    if n < 1:
        return None
    tail = (1.0 - confidence) / 2.0
    below = bdtr(np.arange(n), n, share)  # P(at most k values below the percentile), k = 0 to n - 1
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1.0 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= n else None


def percentile_interval(ordered: NDArray[np.float64], share: float, confidence: float = 0.95) -> Interval | None:
    """Interval of a percentile.

    Args:
        ordered: Values, ascending.
        share: Of the values below the percentile, 0 to 1 exclusive.
        confidence: Least coverage.

    Returns:
        Two of the values; None if there are too few.
    """
    ranks = percentile_ranks(len(ordered), share, confidence)
    if ranks is None:
        return None
    return Interval(float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]), confidence)
