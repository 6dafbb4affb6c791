"""Queries one after the other, as trtexec makes them, on any engine: the times, and the figures of its summary."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import MeasurementError
from quantlab.harness.caution import Caution, CautionCode
from quantlab.harness.trtexec import Spread, figure_cautions, spread

if TYPE_CHECKING:
    from quantlab.engines.tensorrt.timing import DeviceTimes

Floats = NDArray[np.float64]
Clock = Callable[[], int]

CUDA_EVENTS = "CUDA events"
HOST_CLOCK = "host clock"
TRTEXEC_FILE = "file of trtexec"
_DIGITS = 6
_LARGEST_STEP = 0.05
"""Share of the median enqueue time that the rounding of a file may be."""


@dataclass(frozen=True, slots=True)
class QueryTimes:
    """Queries after the warm-up: arrays of float64, one value a query, in the order of their start.

    The names are those of trtexec's ``--exportTimes``. On the host's clock a query is all compute: its copies, if it
    makes any, are inside.

    Attributes:
        start_enqueue_ms: The call that enqueues; on the host's clock.
        end_enqueue_ms: Its end.
        start_h2d_ms: Copies to the GPU; without transfers the start of compute.
        end_h2d_ms: Their end.
        start_compute_ms: Execution.
        end_compute_ms: Its end.
        start_d2h_ms: Copies to the host; without transfers the end of compute.
        end_d2h_ms: Their end.
        h2d_ms: Duration.
        compute_ms: Duration.
        d2h_ms: Duration.
        latency_ms: Sum of the three durations.
    """

    start_enqueue_ms: Floats
    end_enqueue_ms: Floats
    start_h2d_ms: Floats
    end_h2d_ms: Floats
    start_compute_ms: Floats
    end_compute_ms: Floats
    start_d2h_ms: Floats
    end_d2h_ms: Floats
    h2d_ms: Floats
    compute_ms: Floats
    d2h_ms: Floats
    latency_ms: Floats


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """trtexec's performance summary by its definitions, of any engine. What has no meaning or is not known is None.

    With CUDA events, latency is copies, compute and copies, and throughput is of queries of which one is always
    enqueued ahead. On the host's clock latency is the whole run, from inputs to outputs in memory, one after the other.

    Attributes:
        clock: `CUDA_EVENTS`, `HOST_CLOCK` or `TRTEXEC_FILE`.
        queries: Number, warm-up excluded.
        warmup_queries: Number in the warm-up.
        batch_size: Samples in a query.
        streams: Contexts or callers at once.
        walltime_s: Start of the first query to the end of the last.
        throughput_qps: Queries over the wall time.
        samples_per_s: The same in samples.
        latency: See above.
        h2d: Copies to the GPU.
        compute: Execution.
        d2h: Copies to the host.
        enqueue: Host time to enqueue.
        total_compute_s: Mean compute time times the queries.
        graph: Whether compute was a CUDA graph.
        transfers: Whether copies were made.
        spin: Whether the host spun while it waited.
    """

    clock: str
    queries: int
    warmup_queries: int | None
    batch_size: int | None
    streams: int | None
    walltime_s: float
    throughput_qps: float
    samples_per_s: float | None
    latency: Spread
    h2d: Spread | None
    compute: Spread | None
    d2h: Spread | None
    enqueue: Spread | None
    total_compute_s: float | None
    graph: bool | None
    transfers: bool | None
    spin: bool | None

    def cautions(self, subject: str) -> tuple[Caution, ...]:
        """What trtexec would warn of, with ``subject`` filled in; of host times only what concerns them."""
        on_gpu = self.compute is not None
        found = figure_cautions(
            self.h2d if self.transfers else None,
            self.compute or self.latency,
            self.d2h if self.transfers else None,
            self.enqueue,
            graph=self.graph,
            streams=self.streams,
        )
        kept = found if on_gpu else [caution for caution in found if caution.code is CautionCode.MULTIPLE_STREAMS]
        return tuple(replace(caution, subject=subject) for caution in kept)


@dataclass(frozen=True, slots=True)
class HostLoop:
    """How long to query; the defaults are trtexec's.

    Attributes:
        seconds: Least time, warm-up excluded.
        warmup_ms: Warm-up: queries that begin in it do not count.
        iterations: Least number of queries of each caller.
        streams: Callers at once, each in a thread.
    """

    seconds: float = 3.0
    warmup_ms: float = 200.0
    iterations: int = 10
    streams: int = 1


def time_host(
    call: Callable[[], object], loop: HostLoop, clock: Clock = time.perf_counter_ns
) -> tuple[QueryTimes, int]:
    """Query an engine from ``loop.streams`` threads, each one query after the other.

    Returns:
        The queries after the warm-up, and how many were in it.

    Raises:
        MeasurementError: If none is left after the warm-up.
        Exception: What ``call`` raises.
    """
    spans: list[list[tuple[int, int]]] = [[] for _ in range(loop.streams)]
    failures: list[BaseException] = []
    stop = threading.Event()
    begin = threading.Barrier(loop.streams)
    origin: list[int] = []

    def query(own: list[tuple[int, int]]) -> None:
        try:
            begin.wait()
            zero = origin[0] if origin else clock()
            warm = zero + loop.warmup_ms * 1e6
            least = warm + loop.seconds * 1e9
            counted = 0
            while not stop.is_set() and (counted < max(loop.iterations, 1) or own[-1][1] < least):
                start = clock()
                call()
                own.append((start, clock()))
                counted += start >= warm
        except BaseException as error:
            failures.append(error)
            stop.set()
            begin.abort()

    collecting = gc.isenabled()
    gc.disable()
    try:
        origin.append(clock())
        if loop.streams == 1:
            query(spans[0])
        else:
            _in_threads([lambda own=own: query(own) for own in spans], stop)  # type: ignore[misc]
    finally:
        if collecting:
            gc.enable()
    for failure in failures:
        if not isinstance(failure, threading.BrokenBarrierError):
            raise failure
    return _host_times(spans, origin[0], loop)


def _in_threads(work: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Run all at once and wait; an interruption stops them first."""
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        for thread in threads:
            thread.join()
        raise


