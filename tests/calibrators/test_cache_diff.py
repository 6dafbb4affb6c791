"""Two sets of ranges side by side."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.calibrators.cache_diff import QUANTILES, CacheDiff, diff_scales

SCALES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 2.0**100, width=32).map(abs))


def diff(left: dict[str, float], right: dict[str, float]) -> CacheDiff:
    return diff_scales(left, right, names=("l", "r"), headers=("L", "R"))


def test_example() -> None:
    found = diff(
        {"a": 0.1, "b": 0.2, "c": 0.0, "d": 0.3, "e": 1.0}, {"e": 0.25, "c": 0.5, "b": 0.4, "a": 0.1, "z": 1.0}
    )
    assert (found.common, found.equal, found.only_left, found.only_right) == (4, 1, ("d",), ("z",))
    assert [(move.tensor, move.ratio) for move in found.moves] == [("c", math.inf), ("e", 0.25), ("b", 2.0)]
    assert (found.moves[1].left_amax, found.moves[1].right_amax) == (127.0, 127.0 * 0.25)
    assert [quantile.share for quantile in found.quantiles] == list(QUANTILES)
    assert [q.ratio for q in found.quantiles][::3] == pytest.approx([0.25, 1.0, 2.0])


def test_nothing_in_common() -> None:
    found = diff({"a": 0.1}, {"b": 0.1})
    assert (found.common, found.quantiles, found.moves) == (0, (), ())


@given(SCALES, SCALES)
def test_the_other_way_round(left: dict[str, float], right: dict[str, float]) -> None:
    there, back = diff(left, right), diff(right, left)
    assert (there.common, there.equal) == (back.common, back.equal)
    assert set(there.only_left) == set(back.only_right)
    assert {m.tensor for m in there.moves} == {m.tensor for m in back.moves}
    for a in there.moves:
        (b,) = (move for move in back.moves if move.tensor == a.tensor)
        assert (a.left_amax, a.right_amax) == (b.right_amax, b.left_amax)
        assert np.isclose(a.octaves, b.octaves)


@given(SCALES)
def test_with_itself(scales: dict[str, float]) -> None:
    found = diff(scales, scales)
    assert (found.equal, found.moves, found.only_left, found.only_right) == (len(scales), (), (), ())
    assert {quantile.ratio for quantile in found.quantiles} <= {1.0}
