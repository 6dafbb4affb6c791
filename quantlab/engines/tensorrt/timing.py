"""Device times of an engine, measured as trtexec does: CUDA events around copies and compute, one query ahead.

Three streams (inputs, compute, outputs) and two sets of events, so that the host enqueues a query while the one
before it runs; warm-up queries are those whose compute began before the warm-up time (NVIDIA/TensorRT,
``samples/common/sampleInference.cpp``). What is measured are times; figures and warnings are made of them in
`quantlab.harness.trtexec`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.cuda import Device
from quantlab.engines.cuda_driver import cuda_errors
from quantlab.engines.cuda_graph import CudaGraph
from quantlab.engines.tensorrt.slot import Copy, Slot
from quantlab.errors import MeasurementError

Floats = NDArray[np.float64]

_FAILED = "device times could not be taken"


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """How to measure; the defaults are those of trtexec up to TensorRT 10.

    Attributes:
        seconds: Least time, warm-up excluded.
        warmup_ms: Warm-up.
        iterations: Least number of queries.
        use_graph: Whether the compute part is launched as a CUDA graph. trtexec 11 does so by default.
        transfers: Whether inputs and outputs are copied in every query. trtexec 11 does not by default.
        spin: Whether the host spins while it waits, instead of sleeping. trtexec 11 does by default.
    """

    seconds: float = 3.0
    warmup_ms: float = 200.0
    iterations: int = 10
    use_graph: bool = False
    transfers: bool = True
    spin: bool = False


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """Times of the queries after the warm-up; arrays of float64, one value a query.

    Attributes:
        h2d_ms: Copies of the inputs to the GPU; zeros without transfers.
        compute_ms: Execution on the GPU.
        d2h_ms: Copies of the outputs to the host; zeros without transfers.
        enqueue_ms: Host time of the call that enqueues the execution, from Python.
        walltime_ms: From the start of the first query to the end of the last, on the GPU's clock.
        warmup_queries: Queries that were left out.
        batch_size: Samples in a query: the first axis of the first input.
        settings: How it was measured.
        load_ms: Opening the engine, before.
        first_run_ms: The first run ever of the engine, before: compilation for this GPU is part of it.
        traces: The queries themselves, in order, with the moments at which their parts began.
        streams: Contexts that ran at once; the queries of all of them are in the arrays.
    """

    h2d_ms: Floats
    compute_ms: Floats
    d2h_ms: Floats
    enqueue_ms: Floats
    walltime_ms: float
    warmup_queries: int
    batch_size: int
    settings: TimingSettings
    load_ms: float
    first_run_ms: float
    traces: tuple[Trace, ...] = ()
    streams: int = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """One query; milliseconds since the measurement began, on the GPU's clock, and durations.

    Attributes:
        start_ms: First copy, or compute where nothing is copied.
        compute_start_ms: Compute.
        end_ms: Last copy, or compute.
        h2d_ms: See `DeviceTimes`.
        compute_ms: See `DeviceTimes`.
        d2h_ms: See `DeviceTimes`.
        enqueue_ms: See `DeviceTimes`.
        enqueue_start_ms: The call that enqueues the execution, on the host's clock.
    """

    start_ms: float
    compute_start_ms: float
    end_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    enqueue_ms: float
    enqueue_start_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Times of queries one after the other, by trtexec's definitions; nanoseconds, float64 of shape (queries,).

    Attributes:
        device_ns: Execution on the GPU.
        enqueue_ns: Host time of the call that enqueues the execution, from Python.
        transfers_ns: Copies to the GPU, execution and copies back; None without transfers.
    """

    device_ns: Floats
    enqueue_ns: Floats
    transfers_ns: Floats | None


