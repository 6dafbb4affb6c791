"""The paired BCa bootstrap against scipy's, against loops, and by how often it covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri

from quantlab.statistics.bootstrap import (
    Additive,
    Replicates,
    Resampling,
    acceleration,
    bca,
    bias_correction,
    part_of,
    replicate,
)

Floats = NDArray[np.float64]


def over(sums: Floats) -> Floats:
    """Mean, of the sums of values and of ones."""
    return np.where(sums[:, 1] > 0, sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1.0), math.nan)


def mean_of(values: Floats) -> Additive:
    return Additive(np.stack([values, np.ones(len(values))], axis=1), over)


class Spread:
    """Standard deviation as a function of weights: no sum of anything, so evaluated weight by weight."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.calls = 0

    def __call__(self, weights: Floats) -> Floats:
        self.calls += 1
        total = weights.sum(axis=1)
        mean = weights @ self.values / total
        return np.sqrt((weights * (self.values[None, :] - mean[:, None]) ** 2).sum(axis=1) / total)


def paired(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Skewed values of a variant and of the reference, strongly paired."""
    rng = np.random.default_rng(seed)
    reference = rng.exponential(1.0, n)
    return reference + 0.3 * rng.exponential(1.0, n), reference


class TestAgainstScipy:
    @pytest.mark.parametrize("n", [12, 60, 400])
    def test_the_same_from_the_same_resamples(self, n: int) -> None:
        """scipy's own resamples through our formula: the same interval, so z0, a and the quantiles are the same."""
        value, reference = paired(n)
        theirs = stats.bootstrap(
            (value, reference),
            lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
            paired=True, method="BCa", n_resamples=1500, rng=np.random.default_rng(5), vectorized=True,
        )  # fmt: skip
        left_out = (mean_of(value).leave_one_out()) - mean_of(reference).leave_one_out()
        ours = bca(Replicates(value.mean() - reference.mean(), theirs.bootstrap_distribution, left_out), 0.95).interval
        assert ours is not None
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)

    @pytest.mark.parametrize("make", [mean_of, Spread])
    def test_the_same_within_what_resamples_vary(self, make: type) -> None:
        value, reference = paired(80)
        ours = bca(
            (lambda a, b: a.minus(b))(*replicate([make(value), make(reference)], 80, Resampling(20000, 1))), 0.9
        ).interval
        function = np.mean if make is mean_of else np.std
        theirs = stats.bootstrap(
            (value, reference), lambda a, b, axis: function(a, axis=axis) - function(b, axis=axis),
            paired=True, method="BCa", n_resamples=20000, rng=np.random.default_rng(2), confidence_level=0.9,
        ).confidence_interval  # fmt: skip
        assert ours is not None
        assert ours.low == pytest.approx(theirs.low, abs=0.02 * (theirs.high - theirs.low))
        assert ours.high == pytest.approx(theirs.high, abs=0.02 * (theirs.high - theirs.low))


