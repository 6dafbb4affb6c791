"""Counting of float-bit buckets: the inner loop of calibration.

A float32 without its sign bit is an integer m that rises with its magnitude: 8 exponent bits, 23 mantissa bits. Its
bucket on its side of zero is

    max(m >> 15, (m >> 12) - shift),  shift = 7 * 256 * octave

so that magnitudes below the octave (a value of the exponent bits) have 8 mantissa bits, and those from it upwards have
11: both terms are equal where the octave begins, and the second rises eight times as fast from there. The maximum of
two integers needs no branch, which is what makes it fast.

Values come in rows, whose extremes are found on the way, while the values are in the processor's cache. Extremes are
*keys*: the bits with those of negative values turned round, integers that are in the order of the values.

Two kernels do the same in integers and so give the same counts: NumPy's ``add.at``, always there, and loops compiled by
LLVM that are several times as fast, release the interpreter's lock, and take about a tenth of a second to get ready.
See docs/adr/008-counting-kernel.md for the measurement.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.memory import release_memory

OCTAVES = 6
"""Octaves with fine buckets: that of the largest magnitude and those below it."""

FINE_BITS, COARSE_BITS = 11, 8
FINE, COARSE = 1 << FINE_BITS, 1 << COARSE_BITS
"""Buckets an octave."""

SIDE = (255 - OCTAVES) * COARSE + OCTAVES * FINE
"""Buckets on each side of zero: enough for the highest octave, whose exponent bits are 254."""

Keys = NDArray[np.int32]
Kernel = Callable[[NDArray[np.int32], int, NDArray[np.uint32], int, Keys, Keys], int]
"""Adds one to ``counts`` at the bucket of each value, row by row, up to the first row with a magnitude that has none.

