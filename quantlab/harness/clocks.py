"""The host's clock: how fine it is, and whether it can be believed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import MeasurementError

Floats = NDArray[np.float64]

_TICKS = 1000
_READS = 100_000
_SUSPENDED_NS = 100_000_000
_GAP_NS = 1_000_000_000
_GAP_FACTOR = 20


def _boot_time() -> int:
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux alone
    return time.clock_gettime_ns(clock) if clock is not None else time.perf_counter_ns()


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks in nanoseconds.

    Attributes:
        now: Durations are differences of it.
        boot: One that goes on while the machine is suspended, where ``now`` stands still.
        step_ns: Smallest step of ``now``; measured where it is not known.
    """

    now: Callable[[], int] = time.perf_counter_ns
    boot: Callable[[], int] = _boot_time
    step_ns: float | None = None


SYSTEM_CLOCK = Clock()


def resolution_ns(clock: Clock) -> float:
    """Smallest step of the clock that a program sees: the least difference of two readings that differ.

    A clock that does not move while it is read often enough is taken for as fine as the system says.
    """
    if clock.step_ns is not None:
        return clock.step_ns
    steps: list[int] = []
    last = clock.now()
    for _ in range(_READS):
        reading = clock.now()
        if reading != last:
            steps.append(abs(reading - last))
            last = reading
            if len(steps) == _TICKS:
                break
    return float(min(steps)) if steps else time.get_clock_info("perf_counter").resolution * 1e9


class Watch:
    """Looks whether the clock jumped while a block was timed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = clock.now()
        self._boot = clock.boot()

    def jumped(self, durations_ns: Floats, expected_ns: float) -> bool:
        """Whether the machine was suspended or stood still since the watch began.

        Args:
            durations_ns: What the block's timings were.
            expected_ns: What the whole block should have taken.

        Returns:
            Whether more than 0.1 s are missing from the clock, or the block took 20 times its time and a second more.

        Raises:
            MeasurementError: If the clock went backwards: then none of its readings can be believed.
        """
        passed = self._clock.now() - self._now
        if passed < 0 or (len(durations_ns) and float(np.min(durations_ns)) < 0.0):
            step = min(float(passed), float(np.min(durations_ns, initial=0.0)))
            raise MeasurementError(
                "the clock went backwards while an engine was timed",
                got=f"{step / 1e6:.3f} ms",
                expected="a clock that never goes back",
                hint="measure on a machine whose monotonic clock works; some virtual machines' does not",
            )
        missing = self._clock.boot() - self._boot - passed
        return missing > _SUSPENDED_NS or passed > _GAP_NS + _GAP_FACTOR * expected_ns
