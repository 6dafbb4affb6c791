"""Energy that GPUs took over a stretch of time: by their own counter, or else by sampled power."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from quantlab.harness.nvml import ask

COUNTER = "counter of the GPU"
SAMPLED = "power sampled every 50 ms, times time"
_PERIOD_S = 0.05
_SHORTEST_S = 0.5
"""Counters are refreshed some ten times a second; over less than this they say nothing."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy over one measurement, idling included.

    Attributes:
        joules: Of the GPU.
        seconds: Time that it is over.
        method: How it was found.
        queries: Queries in that time, warm-up included.
        batch_size: Samples in a query.
    """

    joules: float
    seconds: float
    method: str
    queries: int
    batch_size: int

    @property
    def mean_w(self) -> float:
        """Mean power."""
        return self.joules / self.seconds

    @property
    def millijoules_per_sample(self) -> float:
        """Energy of one sample."""
        return self.joules * 1000.0 / max(self.queries * self.batch_size, 1)


class EnergyMeter:
    """Measures one GPU from `start` to `stop`; samples power in a thread where there is no counter."""

    def __init__(self, nvml: ModuleType | None, handle: Any) -> None:
        """Attach to a GPU.

        Args:
            nvml: The initialised ``pynvml``; None measures nothing.
            handle: Handle of the GPU; None measures nothing.
        """
        self._nvml = nvml if handle is not None else None
        self._handle = handle
        self._from_mj: int | None = None
        self._from_s = 0.0
        self._samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        if self._nvml is None:
            return
        self._samples.clear()
        self._ended.clear()
        self._from_mj = ask(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self._handle)
        self._from_s = time.perf_counter()
        if self._from_mj is None and ask(self._nvml, "nvmlDeviceGetPowerUsage", self._handle) is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()

    def stop(self) -> tuple[float, float, str] | None:
        """End it.

        Returns:
            Joules, seconds and method; None where nothing can be known or the time was too short.
        """
        if self._nvml is None:
            return None
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            joules = integrate(self._samples)
            spent = time.perf_counter() - self._from_s
            return None if joules is None or spent < _SHORTEST_S else (joules, spent, SAMPLED)
        now = ask(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self._handle)
        spent = time.perf_counter() - self._from_s
        if now is None or self._from_mj is None or now < self._from_mj or spent < _SHORTEST_S:
            return None
        return (now - self._from_mj) / 1000.0, spent, COUNTER

    def _sample(self) -> None:
        while True:
            milliwatts = ask(self._nvml, "nvmlDeviceGetPowerUsage", self._handle)
            if milliwatts is not None:
                self._samples.append((time.perf_counter(), milliwatts / 1000.0))
            if self._ended.wait(_PERIOD_S):
                return


def integrate(samples: Sequence[tuple[float, float]]) -> float | None:
    """Joules under power samples (seconds, watts) by the trapezoidal rule; None with fewer than two."""
    if len(samples) < 2:
        return None
    times, watts = np.array(samples, np.float64).T
    return float(np.trapezoid(watts, times))
