"""Timing under a clock that the test turns, so that every number is known."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from fake_clock import MS, FakeClock

from quantlab.documents import dump_json
from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.clocks import resolution_ns
from quantlab.harness.latency import (
    CALLS_FOR_P99,
    CONTROL,
    LatencySettings,
    Stop,
    Timings,
    change_of,
    noise_of,
    time_blocks,
    time_engines,
)
from quantlab.harness.measurement import Boundary, Change, Outliers
from quantlab.harness.outliers import classify_outliers
from quantlab.harness.timings import TimingCode
from quantlab.harness.warm_up import is_stationary
from quantlab.records import from_plain, to_plain
from quantlab.statistics.interval import Interval
from quantlab.statistics.percentile import percentile_interval
from quantlab.statistics.ratio import RatioEstimate


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def short(**values: float) -> LatencySettings:
    fields = {
        "seconds": 0.0,
        "warmup_ms": 0.0,
        "block_ms": 1.0,
        "min_rounds": 20,
        "max_rounds": 20,
        "half_width": 0.0,
    } | values
    return LatencySettings(**fields)  # type: ignore[arg-type]


def timed(clock: FakeClock, settings: LatencySettings, **costs: Callable[[], float] | float) -> Timings:
    """Time engines of these costs in milliseconds; the first is the reference."""
    calls = {
        name: clock.engine(name, cost if callable(cost) else (lambda cost=cost: cost)) for name, cost in costs.items()
    }
    return time_engines(calls, next(iter(costs)), 1, settings, clock=clock.clock)


def codes(timings: Timings) -> set[TimingCode]:
    return {warning.code for warning in timings.warnings}


class TestFigures:
    def test_a_known_factor_is_recovered_exactly(self, clock: FakeClock) -> None:
        calls = {name: clock.engine(name, lambda ms=ms: ms) for name, ms in (("a", 2.0), ("b", 0.5), ("c", 3.0))}
        timings = time_engines(calls, "a", 4, short(), clock=clock.clock)
        ratios = {name: latency.ratio for name, latency in timings.latencies.items()}
        assert ratios == pytest.approx({"a": 1, "b": 0.25, "c": 1.5})
        b = timings.latencies["b"]
        assert (b.median_ms, b.p90_ms, b.batch_size, b.throughput_per_s) == pytest.approx((0.5, 0.5, 4, 8000))
        assert (b.ratio_interval.low, b.ratio_interval.high) == pytest.approx((0.25, 0.25))
        assert (timings.noise_floor.low, timings.noise_floor.high, timings.control_ratio) == pytest.approx((1, 1, 1))
        assert list(timings.latencies) == ["a", "b", "c"]
        assert timings.labels == ("a", "b", "c", CONTROL)
        changes = [latency.change for latency in timings.latencies.values()]
        assert changes == [None, Change.FASTER, Change.SLOWER]
        assert b.boundary == Boundary.HOST.words
        assert not timings.warnings

    def test_raw_blocks_give_the_figures_again(self, clock: FakeClock) -> None:
        rng = np.random.default_rng(0)
        timings = timed(clock, short(), a=1.0, b=lambda: float(rng.uniform(0.9, 1.1)))
        assert len(timings.order) == 20
        logs = np.sort(np.log(timings.blocks_ms["b"]) - np.log(timings.blocks_ms["a"]))
        assert math.log(timings.latencies["b"].ratio) == pytest.approx(np.mean(logs[6:14]))
        assert timings.latencies["b"].n_blocks == 20
        assert timings.settings == short()

    def test_record_survives_json(self, clock: FakeClock) -> None:
        timings = timed(clock, short(), a=1.0, b=1.5)
        document = json.loads(dump_json(to_plain(timings)))
        assert from_plain(Timings, document, "timings") == timings

    def test_spread_of_all_timings(self, clock: FakeClock) -> None:
        """Uniform from 0.9 to 1.1, whose percentiles are known."""
        costs: list[float] = []
        rng = np.random.default_rng(0)

        def cost() -> float:
            costs.append(round(float(rng.uniform(0.9, 1.1)) * MS) / MS)
            return costs[-1]

        timings = timed(clock, short(min_rounds=500, max_rounds=500), a=1.0, b=cost)
        b = timings.latencies["b"]
        # Blocks of one or two calls, each of two led in by one that is not counted: a subset of what was spent.
        assert b.n_calls in (500, 1000)
        assert b.mean_ms == pytest.approx(1.0, abs=0.01)
        assert (b.q1_ms, b.q3_ms, b.p95_ms) == pytest.approx((0.95, 1.05, 1.09), abs=0.01)
        for interval, value in (
            (b.median_interval, b.median_ms),
            (b.p90_interval, b.p90_ms),
            (b.p95_interval, b.p95_ms),
            (b.p99_interval, b.p99_ms),
        ):
            assert interval is not None and value is not None
            assert interval.low < value < interval.high

    @pytest.mark.parametrize(("rounds", "known"), [(CALLS_FOR_P99 - 1, False), (CALLS_FOR_P99 + 1, True)])
    def test_p99_needs_459_calls(self, clock: FakeClock, rounds: int, known: bool) -> None:
        """Blocks of one call each, so that the last calls of the log are the timed ones."""
        costs: list[float] = []
        rng = np.random.default_rng(0)

        def cost() -> float:
            costs.append(round(float(rng.uniform(1.0, 1.1)) * MS) / MS)
            return costs[-1]

        timings = timed(clock, short(min_rounds=rounds, max_rounds=rounds, block_ms=0.5), a=1.0, b=cost)
        latency, values = timings.latencies["b"], np.sort(costs[-rounds:])
        assert latency.n_calls == rounds
        assert latency.median_ms == pytest.approx(np.median(values))
        assert latency.p90_ms == pytest.approx(np.quantile(values, 0.9))
        assert latency.p90_interval == percentile_interval(values, 0.9)
        assert latency.p99_ms == (pytest.approx(np.quantile(values, 0.99)) if known else None)
        assert (latency.p99_interval is not None) is known


class TestNoise:
    def test_is_covered_by_the_intervals(self, clock: FakeClock) -> None:
        """40 runs of log-normal noise of 10 %: 95 % intervals hold the truth in about 38; 33 is four sigma away."""
        held = held_floor = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            timings = timed(
                clock,
                short(min_rounds=40, max_rounds=40, seed=seed),
                a=lambda rng=rng: float(np.exp(0.1 * rng.standard_normal())),
                b=lambda rng=rng: 0.7 * float(np.exp(0.1 * rng.standard_normal())),
            )
            interval = timings.latencies["b"].ratio_interval
            held += interval.low <= 0.7 <= interval.high
            held_floor += timings.noise_floor.low <= 1.0 <= timings.noise_floor.high
            assert 0.5 < timings.latencies["b"].ratio < 0.9
        assert held >= 33
        assert held_floor >= 33

    def test_slow_drift_of_the_machine_cancels(self, clock: FakeClock) -> None:
        """The machine slows down to half its speed on the way."""

        def slowing(base: float) -> Callable[[], float]:
            return lambda: base * (1 + clock.time / (200 * MS))

        timings = timed(clock, short(min_rounds=60, max_rounds=60), a=slowing(1.0), b=slowing(0.8))
        assert timings.latencies["b"].ratio == pytest.approx(0.8, rel=0.01)
        assert timings.noise_floor.low <= 1 <= timings.noise_floor.high

    def test_bursts_do_not_move_the_ratio(self, clock: FakeClock) -> None:
        """For a fifth of the time another program slows everything threefold."""

        def bursty(base: float) -> Callable[[], float]:
            return lambda: base * (3.0 if (clock.time // (50 * MS)) % 5 == 0 else 1.0)

        timings = timed(clock, short(min_rounds=200, max_rounds=200), a=bursty(1.0), b=bursty(1.02))
        assert timings.latencies["b"].ratio == pytest.approx(1.02, rel=1e-3)
        assert timings.latencies["b"].change is Change.SLOWER


class TestOrder:
    def rounds(self, clock: FakeClock, seed: int) -> list[list[str]]:
        clock.log.clear()
        timings = timed(clock, short(min_rounds=8, max_rounds=8, seed=seed), a=1.0, b=1.0, c=1.0)
        names = [name if name != CONTROL else "a" for name in timings.labels]
        rounds = [[names[index] for index in order] for order in timings.order]
        assert clock.log[-8 * 4 :] == [name for order in rounds for name in order], "the order told is the order made"
        return rounds

    def test_every_second_round_is_reversed(self, clock: FakeClock) -> None:
        rounds = self.rounds(clock, 3)
        for there, back in zip(rounds[::2], rounds[1::2], strict=True):
            assert back == there[::-1]
        for one in rounds:
            assert sorted(one) == ["a", "a", "b", "c"], "the reference a second time, as the control"

    def test_drawn_from_the_seed(self, clock: FakeClock) -> None:
        assert self.rounds(clock, 3) == self.rounds(clock, 3)
        assert any(self.rounds(clock, seed) != self.rounds(clock, 3) for seed in range(3))
        generator = np.random.default_rng(3)
        expected = [[("a", "b", "c", "a")[i] for i in generator.permutation(4)] for _ in range(4)]
        assert self.rounds(clock, 3)[::2] == expected


class TestStopping:
    def test_min_rounds_are_made_whatever_the_budget(self, clock: FakeClock) -> None:
        timings = timed(clock, short(seconds=0.0, min_rounds=8, max_rounds=100), a=1.0, b=1.0)
        assert (len(timings.order), timings.stop) == (8, Stop.TIME)
        assert codes(timings) == {TimingCode.FEW_BLOCKS}

    def test_max_rounds_end_it_whatever_the_budget(self, clock: FakeClock) -> None:
        settings = short(seconds=1e9, min_rounds=2, max_rounds=31, half_width=0.0)
        timings = timed(clock, settings, a=1.0, b=1.0)
        assert (len(timings.order), timings.stop) == (30, Stop.ROUNDS), "rounds come in pairs"

    def test_the_budget_is_not_overrun(self, clock: FakeClock) -> None:
        """Three blocks of 1 ms a round: 90 ms are 30 rounds."""
        settings = short(seconds=0.0905, min_rounds=2, max_rounds=1000, half_width=0.0)
        timings = timed(clock, settings, a=1.0, b=1.0)
        assert (len(timings.order), timings.stop) == (30, Stop.TIME)
        assert timings.elapsed_s == pytest.approx(0.09)

    def test_precision_ends_it_early(self, clock: FakeClock) -> None:
        settings = short(seconds=10.0, min_rounds=2, max_rounds=1000, half_width=0.01, least_seconds=0.0)
        timings = timed(clock, settings, a=1.0, b=1.2)
        assert (len(timings.order), timings.stop) == (20, Stop.PRECISION), "not before 20 blocks"

    def test_precision_is_not_asked_before_its_time(self, clock: FakeClock) -> None:
        settings = short(seconds=10.0, min_rounds=2, max_rounds=1000, half_width=0.01, least_seconds=0.3)
        timings = timed(clock, settings, a=1.0, b=1.0)
        assert timings.stop is Stop.PRECISION
        assert 0.3 <= timings.elapsed_s < 0.4

    def test_every_ratio_must_be_precise(self, clock: FakeClock) -> None:
        rng = np.random.default_rng(0)
        settings = short(seconds=1.0, min_rounds=2, max_rounds=1000, half_width=0.001, least_seconds=0.0)
        noisy = timed(clock, settings, a=1.0, b=1.0, c=lambda: float(rng.uniform(0.5, 1.5)))
        assert noisy.stop is Stop.TIME

    def test_stopping_for_precision_keeps_the_coverage(self, clock: FakeClock) -> None:
        """Looking often and stopping at a lucky moment would not; 40 runs, at least 33 hold the truth (0.1 % point)."""
        held = 0
        for seed in range(40):
            rng = np.random.default_rng(seed)
            timings = timed(
                clock,
                short(seconds=0.6, max_rounds=200, half_width=0.05, least_seconds=0.0, seed=seed),
                a=lambda rng=rng: float(np.exp(0.1 * rng.standard_normal())),
                b=lambda rng=rng: float(np.exp(0.1 * rng.standard_normal())),
            )
            interval = timings.latencies["b"].ratio_interval
            held += interval.low <= 1.0 <= interval.high
        assert held >= 33


class TestBlocks:
    def test_have_at_least_the_aimed_length(self, clock: FakeClock) -> None:
        timings = timed(clock, short(block_ms=20.0, min_rounds=4, max_rounds=4), a=1.0, b=3.0, c=90.0)
        calls = {name: latency.n_calls for name, latency in timings.latencies.items()}
        assert calls == {"a": 80, "b": 28, "c": 4}

    def test_are_led_in_by_a_call_that_does_not_count(self, clock: FakeClock) -> None:
        """Every first call after another engine is slow, as its caches are cold."""
        last = [""]

        def cold(name: str) -> Callable[[], float]:
            def cost() -> float:
                slow, last[0] = last[0] != name, name
                return 5.0 if slow else 1.0

            return cost

        timings = timed(clock, short(block_ms=3.0), a=cold("a"), b=cold("b"))
        for latency in timings.latencies.values():
            assert latency.p95_ms == pytest.approx(1.0)

    def test_slow_first_calls_do_not_count(self, clock: FakeClock) -> None:
        costs = iter([100.0] * 6)
        timings = timed(clock, short(block_ms=5.0), a=lambda: next(costs, 1.0))
        assert timings.latencies["a"].n_calls == 20 * 5
        assert timings.latencies["a"].p90_ms == pytest.approx(1.0)

    def test_a_call_without_time_is_an_error(self, clock: FakeClock) -> None:
        with pytest.raises(MeasurementError, match="take no time by the clock"):
            timed(clock, short(), a=0.0)


class TestClock:
    def test_resolution_is_the_smallest_step(self, clock: FakeClock) -> None:
        readings = iter(np.cumsum([0, 0, 300, 0, 100, 200, 0, 100] * 20000).tolist())
        found = resolution_ns(dataclasses.replace(clock.clock, step_ns=None, now=lambda: next(readings)))
        assert found == 100.0

    def test_short_calls_are_timed_in_loops(self, clock: FakeClock) -> None:
        """Readings cost 100 ns, so what is timed must take 100 us: 20 calls of 5 us, and the guard's tenth more."""

        def now() -> int:
            clock.time += 100
            return clock.time

        coarse = dataclasses.replace(clock.clock, step_ns=None, now=now)
        calls = {"a": clock.engine("a", lambda: 0.005), "b": clock.engine("b", lambda: 1.0)}
        timings = time_engines(calls, "a", 1, short(), clock=coarse)
        assert timings.resolution_ns == 100.0
        loops = timings.latencies["a"].calls_per_timing
        assert 20 <= loops <= 23
        assert timings.latencies["b"].calls_per_timing == 1
        assert timings.latencies["a"].median_ms == pytest.approx(0.005, rel=0.002)
        assert timings.latencies["b"].ratio == pytest.approx(200, rel=0.002)
        assert timings.latencies["a"].n_calls % loops == 0
        warning = next(one for one in timings.warnings if one.code is TimingCode.LOOPED_CALLS)
        assert warning.variant == "a"
        assert f"mean of {loops} calls" in warning.message

    def test_a_block_is_a_thousand_steps(self, clock: FakeClock) -> None:
        """A clock of 16 ms steps, as some systems have: blocks of 16 s, whatever was asked for."""
        coarse = dataclasses.replace(clock.clock, step_ns=None, now=lambda: clock.time // (16 * MS) * (16 * MS))
        tick = iter(range(10**9))

        def reading() -> int:
            if next(tick) < 40_000:  # while its resolution is measured
                clock.time += MS
            return coarse.now()

        calls = {"a": clock.engine("a", lambda: 1000.0)}
        timings = time_engines(
            calls, "a", 1, short(min_rounds=2, max_rounds=2), clock=dataclasses.replace(coarse, now=reading)
        )
        assert timings.resolution_ns == 16 * MS
        assert timings.latencies["a"].n_calls >= 2 * 16

    def test_going_backwards_is_an_error(self, clock: FakeClock) -> None:
        costs = iter([1.0] * 30 + [-4.0])
        with pytest.raises(MeasurementError, match="the clock went backwards") as caught:
            timed(clock, short(), a=lambda: next(costs, 1.0))
        assert caught.value.got is not None and "-" in str(caught.value.got)

    @pytest.mark.parametrize("suspended", [True, False])
    def test_rounds_with_a_jump_are_left_out(self, clock: FakeClock, suspended: bool) -> None:
        calls = iter(range(10**6))

        def cost() -> float:
            if next(calls) == 60:
                if suspended:  # this clock stands still, the other goes on
                    clock.suspended += 10 * 1000 * MS
                else:
                    return 2000.0
            return 1.0

        timings = timed(clock, short(), a=cost)
        assert len(timings.order) == 20
        assert timings.latencies["a"].n_calls == 20
        assert timings.latencies["a"].outliers == Outliers(0, 0, 0, 0)
        assert codes(timings) == {TimingCode.CLOCK_JUMP}

    def test_a_clock_that_jumps_on_and_on_is_an_error(self, clock: FakeClock) -> None:
        def cost() -> float:
            clock.suspended += 1000 * MS
            return 1.0

        with pytest.raises(MeasurementError, match="jumps again and again"):
            timed(clock, short(), a=cost)


class TestWarmUp:
    def test_time_and_calls(self, clock: FakeClock) -> None:
        """Three calls to look how long one is, 200 of warm-up and 200 of the check."""
        timings = timed(clock, short(warmup_ms=200.0, min_rounds=2, max_rounds=2), a=1.0)
        assert clock.log == ["a"] * (3 + 400 + 2 * 2)
        warm_up = timings.warm_ups["a"]
        assert (warm_up.calls, warm_up.elapsed_ms) == (400, pytest.approx(400.0))
        assert (warm_up.extended, warm_up.stationary) == (False, True)

    def test_least_calls(self, clock: FakeClock) -> None:
        assert timed(clock, short(warmup_ms=1.0), a=90.0).warm_ups["a"].calls == 20

    def test_extended_once(self, clock: FakeClock) -> None:
        """Slow for the first 300 calls: the check from 200 to 400 fails, the second holds."""
        calls = iter(range(10**6))
        timings = timed(clock, short(warmup_ms=200.0), a=lambda: 1.0 if next(calls) > 300 else 0.9)
        warm_up = timings.warm_ups["a"]
        assert (warm_up.extended, warm_up.stationary) == (True, True)
        assert timings.latencies["a"].stationary is True
        assert TimingCode.NOT_STATIONARY not in codes(timings)

    def test_never_settles(self, clock: FakeClock) -> None:
        timings = timed(clock, short(warmup_ms=200.0), a=1.0, b=lambda: 1.0 + clock.time / (400 * MS))
        assert (timings.warm_ups["b"].extended, timings.warm_ups["b"].stationary) == (True, False)
        assert timings.latencies["b"].stationary is False
        (warning,) = (one for one in timings.warnings if one.code is TimingCode.NOT_STATIONARY)
        assert warning.variant == "b"

    @pytest.mark.parametrize(
        ("change", "stationary"),
        [(1.0, True), (1.04, True), (1.07, False), (0.93, False)],
    )
    def test_rule(self, change: float, stationary: bool) -> None:
        half = np.array([1.0, 1.1, 1.2, 1.3, 1.4])
        assert is_stationary(np.concatenate([half, half * change])) is stationary

    def test_rule_looks_at_the_mean_too(self) -> None:
        half = np.ones(40)
        spiked = np.where(np.arange(40) == 7, 20.0, 1.0)
        assert not is_stationary(np.concatenate([half, spiked]))
        assert is_stationary(np.array([1.0]))


class TestExtremes:
    def test_two_rounds_say_nothing_and_survive_json(self, clock: FakeClock) -> None:
        timings = timed(clock, short(min_rounds=2, max_rounds=2), a=1.0, b=100.0)
        b = timings.latencies["b"]
        assert b.ratio == pytest.approx(100.0)
        assert (b.ratio_interval.low, b.ratio_interval.high, b.log_error) == (0.0, math.inf, math.inf)
        assert b.change is Change.INCONCLUSIVE
        assert timings.too_noisy and "any size" in timings.warnings[0].message
        assert from_plain(Timings, json.loads(dump_json(to_plain(timings))), "timings") == timings

    def test_a_huge_ratio(self, clock: FakeClock) -> None:
        timings = timed(clock, short(min_rounds=6, max_rounds=6), a=0.001, b=10_000.0)
        b = timings.latencies["b"]
        assert (b.ratio, b.ratio_interval.low, b.ratio_interval.high) == pytest.approx((1e7, 1e7, 1e7))
        assert b.change is Change.SLOWER

    def test_a_negative_seed(self, clock: FakeClock) -> None:
        with pytest.raises(ConfigError, match="seed is out of range"):
            timed(clock, short(seed=-1), a=1.0)

    def test_a_pause_in_the_first_block_does_not_hide_the_next_one(self, clock: FakeClock) -> None:
        """Blocks of one call, after 3 calls that find their length and 20 of the warm-up."""
        costs = {23: 30_000.0, 25: 6_000.0}
        calls = iter(range(10**6))
        timings = timed(clock, short(block_ms=50.0), a=100.0, b=lambda: costs.get(next(calls), 100.0))
        assert timings.warm_ups["b"].calls == 20
        assert max(timings.blocks_ms["b"]) == 30_000.0, "nothing is known yet to judge the first by"
        assert [warning.code for warning in timings.warnings if warning.variant is None] == [TimingCode.CLOCK_JUMP]


class TestWords:
    settings = LatencySettings()

    def estimate(self, low: float, high: float, inner: tuple[float, float] | None = None) -> RatioEstimate:
        inner = inner or (low, high)
        return RatioEstimate(math.sqrt(low * high), Interval(low, high, 0.95), Interval(*inner, 0.90), 0.0)

    @pytest.mark.parametrize(
        ("estimate", "word"),
        [
            ((0.5, 0.999), Change.FASTER),
            ((1.001, 1.2), Change.SLOWER),
            ((0.985, 1.015), Change.EQUIVALENT),
            ((0.9, 1.1, (0.981, 1.019)), Change.EQUIVALENT),
            ((0.97, 1.03), Change.INCONCLUSIVE),
            ((0.975, 1.001), Change.INCONCLUSIVE),
        ],
    )
    def test_on_a_quiet_machine(self, estimate: tuple[float, ...], word: Change) -> None:
        assert change_of(self.estimate(*estimate), self.estimate(0.99, 1.01), self.settings) is word  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("low", "high", "word"),
        [
            (1.05, 1.06, Change.INCONCLUSIVE),
            (1.11, 1.2, Change.SLOWER),
            (0.5, 0.89, Change.FASTER),
            (0.99, 1.01, Change.INCONCLUSIVE),
        ],
    )
    def test_on_a_noisy_machine_a_difference_must_exceed_the_noise(self, low: float, high: float, word: Change) -> None:
        control = self.estimate(0.92, 1.1)
        assert change_of(self.estimate(low, high), control, self.settings) is word

    @pytest.mark.parametrize(
        ("low", "high", "word"),
        [
            (0.05, 0.1, Change.FASTER),
            (0.1, 0.45, Change.FASTER),
            (0.1, 0.55, Change.INCONCLUSIVE),
            (1.9, 9.0, Change.INCONCLUSIVE),
            (2.1, 9.0, Change.SLOWER),
        ],
    )
    def test_noise_is_a_factor_either_way(self, low: float, high: float, word: Change) -> None:
        """Where the reference is within 0.5 and 2 times itself, ten times faster is still faster."""
        assert change_of(self.estimate(low, high), self.estimate(0.5, 2.0), self.settings) is word
        assert "100.0 %" in str(noise_of(self.estimate(0.5, 1.5), self.settings))

    def test_noise_in_words(self) -> None:
        assert noise_of(self.estimate(0.96, 1.04), self.settings) is None
        assert "too noisy" in str(noise_of(self.estimate(0.92, 1.1), self.settings))
        assert "10.0 %" in str(noise_of(self.estimate(0.92, 1.1), self.settings))
        assert "differs from itself" in str(noise_of(self.estimate(1.004, 1.01), self.settings))
        assert "any size" in str(noise_of(self.estimate(1e-9, math.inf), self.settings))

    def test_a_machine_too_noisy_says_so(self, clock: FakeClock) -> None:
        rng = np.random.default_rng(0)
        timings = timed(
            clock, short(), a=lambda: float(rng.uniform(0.5, 2.0)), b=lambda: 1.02 * float(rng.uniform(0.5, 2.0))
        )
        assert timings.too_noisy
        assert timings.latencies["b"].change is Change.INCONCLUSIVE


