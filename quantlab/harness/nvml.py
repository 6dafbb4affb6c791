"""GPUs as NVML states them, through ``nvidia-ml-py``; whatever a GPU or driver does not tell is None."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from quantlab.harness.gpu import Gpu

_THROTTLES = (
    (0x0000000000000004, "software power cap"),
    (0x0000000000000008, "hardware slowdown"),
    (0x0000000000000020, "software thermal slowdown"),
    (0x0000000000000040, "hardware thermal slowdown"),
    (0x0000000000000080, "hardware power brake"),
    (0x0000000000000010, "sync boost with another GPU"),
)
"""Bits of ``nvmlDeviceGetCurrentClocksEventReasons`` that mean lower clocks than asked for (nvml.h). Idle (1), clocks
set by the user (2) and the display's clocks (0x100) are no throttling."""
_SM, _MEMORY = 1, 2
_CELSIUS_OF_GPU = 0


def throttle_words(reasons: int) -> tuple[str, ...]:
    """Why a GPU runs below the clocks that it was asked for, in words; empty if it does not."""
    return tuple(words for bit, words in _THROTTLES if reasons & bit)


@contextlib.contextmanager
def nvml_session() -> Iterator[ModuleType | None]:
    """The initialised ``pynvml``; None where the package, the library or the driver is missing or broken."""
    try:
        import pynvml
    except Exception:  # a package that is installed but broken raises anything
        yield None
        return
    try:
        pynvml.nvmlInit()
    except Exception:  # NVML's errors have a base only where the module is whole
        yield None
        return
    try:
        yield pynvml
    finally:
        ask(pynvml, "nvmlShutdown")


def ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """What ``function`` of NVML answers; None if it fails or this version does not have it."""
    try:
        return getattr(nvml, function)(*arguments)
    except Exception:  # not supported, lost, no permission, or a function that this version lacks
        return None


def handles(nvml: Any) -> tuple[Any, ...]:
    """Handles of all GPUs that answer."""
    count = ask(nvml, "nvmlDeviceGetCount") or 0
    found = (ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(count))
    return tuple(handle for handle in found if handle is not None)


def running_handle(nvml: Any) -> Any:
    """Handle of the GPU that CUDA calls number 0, by ``CUDA_VISIBLE_DEVICES``; None if it cannot be told."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if first.isdecimal():
        return ask(nvml, "nvmlDeviceGetHandleByIndex", int(first))
    return ask(nvml, "nvmlDeviceGetHandleByUUID", first) if first.startswith("GPU-") else None


def read_gpu(nvml: Any, handle: Any) -> Gpu:
    """One GPU at this moment."""
    capability = ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    memory = ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    processes = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    reasons = ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # the name before driver 535
        reasons = ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return Gpu(
        name=text(ask(nvml, "nvmlDeviceGetName", handle)) or "unknown GPU",
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        driver=text(ask(nvml, "nvmlSystemGetDriverVersion")),
        memory_mib=int(memory.total) // 2**20 if memory is not None else None,
        clock_sm_mhz=ask(nvml, "nvmlDeviceGetClockInfo", handle, _SM),
        clock_memory_mhz=ask(nvml, "nvmlDeviceGetClockInfo", handle, _MEMORY),
        clock_sm_max_mhz=ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, _SM),
        power_limit_w=_thousandth(ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)),
        uuid=text(ask(nvml, "nvmlDeviceGetUUID", handle)),
        power_w=_thousandth(ask(nvml, "nvmlDeviceGetPowerUsage", handle)),
        temperature_c=ask(nvml, "nvmlDeviceGetTemperature", handle, _CELSIUS_OF_GPU),
        throttled=None if reasons is None else throttle_words(int(reasons)),
        other_processes=None if processes is None else sum(process.pid != os.getpid() for process in processes),
    )


def text(value: Any) -> str | None:
    """Strings of old versions are bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def _thousandth(value: Any) -> float | None:
    return None if value is None else value / 1000.0
