from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantlab.graph.model import TensorSpec
from quantlab.graph.reference import random_feed


@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool", "uint8"]
)
def test_feeds_of_every_type(name: str) -> None:
    feed = random_feed([TensorSpec("x", name, (2, 3))], np.random.default_rng(0))
    expected = np.dtype(getattr(ml_dtypes, name, name))
    assert feed["x"].dtype == expected and feed["x"].shape == (2, 3)
