"""Memory and load time, measured for real in fresh processes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import quantlab.workflow.footprint as footprint_module
from quantlab.datasets.samples import sample_model
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.variant import Variant
from quantlab.errors import ConfigError, EngineMismatch, MeasurementError
from quantlab.graph.model import Model, load_model
from quantlab.graph.prepare import prepare
from quantlab.graph.targets import ONNXRUNTIME
from quantlab.precision import Precision
from quantlab.workflow.footprint import measure_footprints

INPUTS = {"image": np.zeros((2, 1, 28, 28), np.float32)}
PADDING = 40_000_000


def build(model: Model, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return OnnxRuntimeBuilder().build(Variant(prepare(model), "onnxruntime", Precision.FP32, ONNXRUNTIME), folder)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(load_model(sample_model("fashion-resnet")), tmp_path_factory.mktemp("small"))


def large(tmp_path: Path) -> Path:
    """A product with a matrix of 40 MB."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weight = np.random.default_rng(0).standard_normal((784, PADDING // 4 // 784)).astype(np.float32)
    nodes = [make("Flatten", ["image"], ["f"], name="flat"), make("MatMul", ["f", "w"], ["y"], name="fc")]
    graph = onnx.helper.make_graph(
        nodes,
        "large",
        [value("image", onnx.TensorProto.FLOAT, ["n", 1, 28, 28])],
        [value("y", onnx.TensorProto.FLOAT, ["n", weight.shape[1]])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return build(Model.of(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)), tmp_path / "large")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_engines(engine: Path, tmp_path: Path) -> None:
    """What is held beyond the imports is at least the weights, and not the interpreter and its libraries."""
    small, big = measure_footprints([engine, large(tmp_path)], INPUTS, 1, processes=2)
    for found in (small, big):
        assert (found.batch_size, found.threads, found.processes, found.device_bytes) == (2, 1, 2, ())
        assert len(found.first_run_ms) == len(found.peak_bytes) == 2
        assert all(ms > 0 for ms in (*found.load_ms, *found.first_run_ms))
    assert small.size_bytes < 2_000_000
    assert big.size_bytes > PADDING * 0.99
    small_peak, big_peak = small.median_peak_bytes, big.median_peak_bytes
    assert small_peak is not None and big_peak is not None
    assert small.size_bytes < small_peak < 200e6
    assert big_peak - small_peak > PADDING * 0.9


def test_nothing_is_left_behind(engine: Path) -> None:
    before = sorted(engine.parent.iterdir())
    measure_footprints([engine], INPUTS, 1, processes=1)
    assert sorted(engine.parent.iterdir()) == before


def test_an_engine_that_does_not_run(engine: Path) -> None:
    with pytest.raises(MeasurementError, match="onnxruntime-fp32 could not be loaded and run") as caught:
        measure_footprints([engine], {"picture\x00\x1b": INPUTS["image"]}, 1, processes=1)
    assert "failed to run" in str(caught.value)


def test_a_file_that_nobody_vouches_for(tmp_path: Path) -> None:
    with pytest.raises(EngineMismatch, match="has no sidecar"):
        measure_footprints([tmp_path / "e.onnx"], INPUTS, 1)


def test_no_processes(engine: Path) -> None:
    with pytest.raises(ConfigError, match="at least one process"):
        measure_footprints([engine], INPUTS, 1, processes=0)


def test_a_process_that_dies(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho 'Segmentation fault' >&2\nexit 139\n")
    stub.chmod(0o755)
    monkeypatch.setattr(footprint_module.sys, "executable", str(stub))
    with pytest.raises(MeasurementError, match="ended without an answer") as caught:
        measure_footprints([engine], INPUTS, 1, processes=1)
    assert "exit 139: Segmentation fault" in str(caught.value)


def test_a_process_that_hangs(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nexec sleep 60\n")
    stub.chmod(0o755)
    monkeypatch.setattr(footprint_module.sys, "executable", str(stub))
    monkeypatch.setattr(footprint_module, "_LONGEST_S", 0.2)
    with pytest.raises(MeasurementError, match="did not load and run"):
        measure_footprints([engine], INPUTS, 1, processes=1)
