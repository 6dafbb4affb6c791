"""Ratios of times on a GPU in a comparison and in a bench: which engines, in which mode, and what is said without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from event_engines import EventEngine
from harness_data import FunctionEngine, MemoryData

from quantlab.degradation import DegradationCode
from quantlab.harness import device_timing
from quantlab.harness.bench import BenchSettings
from quantlab.harness.caution import CautionCode
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison
from quantlab.harness.device_timing import EVENT_BOUNDARIES
from quantlab.harness.latency import LatencySettings
from quantlab.harness.measurement import Boundary, Change
from quantlab.harness.sweep import time_gpu_engines
from quantlab.harness.timings import TimingCode
from quantlab.progress import Silent

SHORT = LatencySettings(seconds=0.0, warmup_ms=0.0, block_ms=0.5, min_rounds=6, max_rounds=6, half_width=0.0)
ROWS = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
INPUTS = {"x": ROWS[:4]}


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def run(*engines: FunctionEngine, told: Silent | None = None, timed: bool = True) -> Comparison:
    settings = CompareSettings(batch_size=8, latency_batch=4, latency=SHORT if timed else None)
    reference = engines[0].sidecar.name
    return compare(engines, reference, MemoryData(ROWS, [None] * 8), settings, told or Silent())


def ratios(comparison: Comparison) -> dict[str, float | None]:
    return {
        result.name: None if result.device_latency is None else round(result.device_latency.ratio, 6)
        for result in comparison.variants
    }


class TestCompare:
    def test_ratios_with_their_own_control(self, tmp_path: Path) -> None:
        comparison = run(EventEngine("fp32", 2.0), EventEngine("int8", 0.5))
        assert ratios(comparison) == {"fp32": 1.0, "int8": 0.25}
        result = comparison.variant("int8")
        assert result is not None and result.device_latency is not None
        assert result.device_latency.boundary == Boundary.DEVICE.words
        assert result.device_latency.change is Change.FASTER
        assert (result.device_latency.batch_size, result.device_latency.n_blocks) == (4, 6)
        floor = comparison.device_noise_floor
        assert floor is not None and (floor.low, floor.high) == pytest.approx((1.0, 1.0))
        assert result.device is not None and result.device.compute.median_ms == 0.5, "trtexec's figures are kept"
        (tmp_path / "comparison.json").write_text(comparison.to_json(), encoding="utf-8")
        assert Comparison.load(tmp_path / "comparison.json") == comparison

    def test_warnings_say_that_they_are_of_the_gpu(self) -> None:
        comparison = run(EventEngine("fp32", 2.0), EventEngine("int8", 0.5))
        few = [warning for warning in comparison.timing_warnings if warning.code is TimingCode.FEW_BLOCKS]
        assert [warning.message.startswith("on the GPU: ") for warning in few] == [False, True]

    @pytest.mark.parametrize("capturable", [True, False])
    def test_in_the_mode_of_the_figures(self, capturable: bool) -> None:
        engines = EventEngine("fp32", 2.0), EventEngine("int8", 0.5, capturable=capturable)
        comparison = run(*engines)
        for engine, result in zip(engines, comparison.variants, strict=True):
            assert result.device is not None and result.device.graph == capturable
            assert engine.asked == [{"use_graph": capturable, "transfers": True, "spin": False}]

    def test_engines_elsewhere_have_none(self) -> None:
        comparison = run(EventEngine("fp32", 2.0), FunctionEngine("cpu", lambda x: x), EventEngine("int8", 1.0))
        assert ratios(comparison) == {"fp32": 1.0, "cpu": None, "int8": 0.5}

    def test_without_the_reference_there_are_none_and_it_is_said(self) -> None:
        told = Told()
        comparison = run(FunctionEngine("cpu", lambda x: x), EventEngine("a", 2.0), EventEngine("b", 1.0), told=told)
        assert ratios(comparison) == {"cpu": None, "a": None, "b": None}
        assert comparison.device_noise_floor is None
        assert [result.device is not None for result in comparison.variants] == [False, True, True]
        assert any("no ratios on the GPU: the reference cpu is not timed there" in text for text in told.said)

    def test_a_reference_alone_is_not_timed_against_itself(self) -> None:
        alone = EventEngine("fp32", 2.0)
        assert ratios(run(alone, FunctionEngine("cpu", lambda x: x))) == {"fp32": None, "cpu": None}
        assert alone.asked == []

    def test_untimed(self) -> None:
        engines = EventEngine("fp32", 2.0), EventEngine("int8", 0.5)
        assert ratios(run(*engines, timed=False)) == {"fp32": None, "int8": None}

    def test_one_that_fails_has_none_and_the_others_do(self) -> None:
        comparison = run(EventEngine("fp32", 2.0), EventEngine("dies", 1.0, lives=7), EventEngine("int8", 0.5))
        assert ratios(comparison) == {"fp32": 1.0, "dies": None, "int8": 0.25}
        (degradation,) = comparison.degradations
        assert degradation.code is DegradationCode.ENGINE_FAILED
        assert degradation.message == "dies failed while it was timed and has no ratio on the GPU: fell off the bus"

    def test_a_reference_that_fails_leaves_none(self) -> None:
        comparison = run(EventEngine("fp32", 2.0, lives=7), EventEngine("int8", 0.5))
        assert ratios(comparison) == {"fp32": None, "int8": None}
        assert [degradation.subjects for degradation in comparison.degradations] == [("fp32",)]


class TestBench:
    def test_every_boundary(self) -> None:
        engines = EventEngine("fp32", 2.0), FunctionEngine("cpu", lambda x: x), EventEngine("int8", 0.5)
        settings = BenchSettings(spin=True)
        found, cautions = time_gpu_engines(engines, INPUTS, 3, 4, settings, SHORT, Silent())
        assert cautions == ()
        assert found is not None
        assert (found.threads, found.batch_size, found.graph, found.transfers, found.spin) == (3, 4, True, True, True)
        assert tuple(timings.boundary for timings in found.timings) == EVENT_BOUNDARIES
        assert [timings.latencies["int8"].ratio for timings in found.timings] == pytest.approx([0.25, 1.0, 2.0 / 3.5])
        assert all(set(timings.latencies) == {"fp32", "int8"} for timings in found.timings)

    def test_without_copies(self) -> None:
        found, _ = time_gpu_engines(
            [EventEngine("fp32", 2.0)], INPUTS, 1, 4, BenchSettings(transfers=False), SHORT, Silent()
        )
        assert found is not None
        assert [timings.boundary for timings in found.timings] == [Boundary.DEVICE, Boundary.ENQUEUE]

    def test_if_one_cannot_be_captured_none_is(self) -> None:
        engines = EventEngine("fp32", 2.0), EventEngine("int8", 0.5, capturable=False)
        found, (caution,) = time_gpu_engines(engines, INPUTS, 1, 4, BenchSettings(), SHORT, Silent())
        assert found is not None and not found.graph
        assert caution.code is CautionCode.NO_GRAPH
        assert [asked["use_graph"] for asked in engines[0].asked] == [True, False]

    def test_a_failure_without_graphs_is_an_error(self) -> None:
        with pytest.raises(device_timing.EngineDiedError, match="fell off the bus"):
            time_gpu_engines(
                [EventEngine("fp32", 2.0, lives=3)], INPUTS, 1, 4, BenchSettings(graph=False), SHORT, Silent()
            )

    def test_without_the_reference(self) -> None:
        engines = FunctionEngine("cpu", lambda x: x), EventEngine("int8", 0.5)
        found, (caution,) = time_gpu_engines(engines, INPUTS, 1, 4, BenchSettings(), SHORT, Silent())
        assert found is None
        assert caution.code is CautionCode.NO_GPU_RATIO
        assert "int8 have no ratios on the GPU, because the reference cpu" in caution.text

    def test_without_a_gpu_nothing_is_said(self) -> None:
        engines = [FunctionEngine("cpu", lambda x: x)]
        assert time_gpu_engines(engines, INPUTS, 1, 4, BenchSettings(), SHORT, Silent()) == (None, ())
