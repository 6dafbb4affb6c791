"""The kernels count alike, and clipping a histogram equals the histogram of clipped values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal

import quantlab.calibrators.histogram as module
from quantlab.calibrators import Histogram
from quantlab.calibrators.counting import (
    COARSE,
    FINE,
    OCTAVES,
    SIDE,
    WORTH_COMPILING,
    compiled_kernel,
    count_numpy,
    kernel_for,
    key_values,
)

FLOATS = arrays.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32))
BOUNDS = st.floats(width=32, allow_nan=False)


def bucket_of(bits: int, octave: int) -> int:
    """The bucket by the definition: exponent and upper mantissa bits, one value at a time."""
    exponent, mantissa = bits >> 23 & 0xFF, bits & 0x7FFFFF
    if exponent < octave:
        bucket = exponent * COARSE + (mantissa >> 15)
    else:
        bucket = octave * COARSE + (exponent - octave) * FINE + (mantissa >> 12)
    return bucket + SIDE * (bits >> 31)


@given(values=FLOATS, octave=st.integers(0, 255 - OCTAVES), row=st.integers(1, 70))
def test_kernels_count_alike(values: np.ndarray, octave: int, row: int) -> None:
    """Rows up to the first with a value beyond the fine octaves, each value in the bucket of its definition."""
    starts = range(0, values.size, row)
    rows = [values[start : start + row] for start in starts]
    beyond = [bool((part.view(np.uint32) & 0x7FFFFFFF >= (octave + OCTAVES) << 23).any()) for part in rows]
    whole = beyond.index(True) if any(beyond) else len(rows)
    expected = np.zeros(2 * SIDE, np.uint32)
    for bits in values[: whole * row].view(np.uint32).tolist():
        expected[bucket_of(bits, octave)] += 1
    for kernel in (count_numpy, compiled_kernel() or count_numpy):
        got, lows, highs = np.zeros(2 * SIDE, np.uint32), np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
        assert kernel(values.view(np.int32), row, got, octave, lows, highs) == whole
        assert_array_equal(got, expected)
        assert_array_equal(key_values(lows)[:whole], [part.min() for part in rows[:whole]])
        assert_array_equal(key_values(highs)[:whole], [part.max() for part in rows[:whole]])


def test_the_highest_bucket_is_the_last_of_its_side() -> None:
    largest = np.float32([np.finfo(np.float32).max])
    assert bucket_of(int(largest.view(np.uint32)[0]), 255 - OCTAVES) == SIDE - 1
    counts, ends = np.zeros(2 * SIDE, np.uint32), np.zeros(1, np.int32)
    count_numpy(np.concatenate([largest, -largest]).view(np.int32), 2, counts, 255 - OCTAVES, ends, ends.copy())
    assert np.flatnonzero(counts).tolist() == [SIDE - 1, 2 * SIDE - 1]


def test_the_compiler_is_tested_where_it_is_installed() -> None:
    pytest.importorskip("llvmlite")
    assert compiled_kernel() is not None


def test_small_jobs_do_not_compile() -> None:
    assert kernel_for(WORTH_COMPILING - 1) is count_numpy
    assert kernel_for(WORTH_COMPILING) is (compiled_kernel() or count_numpy)


def test_without_the_compiler_numpy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llvmlite.binding", None)
    compiled_kernel.cache_clear()
    try:
        assert kernel_for(WORTH_COMPILING) is count_numpy
    finally:
        compiled_kernel.cache_clear()


@given(values=FLOATS, a=BOUNDS, b=BOUNDS)
@example(values=np.float32([1, 2, np.nan]), a=math.inf, b=math.inf)
@example(values=np.float32([1, -np.inf]), a=-math.inf, b=-math.inf)
@example(values=np.float32([1e-30, -1e-30, np.inf, -np.inf]), a=5.0, b=2.0**100)
@example(values=np.float32([100, 3, -2, -0.0]), a=0.0, b=6.0)
def test_clipped_histogram_is_the_histogram_of_clipped_values(values: np.ndarray, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    whole, expected = Histogram(), Histogram()
    whole.add(values)
    expected.add(np.clip(values, np.float32(low), np.float32(high)))
    before = whole.copy()
    got = whole.clipped(low, high)
    assert_array_equal(whole.counts, before.counts)
    assert got.octave >= expected.octave
    expected.widen(got.octave)  # the fine octaves stay those of the source
    assert_array_equal(got.counts, expected.counts)
    assert_array_equal(got.special, expected.special)
    assert (got.minimum, got.maximum) == (expected.minimum, expected.maximum)


def test_clipping_that_keeps_the_largest_magnitude_loses_no_resolution() -> None:
    values = np.linspace(-3, 5, 10_000, dtype=np.float32)
    whole, direct = Histogram(), Histogram()
    whole.add(values)
    direct.add(np.maximum(values, 0))
    assert whole.clipped(0.0, math.inf).octave == direct.octave


@given(values=FLOATS, row=st.integers(1, 50))
def test_extremes_of_rows(values: np.ndarray, row: int) -> None:
    """NaN and infinities are left out; a row without anything else has the extremes of nothing."""
    for kernel in (count_numpy, compiled_kernel() or count_numpy):
        histogram, plain = Histogram(kernel), Histogram(kernel)
        lows, highs = histogram.add_rows(values, row)
        plain.add(values)
        for i, start in enumerate(range(0, values.size, row)):
            part = values[start : start + row]
            finite = part[np.isfinite(part)]
            assert lows[i] == finite.min(initial=np.float32(np.inf))
            assert highs[i] == finite.max(initial=np.float32(-np.inf))
        assert_array_equal(histogram.counts, plain.counts)
        assert_array_equal(histogram.special, plain.special)
        assert (histogram.minimum, histogram.maximum) == (plain.minimum, plain.maximum)


def test_counts_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow counts are carried over before one could overflow."""
    monkeypatch.setattr(module, "_MOST_FRESH", 10)
    histogram = Histogram()
    for _ in range(7):
        histogram.add(np.float32([1.0, -2.0, 0.0, -0.0]))
        assert histogram._fresh is not None
        assert int(histogram._fresh.sum()) <= 10
    assert (histogram.total, histogram.counts[0]) == (28, 14)
