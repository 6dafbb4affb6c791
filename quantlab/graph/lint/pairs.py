"""Rules on how QuantizeLinear and DequantizeLinear nodes stand together."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from quantlab.findings import Severity
from quantlab.graph.lint.rule import Hit, Rule, rule
from quantlab.graph.lint.view import GraphView, Quantizer

_INTEGER_PREFIXES = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention")


@rule(
    "pair-differs",
    tensorrt=Severity.ERROR,
    onnxruntime=Severity.ERROR,
    why="codes written on one grid and read on another are other numbers",
    fix="give both nodes of the pair the same scale, zero-point, type and axis",
)
def pair_differs(view: GraphView) -> Iterator[Hit]:
    """A DequantizeLinear whose parameters are not those of the QuantizeLinear before it."""
    for after in view.quantizers:
        before = None if after.quantizes else view.quantizer_before(after)
        if before is not None and before.same_grid(after) is False:
            yield Hit((before.name, after.name), f"written with {before.grid}; read with {after.grid}")


@rule(
    "double-quantization",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="the tensor is rounded twice, and the second pair stops fusion",
    fix="drop one of the pairs",
)
def double_quantization(view: GraphView) -> Iterator[Hit]:
    """A QuantizeLinear directly behind a DequantizeLinear."""
    for second in view.quantizers:
        first = view.dequantizer(second.source) if second.quantizes else None
        if first is not None:
            same = second.same_grid(first)
            how = "the same parameters" if same else f"{first.grid}, then {second.grid}"
            yield Hit((first.name, second.name), f"{first.output!r} is quantized again: {how}")


@rule(
    "quantize-alone",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="only a QuantizeLinear with its DequantizeLinear can be fused; alone, the rest computes on the codes",
    fix="put a DequantizeLinear of the same parameters behind it",
)
def quantize_alone(view: GraphView) -> Iterator[Hit]:
    """A QuantizeLinear whose codes are used by something that is neither DequantizeLinear nor an integer operator."""
    for quantizer in view.quantizers:
        if not quantizer.quantizes:
            continue
        users = [node for node in view.users(quantizer.output) if node.op_type != "DequantizeLinear"]
        odd = [node for node in users if not node.op_type.startswith(_INTEGER_PREFIXES)]
        if odd:
            yield Hit((quantizer.name,), f"its codes go to {odd[0].op_type} {odd[0].name!r}")
        elif quantizer.output in view.index.outputs:
            yield Hit((quantizer.name,), "its codes are a graph output")


@rule(
    "dequantize-alone",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="only a DequantizeLinear with its QuantizeLinear, or of a stored weight, can be fused",
    fix="put a QuantizeLinear of the same parameters in front of it; feed the model float data",
)
def dequantize_alone(view: GraphView) -> Iterator[Hit]:
    """A DequantizeLinear of something that no QuantizeLinear made and that is not stored."""
    for quantizer in view.quantizers:
        if quantizer.quantizes or not view.knows(quantizer.source) or view.is_constant(quantizer):
            continue
        producer = view.index.producer.get(quantizer.source)
        if producer is None:
            yield Hit((quantizer.name,), f"it reads the graph input {quantizer.source!r}")
        elif producer.op_type != "QuantizeLinear" and not producer.op_type.startswith(_INTEGER_PREFIXES):
            yield Hit((quantizer.name,), f"it reads what {producer.op_type} {producer.name!r} makes")


@rule(
    "several-scales",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="a tensor that is quantized on several grids is computed and stored once for each, and its users see other "
    "values",
    fix="quantize the tensor once, and let all its users share the pair",
)
def several_scales(view: GraphView) -> Iterator[Hit]:
    """One tensor, several QuantizeLinear nodes of different parameters."""
    for tensor, found in _shared(view):
        if any(found[0].same_grid(each) is False for each in found[1:]):
            message = f"{tensor!r} is quantized {len(found)} times: " + "; ".join(each.grid for each in found[:3])
            yield Hit(tuple(each.name for each in found), message)


@rule(
    "repeated-pair",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="equal pairs on one tensor are merged by the runtimes, but make the graph larger",
    fix="let all users share one pair; in onnxruntime, DedicatedQDQPair=False",
)
def repeated_pair(view: GraphView) -> Iterator[Hit]:
    """One tensor, several QuantizeLinear nodes of the same parameters."""
    for tensor, found in _shared(view):
        if all(found[0].same_grid(each) for each in found[1:]):
            yield Hit(tuple(each.name for each in found), f"{tensor!r} is quantized {len(found)} times alike")


@rule(
    "unused-quantization",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="the node computes what nobody reads: an edit of the graph left it behind, or its user lost its input",
    fix="remove the node, or connect the layer that it was meant for",
)
def unused_quantization(view: GraphView) -> Iterator[Hit]:
    """Q/DQ nodes whose output nobody uses."""
    for quantizer in view.quantizers:
        if view.index.uses(quantizer.output) == 0:
            yield Hit((quantizer.name,), f"nobody uses {quantizer.output!r}")


@rule(
    "output-float",
    onnxruntime=Severity.WARNING,
    why="ONNX Runtime takes the integer kernel of a Conv only if its output is quantized too; this one runs in float",
    fix="quantlab calibrate --target onnxruntime",
)
def output_float(view: GraphView) -> Iterator[Hit]:
    """Quantized convolutions whose output is not quantized, also not after its Relu or Clip."""
    for layer in view.layers:
        if not layer.quantized or layer.node.op_type != "Conv":
            continue
        tensor = layer.node.output[0]
        users = view.users(tensor)
        if len(users) == 1 and users[0].op_type in ("Relu", "Clip"):
            tensor = users[0].output[0]
        if tensor not in view.index.outputs and not view.quantizers_of(tensor):
            yield Hit((layer.name,), f"the output {tensor!r} of a quantized Conv is float")


def _shared(view: GraphView) -> Iterator[tuple[str, list[Quantizer]]]:
    """Tensors that more than one QuantizeLinear reads."""
    for tensor in dict.fromkeys(each.source for each in view.quantizers if each.quantizes):
        found = view.quantizers_of(tensor)
        if len(found) > 1 and view.elem_type(tensor) not in (TensorProto.INT8, TensorProto.UINT8):
            yield tensor, found


RULES: tuple[Rule, ...] = (
    pair_differs, double_quantization, quantize_alone, dequantize_alone, several_scales, repeated_pair,
    unused_quantization, output_float,
)  # fmt: skip
