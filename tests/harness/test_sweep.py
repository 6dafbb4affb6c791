"""Querying engines: which clock, with how many callers, and what is told of the GPU meanwhile."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fake_nvml import H100, FakeNvml
from harness_data import FunctionEngine

from quantlab.engines.protocol import Arrays
from quantlab.engines.tensorrt.timing import DeviceTimes, TimingSettings, Trace, device_times
from quantlab.errors import MeasurementError
from quantlab.harness import energy, sweep
from quantlab.harness.bench import BenchSettings
from quantlab.harness.caution import CautionCode
from quantlab.harness.energy import COUNTER
from quantlab.harness.latency import LatencySettings
from quantlab.harness.queries import CUDA_EVENTS, HOST_CLOCK
from quantlab.harness.sweep import Queried, Setting, query_engines, time_against_each_other
from quantlab.progress import Silent

INPUTS = {"x": np.ones((2, 3), np.float32)}


def same(x: Any) -> Any:
    return x


class GpuEngine(FunctionEngine):
    """An engine on a GPU that takes half a millisecond; it can refuse to be captured."""

    def __init__(self, name: str, capturable: bool = True) -> None:
        super().__init__(name, same)
        self.capturable = capturable
        self.asked: list[Mapping[str, object]] = []

    def time_device(
        self, inputs: Arrays, *, seconds: float = 3.0, use_graph: bool = False, transfers: bool = True,
        spin: bool = False,
    ) -> DeviceTimes:  # fmt: skip
        self.asked.append({"seconds": seconds, "use_graph": use_graph, "transfers": transfers, "spin": spin})
        if use_graph and not self.capturable:
            raise MeasurementError(f"{self.sidecar.name} cannot be captured")
        settings = TimingSettings(seconds, 1.0, use_graph=use_graph, transfers=transfers, spin=spin)
        traces = [Trace(at, at + 0.25, at + 1.0, 0.25, 0.5, 0.25, 0.01, at) for at in np.arange(0.0, 12.0)]
        return device_times(traces, settings, batch_size=len(inputs["x"]), load_ms=10.0, first_run_ms=20.0)


def query(*engines: Any, streams: int = 1, **settings: Any) -> Queried:
    made = BenchSettings(query_seconds=0.01, **settings)
    return query_engines(engines, INPUTS, Setting(2, 2, streams), made, Silent())


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_SETTLE_S", 0.0)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_each_by_its_own_clock() -> None:
    found = query(FunctionEngine("cpu", same), GpuEngine("gpu"))
    assert [row.figures.clock for row in found.rows] == [HOST_CLOCK, CUDA_EVENTS]
    assert [(row.engine, row.threads, row.batch_size, row.streams) for row in found.rows] == [
        ("cpu", 2, 2, 1), ("gpu", 2, 2, 1),
    ]  # fmt: skip
    assert found.rows[1].figures.queries == 11, "one began in the warm-up"
    assert found.rows[1].energy is None
    assert set(found.times) == {"cpu", "gpu"}
    np.testing.assert_allclose(found.times["gpu"].latency_ms, 1.0)
    assert len(found.times["cpu"].latency_ms) == found.rows[0].figures.queries >= 10


def test_the_settings_reach_the_engine() -> None:
    engine = GpuEngine("gpu")
    query(engine, graph=False, transfers=False, spin=True)
    assert engine.asked == [{"seconds": 0.01, "use_graph": False, "transfers": False, "spin": True}]


def test_if_one_cannot_be_captured_none_is() -> None:
    one, other = GpuEngine("one"), GpuEngine("other", capturable=False)
    found = query(one, other)
    assert [row.figures.graph for row in found.rows] == [False, False]
    assert CautionCode.NO_GRAPH in [caution.code for caution in found.cautions]


def test_a_failure_without_graphs_is_an_error() -> None:
    class Broken(GpuEngine):
        def time_device(self, inputs: Arrays, **_: Any) -> DeviceTimes:
            raise MeasurementError("lost the GPU")

    with pytest.raises(MeasurementError, match="lost the GPU"):
        query(Broken("gpu"))


def test_several_callers() -> None:
    engine = GpuEngine("gpu")
    found = query(FunctionEngine("cpu", same), engine, streams=3)
    assert len(engine.asked) == 3
    assert [row.figures.streams for row in found.rows] == [3, 3]
    assert found.rows[1].figures.queries == 33
    assert [c.subject for c in found.cautions if c.code is CautionCode.MULTIPLE_STREAMS] == ["cpu", "gpu"]


def test_energy_and_clocks_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_SHORTEST_S", 0.0)
    counter = itertools.count(1_000_000, 2_400)
    clocks = itertools.cycle([1800, 1700])
    gpu = {**H100, "TotalEnergyConsumption": lambda: next(counter), "CurrentClocksEventReasons": 0x20}
    fake = FakeNvml(gpu)

    def clock(handle: int, kind: int) -> int:
        return next(clocks) if kind == 1 else 2619

    fake.nvmlDeviceGetClockInfo = clock  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found = query(GpuEngine("gpu"))
    spent = found.rows[0].energy
    assert spent is not None
    assert (spent.joules, spent.method, spent.queries, spent.batch_size) == (2.4, COUNTER, 12, 2)
    assert spent.millijoules_per_sample == pytest.approx(100.0)
    said = {caution.code: caution for caution in found.cautions}
    assert "from 1800 to 1700 MHz" in said[CautionCode.CLOCKS_CHANGED].text
    assert "software thermal slowdown" in said[CautionCode.THROTTLED].text
    assert fake.open == 0


def test_engines_against_each_other_by_label() -> None:
    """Builds of one variant have one name; labels tell them apart."""
    engines = {"base": FunctionEngine("same", same), "build 1": FunctionEngine("same", same)}
    settings = LatencySettings(seconds=0.05, warmup_ms=1.0, block_ms=1.0)
    found = time_against_each_other(engines, "base", INPUTS, 2, settings)
    assert set(found.latencies) == {"base", "build 1"}
    assert found.reference == "base"
