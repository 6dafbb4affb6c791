"""Rules on the graph as a whole, for float models before quantization as well as for quantized ones."""

from __future__ import annotations

from collections.abc import Iterator

from quantlab.findings import Severity
from quantlab.graph.lint.rule import Hit, Rule, rule
from quantlab.graph.lint.view import GraphView, attribute, is_standard, node_name

_INTEGER_OPS = (
    "QLinear", "QGemm", "QAttention", "QEmbed", "QOrdered", "ConvInteger", "MatMulInteger", "MatMulNBits",
    "DynamicQuantize",
)  # fmt: skip
_ONNXRUNTIME = "com.microsoft"
_FIRST_IR_WITHOUT_LISTED_WEIGHTS = 4


@rule(
    "integer-operator",
    tensorrt=Severity.ERROR,
    why="TensorRT parses QuantizeLinear and DequantizeLinear around float operators, and no integer operators",
    fix="quantize in Q/DQ form, statically: quantlab calibrate --target tensorrt; in onnxruntime, QuantFormat.QDQ and "
    "quantize_static",
)
def integer_operator(view: GraphView) -> Iterator[Hit]:
    """Integer operators of ONNX and of ONNX Runtime."""
    for node in view.graph.node:
        if (is_standard(node) or node.domain == _ONNXRUNTIME) and node.op_type.startswith(_INTEGER_OPS):
            yield Hit((node_name(node),), node.op_type)


@rule(
    "onnxruntime-operator",
    tensorrt=Severity.WARNING,
    why="the operator is ONNX Runtime's own; TensorRT's parser knows few of them",
    fix="export the model in standard operators, and do not save what ONNX Runtime optimized",
)
def onnxruntime_operator(view: GraphView) -> Iterator[Hit]:
    """Operators of ONNX Runtime's domain."""
    for node in view.graph.node:
        if node.domain == _ONNXRUNTIME and not node.op_type.startswith(_INTEGER_OPS):
            yield Hit((node_name(node),), f"{node.domain}.{node.op_type}")


@rule(
    "custom-operator",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="an operator of another domain runs only with a plugin or a library that knows it",
    fix="export it in standard operators, or load the plugin where the engine is built",
)
def custom_operator(view: GraphView) -> Iterator[Hit]:
    """Operators of domains that are neither ONNX's nor ONNX Runtime's."""
    functions = {(function.domain, function.name) for function in view.proto.functions}
    for node in view.graph.node:
        known = is_standard(node) or node.domain in (_ONNXRUNTIME, "ai.onnx.ml")
        if not known and (node.domain, node.op_type) not in functions:
            yield Hit((node_name(node),), f"{node.domain}.{node.op_type}")


@rule(
    "batchnorm-not-folded",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="after folding, the ranges of the weights are others: who calibrates before folding measures another graph",
    fix="nothing for quantlab, which folds it first; for other quantizers, fold it before",
)
def batchnorm_not_folded(view: GraphView) -> Iterator[Hit]:
    """BatchNormalization behind a weighted layer that is not quantized yet."""
    for node in view.graph.node:
        layer = view.layer_of.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if layer is None or layer.weight is not None or layer.weight_name is None:
            continue
        if view.index.uses(node.input[0]) == 1:
            yield Hit((node_name(node), layer.name), "behind a weighted layer")


@rule(
    "batchnorm-training",
    tensorrt=Severity.ERROR,
    onnxruntime=Severity.WARNING,
    why="the node takes mean and variance from the batch, so results depend on what else is in it; TensorRT's parser "
    "refuses it",
    fix="export the model in evaluation mode: model.eval()",
)
def batchnorm_training(view: GraphView) -> Iterator[Hit]:
    """BatchNormalization in training mode."""
    for node in view.graph.node:
        if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
            yield Hit((node_name(node),), "training_mode is 1")


@rule(
    "clip-bounds-not-constant",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="a Clip whose bounds are computed does not fuse into the layer in front of it",
    fix="store the bounds as initializers, or fold constants",
)
def clip_bounds_not_constant(view: GraphView) -> Iterator[Hit]:
    """Clip with computed bounds."""
    for node in view.graph.node:
        computed = [name for name in node.input[1:] if name and view.knows(name) and view.stored(name) is None]
        if node.op_type == "Clip" and computed:
            yield Hit((node_name(node),), f"computed bounds: {', '.join(computed)}")


@rule(
    "dynamic-dimension",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="calibration needs a shape, and TensorRT a range of shapes, for every dimension that is not fixed",
    fix="impose the shape: --shapes NAME:1x3x224x224",
)
def dynamic_dimension(view: GraphView) -> Iterator[Hit]:
    """Inputs of unknown rank, or with an inner dimension that is not fixed; the first is the batch."""
    for name in view.index.inputs if view.outer is None else ():
        shape = view.index.shape(name)
        if shape is None:
            yield Hit((name,), "the number of axes is not known")
        elif free := [axis for axis, size in enumerate(shape) if axis and (not isinstance(size, int) or size <= 0)]:
            yield Hit((name,), f"axes {', '.join(map(str, free))} of {len(shape)} are not fixed")


@rule(
    "weight-is-input",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="a weight that is listed as an input may be overridden by the caller, so runtimes do not treat it as constant",
    fix="drop it from the inputs: quantlab calibrate does; torch.onnx.export(keep_initializers_as_inputs=False)",
)
def weight_is_input(view: GraphView) -> Iterator[Hit]:
    """Initializers among the inputs, where the IR version does not demand it."""
    if view.proto.ir_version < _FIRST_IR_WITHOUT_LISTED_WEIGHTS or view.outer is not None:
        return
    for value in view.graph.input:
        if value.name in view.index.initializers:
            yield Hit((value.name,), "the initializer is also a graph input")


@rule(
    "layer-in-subgraph",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="layers inside If, Loop and Scan get no ranges, and stay in floating point",
    fix="export the model without control flow, for example with fixed shapes",
)
def layer_in_subgraph(view: GraphView) -> Iterator[Hit]:
    """Weighted layers in the bodies of control flow."""
    for layer in view.layers if view.outer is not None else ():
        if not layer.quantized:
            yield Hit((layer.name,), f"{layer.node.op_type} in the graph {view.graph.name!r}")


@rule(
    "unused-node",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="the node computes what nobody reads",
    fix="simplify the model: quantlab calibrate does",
)
def unused_node(view: GraphView) -> Iterator[Hit]:
    """Nodes none of whose outputs is used; Q/DQ nodes have a rule of their own."""
    for node in view.graph.node:
        quantizes = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if not quantizes and node.output and not any(view.index.uses(name) for name in node.output if name):
            yield Hit((node_name(node),), f"nobody uses the output of {node.op_type}")


@rule(
    "unused-weight",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="the tensor makes the file larger and is used by nobody",
    fix="simplify the model: quantlab calibrate does",
)
def unused_weight(view: GraphView) -> Iterator[Hit]:
    """Initializers that nobody uses."""
    for name, tensor in view.index.initializers.items():
        if view.index.uses(name) == 0:
            yield Hit((name,), f"nobody uses the initializer of shape {tuple(tensor.dims)}")


RULES: tuple[Rule, ...] = (
    integer_operator, onnxruntime_operator, custom_operator, batchnorm_not_folded, batchnorm_training,
    clip_bounds_not_constant, dynamic_dimension, weight_is_input, layer_in_subgraph, unused_node, unused_weight,
)  # fmt: skip