class SlotTimer:
    """Blocks of queries of one slot, whose streams, events and CUDA graph are kept from block to block."""

    def __init__(self, device: Device, slot: Slot, settings: TimingSettings) -> None:
        """Capture the graph, if one is wanted, of a settled slot that has run once and is nobody else's till `close`.

        Raises:
            MeasurementError: If TensorRT or the driver fails, or a graph is wanted and cannot be captured.
        """
        self._device = device
        with cuda_errors(device.driver, _FAILED):
            self._queries = _Queries(device, slot, settings)
            try:
                self._queries.start(slot)
            except BaseException:
                self._queries.close()
                raise

    def time(self, queries: int) -> BlockTimes:
        """Time a block of queries, one ahead, and wait for its end.

        One more is made before, which is not counted: it finds the GPU idle, where those behind it are enqueued while
        another runs.

        Raises:
            MeasurementError: If TensorRT or the driver fails.
        """
        if queries < 1:
            raise ValueError(f"{queries} queries")
        with self._device.active(), cuda_errors(self._device.driver, _FAILED):
            traces = self._queries.block(queries + 1)[1:]
        h2d, compute, d2h, enqueue = (
            1e6
            * np.array(
                [(trace.h2d_ms, trace.compute_ms, trace.d2h_ms, trace.enqueue_ms) for trace in traces], np.float64
            ).T
        )
        return BlockTimes(compute, enqueue, h2d + compute + d2h if self._queries.transfers else None)

    def close(self) -> None:
        """Wait for the streams and let go of everything; the GPU's context is active."""
        self._queries.close()


def time_slot(device: Device, slot: Slot, settings: TimingSettings) -> list[Trace]:
    """Measure a settled slot that has run once; the GPU's context is active and the slot is nobody else's.

    Returns:
        All queries, those of the warm-up first.

    Raises:
        MeasurementError: If TensorRT or the driver fails, or a graph is wanted and cannot be captured.
    """
    with cuda_errors(device.driver, _FAILED):
        queries = _Queries(device, slot, settings)
        collecting = gc.isenabled()
        gc.disable()
        try:
            queries.start(slot)
            return _loop(queries, settings)
        finally:
            if collecting:
                gc.enable()
            queries.close()


def without_warmup(traces: list[Trace], settings: TimingSettings) -> list[Trace]:
    """From the first query on whose compute began after the warm-up.

    Raises:
        MeasurementError: If there is none.
    """
    for index, trace in enumerate(traces):
        if trace.compute_start_ms >= settings.warmup_ms:
            return traces[index:]
    raise MeasurementError("no query was timed after the warm-up", got=f"{len(traces)} queries", hint="measure longer")


def device_times(
    traces: list[Trace], settings: TimingSettings, *, batch_size: int, load_ms: float, first_run_ms: float
) -> DeviceTimes:
    """Arrays of the queries after the warm-up.

    Raises:
        MeasurementError: If there is none.
    """
    kept = without_warmup(traces, settings)

    def column(value: Callable[[Trace], float]) -> Floats:
        return np.array([value(trace) for trace in kept], np.float64)

    return DeviceTimes(
        h2d_ms=column(lambda trace: trace.h2d_ms),
        compute_ms=column(lambda trace: trace.compute_ms),
        d2h_ms=column(lambda trace: trace.d2h_ms),
        enqueue_ms=column(lambda trace: trace.enqueue_ms),
        walltime_ms=kept[-1].end_ms - kept[0].start_ms,
        warmup_queries=len(traces) - len(kept),
        batch_size=batch_size,
        settings=settings,
        load_ms=load_ms,
        first_run_ms=first_run_ms,
        traces=tuple(kept),
    )


def _loop(queries: _Queries, settings: TimingSettings) -> list[Trace]:
    """The loop of trtexec: until both the time and the number of queries are reached, warm-up queries not counted."""
    traces: list[Trace] = []
    least_ms = settings.warmup_ms + settings.seconds * 1000.0
    reached_ms, extra, round_ = 0.0, 0, 0
    while round_ < settings.iterations + extra or reached_ms < least_ms:
        trace = queries.next()
        if trace is not None:
            traces.append(trace)
            reached_ms = max(reached_ms, trace.compute_start_ms)
        if reached_ms < settings.warmup_ms and reached_ms > 0.0:
            extra += 1
        round_ += 1
    return traces + queries.drain()


