"""Distances, against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantlab.harness.gap import Gap, GapMeter, sqnr_db


def gap(reference: object, value: object, dtype: type = np.float32) -> Gap:
    meter = GapMeter()
    meter.add(np.asarray(reference, dtype), np.asarray(value, dtype))
    return meter.result()


def test_three_and_four() -> None:
    """Signal 9 + 16, noise 1: 10 log10 25."""
    found = gap([[3.0, 4.0]], [[3.0, 5.0]])
    assert found.sqnr_db == pytest.approx(13.9794000867)
    assert (found.max_abs_error, found.differing, found.values, found.flips) == (1.0, 1, 2, 0)


def test_samples_add_up() -> None:
    meter = GapMeter()
    meter.add(np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]]))
    meter.add(np.array([[10.0, 0.0]]), np.array([[8.0, 9.0]]))
    found = meter.result()
    assert found.sqnr_db == pytest.approx(10 * math.log10(125 / 86))
    assert (found.max_abs_error, found.differing, found.values, found.flips) == (9.0, 3, 4, 1)


def test_equal() -> None:
    found = gap([[1.0, 2.0]], [[1.0, 2.0]])
    assert found.is_equal
    assert (found.sqnr_db, found.max_abs_error, found.flips) == (math.inf, 0.0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_the_worst_there_is(bad: float) -> None:
    found = gap([[1.0, 2.0]], [[1.0, bad]])
    assert (found.sqnr_db, found.max_abs_error, found.non_finite, found.flips) == (-math.inf, math.inf, 1, 1)


def test_what_the_reference_does_not_know() -> None:
    """NaN and infinity on both sides are the same; finite where the reference is not is a difference, not noise."""
    same = gap([[math.nan, math.inf, 2.0]], [[math.nan, math.inf, 2.0]])
    assert (same.is_equal, same.non_finite, same.undefined, same.sqnr_db) == (True, 0, 2, math.inf)
    other = gap([[math.inf, 2.0]], [[-math.inf, 2.0]])
    assert (other.differing, other.non_finite, other.undefined) == (1, 1, 1)
    assert gap([[math.nan, 2.0]], [[1.0, 2.0]]).differing == 1


def test_integers_have_no_ratio() -> None:
    found = gap([[5, 7, 9]], [[5, 8, 9]], np.int64)
    assert (found.sqnr_db, found.differing, found.flips) == (None, 1, None)


def test_scores_are_rows_of_two_or_more() -> None:
    assert gap([1.0, 2.0], [2.0, 1.0]).flips is None
    assert gap([[1.0], [2.0]], [[2.0], [1.0]]).flips is None
    assert gap([[1.0, 2.0], [4.0, 3.0]], [[2.0, 1.0], [4.0, 3.0]]).flips == 1


def test_nothing_was_added() -> None:
    found = GapMeter().result()
    assert math.isnan(found.sqnr_db or 0.0)
    assert (found.values, found.flips) == (0, None)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [(1.0, 0.0, math.inf), (0.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (1.0, math.inf, -math.inf), (100.0, 1.0, 20.0)],
)
def test_the_ends_of_the_scale(signal: float, noise: float, expected: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(expected)