class TestParts:
    def test_acceleration_is_a_sixth_of_the_skewness(self) -> None:
        """For a mean, a = sum(d^3) / (6 sum(d^2)^1.5) with d the deviations (Efron and Tibshirani 1993, 14.15)."""
        value, _ = paired(200)
        d = value - value.mean()
        expected = np.sum(d**3) / (6 * np.sum(d**2) ** 1.5)
        assert acceleration(mean_of(value).leave_one_out()) == pytest.approx(expected, rel=1e-9)
        assert acceleration(np.full(50, 3.7)) == 0.0
        assert acceleration(np.array([1.0, math.inf, 2.0])) == 0.0

    def test_bias_correction_counts_ties_half(self) -> None:
        assert bias_correction(2.0, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(ndtri(0.375))
        assert bias_correction(0.0, np.ones(5)) == -math.inf

    def test_leaving_one_out_equals_a_loop(self) -> None:
        value, _ = paired(37)
        assert mean_of(value).leave_one_out() == pytest.approx([np.delete(value, i).mean() for i in range(37)])
        (found,) = replicate([Spread(value)], 37, Resampling(1))
        assert found.left_out == pytest.approx([np.delete(value, i).std() for i in range(37)])

    def test_groups_estimate_the_same_acceleration(self) -> None:
        """More than 500 samples are left out in 200 groups; the skewness of the sums of groups is that of the parts."""
        errors = []
        for seed in range(20):
            value, _ = paired(4000, seed)
            estimator = Spread(value)
            (found,) = replicate([estimator], 4000, Resampling(1))
            assert len(found.left_out) == 200
            exact = acceleration(np.sqrt(_variances_without_each(value)))
            errors.append(acceleration(found.left_out) - exact)
        assert abs(np.mean(errors)) < 0.01
        assert np.std(errors) < 0.05

    def test_resamples_do_not_depend_on_how_many_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        value, _ = paired(50)
        (whole,) = replicate([mean_of(value)], 50, Resampling(300, 9))
        monkeypatch.setattr("quantlab.statistics.bootstrap._WEIGHTS_AT_ONCE", 70)
        (parts,) = replicate([mean_of(value)], 50, Resampling(300, 9))
        assert parts.resampled == pytest.approx(whole.resampled, rel=1e-12)

    def test_weights_are_bounded(self) -> None:
        """100,000 samples: no array of weights is larger than the limit."""
        sizes: list[int] = []

        class Watching:
            def __call__(self, weights: Floats) -> Floats:
                sizes.append(weights.size)
                return weights[:, 0]

        replicate([Watching()], 100_000, Resampling(100))
        assert max(sizes) <= 2**22
        assert sum(sizes) == 100_000 * (1 + 100 + 200)

    @pytest.mark.parametrize("make", [mean_of, Spread])
    def test_a_part_is_the_estimator_of_that_part(self, make: type) -> None:
        value, _ = paired(30)
        indices = np.array([1, 5, 6, 20, 29])
        (part,) = replicate([part_of(make(value), indices, 30)], 5, Resampling(40, 3))
        (alone,) = replicate([make(value[indices])], 5, Resampling(40, 3))
        assert part.estimate == pytest.approx(alone.estimate)
        assert part.resampled == pytest.approx(alone.resampled)
        assert part.left_out == pytest.approx(alone.left_out)


def _variances_without_each(value: Floats) -> Floats:
    n = len(value)
    total, squares = value.sum() - value, (value**2).sum() - value**2
    return squares / (n - 1) - (total / (n - 1)) ** 2


class TestDegenerate:
    def test_equal_differences_have_no_width(self) -> None:
        value, reference = replicate([mean_of(np.arange(20) + 0.5), mean_of(np.arange(20.0))], 20, Resampling(100))
        found = bca(Replicates(0.5, np.full(100, 0.5), np.full(20, 0.5)), 0.95)
        assert found.interval is not None
        assert (found.interval.low, found.interval.high) == (0.5, 0.5)
        assert "all give the same" in found.words
        computed = bca(value.minus(reference), 0.95)
        assert computed.interval is not None
        assert computed.interval.low == computed.interval.high == pytest.approx(0.5)
        assert "all give the same" in computed.words, "rounding is no width"

    def test_equal_infinities_differ_by_nothing(self) -> None:
        endless = Replicates(math.inf, np.full(10, math.inf), np.full(12, math.inf))
        found = bca(endless.minus(endless), 0.95).interval
        assert found is not None
        assert (found.low, found.high) == (0.0, 0.0)

    def test_undefined_resamples(self) -> None:
        few = np.r_[np.linspace(0, 1, 99), math.nan]
        found = bca(Replicates(0.5, few, np.linspace(0, 1, 20)), 0.9)
        assert found.interval is not None
        assert "100 resamples, 1 of them undefined" in found.words
        many = np.r_[np.linspace(0, 1, 90), np.full(10, math.nan)]
        assert bca(Replicates(0.5, many, np.ones(20)), 0.9).words.endswith("undefined on 10 of 100 resamples")
        assert bca(Replicates(math.nan, few, np.ones(20)), 0.9).interval is None

    def test_an_estimate_outside_of_its_resamples(self) -> None:
        found = bca(Replicates(5.0, np.linspace(0, 1, 100), np.ones(20)), 0.9)
        assert found.interval is None
        assert "one side" in found.words

    def test_infinite_resamples_are_the_end_of_the_interval(self) -> None:
        """A sample that is broken is in some resamples and not in others."""
        resampled = np.r_[np.full(50, -math.inf), np.linspace(10, 20, 50)]
        found = bca(Replicates(10.0, resampled, np.r_[np.full(19, 10.0), 15.0]), 0.9).interval
        assert found is not None
        assert found.low == -math.inf
        assert 10 <= found.high <= 20


@pytest.mark.parametrize("n", [30, 100])
def test_coverage(n: int) -> None:
    """Of 95 % intervals of a difference of skewed means 90 to 98 % cover; BCa is a little short at n = 30."""
    covered = 0
    for seed in range(300):
        value, reference = paired(n, seed)
        a, b = replicate([mean_of(value), mean_of(reference)], n, Resampling(1000, seed))
        interval = bca(a.minus(b), 0.95).interval
        assert interval is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98
