"""The MSE method against a brute-force grid of ranges on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, Floats, distribution_of, true_mse
from scipy import stats

from quantlab.calibrators import (
    INT8_SYMMETRIC,
    SCHEMES,
    UINT8_AFFINE,
    Distribution,
    MeanSquaredError,
    Scheme,
    mean_squared_errors,
)

BOTH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def points(values: Floats) -> Distribution:
    """The values themselves, each a point: on these the closed form is the error of the values."""
    ascending, counts = np.unique(values.astype(np.float64), return_counts=True)
    return Distribution(ascending, ascending, counts.astype(np.float64), float(ascending[0]), float(ascending[-1]))


@BOTH
@pytest.mark.parametrize("name", CONTINUOUS)
def test_points_have_the_error_of_the_values(scheme: Scheme, name: str) -> None:
    values = CONTINUOUS[name]
    low, high = float(values.min()) * 0.8, float(values.max()) * 0.8
    low, high = min(low, 0.0), max(high, 0.0)
    got = mean_squared_errors(points(values), np.array([low]), np.array([high]), scheme)[0]
    assert got == pytest.approx(true_mse(values, low, high, scheme), rel=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_symmetric_is_within_half_a_per_cent_of_the_best(name: str) -> None:
    """Of a brute-force search over the values themselves in float64, finer than ours and down to 1/1024."""
    values = CONTINUOUS[name]
    amax = float(np.abs(values).max())
    grid = amax * np.concatenate([np.geomspace(2.0**-10, 0.5, 60), np.linspace(0.5, 1.0, 300)])
    best = mean_squared_errors(points(values), -grid, grid, INT8_SYMMETRIC).min()
    chosen = MeanSquaredError().choose(distribution_of(values), INT8_SYMMETRIC)
    assert true_mse(values, chosen.low, chosen.high, INT8_SYMMETRIC) <= best * 1.005
    assert chosen.candidates > 50


@pytest.mark.parametrize("name", CONTINUOUS)
def test_affine_is_within_half_a_per_cent_of_the_best(name: str) -> None:
    values = CONTINUOUS[name]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.concatenate([[2.0**-5, 2.0**-3, 0.25], np.linspace(0.4, 1.0, 40)])
    lows, highs = (axis.ravel() for axis in np.meshgrid(low * shares, high * shares))
    best = mean_squared_errors(points(values), lows, highs, UINT8_AFFINE).min()
    chosen = MeanSquaredError().choose(distribution_of(values), UINT8_AFFINE)
    assert true_mse(values, chosen.low, chosen.high, UINT8_AFFINE) <= best * 1.005


@BOTH
@pytest.mark.parametrize("name", sorted(set(CONTINUOUS) - {"sparse-relu", "zeros-and-far"}))
def test_the_range_is_that_of_the_values(scheme: Scheme, name: str) -> None:
    """The same search on the values themselves: the range to half a per cent, or one that is as good in all digits."""
    values = CONTINUOUS[name]
    chosen, exact = (MeanSquaredError().choose(d, scheme) for d in (distribution_of(values), points(values)))
    near = (chosen.low, chosen.high) == pytest.approx((exact.low, exact.high), rel=0.005)
    errors = [true_mse(values, found.low, found.high, scheme) for found in (chosen, exact)]
    assert near or errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_the_lower_of_two_valleys() -> None:
    """A far outlier, one in a million: clipping it costs less than the steps that reach it, 300 times down."""
    rng = np.random.default_rng(8)
    values = np.append(rng.standard_normal(1_000_000), 1000.0).astype(np.float32)
    chosen = MeanSquaredError().choose(distribution_of(values), INT8_SYMMETRIC)
    grid = np.geomspace(1.0, 1000.0, 500)
    best = mean_squared_errors(points(values), -grid, grid, INT8_SYMMETRIC).min()
    assert true_mse(values, chosen.low, chosen.high, INT8_SYMMETRIC) <= best * 1.005


@pytest.mark.parametrize(("law", "published"), [(stats.laplace, 9.89), (stats.norm, 3.92)])
def test_the_optimum_of_known_laws(law, published: float) -> None:
    """R. Banner et al., "Post training 4-bit quantization of convolutional networks" (2019): best clip at 8 bits."""
    edges = np.linspace(-40, 40, 16_001)
    mass = np.diff(law.cdf(edges))
    exact = Distribution(edges[:-1], edges[1:], np.maximum(mass, 1e-300), -40.0, 40.0)
    assert MeanSquaredError().choose(exact, INT8_SYMMETRIC).high == pytest.approx(published, rel=0.02)


def test_a_constant_is_said_to_be_one() -> None:
    assert (
        MeanSquaredError().choose(distribution_of([2.0] * 9), UINT8_AFFINE).fallback
        == "constant: every value is the same"
    )
