"""trtexec's figures, against values computed by hand from its definitions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from quantlab.engines.tensorrt.timing import DeviceTimes, TimingSettings, Trace, device_times, without_warmup
from quantlab.errors import MeasurementError
from quantlab.harness.trtexec import device_figures, percentile, spread


def times(compute: list[float], **values: object) -> DeviceTimes:
    n = len(compute)
    made = DeviceTimes(
        h2d_ms=np.full(n, 0.25),
        compute_ms=np.array(compute, np.float64),
        d2h_ms=np.full(n, 0.125),
        enqueue_ms=np.full(n, 0.5),
        walltime_ms=20.0,
        warmup_queries=3,
        batch_size=8,
        settings=TimingSettings(),
        load_ms=40.0,
        first_run_ms=90.0,
    )
    return dataclasses.replace(made, **values)  # type: ignore[arg-type]


class TestSpread:
    def test_by_hand(self) -> None:
        """Mean 3; deviations -2, -1, 0, 1, 2: variance 10 / 5 = 2."""
        found = spread(np.array([3.0, 1.0, 5.0, 2.0, 4.0]))
        assert (found.min_ms, found.max_ms, found.mean_ms, found.median_ms) == (1.0, 5.0, 3.0, 3.0)
        assert found.variation_percent == pytest.approx(100 * math.sqrt(2) / 3)

    def test_median_of_an_even_number(self) -> None:
        assert spread(np.array([4.0, 1.0, 2.0, 10.0])).median_ms == 3.0

    def test_all_zero(self) -> None:
        """Copies that are not made: trtexec's variation is infinite there."""
        found = spread(np.zeros(3))
        assert (found.max_ms, found.median_ms) == (0.0, 0.0)
        assert math.isinf(found.variation_percent)

    def test_none(self) -> None:
        with pytest.raises(MeasurementError, match="without a timed query"):
            spread(np.zeros(0))


class TestPercentile:
    @pytest.mark.parametrize(
        ("n", "percentage", "rank"),
        [
            (10, 90.0, 9),  # one of ten is passed over: in single precision (1 - 0.9) * 10 is above 1
            (10, 95.0, 10),  # half a value is none
            (100, 99.0, 100),  # but here (1 - 0.99) * 100 is below 1
            (100, 95.0, 95),
            (7, 0.0, 1),
            (7, 100.0, 7),
            (1, 50.0, 1),
            (3, 50.0, 2),
            (4, 50.0, 2),  # not between the second and the third
        ],
    )
    def test_is_an_observed_value(self, n: int, percentage: float, rank: int) -> None:
        assert percentile(np.arange(1.0, n + 1.0), percentage) == rank

    @pytest.mark.parametrize("percentage", [-1.0, 100.5, float("nan")])
    def test_out_of_range(self, percentage: float) -> None:
        with pytest.raises(MeasurementError, match="percentile is out of range"):
            percentile(np.ones(3), percentage)


class TestFigures:
    def test_by_hand(self) -> None:
        found = device_figures(times([2.0, 2.0, 2.0, 2.0]))
        assert (found.queries, found.warmup_queries, found.batch_size) == (4, 3, 8)
        assert found.latency.mean_ms == pytest.approx(2.375), "0.25 + 2 + 0.125"
        assert found.throughput_qps == pytest.approx(200.0), "4 queries in 20 ms"
        assert found.samples_per_s == pytest.approx(1600.0)
        assert found.walltime_s == pytest.approx(0.02)
        assert found.total_compute_s == pytest.approx(0.008)
        assert (found.load_ms, found.first_run_ms) == (40.0, 90.0)
        assert found.warnings == ()
        assert (found.compute.p90_ms, found.compute.p95_ms, found.compute.p99_ms) == (2.0, 2.0, 2.0)

    def test_latency_is_of_each_query(self) -> None:
        """The largest latency is that of one query, not the sum of the largest parts."""
        found = device_figures(times([1.0, 3.0], h2d_ms=np.array([2.0, 0.5]), d2h_ms=np.array([0.0, 0.0])))
        assert (found.latency.min_ms, found.latency.max_ms) == (3.0, 3.5)

    def test_without_transfers_latency_is_compute(self) -> None:
        zero = np.zeros(2)
        settings = TimingSettings(transfers=False, use_graph=True)
        found = device_figures(times([1.0, 1.5], h2d_ms=zero, d2h_ms=zero, settings=settings))
        assert dataclasses.asdict(found.latency) == dataclasses.asdict(found.compute)
        assert (found.transfers, found.graph) == (False, True)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"enqueue_ms": np.full(4, 1.601)}, ["the GPU may wait for the host; a CUDA graph"]),
            ({"enqueue_ms": np.full(4, 1.6)}, []),  # 0.8 times 2 is not above the limit
            ({"h2d_ms": np.full(4, 2.0)}, ["copying the inputs"]),
            ({"d2h_ms": np.full(4, 2.0)}, ["copying the outputs"]),
            ({"h2d_ms": np.full(4, 1.999)}, []),
            ({"compute_ms": np.array([1.94, 2.06, 1.94, 2.06])}, ["unstable: its coefficient of variation is 3.0 %"]),
            ({"compute_ms": np.array([1.96, 2.04, 1.96, 2.04])}, []),  # 2 %
        ],
    )
    def test_warnings_at_their_thresholds(self, values: dict[str, object], words: list[str]) -> None:
        found = device_figures(times([2.0] * 4, **values)).warnings
        assert len(found) == len(words)
        for text, word in zip(found, words, strict=True):
            assert word in text

    def test_with_a_graph_it_is_not_advised(self) -> None:
        settings = TimingSettings(use_graph=True)
        (text,) = device_figures(times([2.0], enqueue_ms=np.array([3.0]), settings=settings)).warnings
        assert "graph" not in text

    @pytest.mark.parametrize("values", [{"compute_ms": np.zeros(0)}, {"walltime_ms": 0.0}])
    def test_nothing_timed(self, values: dict[str, object]) -> None:
        with pytest.raises(MeasurementError, match="without a timed query"):
            device_figures(times([1.0], **values))


def trace(compute_start_ms: float) -> Trace:
    return Trace(compute_start_ms - 0.5, compute_start_ms, compute_start_ms + 3.0, 0.5, 2.0, 1.0, 0.25)


class TestWarmup:
    def test_queries_whose_compute_began_in_the_warmup_are_left_out(self) -> None:
        traces = [trace(start) for start in (1.0, 9.9, 10.0, 14.0)]
        settings = TimingSettings(warmup_ms=10.0)
        assert without_warmup(traces, settings) == traces[2:]
        found = device_times(traces, settings, batch_size=4, load_ms=1.0, first_run_ms=2.0)
        assert (found.warmup_queries, len(found.compute_ms)) == (2, 2)
        assert found.walltime_ms == 17.0 - 9.5
        assert (found.h2d_ms[0], found.compute_ms[0], found.d2h_ms[0], found.enqueue_ms[0]) == (0.5, 2.0, 1.0, 0.25)

    def test_only_warmup(self) -> None:
        with pytest.raises(MeasurementError, match="after the warm-up"):
            without_warmup([trace(1.0)], TimingSettings(warmup_ms=10.0))
