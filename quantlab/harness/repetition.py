"""Repetitions of a whole measurement, such as in fresh processes, combined into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from quantlab.errors import MeasurementError
from quantlab.harness.blocks import pairs_of
from quantlab.harness.latency import change_of, noise_of
from quantlab.harness.measurement import Latency, Outliers
from quantlab.harness.timings import CONTROL, Stop, TimingCode, Timings, TimingWarning, Variation
from quantlab.statistics.interval import Interval
from quantlab.statistics.random_effects import Combined, combine
from quantlab.statistics.ratio import CONFIDENCE, EQUIVALENCE_CONFIDENCE, RatioEstimate, ratio_of_pairs


def combine_timings(repetitions: Sequence[Timings]) -> Timings:
    """One result of several that measured the same engines.

    Ratios are combined by random effects on the logarithmic scale (`quantlab.statistics.random_effects`), so their
    intervals are over repetitions: with three of them, Student's quantile is 4.3. Other figures are medians over the
    repetitions, counts are sums, and percentiles have no interval; each repetition keeps its own. It stopped for
    precision if all did. A single one is returned as it is.

    Raises:
        MeasurementError: If there is none, or they are not of the same engines.
    """
    if not repetitions:
        raise MeasurementError("there is no measurement to combine")
    first = repetitions[0]
    if len(repetitions) == 1:
        return first
    for other in repetitions[1:]:
        if (other.labels, other.reference, other.boundary) != (first.labels, first.reference, first.boundary):
            raise MeasurementError(
                "only measurements of the same engines can be combined",
                got=f"{', '.join(other.labels)} ({other.boundary}, reference {other.reference})",
                expected=f"{', '.join(first.labels)} ({first.boundary}, reference {first.reference})",
            )
    combined = {label: _combined(repetitions, label) for label in first.labels if label != first.reference}
    control = _estimate(combined[CONTROL])
    latencies = {}
    for name in first.latencies:
        estimate = _estimate(combined[name]) if name in combined else _unity()
        change = change_of(estimate, control, first.settings) if name in combined else None
        latencies[name] = _latency([one.latencies[name] for one in repetitions], estimate)
        latencies[name] = replace(latencies[name], change=change)
    stops = {one.stop for one in repetitions}
    return replace(
        first,
        latencies=latencies,
        noise_floor=control.interval,
        control_ratio=control.ratio,
        stop=next((stop for stop in (Stop.TIME, Stop.ROUNDS) if stop in stops), Stop.PRECISION),
        elapsed_s=sum(one.elapsed_s for one in repetitions),
        order=(),
        blocks_ms={},
        warnings=tuple(_warnings(repetitions, control)),
        processes=tuple(repetitions),
        variations={
            name: Variation(
                tuple(one.latencies[name].ratio for one in repetitions), combined[name].within, combined[name].between
            )
            for name in first.latencies
            if name in combined
        },
    )


def _combined(repetitions: Sequence[Timings], label: str) -> Combined:
    estimates = [_of_blocks(one, label) for one in repetitions]
    means = np.log([estimate.ratio for estimate in estimates])
    return combine(means, np.array([estimate.log_error for estimate in estimates], np.float64))


def _of_blocks(timings: Timings, label: str) -> RatioEstimate:
    medians = {name: np.array(values, np.float64) for name, values in timings.blocks_ms.items()}
    return ratio_of_pairs(pairs_of(medians, label, timings.reference), timings.settings.seed)


def _estimate(combined: Combined) -> RatioEstimate:
    intervals = []
    for confidence in (CONFIDENCE, EQUIVALENCE_CONFIDENCE):
        low, high = combined.bounds(confidence)
        intervals.append(Interval(math.exp(low), math.exp(high), confidence))
    return RatioEstimate(math.exp(combined.mean), intervals[0], intervals[1], combined.error)


def _unity() -> RatioEstimate:
    """The reference's ratio to itself."""
    return RatioEstimate(1.0, Interval(1.0, 1.0, CONFIDENCE), Interval(1.0, 1.0, EQUIVALENCE_CONFIDENCE), 0.0)


def _latency(parts: Sequence[Latency], estimate: RatioEstimate) -> Latency:
    def median(value: Callable[[Latency], float | None]) -> float | None:
        values = [found for part in parts if (found := value(part)) is not None]
        return float(np.median(values)) if len(values) == len(parts) else None

    def known(value: Callable[[Latency], float]) -> float:
        return float(np.median([value(part) for part in parts]))

    outliers = [part.outliers for part in parts if part.outliers is not None]
    return replace(
        parts[0],
        n_calls=sum(part.n_calls for part in parts),
        median_ms=known(lambda part: part.median_ms),
        p90_ms=known(lambda part: part.p90_ms),
        p99_ms=median(lambda part: part.p99_ms),
        throughput_per_s=known(lambda part: part.throughput_per_s),
        ratio=estimate.ratio,
        ratio_interval=estimate.interval,
        p95_ms=median(lambda part: part.p95_ms),
        mean_ms=median(lambda part: part.mean_ms),
        q1_ms=median(lambda part: part.q1_ms),
        q3_ms=median(lambda part: part.q3_ms),
        median_interval=None,
        p90_interval=None,
        p95_interval=None,
        p99_interval=None,
        outliers=Outliers(
            low_severe=sum(one.low_severe for one in outliers),
            low_mild=sum(one.low_mild for one in outliers),
            high_mild=sum(one.high_mild for one in outliers),
            high_severe=sum(one.high_severe for one in outliers),
        ),
        equivalence_interval=estimate.equivalence_interval,
        log_error=estimate.log_error,
        n_blocks=sum(part.n_blocks for part in parts),
        stationary=all(part.stationary is not False for part in parts),
    )


def _warnings(repetitions: Sequence[Timings], control: RatioEstimate) -> list[TimingWarning]:
    """Those of the repetitions with their numbers; noise is judged by the combined control alone."""
    noise = noise_of(control, repetitions[0].settings)
    found = [] if noise is None else [TimingWarning(TimingCode.NOISY_MACHINE, noise)]
    for number, one in enumerate(repetitions, 1):
        found += [
            replace(warning, message=f"process {number}: {warning.message}")
            for warning in one.warnings
            if warning.code is not TimingCode.NOISY_MACHINE
        ]
    return found
