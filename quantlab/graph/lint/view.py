"""A graph as the lint rules see it: its quantizers, its constants, and the operands of its weighted layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from quantlab.errors import ModelError
from quantlab.graph.checks import WEIGHTED_OPS, opset_of
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs, type_name

MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "MaxPool"})
"""Operators over which TensorRT moves Q and DQ: they choose or move values and compute none."""

_DEFAULT_DOMAINS = ("", "ai.onnx")
_PASSED_OVER = frozenset({"Identity", "Cast"})


@dataclass(frozen=True, slots=True, eq=False)
class Quantizer:
    """A QuantizeLinear or DequantizeLinear node.

    Attributes:
        node: The node.
        name: Its name, or that of its output if it has none.
        source: The tensor it reads.
        output: The tensor it makes.
        scale: Its scales as float64, or None if they are not constant.
        zero_point: Its zero-points as float64, or None if there are none or they are not constant.
        code_type: ``TensorProto.DataType`` of the quantized tensor; UNDEFINED (0) if unknown.
        axis: The axis of its scales, if there are several.
        block_size: Elements that share a scale along the axis; 0 if it is not blocked.
    """

    node: NodeProto
    name: str
    source: str
    output: str
    scale: NDArray[np.float64] | None
    zero_point: NDArray[np.float64] | None
    code_type: int
    axis: int
    block_size: int

    @property
    def quantizes(self) -> bool:
        """Whether it is a QuantizeLinear."""
        return self.node.op_type == "QuantizeLinear"

    @property
    def per_channel(self) -> bool:
        """Whether it has more than one scale."""
        return self.scale is not None and self.scale.size > 1

    @property
    def has_zero_point(self) -> bool:
        """Whether a zero-point is given."""
        return len(self.node.input) > 2 and bool(self.node.input[2])

    @property
    def grid(self) -> str:
        """Its parameters in words, such as ``int8, scale 0.02, zero-point 0``."""
        return f"{type_name(self.code_type)}, scale {_numbers(self.scale)}, zero-point {_numbers(self._zeros())}"

    def same_grid(self, other: Quantizer) -> bool | None:
        """Whether two quantizers have the same scales, zero-points, type and axis; None if that is not known."""
        if self.scale is None or other.scale is None:
            same_names = list(self.node.input[1:]) == list(other.node.input[1:])
            return True if same_names else None
        same_type = self.code_type == other.code_type or 0 in (self.code_type, other.code_type)
        same_axis = not self.per_channel or self.axis == other.axis
        same_scale = np.array_equal(self.scale.reshape(-1), other.scale.reshape(-1), equal_nan=True)
        zeros, others = self._zeros().reshape(-1), other._zeros().reshape(-1)
        comparable = zeros.size == others.size or 1 in (zeros.size, others.size)
        return bool(same_type and same_axis and same_scale and comparable and np.all(zeros == others))

    def _zeros(self) -> NDArray[np.float64]:
        return np.zeros(1) if self.zero_point is None else self.zero_point


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A weighted layer and its operands, looked up through operators that only move values.

    Attributes:
        node: The node.
        name: Its name, or that of its output.
        data: The DequantizeLinear in front of its data; None if they are not quantized.
        weight: The DequantizeLinear behind its weight; None if it is not quantized.
        weight_name: The stored weight, float or quantized; None if the weight is computed.
        axis: Axis of the output channels in the stored weight; None if it cannot be told.
    """

    node: NodeProto
    name: str
    data: Quantizer | None
    weight: Quantizer | None
    weight_name: str | None
    axis: int | None

    @property
    def quantized(self) -> bool:
        """Whether both operands are quantized."""
        return self.data is not None and self.weight is not None


