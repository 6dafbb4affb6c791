"""Rules on the parameters of single Q/DQ nodes: scales, zero-points, types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from quantlab.calibrators.quantize import SMALLEST_SCALE
from quantlab.findings import Severity
from quantlab.graph.lint.rule import Hit, Rule, rule
from quantlab.graph.lint.view import GraphView, Quantizer
from quantlab.graph.tensors import type_name

_FP8 = frozenset(
    {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ}
)
_FOUR_BIT = frozenset(value for name, value in TensorProto.DataType.items() if name in {"INT4", "FLOAT4E2M1"})
_TENSORRT_TYPES = frozenset({TensorProto.INT8, TensorProto.FLOAT8E4M3FN}) | _FOUR_BIT
_MIN_SHARED = 4


@rule(
    "zero-point-not-zero",
    tensorrt=Severity.ERROR,
    why="TensorRT quantizes symmetrically; its parser refuses the model (shiftIsAllZeros: non-zero zero point)",
    fix="quantize symmetrically: quantlab calibrate --target tensorrt; in onnxruntime, ActivationSymmetric and "
    "WeightSymmetric",
)
def zero_point_not_zero(view: GraphView) -> Iterator[Hit]:
    """Zero-points other than 0, of activations and weights."""
    for quantizer in view.quantizers:
        zero = quantizer.zero_point
        if zero is not None and np.any(zero != 0):
            some = f" ({np.count_nonzero(zero)} of {zero.size} are not 0)" if zero.size > 1 else ""
            first = zero.reshape(-1)[np.flatnonzero(zero)[0]]
            yield Hit((quantizer.name,), f"zero-point {first:g}{some}, {type_name(quantizer.code_type)}")


@rule(
    "quantized-type",
    tensorrt=Severity.ERROR,
    why="TensorRT has INT8, FP8 E4M3, INT4 and FP4; its parser takes UINT8 of zero-point 0 for INT8 without a word, "
    "and clips what lies above code 127, and refuses the other types",
    fix="quantize activations and weights to INT8: quantlab calibrate --target tensorrt; in onnxruntime, "
    "activation_type and weight_type QInt8",
)
def quantized_type(view: GraphView) -> Iterator[Hit]:
    """Quantized types that TensorRT does not have; INT32 biases have a rule of their own."""
    for quantizer in view.quantizers:
        if quantizer.quantizes and not quantizer.has_zero_point and quantizer.code_type == TensorProto.UINT8:
            continue  # zero-point-missing says it
        if not quantizer.quantizes and quantizer.code_type in (TensorProto.INT32, TensorProto.UINT8):
            before = view.quantizer_before(quantizer)
            if quantizer.code_type == TensorProto.INT32 or (before is not None and not before.has_zero_point):
                continue
        if quantizer.code_type and quantizer.code_type not in _TENSORRT_TYPES:
            yield Hit((quantizer.name,), f"quantized type {type_name(quantizer.code_type)}")


@rule(
    "zero-point-missing",
    tensorrt=Severity.ERROR,
    why="without a zero-point ONNX means UINT8; TensorRT takes it for INT8 without a word, and clips what lies above "
    "code 127",
    fix="give the node a zero-point: an INT8 zero",
)
def zero_point_missing(view: GraphView) -> Iterator[Hit]:
    """QuantizeLinear without a zero-point, which says the type."""
    for quantizer in view.quantizers:
        if quantizer.quantizes and not quantizer.has_zero_point and quantizer.code_type == TensorProto.UINT8:
            yield Hit((quantizer.name,), "no zero-point and no output_dtype, so the type is uint8")


@rule(
    "zero-point-mismatch",
    tensorrt=Severity.ERROR,
    onnxruntime=Severity.ERROR,
    why="ONNX wants a zero-point of the quantized type and of the scale's shape; runtimes refuse the node",
    fix="give the zero-point the type of the quantized tensor and as many elements as the scale",
)
def zero_point_mismatch(view: GraphView) -> Iterator[Hit]:
    """Zero-points whose type is not that of the quantized tensor, or whose shape is not that of the scale."""
    for quantizer in view.quantizers:
        scale, zero = quantizer.scale, quantizer.zero_point
        if scale is not None and zero is not None and scale.shape != zero.shape and (scale.size, zero.size) != (1, 1):
            yield Hit((quantizer.name,), f"scale of shape {scale.shape}, zero-point of shape {zero.shape}")
        if quantizer.quantizes or not quantizer.has_zero_point:
            continue
        declared = view.elem_type(quantizer.node.input[2])
        if declared and quantizer.code_type and declared != quantizer.code_type:
            message = f"zero-point {type_name(declared)}, quantized tensor {type_name(quantizer.code_type)}"
            yield Hit((quantizer.name,), message)


@rule(
    "scale-not-usable",
    tensorrt=Severity.ERROR,
    onnxruntime=Severity.ERROR,
    why="a scale must be a positive finite number: 0 divides by zero, others turn values into NaN or flip their sign",
    fix="calibrate the tensor again, with data that reaches it; a channel of zeros may have any positive scale, such "
    "as 1",
)
def scale_not_usable(view: GraphView) -> Iterator[Hit]:
    """Scales that are zero, negative, NaN or infinite."""
    for quantizer in view.quantizers:
        scale = quantizer.scale
        if scale is None:
            continue
        counts = {
            "zero": np.count_nonzero(scale == 0),
            "negative": np.count_nonzero(scale < 0),
            "NaN": np.count_nonzero(np.isnan(scale)),
            "infinite": np.count_nonzero(np.isposinf(scale)),
        }
        found = [f"{count} {word}" for word, count in counts.items() if count]
        if found:
            yield Hit((quantizer.name,), f"of {scale.size} scales: {', '.join(found)}")


@rule(
    "scale-subnormal",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="hardware that flushes subnormal numbers to zero divides by zero there",
    fix=f"use a scale of at least {SMALLEST_SCALE:.4g}: the tensor holds next to nothing, or its range is wrong",
)
def scale_subnormal(view: GraphView) -> Iterator[Hit]:
    """Positive scales below the smallest normal float32."""
    for quantizer in view.quantizers:
        scale = quantizer.scale
        if scale is not None and quantizer.code_type != TensorProto.INT32:  # a bias' scale is a product of two
            tiny = scale[(scale > 0) & (scale < SMALLEST_SCALE)]
            if tiny.size:
                yield Hit((quantizer.name,), f"{tiny.size} of {scale.size} scales, the smallest {tiny.min():.4g}")


@rule(
    "scale-not-constant",
    tensorrt=Severity.ERROR,
    onnxruntime=Severity.WARNING,
    why="TensorRT needs scales when it builds: its parser refuses the node or crashes; ONNX Runtime takes integer "
    "kernels only where they are constant",
    fix="store scale and zero-point as initializers: quantize statically, fold constants, drop them from the inputs",
)
def scale_not_constant(view: GraphView) -> Iterator[Hit]:
    """Scales or zero-points that the graph computes."""
    for quantizer in view.quantizers:
        for what, name in zip(("scale", "zero-point"), quantizer.node.input[1:3], strict=False):
            producer = view.index.producer.get(name)
            dynamic = producer is not None and producer.op_type == "DynamicQuantizeLinear"
            if name and not dynamic and view.stored(name) is None and (view.outer is None or view.knows(name)):
                made = f"made by {producer.op_type} {producer.name!r}" if producer is not None else "a graph input"
                yield Hit((quantizer.name,), f"{what} {name!r} is {made}")


@rule(
    "scale-shape",
    tensorrt=Severity.ERROR,
    onnxruntime=Severity.ERROR,
    why="scales that do not fit the axis make runtimes refuse the node, or broadcast along the wrong axis",
    fix="one scale for the tensor, or one for each element of the axis, in a vector; check the axis",
)
def scale_shape(view: GraphView) -> Iterator[Hit]:
    """Scales whose number is not that of the axis, or whose rank is none of 0 and 1."""
    for quantizer in view.quantizers:
        scale, shape = quantizer.scale, view.index.shape(quantizer.source)
        if scale is None or scale.size == 1 or quantizer.block_size:
            continue
        if scale.ndim != 1:
            yield Hit((quantizer.name,), f"scale of shape {scale.shape} without a block size")
        elif shape is not None and not -len(shape) <= quantizer.axis < len(shape):
            yield Hit((quantizer.name,), f"axis {quantizer.axis} of a tensor of {len(shape)} axes")
        elif shape is not None and isinstance(size := shape[quantizer.axis], int) and size != scale.size:
            yield Hit((quantizer.name,), f"{scale.size} scales for {size} elements of axis {quantizer.axis}")


@rule(
    "activation-per-channel",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="only weights may have a scale for each channel; layers behind such an activation do not run in INT8",
    fix="give the activation one scale",
)
def activation_per_channel(view: GraphView) -> Iterator[Hit]:
    """Several scales on a tensor that is not stored."""
    for quantizer in view.quantizers:
        if quantizer.per_channel and not quantizer.block_size and not view.is_constant(quantizer):
            assert quantizer.scale is not None
            yield Hit((quantizer.name,), f"{quantizer.scale.size} scales along axis {quantizer.axis}")


@rule(
    "scale-placeholder",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="tensors never have all the same range: these scales were not measured",
    fix="calibrate with images: quantlab calibrate --data",
)
def scale_placeholder(view: GraphView) -> Iterator[Hit]:
    """All activations have one and the same scale."""
    found = _activation_quantizers(view)
    scales = {float(each.scale.reshape(-1)[0]) for each in found if each.scale is not None and each.scale.size == 1}
    if len({each.source for each in found}) >= _MIN_SHARED and len(scales) == 1:
        yield Hit(tuple(each.name for each in found), f"{len(found)} activations have the scale {scales.pop():.6g}")


@rule(
    "activation-signed",
    onnxruntime=Severity.INFO,
    why="ONNX Runtime's CPU kernels are made for UINT8 activations and INT8 weights; many processors run others slower",
    fix="quantlab calibrate --target onnxruntime",
)
def activation_signed(view: GraphView) -> Iterator[Hit]:
    """INT8 activations."""
    for quantizer in _activation_quantizers(view):
        if quantizer.code_type == TensorProto.INT8:
            yield Hit((quantizer.name,), "activation in int8")


@rule(
    "opset-too-old",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.ERROR,
    why="the operator set of the model does not define what the node does; TensorRT guesses, ONNX Runtime refuses it",
    fix="convert the model to opset 21 or later, or to the one named here, with onnx.version_converter",
)
def opset_too_old(view: GraphView) -> Iterator[Hit]:
    """Per-channel scales before opset 13, FP8 before 19, 4-bit types and blocks before 21."""
    for quantizer in view.quantizers:
        needs = [(10, 1, "quantization")]
        needs += [(13, 1, "scales for each channel")] if quantizer.per_channel else []
        needs += [(19, 9, type_name(quantizer.code_type))] if quantizer.code_type in _FP8 else []
        needs += [(21, 10, type_name(quantizer.code_type))] if quantizer.code_type in _FOUR_BIT else []
        needs += [(21, 10, "scales for each block")] if quantizer.block_size else []
        opset, ir_version, what = max(needs)
        if view.opset < opset:
            yield Hit((quantizer.name,), f"{what} needs opset {opset}, the model has {view.opset}")
        elif view.proto.ir_version < ir_version:
            yield Hit((quantizer.name,), f"{what} needs IR version {ir_version}, the model has {view.proto.ir_version}")


def _activation_quantizers(view: GraphView) -> list[Quantizer]:
    return [each for each in view.quantizers if each.quantizes and not view.is_constant(each)]


RULES: tuple[Rule, ...] = (
    zero_point_not_zero, quantized_type, zero_point_missing, zero_point_mismatch, scale_not_usable, scale_subnormal,
    scale_not_constant, scale_shape, activation_per_channel, scale_placeholder, activation_signed, opset_too_old,
)  # fmt: skip
