"""The MSE method against a brute-force grid of ranges on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, distribution_of, true_mse
from scipy import stats

from quantlab.calibrators import INT8_SYMMETRIC, UINT8_AFFINE, Distribution, MeanSquaredError


def _tolerance(values: np.ndarray) -> float:
    """Half a per cent; the best of a grid on a few thousand values is better by chance by more than that."""
    return 1.005 if np.count_nonzero(values) > 10_000 else 1.02


@pytest.mark.parametrize("name", CONTINUOUS)
def test_symmetric_is_within_half_a_per_cent_of_the_best(name: str) -> None:
    values = CONTINUOUS[name]
    amax = float(np.abs(values).max())
    grid = amax * np.geomspace(2.0**-5, 1.0, 200)
    best = min(true_mse(values, -high, high, INT8_SYMMETRIC) for high in grid)
    chosen = MeanSquaredError().choose(distribution_of(values), INT8_SYMMETRIC)
    assert true_mse(values, chosen.low, chosen.high, INT8_SYMMETRIC) <= best * _tolerance(values)
    assert chosen.candidates > 50


@pytest.mark.parametrize("name", CONTINUOUS)
def test_affine_is_within_half_a_per_cent_of_the_best(name: str) -> None:
    values = CONTINUOUS[name]
    low, high = float(values.min()), float(values.max())
    shares = np.geomspace(2.0**-3, 1.0, 16)
    lows = low * shares if low < 0 else np.array([low])
    highs = high * shares if high > 0 else np.array([high])
    best = min(true_mse(values, a, b, UINT8_AFFINE) for a in lows for b in highs if a <= b)
    chosen = MeanSquaredError().choose(distribution_of(values), UINT8_AFFINE)
    assert true_mse(values, chosen.low, chosen.high, UINT8_AFFINE) <= best * _tolerance(values)


@pytest.mark.parametrize(("law", "published"), [(stats.laplace, 9.89), (stats.norm, 3.92)])
def test_the_optimum_of_known_laws(law, published: float) -> None:
    """R. Banner et al., "Post training 4-bit quantization of convolutional networks" (2019): best clip at 8 bits."""
    edges = np.linspace(-40, 40, 16_001)
    mass = np.diff(law.cdf(edges))
    exact = Distribution(edges[:-1], edges[1:], np.maximum(mass, 1e-300), -40.0, 40.0)
    assert MeanSquaredError().choose(exact, INT8_SYMMETRIC).high == pytest.approx(published, rel=0.02)


def test_a_constant_is_said_to_be_one() -> None:
    assert MeanSquaredError().choose(distribution_of([2.0] * 9), UINT8_AFFINE).fallback == "constant"
