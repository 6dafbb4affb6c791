"""Timing under a clock that the test turns, so that every number is known."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from quantlab.errors import MeasurementError
from quantlab.harness.latency import CALLS_FOR_P99, LatencySettings, time_engines

MS = 1_000_000


class Clock:
    """Time passes only in calls."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def engine(self, name: str, cost: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += round(cost() * MS)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: made.now)
    return made


def short(**values: float) -> LatencySettings:
    fields = {"seconds": 0.0, "warmup_ms": 0.0, "block_ms": 1.0, "min_rounds": 20, "max_rounds": 20} | values
    return LatencySettings(**fields)  # type: ignore[arg-type]


def test_a_known_factor_is_recovered_exactly(clock: Clock) -> None:
    calls = {
        "a": clock.engine("a", lambda: 2.0),
        "b": clock.engine("b", lambda: 0.5),
        "c": clock.engine("c", lambda: 3.0),
    }
    timings = time_engines(calls, "a", 4, short())
    assert {name: latency.ratio for name, latency in timings.latencies.items()} == pytest.approx(
        {"a": 1, "b": 0.25, "c": 1.5}
    )
    b = timings.latencies["b"]
    assert (b.median_ms, b.p90_ms, b.batch_size, b.throughput_per_s) == pytest.approx((0.5, 0.5, 4, 8000))
    assert (b.ratio_interval.low, b.ratio_interval.high) == pytest.approx((0.25, 0.25))
    assert (timings.noise_floor.low, timings.noise_floor.high) == pytest.approx((1, 1))
    assert "control" not in str(list(timings.latencies))


def test_noise_is_covered_by_the_intervals(clock: Clock) -> None:
    """40 runs of log-normal noise of 10 %: the 95 % intervals hold the truth in about 38; 33 is four sigma away."""
    held = held_floor = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        calls = {
            name: clock.engine(name, lambda base=base, rng=rng: base * float(np.exp(0.1 * rng.standard_normal())))
            for name, base in (("a", 1.0), ("b", 0.7))
        }
        timings = time_engines(calls, "a", 1, short(min_rounds=40, max_rounds=40, seed=seed))
        interval = timings.latencies["b"].ratio_interval
        held += interval.low <= 0.7 <= interval.high
        held_floor += timings.noise_floor.low <= 1.0 <= timings.noise_floor.high
        assert 0.5 < timings.latencies["b"].ratio < 0.9
    assert held >= 33
    assert held_floor >= 33


def test_slow_drift_of_the_machine_cancels(clock: Clock) -> None:
    """The machine slows down to half its speed on the way; unpaired medians would still hold, but blocks differ."""
    start = clock.now

    def slowing(base: float) -> Callable[[], float]:
        return lambda: base * (1 + (clock.now - start) / (200 * MS))

    calls = {"a": clock.engine("a", slowing(1.0)), "b": clock.engine("b", slowing(0.8))}
    timings = time_engines(calls, "a", 1, short(min_rounds=60, max_rounds=60))
    assert timings.latencies["b"].ratio == pytest.approx(0.8, rel=0.01)
    assert timings.noise_floor.low <= 1 <= timings.noise_floor.high


class TestOrder:
    def rounds(self, clock: Clock, seed: int) -> list[list[str]]:
        clock.log.clear()
        calls = {name: clock.engine(name, lambda: 1.0) for name in ("a", "b", "c")}
        time_engines(calls, "a", 1, short(min_rounds=8, max_rounds=8, seed=seed))
        timed = clock.log[-8 * 4 :]
        assert len(clock.log) == 3 * 3 + 8 * 4, "three warm-up calls each, then one call a block"
        return [timed[i : i + 4] for i in range(0, len(timed), 4)]

    def test_every_second_round_is_reversed(self, clock: Clock) -> None:
        rounds = self.rounds(clock, 3)
        for there, back in zip(rounds[::2], rounds[1::2], strict=True):
            assert back == there[::-1]
        for one in rounds:
            assert sorted(one) == ["a", "a", "b", "c"], "the reference a second time, as the control"

    def test_drawn_from_the_seed(self, clock: Clock) -> None:
        assert self.rounds(clock, 3) == self.rounds(clock, 3)
        assert any(self.rounds(clock, seed) != self.rounds(clock, 3) for seed in range(3))
        generator = np.random.default_rng(3)
        expected = [[("a", "b", "c", "a")[i] for i in generator.permutation(4)] for _ in range(4)]
        assert self.rounds(clock, 3)[::2] == expected


