"""Tensors of the user's own file whose ranges follow from those of the prepared graph, without running it again.

The output of a layer whose batch normalization was folded is the normalized tensor, scaled and shifted back channel by
channel. The output of a zero padding that was folded is its input with zeros added. Everything else that preparation
removed is either an alias (`quantlab.graph.original`) or must be observed in the original graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.original import original_only_tensors, runnable_original
from quantlab.graph.prepare import Prepared
from quantlab.graph.tensors import read_tensor


@dataclass(frozen=True, slots=True, eq=False)
class FoldedNorm:
    """A tensor x before a batch normalization of which ``source = factor * x + shift`` was kept.

    Attributes:
        source: The normalized tensor in the prepared graph, channels on axis 1.
        factor: By channel, (C,).
        shift: By channel, (C,).
    """

    source: str
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OriginalPlan:
    """Where the ranges of the tensors come from that the user's file has and the prepared graph has not.

    Attributes:
        aliases: Tensors with one of the prepared graph of the same values.
        norms: Tensors before a folded batch normalization.
        pads: Tensors behind a folded padding, each with the tensor that was padded; how many values were added, and
            that they are zeros, shows when both graphs run.
        missing: Tensors that must be observed in the original graph, in graph order.
    """

    aliases: Mapping[str, str]
    norms: Mapping[str, FoldedNorm]
    pads: Mapping[str, str]
    missing: tuple[str, ...]

    @property
    def channelwise(self) -> frozenset[str]:
        """Tensors of the prepared graph whose channels' extremes are needed."""
        return frozenset(norm.source for norm in self.norms.values())


def plan_original(prepared: Prepared, original: Model, known: Collection[str]) -> OriginalPlan:
    """Find where the ranges of the original graph's further tensors come from.

    Args:
        prepared: The graph that is observed.
        original: The model that it was prepared from.
        known: Tensors of the prepared graph that are observed.
    """
    tensors = original_only_tensors(original, known)
    graph = runnable_original(prepared, original).model.proto.graph
    index, kept = GraphIndex(graph), GraphIndex(prepared.model.proto.graph)
    norms, pads = {}, {}
    wanted = set(tensors.missing)
    for node in graph.node:
        if node.op_type == "BatchNormalization" and node.input[0] in wanted and node.output[0] in known:
            norm = _folded_norm(node, index, original)
            if norm is not None:
                norms[node.input[0]] = norm
        elif node.op_type == "Pad" and node.output[0] in wanted:
            source = tensors.aliases.get(node.input[0], node.input[0])
            if (
                source in known
                and _adds_a_constant(node, index, original.data_folder)
                and _size_is_fixed(kept.shape(source))
            ):
                pads[node.output[0]] = source
    missing = tuple(name for name in tensors.missing if name not in norms and name not in pads)
    return OriginalPlan(tensors.aliases, norms, pads, missing)


def _folded_norm(node: NodeProto, index: GraphIndex, original: Model) -> FoldedNorm | None:
    """The normalization's factors, if they are stored and it is not in training mode."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    training = "training_mode" in attributes and attributes["training_mode"].i
    found = [_constant(name, index, original.data_folder) for name in node.input[1:5]]
    if training or any(value is None for value in found):
        return None
    scale, offset, mean, variance = (np.asarray(value, np.float64) for value in found)
    epsilon = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
    if not np.isfinite(factor).all():
        return None
    return FoldedNorm(node.output[0], factor, offset - mean * factor)


def _adds_a_constant(node: NodeProto, index: GraphIndex, folder: Path | None) -> bool:
    """Whether a padding adds the same value to every sample."""
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"constant")
    value = node.input[2] if len(node.input) > 2 else ""
    return bool(mode == b"constant" and (not value or _constant(value, index, folder) is not None))


def _constant(name: str, index: GraphIndex, folder: Path | None) -> NDArray[np.generic] | None:
    """The constant of that name: stored, made by a ``Constant`` or ``ConstantOfShape`` node, or a copy of such."""
    tensor, node = index.initializers.get(name), index.producer.get(name)
    if tensor is not None:
        return np.asarray(read_tensor(tensor, folder))
    if node is None:
        return None
    value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    if node.op_type == "Identity":
        return _constant(node.input[0], index, folder)
    if node.op_type == "Constant" and value is not None:
        return np.asarray(read_tensor(value, folder))
    if node.op_type == "ConstantOfShape":
        shape = _constant(node.input[0], index, folder)
        fill = read_tensor(value, folder).reshape(-1)[0] if value is not None else np.float32(0)
        return None if shape is None else np.full(tuple(int(dim) for dim in shape), fill)
    return None


def _size_is_fixed(shape: tuple[int | str | None, ...] | None) -> bool:
    return shape is not None and len(shape) > 1 and all(isinstance(dim, int) for dim in shape[1:])
