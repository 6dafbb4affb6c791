"""Latency of engines against each other, with the reference timed against itself as a control.

Every round times one block of calls of each engine, and of the reference a second time, in an order drawn at random
and reversed in the next round (ABBA), so that slow drift of the machine cancels. Ratios are taken within a round.
The protocol is told in docs/latency.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.blocks import MIN_BLOCKS, HostTimer, Measured, Seek, Timer, measure, pairs_of
from quantlab.harness.clocks import SYSTEM_CLOCK, Clock, resolution_ns
from quantlab.harness.measurement import Boundary, Change, Latency, Outliers
from quantlab.harness.outliers import classify_outliers
from quantlab.harness.timings import (
    CONTROL,
    LatencySettings,
    Stop,
    TimingCode,
    Timings,
    TimingWarning,
    WarmUp,
)
from quantlab.harness.warm_up import warm_up
from quantlab.statistics.interval import Interval
from quantlab.statistics.percentile import percentile_interval
from quantlab.statistics.ratio import RatioEstimate, half_width, ratio_of_pairs

__all__ = [
    "CALLS_FOR_P99",
    "CONTROL",
    "LatencySettings",
    "Stop",
    "Timings",
    "time_blocks",
    "time_boundaries",
    "time_engines",
]

Floats = NDArray[np.float64]

CALLS_FOR_P99 = 459
RESOLUTION_FACTOR = 1000
"""Least length of what is timed, in steps of the clock: the clock then adds at most 0.1 %."""
_MOST_LOOPS = 1 << 17
_ASYMMETRY_FACTOR, _ASYMMETRY_SHARE = 3.0, 0.01


def time_engines(
    calls: Mapping[str, Callable[[], object]],
    reference: str,
    batch_size: int,
    settings: LatencySettings,
    *,
    boundary: Boundary = Boundary.HOST,
    clock: Clock = SYSTEM_CLOCK,
) -> Timings:
    """Time ``calls`` against each other by the host's clock.

    Args:
        calls: One call of each engine on fixed input, by variant name.
        reference: Name of the engine that ratios are taken to.
        batch_size: Samples in a call.
        settings: Budget and seed.
        boundary: What a call spans.
        clock: The host's, or a test's.

    Raises:
        MeasurementError: If ``reference`` is not among ``calls``, the clock cannot be believed, or an engine fails.
        ConfigError: If a setting makes no sense.
    """
    _check(calls, reference, settings)
    resolution = resolution_ns(clock)
    least_ns = RESOLUTION_FACTOR * resolution
    timers = {name: HostTimer(call, clock, calls_per_timing(call, clock, least_ns)) for name, call in calls.items()}
    return _time(timers, reference, batch_size, settings, (boundary,), clock, resolution)[boundary]


def time_blocks(
    timers: Mapping[str, Timer],
    reference: str,
    batch_size: int,
    settings: LatencySettings,
    boundary: Boundary,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> Timings:
    """The same with timers of any kind, such as CUDA events for `Boundary.DEVICE`; see `time_engines`."""
    return time_boundaries(timers, reference, batch_size, settings, (boundary,), clock=clock)[boundary]


def time_boundaries(
    timers: Mapping[str, Timer],
    reference: str,
    batch_size: int,
    settings: LatencySettings,
    boundaries: Sequence[Boundary],
    *,
    clock: Clock = SYSTEM_CLOCK,
    resolution: float = math.nan,
    seek: Seek | None = None,
) -> dict[Boundary, Timings]:
    """The same with timers that see several boundaries of the same calls: one measurement, one result a boundary.

    Args:
        timers: See `Timer`; all see ``boundaries``, in that order.
        reference: See `time_engines`, as the rest.
        batch_size: Samples in a call.
        settings: Budget and seed; warm-up, length of blocks and precision are those of the first boundary.
        boundaries: What the timers see.
        clock: The host's, which the budget goes by.
        resolution: Step of the clock that the timers read, in nanoseconds; NaN where it is not known.
        seek: See `Seek`; blocks of all engines then have the same number of calls.

    Raises:
        MeasurementError: As for `time_engines`.
        ConfigError: If a setting makes no sense.
    """
    _check(timers, reference, settings)
    return _time(timers, reference, batch_size, settings, boundaries, clock, resolution, seek)


def change_of(estimate: RatioEstimate, control: RatioEstimate, settings: LatencySettings) -> Change:
    """The word for a ratio.

    Where the control says that the machine is too noisy, a difference counts only if it is larger, as a factor, than
    the largest that the control's interval holds in either direction, and nothing is equivalent.
    """
    noisy = noise_of(control, settings) is not None
    allowed = _largest_factor(control.interval) if noisy else 1.0
    if estimate.interval.high < 1.0 / allowed:
        return Change.FASTER
    if estimate.interval.low > allowed:
        return Change.SLOWER
    equivalence = estimate.equivalence_interval
    if not noisy and equivalence.low >= 1.0 - settings.margin and equivalence.high <= 1.0 + settings.margin:
        return Change.EQUIVALENT
    return Change.INCONCLUSIVE


def noise_of(control: RatioEstimate, settings: LatencySettings) -> str | None:
    """Why the machine is too noisy, in words; None if the control has nothing against it."""
    interval = control.interval
    shown = f"{interval.low:.3f} to {interval.high:.3f}"
    if half_width(interval) > settings.noise_bound:
        return (
            f"the machine is too noisy: the reference against itself is known to {shown} only, "
            f"wider than +-{100.0 * settings.noise_bound:g} %; differences of {_percent(interval)} mean nothing here"
        )
    if interval.low > 1.0 or interval.high < 1.0:
        return (
            f"the reference differs from itself ({shown}), which happens by chance in one of twenty runs: differences "
            f"up to {_percent(interval)} mean nothing here"
        )
    return None


def _percent(interval: Interval) -> str:
    factor = _largest_factor(interval)
    return f"{100.0 * (factor - 1.0):.1f} %" if math.isfinite(factor) else "any size"


def _largest_factor(interval: Interval) -> float:
    """A ratio of one half is as far from 1 as one of 2."""
    return max(interval.high, 1.0 / interval.low) if interval.low > 0.0 else math.inf


def _check(names: Mapping[str, object], reference: str, settings: LatencySettings) -> None:
    if reference not in names:
        raise MeasurementError(f"no reference {reference!r} to time against", got=", ".join(names))
    if CONTROL in names:
        raise ConfigError(f"no engine can be named {CONTROL!r}", hint="that is the name of the control")
    for name in ("seconds", "warmup_ms", "block_ms", "half_width", "least_seconds", "margin", "noise_bound"):
        value = getattr(settings, name)
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"the timing setting {name} is out of range", got=value, expected="0 or more, finite")
    if settings.seed < 0:
        raise ConfigError("the timing setting seed is out of range", got=settings.seed, expected="0 or more")


def calls_per_timing(call: Callable[[], object], clock: Clock, least_ns: float) -> int:
    """Calls that take so long together; 1 if one does.

    Raises:
        MeasurementError: If calls take no time at all, however many.
    """
    calls = 1
    while True:
        took = float(np.min(HostTimer(call, clock, calls).time(3))) * calls  # the first may be cold
        if took >= least_ns or (calls == _MOST_LOOPS and took > 0.0):
            return calls
        if calls == _MOST_LOOPS:
            raise MeasurementError("calls take no time by the clock", got=f"{took:g} ns for {calls:,} calls")
        calls = min(_MOST_LOOPS, max(calls + 1, min(10 * calls, math.ceil(1.1 * calls * least_ns / max(took, 1.0)))))


def _time(
    timers: Mapping[str, Timer],
    reference: str,
    batch_size: int,
    settings: LatencySettings,
    boundaries: Sequence[Boundary],
    clock: Clock,
    resolution: float,
    seek: Seek | None = None,
) -> dict[Boundary, Timings]:
    block_ns = max(settings.block_ms * 1e6, 0.0 if math.isnan(resolution) else RESOLUTION_FACTOR * resolution)
    warm_ups: dict[str, WarmUp] = {}
    sizes: dict[str, int] = {}
    for name, timer in timers.items():
        if seek is not None:
            seek(0)
        warm_ups[name], typical = warm_up(timer, settings)
        sizes[name] = max(1, math.ceil(block_ns / (max(typical, 1.0) * timer.calls_per_timing)))
    if seek is not None:
        sizes = dict.fromkeys(sizes, max(sizes.values()))
    labelled = {**timers, CONTROL: timers[reference]}
    sizes[CONTROL] = sizes[reference]
    return {
        boundary: _timings(measured, labelled, reference, batch_size, settings, boundary, resolution, warm_ups)
        for boundary, measured in zip(
            boundaries, measure(labelled, sizes, reference, settings, clock, seek), strict=True
        )
    }


def _timings(
    measured: Measured,
    timers: Mapping[str, Timer],
    reference: str,
    batch_size: int,
    settings: LatencySettings,
    boundary: Boundary,
    resolution: float,
    warm_ups: Mapping[str, WarmUp],
) -> Timings:
    """The figures of one boundary; ``timers`` by label, the control's included."""
    estimates = {
        label: ratio_of_pairs(pairs_of(measured.medians_ns, label, reference), settings.seed) for label in timers
    }
    control = estimates[CONTROL]
    latencies = {
        name: _summary(
            measured.timings_ns[name] / 1e6,
            boundary,
            batch_size,
            estimates[name],
            None if name == reference else change_of(estimates[name], control, settings),
            n_blocks=len(measured.order),
            calls_per_timing=timer.calls_per_timing,
            stationary=warm_ups[name].stationary,
        )
        for name, timer in timers.items()
        if name != CONTROL
    }
    return Timings(
        latencies=latencies,
        noise_floor=control.interval,
        control_ratio=control.ratio,
        reference=reference,
        boundary=boundary,
        settings=settings,
        stop=measured.stop,
        elapsed_s=measured.elapsed_s,
        resolution_ns=resolution,
        labels=tuple(timers),
        order=measured.order,
        blocks_ms={label: tuple((medians / 1e6).tolist()) for label, medians in measured.medians_ns.items()},
        warm_ups=warm_ups,
        warnings=tuple(_warnings(latencies, reference, control, measured, settings)),
    )


