"""Engines whose times on a GPU the test makes up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness_data import Arrays, FunctionEngine

from quantlab.engines.tensorrt.timing import BlockTimes, DeviceTimes, TimingSettings, Trace, device_times
from quantlab.errors import MeasurementError


class EventEngine(FunctionEngine):
    """Takes ``device_ms`` on the GPU, 0.25 ms to enqueue and 1.5 ms of copies; its blocks stand in ``log``.

    Attributes:
        lives: Blocks until it fails.
        open: Timers that are open.
        asked: How timers were asked for.
    """

    def __init__(
        self,
        name: str,
        device_ms: float,
        log: list[str] | None = None,
        *,
        capturable: bool = True,
        lives: int = 10**9,
        **values: object,
    ) -> None:
        super().__init__(name, lambda x: x, **values)
        self.device_ms, self.capturable, self.lives = device_ms, capturable, lives
        self.log = [] if log is None else log
        self.open = 0
        self.transfers = True
        self.asked: list[dict[str, bool]] = []

    @contextlib.contextmanager
    def block_timer(
        self, inputs: Arrays, *, use_graph: bool = False, transfers: bool = True, spin: bool = False
    ) -> Iterator[Any]:
        self.asked.append({"use_graph": use_graph, "transfers": transfers, "spin": spin})
        if use_graph and not self.capturable:
            raise MeasurementError("no graph of it")
        self.transfers = transfers
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    def time(self, queries: int) -> BlockTimes:
        self.log.append(self.sidecar.name)
        self.lives -= 1
        if self.lives < 0:
            raise MeasurementError("fell off the bus")
        device = np.full(queries, self.device_ms * 1e6)
        return BlockTimes(device, np.full(queries, 0.25e6), device + 1.5e6 if self.transfers else None)

    def time_device(
        self, inputs: Arrays, *, seconds: float = 3.0, use_graph: bool = False, transfers: bool = True,
        spin: bool = False,
    ) -> DeviceTimes:  # fmt: skip
        if use_graph and not self.capturable:
            raise MeasurementError("no graph of it")
        settings = TimingSettings(seconds, 1.0, use_graph=use_graph, transfers=transfers, spin=spin)
        traces = [
            Trace(at, at + 0.5, at + self.device_ms + 1.5, 0.5, self.device_ms, 1.0, 0.25, at)
            for at in np.arange(0.0, 12.0)
        ]
        return device_times(traces, settings, batch_size=len(inputs["x"]), load_ms=10.0, first_run_ms=20.0)
