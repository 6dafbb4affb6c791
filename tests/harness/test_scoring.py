"""Scores and their intervals: signs, counts, slices, too few samples, and samples that are not finite."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from harness_data import FunctionEngine, MemoryData
from scipy import stats
from scipy.special import softmax

from quantlab.datasets.slices import SliceTable
from quantlab.errors import ConfigError, DataError
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison, Score, Slice
from quantlab.harness.scoring import ScoringSettings, scores
from quantlab.harness.slicing import slicing
from quantlab.harness.tasks.protocol import Figure
from quantlab.harness.tasks.registry import TaskRequest, task_name
from quantlab.precision import Precision
from quantlab.progress import Silent
from quantlab.statistics.tango import loss_interval

N = 240
RNG = np.random.default_rng(3)
ROWS = (RNG.standard_normal((N, 8)) * 2).astype(np.float32)
LABELS = [int((row + RNG.standard_normal(8)).argmax()) for row in ROWS]
SETTINGS = CompareSettings(batch_size=32, latency=None)


def noisy(x: np.ndarray) -> np.ndarray:
    return np.round(x).astype(np.float32)


def run(
    function: object = noisy, rows: np.ndarray = ROWS, labels: list[int | None] | None = None, **settings: object
) -> Comparison:
    engines = [
        FunctionEngine("fp32", lambda x: x),
        FunctionEngine("int8", function, requested=Precision.INT8, proved=Precision.INT8),  # type: ignore[arg-type]
    ]
    data = MemoryData(rows, LABELS if labels is None else labels)
    return compare(engines, "fp32", data, dataclasses.replace(SETTINGS, **settings), Silent())  # type: ignore[arg-type]


def score(comparison: Comparison, figure: str, where: Slice | None = None, variant: int = 1) -> Score:
    (found,) = [s for s in comparison.variants[variant].scores if (s.figure, s.slice) == (figure, where)]
    return found


class TestShares:
    def test_top1_is_tangos_with_the_sign_of_a_gain(self) -> None:
        comparison = run()
        right, reference = noisy(ROWS).argmax(1) == LABELS, ROWS.argmax(1) == LABELS
        b, c = np.count_nonzero(reference & ~right), np.count_nonzero(right & ~reference)
        assert b != c and min(b, c) > 0
        found = score(comparison, "top1")
        assert found.value == pytest.approx(100 * right.mean())
        assert found.reference == pytest.approx(100 * reference.mean())
        assert found.difference == pytest.approx(100 * (c - b) / N) == pytest.approx(found.value - found.reference)
        low, high = loss_interval(b, c, N, 0.025)
        assert found.interval is not None
        assert (found.interval.low, found.interval.high) == pytest.approx((-100 * high, -100 * low))
        assert found.interval.low < found.difference < found.interval.high
        assert (found.interval.confidence, found.n, found.unit) == (0.95, N, "%")
        assert found.method.startswith("Tango")

    def test_a_gain_is_positive(self) -> None:
        """Reference and variant exchanged: every difference and interval is mirrored."""
        engines = [FunctionEngine("int8", noisy), FunctionEngine("fp32", lambda x: x)]
        mirrored = compare(engines, "int8", MemoryData(ROWS, LABELS), SETTINGS, Silent())
        one, other = score(run(), "top1"), score(mirrored, "top1")
        assert other.difference == -one.difference
        assert one.interval is not None and other.interval is not None
        assert (other.interval.low, other.interval.high) == pytest.approx((-one.interval.high, -one.interval.low))

    def test_agreement_has_an_interval_of_its_own_value(self) -> None:
        found = score(run(), "agreement")
        same = np.count_nonzero(noisy(ROWS).argmax(1) == ROWS.argmax(1))
        assert found.against_reference
        assert found.value == pytest.approx(100 * same / N)
        assert found.interval is not None
        assert found.interval.low < found.value < found.interval.high < 100

    def test_top5(self) -> None:
        found = score(run(), "top5")
        in_best = [np.count_nonzero(row >= row[label]) - 1 < 5 for row, label in zip(noisy(ROWS), LABELS, strict=True)]
        assert found.value == pytest.approx(100 * np.mean(in_best))

    def test_without_labels_only_agreement_is_told(self) -> None:
        comparison = run(labels=[None] * N)
        assert [s.figure for s in comparison.variants[1].scores] == ["agreement"]

    def test_some_labels(self) -> None:
        labels = [label if i % 3 else None for i, label in enumerate(LABELS)]
        comparison = run(labels=labels)
        assert score(comparison, "top1").n == score(comparison, "nll").n == 160
        assert score(comparison, "agreement").n == N


class TestProbabilities:
    def test_calibration_error_is_that_of_guo_et_al(self) -> None:
        p = softmax(noisy(ROWS).astype(float), axis=1)
        confidence, right = p.max(1), p.argmax(1) == LABELS
        expected = 0.0
        for m in range(15):
            inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert score(run(), "calibration_error").value == pytest.approx(100 * expected)

    def test_nll_and_brier(self) -> None:
        p = softmax(noisy(ROWS).astype(float), axis=1)
        comparison = run()
        assert score(comparison, "nll").value == pytest.approx(-np.log(p[np.arange(N), LABELS]).mean())
        assert score(comparison, "brier").value == pytest.approx(((p - np.eye(8)[LABELS]) ** 2).sum(1).mean())

    def test_probabilities_are_taken_as_they_are(self) -> None:
        p = softmax(ROWS.astype(float), axis=1).astype(np.float32)
        comparison = run(lambda x: x, rows=p)
        assert score(comparison, "nll").value == pytest.approx(-np.log(p[np.arange(N), LABELS]).mean(), rel=1e-5)

    def test_the_interval_is_a_paired_bootstrap(self) -> None:
        """Against scipy's, which resamples pairs."""
        both = [-np.log(softmax(x.astype(float), axis=1)[np.arange(N), LABELS]) for x in (noisy(ROWS), ROWS)]
        theirs = stats.bootstrap(
            tuple(both), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), paired=True, method="BCa",
            n_resamples=20000, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        found = score(run(resamples=20000), "nll")
        assert found.difference == pytest.approx(both[0].mean() - both[1].mean())
        assert found.interval is not None
        width = theirs.high - theirs.low
        assert found.interval.low == pytest.approx(theirs.low, abs=0.03 * width)
        assert found.interval.high == pytest.approx(theirs.high, abs=0.03 * width)

    def test_the_seed_makes_it_the_same(self) -> None:
        assert score(run(), "nll") == score(run(), "nll")
        assert score(run(), "nll") != score(run(seed=1), "nll")


