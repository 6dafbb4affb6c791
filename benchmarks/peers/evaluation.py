"""Judge of an INT8 model, the same for all: run as a process, ``python evaluation.py MODEL MATERIAL THREADS RESULT``.

ONNX models run in ONNX Runtime with the options of quantlab's own comparisons, OpenVINO models in OpenVINO in float32.
SQNR, agreement and accuracy come from the meters of ``quantlab compare``.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from quantlab.graph.model import load_model, model_inputs, open_session
from quantlab.harness.drift import ClassificationMeter, OutputMeter
from quantlab.statistics.proportion import proportion_lower_bound, proportion_upper_bound
from quantlab.statistics.tango import loss_lower_bound, loss_upper_bound

BATCH = 16
ALPHA = 0.025  # on each side: intervals of 95 %
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
SUFFIXES = (".onnx", ".xml", ".bin", ".data")
UNCHANGED = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Identity")

Array = NDArray[np.generic]


def evaluate(model: Path, material: Path, threads: int) -> dict[str, object]:
    """Figures of one model on the evaluation images."""
    images, reference = (np.load(material / f"{name}.npy", mmap_mode="r") for name in ("evaluation", "reference"))
    labels = np.load(material / "labels.npy")
    run, batch = (open_ir if model.suffix == ".xml" else open_onnx)(model, threads)
    drift, classes = OutputMeter("logits", True), ClassificationMeter()
    for at in range(0, len(images), batch):
        got = np.asarray(run(np.array(images[at : at + batch])), np.float32)
        expected = np.array(reference[at : at + len(got)])
        drift.add(expected, got)
        classes.add(expected, got, [None if label < 0 else int(label) for label in labels[at : at + len(got)]])
    found = drift.result(classes.n)
    result: dict[str, object] = {
        "n": classes.n, "sqnr_db": finite(found.sqnr_db), "kl_nats": finite(found.kl_nats),
        "non_finite": found.non_finite, "agreement_pct": share(classes.agreement, classes.n),
    }  # fmt: skip
    if classes.labelled == classes.n:
        loss = [
            100 * bound(classes.lost, classes.won, classes.n, ALPHA) for bound in (loss_lower_bound, loss_upper_bound)
        ]
        result["fp32_top1_pct"] = share(classes.reference, classes.n)
        result["top1_pct"] = share(classes.top1, classes.n)
        result["top1_loss_pp"] = [100 * (classes.lost - classes.won) / classes.n, *loss]
    return result


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold: a model whose outputs are the reference's, or no numbers."""
    return value if value is not None and math.isfinite(value) else None


def share(k: int, n: int) -> list[float]:
    """A percentage with its 95 % interval (Clopper and Pearson): value, low, high."""
    bounds = [proportion_lower_bound(k, n, ALPHA), proportion_upper_bound(k, n, ALPHA)]
    return [100.0 * value for value in (k / n, *bounds)]


def open_onnx(path: Path, threads: int) -> tuple[Callable[[Array], Array], int]:
    """How to run a model, and how many images at once it takes."""
    model = load_model(path)
    session = open_session(model, threads=threads)
    entry = model_inputs(model.proto)[0]
    first = entry.shape[0] if entry.shape else None
    dtype = np.dtype(entry.dtype)
    return lambda x: session.run(None, {entry.name: x.astype(dtype)})[0], first if isinstance(first, int) else BATCH