def _summary(
    values_ms: Floats,
    boundary: Boundary,
    batch_size: int,
    estimate: RatioEstimate,
    change: Change | None,
    *,
    n_blocks: int,
    calls_per_timing: int,
    stationary: bool,
) -> Latency:
    ordered = np.sort(values_ms)
    q1, median, q3, p90, p95, p99 = (float(value) for value in np.quantile(ordered, [0.25, 0.5, 0.75, 0.9, 0.95, 0.99]))
    enough = len(ordered) >= CALLS_FOR_P99
    return Latency(
        boundary=boundary.words,
        batch_size=batch_size,
        n_calls=len(ordered) * calls_per_timing,
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99 if enough else None,
        throughput_per_s=batch_size * 1000.0 / median,
        ratio=estimate.ratio,
        ratio_interval=estimate.interval,
        p95_ms=p95,
        mean_ms=float(np.mean(ordered)),
        q1_ms=q1,
        q3_ms=q3,
        median_interval=percentile_interval(ordered, 0.5),
        p90_interval=percentile_interval(ordered, 0.9),
        p95_interval=percentile_interval(ordered, 0.95),
        p99_interval=percentile_interval(ordered, 0.99) if enough else None,
        outliers=classify_outliers(ordered),
        equivalence_interval=estimate.equivalence_interval,
        change=change,
        log_error=estimate.log_error,
        n_blocks=n_blocks,
        calls_per_timing=calls_per_timing,
        stationary=stationary,
    )