class TestBudget:
    def calls_of(self, clock: Clock, settings: LatencySettings) -> int:
        calls = {"a": clock.engine("a", lambda: 1.0), "b": clock.engine("b", lambda: 1.0)}
        return time_engines(calls, "a", 1, settings).latencies["b"].n_calls

    def test_min_rounds_are_made_whatever_the_budget(self, clock: Clock) -> None:
        assert self.calls_of(clock, short(seconds=0.0, min_rounds=7, max_rounds=100)) == 7

    def test_max_rounds_end_it_whatever_the_budget(self, clock: Clock) -> None:
        assert self.calls_of(clock, short(seconds=1e9, min_rounds=2, max_rounds=31)) == 31

    def test_the_budget_between_them(self, clock: Clock) -> None:
        """Three calls of 1 ms a round: 90 ms are 30 rounds, and one that begins at the end."""
        assert self.calls_of(clock, short(seconds=0.09, min_rounds=2, max_rounds=1000)) in (30, 31)

    def test_blocks_have_the_aimed_length(self, clock: Clock) -> None:
        calls = {
            "a": clock.engine("a", lambda: 1.0),
            "b": clock.engine("b", lambda: 4.0),
            "c": clock.engine("c", lambda: 90.0),
        }
        found = time_engines(calls, "a", 1, short(block_ms=20.0, min_rounds=3, max_rounds=3)).latencies
        assert {name: latency.n_calls for name, latency in found.items()} == {"a": 60, "b": 15, "c": 3}

    def test_warm_up(self, clock: Clock) -> None:
        self.calls_of(clock, short(warmup_ms=50.0, min_rounds=1, max_rounds=1))
        assert len(clock.log) == 2 * 50 + 3

    def test_slow_first_calls_do_not_count(self, clock: Clock) -> None:
        """Six slow calls of ten: the later half tells how many make a block."""
        costs = iter([100.0] * 6)
        calls = {"a": clock.engine("a", lambda: next(costs, 1.0))}
        latency = time_engines(calls, "a", 1, short(warmup_ms=604.0, block_ms=5.0)).latencies["a"]
        assert latency.n_calls == 20 * 5
        assert latency.p90_ms == pytest.approx(1.0)


@pytest.mark.parametrize(("rounds", "known"), [(CALLS_FOR_P99 - 1, False), (CALLS_FOR_P99, True)])
def test_p99_needs_459_calls(clock: Clock, rounds: int, known: bool) -> None:
    """MLPerf LoadGen's least number of queries for a 99th percentile at 99 % confidence is of this kind."""
    durations: list[float] = []
    rng = np.random.default_rng(0)

    def cost() -> float:
        durations.append(round(rng.uniform(0.9, 1.1) * MS) / MS)
        return durations[-1]

    calls = {"a": clock.engine("a", lambda: 1.0), "b": clock.engine("b", cost)}
    latency = time_engines(calls, "a", 1, short(min_rounds=rounds, max_rounds=rounds)).latencies["b"]
    timed = durations[-rounds:]
    assert latency.n_calls == rounds
    assert latency.median_ms == pytest.approx(np.median(timed))
    assert latency.p90_ms == pytest.approx(np.quantile(timed, 0.9))
    assert latency.p99_ms == (pytest.approx(np.quantile(timed, 0.99)) if known else None)


class TestGarbageCollection:
    @pytest.fixture(autouse=True)
    def collecting(self):
        was = gc.isenabled()
        yield
        (gc.enable if was else gc.disable)()

    @pytest.mark.parametrize("before", [True, False])
    def test_off_while_timing_and_restored(self, clock: Clock, before: bool) -> None:
        (gc.enable if before else gc.disable)()
        seen: list[bool] = []
        calls = {"a": clock.engine("a", lambda: seen.append(gc.isenabled()) or 1.0)}  # type: ignore[func-returns-value]
        time_engines(calls, "a", 1, short())
        assert not any(seen[-20:])
        assert gc.isenabled() is before

    def test_restored_after_an_error(self, clock: Clock) -> None:
        gc.enable()
        costs = iter([1.0] * 30)

        def cost() -> float:
            try:
                return next(costs)
            except StopIteration:
                raise MeasurementError("the engine died") from None

        with pytest.raises(MeasurementError, match="the engine died"):
            time_engines({"a": clock.engine("a", cost)}, "a", 1, short())
        assert gc.isenabled()


def test_an_unknown_reference() -> None:
    with pytest.raises(MeasurementError, match="no reference 'b'") as caught:
        time_engines({"a": lambda: None}, "b", 1, LatencySettings())
    assert caught.value.got == "a"


def test_real_time() -> None:
    """Once without the fake: sleeping 4 ms against 2 ms."""
    calls = {"a": lambda: time.sleep(0.004), "b": lambda: time.sleep(0.002)}
    settings = LatencySettings(seconds=0.0, warmup_ms=0.0, block_ms=4.0, min_rounds=12, max_rounds=12)
    assert 0.35 < time_engines(calls, "a", 1, settings).latencies["b"].ratio < 0.8