def _host_times(spans: Sequence[Sequence[tuple[int, int]]], origin: int, loop: HostLoop) -> tuple[QueryTimes, int]:
    every = np.array(sorted(span for own in spans for span in own), np.float64).reshape(-1, 2)
    kept = every[every[:, 0] >= origin + loop.warmup_ms * 1e6]
    if not len(kept):
        raise MeasurementError("no query was timed after the warm-up", got=f"{len(every)} queries")
    start, end = ((kept - origin) / 1e6).T
    zero = np.zeros(len(kept))
    whole = end - start
    times = QueryTimes(start, end, start, start, start, end, end, end, zero, whole, zero, whole)
    return times, len(every) - len(kept)


def host_figures(times: QueryTimes, warmup_queries: int, batch_size: int, streams: int) -> QueryFigures:
    """The summary of queries on the host's clock.

    Raises:
        MeasurementError: If there is no query.
    """
    walltime_s, n = _walltime_s(times), len(times.latency_ms)
    return QueryFigures(
        clock=HOST_CLOCK, queries=n, warmup_queries=warmup_queries, batch_size=batch_size, streams=streams,
        walltime_s=walltime_s, throughput_qps=n / walltime_s, samples_per_s=n * batch_size / walltime_s,
        latency=spread(times.latency_ms), h2d=None, compute=None, d2h=None, enqueue=None, total_compute_s=None,
        graph=None, transfers=None, spin=None,
    )  # fmt: skip


def gpu_figures(times: DeviceTimes) -> QueryFigures:
    """The summary of queries by CUDA events; the same numbers as `device_figures`.

    Raises:
        MeasurementError: If there is no query.
    """
    n = len(times.compute_ms)
    if n == 0 or times.walltime_ms <= 0.0:
        raise MeasurementError("no figures without a timed query", got=f"{n} queries in {times.walltime_ms} ms")
    walltime_s = times.walltime_ms / 1000.0
    compute = spread(times.compute_ms)
    return QueryFigures(
        clock=CUDA_EVENTS, queries=n, warmup_queries=times.warmup_queries, batch_size=times.batch_size,
        streams=times.streams, walltime_s=walltime_s, throughput_qps=n / walltime_s,
        samples_per_s=n * times.batch_size / walltime_s,
        latency=spread(times.h2d_ms + times.compute_ms + times.d2h_ms), h2d=spread(times.h2d_ms), compute=compute,
        d2h=spread(times.d2h_ms), enqueue=spread(times.enqueue_ms), total_compute_s=compute.mean_ms * n / 1000.0,
        graph=times.settings.use_graph, transfers=times.settings.transfers, spin=times.settings.spin,
    )  # fmt: skip


