"""Strongly typed FP16 and BF16 graphs: weights and activations really are 16 bits, and casts say where they are not.

This is what a strongly typed TensorRT network and ONNX Runtime's CUDA provider obey: no flag, the types in the graph
decide. ``half.py`` makes the graph that emulates the same rounding in float32 on a CPU.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantlab.calibrators.table import CalibrationTable
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import near_match
from quantlab.errors import ConfigError
from quantlab.graph.cleanup import name_nodes
from quantlab.graph.half import FORMATS, HalfFormat
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.opset import raise_opset
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.typed_rules import Network, half_tensors, nodes_to_keep
from quantlab.graph.typed_slots import Slots, find_slots
from quantlab.graph.typed_values import Values
from quantlab.precision import Precision

_OPSETS = {Precision.FP16: (13, 7), Precision.BF16: (22, 10)}
"""Opset and IR version from which ONNX allows the format in convolutions, pooling and activations."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A strongly typed graph and what was done.

    Attributes:
        proto: The graph. Inputs and outputs have the types that they had.
        kept: Names of the nodes with float32 tensors that stayed float32, with the reason, in graph order.
        degradations: Tensors whose overflow was not measured.
    """

    proto: ModelProto
    kept: Mapping[str, str]
    degradations: tuple[Degradation, ...]


def to_typed(
    model: Model, precision: Precision, *, extremes: Mapping[str, float] | None, keep: Collection[str] = ()
) -> Typed:
    """Make a graph that computes in a 16-bit format, with the nodes that overflow or lose too much in float32.

    Float32 weights are stored in 16 bits, rounded to nearest with ties to even. Casts stand behind float32 inputs, in
    front of float32 outputs, and around nodes that stay float32, one for each tensor however many read it. Bodies of
    ``If``, ``Loop`` and ``Scan`` stay float32, as do operators of other domains. Which nodes stay and why is in
    `quantlab.graph.typed_rules`.

    QuantizeLinear and DequantizeLinear stay float32 whatever is around them, so that scales and codes are what they
    were: an activation is cast to float32, quantized, dequantized and cast back; stored codes are dequantized and cast.
    TensorRT fuses these casts too, and is wrong with FP16 scales (docs/adr/011-typed-graphs.md). Pairs are not named in
    ``kept``.

    Args:
        model: A prepared float32 model, with or without Q/DQ pairs. Weights become inline. Parts that are 16 bits
            already stay as they are.
        precision: FP16 or BF16.
        extremes: Largest measured magnitude by tensor, over calibration data (see `extremes_of`); None if nothing was
            measured. Tensors that are missing are bounded where their operator bounds them.
        keep: Names or glob patterns of nodes that stay float32.

    Raises:
        ConfigError: If an entry of ``keep`` names no node.
        ModelError: If weights cannot be read, or the opset cannot be raised.
        ValueError: If ``precision`` is another.
    """
    if precision not in FORMATS:
        raise ValueError(f"{precision} is not a 16-bit floating-point format")
    half = FORMATS[precision]
    proto = _raised(model.proto, precision)
    name_nodes(proto)
    _store_constants(proto)
    source = model.with_proto(proto)
    index = GraphIndex(proto.graph, typed_graph(proto))
    slots = [find_slots(node, index, source.opset, half.onnx_type) for node in proto.graph.node]
    values = Values(source, index, half, extremes or {})
    network = Network(index, slots, values, _asked(proto, keep))
    kept = nodes_to_keep(network)
    names = {
        proto.graph.node[position].name: reason
        for position, reason in kept.items()
        if proto.graph.node[position].op_type not in ("Shape", "Size")  # they read no values
    }
    unmeasured = _unmeasured(network, kept, half)
    _Rewriter(source, index, slots, kept, half).rewrite()
    return Typed(proto, MappingProxyType(names), tuple(_degradations(unmeasured, extremes is not None)))


def extremes_of(table: CalibrationTable) -> dict[str, float] | None:
    """Largest measured magnitude of every tensor of a table; None if its ranges were imported, for these are chosen.

    Infinite values, which an attention mask may have, do not count.
    """
    if table.provenance.source != "observed":
        return None
    return {entry.name: max(abs(entry.minimum), abs(entry.maximum)) for entry in table.tensors}


def _raised(proto: ModelProto, precision: Precision) -> ModelProto:
    """A copy at an opset in which the format has all operators."""
    raised = raise_opset(proto, *_OPSETS[precision])
    if raised is not proto:
        return raised
    result = ModelProto()
    result.CopyFrom(proto)
    return result


def _store_constants(proto: ModelProto) -> None:
    """Turn ``Constant`` nodes of tensors and floats into initializers, in place, so that they can have a copy."""
    rest: list[NodeProto] = []
    for node in proto.graph.node:
        value = _constant(node)
        if value is None:
            rest.append(node)
        else:
            stored = TensorProto()
            stored.CopyFrom(value)
            stored.name = node.output[0]
            proto.graph.initializer.append(stored)
    if len(rest) < len(proto.graph.node):
        del proto.graph.node[:]
        proto.graph.node.extend(rest)


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            value: TensorProto = attribute.t
            return value
        if attribute.name in ("value_float", "value_floats"):
            one = attribute.type == AttributeProto.FLOAT
            return numpy_helper.from_array(np.asarray(attribute.f if one else list(attribute.floats), np.float32))
    return None


def _asked(proto: ModelProto, patterns: Collection[str]) -> frozenset[str]:
    """Names of the nodes that names or patterns select."""
    names = [node.name for node in proto.graph.node]
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern) or [name for name in names if name == pattern]
        if not matched:
            near = near_match(pattern, names)
            raise ConfigError(
                f"nothing to keep in float32: no node is named {pattern!r}",
                expected=", ".join(names[:6]) + (", ..." if len(names) > 6 else ""),
                hint=f"did you mean {near!r}?" if near else None,
            )
        found.update(matched)
    return frozenset(found)


def _unmeasured(network: Network, kept: Mapping[int, str], half: HalfFormat) -> list[str]:
    """Tensors that become FP16 although nothing says how large they get. BF16 reaches as far as float32."""
    if half.precision is not Precision.FP16:
        return []
    names = dict.fromkeys(half_tensors(network, kept))
    values = network.values
    return [name for name in names if values.magnitude(name) is None and not values.harmless(name)]


def _degradations(unmeasured: Sequence[str], any_measured: bool) -> Iterator[Degradation]:
    if unmeasured:
        why = "the table has no range of them" if any_measured else "there is no calibration table"
        message = f"tensors became FP16 without knowing whether they overflow: {why}"
        yield Degradation.of(DegradationCode.OVERFLOW_NOT_MEASURED, message, unmeasured)


class _Rewriter:
    """The graph being changed."""

    def __init__(
        self, model: Model, index: GraphIndex, slots: Sequence[Slots], kept: Collection[int], half: HalfFormat
    ) -> None:
        self.model, self.index, self.half = model, index, half
        self.graph = index.graph
        self.nodes = list(self.graph.node)
        self.slots = [Slots() if position in kept else found for position, found in enumerate(slots)]
        self.suffix = f"_{half.precision.value}"
        self.implicit = {name for node in self.nodes for name in implicit_inputs(node)}
        self.read_as_half, self.read_as_float = self._readers()
        self.made_as_half = {
            node.output[i] for node, found in zip(self.nodes, self.slots, strict=True) for i in found.outputs
        }
        self.names: dict[str, str] = {}
        """Name of the 16-bit form of a tensor, where it is another than the tensor's own."""
        self.floats: dict[str, str] = {}
        """Name of the float32 form of a tensor, where it is another than the tensor's own."""

    def rewrite(self) -> None:
        self._store_weights()
        nodes: list[NodeProto] = []
        for name in self.index.inputs:
            nodes += self._casts(name)
        for node in self.nodes:
            self._name_outputs(node)
        for node, found in zip(self.nodes, self.slots, strict=True):
            outputs = list(node.output)
            self._point(node, found)
            nodes.append(node)
            for name in outputs:
                nodes += self._casts(name) if name else []
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        _drop_unused(self.graph)
        _join_casts(self.model.proto, self.half.onnx_type)

    def _readers(self) -> tuple[set[str], set[str]]:
        """Tensors that some node reads in 16 bits, and those that something reads as float32."""
        as_half: set[str] = set()
        as_float = {name for name in (*self.index.outputs, *self.implicit) if self.index.is_float(name)}
        for node, found in zip(self.nodes, self.slots, strict=True):
            for i, name in enumerate(node.input):
                if i in found.inputs:
                    as_half.add(name)
                elif name and self.index.is_float(name) and node.op_type not in ("Shape", "Size"):
                    as_float.add(name)
        return as_half, as_float

    def _store_weights(self) -> None:
        """Round the float32 initializers that are read in 16 bits; those also read as float32 get a copy."""
        for name, stored in self.index.initializers.items():
            if name not in self.read_as_half:
                continue
            # Bounds of Clip, Max and Min may lie beyond the format; the largest number does there what they do.
            value = self._value(name)
            clipped = np.where(np.isfinite(value), np.clip(value, -self.half.largest, self.half.largest), value)
            target = name
            if name in self.read_as_float:
                target = self.names[name] = self.index.fresh(name + self.suffix)
            tensor = _half_tensor(clipped, target, self.half)
            if target == name:
                stored.CopyFrom(tensor)
            else:
                self.graph.initializer.append(tensor)

    def _value(self, name: str) -> NDArray[np.float32]:
        return np.asarray(tensor_array(self.model, self.index.initializers[name]), np.float32)

    def _name_outputs(self, node: NodeProto) -> None:
        """Choose names where a tensor is made in one type and read in another; graph outputs keep theirs."""
        for name in node.output:
            if name not in self.made_as_half:
                continue
            if name in self.index.outputs or name in self.implicit:
                self.names[name] = self.index.fresh(name + self.suffix)
            elif name in self.read_as_float:
                self.floats[name] = self.index.fresh(f"{name}_fp32")

    def _point(self, node: NodeProto, found: Slots) -> None:
        """Let a node read and make tensors of its types."""
        for i, name in enumerate(node.input):
            if i in found.inputs or (node.op_type in ("Shape", "Size") and name in self.made_as_half):
                node.input[i] = self.names.get(name, name)
            else:
                node.input[i] = self.floats.get(name, name)
        for i in found.outputs:
            name = node.output[i]
            node.output[i] = self.names.get(name, name)
        if node.op_type == "Cast" and found.outputs:
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = self.half.onnx_type

    def _casts(self, name: str) -> list[NodeProto]:
        """The cast behind a tensor that is made in one type and read in the other."""
        if name in self.made_as_half:
            if name not in self.read_as_float:
                return []
            return [self._cast(self.names.get(name, name), self.floats.get(name, name), TensorProto.FLOAT)]
        if name in self.read_as_half:
            self.names[name] = self.index.fresh(name + self.suffix)
            return [self._cast(name, self.names[name], self.half.onnx_type)]
        return []

    def _cast(self, source: str, target: str, kind: int) -> NodeProto:
        return helper.make_node("Cast", [source], [target], name=self.index.fresh(f"{target}_Cast"), to=kind)


