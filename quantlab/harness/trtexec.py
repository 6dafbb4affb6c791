"""The figures of trtexec from device times, by its definitions (NVIDIA/TensorRT, ``sampleReporting.cpp``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import MeasurementError
from quantlab.harness.caution import Caution, CautionCode

if TYPE_CHECKING:
    from quantlab.engines.tensorrt.timing import DeviceTimes

Floats = NDArray[np.float64]

ENQUEUE_BOUND = 0.8
"""Share of the median compute time above which the median enqueue time may bound the throughput."""
UNSTABLE_PERCENT = 2.5
"""Coefficient of variation of the compute time above which it is unstable."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the queries.

    Attributes:
        min_ms: Smallest.
        max_ms: Largest.
        mean_ms: Mean.
        median_ms: Median; the mean of the middle two of an even number.
        p90_ms: 90th percentile; as the others an observed value, not interpolated.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        variation_percent: Standard deviation (of the queries themselves, not of a population) over the mean; infinite
            for a mean of zero.
    """

    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    variation_percent: float


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What trtexec prints as its performance summary.

    With transfers, latency is the sum of its three parts: waiting between queries, of which one is always ahead, is
    not in it. Without them it is the compute time. So two latencies compare only if `transfers` and `graph` agree;
    trtexec 11 takes graphs and no transfers by default, up to 10 it is the other way round.

    Attributes:
        queries: Number of queries, warm-up excluded.
        warmup_queries: Number in the warm-up.
        batch_size: Samples in a query.
        walltime_s: First copy of the first query to last copy of the last.
        throughput_qps: Queries over the wall time.
        samples_per_s: The same in samples.
        latency: Copies to the GPU, compute and copies back.
        h2d: Copies to the GPU.
        compute: Execution.
        d2h: Copies to the host.
        enqueue: Host time to enqueue, from Python.
        total_compute_s: Mean compute time times the queries.
        graph: Whether compute was a CUDA graph.
        transfers: Whether copies were made.
        load_ms: Opening the engine; in none of the above.
        first_run_ms: First run, with compilation; in none of the above.
        warnings: What may make the figures other than the GPU's own, in words.
        spin: Whether the host spun while it waited.
        streams: Contexts that ran at once; above 1 the throughput is the figure to read.
    """

    queries: int
    warmup_queries: int
    batch_size: int
    walltime_s: float
    throughput_qps: float
    samples_per_s: float
    latency: Spread
    h2d: Spread
    compute: Spread
    d2h: Spread
    enqueue: Spread
    total_compute_s: float
    graph: bool
    transfers: bool
    load_ms: float
    first_run_ms: float
    warnings: tuple[str, ...]
    spin: bool = False
    streams: int = 1


def device_figures(times: DeviceTimes) -> DeviceFigures:
    """Figures of one measurement.

    Args:
        times: Arrays of one length, at least one query.

    Raises:
        MeasurementError: If there is no query.
    """
    n = len(times.compute_ms)
    if n == 0 or times.walltime_ms <= 0.0:
        raise MeasurementError("no figures without a timed query", got=f"{n} queries in {times.walltime_ms} ms")
    h2d, compute, d2h, enqueue = (
        spread(values) for values in (times.h2d_ms, times.compute_ms, times.d2h_ms, times.enqueue_ms)
    )
    throughput = n * 1000.0 / times.walltime_ms
    return DeviceFigures(
        queries=n,
        warmup_queries=times.warmup_queries,
        batch_size=times.batch_size,
        walltime_s=times.walltime_ms / 1000.0,
        throughput_qps=throughput,
        samples_per_s=throughput * times.batch_size,
        latency=spread(times.h2d_ms + times.compute_ms + times.d2h_ms),
        h2d=h2d,
        compute=compute,
        d2h=d2h,
        enqueue=enqueue,
        total_compute_s=compute.mean_ms * n / 1000.0,
        graph=times.settings.use_graph,
        transfers=times.settings.transfers,
        load_ms=times.load_ms,
        first_run_ms=times.first_run_ms,
        warnings=tuple(
            caution.text
            for caution in figure_cautions(
                h2d, compute, d2h, enqueue, graph=times.settings.use_graph, streams=times.streams
            )
        ),
        spin=times.settings.spin,
        streams=times.streams,
    )


