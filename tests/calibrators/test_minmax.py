from __future__ import annotations

import pytest
from calibrator_data import CONTINUOUS, distribution_of

from quantlab.calibrators import INT8_SYMMETRIC, UINT8_AFFINE, MinMax


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_exact_extremes(name: str) -> None:
    values = CONTINUOUS[name]
    low, high = float(values.min()), float(values.max())
    affine = MinMax().choose(distribution_of(values), UINT8_AFFINE)
    assert (affine.low, affine.high) == (low, high)
    symmetric = MinMax().choose(distribution_of(values), INT8_SYMMETRIC)
    assert (symmetric.low, symmetric.high) == (-max(-low, high), max(-low, high))
