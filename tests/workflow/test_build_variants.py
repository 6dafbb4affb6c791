from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from workflow_data import Project, Recorder

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import sample_model
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, ConfigError, EngineMismatch
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.precision import Precision
from quantlab.workflow.build import (
    PLANNED_BACKENDS,
    build_variants,
    builder_for,
    check_table,
    parse_precisions,
    target_for,
)
from quantlab.workflow.sources import open_model


@pytest.fixture(scope="module")
def prepared():
    return open_model(sample_model(), {}, Recorder())


@pytest.fixture
def table(finished: tuple[Project, object]) -> CalibrationTable:
    return CalibrationTable.load(finished[0].out / "calibration" / "calibration.json")


def test_backends() -> None:
    assert builder_for("onnxruntime").backend == "onnxruntime"
    for name in PLANNED_BACKENDS:
        with pytest.raises(BackendUnavailable, match=name):
            builder_for(name)
    with pytest.raises(ConfigError, match="no backend 'tensort'") as caught:
        builder_for("tensort")
    assert caught.value.hint == "did you mean 'tensorrt'?"
    with pytest.raises(ConfigError) as caught:
        builder_for("abacus")
    assert caught.value.hint is None


def test_targets() -> None:
    assert (target_for("tensorrt"), target_for("onnxruntime")) == (TENSORRT, ONNXRUNTIME)
    with pytest.raises(ConfigError, match="no target 'tensorflow'"):
        target_for("tensorflow")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("fp32", ["fp32"]), (" fp16 , int8,fp16,", ["fp16", "int8"]), ("fp8,bf16,tf32", ["fp8", "bf16", "tf32"])],
)
def test_precisions(text: str, expected: list[str]) -> None:
    assert [precision.value for precision in parse_precisions(text)] == expected


@pytest.mark.parametrize("text", ["", " ,", "fp31", "FP32,int8"])
def test_wrong_precisions(text: str) -> None:
    with pytest.raises(ConfigError, match="precision"):
        parse_precisions(text)


def test_a_table_of_another_model(prepared, table: CalibrationTable) -> None:
    check_table(prepared, table)
    for field, what in (("model_sha256", "model"), ("graph_sha256", "prepared graph")):
        provenance = dataclasses.replace(table.provenance, **{field: "f" * 64})
        with pytest.raises(EngineMismatch, match=f"made from another {what}") as caught:
            check_table(prepared, dataclasses.replace(table, provenance=provenance))
        assert "f" * 16 in str(caught.value.got)


def test_all_are_checked_before_the_first_is_built(prepared, table: CalibrationTable, tmp_path: Path) -> None:
    good = Variant(prepared, "onnxruntime", Precision.FP32, ONNXRUNTIME)
    wrong = dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, graph_sha256="f" * 64))
    for bad, error in (
        (Variant(prepared, "onnxruntime", Precision.FP8, ONNXRUNTIME), BackendUnavailable),
        (Variant(prepared, "onnxruntime", Precision.INT8, ONNXRUNTIME), ConfigError),
        (Variant(prepared, "onnxruntime", Precision.INT8, ONNXRUNTIME, wrong), EngineMismatch),
        (Variant(prepared, "tensorrt", Precision.FP16, ONNXRUNTIME), BackendUnavailable),
    ):
        with pytest.raises(error):
            build_variants([good, bad], tmp_path / "engines", Recorder())
        assert not (tmp_path / "engines").exists()


def test_each_is_told(prepared, tmp_path: Path, recorder: Recorder) -> None:
    variants = [Variant(prepared, "onnxruntime", p, ONNXRUNTIME) for p in (Precision.FP32, Precision.FP16)]
    sidecars = build_variants(variants, tmp_path, recorder)
    assert [sidecar.name for sidecar in sidecars] == ["onnxruntime-fp32", "onnxruntime-fp16"]
    assert recorder.said[0].startswith("built  onnxruntime-fp32: native, proved fp32")
    assert recorder.said[1].startswith("built  onnxruntime-fp16: emulated, proved fp16")
