from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from workflow_data import Project, Recorder

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import sample_model
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, ConfigError, EngineMismatch, ModelError
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, QuantizationKind
from quantlab.precision import Precision
from quantlab.reports import Style
from quantlab.workflow.build import (
    build_variants,
    builder_for,
    check_table,
    describe_skipped,
    existing_policy,
    parse_precisions,
    quantization_kind,
    target_for,
)
from quantlab.workflow.inspect import inspect_file
from quantlab.workflow.sources import open_model


@pytest.fixture(scope="module")
def prepared():
    return open_model(sample_model(), {}, Recorder())


@pytest.fixture
def table(finished: tuple[Project, object]) -> CalibrationTable:
    return CalibrationTable.load(finished[0].out / "calibration" / "calibration.json")


def test_backends() -> None:
    assert builder_for("onnxruntime").backend == "onnxruntime"
    assert builder_for("openvino").backend == "openvino"
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


def test_kinds_of_quantization() -> None:
    assert [quantization_kind(name) for name in ("int8", "fp8", "int8-weights")] == list(QuantizationKind)
    with pytest.raises(ConfigError, match="no kind of quantization 'int8-weight'") as caught:
        quantization_kind("int8-weight")
    assert (caught.value.expected, caught.value.hint) == ("int8, fp8, int8-weights", "did you mean 'int8-weights'?")


def test_policies_for_existing_pairs() -> None:
    assert [existing_policy(name) for name in ("refuse", "complete", "keep")] == list(ExistingPolicy)
    with pytest.raises(ConfigError, match="no policy 'compleet'") as caught:
        existing_policy("compleet")
    assert (caught.value.expected, caught.value.hint) == ("refuse or complete or keep", "did you mean 'complete'?")


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
    weights = quantize_model(prepared.model, None, TENSORRT, kind=QuantizationKind.INT8_WEIGHTS)
    quantized = dataclasses.replace(prepared, model=prepared.model.with_proto(weights.proto))
    wrong = dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, graph_sha256="f" * 64))
    for bad, error in (
        (Variant(prepared, "onnxruntime", Precision.INT8_FP16, ONNXRUNTIME), BackendUnavailable),
        (Variant(prepared, "onnxruntime", Precision.FP8, ONNXRUNTIME, table), ConfigError),
        (Variant(prepared, "onnxruntime", Precision.FP8, TENSORRT), ConfigError),
        (Variant(prepared, "onnxruntime", Precision.INT8_WEIGHTS, TENSORRT, None, ("nothing like this",)), ConfigError),
        (Variant(quantized, "onnxruntime", Precision.INT8_WEIGHTS, TENSORRT), ModelError),
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


def test_layers_left_out_by_size_are_told_in_one_line(
    prepared, table: CalibrationTable, tmp_path: Path, recorder: Recorder
) -> None:
    (sidecar,) = build_variants([Variant(prepared, "onnxruntime", Precision.FP8, TENSORRT, table)], tmp_path, recorder)
    assert len(sidecar.skipped) == 10
    (line,) = recorder.said[1:]
    assert line.strip() == describe_skipped(sidecar.skipped)
    assert "10 of its layers stay in floating point by the target's size limits" in line
    assert "9 x (it has fewer than 17 channels that kernels could pad), 1 x (its K or N is below 16)" in line
    shown = inspect_file(tmp_path / sidecar.file, Style(100)).text
    assert all(f"skipped       {layer}: {reason}" in shown for layer, reason in sidecar.skipped.items())
    assert "quantized     with exact extremes under the rules of tensorrt" in shown
    assert "open with     graph_optimization_level = ORT_DISABLE_ALL" in shown


def test_weights_alone_need_no_table(prepared, tmp_path: Path, recorder: Recorder) -> None:
    (sidecar,) = build_variants(
        [Variant(prepared, "onnxruntime", Precision.INT8_WEIGHTS, TENSORRT)], tmp_path, recorder
    )
    assert (sidecar.proved, sidecar.skipped, sidecar.degradations) == (Precision.INT8_WEIGHTS, {}, ())
    shown = inspect_file(tmp_path / sidecar.file, Style(100)).text
    assert "quantized     weights alone under the rules of tensorrt" in shown
    assert len(recorder.said) == 1
