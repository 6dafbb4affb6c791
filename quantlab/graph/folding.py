"""Evaluation of the parts of a graph that do not depend on its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.session import Optimization, open_proto
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs

MAX_FOLDED_BYTES = 64 * 2**20
"""Constants larger than this are folded only if they are no larger than what they are made of."""

_KEPT_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "RandomNormal", "RandomUniform", "Bernoulli"}
    | {"RandomNormalLike", "RandomUniformLike", "Multinomial"}
)


def fold_constants(proto: ModelProto, folder: Path | None) -> int:
    """Replace nodes whose inputs are all known by initializers of the same names, in place.

    ``Shape`` of a tensor is known where inference knows the dimensions asked for, even if others are dynamic. Nodes
    with subgraphs, of custom domains, random ones and Q/DQ nodes stay. Only the weights that constant nodes use are
    read.

    Args:
        proto: Model, changed in place.
        folder: Folder of its external data.

    Returns:
        Number of nodes folded.

    Raises:
        ModelError: If ONNX Runtime cannot evaluate the constant part.
    """
    n_shapes = _fold_shapes(proto)
    graph = proto.graph
    index = GraphIndex(graph)
    known = set(index.initializers)
    constant: list[NodeProto] = []
    for node in graph.node:
        if _is_foldable(node) and all(name in known for name in node.input if name):
            constant.append(node)
            known.update(name for name in node.output if name)
    if not constant:
        return n_shapes
    inside = {name for node in constant for name in node.output if name}
    constant_ids = {node.output[0] for node in constant}
    wanted = [
        name
        for name in dict.fromkeys(name for node in constant for name in node.output if name)
        if name in index.outputs
        or any(not user.output or user.output[0] not in constant_ids for user in index.consumers.get(name, ()))
    ]
    values = _evaluate(proto, constant, wanted, folder)
    input_bytes = sum(
        int(np.prod(index.initializers[name].dims)) * 4
        for node in constant
        for name in node.input
        if name in index.initializers
    )
    if sum(value.nbytes for value in values) > max(MAX_FOLDED_BYTES, 2 * input_bytes):
        return n_shapes
    rest = [node for node in graph.node if not (node.output and node.output[0] in inside)]
    kept = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in zip(wanted, values, strict=True)]
    del graph.node[:]
    graph.node.extend(rest)
    graph.initializer.extend(kept)
    return n_shapes + len(constant)


def _is_foldable(node: NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _KEPT_OPS or any(True for _ in subgraphs(node)):
        return False
    if node.op_type == "Constant":
        return all(
            attribute.name not in ("value_string", "value_strings", "sparse_value") for attribute in node.attribute
        )
    return bool(node.output)


def _evaluate(
    proto: ModelProto, nodes: Sequence[NodeProto], wanted: Sequence[str], folder: Path | None
) -> list[NDArray[np.generic]]:
    used = {name for node in nodes for name in node.input}
    part = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in used)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    if not wanted:
        return []
    session = open_proto(
        part, folder, threads=0, optimize=Optimization.NONE, log_severity=4, name="the constant part of the model"
    )
    return [np.asarray(value) for value in session.run(None, {})]


def _fold_shapes(proto: ModelProto) -> int:
    """Turn ``Shape``, and ``Gather`` of one, into initializers where inference knows the dimensions asked for."""
    graph = proto.graph
    if not any(node.op_type == "Shape" for node in graph.node):
        return 0
    shapes = GraphIndex(typed_graph(proto))
    index = GraphIndex(graph)
    folded: dict[str, TensorProto] = {}
    for node in graph.node:
        value: NDArray[np.int64] | None = None
        if node.op_type == "Shape":
            dims = _dims_of(node, shapes)
            if dims is not None and all(isinstance(dim, int) for dim in dims):
                value = np.array(dims, np.int64)
        elif node.op_type == "Gather" and node.input[0] in index.producer and node.input[1] in index.initializers:
            source = index.producer[node.input[0]]
            dims = _dims_of(source, shapes) if source.op_type == "Shape" else None
            picked = read_tensor(index.initializers[node.input[1]], None).astype(np.int64)
            if dims is not None and all(-len(dims) <= i < len(dims) and isinstance(dims[i], int) for i in picked.flat):
                value = np.array([dims[i] for i in picked.flat], np.int64).reshape(picked.shape)
        if value is not None:
            folded[node.output[0]] = onnx.numpy_helper.from_array(value, node.output[0])
    rest = [node for node in graph.node if not (node.output and node.output[0] in folded)]
    del graph.node[:]
    graph.node.extend(rest)
    graph.initializer.extend(folded.values())
    return len(folded)


def _dims_of(node: NodeProto, shapes: GraphIndex) -> tuple[int | str | None, ...] | None:
    dims = shapes.shape(node.input[0])
    if dims is None:
        return None
    bounds = {attribute.name: int(attribute.i) for attribute in node.attribute}
    return dims[bounds.get("start", 0) : bounds.get("end", len(dims))]
