"""The percentile method against numpy.quantile."""

from __future__ import annotations

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, distribution_of

from quantlab.calibrators import INT8_SYMMETRIC, UINT8_AFFINE, Histogram, Percentile

SPREAD = ["normal", "laplace", "uniform", "student", "relu", "swish", "small", "large", "negative", "shifted"]
BUCKET = 2.0**-7


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", SPREAD)
def test_symmetric(name: str, percentile: float) -> None:
    magnitudes = np.abs(CONTINUOUS[name].astype(np.float64))
    chosen = Percentile(percentile).choose(distribution_of(CONTINUOUS[name]), INT8_SYMMETRIC)
    below = np.quantile(magnitudes, percentile / 100, method="lower")
    above = np.quantile(magnitudes, percentile / 100, method="higher")
    assert below * (1 - BUCKET) <= chosen.high <= above * (1 + BUCKET)
    assert chosen.low == -chosen.high
    assert chosen.fallback is None


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("name", SPREAD)
def test_affine_clips_half_at_each_end(name: str, percentile: float) -> None:
    values = CONTINUOUS[name].astype(np.float64)
    chosen = Percentile(percentile).choose(distribution_of(values), UINT8_AFFINE)
    tail = (1 - percentile / 100) / 2
    slack = 1e-4 * np.abs(values).max()
    for got, share in ((chosen.low, tail), (chosen.high, 1 - tail)):
        below, above = (float(np.quantile(values, share, method=how)) for how in ("lower", "higher"))
        assert below - abs(below) * BUCKET - slack <= got <= above + abs(above) * BUCKET + slack


@pytest.mark.parametrize("scheme", [INT8_SYMMETRIC, UINT8_AFFINE])
def test_too_few_values(scheme) -> None:
    values = np.linspace(-1, 3, 9_999)
    chosen = Percentile(99.99).choose(distribution_of(values), scheme)
    assert chosen.fallback is not None
    assert "9999 values" in chosen.fallback
    assert chosen.high == 3.0
    assert Percentile(99.99).choose(distribution_of(np.linspace(-1, 3, 20_001)), scheme).fallback is None


@pytest.mark.parametrize("scheme", [INT8_SYMMETRIC, UINT8_AFFINE])
def test_mostly_zeros(scheme) -> None:
    values = np.zeros(100_000)
    values[:4] = [1, 2, 3, -4]
    chosen = Percentile(99.9).choose(distribution_of(values), scheme)
    assert chosen.fallback == "100.00 % of the values are zeros"
    assert (chosen.low, chosen.high) == ((-4.0, 4.0) if scheme.symmetric else (-4.0, 3.0))


@pytest.mark.parametrize("percentile", [50.0, 0.0, -1.0, 100.1, float("nan")])
def test_impossible_percentiles(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        Percentile(percentile)


def test_a_hundred_per_cent_is_min_max_and_no_fallback() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1.0, 0.5, 3.0], np.float32))
    chosen = Percentile(100.0).choose(histogram.distribution(), INT8_SYMMETRIC)
    assert (chosen.low, chosen.high, chosen.fallback) == (-3.0, 3.0, None)
