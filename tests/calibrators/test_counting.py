"""The kernels count alike, and clipping a histogram equals the histogram of clipped values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal

from quantlab.calibrators import Histogram
from quantlab.calibrators.counting import WORTH_COMPILING, compiled_kernel, count_numpy, kernel_for

FLOATS = arrays.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32))
BOUNDS = st.floats(width=32, allow_nan=False)


@given(FLOATS)
def test_kernels_count_alike(values: np.ndarray) -> None:
    kernel = compiled_kernel()
    if kernel is None:
        pytest.skip("numba is not installed")
    expected, got = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    count_numpy(values.view(np.uint32), expected)
    kernel(values.view(np.uint32), got)
    assert_array_equal(got, expected)
    assert expected.sum() == values.size
    assert_array_equal(np.flatnonzero(expected), np.unique(values.view(np.uint32) >> 16))


def test_small_jobs_do_not_compile() -> None:
    assert kernel_for(WORTH_COMPILING - 1) is count_numpy
    assert kernel_for(WORTH_COMPILING) is (compiled_kernel() or count_numpy)


def test_without_numba_numpy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    compiled_kernel.cache_clear()
    try:
        assert kernel_for(WORTH_COMPILING) is count_numpy
    finally:
        compiled_kernel.cache_clear()


@given(FLOATS, BOUNDS, BOUNDS)
def test_clipped_histogram_is_the_histogram_of_clipped_values(values: np.ndarray, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    whole = Histogram()
    whole.add(values)
    expected = Histogram()
    expected.add(np.clip(values, np.float32(low), np.float32(high)))
    got = whole.clipped(low, high)
    # Both zeros are one value; which of their two buckets holds it is no matter.
    for histogram in (got, expected):
        histogram.counts[0] += histogram.counts[1 << 15]
        histogram.counts[1 << 15] = 0
    nan = np.isnan(values).sum()
    assert got.counts.sum() == expected.counts.sum() == values.size
    finite = np.arange(1 << 16) & 0x7FFF <= 0x7F80
    assert_array_equal(got.counts[finite], expected.counts[finite])
    assert got.counts[~finite].sum() == expected.counts[~finite].sum() <= nan
    assert (got.minimum, got.maximum) == (expected.minimum, expected.maximum)
