"""Which nodes of a graph are layers whose precision a target chooses, and where their weights are."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto

from quantlab.documents import near_match
from quantlab.errors import ConfigError
from quantlab.graph.targets import MOVING_OPS, TargetProfile

PRODUCTS = frozenset({"Gemm", "MatMul"})
"""Matrix products."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product that a target quantizes.

    Attributes:
        position: Position of its node in the graph.
        node: The node.
        weight: Input slot of its constant weight; None if both operands are activations.
    """

    position: int
    node: NodeProto
    weight: int | None

    @property
    def name(self) -> str:
        """Name of the node."""
        return str(self.node.name)

    @property
    def activations(self) -> tuple[int, ...]:
        """Input slots of its activations."""
        return tuple(slot for slot in (0, 1) if slot != self.weight)


def find_layers(graph: GraphProto, target: TargetProfile) -> Iterator[Layer]:
    """Layers of a graph that a target quantizes, in graph order; subgraphs are not entered."""
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    dequantized = dequantized_constants(graph)
    for position, node in enumerate(graph.node):
        if node.op_type not in target.weighted_ops or len(node.input) < 2:
            continue
        if constant_weight(node, initializers) or node.input[1] in dequantized:
            if node.input[0] not in initializers:
                yield Layer(position, node, 1)
        elif target.free_products and node.op_type in PRODUCTS and node.input[1] not in initializers:
            if constant_weight(node, initializers, 0) or node.input[0] in dequantized:
                yield Layer(position, node, 0)
            elif node.input[0] not in initializers:
                yield Layer(position, node, None)


def dequantized_constants(graph: GraphProto) -> frozenset[str]:
    """Tensors that hold dequantized constants: the weights of a model that is quantized already."""
    constant = {initializer.name for initializer in graph.initializer}
    dequantized: set[str] = set()
    for node in graph.node:
        if not node.input or node.input[0] not in constant | dequantized:
            continue
        if node.op_type == "DequantizeLinear" or (node.op_type in MOVING_OPS and node.input[0] in dequantized):
            dequantized.update(node.output)
        elif node.op_type == "QuantizeLinear":
            constant.update(node.output)
    return frozenset(dequantized)


def constant_weight(node: NodeProto, initializers: Mapping[str, TensorProto], slot: int = 1) -> bool:
    """Whether an input of a node, the second unless said otherwise, is a constant of two or more axes."""
    weight = initializers.get(node.input[slot]) if len(node.input) > slot else None
    return weight is not None and len(weight.dims) >= 2


def weight_axis(node: NodeProto, rank: int, slot: int = 1) -> int:
    """Axis of a weight's output channels.

    Conv: 0. ConvTranspose: 1; with groups, a scale there is shared by the channels of that number in all groups.
    Gemm: 0 with ``transB``, else 1. MatMul: the last. Of a product's first operand: its rows.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    flags = {attribute.name: bool(attribute.i) for attribute in node.attribute}
    if slot == 0:
        return 1 if node.op_type == "Gemm" and flags.get("transA") else rank - 2
    if node.op_type == "Gemm":
        return 0 if flags.get("transB") else 1
    return rank - 1


def excluded_layers(graph: GraphProto, target: TargetProfile, patterns: Collection[str]) -> frozenset[str]:
    """Names of the quantizable layers that the names or patterns select.

    Raises:
        ConfigError: If one selects none.
    """
    names = [layer.name for layer in find_layers(graph, target)]
    excluded: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern) or [name for name in names if name == pattern]
        if not matched:
            near = near_match(pattern, names)
            raise ConfigError(
                f"nothing to exclude: no quantizable layer is named {pattern!r}",
                expected=", ".join(names[:6]) + (", ..." if len(names) > 6 else ""),
                hint=f"did you mean {near!r}?" if near else None,
            )
        excluded.update(matched)
    return frozenset(excluded)