class TestOutputs:
    def test_figures(self) -> None:
        comparison = run(task=TaskRequest("outputs"))
        assert comparison.task == "outputs"
        error = noisy(ROWS).astype(float) - ROWS
        per_sample = 10 * np.log10((ROWS.astype(float) ** 2).sum(1) / (error**2).sum(1))
        drift = comparison.variants[1].outputs[0]
        found = {s.figure: s for s in comparison.variants[1].scores}
        assert found["scores.sqnr_db"].value == pytest.approx(drift.sqnr_db)
        assert found["scores.sqnr_db_p5"].value == pytest.approx(np.sort(per_sample)[math.ceil(0.05 * N) - 1])
        assert found["scores.cosine"].value == pytest.approx(drift.cosine)
        assert found["scores.kl_nats"].value == pytest.approx(drift.kl_nats)
        assert found["scores.max_abs_error"].value == pytest.approx(drift.max_abs_error)
        assert found["scores.max_abs_error"].interval is None
        assert "single sample" in found["scores.max_abs_error"].method
        for name in ("sqnr_db", "sqnr_db_p5", "cosine", "kl_nats"):
            interval = found[f"scores.{name}"].interval
            assert interval is not None
            assert interval.low < found[f"scores.{name}"].value < interval.high
        own = {s.figure: (s.value, s.reference, s.difference) for s in comparison.variants[0].scores}
        assert own["scores.sqnr_db"] == (math.inf, math.inf, 0.0)

    def test_the_default_where_nothing_looks_like_scores(self) -> None:
        engines = [FunctionEngine("fp32", lambda x: x.reshape(-1, 2, 4), ("a", "b")), FunctionEngine("int8", lambda x: noisy(x).reshape(-1, 2, 4), ("a", "b"))]  # fmt: skip  # noqa: E501
        comparison = compare(engines, "fp32", MemoryData(ROWS, LABELS), SETTINGS, Silent())
        assert comparison.task == "outputs"
        figures = [s.figure for s in comparison.variants[1].scores]
        assert figures == [f"{o}.{f}" for o in "ab" for f in ("sqnr_db", "sqnr_db_p5", "cosine", "max_abs_error")]

    def test_a_variant_without_any_drift(self) -> None:
        comparison = run(lambda x: x, task=TaskRequest("outputs"))
        found = score(comparison, "scores.sqnr_db")
        assert found.interval is not None
        assert (found.value, found.interval.low, found.interval.high) == (math.inf, math.inf, math.inf)
        assert comparison.variants[1].worst == ()

    def test_the_worst_samples(self) -> None:
        comparison = run(task=TaskRequest("outputs"))
        error = noisy(ROWS).astype(float) - ROWS
        per_sample = 10 * np.log10((ROWS.astype(float) ** 2).sum(1) / (error**2).sum(1))
        worst = comparison.variants[1].worst
        assert [w.sample for w in worst] == [f"s{i}" for i in np.argsort(per_sample)[:10]]
        assert worst[0].drop == pytest.approx(-per_sample.min())
        assert worst[0].variant.startswith(f"{per_sample.min():.1f} dB")


