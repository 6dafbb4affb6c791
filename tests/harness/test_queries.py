"""Queries one after the other on a clock that the test turns, and trtexec's summary of them by hand."""

from __future__ import annotations

import dataclasses
import gc
import threading

import numpy as np
import pytest

from quantlab.engines.tensorrt.timing import DeviceTimes, TimingSettings, Trace, device_times
from quantlab.errors import MeasurementError
from quantlab.harness.caution import CautionCode
from quantlab.harness.queries import (
    HOST_CLOCK,
    HostLoop,
    QueryTimes,
    file_figures,
    gpu_figures,
    host_figures,
    merged,
    time_host,
    traced_times,
)
from quantlab.harness.trtexec import device_figures


class Clock:
    """A clock in nanoseconds that moves only when it is told to, and by ``tick`` at each reading."""

    def __init__(self, tick: int = 0) -> None:
        self.now = 1_000_000
        self.tick = tick

    def __call__(self) -> int:
        self.now += self.tick
        return self.now

    def call(self, *milliseconds: float) -> None:
        self.now += int(milliseconds[0] * 1e6)


class TestHostLoop:
    def test_until_time_and_count_are_both_reached(self) -> None:
        """4 ms a query: 5 in a warm-up of 20 ms, then 25 in 100 ms."""
        clock = Clock()
        times, warmup = time_host(lambda: clock.call(4.0), HostLoop(0.1, warmup_ms=20.0), clock)
        assert (warmup, len(times.latency_ms)) == (5, 25)
        np.testing.assert_allclose(times.latency_ms, 4.0)
        np.testing.assert_allclose(times.start_compute_ms[:2], [20.0, 24.0])
        np.testing.assert_allclose(times.end_d2h_ms, times.start_h2d_ms + 4.0)

    def test_slow_queries_are_made_ten_times(self) -> None:
        clock = Clock()
        times, warmup = time_host(lambda: clock.call(500.0), HostLoop(0.1, warmup_ms=200.0), clock)
        assert (warmup, len(times.latency_ms)) == (1, 10)

    def test_at_least_one_without_a_time(self) -> None:
        clock = Clock()
        times, warmup = time_host(lambda: clock.call(3.0), HostLoop(0.0, warmup_ms=0.0, iterations=0), clock)
        assert (warmup, len(times.latency_ms)) == (0, 1)

    def test_callers_run_at_once(self) -> None:
        """Two callers that wait for each other in every query cannot end one after the other."""
        together = threading.Barrier(2, timeout=10)
        clock = Clock(tick=1_000_000)
        times, warmup = time_host(
            lambda: together.wait(), HostLoop(0.0, warmup_ms=0.0, iterations=20, streams=2), clock
        )
        assert (warmup, len(times.latency_ms)) == (0, 40)
        assert np.all(np.diff(times.start_compute_ms) >= 0), "in the order of their start"

    @pytest.mark.parametrize("streams", [1, 3])
    def test_a_failing_engine_ends_it(self, streams: int) -> None:
        calls = []
        threads = threading.active_count()

        def fail() -> None:
            calls.append(1)
            if len(calls) > 5:
                raise MeasurementError("engine is broken")

        with pytest.raises(MeasurementError, match="engine is broken"):
            time_host(fail, HostLoop(60.0, streams=streams))
        assert gc.isenabled()
        assert threading.active_count() == threads, "nobody goes on"

    def test_garbage_collection_is_off_meanwhile(self) -> None:
        seen = []
        clock = Clock(tick=10_000_000)
        time_host(lambda: seen.append(gc.isenabled()), HostLoop(0.0, warmup_ms=0.0), clock)
        assert not any(seen) and gc.isenabled()


def times(start: list[float], spent: list[float]) -> QueryTimes:
    begin, whole = np.array(start), np.array(spent)
    zero = np.zeros(len(begin))
    return QueryTimes(begin, begin + whole, begin, begin, begin, begin + whole, begin + whole, begin + whole,
                      zero, whole, zero, whole)  # fmt: skip


class TestHostFigures:
    def test_by_hand(self) -> None:
        """Two callers: queries at 0, 1, 4, 5 ms of 4, 2, 4, 5 ms end at 10 ms: 4 queries of 8 in 10 ms."""
        found = host_figures(times([0.0, 1.0, 4.0, 5.0], [4.0, 2.0, 4.0, 5.0]), 3, 8, 2)
        assert (found.clock, found.queries, found.warmup_queries, found.streams) == (HOST_CLOCK, 4, 3, 2)
        assert found.walltime_s == pytest.approx(0.010)
        assert found.throughput_qps == pytest.approx(400.0)
        assert found.samples_per_s == pytest.approx(3200.0)
        assert (found.latency.min_ms, found.latency.median_ms, found.latency.max_ms) == (2.0, 4.0, 5.0)
        assert (found.h2d, found.compute, found.d2h, found.enqueue, found.graph, found.transfers) == (None,) * 6

    def test_of_what_trtexec_warns_only_callers_concern_the_host(self) -> None:
        wild = times([0.0, 1.0, 4.0, 5.0], [4.0, 0.2, 40.0, 5.0])
        assert host_figures(wild, 0, 1, 1).cautions("x") == ()
        (caution,) = host_figures(wild, 0, 1, 2).cautions("x")
        assert (caution.code, caution.subject) == (CautionCode.MULTIPLE_STREAMS, "x")

    @pytest.mark.parametrize("empty", [times([], []), times([1.0], [0.0])])
    def test_no_time(self, empty: QueryTimes) -> None:
        with pytest.raises(MeasurementError, match="no figures"):
            host_figures(empty, 0, 1, 1)


