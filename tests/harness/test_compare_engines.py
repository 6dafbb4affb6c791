"""Comparing engines: what is refused, what is counted, what is recorded."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from harness_data import Arrays, FunctionEngine, MemoryData

from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.tensorrt.timing import DeviceTimes, TimingSettings
from quantlab.errors import DataError, EngineMismatch, MeasurementError
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison
from quantlab.harness.latency import LatencySettings
from quantlab.precision import Precision
from quantlab.progress import Silent

UNTIMED = CompareSettings(batch_size=8, latency=None)
ROWS = np.random.default_rng(0).standard_normal((21, 6)).astype(np.float32)
LABELS = [int(row.argmax()) if i % 4 else None for i, row in enumerate(ROWS)]


def reference(**values: object) -> FunctionEngine:
    return FunctionEngine("onnxruntime-fp32", lambda x: x, **values)


def rounded(**values: object) -> FunctionEngine:
    fields = {"requested": Precision.INT8, "proved": Precision.INT8, "table_sha256": "c" * 64} | values
    return FunctionEngine("onnxruntime-int8-mse", lambda x: np.round(x * 4) / np.float32(4), **fields)


def run(*engines: FunctionEngine, data: MemoryData | None = None, settings: CompareSettings = UNTIMED) -> Comparison:
    chosen = MemoryData(ROWS, LABELS) if data is None else data
    return compare(engines, "onnxruntime-fp32", chosen, settings, Silent())


class TestResult:
    def test_the_reference_comes_first_and_is_itself(self) -> None:
        comparison = run(rounded(), reference())
        assert [result.name for result in comparison.variants] == ["onnxruntime-fp32", "onnxruntime-int8-mse"]
        (drift,) = comparison.variants[0].outputs
        assert (drift.sqnr_db, drift.max_abs_error) == (math.inf, 0.0)

    def test_numbers(self) -> None:
        comparison = run(reference(), rounded())
        result = comparison.variant("onnxruntime-int8-mse")
        assert result is not None
        got = np.round(ROWS * 4).astype(np.float64) / 4
        error = got - ROWS
        assert result.outputs[0].sqnr_db == pytest.approx(
            10 * np.log10(np.sum(ROWS.astype(float) ** 2) / np.sum(error**2))
        )
        assert result.classification is not None
        assert result.classification.n == comparison.n_samples == 21
        assert result.classification.n_labelled == 21 - 6
        assert result.classification.agreement == np.count_nonzero(got.argmax(1) == ROWS.argmax(1))
        assert (result.requested, result.proved, result.table_sha256) == (Precision.INT8, Precision.INT8, "c" * 64)
        assert result.latency is None
        assert comparison.noise_floor is None

    @pytest.mark.parametrize("batch_size", [1, 5, 21, 100])
    def test_batch_size_does_not_matter(self, batch_size: int) -> None:
        base = run(reference(), rounded())
        other = run(reference(), rounded(), settings=dataclasses.replace(UNTIMED, batch_size=batch_size))
        assert other.variants[1].classification == base.variants[1].classification
        for name in ("sqnr_db", "cosine", "kl_nats"):
            a, b = (getattr(c.variants[1].outputs[0], name) for c in (base, other))
            assert a == pytest.approx(b, rel=1e-9)

    def test_round_trip(self, tmp_path: Path) -> None:
        comparison = run(reference(), rounded())
        (tmp_path / "comparison.json").write_text(comparison.to_json())
        assert Comparison.load(tmp_path / "comparison.json") == comparison

    def test_an_output_that_is_no_scores(self) -> None:
        engines = [FunctionEngine("onnxruntime-fp32", lambda x: x.reshape(-1, 2, 3), ("map",))]
        (result,) = run(*engines).variants
        assert result.classification is None
        assert result.outputs[0].kl_nats is None

    def test_timing(self) -> None:
        latency = LatencySettings(seconds=0.0, warmup_ms=0.0, block_ms=0.01, min_rounds=3, max_rounds=3)
        engines = [reference(), rounded()]
        comparison = run(*engines, settings=dataclasses.replace(UNTIMED, latency=latency, latency_batch=50))
        assert comparison.noise_floor is not None
        for engine, result in zip(engines, comparison.variants, strict=True):
            assert result.latency is not None
            assert result.latency.batch_size == 50
            assert engine.calls[-1] == 50, "rows repeat where the first batch is smaller"


class TestRefusals:
    @pytest.mark.parametrize(("field", "what"), [("model_sha256", "model"), ("graph_sha256", "prepared graph")])
    def test_engines_of_other_models(self, field: str, what: str) -> None:
        with pytest.raises(EngineMismatch, match=f"onnxruntime-int8-mse was made from another {what}") as caught:
            run(reference(), rounded(**{field: "f" * 64}))
        assert "f" * 16 in str(caught.value.got)
        assert caught.value.expected is not None

    def test_other_outputs(self) -> None:
        with pytest.raises(EngineMismatch, match="has other outputs"):
            run(reference(), FunctionEngine("other", lambda x: x, ("logits",)))

    def test_an_unknown_reference(self) -> None:
        with pytest.raises(EngineMismatch, match="'onnxruntime-fp32' is not among the engines") as caught:
            run(rounded())
        assert caught.value.got == "onnxruntime-int8-mse"

    @pytest.mark.parametrize("label", [6, -1, 1000])
    def test_a_label_outside_the_classes_names_the_sample(self, label: int) -> None:
        labels = [*LABELS]
        labels[13] = label
        with pytest.raises(DataError, match="sample 's13' has a label outside") as caught:
            run(reference(), data=MemoryData(ROWS, labels))
        assert (caught.value.got, caught.value.expected) == (label, "0 to 5")

    def test_no_samples(self) -> None:
        with pytest.raises(DataError, match="no samples"):
            run(reference(), data=MemoryData(ROWS[:0], []))

    def test_another_shape(self) -> None:
        with pytest.raises(MeasurementError, match="another shape") as caught:
            run(reference(), FunctionEngine("short", lambda x: x[:, :3]))
        assert (caught.value.got, caught.value.expected) == ((8, 3), (8, 6))


class TestDegradations:
    def test_overlap_with_the_calibration_data(self) -> None:
        shared = tuple(f"{i:064x}" for i in (2, 7, 99))
        comparison = run(reference(), rounded(calibration_samples=shared))
        (degradation,) = comparison.degradations
        assert degradation.code is DegradationCode.OVERLAP
        assert (degradation.count, degradation.subjects) == (2, ("s2", "s7"))

    def test_those_of_data_and_engines_are_passed_on(self) -> None:
        first = Degradation(DegradationCode.LOSSY_DECODE, "alpha was dropped", 2)
        second = Degradation(DegradationCode.NOT_QUANTIZED, "a layer stayed", 1)
        comparison = run(
            reference(), rounded(degradations=(second,)), data=MemoryData(ROWS, LABELS, degradations=(first,))
        )
        assert set(comparison.degradations) == {first, second}

    @pytest.mark.parametrize(("n", "padded"), [(21, 3), (16, None)])
    def test_a_fixed_batch_that_is_not_filled(self, n: int, padded: int | None) -> None:
        engines = [reference(fixed_batch=8), rounded(fixed_batch=8)]
        comparison = run(
            *engines, data=MemoryData(ROWS[:n], LABELS[:n]), settings=dataclasses.replace(UNTIMED, batch_size=3)
        )
        assert engines[1].calls == [8, 8, 5][: -(-n // 8)], "the engine's own batch size is used, not the setting"
        assert comparison.n_samples == n
        found = [d.count for d in comparison.degradations if d.code is DegradationCode.PADDED_BATCH]
        assert found == ([padded] if padded else [])

    def test_nan_outputs_are_counted(self) -> None:
        def broken(x: np.ndarray) -> np.ndarray:
            return np.where(x > 2, np.nan, x).astype(np.float32)

        result = run(reference(), FunctionEngine("broken", broken)).variants[1]
        rows = int((ROWS > 2).any(axis=1).sum())
        assert result.outputs[0].non_finite == np.count_nonzero(ROWS > 2) > 0
        assert result.classification is not None
        assert result.classification.agreement == 21 - rows


class TimedEngine(FunctionEngine):
    """An engine that times itself on a GPU that takes half a millisecond; it can refuse to be captured."""

    capturable = True

    def time_device(self, inputs: Arrays, *, seconds: float = 3.0, use_graph: bool = False) -> DeviceTimes:
        if use_graph and not self.capturable:
            raise MeasurementError(f"{self.sidecar.name} cannot be captured")
        n = len(inputs["x"])
        settings = TimingSettings(seconds=seconds, use_graph=use_graph)
        column = np.full(4, 0.5)
        return DeviceTimes(column, column, column, column, 6.0, 1, n, settings, 10.0, 20.0)


class TestDeviceTimes:
    SETTINGS = CompareSettings(
        batch_size=8, latency_batch=4, latency=LatencySettings(seconds=0.2, warmup_ms=1.0, block_ms=1.0, min_rounds=2)
    )

    def test_engines_that_can_time_themselves_are_asked(self) -> None:
        comparison = run(reference(), TimedEngine("tensorrt-fp16", lambda x: x), settings=self.SETTINGS)
        first, second = comparison.variants
        assert first.device is None
        assert second.device is not None
        assert (second.device.batch_size, second.device.graph, second.device.compute.median_ms) == (4, True, 0.5)
        assert second.latency is not None, "the host's clock is read too"

    def test_if_one_cannot_be_captured_none_is(self) -> None:
        other = TimedEngine("tensorrt-int8", lambda x: x)
        other.capturable = False
        engines = (reference(), TimedEngine("tensorrt-fp16", lambda x: x), other)
        comparison = run(*engines, settings=self.SETTINGS)
        assert [result.device.graph for result in comparison.variants if result.device] == [False, False]

    def test_nothing_is_timed_without_a_budget(self) -> None:
        comparison = run(reference(), TimedEngine("tensorrt-fp16", lambda x: x))
        assert [result.device for result in comparison.variants] == [None, None]

    def test_round_trip(self, tmp_path: Path) -> None:
        comparison = run(reference(), TimedEngine("tensorrt-fp16", lambda x: x), settings=self.SETTINGS)
        path = tmp_path / "comparison.json"
        path.write_text(comparison.to_json(), encoding="utf-8")
        assert Comparison.load(path) == comparison
