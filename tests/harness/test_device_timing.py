"""Engines timed against each other by CUDA events that the test makes up, so that every number is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from event_engines import EventEngine
from fake_clock import FakeClock

from quantlab.engines.protocol import BlockTimed
from quantlab.engines.tensorrt.timing import BlockTimes
from quantlab.errors import MeasurementError
from quantlab.harness.clocks import Clock
from quantlab.harness.device_timing import EVENT_BOUNDARIES, EngineDiedError, time_on_gpu
from quantlab.harness.latency import CONTROL, LatencySettings
from quantlab.harness.measurement import Boundary, Change

DEVICE, ENQUEUE, TRANSFERS = EVENT_BOUNDARIES
INPUTS = {"x": np.ones((4, 3), np.float32)}
SHORT = LatencySettings(
    seconds=0.0, warmup_ms=0.0, block_ms=5.0, min_rounds=20, max_rounds=20, half_width=0.0, least_seconds=0.0
)


def timed(*engines: EventEngine, settings: LatencySettings = SHORT, **how: Any) -> Any:
    by_name = {engine.sidecar.name: engine for engine in engines}
    clock: Clock = FakeClock().clock
    return time_on_gpu(by_name, next(iter(by_name)), INPUTS, 4, settings, **{"use_graph": True, "clock": clock, **how})


def test_one_measurement_gives_every_boundary() -> None:
    log: list[str] = []
    a, b = EventEngine("a", 2.0, log), EventEngine("b", 0.5, log)
    assert isinstance(a, BlockTimed)
    found = timed(a, b)
    assert tuple(found) == (Boundary.DEVICE, Boundary.ENQUEUE, Boundary.TRANSFERS)
    ratios = {boundary: timings.latencies["b"].ratio for boundary, timings in found.items()}
    assert ratios == pytest.approx({DEVICE: 0.25, ENQUEUE: 1.0, TRANSFERS: 2.0 / 3.5})
    for boundary, timings in found.items():
        assert (timings.boundary, timings.labels) == (boundary, ("a", "b", CONTROL))
        assert (timings.noise_floor.low, timings.noise_floor.high) == pytest.approx((1.0, 1.0))
        assert timings.order == found[DEVICE].order and len(timings.order) == 20
        assert {latency.boundary for latency in timings.latencies.values()} == {boundary.words}
    assert [found[boundary].latencies["b"].change for boundary in EVENT_BOUNDARIES] == [
        Change.FASTER, Change.EQUIVALENT, Change.FASTER,
    ]  # fmt: skip
    assert found[DEVICE].latencies["a"].median_ms == 2.0
    assert found[DEVICE].blocks_ms["b"] == (0.5,) * 20
    # 20 rounds of 3 blocks, each led in by a query of its own: none is made again for the other boundaries.
    warm_ups = sum(1 for _ in log) - 20 * 3 * 2
    assert 0 < warm_ups < 20


def test_the_devices_time_decides_the_length_of_blocks() -> None:
    found = timed(EventEngine("a", 2.0, []), EventEngine("b", 0.5, []))
    assert found[TRANSFERS].latencies["a"].n_calls == 20 * 3, "5 ms at 2 ms each, rounded up"
    assert found[TRANSFERS].latencies["b"].n_calls == 20 * 10


def test_the_settings_reach_the_engines() -> None:
    a, b = EventEngine("a", 2.0, []), EventEngine("b", 0.5, [])
    found = timed(a, b, use_graph=False, transfers=False, spin=True)
    assert tuple(found) == (DEVICE, ENQUEUE), "without copies there is no third boundary"
    assert a.asked == b.asked == [{"use_graph": False, "transfers": False, "spin": True}]


def test_noise_of_the_device_is_in_its_interval_and_control() -> None:
    rng = np.random.default_rng(0)

    class Noisy(EventEngine):
        def time(self, queries: int) -> BlockTimes:
            self.device_ms = float(rng.uniform(1.0, 2.0))
            return super().time(queries)

    found = timed(Noisy("a", 1.0, []), Noisy("b", 1.0, []))
    device = found[DEVICE]
    assert device.too_noisy and not found[ENQUEUE].too_noisy
    assert device.noise_floor.low < 1.0 < device.noise_floor.high
    assert device.latencies["b"].ratio_interval.low < 1.0 < device.latencies["b"].ratio_interval.high


@pytest.mark.parametrize("lives", [0, 1, 20])
def test_one_that_fails_is_named_and_all_are_let_go(lives: int) -> None:
    a, b = EventEngine("a", 2.0, []), EventEngine("b", 0.5, [], lives=lives)
    with pytest.raises(EngineDiedError, match="fell off the bus") as caught:
        timed(a, b)
    assert caught.value.name == "b"
    assert (a.open, b.open) == (0, 0)


def test_one_that_cannot_be_captured_is_named_and_all_are_let_go() -> None:
    a, b = EventEngine("a", 2.0, []), EventEngine("b", 0.5, [], capturable=False)
    with pytest.raises(EngineDiedError, match="no graph of it") as caught:
        timed(a, b)
    assert (caught.value.name, a.open, a.log) == ("b", 0, [])


def test_without_the_reference_there_is_no_ratio() -> None:
    with pytest.raises(MeasurementError, match="no reference 'z'"):
        time_on_gpu({"a": EventEngine("a", 1.0, [])}, "z", INPUTS, 4, SHORT, use_graph=False)
