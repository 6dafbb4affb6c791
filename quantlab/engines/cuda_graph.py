"""CUDA graphs: work of a stream captured once and launched as a whole. pycuda has none; this asks the driver itself."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from quantlab.errors import BackendUnavailable, MeasurementError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile cannot spoil the capture

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphDestroy": (ctypes.c_void_p,),
    "cuGraphExecDestroy": (ctypes.c_void_p,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


@cache
def _library() -> Any:
    """The driver's library, which pycuda has loaded already."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as cause:
        hint = "CUDA graphs need an NVIDIA driver for CUDA 11.4 or later"
        raise BackendUnavailable("the NVIDIA driver has no CUDA graphs", got=str(cause), hint=hint) from cause
    return library


class CudaGraph:
    """Captured work that can be launched again; addresses and shapes are those of the capture."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what ``enqueue`` puts on a stream; nothing of it is executed.

        Args:
            stream: Handle of the stream, of the context that is current.
            enqueue: Puts the work on that stream. It must have been executed before, so that it allocates nothing.

        Raises:
            BackendUnavailable: If the driver has no graphs.
            MeasurementError: If the work cannot be captured.
        """
        library = _library()
        captured, executable = ctypes.c_void_p(), ctypes.c_void_p()
        _check(library.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL), "a CUDA graph cannot be captured")
        try:
            enqueue()
        except BaseException:
            library.cuStreamEndCapture(stream, ctypes.byref(captured))  # leaves capture; its own failure follows
            if captured:
                library.cuGraphDestroy(captured)
            raise
        _check(library.cuStreamEndCapture(stream, ctypes.byref(captured)), "a CUDA graph cannot be captured")
        try:
            status = library.cuGraphInstantiateWithFlags(ctypes.byref(executable), captured, 0)
        finally:
            library.cuGraphDestroy(captured)
        _check(status, "a captured CUDA graph cannot be made executable")
        self._executable = executable
        self._launch = library.cuGraphLaunch
        self._release = weakref.finalize(self, library.cuGraphExecDestroy, executable)

    def launch(self, stream: int) -> None:
        """Put the captured work on a stream.

        Raises:
            MeasurementError: If the driver refuses.
        """
        _check(self._launch(self._executable, stream), "a CUDA graph cannot be launched")

    def close(self) -> None:
        """Destroy it; may be called again."""
        self._release()


def _check(status: int, what: str) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    _library().cuGetErrorString(status, ctypes.byref(text))
    got = text.value.decode("utf-8", "replace") if text.value else f"CUDA error {status}"
    hint = "run without a CUDA graph: the engine may wait for the host in between, as for shapes that data decide"
    raise MeasurementError(what, got=got, hint=hint)
