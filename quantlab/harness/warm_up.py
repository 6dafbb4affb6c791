"""Warm-up of an engine by a fixed rule, and the check that its times have settled."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantlab.harness.blocks import Timer, first_boundary
from quantlab.harness.timings import LatencySettings, WarmUp

Floats = NDArray[np.float64]

QUARTILE_TOLERANCE, MEAN_TOLERANCE = 0.05, 0.10
"""Shares by which quartiles and mean of the two halves may differ; pyperf's, for the calibration of its warm-ups."""
_MOST_TIMINGS = 10_000_000


def warm_up(timer: Timer, settings: LatencySettings) -> tuple[WarmUp, float]:
    """Call until warm, then check for as long again; a check that fails is made once more.

    The rule is fixed before and not adapted to what is seen, because runs with warm-ups of different length compare
    badly.

    Returns:
        What was done, and the median of the last check in nanoseconds a call.
    """
    done = [_run(timer, settings)]
    done.append(_run(timer, settings))
    extended = not is_stationary(done[-1])
    if extended:
        done.append(_run(timer, settings))
    timings = np.concatenate(done)
    calls = timer.calls_per_timing
    record = WarmUp(len(timings) * calls, float(np.sum(timings)) * calls / 1e6, extended, is_stationary(done[-1]))
    return record, float(np.median(done[-1]))


def is_stationary(values: Floats) -> bool:
    """Whether the quartiles of the first half are within 5 % of those of the second half, and the mean within 10 %.

    Args:
        values: Timings in the order in which they were made; of an odd number the first is left out.
    """
    if len(values) < 2:
        return True
    first, second = np.split(values[len(values) % 2 :], 2)
    spreads = [(np.quantile(half, 0.25), np.quantile(half, 0.75), np.mean(half)) for half in (first, second)]
    tolerances = (QUARTILE_TOLERANCE, QUARTILE_TOLERANCE, MEAN_TOLERANCE)
    return all(
        abs(before - after) <= tolerance * after for before, after, tolerance in zip(*spreads, tolerances, strict=True)
    )


def _run(timer: Timer, settings: LatencySettings) -> Floats:
    """Timings of at least the warm-up's time and calls."""
    least_ns = settings.warmup_ms * 1e6 / timer.calls_per_timing
    parts = [first_boundary(timer.time(max(1, math.ceil(settings.warmup_calls / timer.calls_per_timing))))]
    made, passed = len(parts[0]), float(np.sum(parts[0]))
    while passed < least_ns and made < _MOST_TIMINGS:
        typical = max(passed / made, 1.0)
        parts.append(first_boundary(timer.time(max(1, min(made, math.ceil((least_ns - passed) / typical))))))
        made, passed = made + len(parts[-1]), passed + float(np.sum(parts[-1]))
    return np.concatenate(parts)
