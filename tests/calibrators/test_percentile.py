"""The percentile method against all values, sorted in float64."""

from __future__ import annotations

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, distribution_of
from numpy.typing import NDArray

from quantlab.calibrators import INT8_SYMMETRIC, UINT8_AFFINE, Histogram, Percentile, Scheme

SPREAD = ["normal", "laplace", "uniform", "student", "relu", "swish", "small", "large", "negative", "shifted"]
Array = NDArray[np.float64]


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", SPREAD)
def test_symmetric(name: str, percentile: float) -> None:
    """Within half a per cent of the value that sorting all of them in float64 gives."""
    magnitudes = np.sort(np.abs(CONTINUOUS[name].astype(np.float64)))
    clipped = round(magnitudes.size * (100 - percentile) / 100)
    chosen = Percentile(percentile).choose(distribution_of(CONTINUOUS[name]), INT8_SYMMETRIC)
    assert chosen.high == pytest.approx(magnitudes[-1 - clipped], rel=0.005, abs=0.0)
    assert chosen.low == -chosen.high
    assert chosen.fallback is None


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("name", SPREAD)
def test_affine(name: str, percentile: float) -> None:
    """Half of the share at each end, all of it at the only end of one-sided tensors."""
    values = np.sort(CONTINUOUS[name].astype(np.float64))
    clipped = round(values.size * (100 - percentile) / 100)
    chosen = Percentile(percentile).choose(distribution_of(values), UINT8_AFFINE)
    if values[0] < 0.0 < values[-1]:
        expected = values[clipped // 2], values[-1 - clipped // 2]
    elif values[0] >= 0.0:
        expected = values[0], values[-1 - clipped]
    else:
        expected = values[clipped], values[-1]
    assert (chosen.low, chosen.high) == pytest.approx(expected, rel=0.005, abs=0.0)
    assert chosen.fallback is None


def test_it_is_what_numpy_calls_inverted_cdf() -> None:
    values = CONTINUOUS["normal"].astype(np.float64)
    expected = np.quantile(np.abs(values), 0.999, method="inverted_cdf")
    chosen = Percentile(99.9).choose(distribution_of(values), INT8_SYMMETRIC)
    assert chosen.high == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(("scheme", "enough"), [(INT8_SYMMETRIC, 10_000), (UINT8_AFFINE, 20_000)])
def test_too_few_values(scheme: Scheme, enough: int) -> None:
    """With 10,000 values one in 10,000 may be clipped; with 20,000 one at each end."""
    chosen = Percentile(99.99).choose(distribution_of(np.linspace(-1, 3, enough - 1)), scheme)
    assert chosen.fallback == f"only {enough - 1} values, too few for the 99.99 percentile"
    assert chosen.high == 3.0
    assert Percentile(99.99).choose(distribution_of(np.linspace(-1, 3, enough)), scheme).fallback is None


@pytest.mark.parametrize("scheme", [INT8_SYMMETRIC, UINT8_AFFINE])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.append(np.linspace(-4, 3, 500), np.zeros(100_000)), "sparse: 99.50 % of the values are zeros"),
        (np.append(np.arange(-4, 4), np.zeros(100_000)), "discrete: only 7 different values besides zero"),
        (np.full(100_000, 3.0), "constant: every value is the same"),
        (
            np.append(np.linspace(-4, 3, 500), np.zeros(30_000)),
            "98.36 % of the values are zeros, and so is",
        ),
    ],
)
def test_where_a_percentile_means_nothing(scheme: Scheme, values: Array, reason: str) -> None:
    distribution = distribution_of(values)
    chosen = Percentile(95.0).choose(distribution, scheme)
    assert chosen.fallback is not None
    assert chosen.fallback.startswith(reason)
    whole = (
        (-distribution.amax, distribution.amax) if scheme.symmetric else (distribution.minimum, distribution.maximum)
    )
    assert (chosen.low, chosen.high) == whole


@pytest.mark.parametrize("percentile", [50.0, 0.0, -1.0, 100.1, float("nan")])
def test_impossible_percentiles(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        Percentile(percentile)


def test_a_hundred_per_cent_is_min_max_and_no_fallback() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1.0, 0.5, 3.0], np.float32))
    chosen = Percentile(100.0).choose(histogram.distribution(), INT8_SYMMETRIC)
    assert (chosen.low, chosen.high, chosen.fallback) == (-3.0, 3.0, None)
