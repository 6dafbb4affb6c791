"""Rounding the operands of weighted layers in a float64 graph, as tensor cores take them in TF32.

Kernels differ in three ways, all of which real engines show (docs/adr/012-fingerprint.md): operands are rounded to
nearest before the product, or handed over as raw float32, of which a tensor core reads the upper 19 bits alone; and
layers of shapes that no TF32 kernel takes run in FP32.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import onnx
from onnx import GraphProto, NodeProto

from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.index import GraphIndex

DOMAIN = "quantlab.double"
"""Domain of the evaluator's operators that round operands."""

ALIGNMENT = 4
"""TF32 kernels take channels in multiples of 16 bytes (NVIDIA, "Deep Learning Performance Guide", tensor cores)."""

NARROW = 16
"""Most input channels of convolutions whose kernels took raw float32 on an H100; wider ones had rounded operands."""


class Cut(Enum):
    """How an operand loses its low bits; the values are operators of the evaluator."""

    NEAREST = "RoundTf32"
    TOWARDS_ZERO = "TruncateTf32"


Choice = Callable[[NodeProto], Cut | None]
"""How both operands of a weighted layer are cut; None if they keep all bits."""


def everywhere(cut: Cut) -> Choice:
    """The same in all weighted layers."""
    return lambda node: cut


def aligned_only(index: GraphIndex) -> Choice:
    """To nearest where a TF32 kernel can be: no grouped convolutions, channels in and out divisible by `ALIGNMENT`."""
    return lambda node: Cut.NEAREST if is_aligned(index, node) else None


def narrow_cut(index: GraphIndex) -> Choice:
    """The same, but convolutions of up to `NARROW` input channels take raw float32."""

    def choose(node: NodeProto) -> Cut | None:
        if not is_aligned(index, node):
            return None
        return Cut.TOWARDS_ZERO if is_narrow(index, node) else Cut.NEAREST

    return choose


def is_aligned(index: GraphIndex, node: NodeProto) -> bool:
    """Whether a TF32 kernel can take a weighted layer; products of activations always count."""
    weight = index.initializers.get(node.input[1])
    if weight is None:
        return True
    grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    channels = weight.dims[:2] if node.op_type in ("Conv", "ConvTranspose") else weight.dims[-2:]
    return not grouped and all(size % ALIGNMENT == 0 for size in channels)


def is_narrow(index: GraphIndex, node: NodeProto) -> bool:
    """Whether a layer is a convolution of few input channels."""
    weight = index.initializers.get(node.input[1])
    return node.op_type == "Conv" and weight is not None and weight.dims[1] <= NARROW


def weighted_nodes(graph: GraphProto) -> list[NodeProto]:
    """The main graph's weighted layers."""
    return [node for node in graph.node if node.op_type in WEIGHTED_OPS and node.domain in ("", "ai.onnx")]


def round_operands(graph: GraphProto, index: GraphIndex, choose: Choice) -> None:
    """Round both operands of weighted operators of the main graph, in place; each tensor once a rounding."""
    weighted = {id(node): choose(node) for node in weighted_nodes(graph)}
    rounded: dict[tuple[str, Cut], str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        cut = weighted.get(id(node))
        for position in (0, 1) if cut is not None else ():
            assert cut is not None
            name = node.input[position]
            if (name, cut) not in rounded:
                rounded[name, cut] = index.fresh(f"{name}_operand")
                nodes.append(onnx.helper.make_node(cut.value, [name], [rounded[name, cut]], domain=DOMAIN))
            node.input[position] = rounded[name, cut]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
