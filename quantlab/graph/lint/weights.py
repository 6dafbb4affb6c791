"""Rules on the operands of weighted layers: weights, biases, and what is quantized of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from quantlab.findings import Severity
from quantlab.graph.lint.rule import Hit, Rule, rule
from quantlab.graph.lint.view import GraphView, Layer, attribute

_HALF_OF_THE_CODES = 64
_VANISHING = 254.0  # a weight below max / 254 rounds to 0 on a grid of 127 steps
_SMALL = 16


@rule(
    "weight-axis",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.ERROR,
    why="integer kernels take a scale for each output channel only: ONNX Runtime applies these scales to the output "
    "channels all the same and gives wrong results, TensorRT cannot run the layer in INT8",
    fix="quantize the weight along the axis named here (Conv 0, ConvTranspose 1, Gemm 1 or with transB 0, MatMul the "
    "last)",
)
def weight_axis(view: GraphView) -> Iterator[Hit]:
    """Per-channel weights along an axis that is not that of the output channels."""
    for layer in view.layers:
        weight, rank = layer.weight, _rank(view, layer)
        if weight is None or not weight.per_channel or weight.block_size or layer.axis is None or not rank:
            continue
        if weight.axis % rank != layer.axis:
            message = (
                f"{layer.node.op_type} weight quantized along axis {weight.axis}, its channels are axis {layer.axis}"
            )
            yield Hit((layer.name, weight.name), message)


@rule(
    "weight-per-tensor",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="one scale for all channels wastes codes on the channels of small weights, which costs accuracy for no gain "
    "in speed",
    fix="quantize weights per channel: quantlab does; in onnxruntime, per_channel=True",
)
def weight_per_tensor(view: GraphView) -> Iterator[Hit]:
    """One scale for the whole weight where some channel loses a bit or more."""
    for layer in view.layers:
        weight = layer.weight
        if weight is None or weight.per_channel or layer.axis is None:
            continue
        peaks = _peaks(view.codes(layer), layer.axis)
        live = peaks[peaks > 0]
        n_wasted = int(np.count_nonzero(live < _HALF_OF_THE_CODES))
        if live.size > 1 and n_wasted:
            kind = "depthwise " if _is_depthwise(view, layer) else ""
            message = (
                f"one scale for {peaks.size} channels of a {kind}{layer.node.op_type}; {n_wasted} use less than half "
                f"of the codes, the weakest {live.min():g} of 127"
            )
            yield Hit((layer.name, weight.name), message)


@rule(
    "operand-not-quantized",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="a layer runs in integers only if all its operands are quantized; here a pair costs accuracy and gains nothing",
    fix="quantize the other operand too, or drop this pair",
)
def operand_not_quantized(view: GraphView) -> Iterator[Hit]:
    """The data are quantized and the weight, or the other factor, is not."""
    for layer in view.layers:
        if layer.data is not None and layer.weight is None:
            other = f"weight {layer.weight_name!r}" if layer.weight_name else f"operand {layer.node.input[1]!r}"
            yield Hit((layer.name,), f"{layer.node.op_type}: the data are quantized, {other} is float")
        elif layer.data is None and layer.weight is not None and layer.weight_name is None:
            message = f"{layer.node.op_type}: operand {layer.node.input[0]!r} is float, the other is quantized"
            yield Hit((layer.name,), message)


@rule(
    "weight-only",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="the weight takes less memory, but the layer computes in floating point",
    fix="quantize its input as well if INT8 speed is wanted: quantlab calibrate",
)
def weight_only(view: GraphView) -> Iterator[Hit]:
    """A quantized weight with float data."""
    for layer in view.layers:
        if layer.data is None and layer.weight is not None and layer.weight_name is not None:
            yield Hit((layer.name,), f"{layer.node.op_type}: weight quantized, data float")


@rule(
    "layer-not-quantized",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="the layer computes in floating point in an otherwise quantized model",
    fix="nothing if it was excluded for accuracy; else see why the quantizer left it out",
)
def layer_not_quantized(view: GraphView) -> Iterator[Hit]:
    """Float layers beside quantized ones."""
    if not any(layer.quantized for layer in view.layers):
        return
    for layer in view.layers:
        if layer.data is None and layer.weight is None and layer.weight_name is not None:
            yield Hit((layer.name,), f"{layer.node.op_type} in floating point")


@rule(
    "no-layer-quantized",
    tensorrt=Severity.WARNING,
    onnxruntime=Severity.WARNING,
    why="Q/DQ nodes that surround no weighted layer cost accuracy and time, and gain nothing",
    fix="quantize inputs and weights of Conv, Gemm and MatMul, or use the float model",
)
def no_layer_quantized(view: GraphView) -> Iterator[Hit]:
    """Q/DQ nodes, but around no weighted layer."""
    touched = any(layer.data is not None or layer.weight is not None for layer in view.layers)
    if view.has_quantizers and view.outer is None and view.layers and not touched:
        yield Hit((), f"{len(view.quantizers)} Q/DQ nodes, none at the {len(view.layers)} weighted layers")


@rule(
    "weight-not-constant",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="the weight is computed or fed, so quantlab leaves the layer in floating point",
    fix="fold constants, or export the model with its weights as initializers",
)
def weight_not_constant(view: GraphView) -> Iterator[Hit]:
    """Weights of Conv, ConvTranspose and Gemm that are not stored."""
    for layer in view.layers:
        if layer.node.op_type != "MatMul" and layer.weight_name is None and view.knows(layer.node.input[1]):
            producer = view.index.producer.get(layer.node.input[1])
            made = f"made by {producer.op_type} {producer.name!r}" if producer is not None else "a graph input"
            yield Hit((layer.name,), f"weight {layer.node.input[1]!r} is {made}")


@rule(
    "bias-int32",
    tensorrt=Severity.ERROR,
    why="TensorRT's parser refuses DequantizeLinear of INT32: it takes 8- and 4-bit types, and adds biases in float",
    fix="keep biases in float: quantlab calibrate --target tensorrt; in onnxruntime, QuantizeBias=False",
)
def bias_int32(view: GraphView) -> Iterator[Hit]:
    """DequantizeLinear of INT32."""
    for quantizer in view.quantizers:
        if not quantizer.quantizes and quantizer.code_type == TensorProto.INT32:
            users = tuple(node.name for node in view.users(quantizer.output) if node.name)
            yield Hit((quantizer.name, *users), f"bias {quantizer.source!r} is int32")


@rule(
    "bias-scale",
    onnxruntime=Severity.WARNING,
    why="ONNX Runtime adds INT32 biases to the products as they are, so it takes the integer kernel only if their "
    "scale is input scale x weight scale; this layer runs in floating point",
    fix="quantize the bias with the product of the two scales: quantlab calibrate --target onnxruntime",
)
def bias_scale(view: GraphView) -> Iterator[Hit]:
    """INT32 biases whose scale is not the product of the operands' scales."""
    for layer in view.layers:
        bias = view.dequantizer(layer.node.input[2]) if len(layer.node.input) > 2 else None
        if bias is None or bias.scale is None or layer.data is None or layer.weight is None:
            continue
        data, weight = layer.data.scale, layer.weight.scale
        if data is None or weight is None or data.size != 1 or bias.scale.size not in (1, weight.size):
            continue
        wanted = data.reshape(-1)[0] * weight.reshape(-1)
        gap = np.abs(bias.scale.reshape(-1) - wanted)
        wrong = gap > 1e-3 * np.abs(wanted) + float(np.finfo(np.float32).tiny)
        if wrong.any():
            n_wrong = np.count_nonzero(wrong)
            yield Hit((layer.name, bias.name), f"{n_wrong} of {wrong.size} bias scales are not the product")


