"""Counting of float-bit buckets: the inner loop of calibration.

Two kernels do the same in integers and so give the same counts: NumPy's ``add.at``, always there, and a loop compiled
by Numba that is about five times as fast, releases the interpreter's lock, and takes about a second to get ready.
See docs/adr/008-counting-kernel.md for the measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Kernel = Callable[[NDArray[np.uint32], NDArray[np.int64]], None]
"""Adds one to ``counts[bits >> 16]`` for each of ``bits``, (N,) C-contiguous uint32; ``counts`` is (65536,) int64."""

WORTH_COMPILING = 1_000_000_000
"""Values to be counted from which on the compiled kernel pays for the second it takes to get ready."""


def count_numpy(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """The kernel that needs nothing but NumPy."""
    np.add.at(counts, (bits >> np.uint32(16)).astype(np.intp), 1)


@cache
def compiled_kernel() -> Kernel | None:
    """The Numba kernel, compiled now; None where Numba is not installed or does not work."""
    try:
        import numba

        @numba.njit("void(uint32[::1], int64[::1])", nogil=True)
        def count_compiled(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
            for i in range(bits.size):
                counts[bits[i] >> 16] += 1

        kernel: Kernel = count_compiled
    except Exception:  # a missing or broken compiler must cost speed only; the result is the same
        return None
    return kernel


def kernel_for(values: int) -> Kernel:
    """The kernel that is fastest for counting so many values in all."""
    return (compiled_kernel() if values >= WORTH_COMPILING else None) or count_numpy
