"""TF32 emulation: the operands of convolutions and matrix products rounded to 10 mantissa bits, FP32 accumulation."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.skeleton import typed_graph

DROPPED_BITS = 13
"""Mantissa bits of float32 that TF32 lacks."""

SPLITTER = float(2**DROPPED_BITS + 1)
"""Veltkamp's constant: c = SPLITTER * x, then c - (c - x) is x rounded to 24 - 13 = 11 significant bits."""


def round_tf32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 10 stored mantissa bits, to nearest, ties to even; infinities and NaN stay.

    Values that would round beyond the largest TF32 number become infinite, as in IEEE rounding.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half = np.uint32((1 << (DROPPED_BITS - 1)) - 1) + ((bits >> np.uint32(DROPPED_BITS)) & np.uint32(1))
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    rounded = (bits + np.where(special, np.uint32(0), half)) & np.uint32(0xFFFFFFFF << DROPPED_BITS & 0xFFFFFFFF)
    return np.where(special, bits, rounded).astype(np.uint32).view(np.float32).reshape(np.shape(values))


def to_tf32(model: Model) -> ModelProto:
    """Make a float32 graph whose results carry TF32's rounding of operands.

    Both operands of every ``Conv``, ``ConvTranspose``, ``Gemm`` and ``MatMul`` of the main graph are rounded: weights
    here, activations in the graph, once each however often they are used, by Veltkamp's splitting (T. J. Dekker,
    Numerische Mathematik 18, 1971), which is three nodes of plain float32 arithmetic. Biases, accumulation and all
    other operators stay float32.

    The splitting equals rounding to nearest with ties to even for magnitudes from 2^-113 up to 2^114 (about 1e-34 to
    2e34), and zero. Larger ones overflow to NaN; smaller ones, down to the subnormals, keep more bits than TF32 has.

    Args:
        model: A prepared model. Weights that are rounded become inline.

    Raises:
        ModelError: If weights cannot be read.
    """
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    index = GraphIndex(graph, typed_graph(proto))
    rounded: dict[str, str] = {}
    nodes: list[NodeProto] = []
    splitter: str | None = None
    for node in graph.node:
        if node.op_type in WEIGHTED_OPS and node.domain in ("", "ai.onnx"):
            for position in (0, 1):
                name = node.input[position]
                if index.elem_type(name) not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
                    continue
                if name not in rounded:
                    if name in index.initializers:
                        rounded[name] = _round_weight(model, proto, index, name)
                    else:
                        if splitter is None:
                            splitter = index.fresh("tf32_splitter")
                            constant = onnx.numpy_helper.from_array(np.array(SPLITTER, np.float32), splitter)
                            graph.initializer.append(constant)
                        rounded[name] = _split(index, nodes, name, splitter)
                node.input[position] = rounded[name]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def _round_weight(model: Model, proto: ModelProto, index: GraphIndex, name: str) -> str:
    value = round_tf32(np.asarray(tensor_array(model, index.initializers[name]), np.float32))
    operand_uses = sum(list(user.input[:2]).count(name) for user in proto.graph.node if user.op_type in WEIGHTED_OPS)
    if operand_uses == index.uses(name):
        index.initializers[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
        return name
    copy = index.fresh(f"{name}_tf32")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(value, copy))
    return copy


def _split(index: GraphIndex, nodes: list[NodeProto], name: str, splitter: str) -> str:
    scaled, rest, high = (index.fresh(f"{name}_tf32{suffix}") for suffix in ("_scaled", "_rest", ""))
    make = onnx.helper.make_node
    nodes.append(make("Mul", [name, splitter], [scaled], name=index.fresh(f"{scaled}_Mul")))
    nodes.append(make("Sub", [scaled, name], [rest], name=index.fresh(f"{rest}_Sub")))
    nodes.append(make("Sub", [scaled, rest], [high], name=index.fresh(f"{high}_Sub")))
    return high
