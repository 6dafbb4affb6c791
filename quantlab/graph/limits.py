"""Why a layer is too small, or too large, for a target's 8-bit kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import NodeProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.layers import PRODUCTS, Layer
from quantlab.graph.targets import SizeLimits

Dim = int | str | None


def reason_to_skip(layer: Layer, index: GraphIndex, limits: SizeLimits) -> str | None:
    """Why a target leaves a layer in floating point; None if it does not.

    Args:
        layer: The layer.
        index: Index of its graph, with inferred shapes; sizes that are not known never count as too small or large.
        limits: The target's limits.
    """
    if layer.node.op_type in PRODUCTS:
        return _of_product(layer, index, limits)
    if layer.node.op_type == "Conv":
        return _of_convolution(layer.node, index, limits)
    return None


def _of_product(layer: Layer, index: GraphIndex, limits: SizeLimits) -> str | None:
    m, k, n = product_sizes(layer.node, index)
    sizes = f"M={_text(m)} K={_text(k)} N={_text(n)}"
    if not limits.vectors and _is_vector(layer, m, k, n, index):
        return f"a product with a vector ({sizes}) is bound by memory, not arithmetic"
    known = [size for size in (k, n) if isinstance(size, int)]
    if any(size < limits.smallest_product for size in known):
        return f"its K or N is below {limits.smallest_product} ({sizes})"
    if layer.weight is not None or not known:
        return None
    if limits.longest_sequence is not None and max(known) > limits.longest_sequence:
        return f"the sequence of an attention product is longer than {limits.longest_sequence} ({sizes})"
    if limits.largest_head is not None and len(known) == 2 and min(known) > limits.largest_head:
        return f"the head of an attention product is larger than {limits.largest_head} ({sizes})"
    return None


def _is_vector(layer: Layer, m: Dim, k: Dim, n: Dim, index: GraphIndex) -> bool:
    """Whether one side is 1. With a weight, a row for each of several samples still makes a matrix."""
    rows = m == 1
    if layer.weight is not None and rows:
        shape = index.shape(layer.node.input[layer.activations[0]])
        rows = shape is not None and len(shape) <= 2
    return rows or k == 1 or n == 1


def product_sizes(node: NodeProto, index: GraphIndex) -> tuple[Dim, Dim, Dim]:
    """M, K and N of a matrix product ``[M, K] x [K, N]``; a missing axis is 1, an unknown size not a number."""
    flags = {attribute.name: bool(attribute.i) for attribute in node.attribute} if node.op_type == "Gemm" else {}
    left, right = (index.shape(name) for name in node.input[:2])
    a = _sides(left, transposed=flags.get("transA", False), column=False)
    b = _sides(right, transposed=flags.get("transB", False), column=True)
    k = next((size for size in (b[0], a[1]) if isinstance(size, int)), None)
    return a[0], k, b[1]


def _sides(shape: Sequence[Dim] | None, *, transposed: bool, column: bool) -> tuple[Dim, Dim]:
    """The last two sizes of an operand, as the product sees them."""
    if not shape:
        return None, None
    if len(shape) == 1:
        return (shape[0], 1) if column else (1, shape[0])
    rows, columns = shape[-2], shape[-1]
    return (columns, rows) if transposed else (rows, columns)


def _of_convolution(node: NodeProto, index: GraphIndex, limits: SizeLimits) -> str | None:
    shape = [dim for dim in index.shape(node.input[1]) or () if isinstance(dim, int)]
    if len(shape) < 3:
        return None
    n_out, n_in, *kernel = shape
    if min(n_out, n_in) < limits.smallest_channels and not _is_padded(node, index, limits, shape):
        text = f"{n_in} input and {n_out} output channels" + ("" if _groups(node) == 1 else f", {_groups(node)} groups")
        return f"it has fewer than {limits.smallest_channels} channels that kernels could pad ({text})"
    taps = math.prod(kernel)
    if limits.largest_filter is not None and taps > limits.largest_filter:
        return f"its kernel has more than {limits.largest_filter} taps ({taps})"
    return None


def _is_padded(node: NodeProto, index: GraphIndex, limits: SizeLimits, shape: Sequence[int]) -> bool:
    """Whether kernels exist that pad the channels of a convolution with few of them."""
    n_out, n_in, *kernel = shape
    if limits.channel_multiple is None:
        return False
    if _groups(node) > 1:
        return n_out % limits.channel_multiple == 0 and min(kernel) >= 3
    fits = n_out % limits.channel_multiple == 0 or n_in % limits.channel_multiple == 0
    wide = max(n_out, n_in) >= limits.smallest_channels or node.input[0] in index.inputs
    return fits and wide and len(set(kernel)) == 1


def _groups(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _text(size: Dim) -> str:
    return "?" if size is None else str(size)
