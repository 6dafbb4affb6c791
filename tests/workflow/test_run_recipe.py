"""The whole chain, and what is run again after a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from workflow_data import Project, Recorder

from quantlab.calibrators import CalibrationCache, CalibrationTable, load_histograms
from quantlab.datasets import PRESETS, ResolvedPreprocess, preprocess_from_metadata
from quantlab.engines.sidecar import read_sidecar
from quantlab.errors import ConfigError, EngineMismatch, ModelError
from quantlab.gate import Outcome
from quantlab.graph.model import load_model
from quantlab.harness.comparison import Comparison
from quantlab.workflow.compare import check_preprocess, find_engines, open_engines, reference_name
from quantlab.workflow.run import RunResult
from quantlab.workflow.sources import DataRequest, open_data

STEPS = ["calibrate", "build fp32", "build fp16", "build int8", "compare"]


class TestFirstRun:
    def test_everything_is_there(self, finished: tuple[Project, RunResult]) -> None:
        project, result = finished
        assert all((project.folder / path).exists() for path in result.files)
        names = sorted(path.relative_to(project.out).as_posix() for path in project.out.rglob("*") if path.is_file())
        assert names == [
            "calibration/calibration.json", "calibration/fashion-resnet.calib",
            "calibration/fashion-resnet.calib.json", "calibration/fashion-resnet.qdq.onnx",
            "calibration/histograms.npz", "comparison.csv", "comparison.json", "comparison.md",
            "engines/onnxruntime-fp16.onnx", "engines/onnxruntime-fp16.onnx.engine.json",
            "engines/onnxruntime-fp32.onnx", "engines/onnxruntime-fp32.onnx.engine.json",
            "engines/onnxruntime-int8-minmax.onnx", "engines/onnxruntime-int8-minmax.onnx.engine.json",
            "gate.json", "junit.xml", "samples.parquet", "state.json", "summary.md",
        ]  # fmt: skip

    def test_the_result_is_what_was_written(self, finished: tuple[Project, RunResult]) -> None:
        project, result = finished
        assert Comparison.load(project.out / "comparison.json") == result.comparison
        assert result.verdict.outcome is Outcome.PASS
        assert result.comparison.n_samples == 60
        assert result.comparison.reference == "onnxruntime-fp32"
        int8 = result.comparison.variant("onnxruntime-int8-minmax")
        assert int8 is not None
        assert int8.outputs[0].sqnr_db > 15
        assert int8.classification is not None
        assert int8.classification.n_labelled == 60

    def test_calibration_files_belong_together(self, finished: tuple[Project, RunResult]) -> None:
        folder = finished[0].out / "calibration"
        table = CalibrationTable.load(folder / "calibration.json")
        assert (table.method, table.n_samples) == ("minmax", 24)
        assert len(table.provenance.samples) == 24
        cache = CalibrationCache.load(folder / "fashion-resnet.calib")
        histograms = load_histograms(folder / "histograms.npz")
        assert set(cache.scales) == {entry.name for entry in table.tensors}
        counted = {entry.name for entry in table.tensors if entry.counted}
        assert set(histograms) == counted
        assert len(counted) == 52, "all of the prepared graph"
        assert len(table.tensors) == 73, "and those before folded batch normalizations"
        for entry in table.tensors:
            amax = max(-entry.minimum, entry.maximum)
            assert cache.scales[entry.name] * 127 == pytest.approx(amax, rel=1e-6)
            assert entry.name not in counted or histograms[entry.name].maximum == entry.maximum
        metadata = load_model(folder / "fashion-resnet.qdq.onnx").metadata
        assert preprocess_from_metadata(metadata) is not None

    def test_engines_know_their_origin(self, finished: tuple[Project, RunResult]) -> None:
        project, _ = finished
        table = CalibrationTable.load(project.out / "calibration" / "calibration.json")
        sidecars = [read_sidecar(path) for path in find_engines([project.out / "engines"])]
        assert len({sidecar.model_sha256 for sidecar in sidecars}) == 1
        assert [s.table_sha256 for s in sidecars if s.table_sha256] == [table.sha256]


class TestSecondRun:
    def test_everything_is_cached_and_the_same_to_the_byte(self, project: Project, recorder: Recorder) -> None:
        files = ("comparison.json", "comparison.csv", "comparison.md", "gate.json", "junit.xml", "summary.md")
        before = {name: (project.out / name).read_bytes() for name in files}
        project.run(recorder)
        assert recorder.cached == STEPS
        assert {name: (project.out / name).read_bytes() for name in files} == before

    def test_force_runs_all_again_to_the_same_numbers(self, project: Project, recorder: Recorder) -> None:
        before = Comparison.load(project.out / "comparison.json")
        engines = {path.name: path.read_bytes() for path in (project.out / "engines").iterdir()}
        after = project.run(recorder, force=True).comparison
        assert recorder.cached == []
        assert after.variants == before.variants
        assert {path.name: path.read_bytes() for path in (project.out / "engines").iterdir()} == engines

    def test_another_method(self, project: Project, recorder: Recorder) -> None:
        project.write(method="mse")
        result = project.run(recorder)
        assert recorder.cached == ["build fp32", "build fp16"]
        assert [v.name for v in result.comparison.variants][-1] == "onnxruntime-int8-mse"

    def test_another_precision(self, project: Project, recorder: Recorder) -> None:
        project.write(precisions=("fp16", "int8", "bf16"))
        result = project.run(recorder)
        assert recorder.cached == STEPS[:-1]
        assert len(result.comparison.variants) == 4

    def test_weights_alone_do_not_depend_on_the_table(self, project: Project, recorder: Recorder) -> None:
        project.write(precisions=("int8-weights",))
        result = project.run(recorder)
        assert recorder.cached == ["calibrate", "build fp32"]
        assert [v.name for v in result.comparison.variants] == ["onnxruntime-fp32", "onnxruntime-int8-weights"]
        assert result.comparison.variants[1].outputs[0].sqnr_db > 40
        again = Recorder()
        project.write(method="mse", precisions=("int8-weights",))
        project.run(again)
        assert again.cached == ["build fp32", "build int8-weights", "compare"]

    @pytest.mark.parametrize(
        ("name", "rerun"),
        [
            ("comparison.json", {"compare"}),
            ("engines/onnxruntime-fp16.onnx", {"build fp16"}),
            ("engines/onnxruntime-fp16.onnx.engine.json", {"build fp16"}),
            ("calibration/fashion-resnet.calib", {"calibrate"}),
        ],
    )
    def test_a_tampered_file_is_made_again(
        self, project: Project, recorder: Recorder, name: str, rerun: set[str]
    ) -> None:
        path = project.out / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        project.run(recorder)
        assert set(STEPS) - set(recorder.cached) == rerun
        if name != "comparison.json":  # which records the load of the machine
            assert path.read_bytes() == content

    def test_other_data(self, project: Project, recorder: Recorder) -> None:
        path = project.folder / "evaluation.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["image"][:] = arrays["image"][::-1]
        np.savez(path, **arrays)
        project.run(recorder)
        assert recorder.cached == STEPS[:-1]

    def test_a_model_file_that_changed_but_prepares_to_the_same_graph(
        self, project: Project, recorder: Recorder
    ) -> None:
        """An unused weight: the graph is the same, the file and so the provenance are not."""
        path = project.folder / "fashion-resnet.onnx"
        proto = onnx.load(path)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1, 2]), "unused"))
        onnx.save(proto, path)
        result = project.run(recorder)
        assert recorder.cached == []
        assert result.comparison.model_sha256 == load_model(path).sha256

    def test_an_interruption_resumes(self, project: Project) -> None:
        shutil.rmtree(project.out)

        class Interrupting(Recorder):
            def say(self, text: str) -> None:
                super().say(text)
                if text.startswith("built  onnxruntime-fp16"):
                    raise KeyboardInterrupt

        first, second = Interrupting(), Recorder()
        with pytest.raises(KeyboardInterrupt):
            project.run(first)
        assert first.cached == []
        project.run(second)
        assert second.cached == ["calibrate", "build fp32"]


class TestRefusals:
    @pytest.mark.parametrize("section", ["calibrate", "compare"])
    def test_a_section_that_is_missing(self, tmp_path: Path, section: str) -> None:
        other = {"calibrate": "compare", "compare": "calibrate"}[section]
        (tmp_path / "quantlab.toml").write_text(f'schema = 1\n[model]\nfile = "m.onnx"\n[{other}]\ndata = "x"\n')
        with pytest.raises(ConfigError, match=rf"no \[{section}\] section"):
            Project(tmp_path).run()

    def test_a_mistake_in_the_policy_costs_no_work(self, project: Project) -> None:
        shutil.rmtree(project.out)
        (project.folder / "policy.toml").write_text("schema = 1\n[[check]]\nid = 3\n")
        with pytest.raises(ConfigError, match=r"policy\.toml"):
            project.run()
        assert not (project.out / "calibration").exists()

    def test_a_mistake_in_the_evaluation_data_costs_no_calibration(self, project: Project) -> None:
        shutil.rmtree(project.out)
        (project.folder / "evaluation.npz").write_bytes(b"PK")
        with pytest.raises(Exception, match=r"evaluation\.npz"):
            project.run()
        assert not (project.out / "calibration").exists()


class TestEngines:
    def test_find(self, finished: tuple[Project, RunResult], tmp_path: Path) -> None:
        folder = finished[0].out / "engines"
        found = find_engines([folder])
        assert [path.name for path in found] == [
            "onnxruntime-fp16.onnx",
            "onnxruntime-fp32.onnx",
            "onnxruntime-int8-minmax.onnx",
        ]
        assert find_engines([found[1], folder]) == [found[1], found[0], found[2]]
        for wrong in ([], [tmp_path], [tmp_path / "x.onnx"]):
            with pytest.raises(ConfigError, match="engine"):
                find_engines(wrong)

    def test_two_of_one_name(self, finished: tuple[Project, RunResult], tmp_path: Path) -> None:
        folder = finished[0].out / "engines"
        shutil.copytree(folder, tmp_path / "copy")
        paths = [folder / "onnxruntime-fp32.onnx", tmp_path / "copy" / "onnxruntime-fp32.onnx"]
        with (
            pytest.raises(EngineMismatch, match="two engines are named onnxruntime-fp32"),
            open_engines(paths, 1),
        ):
            pass

    def test_reference(self, finished: tuple[Project, RunResult]) -> None:
        sidecars = [read_sidecar(path) for path in find_engines([finished[0].out / "engines"])]
        assert reference_name(sidecars, None) == "onnxruntime-fp32"
        assert reference_name(sidecars, "onnxruntime-fp16") == "onnxruntime-fp16"
        with pytest.raises(ConfigError, match="no engine is named"):
            reference_name(sidecars, "onnxruntime-fp61")
        with pytest.raises(ConfigError, match="cannot tell which engine is the reference"):
            reference_name([s for s in sidecars if s.requested != "fp32"], None)

    def test_another_preprocessing(self, finished: tuple[Project, RunResult]) -> None:
        sidecars = [read_sidecar(path) for path in find_engines([finished[0].out / "engines"])]
        model = load_model(finished[0].folder / "fashion-resnet.onnx")
        _, own = open_data(model, DataRequest(str(finished[0].folder / "evaluation.npz"), limit=1), Recorder())
        check_preprocess(sidecars, own)
        for other in (None, PRESETS["imagenet"]):
            with pytest.raises(Exception, match="int8-minmax was calibrated with another preprocessing"):
                check_preprocess(sidecars, ResolvedPreprocess(other, "test"))


def test_the_state_holds_no_absolute_paths(finished: tuple[Project, RunResult]) -> None:
    project, _ = finished
    document = json.loads((project.out / "state.json").read_text())
    assert list(document["steps"]) == STEPS
    assert str(project.folder) not in json.dumps(document)


def test_a_quantized_model_is_refused_before_any_work(project: Project, recorder: Recorder) -> None:
    quantized = project.out / "calibration" / "fashion-resnet.qdq.onnx"
    (project.folder / "fashion-resnet.onnx").write_bytes(quantized.read_bytes())
    before = {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match="already holds QuantizeLinear"):
        project.run(recorder)
    assert {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()} == before