class _Queries:
    """Two queries under way at most, each with its events."""

    def __init__(self, device: Device, slot: Slot, settings: TimingSettings) -> None:
        self._driver = device.driver
        self.transfers = settings.transfers
        self._uploads: list[Copy] = slot.uploads() if settings.transfers else []
        self._downloads: list[Copy] = slot.downloads(slot.output_shapes()) if settings.transfers else []
        self._input, self._compute, self._output = (device.stream() for _ in range(3))
        self._events = [[device.event(spin=settings.spin) for _ in range(6)] for _ in range(2)]
        self._enqueue_ms = [0.0, 0.0]
        self._enqueue_start_ms = [0.0, 0.0]
        self._zero_ns = 0
        self._active = [False, False]
        self._next = 0
        self._zero = device.event()
        self._use_graph = settings.use_graph
        self._graph: CudaGraph | None = None
        self._execute: Callable[[], None] = _nothing

    def start(self, slot: Slot) -> None:
        """Capture the graph, if one is wanted, and start the clock."""
        handle = self._compute.handle
        slot.enqueue(handle)  # TensorRT may prepare for a stream that it has not seen, which no capture allows
        self._compute.synchronize()
        self._execute = partial(slot.enqueue, handle)
        if self._use_graph:
            self._graph = slot.capture(handle)
            self._execute = partial(self._graph.launch, handle)
        self._zero.record(self._compute)
        self._zero_ns = time.perf_counter_ns()
        for stream in (self._input, self._output):
            stream.wait_for_event(self._zero)

    def next(self) -> Trace | None:
        """Enqueue a query and wait for the one before it, if that is under way."""
        self._query()
        return self._finish()

    def block(self, queries: int) -> list[Trace]:
        """So many queries, from an idle GPU to an idle GPU."""
        traces = [trace for _ in range(queries) if (trace := self.next()) is not None]
        return traces + self.drain()

    def drain(self) -> list[Trace]:
        """Wait for what is under way."""
        traces = []
        for _ in range(2):
            trace = self._finish()
            if trace is not None:
                traces.append(trace)
            self._skip()
        return traces

    def _query(self) -> None:
        """Enqueue a query with the next set of events."""
        h2d_start, h2d_end, start, end, d2h_start, d2h_end = self._events[self._next]
        if self.transfers:
            h2d_start.record(self._input)
            for copy in self._uploads:
                self._driver.memcpy_htod_async(copy.address, copy.host, self._input)
            h2d_end.record(self._input)
            self._compute.wait_for_event(h2d_end)
        start.record(self._compute)
        before = time.perf_counter_ns()
        self._execute()
        self._enqueue_ms[self._next] = (time.perf_counter_ns() - before) / 1e6
        self._enqueue_start_ms[self._next] = (before - self._zero_ns) / 1e6
        end.record(self._compute)
        if self.transfers:
            self._output.wait_for_event(end)
            d2h_start.record(self._output)
            for copy in self._downloads:
                self._driver.memcpy_dtoh_async(copy.host, copy.address, self._output)
            d2h_end.record(self._output)
        self._active[self._next] = True
        self._skip()

    def _finish(self) -> Trace | None:
        """Wait for the query that has the next set of events; None if there is none under way."""
        if not self._active[self._next]:
            return None
        self._active[self._next] = False
        h2d_start, h2d_end, start, end, d2h_start, d2h_end = self._events[self._next]
        last = d2h_end if self.transfers else end
        last.synchronize()
        return Trace(
            start_ms=self._since_zero(h2d_start if self.transfers else start),
            compute_start_ms=self._since_zero(start),
            end_ms=self._since_zero(last),
            h2d_ms=float(h2d_end.time_since(h2d_start)) if self.transfers else 0.0,
            compute_ms=float(end.time_since(start)),
            d2h_ms=float(d2h_end.time_since(d2h_start)) if self.transfers else 0.0,
            enqueue_ms=self._enqueue_ms[self._next],
            enqueue_start_ms=self._enqueue_start_ms[self._next],
        )

    def _skip(self) -> None:
        """Go on to the other set of events."""
        self._next = 1 - self._next

    def close(self) -> None:
        """Wait for the streams and let go of everything."""
        for stream in (self._input, self._compute, self._output):
            stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        self._execute = _nothing
        self._graph = self._input = self._compute = self._output = self._zero = None
        self._events.clear()

    def _since_zero(self, event: Any) -> float:
        return float(event.time_since(self._zero))


def _nothing() -> None:
    """Executes nothing."""
