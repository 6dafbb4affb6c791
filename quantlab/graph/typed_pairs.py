"""Q/DQ pairs whose scales must have one type."""

from __future__ import annotations

import itertools

from onnx import NodeProto

from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.index import GraphIndex
from quantlab.graph.targets import MOVING_OPS

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def scale_groups(index: GraphIndex) -> dict[int, list[NodeProto]]:
    """For each quantizer, by ``id`` of its node, the quantizers whose scales have the type of its own.

    They are the ends of a pair, and the pairs of the operands of a layer: TensorRT refuses an 8-bit product of which
    the operands have scales of two types (seen with TensorRT-RTX 1.7.1).
    """
    groups = {id(node): [node] for node in index.graph.node if node.op_type in QUANTIZERS}
    for node in index.graph.node:
        if node.op_type in QUANTIZERS:
            members = [_behind(index, node.input[0]), node]
        elif node.op_type in WEIGHTED_OPS:
            members = [_behind(index, name) for name in node.input[:2]]
        else:
            continue
        for first, second in itertools.pairwise(found for found in members if found is not None):
            if groups[id(first)] is not groups[id(second)]:
                joined = groups[id(first)] + groups[id(second)]
                groups.update(dict.fromkeys(map(id, joined), joined))
    return groups


def _behind(index: GraphIndex, tensor: str) -> NodeProto | None:
    """The quantizer that makes a tensor's values, moved at most."""
    node = index.producer.get(tensor)
    while node is not None and node.op_type in MOVING_OPS:
        node = index.producer.get(node.input[0])
    return node if node is not None and node.op_type in QUANTIZERS else None
