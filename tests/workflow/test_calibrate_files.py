"""Calibration's own files: what is written, and what is not overwritten."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from workflow_data import Project, Recorder

from quantlab.calibrators import CalibrationTable, load_histograms
from quantlab.calibrators.cache_provenance import load_cache
from quantlab.datasets import Dataset, ResolvedPreprocess, sample_data, sample_model
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError
from quantlab.graph.model import load_model
from quantlab.graph.original import float_activations
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.reports import Style
from quantlab.workflow.calibrate import (
    CalibrateSettings,
    CalibrationFiles,
    calibrate,
    check_overwrite,
    summary_document,
    summary_text,
    write_calibration,
)
from quantlab.workflow.sources import DataRequest, open_data, open_model


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return open_model(sample_model(), {}, Recorder())


@pytest.fixture
def table(finished: tuple[Project, object]) -> CalibrationTable:
    return CalibrationTable.load(finished[0].out / "calibration" / "calibration.json")


def test_names_of_the_files(tmp_path: Path) -> None:
    files = CalibrationFiles.of(tmp_path, "m")
    assert files.all() == ()
    names = ["calibration.json", "m.qdq.onnx", "m.calib", "m.calib.json", "histograms.npz"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in files.all()] == names
    files.histograms.unlink()
    assert files.histograms not in files.all()


def test_the_table_is_gone_while_files_are_replaced(
    prepared: Prepared,
    table: CalibrationTable,
    finished: tuple[Project, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It vouches for the rest, so an interruption must leave none that vouches for files of two calibrations."""
    histograms = load_histograms(finished[0].out / "calibration" / "histograms.npz")
    write_calibration(tmp_path, prepared, table, histograms, ONNXRUNTIME)
    assert (tmp_path / "calibration.json").is_file()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantlab.workflow.calibrate.save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_calibration(tmp_path, prepared, table, histograms, ONNXRUNTIME)
    assert not (tmp_path / "calibration.json").exists()


class TestOverwrite:
    def test_nothing_there(self, prepared: Prepared, tmp_path: Path) -> None:
        check_overwrite(tmp_path / "new", prepared, force=False)

    def test_the_same_model(self, prepared: Prepared, table: CalibrationTable, tmp_path: Path) -> None:
        (tmp_path / "calibration.json").write_text(table.to_json())
        check_overwrite(tmp_path, prepared, force=False)

    def test_another_model(self, prepared: Prepared, table: CalibrationTable, tmp_path: Path) -> None:
        provenance = dataclasses.replace(table.provenance, model_sha256="f" * 64, model="other.onnx")
        (tmp_path / "calibration.json").write_text(dataclasses.replace(table, provenance=provenance).to_json())
        with pytest.raises(ConfigError, match="belongs to another model") as caught:
            check_overwrite(tmp_path, prepared, force=False)
        assert "f" * 16 in str(caught.value.got)
        assert prepared.model.sha256[:16] in str(caught.value.expected)
        check_overwrite(tmp_path, prepared, force=True)

    def test_something_else_of_that_name(self, prepared: Prepared, tmp_path: Path) -> None:
        (tmp_path / "calibration.json").write_text("my notes")
        with pytest.raises(ConfigError, match=r"calibration\.json"):
            check_overwrite(tmp_path, prepared, force=False)
        assert (tmp_path / "calibration.json").read_text() == "my notes"


def test_two_runs_in_any_order_of_threads_are_equal(prepared: Prepared) -> None:
    made = []
    for threads in (1, 4):
        request = DataRequest(str(sample_data("calibration")), limit=10, threads=threads)
        dataset, resolved = open_data(prepared.model, request, Recorder())
        settings = CalibrateSettings("mse", 99.9, threads)
        made.append(calibrate(prepared, dataset, resolved, settings, Recorder())[0])
    assert made[0] == made[1]
    assert made[0].provenance.percentile == 99.9


def test_random_data_is_in_the_table(prepared: Prepared) -> None:
    dataset, resolved = open_data(prepared.model, DataRequest("random:2"), Recorder())
    table, _ = calibrate(prepared, dataset, resolved, CalibrateSettings("minmax", 99.99, 1), Recorder())
    assert DegradationCode.RANDOM_DATA in {d.code for d in table.degradations}


