"""Closed-form errors against brute force on the values themselves, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, ODD, distribution_of, true_mse

from quantlab.calibrators import (
    INT8_SYMMETRIC,
    SCHEMES,
    UINT8_AFFINE,
    Scheme,
    clipped_fraction,
    fake_quantize,
    mean_squared_errors,
    parameters,
    sqnr_db,
)

BOTH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
SHARES = np.array([1.0, 0.7, 0.4, 0.15, 0.05])


def _ranges(values: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    if scheme.symmetric:
        amax = float(np.abs(values).max())
        return -amax * SHARES, amax * SHARES
    low, high = float(values.min()), float(values.max())
    return min(low, 0.0) * SHARES, max(high, 0.0) * SHARES


@BOTH
@pytest.mark.parametrize("name", CONTINUOUS)
def test_mean_squared_error(scheme: Scheme, name: str) -> None:
    values = CONTINUOUS[name]
    lows, highs = _ranges(values, scheme)
    expected = [true_mse(values, low, high, scheme) for low, high in zip(lows, highs, strict=True)]
    got = mean_squared_errors(distribution_of(values), lows, highs, scheme)
    # A few thousand values other than zero scatter by more than a per cent themselves.
    rtol = 0.01 if np.count_nonzero(values) > 10_000 else 0.03
    np.testing.assert_allclose(got, expected, rtol=rtol)


@BOTH
def test_brute_force_is_fake_quantize(scheme: Scheme) -> None:
    """The float64 yardstick of these tests agrees with the library's own float32 formula."""
    values = CONTINUOUS["normal"]
    chosen = parameters(-2.0, 3.0, scheme)
    rounded = fake_quantize(values, chosen.scale, chosen.zero_point, scheme).astype(np.float64)
    expected = np.mean((rounded - values.astype(np.float64)) ** 2)
    assert true_mse(values, -2.0, 3.0, scheme) == pytest.approx(expected, rel=1e-4)


@BOTH
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-30, 3e38])
def test_a_constant_is_exact(scheme: Scheme, value: float) -> None:
    """Points do not spread: the error of the one value is computed, not that of its bucket."""
    values = np.full(10, value, np.float32)
    got = mean_squared_errors(distribution_of(values), np.array([-3.1]), np.array([3.3]), scheme)[0]
    assert got == pytest.approx(true_mse(values, -3.1, 3.3, scheme), rel=1e-9, abs=1e-300)


@BOTH
@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "student", "uniform", "negative", "small", "large"])
def test_clipped_fraction(scheme: Scheme, name: str) -> None:
    values = CONTINUOUS[name].astype(np.float64)
    for low, high in zip(*_ranges(values, scheme), strict=True):
        expected = float(np.mean((values < low) | (values > high)))
        assert clipped_fraction(distribution_of(values), low, high) == pytest.approx(expected, rel=0.01, abs=2e-4)


@pytest.mark.parametrize("name", [*CONTINUOUS, *ODD])
def test_nothing_is_clipped_by_the_whole_range(name: str) -> None:
    distribution = distribution_of({**CONTINUOUS, **ODD}[name])
    assert clipped_fraction(distribution, distribution.minimum, distribution.maximum) <= 1e-12
    assert clipped_fraction(distribution, -distribution.amax, distribution.amax) <= 1e-12


def test_everything_is_clipped_beside_the_values() -> None:
    assert clipped_fraction(distribution_of(CONTINUOUS["shifted"]), -1.0, 1.0) == 1.0


def test_ranges_reach_to_zero() -> None:
    """Quantizers widen every range to hold zero: what lies between is not clipped."""
    values = CONTINUOUS["shifted"]
    expected = np.count_nonzero(values > 11.0) / values.size
    assert clipped_fraction(distribution_of(values), 9.0, 11.0) == pytest.approx(expected, rel=0.02)


@BOTH
def test_sqnr(scheme: Scheme) -> None:
    values = CONTINUOUS["normal"]
    power = np.mean(values.astype(np.float64) ** 2)
    expected = 10 * math.log10(power / true_mse(values, -4.0, 4.0, scheme))
    assert sqnr_db(distribution_of(values), -4.0, 4.0, scheme) == pytest.approx(expected, abs=0.05)


def test_sqnr_of_uniform_noise_is_the_textbook_one() -> None:
    """B bits on a full-scale uniform signal: 6.02 B dB; 254 steps here (W. R. Bennett, 1948)."""
    values = np.random.default_rng(1).uniform(-1, 1, 100_000)
    assert sqnr_db(distribution_of(values), -1.0, 1.0, INT8_SYMMETRIC) == pytest.approx(20 * math.log10(254), abs=0.1)
    assert sqnr_db(distribution_of(values), -1.0, 1.0, UINT8_AFFINE) == pytest.approx(20 * math.log10(255), abs=0.1)


@BOTH
def test_sqnr_of_what_loses_nothing_is_infinite(scheme: Scheme) -> None:
    assert sqnr_db(distribution_of([0.0] * 5), 0.0, 0.0, scheme) == math.inf
    assert sqnr_db(distribution_of([0.0, scheme.qmax]), 0.0, scheme.qmax, scheme) == math.inf