def file_figures(times: QueryTimes) -> QueryFigures:
    """The summary of queries that were read from a file, which says neither batch size nor settings.

    Raises:
        MeasurementError: If there is no query.
    """
    walltime_s, n = _walltime_s(times), len(times.latency_ms)
    if np.array_equal(times.start_enqueue_ms, times.start_compute_ms) and np.array_equal(
        times.end_enqueue_ms, times.end_compute_ms
    ):  # as `times_text` writes queries on the host's clock
        found = host_figures(times, 0, 1, 1)
        return replace(found, warmup_queries=None, batch_size=None, samples_per_s=None, streams=None)
    compute = spread(times.compute_ms)
    return QueryFigures(
        clock=TRTEXEC_FILE, queries=n, warmup_queries=None, batch_size=None, streams=None, walltime_s=walltime_s,
        throughput_qps=n / walltime_s, samples_per_s=None, latency=spread(times.latency_ms), h2d=spread(times.h2d_ms),
        compute=compute, d2h=spread(times.d2h_ms), enqueue=_enqueue(times),
        total_compute_s=compute.mean_ms * n / 1000.0, graph=None,
        transfers=bool(np.any(times.h2d_ms > 0) or np.any(times.d2h_ms > 0)), spin=None,
    )  # fmt: skip


def _enqueue(times: QueryTimes) -> Spread | None:
    """Enqueue times of a file; None where they drown in its rounding.

    trtexec writes moments with six significant digits, and of the enqueueing writes the two moments alone.
    """
    spent = spread(times.end_enqueue_ms - times.start_enqueue_ms)
    if any(float(f"{moment:.{_DIGITS}g}") != moment for moment in times.end_enqueue_ms[-100:].tolist()):
        return spent  # written in full
    latest = float(np.max(np.abs(times.end_enqueue_ms)))
    step_ms = 10.0 ** (np.floor(np.log10(latest)) - _DIGITS + 1) if latest > 0 else 0.0
    return spent if step_ms <= _LARGEST_STEP * spent.median_ms else None


def _walltime_s(times: QueryTimes) -> float:
    """Start of the first query to the end of the last, as trtexec takes it: of copies, or of compute without them."""
    if not len(times.latency_ms):
        raise MeasurementError("no figures without a timed query")
    walltime_ms = float(np.max(times.end_d2h_ms) - np.min(times.start_h2d_ms))
    if walltime_ms <= 0.0:
        raise MeasurementError("no figures of queries that took no time", got=f"{walltime_ms} ms")
    return walltime_ms / 1000.0


def traced_times(times: DeviceTimes) -> QueryTimes:
    """The queries of a measurement by CUDA events, with the moments of their parts."""
    rows = times.traces

    def column(value: Callable[[int], float]) -> Floats:
        return np.array([value(index) for index in range(len(rows))], np.float64)

    enqueue = column(lambda i: rows[i].enqueue_start_ms)
    start = column(lambda i: rows[i].start_ms)
    compute = column(lambda i: rows[i].compute_start_ms)
    end = column(lambda i: rows[i].end_ms)
    h2d, spent, d2h = times.h2d_ms, times.compute_ms, times.d2h_ms
    return QueryTimes(
        start_enqueue_ms=enqueue, end_enqueue_ms=enqueue + times.enqueue_ms, start_h2d_ms=start,
        end_h2d_ms=start + h2d, start_compute_ms=compute, end_compute_ms=compute + spent, start_d2h_ms=end - d2h,
        end_d2h_ms=end, h2d_ms=h2d, compute_ms=spent, d2h_ms=d2h, latency_ms=h2d + spent + d2h,
    )  # fmt: skip


def merged(parts: Sequence[DeviceTimes]) -> DeviceTimes:
    """Queries of several contexts that began together, as one measurement.

    The wall time is that of the context that took longest: trtexec's is from the first start to the last end.
    """
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        h2d_ms=np.concatenate([part.h2d_ms for part in parts]),
        compute_ms=np.concatenate([part.compute_ms for part in parts]),
        d2h_ms=np.concatenate([part.d2h_ms for part in parts]),
        enqueue_ms=np.concatenate([part.enqueue_ms for part in parts]),
        walltime_ms=max(part.walltime_ms for part in parts),
        warmup_queries=sum(part.warmup_queries for part in parts),
        traces=tuple(trace for part in parts for trace in part.traces),
        streams=len(parts),
    )


COLUMNS = tuple(field.name for field in fields(QueryTimes))
"""Names of the columns, in the order of the file."""
