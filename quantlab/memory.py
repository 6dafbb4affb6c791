"""Giving memory back to the system.

glibc keeps what is freed for later: after a simplifier or an ONNX Runtime session has gone, a hundred megabytes and
more stay with the process, and then count towards the peak of what follows. On other systems nothing is done.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 20


@cache
def _glibc() -> Any:
    """The C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
    except OSError:
        return None


def return_large_blocks() -> None:
    """From now on, blocks of a megabyte or more go back to the system when they are freed."""
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGE)


def release_memory() -> None:
    """Collect garbage and give free memory back to the system."""
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
