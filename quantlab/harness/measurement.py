"""What timing an engine found: plain records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quantlab.statistics.interval import Interval


class Boundary(StrEnum):
    """What lies between start and stop of the clock."""

    HOST = "host"
    DEVICE = "device"
    ENQUEUE = "enqueue"
    TRANSFERS = "h2d+device+d2h"
    END_TO_END = "end-to-end"
    READING = "reading"

    @property
    def words(self) -> str:
        """For people."""
        return _BOUNDARIES[self]


_BOUNDARIES = {
    Boundary.HOST: "host: run() with inputs in memory to outputs in memory",
    Boundary.DEVICE: "device: execution on the GPU, by CUDA events",
    Boundary.ENQUEUE: "enqueue: the host's call that enqueues the execution",
    Boundary.TRANSFERS: "h2d+device+d2h: copy of the inputs to the GPU, execution, copy of the outputs back",
    Boundary.END_TO_END: "end-to-end: decoding, preprocessing, batching and run(), from files to outputs in memory",
    Boundary.READING: "reading: the part of end-to-end before run(), from files to inputs in memory",
}


class Change(StrEnum):
    """A variant's latency beside the reference's, in a word."""

    FASTER = "faster"
    """The 95 % interval of the ratio lies below 1."""
    SLOWER = "slower"
    """The 95 % interval lies above 1."""
    EQUIVALENT = "equivalent"
    """Neither, and the 90 % interval lies within 1 +- the margin (two one-sided tests at 5 %)."""
    INCONCLUSIVE = "inconclusive"
    """None of these, or the machine is too noisy for a difference of this size."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """Timings beyond Tukey's fences, which are kept in every figure.

    Attributes:
        low_severe: Below the first quartile by more than 3 interquartile ranges.
        low_mild: By more than 1.5, up to 3.
        high_mild: Above the third quartile by more than 1.5, up to 3.
        high_severe: By more than 3.
    """

    low_severe: int
    low_mild: int
    high_mild: int
    high_severe: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.low_severe + self.low_mild + self.high_mild + self.high_severe


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one call, from interleaved blocks. Intervals of percentiles are of 95 %.

    Attributes:
        boundary: What lies between start and stop of the clock, in words.
        batch_size: Samples a call.
        n_calls: Timed calls.
        median_ms: Median of all timings.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; None with fewer than 459 timings (MLPerf LoadGen's count for p99).
        throughput_per_s: Samples a second at the median.
        ratio: Variant over reference, from paired blocks; below 1 is faster.
        ratio_interval: Of 95 %.
        p95_ms: 95th percentile.
        mean_ms: Mean.
        q1_ms: First quartile.
        q3_ms: Third quartile.
        median_interval: From order statistics; as the three below None where there are too few timings.
        p90_interval: See above.
        p95_interval: See above.
        p99_interval: See above.
        outliers: Timings beyond Tukey's fences.
        equivalence_interval: Interval of ``ratio`` of 90 %.
        change: The word for it; None for the reference itself.
        log_error: Standard error of the natural logarithm of ``ratio``.
        n_blocks: Blocks behind ``ratio``.
        calls_per_timing: Calls between two readings of the clock; above 1 a timing is the mean of so many calls,
            because one call is too short for the clock, and percentiles are those of such means.
        stationary: Whether times were settled after the warm-up; None if not known.
    """

    boundary: str
    batch_size: int
    n_calls: int
    median_ms: float
    p90_ms: float
    p99_ms: float | None
    throughput_per_s: float
    ratio: float
    ratio_interval: Interval
    p95_ms: float | None = None
    mean_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    median_interval: Interval | None = None
    p90_interval: Interval | None = None
    p95_interval: Interval | None = None
    p99_interval: Interval | None = None
    outliers: Outliers | None = None
    equivalence_interval: Interval | None = None
    change: Change | None = None
    log_error: float | None = None
    n_blocks: int = 0
    calls_per_timing: int = 1
    stationary: bool | None = None
