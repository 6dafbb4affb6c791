"""Engines timed from files to outputs: what is read when, under a clock that the test turns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from fake_clock import MS, FakeClock
from harness_data import FunctionEngine, MemoryData
from numpy.typing import NDArray

from quantlab.datasets import InputSpec, open_dataset
from quantlab.datasets.content import TensorContent, UnreadableSampleError
from quantlab.datasets.dataset import Selection, SourceDataset
from quantlab.datasets.resolution import ResolvedPreprocess
from quantlab.datasets.source import Listing
from quantlab.documents import dump_json
from quantlab.engines.protocol import Arrays
from quantlab.errors import ConfigError, DataError
from quantlab.harness.end_to_end import EndToEnd, Feed, time_end_to_end
from quantlab.harness.latency import LatencySettings
from quantlab.harness.measurement import Boundary, Change
from quantlab.harness.timings import TimingCode
from quantlab.records import from_plain, to_plain

SPEC = InputSpec("x", (2,), "float32")


class Counted:
    """A source that counts what is read of it; reading sample i takes ``costs[i]`` ms."""

    def __init__(self, clock: FakeClock, costs: list[float], kind: str = "folder") -> None:
        self.clock = clock
        self.costs = costs
        self.reads: list[int] = []
        self.damaged: set[int] = set()
        self.listing = Listing(kind, "counted", tuple(f"s{i}" for i in range(len(costs))), None, images=False)

    def load(self, index: int) -> TensorContent:
        if index in self.damaged:
            raise UnreadableSampleError("is cut off")
        self.reads.append(index)
        self.clock.time += round(self.costs[index] * MS)
        return TensorContent({"x": np.full(2, index, np.float32)})

    def dataset(self) -> SourceDataset:
        return SourceDataset(
            self, [SPEC], ResolvedPreprocess(None, "ready"), Selection(tuple(range(len(self.costs)))), threads=1
        )


class Engine(FunctionEngine):
    """Takes a known time, and notes the samples of every call."""

    def __init__(self, name: str, clock: FakeClock, cost: Callable[[], float]) -> None:
        super().__init__(name, lambda x: x)
        self.clock = clock
        self.cost = cost
        self.seen: list[tuple[int, ...]] = []

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        self.clock.time += round(self.cost() * MS)
        self.seen.append(tuple(inputs["x"][:, 0].astype(int).tolist()))
        return super().run(inputs)


def short(rounds: int = 20, block_ms: float = 1.0) -> LatencySettings:
    return LatencySettings(
        seconds=0.0, warmup_ms=0.0, block_ms=block_ms, min_rounds=rounds, max_rounds=rounds, half_width=0.0
    )


def timed(
    source: Counted, batch_size: int = 1, settings: LatencySettings | None = None, **costs: float
) -> tuple[EndToEnd, dict[str, Engine]]:
    engines = {name: Engine(name, source.clock, partial(float, cost)) for name, cost in costs.items()}
    found = time_end_to_end(
        engines, next(iter(costs)), source.dataset(), batch_size, 1, settings or short(), clock=source.clock.clock
    )
    return found, engines


def test_reading_and_running_are_told_apart_exactly() -> None:
    found, _ = timed(Counted(FakeClock(), [3.0] * 5), a=1.0, b=0.5)
    assert found.timings.boundary is Boundary.END_TO_END and found.reading.boundary is Boundary.READING
    assert {n: t.median_ms for n, t in found.timings.latencies.items()} == pytest.approx({"a": 4.0, "b": 3.5})
    assert {n: t.median_ms for n, t in found.reading.latencies.items()} == pytest.approx({"a": 3.0, "b": 3.0})
    assert found.share("a") == pytest.approx(0.75)
    assert found.timings.latencies["b"].ratio == pytest.approx(3.5 / 4.0)
    assert found.timings.latencies["b"].change is Change.FASTER
    assert found.timings.latencies["b"].boundary == Boundary.END_TO_END.words
    assert found.reading.latencies["b"].ratio == pytest.approx(1.0)
    assert (found.samples, found.readers, found.in_memory, found.batch_size) == (5, 1, False, 1)
    assert found.timings.resolution_ns == 1.0


def test_every_call_reads_anew() -> None:
    source = Counted(FakeClock(), [1.0] * 7)
    _, engines = timed(source, 3, a=1.0, b=2.0)
    calls = sum(len(engine.seen) for engine in engines.values())
    assert len(source.reads) == 7 + 3 * calls, "once before the timing, then three samples a call"


def test_all_samples_have_their_turn_in_order() -> None:
    source = Counted(FakeClock(), [1.0] * 7)
    _, engines = timed(source, 3, a=1.0)
    assert Counter(i for call in engines["a"].seen for i in call).keys() == set(range(7))
    assert all(call == tuple((call[0] + k) % 7 for k in range(3)) for call in engines["a"].seen)


def test_samples_that_differ_do_not_look_like_noise() -> None:
    """All blocks of a round have the same samples, whatever the engine's speed: reading cancels exactly."""
    rng = np.random.default_rng(0)
    source = Counted(FakeClock(), [float(cost) for cost in rng.uniform(1.0, 30.0, 11).round(3)])
    found, _ = timed(source, settings=short(block_ms=60.0), a=0.001, b=0.002, c=0.5)
    assert found.reading.latencies["c"].ratio_interval.low == found.reading.latencies["c"].ratio_interval.high == 1.0
    assert found.reading.blocks_ms["a"] == found.reading.blocks_ms["c"]
    assert len(set(found.reading.blocks_ms["a"])) > 5, "rounds go on through the samples"
    assert (found.timings.noise_floor.low, found.timings.noise_floor.high) == (1.0, 1.0)


