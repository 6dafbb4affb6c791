"""Repetitions of a measurement, combined; times are those of a clock that the test turns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from fake_clock import FakeClock
from scipy import stats

from quantlab.errors import MeasurementError
from quantlab.harness.latency import CONTROL, LatencySettings, Timings, time_engines
from quantlab.harness.measurement import Change
from quantlab.harness.repetition import combine_timings
from quantlab.harness.timings import Stop, TimingCode
from quantlab.statistics.ratio import half_width


def measured(
    ratio: float, seed: int = 0, noise: float = 0.01, names: tuple[str, str] = ("a", "b"), rounds: int = 24
) -> Timings:
    clock = FakeClock()
    rng = np.random.default_rng(seed)
    calls = {
        name: clock.engine(name, lambda base=base: base * float(np.exp(noise * rng.standard_normal())))
        for name, base in zip(names, (1.0, ratio), strict=True)
    }
    settings = LatencySettings(
        seconds=0.0, warmup_ms=0.0, block_ms=1.0, min_rounds=rounds, max_rounds=rounds, half_width=0.0, seed=seed
    )
    return time_engines(calls, names[0], 2, settings, clock=clock.clock)


def test_interval_is_over_the_repetitions() -> None:
    """Processes that differ much more than each one's error: Student's interval of their means."""
    ratios = (1.1, 1.3, 1.2)
    parts = [measured(ratio, seed, 0.0) for seed, ratio in enumerate(ratios)]
    found = combine_timings(parts)
    logs = np.log(ratios)
    low, high = np.exp(stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs)))
    latency = found.latencies["b"]
    assert latency.ratio == pytest.approx(math.exp(logs.mean()))
    assert (latency.ratio_interval.low, latency.ratio_interval.high) == pytest.approx((low, high), rel=1e-4)
    assert found.variations["b"].ratios == pytest.approx(ratios)
    assert found.variations["b"].between == pytest.approx(np.std(logs, ddof=1), rel=1e-3)
    assert found.variations["b"].within == pytest.approx(0.0, abs=1e-9)


def test_words_are_of_the_combination() -> None:
    """Each process alone is sure, but they contradict each other."""
    parts = [measured(0.8, 0), measured(1.2, 1), measured(1.1, 2)]
    assert {part.latencies["b"].change for part in parts} == {Change.FASTER, Change.SLOWER}
    found = combine_timings(parts)
    assert found.latencies["b"].change is Change.INCONCLUSIVE
    assert found.latencies["a"].change is None
    assert found.latencies["a"].ratio_interval.low == found.latencies["a"].ratio_interval.high == 1.0


def test_agreeing_processes_are_no_surer_than_their_errors() -> None:
    parts = [measured(1.2, seed) for seed in range(3)]
    found = combine_timings(parts)
    errors = [part.latencies["b"].log_error for part in parts]
    least = 1 / math.sqrt(sum(1 / error**2 for error in errors if error is not None))
    assert half_width(found.latencies["b"].ratio_interval) >= stats.t.ppf(0.975, 2) * least * 0.999
    assert found.noise_floor.low < 1.0 < found.noise_floor.high


def test_keeps_every_repetition_and_its_raw_blocks() -> None:
    parts = [measured(1.2, seed) for seed in range(3)]
    found = combine_timings(parts)
    assert found.processes == tuple(parts)
    assert not found.blocks_ms
    assert set(found.variations) == {"b"}
    assert found.latencies["b"].n_calls == sum(part.latencies["b"].n_calls for part in parts)
    assert found.latencies["b"].n_blocks == 72
    assert found.latencies["b"].median_ms == pytest.approx(np.median([part.latencies["b"].median_ms for part in parts]))
    assert found.latencies["b"].p99_ms is None
    assert found.latencies["b"].p90_interval is None
    assert found.labels == ("a", "b", CONTROL)


def test_warnings_say_which_process() -> None:
    clock = FakeClock()
    calls = {"a": clock.engine("a", lambda: 1.0)}
    settings = LatencySettings(seconds=0.0, warmup_ms=0.0, block_ms=1.0, min_rounds=6, max_rounds=6)
    one = time_engines(calls, "a", 1, settings, clock=clock.clock)
    found = combine_timings([one, one])
    assert [warning.code for warning in found.warnings] == [TimingCode.FEW_BLOCKS] * 2
    assert [warning.message[:10] for warning in found.warnings] == ["process 1:", "process 2:"]


@pytest.mark.parametrize(
    ("stops", "found"),
    [
        ((Stop.PRECISION, Stop.PRECISION), Stop.PRECISION),
        ((Stop.TIME, Stop.PRECISION), Stop.TIME),
        ((Stop.PRECISION, Stop.TIME), Stop.TIME),
        ((Stop.PRECISION, Stop.ROUNDS, Stop.TIME), Stop.TIME),
    ],
)
def test_it_stopped_for_precision_only_if_all_did(stops: tuple[Stop, ...], found: Stop) -> None:
    one = measured(1.2)
    assert combine_timings([dataclasses.replace(one, stop=stop) for stop in stops]).stop is found


def test_a_process_of_two_rounds_says_nothing() -> None:
    """Its error is infinite, which must not become NaN."""
    parts = [measured(1.2, 0), measured(1.2, 1, rounds=2), measured(1.2, 2)]
    found = combine_timings(parts).latencies["b"]
    assert found.ratio == pytest.approx(1.2, rel=0.02)
    assert (found.ratio_interval.low, found.ratio_interval.high) == (0.0, math.inf)
    assert found.change is Change.INCONCLUSIVE


def test_one_process_is_returned_as_it_is() -> None:
    one = measured(1.2)
    assert combine_timings([one]) is one


def test_what_cannot_be_combined() -> None:
    with pytest.raises(MeasurementError, match="no measurement"):
        combine_timings([])
    with pytest.raises(MeasurementError, match="same engines") as caught:
        combine_timings([measured(1.2), measured(1.2, names=("a", "c"))])
    assert "a, c" in str(caught.value.got)
