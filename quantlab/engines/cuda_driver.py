"""The CUDA driver through pycuda, imported when it is first needed, and its failures in words."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantlab.errors import BackendUnavailable, MeasurementError

_INSTALL = "pip install 'quantlab[tensorrt]' or 'quantlab[tensorrt-rtx]', which bring pycuda"
_VERSION_FILE = Path("/proc/driver/nvidia/version")


def load_driver() -> Any:
    """The module ``pycuda.driver``, initialized; never ``pycuda.autoinit``, which takes a context for good.

    Raises:
        BackendUnavailable: If pycuda or the NVIDIA driver is missing or broken, or there is no GPU.
    """
    driver = _import_driver()
    try:
        driver.init()
        count = driver.Device.count()
    except Exception as cause:  # pycuda's errors, or whatever a broken installation raises
        got = first_line(cause)
        if "no CUDA-capable device" in got or "no device" in got:
            raise _no_gpu(got) from cause
        hint = "update the NVIDIA driver, or take a pycuda that was built for an older CUDA; run nvidia-smi to check it"
        raise BackendUnavailable("the NVIDIA driver does not start", got=got, hint=hint) from cause
    if count == 0:
        raise _no_gpu("the driver counts none")
    return driver


def _import_driver() -> Any:
    try:
        with warnings.catch_warnings():  # pycuda warns and raises for the same thing
            warnings.simplefilter("ignore")
            return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as cause:
        if cause.name == "pycuda":
            raise BackendUnavailable("pycuda is not installed", got=str(cause), hint=_INSTALL) from cause
        raise _broken(cause) from cause
    except Exception as cause:  # a shared library that is missing or too old: anything
        got = first_line(cause)
        if "libcuda.so" in got or "nvcuda.dll" in got:
            hint = "install the NVIDIA driver; in a container, start it with access to the GPUs"
            raise BackendUnavailable("the NVIDIA driver is not installed", got=got, hint=hint) from cause
        raise _broken(cause) from cause


def _broken(cause: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        "pycuda is installed but cannot be loaded",
        got=first_line(cause),
        hint="reinstall it without a cache: it is compiled for one CUDA version, which the driver must support",
    )


def _no_gpu(got: str) -> BackendUnavailable:
    hint = "run this where nvidia-smi shows a GPU, and check CUDA_VISIBLE_DEVICES"
    return BackendUnavailable("there is no NVIDIA GPU", got=got, hint=hint)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0].strip() else type(error).__name__


@contextlib.contextmanager
def cuda_errors(driver: Any, what: str) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        MeasurementError: For any error of the driver, with ``what`` failed in its text.
    """
    try:
        yield
    except driver.Error as cause:
        hint = "an earlier error on this GPU may be the reason: start again in a fresh process"
        raise MeasurementError(what, got=first_line(cause), hint=hint) from cause


def driver_version() -> str | None:
    """Version of the NVIDIA driver, such as ``580.95.05``; None where nothing tells. Does not need pycuda."""
    return _nvml_version() or _file_version(_VERSION_FILE)


def _nvml_version() -> str | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if library.nvmlInit_v2() != 0:
            return None
        try:
            failed = library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
        finally:
            library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode("ascii", "replace") or None


def _file_version(path: Path) -> str | None:
    """The version in the kernel module's own words: ``NVRM version: NVIDIA UNIX ... Module  580.95.05  Release``."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found.group() if found else None
