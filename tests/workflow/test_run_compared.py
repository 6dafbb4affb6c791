"""What a recipe says under ``[compare]`` of the task, its truths, slices and a metric; and when that runs again."""

from __future__ import annotations

import sys

import pytest
from workflow_data import Project, Recorder

from quantlab.errors import ConfigError, DataError
from quantlab.gate import Outcome
from quantlab.graph.model import load_model
from quantlab.harness.comparison import Comparison
from quantlab.harness.samples import read_samples
from quantlab.workflow.sources import DataRequest, open_data

BEFORE_COMPARING = ["calibrate", "build fp32", "build fp16", "build int8"]
ALL = [*BEFORE_COMPARING, "compare"]


def ids_of(project: Project) -> list[str]:
    model = load_model(project.folder / "fashion-resnet.onnx")
    dataset, _ = open_data(model, DataRequest(str(project.folder / "evaluation.npz")), Recorder())
    return [entry.id for entry in dataset.manifest.entries]


def write_slices(project: Project, left: int) -> None:
    """Samples up to ``left`` are of the left camera."""
    rows = [f"{name},{'left' if number < left else 'right'}" for number, name in enumerate(ids_of(project))]
    (project.folder / "slices.csv").write_text("file,camera\n" + "\n".join(rows) + "\n")


def columns(comparison: Comparison) -> set[str | None]:
    return {score.slice.column if score.slice else None for result in comparison.variants for score in result.scores}


def run(project: Project) -> tuple[Comparison, list[str]]:
    recorder = Recorder()
    return project.run(recorder).comparison, recorder.cached


class TestSlices:
    def test_a_file_that_changes_is_noticed(self, project: Project) -> None:
        project.write(compare='slices = "slices.csv"')
        write_slices(project, 1000)
        first, cached = run(project)
        assert cached == BEFORE_COMPARING
        assert columns(first) == {None, "class", "camera"}
        assert run(project) == (first, ALL)
        write_slices(project, 200)
        second, cached = run(project)
        assert cached == BEFORE_COMPARING
        frame = read_samples(project.out / "samples.parquet")
        of_reference = frame[frame.variant == second.reference]
        for result in second.variants:
            found = {s.slice.value: s.n for s in result.scores if s.slice and s.slice.column == "camera"}
            assert found == of_reference["slice.camera"].value_counts().to_dict()

    def test_without_those_of_the_labels(self, project: Project) -> None:
        project.write(compare="by-class = false")
        comparison, cached = run(project)
        assert cached == BEFORE_COMPARING
        assert columns(comparison) == {None}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, r"slices\.csv does not exist"),
            ("file,camera\nnope.png,left\n", r"slices\.csv line 2 is about a sample that is not in"),
            ("file,class\n0,left\n", r"has a column 'class', which is what the slices of the labels are called"),
        ],
    )
    def test_a_mistake_costs_no_work(self, project: Project, text: str | None, message: str) -> None:
        project.write(method="mse", compare='slices = "slices.csv"')
        if text is not None:
            (project.folder / "slices.csv").write_text(text.replace("0,", f"{ids_of(project)[0]},"))
        before = {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()}
        with pytest.raises(DataError, match=message):
            project.run()
        assert {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()} == before


class TestTask:
    def test_another_task(self, project: Project) -> None:
        project.write(compare='task = "outputs"')
        comparison, cached = run(project)
        assert cached == BEFORE_COMPARING
        assert comparison.task == "outputs"
        assert {score.figure.rpartition(".")[2] for score in comparison.variants[1].scores} >= {"sqnr_db", "cosine"}

    @pytest.mark.parametrize(
        ("compare", "kind", "message"),
        [
            ('task = "clasify"', ConfigError, r"no task 'clasify'"),
            ('task = "detect"\nmetric = "m:f"', ConfigError, r"--metric is a task of its own"),
            ('metric = "no_such_module:f"', ConfigError, r"no Python module 'no_such_module'"),
            ('metric = "f"', ConfigError, r"the metric has a wrong form"),
            ('task = "regress"\nlabels = "gone.csv"', DataError, r"gone\.csv do not exist"),
            ("task-options = { scale = 2 }", ConfigError, r"task-options"),
            ("slices = 3", ConfigError, r"slices"),
            ('by-class = "no"', ConfigError, r"by-class"),
        ],
    )
    def test_a_mistake_costs_no_work(self, project: Project, compare: str, kind: type[Exception], message: str) -> None:
        project.write(method="mse", compare=compare)
        before = {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()}
        with pytest.raises(kind, match=message):
            project.run()
        assert {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()} == before

    def test_truths_and_options_that_change_are_noticed(self, project: Project) -> None:
        """Ten values a sample, as the model gives ten."""
        names = ids_of(project)

        def write(value: float) -> None:
            cells = ",".join([f"{value}"] * 10)
            head = ",".join(f"v{number}" for number in range(10))
            rows = "\n".join(f"{name},{cells}" for name in names)
            (project.folder / "truths.csv").write_text(f"file,{head}\n{rows}\n")

        compare = 'task = "regress"\nlabels = "truths.csv"'
        project.write(compare=compare)
        write(0.0)
        first, cached = run(project)
        assert cached == BEFORE_COMPARING
        assert first.task == "regress"
        assert run(project) == (first, ALL)
        write(1.0)
        second, cached = run(project)
        assert cached == BEFORE_COMPARING
        assert second.variants[0].scores != first.variants[0].scores


METRIC = """
import numpy as np

def largest(outputs, batch):
    return {expression}

largest.higher_is_better = True
"""


class TestMetric:
    def test_its_code_is_part_of_what_was_compared(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(project.folder))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        path = project.folder / "metric_of_a_recipe.py"
        project.write(compare='metric = "metric_of_a_recipe:largest"')

        def with_code(expression: str) -> tuple[Comparison, list[str]]:
            path.write_text(METRIC.format(expression=expression))
            sys.modules.pop("metric_of_a_recipe", None)
            return run(project)

        first, cached = with_code('outputs["logits"].max(axis=1)')
        assert cached == BEFORE_COMPARING
        assert first.task == "custom"
        assert with_code('outputs["logits"].max(axis=1)') == (first, ALL)
        second, cached = with_code('outputs["logits"].min(axis=1)')
        assert cached == BEFORE_COMPARING
        assert second.variants[0].scores[0].value < first.variants[0].scores[0].value


class TestGate:
    @pytest.mark.parametrize(("margin", "outcome"), [(99.0, Outcome.PASS), (0.001, Outcome.INCONCLUSIVE)])
    def test_every_slice_is_judged(self, project: Project, margin: float, outcome: Outcome) -> None:
        project.write(compare='slices = "slices.csv"')
        write_slices(project, 1000)
        (project.folder / "policy.toml").write_text(
            'schema = 1\n[[check]]\nid = "by-camera"\nmetric = "score"\nfigure = "top1"\nslices = "camera"\n'
            f'margin = {{ absolute_pp = {margin} }}\ncandidate = "int8"\n'
        )
        verdict = project.run().verdict
        judged = [check for check in verdict.checks if check.id.startswith("by-camera")]
        assert {check.outcome for check in judged} == {outcome}

    def test_a_column_that_is_not_there(self, project: Project) -> None:
        (project.folder / "policy.toml").write_text(
            'schema = 1\n[[check]]\nid = "by-camera"\nmetric = "score"\nfigure = "top1"\nslices = "camera"\n'
            "margin = { absolute_pp = 5.0 }\n"
        )
        verdict = project.run().verdict
        assert verdict.outcome is Outcome.ERROR