class TestNotFinite:
    @staticmethod
    def broken(x: np.ndarray) -> np.ndarray:
        value = noisy(x)
        value[(ROWS[5] == x).all(axis=1)] = math.nan
        return value

    def test_classify_scores_it_wrong(self) -> None:
        comparison = run(self.broken)
        right = noisy(ROWS).argmax(1) == LABELS
        right[5] = False
        assert score(comparison, "top1").value == pytest.approx(100 * right.mean())
        assert score(comparison, "nll").value == math.inf
        assert score(comparison, "brier").value > score(run(), "brier").value

    def test_outputs_has_the_worst_there_is(self) -> None:
        comparison = run(self.broken, task=TaskRequest("outputs"))
        found = {s.figure.removeprefix("scores."): s.value for s in comparison.variants[1].scores if s.slice is None}
        assert found["sqnr_db"] == -math.inf
        assert found["kl_nats"] == found["max_abs_error"] == math.inf
        worst = comparison.variants[1].worst[0]
        assert (worst.sample, worst.variant, worst.drop) == ("s5", "not finite", math.inf)

    def test_a_result_with_infinities_is_read_back(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        for task in ("classify", "outputs"):
            comparison = run(self.broken, task=TaskRequest(task))
            (tmp_path / "comparison.json").write_text(comparison.to_json(), encoding="utf-8")
            assert Comparison.load(tmp_path / "comparison.json") == comparison


class TestSlices:
    def test_by_class(self) -> None:
        comparison = run()
        right, reference = noisy(ROWS).argmax(1) == LABELS, ROWS.argmax(1) == LABELS
        for number in range(8):
            inside = np.array(LABELS) == number
            found = score(comparison, "top1", Slice("class", str(number)))
            assert found.n == inside.sum()
            assert found.value == pytest.approx(100 * right[inside].mean())
            assert found.reference == pytest.approx(100 * reference[inside].mean())

    def test_not_by_class(self) -> None:
        assert all(s.slice is None for s in run(by_class=False).variants[1].scores)

    def test_many_classes_are_cut_and_counted(self) -> None:
        rows = np.random.default_rng(0).standard_normal((200, 120)).astype(np.float32)
        labels = [0] * 20 + [i % 120 for i in range(180)]
        comparison = run(rows=rows, labels=labels)
        told = {s.slice.value for s in comparison.variants[1].scores if s.slice}
        assert len(told) == 50
        assert {"0", "1", "19"} <= told, "those with the most samples"
        assert comparison.slices_left_out == {"class": 70}

    def test_by_columns_of_a_file(self) -> None:
        """Samples without a row, or with an empty cell, are in no slice."""
        values = {f"s{i}": ("left" if i % 2 else "right", "dark" if i < 5 else None) for i in range(100)}
        table = SliceTable(("camera", "light"), values)
        comparison = run(slices=table, by_class=False)
        told = {
            (s.slice.column, s.slice.value): s for s in comparison.variants[1].scores if s.slice and s.figure == "top1"
        }
        assert {key: s.n for key, s in told.items()} == {
            ("camera", "left"): 50, ("camera", "right"): 50, ("light", "dark"): 5,
        }  # fmt: skip
        assert told["light", "dark"].interval is None
        assert told["light", "dark"].method == "no interval: 5 samples, at least 10 are needed"
        right = noisy(ROWS).argmax(1) == LABELS
        assert told["camera", "left"].value == pytest.approx(100 * right[1:100:2].mean())

    def test_of_a_bootstrapped_figure(self) -> None:
        """A slice has the same scores as a comparison of its samples alone."""
        table = SliceTable(("half",), {f"s{i}": ("first" if i < 100 else "second",) for i in range(N)})
        inside = score(run(task=TaskRequest("outputs"), slices=table), "scores.sqnr_db", Slice("half", "first"))
        alone = score(run(rows=ROWS[:100], labels=LABELS[:100], task=TaskRequest("outputs")), "scores.sqnr_db")
        assert dataclasses.replace(inside, slice=None, interval=alone.interval) == alone
        assert inside.interval is not None and alone.interval is not None
        ends = (alone.interval.low, alone.interval.high)
        assert (inside.interval.low, inside.interval.high) == pytest.approx(ends, rel=1e-12)


class TestEvidence:
    def test_the_worst_samples_lost_most_probability(self) -> None:
        p, q = (softmax(x.astype(float), axis=1)[np.arange(N), LABELS] for x in (ROWS, noisy(ROWS)))
        worst = run().variants[1].worst
        order = np.argsort(q - p)[:10]
        assert [w.sample for w in worst] == [f"s{i}" for i in order]
        assert [w.drop for w in worst] == pytest.approx(list((p - q)[order]))
        assert worst[0].label == str(LABELS[order[0]])
        assert worst[0].reference.startswith(f"{ROWS[order[0]].argmax()} (")
        assert worst[0].variant.startswith(f"{noisy(ROWS)[order[0]].argmax()} (")

    def test_confusions(self) -> None:
        found = run().variants[1].confusions
        before, after = np.zeros((8, 8), int), np.zeros((8, 8), int)
        np.add.at(before, (LABELS, ROWS.argmax(1)), 1)
        np.add.at(after, (LABELS, noisy(ROWS).argmax(1)), 1)
        for change in found:
            at = int(change.label), int(change.answer)
            assert at[0] != at[1]
            assert (change.reference, change.count) == (before[at], after[at])
        moved = np.abs(after - before) * (1 - np.eye(8, dtype=int))
        assert [abs(c.count - c.reference) for c in found] == sorted(moved.ravel(), reverse=True)[:10]

    def test_names_of_classes(self) -> None:
        data = MemoryData(ROWS, LABELS)
        data.class_names = tuple("abcdefgh")  # type: ignore[assignment]
        engines = [FunctionEngine("fp32", lambda x: x), FunctionEngine("int8", noisy)]
        comparison = compare(engines, "fp32", data, SETTINGS, Silent())
        assert comparison.variants[1].worst[0].label in "abcdefgh"
        assert {s.slice.value for s in comparison.variants[1].scores if s.slice} == set("abcdefgh")


class TestTooFew:
    def test_no_interval_and_said(self) -> None:
        comparison = run(rows=ROWS[:9], labels=LABELS[:9])
        for found in comparison.variants[1].scores:
            assert found.interval is None
            if found.slice is None:
                assert found.method == "no interval: 9 samples, at least 10 are needed"
        assert score(run(rows=ROWS[:10], labels=LABELS[:10]), "top1").interval is not None


class TestRegistry:
    def test_a_misspelt_task(self) -> None:
        with pytest.raises(ConfigError, match="no task 'clasify'") as caught:
            run(task=TaskRequest("clasify"))
        assert caught.value.hint == "did you mean 'classify'?"

    def test_a_metric_and_a_task(self) -> None:
        with pytest.raises(ConfigError, match="task of its own"):
            task_name(TaskRequest("detect", "pkg:function"))
        assert task_name(TaskRequest(metric="pkg:function")) == "custom"
        with pytest.raises(ConfigError, match="needs a metric"):
            task_name(TaskRequest("custom"))

    def test_classify_needs_scores(self) -> None:
        engines = [FunctionEngine("fp32", lambda x: x.reshape(-1, 2, 4))]
        settings = dataclasses.replace(SETTINGS, task=TaskRequest("classify"))
        with pytest.raises(ConfigError, match="needs an output of class scores"):
            compare(engines, "fp32", MemoryData(ROWS, LABELS), settings, Silent())

    @pytest.mark.parametrize("task", ["classify", "outputs"])
    def test_settings_that_a_task_has_not(self, task: str) -> None:
        with pytest.raises(ConfigError, match="has no setting 'decoder'"):
            run(task=TaskRequest(task, options={"decoder": "yolov8"}))


def test_a_figure_over_other_samples_than_the_references_is_refused() -> None:
    """A mask that depends on the outputs would compare different samples as if they were paired."""

    class Masked:
        def __init__(self, kept: int) -> None:
            self.kept = kept

        def add(self, batch: object, outputs: object) -> dict[str, object]:
            raise NotImplementedError

        def estimators(self) -> dict[str, object]:
            return {"own": lambda weights: weights.sum(axis=1)}

        def correct(self, figure: str) -> object:
            raise NotImplementedError

        def counted(self, figure: str) -> object:
            return np.arange(20) < self.kept

    task = SimpleNamespace(name="custom", figures=(Figure("own", "", True),), least=1, meter=lambda: Masked(20))
    meters = {"reference": Masked(20), "variant": Masked(10)}
    with pytest.raises(DataError, match="own leaves out other samples of variant") as caught:
        scores(task, meters, 20, (), ScoringSettings())  # type: ignore[arg-type]
    assert caught.value.got == "10 samples counted for one of them alone"


def test_a_column_of_ones_own_named_class_is_told_even_with_one_value() -> None:
    table = SliceTable(("class",), {"1": ("day",), "2": ("day",)})
    (members,) = slicing(["1", "2"], None, table).members
    assert members.slice == Slice("class", "day")
