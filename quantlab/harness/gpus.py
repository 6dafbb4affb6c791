"""NVIDIA GPUs as ``nvidia-smi`` states them: what they are, and at which clocks they run just now."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import dataclass

_TIMEOUT_S = 10
_QUERY = "name,compute_cap,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What ``nvidia-smi`` does not tell is None.

    Attributes:
        name: Marketing name.
        compute_capability: Such as ``9.0``.
        driver: Version of the NVIDIA driver.
        memory_mib: Whole memory, in MiB.
        clock_sm_mhz: Clock of the processors at this moment.
        clock_memory_mhz: Clock of the memory at this moment.
        clock_sm_max_mhz: Highest clock of the processors.
        power_limit_w: Power that it may draw.
    """

    name: str
    compute_capability: str | None
    driver: str | None
    memory_mib: int | None
    clock_sm_mhz: int | None
    clock_memory_mhz: int | None
    clock_sm_max_mhz: int | None
    power_limit_w: float | None


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; none where ``nvidia-smi`` is missing or fails.

    Cost: one process, some 20 ms where there is a driver.
    """
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
    name, capability, driver, memory, clock_sm, clock_memory, clock_max, power = row
    return Gpu(
        name,
        _text(capability),
        _text(driver),
        _whole(memory),
        _whole(clock_sm),
        _whole(clock_memory),
        _whole(clock_max),
        _number(power),
    )


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
