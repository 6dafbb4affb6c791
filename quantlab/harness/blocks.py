"""Blocks of calls, in rounds whose order is drawn at random and then reversed, until precise enough or out of time."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import MeasurementError
from quantlab.harness.clocks import Clock, Watch
from quantlab.harness.timings import LatencySettings, Stop
from quantlab.statistics.ratio import half_width, ratio_of_pairs

Floats = NDArray[np.float64]

Seek = Callable[[int], object]
"""Told before each block, untimed, with the number of its first call: one for all blocks of a round, so that engines
that are fed from a stream get the same part of it."""

MIN_BLOCKS = 20
"""Blocks of each engine below which intervals are coarse, and timing never stops for precision."""
_CHECK_GROWTH = 1.25
_CHECK_RESAMPLES = 500
_MOST_JUMPS = 5


class Timer(Protocol):
    """Times calls of one engine by some clock, at one boundary or at several at once."""

    @property
    def calls_per_timing(self) -> int:
        """Calls between two readings of the clock."""
        ...

    def time(self, timings: int) -> Floats:
        """Make ``timings * calls_per_timing`` calls.

        Returns:
            Nanoseconds of one call, float64 of shape (timings,), or (boundaries, timings) of a timer that sees several
            in the same calls. The first is the one that the warm-up, the blocks' sizes and the precision go by.
        """
        ...


def first_boundary(durations: Floats) -> Floats:
    """Of what a `Timer` returns, the timings of the first boundary."""
    first: Floats = np.atleast_2d(durations)[0]
    return first


class HostTimer:
    """Times a function by the host's clock."""

    def __init__(self, call: Callable[[], object], clock: Clock, calls_per_timing: int = 1) -> None:
        self._call = call
        self._clock = clock
        self.calls_per_timing = calls_per_timing

    def time(self, timings: int) -> Floats:
        """See `Timer`."""
        now, call = self._clock.now, self._call
        durations: list[int] = []
        if self.calls_per_timing == 1:
            for _ in range(timings):
                start = now()
                call()
                durations.append(now() - start)
        else:
            loop = range(self.calls_per_timing)
            for _ in range(timings):
                start = now()
                for _ in loop:
                    call()
                durations.append(now() - start)
        return np.array(durations, np.float64) / self.calls_per_timing


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rounds gave at one boundary.

    Attributes:
        order: See `quantlab.harness.timings.Timings`.
        medians_ns: Of the blocks, by label one a round.
        timings_ns: Every timing, by label.
        stop: Why it stopped.
        elapsed_s: From start to stop.
        jumps: Pairs of rounds that were left out because the clock jumped.
    """

    order: tuple[tuple[int, ...], ...]
    medians_ns: Mapping[str, Floats]
    timings_ns: Mapping[str, Floats]
    stop: Stop
    elapsed_s: float
    jumps: int


def pairs_of(medians_ns: Mapping[str, Floats], label: str, reference: str) -> Floats:
    """Log-ratios of a label's blocks to the reference's, shape (pairs of rounds, 2)."""
    logs: Floats = np.log(medians_ns[label]) - np.log(medians_ns[reference])
    return logs.reshape(-1, 2)


def measure(
    timers: Mapping[str, Timer],
    sizes: Mapping[str, int],
    reference: str,
    settings: LatencySettings,
    clock: Clock,
    seek: Seek | None = None,
) -> tuple[Measured, ...]:
    """Time blocks until one of the limits is reached.

    Args:
        timers: By label, the control's included.
        sizes: Timings in a block, by label. A block of more than one is led in by one that is not counted: the caches
            are still another engine's.
        reference: Label that precision is judged against.
        settings: Limits and seed.
        clock: The host's.
        seek: See `Seek`; all ``sizes`` are then equal, and so are the calls in a timing.

    Returns:
        One for each boundary that the timers see, all of the same rounds.

    Raises:
        MeasurementError: If the clock goes backwards, or jumps again and again.
    """
    rounds = _Rounds(timers, sizes, clock, seek)
    generator = np.random.default_rng(settings.seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock.now()
        next_check = MIN_BLOCKS
        while True:
            made = len(rounds.order)
            elapsed = (clock.now() - start) / 1e9
            stop = _limit(made, elapsed, settings)
            if stop is None and made >= next_check and elapsed >= min(settings.least_seconds, settings.seconds):
                next_check = max(made + 2, int(made * _CHECK_GROWTH))
                stop = Stop.PRECISION if _precise(rounds.medians(0), reference, settings) else None
            if stop is not None:
                order = tuple(rounds.order)
                return tuple(
                    Measured(order, rounds.medians(number), rounds.timings(number), stop, elapsed, rounds.jumps)
                    for number in range(rounds.boundaries)
                )
            rounds.pair([int(index) for index in generator.permutation(len(timers))])
    finally:
        if collecting:
            gc.enable()


def _limit(made: int, elapsed: float, settings: LatencySettings) -> Stop | None:
    if made + 2 > max(settings.max_rounds, 2):
        return Stop.ROUNDS
    per_pair = elapsed / made * 2 if made else 0.0
    if made >= settings.min_rounds and elapsed + per_pair > settings.seconds:
        return Stop.TIME
    return None


def _precise(medians_ns: Mapping[str, Floats], reference: str, settings: LatencySettings) -> bool:
    """Whether every ratio is precise enough; asked seldom, so that stopping at a lucky moment stays rare."""
    if settings.half_width <= 0.0:
        return False
    return all(
        half_width(ratio_of_pairs(pairs_of(medians_ns, label, reference), settings.seed, _CHECK_RESAMPLES).interval)
        <= settings.half_width
        for label in medians_ns
        if label != reference
    )


class _Rounds:
    """Blocks of all rounds so far."""

    def __init__(
        self, timers: Mapping[str, Timer], sizes: Mapping[str, int], clock: Clock, seek: Seek | None = None
    ) -> None:
        self._timers = tuple(timers.values())
        self._labels = tuple(timers)
        self._sizes = tuple(sizes[label] for label in timers)
        self._clock = clock
        self._seek = seek
        self._expected: dict[int, float] = {}
        self._blocks: list[list[Floats]] = [[] for _ in timers]
        self._medians: list[list[Floats]] = [[] for _ in timers]
        self.order: list[tuple[int, ...]] = []
        self.jumps = 0
        self.boundaries = 1

    def pair(self, order: Sequence[int]) -> None:
        """Time a round and its reverse; both are left out if the clock jumps in between."""
        made: list[tuple[int, Floats]] = []
        for turn, index in enumerate((*order, *reversed(order))):
            timer, size = self._timers[index], self._sizes[index]
            if self._seek is not None:
                made_before = len(self.order) + turn // len(order)
                self._seek(made_before * (size + (size > 1)) * timer.calls_per_timing)
            watch = Watch(self._clock)
            if size > 1:
                timer.time(1)
            block = np.atleast_2d(timer.time(size))
            typical = timer.calls_per_timing * float(np.median(block[0]))
            self._expected[index] = min(self._expected.get(index, math.inf), typical)
            # From a stream, one sample may well take twenty times another: then only a suspension is told apart.
            expected = self._expected[index] * (size + 1) if self._seek is None else math.inf
            if watch.jumped(block, expected):
                self.jumps += 1
                if self.jumps > max(_MOST_JUMPS, len(self.order) // 2):
                    raise MeasurementError(
                        "the clock jumps again and again, so nothing can be timed here",
                        got=f"{self.jumps} jumps in {len(self.order)} rounds",
                        hint="keep the machine from sleeping, or measure where processes are not stopped for seconds",
                    )
                return
            made.append((index, block))
        for index, block in made:
            medians = np.median(block, axis=1)
            if not np.all(medians > 0.0):
                raise MeasurementError(
                    f"a call of {self._labels[index]} takes no time by the clock",
                    got=f"{np.min(medians):g} ns",
                    expected="above 0",
                )
            self.boundaries = len(block)
            self._blocks[index].append(block)
            self._medians[index].append(medians)
        self.order += [tuple(order), tuple(reversed(order))]

    def medians(self, boundary: int) -> dict[str, Floats]:
        """Median of each block at one boundary, by label."""
        return {
            label: np.array([median[boundary] for median in medians], np.float64)
            for label, medians in zip(self._labels, self._medians, strict=True)
        }

    def timings(self, boundary: int) -> dict[str, Floats]:
        """All timings at one boundary, by label."""
        return {
            label: np.concatenate([block[boundary] for block in blocks]) if blocks else np.empty(0, np.float64)
            for label, blocks in zip(self._labels, self._blocks, strict=True)
        }
