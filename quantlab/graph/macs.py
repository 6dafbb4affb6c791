"""How much arithmetic a layer is: multiply-accumulates of one sample."""

from __future__ import annotations

import math

from onnx import NodeProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.limits import product_sizes


def multiply_accumulates(node: NodeProto, index: GraphIndex) -> int | None:
    """Multiply-accumulates of a ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``; None if a size is not known.

    Symbolic sizes, the batch above all, count as 1.

    Args:
        node: The layer.
        index: Index of its graph, with inferred shapes.
    """
    if len(node.input) < 2:
        return None
    weight, output = index.shape(node.input[1]), index.shape(node.output[0])
    if node.op_type in ("Conv", "ConvTranspose"):
        # Each output of a convolution, or input of a transposed one, meets all taps of its group's filters.
        moved = output if node.op_type == "Conv" else index.shape(node.input[0])
        return _product(moved) * _product(weight[1:]) if moved and weight else None
    inner = product_sizes(node, index)[1]
    return _product(output) * inner if output is not None and isinstance(inner, int) else None


def _product(shape: tuple[int | str | None, ...]) -> int:
    return math.prod(size if isinstance(size, int) else 1 for size in shape)