Arguments: the bits of the values, (N,) C-contiguous int32; values of a row, the last one may be shorter; ``counts``,
(2 * SIDE,) uint32, the negative side behind the positive one; the lowest octave with fine buckets; and where the least
and the greatest key of each row go, (R,) int32, also of the row that it stops before. Magnitudes that have no bucket
are those of ``octave + OCTAVES`` and beyond, NaN and infinities among them. Returns the rows counted.
"""

WORTH_COMPILING = 100_000_000
"""Values to be counted from which on the compiled kernel pays for the time it takes to get ready."""

_MAGNITUDE, _SIGN = 0x7FFF_FFFF, 31
_CHUNK = 1 << 16
_FINE_SHIFT, _COARSE_SHIFT, _EXPONENT_SHIFT = 23 - FINE_BITS, 23 - COARSE_BITS, 23


def key_values(keys: Keys) -> NDArray[np.float32]:
    """The float32 values of keys; turning round twice gives the bits back."""
    return np.asarray(keys ^ ((keys >> np.int32(_SIGN)) & np.int32(_MAGNITUDE))).view(np.float32)


def count_numpy(
    bits: NDArray[np.int32], row: int, counts: NDArray[np.uint32], octave: int, lows: Keys, highs: Keys
) -> int:
    """The kernel that needs nothing but NumPy."""
    together = max(1, _CHUNK // row)
    rows = -(-bits.size // row)
    for start in range(0, rows, together):
        stop = min(start + together, rows)
        part = bits[start * row : stop * row]
        counted = _count_chunk(part, row, counts, octave, lows[start:stop], highs[start:stop])
        if counted < stop - start:
            return start + counted
    return rows


def _count_chunk(
    bits: NDArray[np.int32], row: int, counts: NDArray[np.uint32], octave: int, lows: Keys, highs: Keys
) -> int:
    starts = np.arange(0, bits.size, row)
    keys = bits ^ ((bits >> np.int32(_SIGN)) & np.int32(_MAGNITUDE))
    lows[:] = np.minimum.reduceat(keys, starts)
    highs[:] = np.maximum.reduceat(keys, starts)
    largest = np.maximum(highs, ~lows)  # keys of negative values are the complements of their magnitudes
    beyond = largest >> np.int32(_EXPONENT_SHIFT) >= octave + OCTAVES
    rows = int(np.argmax(beyond)) if beyond.any() else len(starts)
    bits = bits[: rows * row]
    magnitude = bits & np.int32(_MAGNITUDE)
    bucket = magnitude >> np.int32(_FINE_SHIFT)
    bucket -= np.int32((FINE - COARSE) * octave)
    magnitude >>= np.int32(_COARSE_SHIFT)
    np.maximum(bucket, magnitude, out=bucket)
    np.right_shift(bits, np.int32(_SIGN), out=magnitude)  # all ones for negative values
    magnitude &= np.int32(SIDE)
    bucket += magnitude
    one = np.uint32(1)  # of the counts' type: any other takes NumPy 90 times as long
    np.add.at(counts, bucket.astype(np.intp), one)
    return rows


_SOURCE = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define i64 @count(ptr noalias %bits, i64 %n, i64 %row, i32 %octave, ptr noalias %counts, ptr noalias %lows,
                  ptr noalias %highs, ptr noalias %buckets) {
entry:
  %shift = mul i32 %octave, {finer}
  %end = add i32 %octave, {octaves}
  %limit = shl i32 %end, {exponent}
  %window = mul i32 %octave, {buckets}
  %window_start = zext i32 %window to i64
  br label %fetch
fetch:
  %f = phi i64 [ 0, %entry ], [ %f_next, %fetch ]
  %positive = add nuw nsw i64 %window_start, %f
  %negative = add nuw nsw i64 %positive, {side}
  %at_positive = getelementptr inbounds i32, ptr %counts, i64 %positive
  %at_negative = getelementptr inbounds i32, ptr %counts, i64 %negative
  call void @llvm.prefetch.p0(ptr %at_positive, i32 1, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %at_negative, i32 1, i32 2, i32 1)
  %f_next = add nuw nsw i64 %f, 16
  %f_more = icmp ult i64 %f_next, {fine_buckets}
  br i1 %f_more, label %fetch, label %rows
rows:
  %r = phi i64 [ 0, %fetch ], [ %r_next, %counted ]
  %start = phi i64 [ 0, %fetch ], [ %start_next, %counted ]
  %some = icmp ult i64 %start, %n
  br i1 %some, label %begin, label %done
begin:
  %left = sub i64 %n, %start
  %short = icmp ult i64 %left, %row
  %size = select i1 %short, i64 %left, i64 %row
  %values = getelementptr inbounds i32, ptr %bits, i64 %start
  br label %extremes
extremes:
  %i = phi i64 [ 0, %begin ], [ %i_next, %extremes ]
  %low = phi i32 [ 2147483647, %begin ], [ %low_next, %extremes ]
  %high = phi i32 [ -2147483648, %begin ], [ %high_next, %extremes ]
  %from_i = getelementptr inbounds i32, ptr %values, i64 %i
  %value_i = load i32, ptr %from_i, align 4
  %signs_i = ashr i32 %value_i, {sign}
  %turned = and i32 %signs_i, {magnitude}
  %key = xor i32 %value_i, %turned
  %is_low = icmp slt i32 %key, %low
  %low_next = select i1 %is_low, i32 %key, i32 %low
  %is_high = icmp sgt i32 %key, %high
  %high_next = select i1 %is_high, i32 %key, i32 %high
  %i_next = add nuw nsw i64 %i, 1
  %i_more = icmp ult i64 %i_next, %size
  br i1 %i_more, label %extremes, label %checked
checked:
  %to_low = getelementptr inbounds i32, ptr %lows, i64 %r
  store i32 %low_next, ptr %to_low, align 4
  %to_high = getelementptr inbounds i32, ptr %highs, i64 %r
  store i32 %high_next, ptr %to_high, align 4
  %below = xor i32 %low_next, -1
  %above = icmp sgt i32 %high_next, %below
  %largest = select i1 %above, i32 %high_next, i32 %below
  %beyond = icmp sge i32 %largest, %limit
  br i1 %beyond, label %done, label %place
place:
  %j = phi i64 [ 0, %checked ], [ %j_next, %place ]
  %from_j = getelementptr inbounds i32, ptr %values, i64 %j
  %value_j = load i32, ptr %from_j, align 4
  %m = and i32 %value_j, {magnitude}
  %coarse = lshr i32 %m, {coarse}
  %shifted = lshr i32 %m, {fine}
  %fine = sub nsw i32 %shifted, %shift
  %is_fine = icmp sgt i32 %fine, %coarse
  %bucket = select i1 %is_fine, i32 %fine, i32 %coarse
  %signs_j = ashr i32 %value_j, {sign}
  %side = and i32 %signs_j, {side}
  %placed = add nsw i32 %bucket, %side
  %to_j = getelementptr inbounds i32, ptr %buckets, i64 %j
  store i32 %placed, ptr %to_j, align 4
  %j_next = add nuw nsw i64 %j, 1
  %j_more = icmp ult i64 %j_next, %size
  br i1 %j_more, label %place, label %increment
increment:
  %k = phi i64 [ 0, %place ], [ %k_next, %increment ]
  %from_k = getelementptr inbounds i32, ptr %buckets, i64 %k
  %at_k = load i32, ptr %from_k, align 4
  %index = zext i32 %at_k to i64
  %at = getelementptr inbounds i32, ptr %counts, i64 %index
  %before = load i32, ptr %at, align 4
  %after = add i32 %before, 1
  store i32 %after, ptr %at, align 4
  %k_next = add nuw nsw i64 %k, 1
  %k_more = icmp ult i64 %k_next, %size
  br i1 %k_more, label %increment, label %counted
counted:
  %r_next = add nuw nsw i64 %r, 1
  %start_next = add nuw nsw i64 %start, %size
  br label %rows
done:
  ret i64 %r
}
"""
"""The kernel in LLVM's language. The increments have a loop of their own, for they would keep the others from vectors.

The fine buckets are fetched first: other tensors were counted meanwhile, and waiting for one of them at a time costs
more than counting.
"""


