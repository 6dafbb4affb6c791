"""What a strongly typed 16-bit graph computes, as a float32 graph that any CPU runs.

ONNX Runtime's CPU provider has no BF16 convolution, and runs FP16 in float32 without the rounding between operators
(see ``half.py``). The emulation rounds every 16-bit tensor where it is made, and computes in float32 inside operators,
as tensor cores do.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from quantlab.graph.half import SELECTING_OPS
from quantlab.graph.index import GraphIndex
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs

_HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_EXACT_OPS = SELECTING_OPS | {"DequantizeLinear"}


def emulate_typed(proto: ModelProto) -> ModelProto:
    """Replace 16-bit tensors by float32 tensors of the same values, with a pair of casts where a value is rounded.

    Values that come from ``DequantizeLinear``, cast or not, are not rounded: they stand for 8-bit operands, whose
    products a runtime scales afterwards. Tensors keep their names;
    inputs and outputs of the graph keep their types, which must not be 16 bits.

    Args:
        proto: A graph that `to_typed` made, with its weights inline.

    Raises:
        ModelError: If a weight is malformed.
        ValueError: If an input or output, or something inside a subgraph, is 16 bits.
    """
    result = ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    _check(graph)
    index = GraphIndex(graph, typed_graph(result))
    for stored in graph.initializer:
        if stored.data_type in _HALF_TYPES:
            stored.CopyFrom(_widened(stored))
    nodes: list[NodeProto] = []
    for node in graph.node:
        halves = {i: index.elem_type(name) for i, name in enumerate(node.output) if name}
        halves = {i: kind for i, kind in halves.items() if kind in _HALF_TYPES}
        _widen_attributes(node)
        nodes.append(node)
        if node.op_type in _EXACT_OPS or _is_operand(node, index):
            continue
        for i, kind in halves.items():
            name = node.output[i]
            node.output[i] = index.fresh(f"{name}_unrounded")
            middle = index.fresh(f"{name}_half")
            for source, target, to in ((node.output[i], middle, kind), (middle, name, TensorProto.FLOAT)):
                nodes.append(helper.make_node("Cast", [source], [target], name=index.fresh(f"{target}_Cast"), to=to))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def _is_operand(node: NodeProto, index: GraphIndex) -> bool:
    """Whether the node casts dequantized values."""
    source = index.producer.get(node.input[0]) if node.op_type == "Cast" else None
    return source is not None and source.op_type == "DequantizeLinear"


def _check(graph: GraphProto) -> None:
    values = [*graph.input, *graph.output]
    for node in graph.node:
        for inner in subgraphs(node):
            values += [*inner.input, *inner.output, *inner.value_info]
    halves = [value.name for value in values if _elem_type(value.type) in _HALF_TYPES]
    if halves:
        raise ValueError(f"{halves[0]!r} is a 16-bit input, output or tensor of a subgraph")


def _elem_type(kind: TypeProto) -> int:
    return int(kind.tensor_type.elem_type)


def _widened(stored: TensorProto) -> TensorProto:
    value = read_tensor(stored, None)
    return numpy_helper.from_array(np.asarray(value, np.float32), stored.name)


def _widen_attributes(node: NodeProto) -> None:
    """A cast to 16 bits becomes one to float32: its output is rounded behind it."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALF_TYPES:
            attribute.i = TensorProto.FLOAT