class TestOutliers:
    def test_tukeys_fences(self) -> None:
        """Quartiles 25 and 75: mild beyond -50 and 150, severe beyond -125 and 225."""
        values = np.concatenate([np.arange(101.0), [-50.5, 150.5, 160.0, -500.0, 400.0, 500.0, 600.0]])
        inner = np.arange(101.0)
        assert classify_outliers(inner) == Outliers(0, 0, 0, 0)
        found = classify_outliers(values)
        q1, q3 = np.quantile(values, [0.25, 0.75])
        spread = q3 - q1
        assert found.high_severe == int(np.sum(values > q3 + 3 * spread)) == 3
        assert found.low_severe == 1
        assert found.total == int(np.sum((values < q1 - 1.5 * spread) | (values > q3 + 1.5 * spread)))

    def test_one_step_of_a_coarse_clock_is_no_outlier(self) -> None:
        """Four fifths are 100 us to the step; the rest is a step of 50 ns off, and one is far away."""
        values = np.concatenate([np.full(80, 100.0), np.full(10, 100.05), np.full(10, 99.95), [150.0]])
        assert classify_outliers(values) == Outliers(0, 0, 0, 1)

    def test_all_equal(self) -> None:
        assert classify_outliers(np.full(7, 3.0)) == Outliers(0, 0, 0, 0)
        assert classify_outliers(np.array([5.0])) == Outliers(0, 0, 0, 0)

    def test_are_kept_and_counted_by_engine(self, clock: FakeClock) -> None:
        calls = iter(range(10**6))
        timings = timed(
            clock, short(min_rounds=200, max_rounds=200), a=1.0, b=lambda: 9.0 if next(calls) % 10 == 0 else 1.0
        )
        b = timings.latencies["b"]
        assert b.outliers is not None
        assert b.outliers.high_severe == pytest.approx(20, abs=2)
        assert b.p95_ms == pytest.approx(9.0)
        (warning,) = (one for one in timings.warnings if one.code is TimingCode.OUTLIER_ASYMMETRY)
        assert warning.variant == "b"


