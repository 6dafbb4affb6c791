"""The ratio's estimator and its block bootstrap, by hand and by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter

from quantlab.statistics.interval import Interval
from quantlab.statistics.ratio import half_width, middle_third, ratio_of_pairs

TRUTH = 1.02


class TestMiddleThird:
    def test_by_hand(self) -> None:
        assert middle_third(np.array([100.0, 1, 2, 3, 4, -100])) == pytest.approx(2.5)
        assert middle_third(np.array([5.0, 1.0])) == pytest.approx(3.0), "of two nothing is cut"
        assert middle_third(np.array([1.0, 2.0, 90.0])) == pytest.approx(2.0)

    def test_is_scipys_trimmed_mean(self) -> None:
        values = np.random.default_rng(0).standard_normal((7, 101))
        assert middle_third(values) == pytest.approx(stats.trim_mean(values, 1 / 3 - 1e-9, axis=1))

    def test_bears_bad_values(self) -> None:
        values = np.concatenate([np.zeros(70), np.full(30, 5.0)])
        assert middle_third(values) == 0.0


class TestRatioOfPairs:
    def test_no_noise(self) -> None:
        found = ratio_of_pairs(np.full((12, 2), math.log(1.5)), 0)
        assert (found.ratio, found.interval.low, found.interval.high) == pytest.approx((1.5, 1.5, 1.5))
        assert found.log_error == pytest.approx(0.0)

    def test_drift_within_pairs_cancels(self) -> None:
        """Log-ratios of +10 % and -10 % in turn, as steady slowing gives, are no uncertainty about 0."""
        pairs = np.tile([0.1, -0.1], (30, 1))
        found = ratio_of_pairs(pairs, 0)
        assert (found.interval.low, found.interval.high) == pytest.approx((1.0, 1.0))

    @pytest.mark.parametrize("n", [12, 40])
    def test_is_the_expanded_percentile_interval(self, n: int) -> None:
        """The quantiles that Hesterberg's expansion asks for, of a bootstrap written out here."""
        pairs = np.random.default_rng(1).normal(0.0, 0.03, (n, 2))
        generator = np.random.default_rng(5)
        estimates = [stats.trim_mean(pairs[generator.integers(0, n, n)].reshape(-1), 1 / 3 - 1e-9) for _ in range(4000)]
        for interval, confidence in (
            (ratio_of_pairs(pairs, 9).interval, 0.95),
            (ratio_of_pairs(pairs, 9).equivalence_interval, 0.90),
        ):
            tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
            expected = np.quantile(estimates, [tail, 1 - tail])
            assert np.log([interval.low, interval.high]) == pytest.approx(expected, abs=0.0022)
            assert interval.confidence == confidence

    def test_fewer_than_ten_pairs_hold_students_interval(self) -> None:
        pairs = np.random.default_rng(2).normal(0.0, 0.03, (4, 2))
        low, high = stats.t.interval(0.95, 3, pairs.mean(), stats.sem(pairs.mean(axis=1)))
        interval = ratio_of_pairs(pairs, 0).interval
        assert interval.low <= math.exp(low) * (1 + 1e-12)
        assert interval.high >= math.exp(high) * (1 - 1e-12)

    def test_one_pair_says_nothing(self) -> None:
        found = ratio_of_pairs(np.array([[0.1, 0.2]]), 0)
        assert found.ratio == pytest.approx(math.exp(0.15))
        assert found.interval == Interval(0.0, math.inf, 0.95)
        assert half_width(found.interval) == math.inf

    def test_seeded(self) -> None:
        pairs = np.random.default_rng(2).normal(0.0, 0.03, (20, 2))
        assert ratio_of_pairs(pairs, 3) == ratio_of_pairs(pairs, 3)
        assert ratio_of_pairs(pairs, 3) != ratio_of_pairs(pairs, 4)

    def test_chunks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = np.random.default_rng(2).normal(0.0, 0.03, (20, 2))
        whole = ratio_of_pairs(pairs, 3, 300)
        monkeypatch.setattr("quantlab.statistics.ratio._CHUNK_VALUES", 40 * 7)
        assert ratio_of_pairs(pairs, 3, 300) == whole

    def test_error_is_the_half_width_over_students_quantile(self) -> None:
        found = ratio_of_pairs(np.random.default_rng(2).normal(0.0, 0.03, (20, 2)), 3)
        assert found.log_error * stats.t.ppf(0.975, 19) == pytest.approx(half_width(found.interval))


def machine(
    generator: np.random.Generator, blocks: int, memory: float, bursts: bool, drift: float
) -> NDArray[np.float64]:
    """Log slowness of consecutive blocks: an AR(1) process, white noise, bursts of about 30 % and a steady drift."""
    noise = generator.standard_normal(blocks) * 0.03 * math.sqrt(1 - memory**2)
    found = lfilter([1.0], [1.0, -memory], noise) + 0.02 * generator.standard_normal(blocks)
    if bursts:
        start = 0
        while start < blocks:
            start += 1 + int(generator.exponential(40))
            length = 1 + int(generator.exponential(6))
            found[start : start + length] += abs(generator.normal(0.3, 0.2))
            start += length
    return np.asarray(found + np.linspace(0.0, drift, blocks), np.float64)


def simulated(
    generator: np.random.Generator, rounds: int, memory: float, bursts: bool, drift: float
) -> NDArray[np.float64]:
    """Log-ratios of pairs of rounds in the harness's order, for three series of blocks."""
    slowness = machine(generator, rounds * 3, memory, bursts, drift).reshape(rounds // 2, 2, 3)
    places = np.array([generator.permutation(3) for _ in range(rounds // 2)])
    first = np.take_along_axis(slowness[:, 0], places, axis=1)
    second = np.take_along_axis(slowness[:, 1, ::-1], places, axis=1)
    pairs = np.stack([first[:, 1] - first[:, 0], second[:, 1] - second[:, 0]], axis=1)
    return np.asarray(pairs + math.log(TRUTH), np.float64)


@pytest.mark.parametrize("rounds", [6, 40])
@pytest.mark.parametrize(("memory", "bursts", "drift"), [(0.0, False, 0.0), (0.95, False, 0.0), (0.5, True, 0.7)])
def test_coverage(rounds: int, memory: float, bursts: bool, drift: float) -> None:
    """Of 200 measurements some 190 hold the truth at 95 %; the bound is the 0.1 % point for a coverage of 93.5 %."""
    generator = np.random.default_rng(7)
    held = 0
    for index in range(200):
        interval = ratio_of_pairs(simulated(generator, rounds, memory, bursts, drift), index, 300).interval
        held += interval.low <= TRUTH <= interval.high
    assert held >= stats.binom.ppf(1e-3, 200, 0.935)


def test_pairs_must_stay_together() -> None:
    """Under steady drift single rounds as units give needlessly wide intervals."""
    generator = np.random.default_rng(3)
    pairs = simulated(generator, 60, 0.0, False, 3.0)
    alone = ratio_of_pairs(pairs.reshape(-1, 1).repeat(2, axis=1), 0).interval
    assert half_width(ratio_of_pairs(pairs, 0).interval) < half_width(alone)
