"""Checks of a freshly parsed model, each of which refuses it by the name of what is wrong."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

from quantlab.errors import ModelError
from quantlab.graph.external import is_external
from quantlab.graph.skeleton import make_skeleton
from quantlab.graph.tensors import FLOAT_TYPES, model_tensors, read_tensor, subgraphs

WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that multiply and accumulate: the ones whose precision is chosen."""

_NEEDS_FINITE = WEIGHTED_OPS | {
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LSTM", "GRU", "RNN",
}  # fmt: skip
_BLOCK = 1 << 22
_INLINE_CHECK_BYTES = 1_500_000_000


def opset_of(proto: ModelProto, domain: str = "") -> int:
    """Version of an operator set that the model imports; 0 if it does not."""
    for entry in proto.opset_import:
        if entry.domain == domain or (domain == "" and entry.domain == "ai.onnx"):
            return int(entry.version)
    return 0


def has_qdq(proto: ModelProto) -> bool:
    """Whether the model already holds quantization nodes (Q/DQ pairs or integer operators)."""
    kinds = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
    return any(node.op_type in kinds or node.op_type.startswith("QLinear") for node in proto.graph.node)


def check_structure(proto: ModelProto, where: str) -> None:
    """Check what ONNX demands of a model and what quantlab needs of it.

    Raises:
        ModelError: No graph, inputs or outputs; names given twice; or the ONNX checker's finding with the node's name.
    """
    graph = proto.graph
    stored = {initializer.name for initializer in graph.initializer}
    stored |= {sparse.values.name for sparse in graph.sparse_initializer}
    if not any(value.name not in stored for value in graph.input):
        raise ModelError(
            f"{where} has no inputs", expected="at least one input that is not a weight",
            hint="export it with an input; a model of constants cannot be calibrated",
        )  # fmt: skip
    if not graph.output:
        raise ModelError(f"{where} has no outputs", hint="export the model again")
    _check_names(graph, where)
    try:
        onnx.checker.check_model(_checkable(proto))
    except onnx.checker.ValidationError as cause:
        text = str(cause).strip()
        name = re.search(r"Name: (\S+)", text)
        node = f": node {name.group(1)!r}" if name else ""
        raise ModelError(
            f"{where} is not a valid ONNX model{node}", got=" ".join(text.split())[:300], hint="export the model again"
        ) from cause


def _checkable(proto: ModelProto) -> ModelProto:
    """The model, or a stand-in without large weights where the checker would want files or shapes that it lacks.

    The checker refuses inputs and outputs of unknown rank, which exporters write and ONNX Runtime runs.
    """
    small = proto.ByteSize() < _INLINE_CHECK_BYTES and not any(is_external(t) for _, t in model_tensors(proto))
    values = [value.type.tensor_type for value in (*proto.graph.input, *proto.graph.output)]
    if small and all(tensor.HasField("shape") for tensor in values):
        return proto
    skeleton = make_skeleton(proto)
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return skeleton


def _check_names(graph: GraphProto, where: str) -> None:
    for what, names in (
        ("input", [value.name for value in graph.input]),
        ("output", [value.name for value in graph.output]),
        ("weight", [tensor.name for tensor in graph.initializer]),
        ("tensor", [name for node in graph.node for name in node.output if name]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ModelError(
                f"{where} gives the {what} name {twice[0]!r} twice", expected="every name once",
                hint="export the model again",
            )  # fmt: skip


def check_runtime_versions(proto: ModelProto, where: str) -> None:
    """Check that the installed ONNX Runtime knows the model's IR version and opset, by asking it.

    Raises:
        ModelError: Naming the versions of both.
    """
    import onnxruntime

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [output])
    opset = opset_of(proto)
    imports = [onnx.helper.make_opsetid("", opset)] if opset else [onnx.helper.make_opsetid("", 13)]
    probe = onnx.helper.make_model(graph, opset_imports=imports, ir_version=proto.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's exceptions share no base class
        raise ModelError(
            f"{where} is too new for the installed onnxruntime {onnxruntime.__version__}",
            got=f"opset {opset}, IR version {proto.ir_version}",
            hint="export with a lower opset_version, or install a newer onnxruntime",
        ) from cause


def check_finite(proto: ModelProto, folder: Path | None, where: str) -> None:
    """Look for NaN in every stored tensor and for infinities in weights; reads each tensor once, in blocks.

    Infinities are allowed where they mean something: attention masks, bounds of ``Clip``.

    Raises:
        ModelError: Naming the tensor and how many values are not finite.
    """
    weights = _finite_operands(proto.graph)
    for name, tensor in model_tensors(proto):
        if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
            continue
        array = read_tensor(tensor, folder)  # for every type: it checks the number of elements
        if tensor.data_type not in FLOAT_TYPES:
            continue
        n_nan, n_infinite = _count_non_finite(array)
        if n_nan or (n_infinite and name in weights):
            raise ModelError(
                f"weight {name!r} of {where} has values that are not finite",
                got=f"{n_nan} NaN, {n_infinite} infinite",
                expected="finite numbers",
                hint="the training diverged or the export is broken; export a good checkpoint",
            )


def _finite_operands(graph: GraphProto) -> set[str]:
    names = {name for node in graph.node if node.op_type in _NEEDS_FINITE for name in node.input}
    for node in graph.node:
        for inner in subgraphs(node):
            names |= _finite_operands(inner)
    return names


def _count_non_finite(array: NDArray[np.generic]) -> tuple[int, int]:
    flat = array.reshape(-1)
    n_nan = n_infinite = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        block = block if block.dtype in (np.float32, np.float64) else block.astype(np.float32)
        if not np.isfinite(block).all():
            nan = int(np.isnan(block).sum())
            n_nan += nan
            n_infinite += int((~np.isfinite(block)).sum()) - nan
    return n_nan, n_infinite