@pytest.mark.parametrize("settings", [("best", 99.0), ("mse", 101.0)])
def test_wrong_settings(prepared: Prepared, settings: tuple[str, float]) -> None:
    dataset, resolved = open_data(prepared.model, DataRequest("random:1"), Recorder())
    with pytest.raises(ConfigError):
        calibrate(prepared, dataset, resolved, CalibrateSettings(*settings, 1), Recorder())


def test_summaries(table: CalibrationTable, tmp_path: Path) -> None:
    files = CalibrationFiles.of(tmp_path, "m")
    for path in (files.table, files.qdq, files.cache, files.histograms):
        path.touch()
    document = json.loads(json.dumps(summary_document(table, files)))
    assert (document["method"], document["n_samples"], document["table_sha256"]) == ("minmax", 24, table.sha256)
    assert document["files"][0].endswith("calibration.json")
    text = summary_text(table, files, Style(80))
    assert "24 samples" in text
    assert text.count("wrote ") == 4


@pytest.fixture(scope="module")
def images(prepared: Prepared) -> tuple[Dataset, ResolvedPreprocess]:
    return open_data(prepared.model, DataRequest(str(sample_data("calibration")), limit=12), Recorder())


def test_every_tensor_of_the_model_file_is_in_the_cache(
    prepared: Prepared, images: tuple[Dataset, ResolvedPreprocess], tmp_path: Path
) -> None:
    """TensorRT 10 calibrates before it fuses: outputs before a folded batch normalization have scales too."""
    table, histograms = calibrate(prepared, *images, CalibrateSettings("mse", 99.99, 2), Recorder())
    files = write_calibration(tmp_path, prepared, table, histograms, TENSORRT)
    cache, provenance = load_cache(files.cache)
    assert set(float_activations(load_model(sample_model()).proto)) <= set(cache.scales)
    assert provenance is not None
    assert provenance.table_sha256 == table.sha256
    derived = [entry for entry in table.tensors if not entry.counted]
    assert len(derived) == 21
    assert set(histograms) == {entry.name for entry in table.tensors if entry.counted}


def test_minmax_only(prepared: Prepared, images: tuple[Dataset, ResolvedPreprocess], tmp_path: Path) -> None:
    settings = CalibrateSettings("minmax", 99.99, 2, minmax_only=True)
    table, histograms = calibrate(prepared, *images, settings, Recorder())
    full, _ = calibrate(prepared, *images, CalibrateSettings("minmax", 99.99, 2), Recorder())
    assert histograms == {}
    for entry in table.tensors:
        for scheme, by_method in entry.ranges.items():
            expected = full.entries()[entry.name].ranges[scheme]["minmax"]
            assert (by_method["minmax"].low, by_method["minmax"].high) == (expected.low, expected.high), entry.name
    files = write_calibration(tmp_path, prepared, table, histograms, TENSORRT)
    assert files.histograms not in files.all()
    assert (
        quantize_model(prepared.model, table, TENSORRT).tensors
        == quantize_model(prepared.model, full, TENSORRT).tensors
    )


def test_minmax_only_needs_its_method() -> None:
    with pytest.raises(ConfigError, match="more than minima and maxima"):
        CalibrateSettings("mse", 99.99, 1, minmax_only=True)
    with pytest.raises(ConfigError, match="not for calibrating"):
        CalibrateSettings("imported", 99.99, 1)


def test_auto_for_uint8_writes_no_tensorrt_cache(
    prepared: Prepared, images: tuple[Dataset, ResolvedPreprocess], tmp_path: Path
) -> None:
    table, histograms = calibrate(prepared, *images, CalibrateSettings("auto", 99.99, 2, ONNXRUNTIME), Recorder())
    assert table.method == "auto"
    (tmp_path / f"{prepared.model.name}.calib").write_text("of an earlier calibration")
    files = write_calibration(tmp_path, prepared, table, histograms, ONNXRUNTIME)
    assert files.cache not in files.all()
    with pytest.raises(ConfigError, match="no auto range"):
        quantize_model(prepared.model, table, TENSORRT)