def trace(start: float, enqueue: float = 0.5) -> Trace:
    """Copies of 0.5 ms, a gap of 0.25, compute of 2, a gap of 0.25, copies of 1."""
    return Trace(start, start + 0.75, start + 4.0, 0.5, 2.0, 1.0, enqueue, start - 0.125)


def device(*starts: float, settings: TimingSettings | None = None) -> DeviceTimes:
    made = settings or TimingSettings(warmup_ms=10.0)
    return device_times([trace(start) for start in starts], made, batch_size=4, load_ms=1.0, first_run_ms=2.0)


class TestDeviceFigures:
    def test_they_are_those_of_a_comparison(self) -> None:
        """One summary, two records: of a comparison and of a bench."""
        measured = device(1.0, 12.0, 15.0, 18.5)
        one, other = dataclasses.asdict(gpu_figures(measured)), dataclasses.asdict(device_figures(measured))
        shared = set(one) & set(other)
        assert shared >= {"latency", "compute", "h2d", "d2h", "enqueue", "throughput_qps", "walltime_s", "queries"}
        assert {name: one[name] for name in shared} == {name: other[name] for name in shared}

    def test_the_moments_of_the_queries(self) -> None:
        found = traced_times(device(1.0, 12.0, 16.0))
        np.testing.assert_allclose(found.start_enqueue_ms, [11.875, 15.875])
        np.testing.assert_allclose(found.end_enqueue_ms, [12.375, 16.375])
        np.testing.assert_allclose(found.start_h2d_ms, [12.0, 16.0])
        np.testing.assert_allclose(found.end_h2d_ms, [12.5, 16.5])
        np.testing.assert_allclose(found.start_compute_ms, [12.75, 16.75])
        np.testing.assert_allclose(found.end_compute_ms, [14.75, 18.75])
        np.testing.assert_allclose(found.start_d2h_ms, [15.0, 19.0])
        np.testing.assert_allclose(found.end_d2h_ms, [16.0, 20.0])
        np.testing.assert_allclose(found.latency_ms, 3.5)

    def test_several_contexts(self) -> None:
        found = merged([device(1.0, 12.0, 16.0), device(2.0, 12.5, 20.0, 24.0)])
        figures = gpu_figures(found)
        assert (figures.queries, figures.warmup_queries, figures.streams) == (5, 2, 2)
        assert figures.walltime_s == pytest.approx(0.0155), "28 - 12.5, of the one that took longest"
        assert figures.throughput_qps == pytest.approx(5 / 0.0155)
        assert [c.code for c in figures.cautions("x")] == [CautionCode.MULTIPLE_STREAMS]
        assert len(found.traces) == 5

    def test_one_context_is_as_it_was(self) -> None:
        only = device(1.0, 12.0)
        assert merged([only]) is only

    def test_streams_are_warned_of_in_a_comparison_too(self) -> None:
        found = device_figures(merged([device(1.0, 12.0), device(1.0, 12.0)]))
        assert found.streams == 2
        assert any("read the throughput" in text for text in found.warnings)


class TestFileFigures:
    def test_enqueue_times_that_drown_in_the_rounding(self) -> None:
        """At 2,000 ms six digits are steps of 0.01 ms: nothing can be said of enqueueing that takes 0.02 ms."""
        made = traced_times(device(12.0, 2000.0))
        coarse = dataclasses.replace(
            made, start_enqueue_ms=np.array([12.0, 2000.0]), end_enqueue_ms=np.array([12.02, 2000.02])
        )
        assert file_figures(coarse).enqueue is None
        fine = dataclasses.replace(coarse, end_enqueue_ms=np.array([12.02, 2000.0212345]))
        found = file_figures(fine).enqueue
        assert found is not None, "more digits than trtexec writes"
        assert found.max_ms == pytest.approx(0.0212345)

    def test_what_a_file_does_not_say(self) -> None:
        found = file_figures(traced_times(device(12.0, 16.0)))
        assert (found.batch_size, found.streams, found.graph, found.spin, found.samples_per_s) == (None,) * 5
        assert found.transfers is True
