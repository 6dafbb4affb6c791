"""Latency from interleaved rounds, with the reference timed against itself as a control.

Every round times one block of calls of each engine, and the reference a second time, in an order drawn at random
and reversed in the next round (ABBA), so that slow drift of the machine cancels. Ratios are taken within a round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import MeasurementError
from quantlab.harness.measurement import Latency
from quantlab.statistics.interval import Interval

Floats = NDArray[np.float64]

BOUNDARY = "host: run() with inputs in memory to outputs in memory"
CALLS_FOR_P99 = 459
_CONFIDENCE = 0.95
_RESAMPLES = 2000
_CONTROL = "\0control"


@dataclass(frozen=True, slots=True)
class LatencySettings:
    """How long to measure.

    Attributes:
        seconds: Budget for all engines together, warm-up excluded.
        warmup_ms: Warm-up of each engine.
        block_ms: Aimed length of a block of calls.
        min_rounds: Rounds that are made even beyond the budget.
        max_rounds: Rounds after which it stops.
        seed: Of the order and of the bootstrap.
    """

    seconds: float = 10.0
    warmup_ms: float = 200.0
    block_ms: float = 20.0
    min_rounds: int = 6
    max_rounds: int = 400
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Latencies by name, and the control's interval.

    Attributes:
        latencies: Summary of each engine.
        noise_floor: Interval of the ratio of the reference to itself.
    """

    latencies: Mapping[str, Latency]
    noise_floor: Interval


def time_engines(
    calls: Mapping[str, Callable[[], object]], reference: str, batch_size: int, settings: LatencySettings
) -> Timings:
    """Time ``calls`` against each other.

    Args:
        calls: One call of each engine on fixed input, by variant name.
        reference: Name of the engine that ratios are taken to.
        batch_size: Samples in a call.
        settings: Budget and seed.

    Raises:
        MeasurementError: If ``reference`` is not among ``calls``.
    """
    if reference not in calls:
        raise MeasurementError(f"no reference {reference!r} to time against", got=", ".join(calls))
    labels = [*calls, _CONTROL]
    run = {**calls, _CONTROL: calls[reference]}
    repeats = {name: _warm_up(call, settings) for name, call in calls.items()}
    repeats[_CONTROL] = repeats[reference]
    samples: dict[str, list[int]] = {name: [] for name in labels}
    medians: dict[str, list[float]] = {name: [] for name in labels}
    generator = np.random.default_rng(settings.seed)
    order = list(labels)
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter_ns()
        for round_ in range(settings.max_rounds):
            if round_ >= settings.min_rounds and time.perf_counter_ns() - start > settings.seconds * 1e9:
                break
            order = [labels[i] for i in generator.permutation(len(labels))] if round_ % 2 == 0 else order[::-1]
            for name in order:
                block = _block(run[name], repeats[name])
                samples[name] += block
                medians[name].append(float(np.median(block)))
    finally:
        if collecting:
            gc.enable()
    base = np.log(medians[reference])
    latencies = {}
    for name in calls:
        ratio, interval = _ratio(np.log(medians[name]) - base, settings.seed)
        latencies[name] = _summary(np.array(samples[name], np.float64) / 1e6, batch_size, ratio, interval)
    return Timings(latencies, _ratio(np.log(medians[_CONTROL]) - base, settings.seed)[1])


def _warm_up(call: Callable[[], object], settings: LatencySettings) -> int:
    """Run for the warm-up time, at least three calls; calls a block should hold."""
    start = time.perf_counter_ns()
    durations: list[int] = []
    while len(durations) < 3 or time.perf_counter_ns() - start < settings.warmup_ms * 1e6:
        durations += _block(call, 1)
    typical = float(np.median(durations[len(durations) // 2 :]))
    return max(1, round(settings.block_ms * 1e6 / max(typical, 1.0)))


def _block(call: Callable[[], object], repeats: int) -> list[int]:
    clock = time.perf_counter_ns
    durations = []
    for _ in range(repeats):
        start = clock()
        call()
        durations.append(clock() - start)
    return durations


def _ratio(logs: Floats, seed: int) -> tuple[float, Interval]:
    """Median of paired log-ratios and its percentile bootstrap interval over rounds."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(logs), (_RESAMPLES, len(logs)))
    medians = np.median(logs[picks], axis=1)
    low, high = np.exp(np.quantile(medians, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]))
    return float(np.exp(np.median(logs))), Interval(float(low), float(high), _CONFIDENCE)


def _summary(values_ms: Floats, batch_size: int, ratio: float, interval: Interval) -> Latency:
    median = float(np.median(values_ms))
    return Latency(
        boundary=BOUNDARY,
        batch_size=batch_size,
        n_calls=len(values_ms),
        median_ms=median,
        p90_ms=float(np.quantile(values_ms, 0.90)),
        p99_ms=float(np.quantile(values_ms, 0.99)) if len(values_ms) >= CALLS_FOR_P99 else None,
        throughput_per_s=batch_size * 1000.0 / median,
        ratio=ratio,
        ratio_interval=interval,
    )