class EventTimer:
    """As CUDA events would: times that the host's clock does not see."""

    calls_per_timing = 1

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def time(self, timings: int) -> np.ndarray:
        return np.full(timings, self.ms * MS)


def test_other_clocks(clock: FakeClock) -> None:
    timers = {"a": EventTimer(2.0), "b": EventTimer(1.0)}
    timings = time_blocks(timers, "a", 8, short(block_ms=4.0), Boundary.DEVICE, clock=clock.clock)
    assert timings.boundary is Boundary.DEVICE
    assert timings.latencies["b"].ratio == pytest.approx(0.5)
    assert timings.latencies["b"].boundary.startswith("device: ")
    assert [timings.latencies[name].n_calls for name in "ab"] == [40, 80]
    assert math.isnan(timings.resolution_ns)


class TestGarbageCollection:
    @pytest.fixture(autouse=True)
    def collecting(self):
        was = gc.isenabled()
        yield
        (gc.enable if was else gc.disable)()

    @pytest.mark.parametrize("before", [True, False])
    def test_off_while_timing_and_restored(self, clock: FakeClock, before: bool) -> None:
        (gc.enable if before else gc.disable)()
        seen: list[bool] = []
        timed(clock, short(), a=lambda: seen.append(gc.isenabled()) or 1.0)  # type: ignore[func-returns-value]
        assert not any(seen[-20:])
        assert gc.isenabled() is before

    def test_restored_after_an_error(self, clock: FakeClock) -> None:
        gc.enable()
        costs = iter([1.0] * 40)

        def cost() -> float:
            try:
                return next(costs)
            except StopIteration:
                raise MeasurementError("the engine died") from None

        with pytest.raises(MeasurementError, match="the engine died"):
            timed(clock, short(), a=cost)
        assert gc.isenabled()


def test_an_unknown_reference() -> None:
    with pytest.raises(MeasurementError, match="no reference 'b'") as caught:
        time_engines({"a": lambda: None}, "b", 1, LatencySettings())
    assert caught.value.got == "a"


@pytest.mark.parametrize("setting", ["seconds", "half_width", "margin", "block_ms"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_settings_that_make_no_sense(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        time_engines({"a": lambda: None}, "a", 1, short(**{setting: value}))


def test_no_engine_has_the_controls_name() -> None:
    with pytest.raises(ConfigError, match="A/A control"):
        time_engines({"a": lambda: None, CONTROL: lambda: None}, "a", 1, LatencySettings())


def test_real_time() -> None:
    """Once without the fake: three times the work."""
    matrix = np.random.default_rng(0).random((64, 64))

    def work(times: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(times):
                matrix @ matrix

        return call

    settings = LatencySettings(seconds=0.0, warmup_ms=10.0, block_ms=4.0, min_rounds=20, max_rounds=20)
    timings = time_engines({"a": work(30), "b": work(90)}, "a", 1, settings)
    assert timings.latencies["b"].change is Change.SLOWER
    assert 0.0 < timings.resolution_ns < 1e5
