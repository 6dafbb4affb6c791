"""One GPU at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What NVML or ``nvidia-smi`` does not tell is None.

    Attributes:
        name: Marketing name.
        compute_capability: Such as ``9.0``.
        driver: Version of the NVIDIA driver.
        memory_mib: Whole memory, in MiB.
        clock_sm_mhz: Clock of the processors at this moment.
        clock_memory_mhz: Clock of the memory at this moment.
        clock_sm_max_mhz: Highest clock of the processors.
        power_limit_w: Power that it may draw.
        uuid: Identity of the board.
        power_w: Power that it draws at this moment.
        temperature_c: Of the chip, in degrees Celsius.
        throttled: Why it runs below the clocks asked for at this moment; empty if it does not.
        other_processes: Processes that compute on it, besides this one. In a container this process may be among them,
            for it has another number there.
    """

    name: str
    compute_capability: str | None
    driver: str | None
    memory_mib: int | None
    clock_sm_mhz: int | None
    clock_memory_mhz: int | None
    clock_sm_max_mhz: int | None
    power_limit_w: float | None
    uuid: str | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    throttled: tuple[str, ...] | None = None
    other_processes: int | None = None
