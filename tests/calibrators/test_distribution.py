"""What is read off a histogram, against the values themselves in float64."""

from __future__ import annotations

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, distribution_of
from hypothesis import given
from hypothesis import strategies as st

EACH = pytest.mark.parametrize("name", CONTINUOUS)
BUCKET = 2.0**-7
"""Relative width of a bucket."""


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
def test_quantile(name: str, share: float) -> None:
    values = CONTINUOUS[name].astype(np.float64)
    expected = float(np.quantile(values, share, method="inverted_cdf"))
    # Around zero a relative bound means nothing: half a per cent of the value or a ten-thousandth of the range.
    assert distribution_of(values).quantile(share) == pytest.approx(
        expected, rel=0.005, abs=1e-4 * float(np.abs(values).max())
    )


@given(shares=st.lists(st.floats(0, 1), min_size=2, max_size=6).map(sorted))
@EACH
def test_quantiles_rise(name: str, shares: list[float]) -> None:
    distribution = distribution_of(CONTINUOUS[name][:2000])
    quantiles = [distribution.quantile(share) for share in shares]
    assert quantiles == sorted(quantiles)
    assert distribution.minimum <= quantiles[0] <= quantiles[-1] <= distribution.maximum


@EACH
def test_magnitudes_are_those_of_the_absolute_values(name: str) -> None:
    values = np.abs(CONTINUOUS[name].astype(np.float64))
    magnitudes = distribution_of(CONTINUOUS[name]).magnitudes()
    assert (magnitudes.minimum, magnitudes.maximum) == (values.min(), values.max()) or (
        magnitudes.minimum == 0.0 and CONTINUOUS[name].min() < 0 < CONTINUOUS[name].max()
    )
    assert magnitudes.total == values.size
    assert (magnitudes.low >= 0).all()
    assert (np.diff(magnitudes.low) >= 0).all()
    for share in (0.1, 0.5, 0.9, 0.99, 0.9999):
        expected = float(np.quantile(values, share, method="inverted_cdf"))
        assert magnitudes.quantile(share) == pytest.approx(expected, rel=BUCKET, abs=1e-6 * values.max())


@EACH
@pytest.mark.parametrize("factor", [1, 2, 8, 10**6])
def test_coarsened_keeps_mass_and_ends(name: str, factor: int) -> None:
    distribution = distribution_of(CONTINUOUS[name])
    coarse = distribution.coarsened(factor)
    assert len(coarse.low) == -(-len(distribution.low) // factor)
    assert coarse.total == distribution.total
    assert (coarse.low[0], coarse.high[-1]) == (distribution.low[0], distribution.high[-1])
    assert (coarse.low <= coarse.high).all()


def test_reaching_drops_only_small_values() -> None:
    values = CONTINUOUS["normal"]
    large = distribution_of(values).reaching(1.0)
    assert large.total >= np.count_nonzero(np.abs(values) >= 1.0)
    assert large.total <= np.count_nonzero(np.abs(values) >= 1.0 - BUCKET)
