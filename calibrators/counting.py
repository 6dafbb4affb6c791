"""Counting of float-bit buckets: the inner loop of calibration.

A float32 without its sign bit is an integer m that rises with its magnitude: 8 exponent bits, 23 mantissa bits. Its
bucket on its side of zero is

    max(m >> 15, (m >> 12) - shift),  shift = 7 * 256 * octave

so that magnitudes below the octave (a value of the exponent bits) have 8 mantissa bits, and those from it upwards have
11: both terms are equal where the octave begins, and the second rises eight times as fast from there. The maximum of
two integers needs no branch, which is what makes it fast.

Two kernels do the same in integers and so give the same counts: NumPy's ``add.at``, always there, and loops compiled by
Numba that are about four times as fast, release the interpreter's lock, and take about a second to get ready. See
docs/adr/008-counting-kernel.md for the measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

OCTAVES = 6
"""Octaves with fine buckets: that of the largest magnitude and those below it.

Four make a linear histogram exact; with two more it stays so, or nearly, for what is clipped some octaves lower."""

FINE_BITS, COARSE_BITS = 11, 8
FINE, COARSE = 1 << FINE_BITS, 1 << COARSE_BITS
"""Buckets an octave."""

SIDE = (255 - OCTAVES) * COARSE + OCTAVES * FINE
"""Buckets on each side of zero: enough for the highest octave, whose exponent bits are 254."""

Kernel = Callable[[NDArray[np.int32], NDArray[np.int64], int], None]
"""Adds one to ``counts`` at the bucket of each value.

Arguments: the bits of finite values, (N,) C-contiguous int32; ``counts``, (2 * SIDE,) int64, the negative side behind
the positive one; the lowest octave with fine buckets. No magnitude may reach ``octave + OCTAVES``.
"""

WORTH_COMPILING = 1_000_000_000
"""Values to be counted from which on the compiled kernel pays for the second it takes to get ready."""

_MAGNITUDE, _SIGN = 0x7FFF_FFFF, 31
_FINE_SHIFT, _COARSE_SHIFT = 23 - FINE_BITS, 23 - COARSE_BITS


def count_numpy(bits: NDArray[np.int32], counts: NDArray[np.int64], octave: int) -> None:
    """The kernel that needs nothing but NumPy."""
    magnitude = bits & np.int32(_MAGNITUDE)
    bucket = magnitude >> np.int32(_FINE_SHIFT)
    bucket -= np.int32((FINE - COARSE) * octave)
    magnitude >>= np.int32(_COARSE_SHIFT)
    np.maximum(bucket, magnitude, out=bucket)
    np.right_shift(bits, np.int32(_SIGN), out=magnitude)  # all ones for negative values
    magnitude &= np.int32(SIDE)
    bucket += magnitude
    np.add.at(counts, bucket.astype(np.intp), 1)


@cache
def compiled_kernel() -> Kernel | None:
    """The Numba kernel, compiled now; None where Numba is not installed or does not work."""
    try:
        import numba

        mask, sign, side = np.int32(_MAGNITUDE), np.int32(_SIGN), np.int32(SIDE)
        fine, coarse = np.int32(_FINE_SHIFT), np.int32(_COARSE_SHIFT)

        @numba.njit("void(int32[::1], uint32[::1], int32)", nogil=True)
        def place(bits: NDArray[np.int32], buckets: NDArray[np.uint32], shift: int) -> None:
            for i in range(bits.size):  # 32-bit throughout, which halves the vectors: hence the casts
                magnitude = np.int32(bits[i] & mask)
                bucket = max(np.int32(magnitude >> coarse), np.int32(np.int32(magnitude >> fine) - shift))
                buckets[i] = np.uint32(np.int32(bucket + np.int32(np.int32(bits[i] >> sign) & side)))

        @numba.njit("void(uint32[::1], int64[::1])", nogil=True)
        def increment(buckets: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
            for i in range(buckets.size):
                counts[buckets[i]] += 1

    except Exception:  # a missing or broken compiler must cost speed only; the result is the same
        return None

    # Two loops, because one would keep the first from being vectorized.
    def count_compiled(bits: NDArray[np.int32], counts: NDArray[np.int64], octave: int) -> None:
        buckets = np.empty(bits.size, np.uint32)
        place(bits, buckets, (FINE - COARSE) * octave)
        increment(buckets, counts)

    return count_compiled


def kernel_for(values: int) -> Kernel:
    """The kernel that is fastest for counting so many values in all."""
    return (compiled_kernel() if values >= WORTH_COMPILING else None) or count_numpy
