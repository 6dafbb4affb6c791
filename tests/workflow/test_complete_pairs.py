"""Models that are quantized in part: prepared, calibrated, completed and built, with their pairs as they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto
from qdq_checks import Graph
from workflow_data import Recorder

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import sample_data, sample_model
from quantlab.engines.variant import Variant
from quantlab.errors import ModelError
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.model import load_model, save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.targets import TARGETS
from quantlab.precision import Precision
from quantlab.workflow.build import build_variants
from quantlab.workflow.calibrate import CalibrateSettings, calibrate
from quantlab.workflow.sources import DataRequest, open_data, open_model

EXCLUDED = {
    "fashion-resnet": ("/features/features.4*", "/features/features.8*"),
    "fashion-vit": ("/patches*", "/blocks/blocks.1/*"),
}
CASES = [
    ("fashion-resnet", "tensorrt", QuantizationKind.INT8),
    ("fashion-resnet", "tensorrt", QuantizationKind.FP8),
    ("fashion-resnet", "onnxruntime", QuantizationKind.INT8),
    ("fashion-vit", "tensorrt", QuantizationKind.INT8),
    ("fashion-vit", "tensorrt", QuantizationKind.FP8),
]

Stored = dict[str, tuple[bytes, ...]]


def ranges(prepared: Prepared, target: str, *, minmax_only: bool = False) -> CalibrationTable:
    request = DataRequest(str(sample_data("calibration")), None, 24, 0, 2, None)
    dataset, resolved = open_data(prepared.model, request, Recorder())
    settings = CalibrateSettings("minmax", 99.99, 2, TARGETS[target], minmax_only)
    return calibrate(prepared, dataset, resolved, settings, Recorder())[0]


def pairs(proto: ModelProto) -> Stored:
    """Bytes of the constants of every pair, by the tensor that it quantizes or the one that it makes."""
    graph = Graph(proto)
    found = {}
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
            constants = [graph.constants[tensor] for tensor in node.input if tensor in graph.constants]
            found[f"{node.op_type} {name}"] = tuple(value.tobytes() for value in constants)
    return found


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def partly(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, QuantizationKind, tuple[str, ...]]:
    """A file that quantlab wrote with some layers left out; its target, kind, and the layers of the whole."""
    name, target, kind = request.param
    prepared = open_model(sample_model(name), {}, Recorder())
    table = ranges(prepared, target, minmax_only=True)
    whole = quantize_model(prepared.model, table, TARGETS[target], kind=kind)
    part = quantize_model(prepared.model, table, TARGETS[target], EXCLUDED[name], kind=kind)
    path = tmp_path_factory.mktemp("partly") / f"{name}.onnx"
    save_model(part.proto, path, prepared.model)
    return path, target, kind, whole.layers


@pytest.mark.parametrize("minmax_only", [False, True])
def test_calibrated_and_completed(
    partly: tuple[Path, str, QuantizationKind, tuple[str, ...]], minmax_only: bool
) -> None:
    """Preparing, observing and completing leave every pair that was there as it was, to the bit."""
    path, target, kind, layers = partly
    prepared = open_model(path, {}, Recorder())
    assert (prepared.degradations, prepared.fixed_batch) == ((), None)
    table = ranges(prepared, target, minmax_only=minmax_only)
    result = quantize_model(prepared.model, table, TARGETS[target], kind=kind, existing=ExistingPolicy.COMPLETE)
    before, after = pairs(load_model(path).proto), pairs(result.proto)
    assert len(before) > 20
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    assert len(result.layers) >= 2
    assert sorted((*result.layers, *result.kept)) == sorted(layers)


def test_built(partly: tuple[Path, str, QuantizationKind, tuple[str, ...]], tmp_path: Path) -> None:
    path, target, kind, layers = partly
    prepared = open_model(path, {}, Recorder())
    table = ranges(prepared, target, minmax_only=True)
    made = Variant(prepared, "onnxruntime", Precision(kind), TARGETS[target], table)
    with pytest.raises(ModelError, match="already holds QuantizeLinear") as caught:
        build_variants([made], tmp_path, Recorder())
    assert caught.value.hint is not None
    assert "--existing complete" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    complete = dataclasses.replace(made, existing=ExistingPolicy.COMPLETE)
    (sidecar,) = build_variants([complete], tmp_path, Recorder())
    assert sidecar.proved is Precision(kind)
    assert set(sidecar.kept) < set(layers)
    assert sidecar.proof.startswith(f"{len(layers)} of ")


def test_a_completed_model_is_as_close_as_one_quantized_at_once(tmp_path: Path) -> None:
    from quantlab.engines.onnxruntime import OnnxRuntimeBuilder

    prepared = open_model(sample_model(), {}, Recorder())
    table = ranges(prepared, "onnxruntime")
    target = TARGETS["onnxruntime"]
    part = quantize_model(prepared.model, table, target, EXCLUDED["fashion-resnet"])
    path = tmp_path / "partly.onnx"
    save_model(part.proto, path, prepared.model)
    again = open_model(path, {}, Recorder())
    variants = {
        "float": Variant(prepared, "onnxruntime", Precision.FP32, target),
        "once": Variant(prepared, "onnxruntime", Precision.INT8, target, table),
        "completed": Variant(
            again, "onnxruntime", Precision.INT8, target, ranges(again, "onnxruntime"), (), ExistingPolicy.COMPLETE
        ),
    }
    with np.load(sample_data("evaluation")) as stored:
        images = stored["image"][:200]
    feed = {"image": ((images[:, None] / np.float32(255) - np.float32(0.286)) / np.float32(0.353)).astype(np.float32)}
    scores = {}
    for name, made in variants.items():
        build_variants([made], tmp_path / name, Recorder())
        (engine,) = (tmp_path / name).glob("*.onnx")
        scores[name] = OnnxRuntimeBuilder().load(engine, 1).run(feed)["logits"].astype(np.float64)
    signal = np.sum(scores["float"] ** 2)
    once, completed = (
        10 * np.log10(signal / np.sum((scores[name] - scores["float"]) ** 2)) for name in ("once", "completed")
    )
    assert once > 25
    assert completed > once - 1.5
