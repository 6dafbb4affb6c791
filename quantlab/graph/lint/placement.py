"""Rules on where Q/DQ pairs stand between operators: what they let fuse and what they keep apart."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from quantlab.findings import Severity
from quantlab.graph.lint.rule import Hit, Rule, rule
from quantlab.graph.lint.view import MOVES, GraphView, Quantizer, is_standard, node_name

_FUSED = frozenset({"BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu"})
_SENSITIVE = frozenset(
    {"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
     "GroupNormalization", "Exp", "Log", "Erf", "Gelu", "TopK", "NonMaxSuppression"}
)  # fmt: skip


@rule(
    "skip-not-quantized",
    tensorrt=Severity.WARNING,
    why="TensorRT fuses a residual addition into the convolution of one branch only if the other branch is INT8; else "
    "the sum stays in float and the quantization behind it is a kernel of its own",
    fix="put a pair on the skip input of the Add: quantlab calibrate --target tensorrt",
)
def skip_not_quantized(view: GraphView) -> Iterator[Hit]:
    """A residual Add of a quantized layer's output and a float branch, quantized behind."""
    for node in _residual_adds(view):
        fed = [name for name in node.input if _fed_by_layer(view, name)]
        if fed:
            others = [name for name in node.input if name != fed[0]] or [node.input[1]]
            if view.dequantizer(others[0]) is None and view.dequantizer(fed[-1]) is None:
                yield Hit((node_name(node),), f"skip input {others[0]!r} is float")


@rule(
    "branch-quantized",
    tensorrt=Severity.WARNING,
    why="a pair between a convolution and the residual addition keeps them apart: the convolution's output is rounded "
    "and stored, and the addition is a kernel of its own",
    fix="drop the pair on the convolution's branch of the Add and keep the one on the skip input",
)
def branch_quantized(view: GraphView) -> Iterator[Hit]:
    """A residual Add none of whose quantized layers feeds it directly."""
    for node in _residual_adds(view):
        pairs = [view.dequantizer(name) for name in node.input]
        behind = [pair for pair in pairs if pair is not None and _quantizes_layer(view, pair)]
        if behind and not any(_fed_by_layer(view, name) for name in node.input):
            yield Hit((node_name(node), behind[0].name), f"{len(behind)} convolution branches of the Add are quantized")


@rule(
    "pair-inside-fusion",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="a pair between a convolution and its batch normalization or activation keeps them from becoming one kernel",
    fix="move the pair behind the activation; fold the batch normalization first",
)
def pair_inside_fusion(view: GraphView) -> Iterator[Hit]:
    """Conv -> Q -> DQ -> BatchNormalization or Relu."""
    for pair in view.quantizers:
        if pair.quantizes or not _quantizes_layer(view, pair):
            continue
        for node in view.users(pair.output):
            if node.op_type in _FUSED and node.input[0] == pair.output:
                yield Hit((pair.name, node_name(node)), f"between a weighted layer and {node.op_type}")


@rule(
    "concat-scales-differ",
    tensorrt=Severity.WARNING,
    why="with one scale for all inputs TensorRT concatenates in INT8 and copies nothing; with several it converts each",
    fix="give all inputs of the Concat the largest of their scales",
)
def concat_scales_differ(view: GraphView) -> Iterator[Hit]:
    """A Concat of inputs quantized on different grids."""
    for node in view.graph.node:
        if node.op_type != "Concat":
            continue
        pairs = [pair for name in node.input if (pair := view.dequantizer(name)) is not None]
        if any(pairs[0].same_grid(pair) is False for pair in pairs[1:]):
            scales = [float(pair.scale.reshape(-1)[0]) for pair in pairs if pair.scale is not None]
            message = f"scales {min(scales):.4g} to {max(scales):.4g} at {len(pairs)} of {len(node.input)} inputs"
            yield Hit((node_name(node), *(pair.name for pair in pairs)), message)


@rule(
    "move-scales-differ",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="an operator that only moves values runs on the codes if the grid is the same on both sides; here the values "
    "are dequantized and rounded again",
    fix="give the pairs on both sides the scale and zero-point of the input, or drop the one behind",
)
def move_scales_differ(view: GraphView) -> Iterator[Hit]:
    """MaxPool, Reshape, Transpose and the like between pairs of different parameters."""
    for node in view.graph.node:
        before = view.dequantizer(node.input[0]) if node.op_type in MOVES else None
        if before is None or view.is_constant(before):
            continue
        for after in view.quantizers_of(node.output[0]):
            if before.same_grid(after) is False:
                message = f"{node.op_type}: {before.grid} in front, {after.grid} behind"
                yield Hit((node_name(node), before.name, after.name), message)


@rule(
    "sensitive-input-quantized",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.INFO,
    why="small differences of its input decide what this operator gives, and no INT8 kernel gains from the pair",
    fix="drop the pair in front of it",
)
def sensitive_input_quantized(view: GraphView) -> Iterator[Hit]:
    """Quantized inputs of Softmax, LayerNormalization and the like."""
    for node in view.graph.node:
        pair = view.dequantizer(node.input[0]) if node.op_type in _SENSITIVE and node.input else None
        if pair is not None and is_standard(node):
            yield Hit((node_name(node), pair.name), f"the input of {node.op_type} is quantized: {pair.grid}")


def _residual_adds(view: GraphView) -> Iterator[NodeProto]:
    """Additions of two computed tensors whose sum is quantized, directly or after its activation.

    Where nothing is quantized behind the sum, it stays in float whatever its inputs are.
    """
    for node in view.graph.node:
        if node.op_type != "Add" or any(view.stored(name) is not None for name in node.input):
            continue
        ends = [node.output[0]]
        ends += [user.output[0] for user in view.users(node.output[0]) if user.op_type in ("Relu", "Clip")]
        if any(view.quantizers_of(end) for end in ends):
            yield node


def _fed_by_layer(view: GraphView, tensor: str) -> bool:
    """Whether a quantized layer, perhaps with its batch normalization, makes the tensor for one user alone."""
    node = view.index.producer.get(tensor)
    if node is None or view.index.uses(tensor) != 1:
        return False
    if node.op_type == "BatchNormalization":
        return _fed_by_layer(view, node.input[0])
    layer = view.layer_of.get(tensor)
    return layer is not None and layer.quantized


def _quantizes_layer(view: GraphView, pair: Quantizer) -> bool:
    """Whether a DequantizeLinear and its QuantizeLinear stand right behind a quantized layer that only they use."""
    before = view.quantizer_before(pair)
    return before is not None and view.index.uses(pair.source) == 1 and _fed_by_layer(view, before.source)


RULES: tuple[Rule, ...] = (
    skip_not_quantized, branch_quantized, pair_inside_fusion, concat_scales_differ, move_scales_differ,
    sensitive_input_quantized,
)  # fmt: skip