@rule(
    "bias-float",
    onnxruntime=Severity.INFO,
    why="recent versions of ONNX Runtime quantize the bias while they load the model; older ones run the layer in "
    "floating point",
    fix="store it as INT32: quantlab calibrate --target onnxruntime; in onnxruntime, leave QuantizeBias on",
)
def bias_float(view: GraphView) -> Iterator[Hit]:
    """Quantized layers with a float bias."""
    for layer in view.layers:
        bias = layer.node.input[2] if len(layer.node.input) > 2 else ""
        if layer.quantized and bias and view.dequantizer(bias) is None:
            yield Hit((layer.name,), f"bias {bias!r} of a quantized {layer.node.op_type} is float")


@rule(
    "weight-code-minus-128",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="symmetric weights leave the code -128 out, so that each has its negative; older processors overflow with it",
    fix="quantize weights to -127..127 with scale max|w| / 127",
)
def weight_code_minus_128(view: GraphView) -> Iterator[Hit]:
    """The code -128 in stored INT8 weights."""
    for layer in view.layers:
        weight = layer.weight
        if weight is None or layer.weight_name is None or weight.code_type != TensorProto.INT8:
            continue
        values = view.values(layer.weight_name)
        if values is not None and values.dtype == np.int8 and (n_found := int(np.count_nonzero(values == -128))):
            yield Hit((layer.name, layer.weight_name), f"{n_found} of {values.size} weights are -128")


