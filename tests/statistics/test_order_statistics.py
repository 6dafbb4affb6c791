"""Order statistics against scipy's binomial distribution, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantlab.statistics.percentile import percentile_interval, percentile_ranks


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [5, 6, 20, 59, 100, 367, 368, 459, 2000])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_ranks_are_the_closest_that_hold(share: float, n: int, confidence: float) -> None:
    """By search over all ranks: P(fewer than ``low`` below) and P(``high`` or more below) at most half the rest."""
    tail = (1 - confidence) / 2
    ranks = np.arange(1, n + 1)
    lows = ranks[stats.binom.cdf(ranks - 1, n, share) <= tail]
    highs = ranks[stats.binom.sf(ranks - 1, n, share) <= tail]
    expected = (max(lows), min(highs)) if len(lows) and len(highs) else None
    assert percentile_ranks(n, share, confidence) == expected


def test_known_ranks() -> None:
    """Conover's and Hahn and Meeker's tables: the median of 10 by the 2nd and 9th, of 6 by the extremes."""
    assert percentile_ranks(10, 0.5, 0.95) == (2, 9)
    assert percentile_ranks(6, 0.5, 0.95) == (1, 6)
    assert percentile_ranks(5, 0.5, 0.95) is None
    assert percentile_ranks(0, 0.5, 0.95) is None


def test_values_are_those_of_the_ranks() -> None:
    ordered = np.arange(1.0, 11.0) ** 2
    interval = percentile_interval(ordered, 0.5)
    assert interval is not None
    assert (interval.low, interval.high, interval.confidence) == (4.0, 81.0, 0.95)
    assert percentile_interval(ordered, 0.99) is None


@pytest.mark.parametrize(("share", "n"), [(0.5, 30), (0.9, 120), (0.99, 459)])
def test_coverage_whatever_the_distribution(share: float, n: int) -> None:
    generator = np.random.default_rng(0)
    truth = float(np.exp(stats.norm.ppf(share)))
    held = 0
    for _ in range(1000):
        interval = percentile_interval(np.sort(np.exp(generator.standard_normal(n))), share)
        assert interval is not None
        held += interval.low <= truth <= interval.high
    assert held >= stats.binom.ppf(1e-4, 1000, 0.95)