def _half_tensor(value: NDArray[np.generic], name: str, half: HalfFormat) -> TensorProto:
    with np.errstate(over="ignore"):
        kind = helper.tensor_dtype_to_np_dtype(half.onnx_type)
        return numpy_helper.from_array(np.asarray(value, np.float32).astype(kind), name)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Forget initializers that nothing reads any more, and what was known of tensors' types."""
    used = {name for node in graph.node for name in (*node.input, *implicit_inputs(node))}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]


def _join_casts(proto: ModelProto, half_type: int) -> None:
    """Drop casts that change nothing: of 16 bits to the same, directly or through float32, in place.

    They arise where a model held parts in 16 bits already. The first tensor of such a chain takes the last one's place.
    """
    graph = proto.graph
    index = GraphIndex(graph, typed_graph(proto))
    types = {
        name: index.elem_type(name)
        for node in graph.node
        if node.op_type == "Cast"
        for name in (*node.input, *node.output)
    }
    replaced: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Cast" or node.output[0] in index.outputs or types.get(node.output[0]) != half_type:
            continue
        source = replaced.get(node.input[0], node.input[0])
        before = index.producer.get(source)
        if types.get(source) == half_type:
            replaced[node.output[0]] = source
        elif (
            before is not None
            and before.op_type == "Cast"
            and types.get(source) == TensorProto.FLOAT
            and types.get(replaced.get(before.input[0], before.input[0])) == half_type
        ):
            replaced[node.output[0]] = replaced.get(before.input[0], before.input[0])
    if not replaced:
        return
    inside = {name for node in graph.node for name in implicit_inputs(node)}
    replaced = {name: source for name, source in replaced.items() if name not in inside}
    rest = [node for node in graph.node if node.op_type != "Cast" or node.output[0] not in replaced]
    for node in rest:
        for i, name in enumerate(node.input):
            node.input[i] = replaced.get(name, name)
    _replace_nodes(graph, rest)


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Keep these nodes, without casts that nothing reads any more."""
    read = {name for node in nodes for name in (*node.input, *implicit_inputs(node))}
    read |= {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type != "Cast" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)


__all__ = ["Typed", "extremes_of", "to_typed"]
