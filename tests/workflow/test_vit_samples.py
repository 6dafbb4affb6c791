"""The bundled vision transformer: calibrated, quantized for both targets, proved, and judged on all images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto
from qdq_checks import Graph
from workflow_data import Recorder

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import sample_data, sample_model
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.variant import Variant
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import TARGETS
from quantlab.precision import Execution, Precision
from quantlab.workflow.build import build_variants
from quantlab.workflow.calibrate import CalibrateSettings, calibrate
from quantlab.workflow.sources import DataRequest, open_data, open_model

FLOAT_OPS = ("LayerNormalization", "Softmax", "Erf", "Div", "Mul", "Add")
"""Norms, attention weights and the parts of Gelu."""

VARIANTS = [
    ("tensorrt", Precision.INT8),
    ("onnxruntime", Precision.INT8),
    ("tensorrt", Precision.FP8),
    ("tensorrt", Precision.INT8_WEIGHTS),
]


@pytest.fixture(scope="module")
def calibrated() -> tuple[Prepared, CalibrationTable]:
    prepared = open_model(sample_model("fashion-vit"), {}, Recorder())
    request = DataRequest(str(sample_data("calibration")), None, 128, 0, 2, None)
    dataset, resolved = open_data(prepared.model, request, Recorder())
    table, _ = calibrate(prepared, dataset, resolved, CalibrateSettings("mse", 99.99, 2), Recorder())
    return prepared, table


@pytest.fixture(scope="module")
def evaluation() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with np.load(sample_data("evaluation")) as stored:
        images, labels = stored["image"], stored["labels"]
    return ((images[:, None] / np.float32(255) - np.float32(0.286)) / np.float32(0.353)).astype(np.float32), labels


def scores(path: Path, images: NDArray[np.float32]) -> NDArray[np.float64]:
    engine = OnnxRuntimeBuilder().load(path, 2)
    parts = [engine.run({"image": images[i : i + 250]})["logits"] for i in range(0, len(images), 250)]
    return np.concatenate(parts).astype(np.float64)


@pytest.fixture(scope="module")
def reference(
    calibrated: tuple[Prepared, CalibrationTable],
    evaluation: tuple[NDArray[np.float32], NDArray[np.int64]],
    tmp_path_factory: pytest.TempPathFactory,
) -> NDArray[np.float64]:
    folder = tmp_path_factory.mktemp("reference")
    made = Variant(calibrated[0], "onnxruntime", Precision.FP32, TARGETS["tensorrt"])
    return scores(OnnxRuntimeBuilder().build(made, folder), evaluation[0])


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda pair: "-".join(pair))
def engine(
    request: pytest.FixtureRequest,
    calibrated: tuple[Prepared, CalibrationTable],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    target, precision = request.param
    prepared, table = calibrated
    folder = tmp_path_factory.mktemp("engines")
    made = Variant(prepared, "onnxruntime", precision, TARGETS[target], table)
    (sidecar,) = build_variants([made], folder, Recorder())
    return folder / sidecar.file


def _is_attention(node: NodeProto, graph: Graph) -> bool:
    """Whether both operands of a product are activations."""
    stored = (graph.dequantizer(name) for name in node.input[:2])
    constants = [n is not None and n.input[0] in graph.constants for n in stored]
    return not any(constants) and not set(node.input) & graph.constants.keys()


def test_products_are_quantized_and_the_rest_is_not(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    graph = Graph(onnx.load(engine))
    products = graph.of_type("MatMul")
    attention = [node for node in products if _is_attention(node, graph)]
    assert (len(products), len(attention)) == (24, 8)
    for node in products:
        operands = [graph.dequantizer(name) is not None for name in node.input[:2]]
        if sidecar.requested is Precision.INT8_WEIGHTS:
            assert operands == ([False, False] if node in attention else [False, True])
        else:
            assert all(operands) == (node not in attention or sidecar.target == "tensorrt")
    assert [len(graph.of_type(op_type)) for op_type in ("LayerNormalization", "Softmax", "Erf")] == [9, 4, 4]
    if sidecar.target == "tensorrt":  # for onnxruntime, sums and layers hand on what they give through a pair
        for node in graph.nodes:
            if node.op_type in FLOAT_OPS:
                assert all(graph.dequantizer(name) is None for name in node.input), node.name


def test_the_precision_is_proved(engine: Path) -> None:
    sidecar = read_sidecar(engine)
    assert sidecar.proved is sidecar.requested
    quantized = {"int8": {"tensorrt": 25, "onnxruntime": 18}, "fp8": {"tensorrt": 24}, "int8-weights": {"tensorrt": 18}}
    assert sidecar.target is not None
    assert (sidecar.execution is Execution.EMULATED) == (sidecar.requested is Precision.FP8)
    assert sidecar.proof.startswith(f"{quantized[sidecar.requested][sidecar.target]} of 26 weighted layers")
    codes = [degradation.code for degradation in sidecar.degradations]
    assert codes == (["not-quantized"] if sidecar.target == "onnxruntime" else []), "attention stays float there"


def test_accuracy_on_all_evaluation_images(
    engine: Path, reference: NDArray[np.float64], evaluation: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> None:
    """Top-1 within 0.3 percentage points of FP32 on 2,000 images, and as close as the format allows."""
    images, labels = evaluation
    got = scores(engine, images)
    before, after = (100 * np.mean(values.argmax(axis=1) == labels) for values in (reference, got))
    assert len(labels) == 2000
    assert before > 93
    assert abs(after - before) <= 0.3
    sqnr = 10 * np.log10(np.sum(reference**2) / np.sum((got - reference) ** 2))
    assert sqnr > {Precision.INT8: 27, Precision.FP8: 28, Precision.INT8_WEIGHTS: 43}[read_sidecar(engine).requested]
