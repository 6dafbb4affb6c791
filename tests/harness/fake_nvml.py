"""An NVML in memory: GPUs as dicts of what each function answers; what is missing raises, as NVML does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

H100: dict[str, Any] = {
    "Name": "NVIDIA H100 80GB HBM3",
    "CudaComputeCapability": (9, 0),
    "MemoryInfo": SimpleNamespace(total=81559 * 2**20),
    "ClockInfo": {1: 1755, 2: 2619},
    "MaxClockInfo": {1: 1980, 2: 2619},
    "EnforcedPowerLimit": 700_000,
    "UUID": "GPU-11111111-2222-3333-4444-555555555555",
    "PowerUsage": 345_500,
    "Temperature": {0: 51},
    "CurrentClocksEventReasons": 0,
    "ComputeRunningProcesses": [],
    "TotalEnergyConsumption": 1_000_000,
}


class FakeNvmlError(Exception):
    """What NVML raises."""


class FakeNvml:
    """A stand-in for the module ``pynvml``.

    Attributes:
        gpus: What each GPU answers, by the function's name without ``nvmlDeviceGet``; a callable is called.
        open: Sessions that were not shut down.
    """

    def __init__(self, *gpus: dict[str, Any], driver: str = "580.159.04") -> None:
        self.gpus = list(gpus)
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.driver

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if not 0 <= index < len(self.gpus):
            raise FakeNvmlError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return next(index for index, gpu in enumerate(self.gpus) if gpu["UUID"] == uuid)

    def __getattr__(self, name: str) -> Any:
        key = name.removeprefix("nvmlDeviceGet")

        def answer(handle: int, *arguments: Any) -> Any:
            gpu = self.gpus[handle]
            if key not in gpu:
                raise FakeNvmlError("Not Supported")
            value = gpu[key]
            if callable(value):
                return value()
            return value[arguments[0]] if isinstance(value, dict) else value

        return answer