def _warnings(
    latencies: Mapping[str, Latency],
    reference: str,
    control: RatioEstimate,
    measured: Measured,
    settings: LatencySettings,
) -> list[TimingWarning]:
    found = []
    noise = noise_of(control, settings)
    if noise is not None:
        found.append(TimingWarning(TimingCode.NOISY_MACHINE, noise))
    if measured.jumps:
        message = (
            f"the machine was suspended or stood still {measured.jumps} times; the rounds in which it did are left out"
        )
        found.append(TimingWarning(TimingCode.CLOCK_JUMP, message))
    if len(measured.order) < MIN_BLOCKS:
        message = f"{len(measured.order)} blocks of each engine, {MIN_BLOCKS} make a good interval: measure longer"
        found.append(TimingWarning(TimingCode.FEW_BLOCKS, message))
    for name, latency in latencies.items():
        found += _warnings_of(name, latency, latencies[reference])
    return found


def _warnings_of(name: str, latency: Latency, reference: Latency) -> list[TimingWarning]:
    found = []
    if latency.stationary is False:
        message = f"times of {name} had not settled after its warm-up, which was extended once"
        found.append(TimingWarning(TimingCode.NOT_STATIONARY, message, name))
    if latency.calls_per_timing > 1:
        message = (
            f"calls of {name} are too short for the clock: each timing is the mean of {latency.calls_per_timing:,} "
            "calls, and percentiles are those of such means"
        )
        found.append(TimingWarning(TimingCode.LOOPED_CALLS, message, name))
    mine, theirs = _severe(latency), _severe(reference)
    if max(mine, theirs) >= _ASYMMETRY_SHARE and max(mine, theirs) > _ASYMMETRY_FACTOR * min(mine, theirs):
        message = (
            f"{100.0 * mine:.1f} % of the timings of {name} are far above the rest, {100.0 * theirs:.1f} % of the "
            "reference's: the ratio is that of typical calls, compare the percentiles too"
        )
        found.append(TimingWarning(TimingCode.OUTLIER_ASYMMETRY, message, name))
    return found


def _severe(latency: Latency) -> float:
    """Share of the timings that lie far above the rest."""
    outliers: Outliers | None = latency.outliers
    timings = latency.n_calls / latency.calls_per_timing
    return outliers.high_severe / timings if outliers is not None else 0.0
