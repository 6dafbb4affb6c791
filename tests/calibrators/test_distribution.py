"""What is read off a histogram, against the values themselves in float64."""

from __future__ import annotations

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, distribution_of, histogram_of
from hypothesis import given
from hypothesis import strategies as st

from quantlab.calibrators import Distribution

EACH = pytest.mark.parametrize("name", CONTINUOUS)


@EACH
def test_total_extremes_and_zeros_are_exact(name: str) -> None:
    values = CONTINUOUS[name]
    distribution = distribution_of(values)
    assert distribution.total == values.size
    assert (distribution.minimum, distribution.maximum) == (float(values.min()), float(values.max()))
    assert distribution.amax == float(np.abs(values).max())
    assert distribution.zero_fraction == np.count_nonzero(values == 0) / values.size


@EACH
def test_power(name: str) -> None:
    values = CONTINUOUS[name].astype(np.float64)
    assert distribution_of(values).power == pytest.approx(np.mean(values * values), rel=0.001)


@EACH
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_ranked(name: str, share: float) -> None:
    """Within half a per cent of the value of that rank, wherever it lies: that is the width of the widest bucket."""
    values = np.sort(CONTINUOUS[name].astype(np.float64))
    rank = max(round(share * values.size), 1)
    assert distribution_of(values).ranked(rank) == pytest.approx(values[rank - 1], rel=0.005, abs=0.0)


@EACH
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0])
def test_ranked_magnitude(name: str, share: float) -> None:
    values = np.sort(np.abs(CONTINUOUS[name].astype(np.float64)))
    rank = round(share * values.size)
    assert distribution_of(CONTINUOUS[name]).ranked_magnitude(rank) == pytest.approx(
        values[rank - 1], rel=0.005, abs=0.0
    )


@given(ranks=st.lists(st.integers(1, 2000), min_size=2, max_size=6).map(sorted))
@EACH
def test_ranked_values_rise(name: str, ranks: list[int]) -> None:
    distribution = distribution_of(CONTINUOUS[name][:2000])
    found = [distribution.ranked(rank) for rank in ranks]
    assert found == sorted(found)
    assert distribution.minimum <= found[0] <= found[-1] <= distribution.maximum


@EACH
def test_excess(name: str) -> None:
    values = CONTINUOUS[name].astype(np.float64)
    amax = float(np.abs(values).max())
    borders = amax * np.array([[-1.5, -1.0, -0.6, -0.05, -1e-5], [1e-5, 0.05, 0.6, 1.0, 1.5]])
    beyond = np.where(borders[..., None] > 0, values - borders[..., None], borders[..., None] - values)
    expected = np.maximum(beyond, 0.0).sum(axis=-1)
    got = distribution_of(values).excess(borders)
    assert (got >= 0.0).all()
    # A value may lie anywhere in the bucket of the border, which is 1/2048 wide: so much of few values is chance.
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-5 * amax * values.size**0.5)


def test_excess_of_points_is_exact() -> None:
    points = np.array([-2.0, -1.0, 0.0, 1.0, 4.0])
    distribution = Distribution(points, points, np.array([3.0, 2, 7, 5, 1]), -2.0, 4.0)
    borders = np.array([-3.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0, 5.0])
    assert distribution.excess(borders).tolist() == [0.0, 0.0, 1.5, 3.0, 5.5, 6.0, 3.0, 2.0, 0.0, 0.0]


@EACH
def test_linear_counts_are_those_of_the_values(name: str) -> None:
    """To the last count, although NumPy's bins know nothing of buckets."""
    magnitudes = np.abs(CONTINUOUS[name][CONTINUOUS[name] != 0].astype(np.float64))
    width = 2.0 ** (np.floor(np.log2(magnitudes.max())) - 11)
    bins = int(magnitudes.max() / width) + 1
    expected = np.histogram(magnitudes, np.arange(bins + 1) * width)[0]
    np.testing.assert_array_equal(distribution_of(CONTINUOUS[name]).linear_counts(width), expected)


@pytest.mark.parametrize("bound", [0.25, 1.0, 1.75, 2.5, 6.0])
def test_linear_counts_of_clipped_values(bound: float) -> None:
    """What is clipped at an eighth of the largest magnitude is exact too; below, counts spread over a bin or two."""
    values = np.random.default_rng(4).standard_normal(200_000).astype(np.float32) * 2
    clipped = np.clip(values, 0, np.float32(bound)).astype(np.float64)
    width = 2.0 ** (np.floor(np.log2(bound)) - 11)
    expected = np.histogram(clipped[clipped > 0], np.arange(int(bound / width) + 2) * width)[0]
    got = histogram_of(values).clipped(0.0, bound).distribution().linear_counts(width)
    assert got.sum() == pytest.approx(expected.sum(), rel=1e-12)
    if bound * 16 > float(np.abs(values).max()):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(np.cumsum(got), np.cumsum(expected), atol=30)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3.0] * 9, "constant"),
        ([0.0, -0.0], "constant"),
        (np.arange(128), "discrete"),
        (np.arange(129), "one-sided"),
        (np.arange(-64, 65), ""),
        (np.append(np.linspace(-1, 1, 1000), np.zeros(200_000)), "sparse"),
        (np.append(np.linspace(-1, 1, 1000), np.zeros(50_000)), ""),
        (np.linspace(0, 1, 1000), "one-sided"),
        (np.linspace(-1, 0, 1000), "one-sided"),
        (np.linspace(-1, 1, 1000), ""),
    ],
)
def test_kind(values: object, kind: str) -> None:
    assert distribution_of(values).kind == kind
