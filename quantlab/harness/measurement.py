"""What timing an engine on the host's clock found."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.statistics.interval import Interval


@dataclass(frozen=True, slots=True)
class Latency:
    """Host latency of one call, from interleaved rounds.

    Attributes:
        boundary: What lies between start and stop of the clock.
        batch_size: Samples a call.
        n_calls: Timed calls.
        median_ms: Median of all calls.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; None with fewer than 459 calls (MLPerf LoadGen's count for p99).
        throughput_per_s: Samples a second at the median.
        ratio: Median of the paired round ratios variant/reference; below 1 is faster.
        ratio_interval: Bootstrap interval of ``ratio`` over rounds.
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
