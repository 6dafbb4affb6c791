"""Inspecting every kind of file there is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from workflow_data import Project

from quantlab.errors import EngineMismatch, QuantlabError
from quantlab.gate import Verdict
from quantlab.reports import Style
from quantlab.workflow.inspect import inspect_file
from quantlab.workflow.results import load_result, schema_of

KINDS = {
    "fashion-resnet.onnx": ("model", ["ONNX model fashion-resnet.onnx", "image [", "Conv", "preprocessing"]),
    "results/calibration/fashion-resnet.qdq.onnx": ("model", ["QuantizeLinear", "INT8"]),
    "results/engines/onnxruntime-int8-minmax.onnx": ("engine", ["engine onnxruntime-int8-minmax", "by minmax ranges"]),
    "results/engines/onnxruntime-fp16.onnx.engine.json": ("engine", ["requested     fp16, proved fp16", "emulated"]),
    "results/calibration/calibration.json": ("calibration", ["24 samples", "method minmax"]),
    "results/calibration/fashion-resnet.calib": ("calibration-cache", ["TensorRT calibration cache", "amax"]),
    "results/comparison.json": ("comparison", ["onnxruntime-fp32"]),
    "results/gate.json": ("gate", ["PASS"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind(finished: tuple[Project, object], name: str) -> None:
    kind, words = KINDS[name]
    inspection = inspect_file(finished[0].folder / name, Style(100))
    assert inspection.kind == kind or (kind == "gate" and inspection.kind in ("gate", "verdict"))
    for word in words:
        assert word in inspection.text
    document = json.loads(json.dumps(inspection.document, allow_nan=False))
    assert document["schema"].startswith("quantlab.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b'{"schema": "quantlab.unknown/1"}'),
        ("x.json", b'{"no": "schema"}'),
        ("x.json", b"[]"),
        ("x.json", b"{"),
        ("x.onnx", b"\x89PNG\r\n\x1a\n"),
        ("x.onnx", b""),
        ("x.toml", b"schema = 1\n"),
        ("x.calib", b"hello\n"),
        ("x.cache", b"\xff\xfe"),
        ("x.onnx.engine.json", b"{}"),
        ("histograms.npz", b"PK\x03\x04"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QuantlabError) as caught:
        inspect_file(tmp_path / name, Style())
    assert name.removesuffix(".engine.json") in str(caught.value)


@pytest.mark.parametrize("name", ["x.onnx", "x.json", "x.calib", "x.onnx.engine.json"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(QuantlabError, match=r"x\.onnx|x\.json|x\.calib"):
        inspect_file(tmp_path / name, Style())


def test_a_changed_engine_is_refused(finished: tuple[Project, object], tmp_path: Path) -> None:
    shutil.copytree(finished[0].out / "engines", tmp_path / "engines")
    path = tmp_path / "engines" / "onnxruntime-fp32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(EngineMismatch, match="is not the file its sidecar describes"):
        inspect_file(path, Style())


def test_load_result(finished: tuple[Project, object]) -> None:
    folder = finished[0].out
    assert schema_of(folder / "gate.json").startswith("quantlab.")
    assert isinstance(load_result(folder / "gate.json"), Verdict)