def test_blocks_of_slow_and_fast_engines_have_as_many_calls() -> None:
    found, _ = timed(Counted(FakeClock(), [0.1] * 3), settings=short(block_ms=20.0), a=9.9, b=0.9)
    assert found.timings.latencies["a"].n_calls == found.timings.latencies["b"].n_calls == 20 * 20


def test_a_round_that_is_left_out_is_made_again_with_the_same_samples() -> None:
    source = Counted(FakeClock(), [1.0, 2.0, 3.0, 4.0, 5.0])
    engine = Engine("a", source.clock, lambda: 1.0)
    slept = []

    def sometimes() -> float:
        if len(engine.seen) == 60:
            slept.append(True)
            source.clock.suspended += 10_000 * MS
        return 1.0

    engine.cost = sometimes
    found = time_end_to_end({"a": engine}, "a", source.dataset(), 1, 1, short(), clock=source.clock.clock)
    assert slept and len(found.timings.order) == 20
    assert found.reading.blocks_ms["a"] == found.reading.blocks_ms["A/A control"]


def test_a_sample_that_takes_long_is_no_jump_of_the_clock() -> None:
    found, _ = timed(Counted(FakeClock(), [*[5.0] * 9, 30_000.0]), settings=short(block_ms=20.0), a=1.0)
    assert not [warning for warning in found.timings.warnings if warning.code is TimingCode.CLOCK_JUMP]
    assert found.timings.latencies["a"].outliers is not None
    assert found.timings.latencies["a"].outliers.high_severe > 0


def test_calls_too_short_for_the_clock_are_looped_alike() -> None:
    source = Counted(FakeClock(), [0.0001] * 4)
    source.clock.clock = type(source.clock.clock)(
        lambda: source.clock.time, lambda: source.clock.time, 1000.0
    )  # a step of a microsecond: 1 ms at least
    found, _ = timed(source, a=0.0001, b=0.3)
    loops = {latency.calls_per_timing for latency in found.timings.latencies.values()}
    assert len(loops) == 1 and loops.pop() >= 5000
    assert found.timings.latencies["a"].median_ms == pytest.approx(0.0002)
    assert found.reading.latencies["b"].median_ms == pytest.approx(0.0001)


def test_threads_give_the_same_batches_as_the_caller() -> None:
    source = Counted(FakeClock(), [0.0] * 10)
    with Feed(source.dataset(), 4, 3) as several, Feed(source.dataset(), 4, 1) as alone:
        assert (several.readers, alone.readers) == (3, 1)
        for _ in range(6):
            np.testing.assert_array_equal(several.next()["x"], alone.next()["x"])
    with Feed(source.dataset(), 1, 8) as feed:
        assert feed.readers == 1, "a batch of one is read by the caller"


def test_seek_counts_calls() -> None:
    with Feed(Counted(FakeClock(), [0.0] * 10).dataset(), 4, 1) as feed:
        feed.seek(7)
        assert feed.next()["x"][:, 0].tolist() == [8, 9, 0, 1]


def test_fewer_samples_than_a_batch() -> None:
    with Feed(Counted(FakeClock(), [0.0] * 2).dataset(), 5, 2) as feed:
        assert feed.next()["x"][:, 0].tolist() == [0, 1, 0, 1, 0]
        assert feed.next()["x"][:, 0].tolist() == [1, 0, 1, 0, 1]


def test_arrays_that_are_in_memory_are_said_to_be() -> None:
    found, _ = timed(Counted(FakeClock(), [1.0] * 3, kind="arrays"), a=1.0)
    assert found.in_memory


def test_record_survives_json() -> None:
    found, _ = timed(Counted(FakeClock(), [1.0] * 3), a=1.0, b=2.0)
    assert from_plain(EndToEnd, json.loads(dump_json(to_plain(found))), "end to end") == found


class TestRefused:
    def test_a_sample_that_cannot_be_read(self) -> None:
        source = Counted(FakeClock(), [1.0] * 5)
        source.damaged.add(2)
        with pytest.raises(DataError, match="'s2' of counted cannot be read") as caught:
            timed(source, a=1.0)
        assert caught.value.got == "is cut off"

    def test_a_sample_that_breaks_while_it_is_timed(self) -> None:
        source = Counted(FakeClock(), [1.0] * 5)
        engine = Engine("a", source.clock, lambda: 1.0)

        def damaging() -> float:
            if len(engine.seen) == 50:
                source.damaged.add(3)
            return 1.0

        engine.cost = damaging
        with pytest.raises(DataError, match="'s3' could be read before and cannot any more"):
            time_end_to_end({"a": engine}, "a", source.dataset(), 1, 1, short(), clock=source.clock.clock)
        assert len(engine.seen) > 50
        assert all(call != (3,) for call in engine.seen[51:])

    def test_in_threads_as_well(self) -> None:
        source = Counted(FakeClock(), [0.0] * 6)
        with Feed(source.dataset(), 4, 2) as feed:
            source.damaged.add(5)
            feed.next()
            with pytest.raises(DataError, match="'s5' could be read before"):
                feed.next()

    def test_random_numbers(self) -> None:
        with pytest.raises(ConfigError, match="random numbers have none"):
            Feed(open_dataset("random:4", [SPEC], ResolvedPreprocess(None, "ready")), 1, 1)

    def test_a_data_set_without_single_samples(self) -> None:
        with pytest.raises(DataError, match="cannot give single samples"):
            Feed(MemoryData(np.zeros((2, 2), np.float32), [0, 1]), 1, 1)


@contextmanager
def threads_end() -> Iterator[None]:
    import threading

    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_its_threads_end_with_it() -> None:
    with threads_end(), Feed(Counted(FakeClock(), [0.0] * 8).dataset(), 8, 4) as feed:
        feed.next()
