"""The truth table on a graph that NumPy computes beside it, with runtimes that are functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness_data import Array, FunctionEngine, MemoryData
from truth_graphs import ROWS, exact, float_model, quantized, quantized_model

from quantlab.degradation import DegradationCode
from quantlab.errors import DataError, MeasurementError, ModelError
from quantlab.graph import double
from quantlab.graph.model import Model
from quantlab.harness.gap import Gap
from quantlab.harness.truth import EXACT, FP32, FP32_OPTIMIZED, GRAPH_DOUBLE, GRAPH_FLOAT, Runtime, TruthSettings
from quantlab.harness.truth import measure_truth as measure
from quantlab.harness.truth_record import Judgement, Role, Truth, TruthRow
from quantlab.progress import Silent


def engine(function: Callable[[Array], Array], name: str = "runtime", **values: object) -> Runtime:
    return Runtime(name, FunctionEngine(name, function, ("y",), **values))


def as_float32(x: Array) -> Array:
    return quantized(x).astype(np.float32)


def run(*runtimes: Runtime, original: Model | None = None, batch_size: int = 4, rows: Array = ROWS) -> Truth:
    data = MemoryData(rows, [None] * len(rows))
    chosen = float_model() if original is None else original
    return measure(quantized_model(), chosen, runtimes, data, TruthSettings(batch_size, 1), Silent())


def row(truth: Truth, name: str = "runtime") -> TruthRow:
    found = truth.row(name)
    assert found is not None
    return found


def sqnr(reference: Array, value: Array) -> float:
    noise = float(np.sum((np.asarray(value, np.float64) - reference) ** 2))
    return 10 * math.log10(float(np.sum(np.asarray(reference, np.float64) ** 2)) / noise)


def figure(gap: Gap | None) -> float:
    assert gap is not None
    assert gap.sqnr_db is not None
    return gap.sqnr_db


class TestFigures:
    def test_against_numpy(self) -> None:
        def wrong(x: Array) -> Array:
            return (quantized(x) * 1.3).astype(np.float32)

        truth = run(engine(wrong))
        (output,) = row(truth).outputs
        got = wrong(ROWS)
        assert truth.truth == "float64"
        assert (truth.n_samples, truth.batch_size) == (10, 4)
        assert figure(output.graph) == pytest.approx(sqnr(quantized(ROWS), got), abs=1e-4)
        assert figure(output.exact) == pytest.approx(sqnr(exact(ROWS), got), abs=1e-4)
        assert figure(output.fp32) == pytest.approx(sqnr(exact(ROWS), got), abs=1e-3)
        assert output.graph is not None
        assert output.exact is not None
        assert output.graph.flips == 0
        assert output.exact.flips == np.count_nonzero(exact(ROWS).argmax(1) != quantized(ROWS).argmax(1))

    def test_references(self) -> None:
        truth = run(engine(as_float32))
        assert [one.name for one in truth.rows] == [
            GRAPH_DOUBLE, GRAPH_FLOAT, EXACT, FP32, FP32_OPTIMIZED, "runtime",
        ]  # fmt: skip
        (graph,) = row(truth, GRAPH_DOUBLE).outputs
        assert graph.graph is None
        assert figure(graph.exact) == pytest.approx(sqnr(exact(ROWS), quantized(ROWS)), abs=1e-4)
        assert row(truth, EXACT).outputs[0].exact is None
        assert figure(row(truth, FP32).outputs[0].exact) > 120
        assert figure(row(truth, FP32_OPTIMIZED).outputs[0].fp32) > 120
        assert truth.notes == ()

    @pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
    def test_batch_size_does_not_matter(self, batch_size: int) -> None:
        base, other = (row(run(engine(as_float32), batch_size=n)).outputs[0] for n in (4, batch_size))
        assert figure(other.graph) == pytest.approx(figure(base.graph), rel=1e-12)
        assert figure(other.exact) == pytest.approx(figure(base.exact), rel=1e-12)
        assert run(engine(as_float32), batch_size=batch_size).batch_size == min(batch_size, 10)

    def test_without_the_original(self) -> None:
        data = MemoryData(ROWS, [None] * 10)
        truth = measure(quantized_model(), None, [engine(as_float32)], data, TruthSettings(4, 1), Silent())
        assert [one.role for one in truth.rows] == [Role.GRAPH, Role.GRAPH, Role.RUNTIME]
        (output,) = row(truth).outputs
        assert (output.exact, output.fp32, row(truth).loss, truth.model) == (None, None, None, None)
        assert row(truth).judgement is Judgement.AS_WRITTEN

    def test_round_trip(self, tmp_path: Path) -> None:
        truth = run(engine(as_float32), Runtime("gone", None, "not installed"))
        (tmp_path / "truth.json").write_text(truth.to_json())
        assert Truth.load(tmp_path / "truth.json") == truth
        assert (truth.intervals.confidence, truth.intervals.resamples, truth.intervals.seed) == (0.95, 2000, 0)

    def test_a_fixed_batch_is_filled(self) -> None:
        """References and runtime take two samples a call; the figures are those of the samples alone."""
        data = MemoryData(ROWS[:5], [None] * 5)
        runtime = engine(as_float32, fixed_batch=2)
        truth = measure(quantized_model(2), float_model(2), [runtime], data, TruthSettings(4, 1), Silent())
        (output,) = row(truth).outputs
        assert figure(output.exact) == pytest.approx(sqnr(exact(ROWS[:5]), quantized(ROWS[:5])), abs=1e-4)
        assert output.batch is not None
        assert output.batch.is_equal


class TestJudgements:
    def test_as_written(self) -> None:
        found = row(run(engine(as_float32)))
        assert found.judgement is Judgement.AS_WRITTEN
        assert "what is lost is quantization's" in found.verdict
        assert found.notes == ()

    def test_its_own_error(self) -> None:
        found = row(run(engine(lambda x: (quantized(x) + 1.0).astype(np.float32))))
        assert found.judgement is Judgement.OWN_ERROR
        expected = sqnr(exact(ROWS), quantized(ROWS)) - sqnr(exact(ROWS), quantized(ROWS) + 1.0)
        assert found.loss is not None
        assert found.loss.value == pytest.approx(expected, abs=1e-3)
        assert found.loss.interval is not None
        assert found.loss.interval.low < expected < found.loss.interval.high

    def test_too_few_samples_for_an_interval(self) -> None:
        found = row(run(engine(lambda x: (quantized(x) + 1.0).astype(np.float32)), rows=ROWS[:9]))
        assert found.judgement is Judgement.OWN_ERROR
        assert found.verdict.endswith("; 9 samples are too few for an interval")
        assert found.loss is not None
        assert found.loss.interval is None

    def test_too_little_to_tell(self) -> None:
        """The runtime is off in one sample of ten: whether that is 0.5 dB depends on how often it comes."""

        def odd(x: Array) -> Array:
            return (quantized(x) + np.where(x[:, :1] == ROWS[3, 0], 1.2, 0.0)).astype(np.float32)

        found = row(run(engine(odd)))
        assert found.judgement is Judgement.CANNOT_TELL
        assert found.verdict.startswith("cannot tell from 10 samples whether runtime has an error of its own")

    def test_nan(self) -> None:
        def broken(x: Array) -> Array:
            result = as_float32(x)
            result[np.abs(x[:, 0]) > 6] = np.nan
            return result

        n_broken = int(np.count_nonzero(np.abs(ROWS[:, 0]) > 6))
        assert n_broken, "or the test shows nothing"
        found = row(run(engine(broken)))
        assert found.judgement is Judgement.NON_FINITE
        assert found.outputs[0].graph is not None
        assert found.outputs[0].graph.non_finite == 2 * n_broken

    def test_a_runtime_that_dies_leaves_the_others(self) -> None:
        calls = 0

        def dies(x: Array) -> Array:
            nonlocal calls
            calls += 1
            if calls > 7:
                raise MeasurementError("out of luck", got="call 8")
            return as_float32(x)

        truth = run(engine(dies, "dying"), engine(as_float32))
        assert row(truth, "dying").judgement is Judgement.FAILED
        assert "out of luck: call 8" in row(truth, "dying").verdict
        assert row(truth, "dying").outputs == ()
        assert row(truth).judgement is Judgement.AS_WRITTEN
        assert calls == 8, "it is not called again"

    def test_other_shapes_and_outputs(self) -> None:
        truth = run(engine(lambda x: as_float32(x)[:, :1]), Runtime("other", FunctionEngine("o", as_float32, ("q",))))
        assert "output 'y' has another shape" in row(truth).verdict
        assert "the output 'y' is missing" in row(truth, "other").verdict

    def test_a_runtime_that_is_not_there(self) -> None:
        truth = run(Runtime("tensorrt-rtx", None, "no GPU"), Runtime("y", None, "refused", Judgement.FAILED))
        assert row(truth, "tensorrt-rtx").judgement is Judgement.UNAVAILABLE
        assert row(truth, "tensorrt-rtx").verdict == "no GPU"
        assert row(truth, "y").judgement is Judgement.FAILED


class TestConsistency:
    def test_neighbours_in_a_batch(self) -> None:
        """An engine that takes its scale from the whole batch, as dynamic quantization does."""
        truth = run(engine(lambda x: (quantized(x) + 0.1 * np.abs(x).max()).astype(np.float32)))
        (output,) = row(truth).outputs
        assert output.batch is not None
        assert not output.batch.is_equal
        assert "batches of 4 give other results than one by one" in " ".join(row(truth).notes)
        (found,) = truth.degradations
        assert found.code is DegradationCode.BATCH_DISAGREES
        assert found.message.startswith("runtime: batches of 4")

    def test_a_batch_of_another_size_is_compared_sample_by_sample(self) -> None:
        (output,) = row(run(engine(as_float32))).outputs
        assert output.batch is not None
        assert output.batch.is_equal
        assert output.batch.values == 10 * 2

    def test_one_sample_at_a_time(self) -> None:
        (output,) = row(run(engine(as_float32, fixed_batch=1))).outputs
        assert output.batch is None

    def test_a_batch_that_fails_is_a_note(self) -> None:
        def single(x: Array) -> Array:
            if len(x) > 1:
                raise MeasurementError("one at a time")
            return as_float32(x)

        found = row(run(engine(single)))
        assert found.judgement is Judgement.AS_WRITTEN
        assert found.notes == ("a batch failed, single samples did not: one at a time",)

    def test_results_that_are_not_repeatable(self) -> None:
        rng = np.random.default_rng(0)
        found = row(run(engine(lambda x: (quantized(x) + 1e-6 * rng.standard_normal((len(x), 2))).astype(np.float32))))
        assert any("other results the second time" in note for note in found.notes)
        assert found.outputs[0].repeat is not None
        assert not found.outputs[0].repeat.is_equal


class TestReferences:
    def test_float64_that_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(double, "MAX_MULTIPLICATIONS", 0)
        truth = run(engine(as_float32))
        assert truth.truth == "float32"
        assert row(truth, GRAPH_DOUBLE).judgement is Judgement.UNAVAILABLE
        assert "too large for float64" in row(truth, EXACT).verdict
        assert any(note.startswith("float64 of the graph could not be had") for note in truth.notes)
        assert row(truth, GRAPH_FLOAT).verdict == "the truth of the graph"
        assert row(truth).judgement is Judgement.AS_WRITTEN
        assert figure(row(truth).outputs[0].fp32) == pytest.approx(sqnr(exact(ROWS), quantized(ROWS)), abs=1e-3)

    def test_references_that_disagree_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from quantlab.harness import truth as module

        plain = module.open_plain

        def off(model: Model, threads: int, optimize: object = None) -> object:
            run = plain(model, threads)
            if optimize is None:  # the FP32 engine, as users have it
                return lambda feed: {name: value * np.float32(1.1) for name, value in run(feed).items()}
            return run

        monkeypatch.setattr(module, "open_plain", off)
        truth = run(engine(as_float32))
        (note,) = truth.notes
        assert note.startswith("FP32 of the original, optimized is 20.0 dB from float64 of the original")

    def test_a_graph_that_onnx_runtime_does_not_take(self) -> None:
        broken = quantized_model()
        broken.proto.graph.node[3].op_type = "Nonsense"
        data = MemoryData(ROWS, [None] * 10)
        with pytest.raises(ModelError, match="float32 of the graph, as written: ONNX Runtime cannot run it"):
            measure(broken, None, [], data, TruthSettings(), Silent())

    def test_no_samples(self) -> None:
        with pytest.raises(DataError, match="no samples"):
            run(engine(as_float32), rows=ROWS[:0])
