"""Calibration's own files: what is written, and what is not overwritten."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from workflow_data import Project, Recorder

from quantlab.calibrators import CalibrationTable, load_histograms
from quantlab.datasets import sample_data, sample_model
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import ONNXRUNTIME
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
    assert [path.name for path in files.all()] == ["calibration.json", "m.qdq.onnx", "m.calib", "histograms.npz"]


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
    document = json.loads(json.dumps(summary_document(table, files)))
    assert (document["method"], document["n_samples"], document["table_sha256"]) == ("minmax", 24, table.sha256)
    assert document["files"][0].endswith("calibration.json")
    text = summary_text(table, files, Style(80))
    assert "24 samples" in text
    assert text.count("wrote ") == 4