@cache
def compiled_kernel() -> Kernel | None:
    """The kernel of machine code, compiled now; None where llvmlite is not installed or does not work."""
    constants = {
        "{magnitude}": _MAGNITUDE, "{sign}": _SIGN, "{fine}": _FINE_SHIFT, "{coarse}": _COARSE_SHIFT,
        "{exponent}": _EXPONENT_SHIFT, "{side}": SIDE, "{octaves}": OCTAVES, "{finer}": FINE - COARSE,
        "{buckets}": COARSE, "{fine_buckets}": OCTAVES * FINE,
    }  # fmt: skip
    source = _SOURCE
    for name, value in constants.items():
        source = source.replace(name, str(value))
    try:
        engine = _compiled(source)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        signature = ctypes.CFUNCTYPE(
            size, pointer, size, size, ctypes.c_int32, pointer, pointer, pointer, pointer
        )  # fmt: skip
        function = signature(engine.get_function_address("count"))
    except Exception:  # a missing or broken compiler must cost speed only; the result is the same
        return None

    def count_compiled(
        bits: NDArray[np.int32], row: int, counts: NDArray[np.uint32], octave: int, lows: Keys, highs: Keys
    ) -> int:
        assert engine is not None  # it owns the machine code
        buckets = np.empty(min(row, bits.size), np.int32)
        addresses = (array.ctypes.data for array in (counts, lows, highs, buckets))
        return int(function(bits.ctypes.data, bits.size, row, octave, *addresses))

    return count_compiled


def _compiled(source: str) -> Any:
    """An execution engine with machine code for this processor."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(source)
    module.verify()
    processor, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=processor, features=features, opt=3)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    release_memory()  # the compiler needs more than what it makes
    return engine


def kernel_for(values: int) -> Kernel:
    """The kernel that is fastest for counting so many values in all."""
    return (compiled_kernel() if values >= WORTH_COMPILING else None) or count_numpy
