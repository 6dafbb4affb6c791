"""Standard output, kept for this program while TensorRT works: its libraries print to it behind Python's back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_STDOUT, _STDERR = 1, 2


@dataclass(slots=True)
class _State:
    """How many want it, and what standard output was before the first of them."""

    users: int = 0
    saved: int | None = None


_state = _State()
_lock = threading.Lock()


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is written to the process's standard output to its standard error meanwhile.

    It concerns the whole process, other threads' output too. It may be nested, and entered by several threads: the
    last to leave restores it. Where standard output or standard error is closed, nothing is done.
    """
    with _lock:
        _state.users += 1
        if _state.users == 1:
            _state.saved = _redirect()
    try:
        yield
    finally:
        with _lock:
            _state.users -= 1
            if _state.users == 0 and _state.saved is not None:
                _flush()  # what C code has printed and not written yet belongs to standard error, too
                os.dup2(_state.saved, _STDOUT)
                os.close(_state.saved)
                _state.saved = None


def _redirect() -> int | None:
    """Point standard output to standard error; a duplicate of what it was."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, replaced, or None
        sys.stdout.flush()
    _flush()
    try:
        saved = os.dup(_STDOUT)
    except OSError:
        return None
    try:
        os.dup2(_STDERR, _STDOUT)
    except OSError:
        os.close(saved)
        return None
    return saved


def _flush() -> None:
    """Write what C code has printed into its buffers."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # where the C library cannot be found by no name
        ctypes.CDLL(None).fflush(None)