class GraphView:
    """One graph of a model, for reading.

    Attributes:
        proto: The model.
        graph: The graph: the model's own or that of an ``If``, ``Loop`` or ``Scan``.
        index: Producers, consumers and types in it.
        outer: The view of the graph around it.
        quantizers: Its Q/DQ nodes in graph order.
        layers: Its weighted layers in graph order.
        layer_of: The same by the tensor they make.
        opset: Version of the default operator set.
    """

    def __init__(self, proto: ModelProto, graph: GraphProto, folder: Path | None, outer: GraphView | None) -> None:
        self.proto, self.graph, self.outer = proto, graph, outer
        self.opset = opset_of(proto)
        self.index = GraphIndex(graph, typed_graph(proto) if outer is None else None)
        self._folder = folder
        self._by_output: dict[str, Quantizer] = {}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and is_standard(node):
                self._by_output[node.output[0]] = self._quantizer(node)
        self.quantizers = tuple(self._by_output.values())
        self.layers = tuple(
            self._layer(node) for node in graph.node if node.op_type in WEIGHTED_OPS and is_standard(node)
        )
        self.layer_of = {layer.node.output[0]: layer for layer in self.layers}

    @property
    def has_quantizers(self) -> bool:
        """Whether the graph holds Q/DQ nodes."""
        return bool(self.quantizers)

    def inner(self) -> Iterator[GraphView]:
        """Views of the graphs inside its nodes, outermost only."""
        for node in self.graph.node:
            for graph in subgraphs(node):
                yield GraphView(self.proto, graph, self._folder, self)

    def knows(self, tensor: str) -> bool:
        """Whether the tensor is made or stored in this graph, or is its input: not one of the graph around it."""
        return tensor in self.index.producer or tensor in self.index.initializers or tensor in self.index.inputs

    def stored(self, tensor: str) -> TensorProto | None:
        """The stored tensor behind a name: an initializer or Constant, looked up through Identity and Cast."""
        if tensor in self.index.initializers:
            return self.index.initializers[tensor]
        node = self.index.producer.get(tensor)
        if node is None:
            return self.outer.stored(tensor) if self.outer is not None and not self.knows(tensor) else None
        if node.op_type in _PASSED_OVER:
            return self.stored(node.input[0])
        if node.op_type == "Constant":
            return next((_constant(attribute) for attribute in node.attribute), None)
        return None

    def values(self, tensor: str) -> NDArray[np.generic] | None:
        """Elements of a constant tensor; None if it is not constant.

        Raises:
            ModelError: If the stored tensor cannot be read.
        """
        found = self.stored(tensor)
        return None if found is None else read_tensor(found, self._folder)

    def dequantizer(self, tensor: str) -> Quantizer | None:
        """The DequantizeLinear that makes a tensor."""
        found = self._by_output.get(tensor)
        return found if found is not None and not found.quantizes else None

    def quantizer_before(self, dequantizer: Quantizer) -> Quantizer | None:
        """The QuantizeLinear whose codes a DequantizeLinear reads."""
        found = self._by_output.get(dequantizer.source)
        return found if found is not None and found.quantizes else None

    def quantizers_of(self, tensor: str) -> list[Quantizer]:
        """The QuantizeLinear nodes that read a tensor, each once."""
        users = {node.output[0]: node for node in self.index.consumers.get(tensor, ()) if node.output}
        found = [self._by_output[name] for name in users if name in self._by_output]
        return [each for each in found if each.quantizes and each.source == tensor]

    def users(self, tensor: str) -> list[NodeProto]:
        """The nodes that use a tensor, in graph order, once a use."""
        return self.index.consumers.get(tensor, [])

    def is_constant(self, quantizer: Quantizer) -> bool:
        """Whether what it quantizes or dequantizes is stored: a weight or bias, not an activation."""
        if self.stored(quantizer.source) is not None:
            return True
        before = self._by_output.get(quantizer.source)
        return before is not None and self.is_constant(before)

    def codes(self, layer: Layer) -> NDArray[np.float64] | None:
        """An 8-bit weight's distances from zero in steps of its scale, in the stored shape; None if not known."""
        weight = layer.weight
        if weight is None or weight.scale is None or layer.weight_name is None or weight.block_size:
            return None
        if weight.code_type not in (TensorProto.INT8, TensorProto.UINT8):
            return None
        values = self.values(layer.weight_name)
        assert values is not None
        steps, scale, zeros = values.astype(np.float64), weight.scale, np.zeros(1)
        zeros = zeros if weight.zero_point is None else weight.zero_point
        if not -steps.ndim <= weight.axis < steps.ndim or not {scale.size, zeros.size} <= {1, steps.shape[weight.axis]}:
            return None  # scale-shape says it
        shape = [1] * steps.ndim
        shape[weight.axis] = -1
        if values.dtype.kind == "f" and values.dtype.itemsize > 1:  # a float weight in front of a Q/DQ pair
            with np.errstate(all="ignore"):
                return np.clip(np.rint(steps / scale.reshape(shape)), -128, 127)
        return steps - zeros.reshape(shape)

    def rank(self, tensor: str) -> int | None:
        """Number of axes of a tensor, if it is known."""
        shape = self.index.shape(tensor)
        return None if shape is None else len(shape)

    def _quantizer(self, node: NodeProto) -> Quantizer:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        scale = self._floats(node.input[1])
        zero = self._floats(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return Quantizer(
            node,
            node_name(node),
            node.input[0],
            node.output[0],
            scale,
            zero,
            self._code_type(node, attributes),
            int(attributes.get("axis", 1)),
            int(attributes.get("block_size", 0)),
        )

    def _floats(self, tensor: str) -> NDArray[np.float64] | None:
        try:
            values = self.values(tensor)
            return None if values is None else values.astype(np.float64)
        except (ModelError, TypeError, ValueError):  # a scale that is no number is not usable as one
            return None

    def _code_type(self, node: NodeProto, attributes: dict[str, Any]) -> int:
        zero_type = self.elem_type(node.input[2]) if len(node.input) > 2 and node.input[2] else 0
        if node.op_type == "QuantizeLinear":
            return zero_type or int(attributes.get("output_dtype", 0)) or int(TensorProto.UINT8)
        before = self._by_output.get(node.input[0])
        return self.elem_type(node.input[0]) or (before.code_type if before is not None else 0) or zero_type

    def elem_type(self, tensor: str) -> int:
        """Element type of a tensor; UNDEFINED (0) if unknown."""
        found = self.stored(tensor) if tensor not in self.index.producer else None
        return int(found.data_type) if found is not None else self.index.elem_type(tensor)

    def _layer(self, node: NodeProto) -> Layer:
        left_is_weight = node.op_type == "MatMul" and self._weight(node.input[0])[1] is not None
        left_is_weight = left_is_weight and self._weight(node.input[1])[1] is None
        data, weight = (1, 0) if left_is_weight else (0, 1)
        dequantizer, stored, moves = self._weight(node.input[weight])
        rank = self.rank(node.input[weight])
        axis = None if rank is None else _channel_axis(node, rank, left_is_weight)
        for move in moves:
            axis = None if axis is None else _axis_before(move, axis)
        return Layer(node, node_name(node), self.dequantizer(self.origin(node.input[data])), dequantizer, stored, axis)

    def _weight(self, tensor: str) -> tuple[Quantizer | None, str | None, list[NodeProto]]:
        """The quantizer, the stored tensor and the moving operators behind an operand."""
        moves: list[NodeProto] = []
        name = tensor
        while (node := self.index.producer.get(name)) is not None and node.op_type in MOVES - {"MaxPool"}:
            moves.append(node)
            name = node.input[0]
        found = self.dequantizer(name)
        if found is None:
            return None, name if self.stored(name) is not None else None, moves
        before = self.quantizer_before(found)
        source = found.source if before is None else before.source
        return found, source if self.stored(source) is not None else None, moves

    def origin(self, tensor: str) -> str:
        """The tensor whose values a tensor has, looked up through operators that only move them."""
        while (node := self.index.producer.get(tensor)) is not None and node.op_type in MOVES:
            tensor = node.input[0]
        return tensor


def model_views(model: Model) -> Iterator[GraphView]:
    """The model's graph, then the graphs inside its nodes.

    Raises:
        ModelError: If constants cannot be read.
    """
    waiting = [GraphView(model.proto, model.proto.graph, model.data_folder, None)]
    while waiting:
        view = waiting.pop(0)
        yield view
        waiting += view.inner()


def node_name(node: NodeProto) -> str:
    """A node's name, or that of its first output if it has none."""
    return node.name or next((name for name in node.output if name), node.op_type)


def is_standard(node: NodeProto) -> bool:
    """Whether the node is of ONNX's own operator set."""
    return node.domain in _DEFAULT_DOMAINS


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _channel_axis(node: NodeProto, rank: int, left: bool) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return max(rank - (2 if left else 1), 0)


def _axis_before(move: NodeProto, axis: int) -> int | None:
    """Where an axis of a moving operator's output lies in its input; None if that cannot be told."""
    if move.op_type == "Identity":
        return axis
    order = attribute(move, "perm")
    return int(order[axis]) if move.op_type == "Transpose" and order and axis < len(order) else None


def _constant(value: Any) -> TensorProto | None:
    """The tensor of a Constant node's attribute."""
    content = helper.get_attribute_value(value)
    if value.name == "value":
        return content if isinstance(content, TensorProto) else None
    kinds = {"value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT}
    kinds |= {"value_int": TensorProto.INT64, "value_ints": TensorProto.INT64}
    if value.name not in kinds:
        return None
    several = value.name.endswith("s")
    return helper.make_tensor(
        "", kinds[value.name], [len(content)] if several else [], content if several else [content]
    )


def _numbers(values: NDArray[np.float64] | None) -> str:
    if values is None:
        return "not constant"
    if values.size == 1:
        return f"{values.reshape(-1)[0]:.6g}"
    return f"{values.min():.4g}..{values.max():.4g} ({values.size})" if values.size else "none"
