"""An engine that fails in the middle: it is left out and named, the others' results are kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from harness_data import Arrays, FunctionEngine, MemoryData

from quantlab.degradation import DegradationCode
from quantlab.engines.tensorrt.timing import DeviceTimes, TimingSettings
from quantlab.errors import MeasurementError
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison
from quantlab.harness.latency import LatencySettings
from quantlab.harness.samples import read_samples
from quantlab.progress import Silent

ROWS = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
LABELS = [int(row.argmax()) for row in ROWS]
UNTIMED = CompareSettings(batch_size=8, latency=None)
TIMED = dataclasses.replace(
    UNTIMED, latency=LatencySettings(seconds=0.0, warmup_ms=0.0, block_ms=0.01, min_rounds=3, max_rounds=3)
)


class Dying(FunctionEngine):
    """Fails in a call, and in all after it."""

    def __init__(self, name: str, at: int, what: str = "out of memory") -> None:
        super().__init__(name, lambda x: x)
        self.at, self.what = at, what

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        if len(self.calls) >= self.at:
            raise MeasurementError(self.what)
        return super().run(inputs)


def fine(name: str) -> FunctionEngine:
    return FunctionEngine(name, lambda x: np.round(x * 4) / np.float32(4))


def run(*engines: FunctionEngine, settings: CompareSettings = UNTIMED, samples: Path | None = None) -> Comparison:
    return compare(engines, "fp32", MemoryData(ROWS, LABELS), settings, Silent(), samples)


class TestOnSamples:
    def test_the_others_are_kept_as_if_it_had_not_been_there(self, tmp_path: Path) -> None:
        dying = Dying("dies", 2)
        comparison = run(fine("fp32"), dying, fine("int8"), samples=tmp_path / "s.parquet")
        alone = run(fine("fp32"), fine("int8"))
        assert [result.name for result in comparison.variants] == ["fp32", "int8"]
        assert comparison.variants == alone.variants
        (degradation,) = comparison.degradations
        assert degradation.code is DegradationCode.ENGINE_FAILED
        assert degradation.subjects == ("dies",)
        assert degradation.message == (
            "dies failed at one of the samples 's16' to 's23', after 16 samples, and is left out: out of memory"
        )
        rows = read_samples(tmp_path / "s.parquet").groupby("variant").size().to_dict()
        assert rows == {"dies": 16, "fp32": 40, "int8": 40}

    def test_the_reference_is_needed(self) -> None:
        with pytest.raises(MeasurementError, match="out of memory"):
            run(Dying("fp32", 2), fine("int8"))

    def test_nothing_is_left_to_compare(self) -> None:
        with pytest.raises(MeasurementError, match="the second"):
            run(fine("fp32"), Dying("a", 3, "the first"), Dying("b", 1, "the second"))

    def test_the_reference_alone_may_be_compared_with_itself(self) -> None:
        assert [result.name for result in run(fine("fp32")).variants] == ["fp32"]

    @pytest.mark.parametrize(
        "got", [{}, {"scores": 0, "extra": 0}, {"other": 0}], ids=["missing", "too many", "renamed"]
    )
    def test_outputs_that_it_did_not_announce(self, got: dict[str, int]) -> None:
        class Lying(FunctionEngine):
            def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
                return {name: np.asarray(inputs["x"]) for name in got}

        with pytest.raises(MeasurementError, match="lies does not give the outputs that it says") as caught:
            run(fine("fp32"), Lying("lies", lambda x: x))
        assert (caught.value.got, caught.value.expected) == (", ".join(got) or "none", "scores")


class TestWhileTimed:
    def test_only_its_times_are_missing(self) -> None:
        comparison = run(fine("fp32"), Dying("dies", 7), fine("int8"), settings=TIMED)
        times = {result.name: result.latency is not None for result in comparison.variants}
        assert times == {"fp32": True, "dies": False, "int8": True}
        assert comparison.variants[1].scores
        (degradation,) = comparison.degradations
        assert degradation.code is DegradationCode.ENGINE_FAILED
        assert degradation.message == "dies failed while it was timed and has no latency: out of memory"

    def test_the_reference_is_needed(self) -> None:
        with pytest.raises(MeasurementError, match="out of memory"):
            run(Dying("fp32", 6), fine("int8"), settings=TIMED)

    def test_on_the_gpu(self) -> None:
        class OnGpu(FunctionEngine):
            def time_device(self, inputs: Arrays, *, seconds: float = 3.0, use_graph: bool = False) -> DeviceTimes:
                if self.sidecar.name == "dies":
                    raise MeasurementError("the launch failed")
                column = np.full(4, 0.5)
                settings = TimingSettings(seconds=seconds, use_graph=use_graph)
                return DeviceTimes(column, column, column, column, 6.0, 1, 1, settings, 10.0, 20.0)

        engines = [fine("fp32"), *(OnGpu(name, lambda x: x) for name in ("dies", "works"))]
        comparison = run(*engines, settings=TIMED)
        assert [result.device is not None for result in comparison.variants] == [False, False, True]
        (degradation,) = comparison.degradations
        assert degradation.message == "dies failed while it was timed and has no times on the GPU: the launch failed"
