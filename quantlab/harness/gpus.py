"""The NVIDIA GPUs of this machine: what they are, and how they run just now, by NVML or else by ``nvidia-smi``."""

from __future__ import annotations

import csv
import subprocess

from quantlab.harness.gpu import Gpu
from quantlab.harness.nvml import handles, nvml_session, read_gpu, throttle_words

__all__ = ["Gpu", "nvidia_gpus"]

_TIMEOUT_S = 10
_QUERY = (
    "name,compute_cap,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,uuid,power.draw,"
    "temperature.gpu,clocks_throttle_reasons.active"
)


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; none where there is no driver.

    Cost: a few milliseconds by NVML, one process (some 20 ms) by ``nvidia-smi``.
    """
    with nvml_session() as nvml:
        if nvml is not None and (found := tuple(read_gpu(nvml, handle) for handle in handles(nvml))):
            return found
    return _by_nvidia_smi()


def _by_nvidia_smi() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if done.returncode != 0:
        return ()
    rows = [[field.strip() for field in row] for row in csv.reader(done.stdout.splitlines())]
    return tuple(_gpu(row) for row in rows if len(row) == _QUERY.count(",") + 1)


def _gpu(row: list[str]) -> Gpu:
    name, capability, driver, memory, clock_sm, clock_memory, clock_max, limit, uuid, power, celsius, reasons = row
    return Gpu(
        name=name,
        compute_capability=_text(capability),
        driver=_text(driver),
        memory_mib=_whole(memory),
        clock_sm_mhz=_whole(clock_sm),
        clock_memory_mhz=_whole(clock_memory),
        clock_sm_max_mhz=_whole(clock_max),
        power_limit_w=_number(limit),
        uuid=_text(uuid),
        power_w=_number(power),
        temperature_c=_whole(celsius),
        throttled=_throttled(reasons),
    )


def _throttled(field: str) -> tuple[str, ...] | None:
    try:
        return throttle_words(int(field, 16))
    except ValueError:
        return None


def _text(field: str) -> str | None:
    return None if not field or field.startswith("[") else field  # such as [N/A] or [Not Supported]


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


def _whole(field: str) -> int | None:
    number = _number(field)
    return None if number is None else int(number)
