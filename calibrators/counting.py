"""Counting of float-bit buckets: the inner loop of calibration.

A float32 without its sign bit is an integer m that rises with its magnitude: 8 exponent bits, 23 mantissa bits. Its
bucket on its side of zero is

    max(m >> 15, (m >> 12) - shift),  shift = 7 * 256 * octave

so that magnitudes below the octave (a value of the exponent bits) have 8 mantissa bits, and those from it upwards have
11: both terms are equal where the octave begins, and the second rises eight times as fast from there. The maximum of
two integers needs no branch, which is what makes it fast.

Two kernels do the same in integers and so give the same counts: NumPy's ``add.at``, always there, and two loops
compiled by LLVM that are about four times as fast, release the interpreter's lock, and take about a tenth of a second
to get ready. See docs/adr/008-counting-kernel.md for the measurement.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

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

WORTH_COMPILING = 100_000_000
"""Values to be counted from which on the compiled kernel pays for the time it takes to get ready."""

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


_SOURCE = """
define void @place(ptr noalias %bits, ptr noalias %buckets, i64 %n, i32 %shift) {
entry:
  %some = icmp ne i64 %n, 0
  br i1 %some, label %loop, label %done
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %from = getelementptr inbounds i32, ptr %bits, i64 %i
  %value = load i32, ptr %from, align 4
  %magnitude = and i32 %value, {magnitude}
  %coarse = lshr i32 %magnitude, {coarse}
  %shifted = lshr i32 %magnitude, {fine}
  %fine = sub nsw i32 %shifted, %shift
  %larger = icmp sgt i32 %fine, %coarse
  %bucket = select i1 %larger, i32 %fine, i32 %coarse
  %signs = ashr i32 %value, {sign}
  %side = and i32 %signs, {side}
  %placed = add nsw i32 %bucket, %side
  %to = getelementptr inbounds i32, ptr %buckets, i64 %i
  store i32 %placed, ptr %to, align 4
  %next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}

define void @increment(ptr noalias %buckets, ptr noalias %counts, i64 %n) {
entry:
  %some = icmp ne i64 %n, 0
  br i1 %some, label %loop, label %done
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %from = getelementptr inbounds i32, ptr %buckets, i64 %i
  %bucket = load i32, ptr %from, align 4
  %index = zext i32 %bucket to i64
  %at = getelementptr inbounds i64, ptr %counts, i64 %index
  %count = load i64, ptr %at, align 8
  %more_by_one = add i64 %count, 1
  store i64 %more_by_one, ptr %at, align 8
  %next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""
"""The two loops in LLVM's language: two, because the increments would keep the first from being vectorized."""


@cache
def compiled_kernel() -> Kernel | None:
    """The kernel of machine code, compiled now; None where llvmlite is not installed or does not work."""
    constants = {
        "{magnitude}": _MAGNITUDE, "{coarse}": _COARSE_SHIFT, "{fine}": _FINE_SHIFT, "{sign}": _SIGN, "{side}": SIDE,
    }  # fmt: skip
    source = _SOURCE
    for name, value in constants.items():
        source = source.replace(name, str(value))
    try:
        engine = _compiled(source)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        place = ctypes.CFUNCTYPE(None, pointer, pointer, size, ctypes.c_int32)(engine.get_function_address("place"))
        increment = ctypes.CFUNCTYPE(None, pointer, pointer, size)(engine.get_function_address("increment"))
    except Exception:  # a missing or broken compiler must cost speed only; the result is the same
        return None

    def count_compiled(bits: NDArray[np.int32], counts: NDArray[np.int64], octave: int) -> None:
        assert engine is not None  # it owns the machine code
        buckets = np.empty(bits.size, np.uint32)
        place(bits.ctypes.data, buckets.ctypes.data, bits.size, (FINE - COARSE) * octave)
        increment(buckets.ctypes.data, counts.ctypes.data, bits.size)

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
    return engine


def kernel_for(values: int) -> Kernel:
    """The kernel that is fastest for counting so many values in all."""
    return (compiled_kernel() if values >= WORTH_COMPILING else None) or count_numpy
