"""Engines on a GPU against each other by CUDA events: interleaved blocks, ratios with intervals, and the A/A control.

One block of queries gives every boundary that CUDA events see: a measurement has one result for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.protocol import Arrays, BlockTimed, BlockTimer
from quantlab.errors import MeasurementError
from quantlab.harness.clocks import SYSTEM_CLOCK, Clock
from quantlab.harness.latency import LatencySettings, Timings, time_boundaries
from quantlab.harness.measurement import Boundary

Floats = NDArray[np.float64]

EVENT_BOUNDARIES = (Boundary.DEVICE, Boundary.ENQUEUE, Boundary.TRANSFERS)
"""What one block of queries sees; the last one only if it makes copies."""


@dataclass(frozen=True, slots=True)
class GpuTimings:
    """Engines timed against each other on their GPU in one setting.

    Attributes:
        threads: Of each engine on the CPU.
        batch_size: Samples a query.
        graph: Whether compute was launched as a CUDA graph.
        transfers: Whether copies were made.
        spin: Whether the host spun while it waited.
        timings: One for each boundary, all of the same queries; see ``Timings.boundary``.
    """

    threads: int
    batch_size: int
    graph: bool
    transfers: bool
    spin: bool
    timings: tuple[Timings, ...]


class EngineDiedError(MeasurementError):
    """A timed engine failed.

    Attributes:
        name: The engine.
    """

    def __init__(self, name: str, cause: MeasurementError) -> None:
        super().__init__(cause.what, got=cause.got, expected=cause.expected, hint=cause.hint)
        self.name = name


def time_on_gpu(
    engines: Mapping[str, BlockTimed],
    reference: str,
    inputs: Arrays,
    batch_size: int,
    settings: LatencySettings,
    *,
    use_graph: bool,
    transfers: bool = True,
    spin: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[Boundary, Timings]:
    """Time engines against each other on their GPU, at every boundary of `EVENT_BOUNDARIES` that there is.

    All timers are ready, and their graphs captured, before the first block. Queries are made one ahead, as trtexec
    makes them, so the figures have its definitions; see `quantlab.engines.tensorrt.timing`.

    Args:
        engines: By label.
        reference: Label that ratios are taken to.
        inputs: One batch, fixed.
        batch_size: Samples in it.
        settings: Budget and seed; warm-up, length of blocks and precision are those of the device's time.
        use_graph: Whether compute is launched as a CUDA graph.
        transfers: Whether inputs and outputs are copied in every query.
        spin: Whether the host spins while it waits.
        clock: The host's, which the budget goes by.

    Raises:
        EngineDiedError: If an engine fails, or a graph is wanted and it cannot be captured.
        MeasurementError: If ``reference`` is not among ``engines``.
    """
    boundaries = EVENT_BOUNDARIES if transfers else EVENT_BOUNDARIES[:-1]
    with ExitStack() as stack:
        timers = {}
        for name, engine in engines.items():
            ready = engine.block_timer(inputs, use_graph=use_graph, transfers=transfers, spin=spin)
            try:
                timers[name] = _EventTimer(name, stack.enter_context(ready))
            except MeasurementError as error:
                raise EngineDiedError(name, error) from error
        return time_boundaries(timers, reference, batch_size, settings, boundaries, clock=clock)


class _EventTimer:
    """Blocks of one engine as a `quantlab.harness.blocks.Timer` of several boundaries."""

    calls_per_timing = 1

    def __init__(self, name: str, timer: BlockTimer) -> None:
        self._name = name
        self._timer = timer

    def time(self, timings: int) -> Floats:
        """Nanoseconds by boundary and query."""
        try:
            block = self._timer.time(timings)
        except MeasurementError as error:
            raise EngineDiedError(self._name, error) from error
        rows = (block.device_ns, block.enqueue_ns, block.transfers_ns)
        return np.stack([row for row in rows if row is not None])