def spread(values_ms: Floats) -> Spread:
    """Summary of one metric.

    Raises:
        MeasurementError: If there is no value.
    """
    if len(values_ms) == 0:
        raise MeasurementError("no figures without a timed query")
    ordered = np.sort(values_ms)
    mean = float(np.mean(ordered))
    deviation = float(np.std(ordered))
    return Spread(
        min_ms=float(ordered[0]),
        max_ms=float(ordered[-1]),
        mean_ms=mean,
        median_ms=float(np.median(ordered)),
        p90_ms=percentile(ordered, 90.0),
        p95_ms=percentile(ordered, 95.0),
        p99_ms=percentile(ordered, 99.0),
        variation_percent=deviation / mean * 100.0 if mean > 0.0 else float("inf"),
    )


def percentile(ordered_ms: Floats, percentage: float) -> float:
    """An observed value: as many of the largest are passed over as ``(1 - percentage / 100) * n``, rounded down.

    The product is taken in single precision, as trtexec takes it: the 90th percentile of ten values is the ninth,
    which in double precision it would not be.

    Raises:
        MeasurementError: If the percentage is none.
    """
    if not 0.0 <= percentage <= 100.0:
        raise MeasurementError("a percentile is out of range", got=percentage, expected="0 to 100")
    n = len(ordered_ms)
    excluded = int((np.float32(1) - np.float32(percentage) / np.float32(100)) * np.float32(n))
    return float(ordered_ms[max(n - 1 - excluded, 0)])


def figure_cautions(
    h2d: Spread | None,
    compute: Spread,
    d2h: Spread | None,
    enqueue: Spread | None,
    *,
    graph: bool | None,
    streams: int | None,
) -> tuple[Caution, ...]:
    """The warnings of trtexec at trtexec's thresholds.

    Args:
        h2d: Copies to the GPU; None where there are none.
        compute: Execution.
        d2h: Copies to the host; None where there are none.
        enqueue: Host time to enqueue; None where nothing is enqueued.
        graph: Whether compute was a CUDA graph; None if not known.
        streams: Contexts or callers at once; None if not known.
    """
    found = []
    if enqueue is not None and enqueue.median_ms > ENQUEUE_BOUND * compute.median_ms:
        advice = "a larger batch loads it more" if graph else "a CUDA graph or a larger batch loads it more"
        text = (
            f"enqueueing takes {enqueue.median_ms:.3f} ms, the GPU {compute.median_ms:.3f} ms: the GPU may wait for "
            f"the host; {advice}"
        )
        found.append(Caution(CautionCode.ENQUEUE_BOUND, text))
    for code, spent, what in (
        (CautionCode.H2D_BOUND, h2d, "copying the inputs to the GPU"),
        (CautionCode.D2H_BOUND, d2h, "copying the outputs to the host"),
    ):
        if spent is not None and spent.median_ms >= compute.median_ms:
            text = (
                f"{what} takes {spent.median_ms:.3f} ms, computing {compute.median_ms:.3f} ms: the throughput may be "
                "that of the copies"
            )
            found.append(Caution(code, text))
    if compute.variation_percent > UNSTABLE_PERCENT:
        text = (
            f"the compute time is unstable: its coefficient of variation is {compute.variation_percent:.1f} %; lock "
            "the clocks of the GPU, or wait by spinning"
        )
        found.append(Caution(CautionCode.UNSTABLE, text))
    if streams is not None and streams > 1:
        text = f"{streams} ran at once, so that a latency holds the waiting for the others: read the throughput"
        found.append(Caution(CautionCode.MULTIPLE_STREAMS, text))
    return tuple(found)
