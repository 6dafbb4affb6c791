"""Tango's interval against published values, against a grid inversion of the score test, and its properties."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import GateError
from quantlab.statistics.tango import loss_interval, loss_lower_bound, loss_upper_bound

PUBLISHED = [
    # b, c, n, alpha, low, high, decimals
    # Tango 1998, crossover trial of contact-lens disinfection (43, 0, 1, 0): 90 % interval of the difference.
    (0, 1, 44, 0.05, -0.096, 0.037, 3),
    # Fagerland, Lydersen and Laake 2017, chapter 8 (data of Bentur et al. 2009, Cavo et al. 2012): 95 % intervals.
    (1, 7, 21, 0.025, -0.517, -0.026, 3),
    (6, 16, 161, 0.025, -0.1240, -0.0054, 4),
    # R package PropCIs 0.3-0, scoreci.mp(25, 28, 618, 0.90), whose difference is (c - b) / n.
    (28, 25, 618, 0.05, -0.0148, 0.0247, 4),
]

Counts = tuple[int, int, int]


@st.composite
def paired_counts(draw: st.DrawFn, largest: int = 5000) -> Counts:
    n = draw(st.integers(1, largest))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


alphas = st.floats(0.001, 0.4)


@pytest.mark.parametrize(("b", "c", "n", "alpha", "low", "high", "decimals"), PUBLISHED)
def test_published_intervals(b: int, c: int, n: int, alpha: float, low: float, high: float, decimals: int) -> None:
    found = loss_interval(b, c, n, alpha)
    assert (round(found[0], decimals), round(found[1], decimals)) == (low, high)


def restricted_probability(b: int, c: int, n: int, loss: float) -> float:
    """The likelihood under a fixed loss, maximised by golden sections: independent of Tango's quadratic."""

    def log_likelihood(q: float) -> float:
        terms = ((b, q + loss), (c, q), (n - b - c, 1.0 - 2.0 * q - loss))
        if any(count and p <= 0.0 for count, p in terms):
            return -math.inf
        return sum(count * math.log(p) for count, p in terms if count)

    low, high = max(0.0, -loss), (1.0 - loss) / 2.0
    shrink = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(120):
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if log_likelihood(left) < log_likelihood(right):
            low = left
        else:
            high = right
    return (low + high) / 2.0


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [(41, 14, 2000), (6, 4, 500), (60, 40, 5000), (0, 0, 500), (0, 0, 1), (1, 0, 1), (0, 1, 1), (3, 0, 200), (0, 5, 25),
     (7, 3, 10), (10, 0, 10), (0, 10, 10), (1, 1, 2), (40, 20, 160)],
)  # fmt: skip
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_bound_inverts_the_score_test_on_a_grid(b: int, c: int, n: int, alpha: float) -> None:
    """The bound is the largest loss on a fine grid whose score statistic is not below -z."""
    bound, z = loss_upper_bound(b, c, n, alpha), NormalDist().inv_cdf(1.0 - alpha)
    estimate = (b - c) / n
    if bound == 1.0:
        assert b == n
        return
    step = 2e-4
    grid = np.arange(max(estimate, bound - 20 * step), min(bound + 20 * step, 1.0), step)
    accepted = []
    for loss in grid[grid > estimate]:
        q = restricted_probability(b, c, n, float(loss))
        variance = max(n * (2.0 * q + loss * (1.0 - loss)), 1e-300)
        if (b - c - n * loss) / math.sqrt(variance) >= -z:
            accepted.append(float(loss))
    assert max(accepted) <= bound + 1e-7
    assert bound - max(accepted) <= step + 1e-7


def test_no_flips_is_not_certainty() -> None:
    z = NormalDist().inv_cdf(0.95)
    assert loss_upper_bound(0, 0, 500, 0.05) == pytest.approx(z * z / (500 + z * z), abs=1e-15)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), alphas)
def test_all_discordant_is_wilson(split: tuple[int, int], alpha: float) -> None:
    """With b + c = n the loss is 2 p - 1 of one binomial proportion, whose score interval is Wilson's."""
    b, n = split
    z, p = NormalDist().inv_cdf(1.0 - alpha), b / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert loss_upper_bound(b, n - b, n, alpha) == pytest.approx(2 * (centre + spread) - 1, abs=1e-12)


@given(paired_counts(), alphas)
def test_interval_holds_the_estimate_inside_the_possible(counts: Counts, alpha: float) -> None:
    b, c, n = counts
    low, high = loss_interval(b, c, n, alpha)
    assert -1.0 <= low <= (b - c) / n <= high <= 1.0
    assert low < high


@given(paired_counts(), alphas)
def test_swapping_the_models_mirrors_the_interval(counts: Counts, alpha: float) -> None:
    b, c, n = counts
    low, high = loss_interval(b, c, n, alpha)
    assert loss_interval(c, b, n, alpha) == (-high, -low)


@given(paired_counts(), alphas)
def test_bound_rises_with_losses_and_falls_with_gains(counts: Counts, alpha: float) -> None:
    b, c, n = counts
    bound = loss_upper_bound(b, c, n, alpha)
    if b + c < n:
        assert loss_upper_bound(b + 1, c, n, alpha) > bound
    if c > 0:
        assert loss_upper_bound(b, c - 1, n, alpha) > bound - 1e-12 or b == 0
        assert loss_upper_bound(b + 1, c - 1, n, alpha) > bound


@given(paired_counts(), st.floats(0.01, 0.2), st.floats(0.01, 0.2))
def test_bound_widens_with_confidence(counts: Counts, first: float, second: float) -> None:
    b, c, n = counts
    strict, loose = sorted((first, second))
    assert loss_upper_bound(b, c, n, strict) >= loss_upper_bound(b, c, n, loose) - 1e-12
    assert loss_lower_bound(b, c, n, strict) <= loss_lower_bound(b, c, n, loose) + 1e-12


@given(paired_counts(200), alphas)
def test_more_of_the_same_narrows(counts: Counts, alpha: float) -> None:
    b, c, n = counts
    assert loss_upper_bound(4 * b, 4 * c, 4 * n, alpha) <= loss_upper_bound(b, c, n, alpha) + 1e-12


@pytest.mark.parametrize(("b", "c", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts(b: int, c: int, n: int) -> None:
    with pytest.raises(GateError, match="impossible"):
        loss_upper_bound(b, c, n, 0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, -0.1, math.nan])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(GateError, match="alpha"):
        loss_upper_bound(1, 1, 10, alpha)


def test_coverage_of_the_one_sided_bound() -> None:
    """At a true loss of exactly the margin, a PASS is wrong: it happens about as often as alpha says."""
    rng = np.random.default_rng(7)
    n, loss, wins = 1000, 0.01, 0.01
    draws = rng.multinomial(n, [wins + loss, wins, 1 - 2 * wins - loss], size=4000)
    passed = np.mean([loss_upper_bound(int(b), int(c), n, 0.05) < loss for b, c, _ in draws])
    assert 0.03 <= passed <= 0.065