@rule(
    "dead-channels",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="channels whose weights are all zero cost time and compute nothing but their bias",
    fix="prune them, or look whether the training, the export or a scale that is too large lost them",
)
def dead_channels(view: GraphView) -> Iterator[Hit]:
    """Output channels whose stored weights are all zero."""
    for layer in view.layers:
        values = view.codes(layer) if layer.weight is not None else _float_weight(view, layer)
        if values is None or layer.axis is None:
            continue
        peaks = _peaks(values, layer.axis)
        n_dead = int(np.count_nonzero(peaks == 0))
        if n_dead:
            yield Hit((layer.name,), f"{n_dead} of {peaks.size} output channels hold only zeros")


@rule(
    "weight-outliers",
    tensorrt=Severity.INFO,
    onnxruntime=Severity.INFO,
    why="one large weight sets the scale of its channel, and more than half of the other weights round to 0 in INT8",
    fix="keep the layer in floating point (quantlab build --exclude), or equalize or clip the weights before",
)
def weight_outliers(view: GraphView) -> Iterator[Hit]:
    """Float weights of which more than half of a channel vanish beside its largest."""
    for layer in view.layers:
        values = _float_weight(view, layer)
        if values is None or layer.axis is None or values.ndim < 2:
            continue
        rows = np.moveaxis(np.abs(values), layer.axis, 0).reshape(values.shape[layer.axis], -1)
        peaks = rows.max(axis=1, initial=0.0)
        n_set = np.count_nonzero(rows, axis=1)
        vanishing = np.count_nonzero((rows > 0) & (rows * _VANISHING < peaks[:, None]), axis=1)
        found = np.flatnonzero(2 * vanishing > n_set)
        if found.size:
            worst = found[np.argmax(vanishing[found] / n_set[found])]
            message = (
                f"{found.size} of {peaks.size} channels; channel {worst}: the largest weight is {peaks[worst]:.4g}, "
                f"{vanishing[worst]} of {n_set[worst]} others round to 0"
            )
            yield Hit((layer.name,), message)


@rule(
    "small-layer",
    tensorrt=Severity.INFO,
    why="matrix products with a row or column of 1, or with fewer than 16 input or output features, gain little in "
    "INT8, less than the pair in front costs",
    fix="measure the engine with the layer excluded: quantlab build --exclude",
)
def small_layer(view: GraphView) -> Iterator[Hit]:
    """Quantized Gemm and MatMul that are too small to gain."""
    for layer in view.layers:
        shape = view.index.shape(layer.weight_name) if layer.weight_name else None
        if not layer.quantized or layer.node.op_type not in ("Gemm", "MatMul") or shape is None or len(shape) != 2:
            continue
        if layer.axis is None or not all(isinstance(size, int) for size in shape):
            continue
        n, k = shape[layer.axis], shape[1 - layer.axis]
        left = view.index.shape(layer.node.input[0])
        m = left[-2] if left is not None and len(left) >= 2 else None
        assert isinstance(n, int) and isinstance(k, int)
        if m == 1 or n < _SMALL or k < _SMALL:
            rows = "" if m is None else f"{m} x "
            yield Hit((layer.name,), f"{layer.node.op_type} of {rows}{k} features to {n}")


def _rank(view: GraphView, layer: Layer) -> int | None:
    return view.rank(layer.weight_name) if layer.weight_name is not None else None


def _float_weight(view: GraphView, layer: Layer) -> NDArray[np.float64] | None:
    """A layer's stored float weight that is not quantized."""
    if layer.weight is not None or layer.weight_name is None:
        return None
    values = view.values(layer.weight_name)
    return values.astype(np.float64) if values is not None and values.dtype.kind == "f" else None


def _peaks(values: NDArray[np.float64] | None, axis: int) -> NDArray[np.float64]:
    """Largest absolute value of each channel."""
    if values is None or values.ndim <= axis:
        return np.zeros(0)
    others = tuple(i for i in range(values.ndim) if i != axis)
    return np.asarray(np.abs(values).max(axis=others, initial=0.0))


def _is_depthwise(view: GraphView, layer: Layer) -> bool:
    shape = view.index.shape(layer.weight_name) if layer.weight_name else None
    return attribute(layer.node, "group", 1) > 1 and shape is not None and shape[1] == 1


RULES: tuple[Rule, ...] = (
    weight_axis, weight_per_tensor, operand_not_quantized, weight_only, layer_not_quantized, no_layer_quantized,
    weight_not_constant, bias_int32, bias_scale, bias_float, weight_code_minus_128, dead_channels, weight_outliers,
    small_layer,
)  # fmt: skip
