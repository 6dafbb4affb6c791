"""Random effects against a computation written out, and coverage with few groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from quantlab.statistics.random_effects import combine


def test_by_hand() -> None:
    """Two groups, 0 and 0.2, errors of 0.1: Q = 2, C = 100, so the variance between is (2 - 1) / 100."""
    found = combine(np.array([0.0, 0.2]), np.array([0.1, 0.1]))
    assert found.mean == pytest.approx(0.1)
    assert found.between == pytest.approx(0.1)
    assert found.within == pytest.approx(0.1)
    assert found.error == pytest.approx(0.1), "sqrt(1 / (2 / 0.02)), and the Hartung-Knapp factor is 1"
    low, high = found.bounds(0.95)
    assert (high - low) / 2 == pytest.approx(0.1 * stats.t.ppf(0.975, 1))


def test_groups_that_agree_by_chance_are_no_more_exact_than_their_errors() -> None:
    found = combine(np.array([0.1, 0.1, 0.1]), np.array([0.03, 0.03, 0.03]))
    assert found.between == 0.0
    assert found.error == pytest.approx(0.03 / math.sqrt(3))


def test_without_errors_it_is_students_interval_of_the_means() -> None:
    means = np.array([0.01, 0.05, 0.02, 0.04])
    found = combine(means, np.zeros(4))
    assert found.bounds(0.95) == pytest.approx(stats.t.interval(0.95, 3, means.mean(), stats.sem(means)), abs=1e-6)


def test_a_precise_group_counts_more_only_where_groups_agree() -> None:
    errors = np.array([0.001, 0.1])
    assert combine(np.array([0.0, 0.05]), errors).mean < 0.001
    assert combine(np.array([0.0, 5.0]), errors).mean == pytest.approx(2.5, abs=0.01)


def test_an_unknown_error_makes_that_of_the_mean_unknown() -> None:
    found = combine(np.array([0.1, 0.3]), np.array([0.01, math.inf]))
    assert (found.mean, found.error, found.within) == (pytest.approx(0.2), math.inf, math.inf)
    assert found.bounds(0.95) == (-math.inf, math.inf)


def test_by_the_definitions_with_unequal_errors() -> None:
    """DerSimonian and Laird's moment estimator and Hartung and Knapp's error, written out as sums."""
    y, s = [0.02, 0.11, 0.05, 0.30], [0.01, 0.03, 0.02, 0.05]
    w = [1 / e**2 for e in s]
    fixed = sum(a * b for a, b in zip(w, y, strict=True)) / sum(w)
    q = sum(a * (b - fixed) ** 2 for a, b in zip(w, y, strict=True))
    between = (q - 3) / (sum(w) - sum(a**2 for a in w) / sum(w))
    v = [1 / (e**2 + between) for e in s]
    mean = sum(a * b for a, b in zip(v, y, strict=True)) / sum(v)
    error = math.sqrt(sum(a * (b - mean) ** 2 for a, b in zip(v, y, strict=True)) / (3 * sum(v)))
    error = max(error, 1 / math.sqrt(sum(v)))
    found = combine(np.array(y), np.array(s))
    assert (found.mean, found.between, found.error) == pytest.approx((mean, math.sqrt(between), error))


def test_one_group_has_no_interval_over_groups() -> None:
    found = combine(np.array([0.3]), np.array([0.1]))
    assert (found.mean, found.between, found.error) == pytest.approx((0.3, 0.0, 0.1))
    assert found.bounds(0.95) == (-math.inf, math.inf)


@pytest.mark.parametrize("between", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("groups", [2, 3, 8])
def test_coverage(between: float, groups: int) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        errors = generator.uniform(0.008, 0.012, groups)
        means = generator.normal(0.0, between, groups) + generator.normal(0.0, errors)
        low, high = combine(means, errors).bounds(0.95)
        held += low <= 0.0 <= high
    assert held >= stats.binom.ppf(1e-4, 1000, 0.95)
