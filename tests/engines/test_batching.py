"""Batches are filled with the last sample and cut again."""

from __future__ import annotations

import numpy as np
import pytest

from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.errors import MeasurementError


def test_the_last_sample_is_repeated_and_cut_off_again() -> None:
    inputs = {"a": np.array([[1.0], [2.0]]), "b": np.array([3, 4])}
    filled, n = fill_batch(inputs, 4)
    assert n == 2
    np.testing.assert_array_equal(filled["a"], [[1.0], [2.0], [2.0], [2.0]])
    np.testing.assert_array_equal(filled["b"], [3, 4, 4, 4])
    outputs = cut_batch({"y": np.arange(4), "sum": np.arange(5)}, n, 4)
    np.testing.assert_array_equal(outputs["y"], [0, 1])
    assert outputs["sum"].shape == (5,), "it does not have the batch as its first axis"


@pytest.mark.parametrize("fixed", [None, 2])
def test_nothing_to_fill(fixed: int | None) -> None:
    inputs = {"a": np.ones((2, 3))}
    filled, n = fill_batch(inputs, fixed)
    assert filled is inputs
    assert n is None
    outputs = {"y": np.ones(2)}
    assert cut_batch(outputs, n, fixed) is outputs


def test_too_many() -> None:
    with pytest.raises(MeasurementError, match="larger than the model takes") as caught:
        fill_batch({"a": np.ones((3, 1))}, 2)
    assert (caught.value.got, caught.value.expected) == (3, "at most 2")


def test_no_inputs_are_left_to_the_engine() -> None:
    assert fill_batch({}, 4) == ({}, None)
