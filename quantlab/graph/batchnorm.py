"""Folding of batch normalization into the layer before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.tensors import read_tensor

_FOLDABLE = frozenset({"Conv", "ConvTranspose", "Gemm"})


def fold_batchnorm(proto: ModelProto, folder: Path | None) -> int:
    """Fold inference ``BatchNormalization`` into the ``Conv``, ``ConvTranspose`` or ``Gemm`` before it, in place.

    With factor f = scale / sqrt(var + epsilon), the weight becomes W f along its output channels and the bias
    (b - mean) f + B, in float64, rounded once to the weight's type. The layer takes over the normalization's output
    name. A layer whose result is used elsewhere too keeps its normalization, and so do those in training mode or with
    parameters that are not stored.

    Args:
        proto: Model, changed in place.
        folder: Folder of its external data.

    Returns:
        Number of normalizations folded.
    """
    index = GraphIndex(proto.graph)
    removed: set[str] = set()
    for norm in proto.graph.node:
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx"):
            continue
        layer = index.producer.get(norm.input[0])
        if layer is not None and _fold(proto, index, layer, norm, folder):
            removed.add(norm.output[0])
    if removed:
        rest = [
            node
            for node in proto.graph.node
            if not (node.op_type == "BatchNormalization" and node.output[0] in removed)
        ]
        del proto.graph.node[:]
        proto.graph.node.extend(rest)
    return len(removed)


def _fold(proto: ModelProto, index: GraphIndex, layer: NodeProto, norm: NodeProto, folder: Path | None) -> bool:
    if layer.op_type not in _FOLDABLE or layer.domain not in ("", "ai.onnx") or index.uses(layer.output[0]) != 1:
        return False
    if len([name for name in norm.output if name]) != 1 or _attribute(norm, "training_mode", 0):
        return False
    bias_name = layer.input[2] if len(layer.input) > 2 else ""
    needed = [layer.input[1], *norm.input[1:5], *([bias_name] if bias_name else [])]
    if any(name not in index.initializers for name in needed):
        return False
    weight = _read(index, layer.input[1], folder)
    scale, shift, mean, variance = (_read(index, name, folder).astype(np.float64) for name in norm.input[1:5])
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + float(_attribute(norm, "epsilon", 1e-5)))
    old_bias = _read(index, bias_name, folder).astype(np.float64) if bias_name else np.zeros(())
    if layer.op_type == "Gemm":
        old_bias = old_bias * float(_attribute(layer, "beta", 1.0))
        if old_bias.ndim == 2 and old_bias.shape[0] == 1:
            old_bias = old_bias[0]
    if old_bias.ndim > 1:
        return False
    scaled = _scaled(layer, weight.astype(np.float64), factor)
    new_bias = (np.broadcast_to(old_bias, factor.shape) - mean) * factor + shift
    if scaled is None or not (np.isfinite(scaled).all() and np.isfinite(new_bias).all()):
        return False
    layer.input[1] = _store(proto, index, layer.input[1], layer.input[1], scaled.astype(weight.dtype))
    base = bias_name or norm.input[2]
    name = _store(proto, index, bias_name, base, new_bias.astype(weight.dtype))
    del layer.input[2:]
    layer.input.append(name)
    for attribute in [
        attribute for attribute in layer.attribute if layer.op_type == "Gemm" and attribute.name == "beta"
    ]:
        layer.attribute.remove(attribute)
    layer.output[0] = norm.output[0]
    return True


def _scaled(layer: NodeProto, weight: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The weight times the factor along its output channels; None if they do not fit."""
    channels = factor.size
    if layer.op_type == "Conv":
        if weight.shape[0] != channels:
            return None
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "Gemm":
        transposed = bool(_attribute(layer, "transB", 0))
        if weight.ndim != 2 or weight.shape[0 if transposed else 1] != channels:
            return None
        return weight * (factor[:, None] if transposed else factor[None, :])
    # ConvTranspose: [C, M/groups, ...]; output channel g * M/groups + j comes from input channels of group g.
    groups = int(_attribute(layer, "group", 1))
    if weight.shape[1] * groups != channels:
        return None
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    factors = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (grouped * factors).reshape(weight.shape)


def _read(index: GraphIndex, name: str, folder: Path | None) -> NDArray[np.floating]:
    array = read_tensor(index.initializers[name], folder)
    return np.asarray(array)


def _store(proto: ModelProto, index: GraphIndex, old: str, base: str, value: NDArray[np.generic]) -> str:
    """Store a folded value under the old name if nothing else uses it, otherwise under a new one."""
    if old and index.uses(old) == 1:
        index.initializers[old].CopyFrom(onnx.numpy_helper.from_array(value, old))
        return old
    name = index.fresh(f"{base}_folded")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return name


def _attribute(node: NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(attribute.f if attribute.type == onnx.AttributeProto.FLOAT else attribute.i)
    return default