def open_ir(path: Path, threads: int) -> tuple[Callable[[Array], Array], int]:
    """As `open_onnx`, for OpenVINO; its default precision on some processors is not float32."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return lambda x: compiled(x)[0], BATCH


def rules_of(path: Path) -> dict[str, object]:
    """How a model is quantized, read from its graph: types, zero-points and granularity, and how much of it."""
    if path.suffix == ".xml":
        text = path.read_text("utf-8")
        return {"rules": "openvino", "fake_quantize": text.count('type="FakeQuantize"')}
    proto = onnx.load(path)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant" and n.attribute}
    producers = {name: node for node in proto.graph.node for name in node.output}
    activations, offsets = Counter[str](), 0
    for node in proto.graph.node:
        if node.op_type.endswith(QUANTIZE) and node.input[0] not in constants:
            kind, zeros = zero_point(node, constants)
            activations[kind] += 1
            offsets += bool(np.any(zeros))
    weights, biases, layers, quantized = Counter[str](), Counter[str](), 0, 0
    for node in proto.graph.node:
        if node.op_type not in LAYERS:
            continue
        layers += 1
        sources = [through(producers, name) for name in node.input]
        quantized += all(source is not None and source.op_type.endswith(DEQUANTIZE) for source in sources[:2])
        weight = sources[1]
        if weight is not None and weight.op_type.endswith(DEQUANTIZE) and is_constant(weight, constants, producers):
            weights[weight_kind(weight, constants)] += 1
        if len(node.input) > 2:
            source = sources[2]
            is_quantized = source is not None and source.op_type.endswith(DEQUANTIZE)
            biases["quantized" if is_quantized else "float"] += 1
    domains = sorted({n.domain for n in proto.graph.node if n.domain not in ("", "ai.onnx")})
    words = []
    if offsets or any("zero-point" in kind for kind in weights):
        words.append("onnxruntime")
    else:
        words.append("tensorrt" if set(activations) == {"int8"} else "symmetric, some uint8")
    words += ["int32 biases"] if "tensorrt" in words and "quantized" in biases else []
    floats = float_types(proto)
    words += ["fp16"] if "FLOAT16" in floats else []
    return {
        "rules": ", ".join(words) if activations else "none",
        "activations": dict(activations), "with_zero_point": offsets,
        "weights": dict(weights), "biases": dict(biases), "layers": layers, "layers_quantized": quantized,
        "domains": domains, "float_types": floats,
    }  # fmt: skip


def through(producers: dict[str, NodeProto], name: str) -> NodeProto | None:
    """The node that makes a tensor, looking through those that only move values."""
    node = producers.get(name)
    while node is not None and node.op_type in UNCHANGED:
        node = producers.get(node.input[0])
    return node


def zero_point(node: NodeProto, constants: dict[str, Any]) -> tuple[str, Array]:
    """Integer type of a Q or DQ node, and its zero-points."""
    if len(node.input) > 2 and node.input[2] in constants:
        values = numpy_helper.to_array(constants[node.input[2]])
        return values.dtype.name, values
    return "uint8", np.zeros(1, np.uint8)  # what ONNX says where nothing is stated


def weight_kind(node: NodeProto, constants: dict[str, Any]) -> str:
    kind, zeros = zero_point(node, constants)
    scale = numpy_helper.to_array(constants[node.input[1]]) if node.input[1] in constants else np.ones(1)
    words = [kind, "per-channel" if scale.size > 1 else "per-tensor", *(["zero-point"] if np.any(zeros) else [])]
    return " ".join(words)


def is_constant(node: NodeProto, constants: dict[str, Any], producers: dict[str, NodeProto]) -> bool:
    """Whether a DQ node reads a constant, stored quantized or quantized in the graph."""
    source = producers.get(node.input[0])
    return node.input[0] in constants or (source is not None and source.input[0] in constants)


def float_types(proto: ModelProto) -> list[str]:
    """Floating-point types of the stored tensors."""
    names = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in proto.graph.initializer}
    return sorted(name for name in names if "FLOAT" in name)


def main() -> None:
    model, material, threads, result = sys.argv[1:]
    found = {**evaluate(Path(model), Path(material), int(threads)), "graph": rules_of(Path(model))}
    files = (file for file in Path(model).parent.glob(Path(model).stem + "*") if file.suffix in SUFFIXES)
    found["size_bytes"] = sum(file.stat().st_size for file in files)
    Path(result).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
