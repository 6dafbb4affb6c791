"""Ranges back out of a Q/DQ model: the scales of the activations that it quantizes, by the tensors' names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto

from quantlab.errors import ModelError
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.tensors import read_tensor, type_name

_DOMAINS = ("", "ai.onnx", "com.microsoft")


def activation_scales(model: Model) -> dict[str, float]:
    """Scale (amax / 127) of every activation that a ``QuantizeLinear`` takes, in graph order.

    The name is that of the tensor before the first quantization: a pair behind another pair counts for the same
    tensor. Quantized constants (weights) are left out.

    Raises:
        ModelError: Naming the tensor, if an activation is not quantized to symmetric INT8 with one positive scale, or
            has two scales; if no activation is quantized at all.
    """
    index = GraphIndex(model.proto.graph)
    constant = _constants(index)
    scales: dict[str, float] = {}
    for node in model.proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.domain not in _DOMAINS or node.input[0] in constant:
            continue
        tensor = _source(index, node.input[0])
        scale = _symmetric_scale(model, index, node, tensor)
        if scales.setdefault(tensor, scale) != scale:
            raise ModelError(
                f"tensor {tensor!r} is quantized with two scales", got=f"{scales[tensor]!r} and {scale!r}",
                expected="one scale a tensor, which is all that a calibration cache can hold",
                hint="give the consumers of the tensor one scale, or drop the second pair",
            )  # fmt: skip
    if not scales:
        raise ModelError(
            f"model {model.path or model.name} quantizes no activation", got="no QuantizeLinear of an activation",
            expected="a Q/DQ model", hint="a floating-point model holds no ranges; run quantlab calibrate",
        )  # fmt: skip
    return scales


def _constants(index: GraphIndex) -> set[str]:
    constant = set(index.initializers)
    for node in index.graph.node:
        if all(name in constant or not name for name in node.input):
            constant.update(node.output)
    return constant


def _source(index: GraphIndex, tensor: str) -> str:
    """The tensor before pairs of quantization that stand one behind the other."""
    while True:
        dequantize = index.producer.get(tensor)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return tensor
        quantize = index.producer.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return tensor
        tensor = quantize.input[0]


def _symmetric_scale(model: Model, index: GraphIndex, node: NodeProto, tensor: str) -> float:
    kind = _code_type(model, index, node)
    if kind != TensorProto.INT8:
        raise _unsupported(tensor, type_name(kind))
    zero = _constant_value(model, index, node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if zero is None or np.asarray(zero, np.float64).any():
        raise _unsupported(
            tensor, "a zero-point that is computed" if zero is None else f"zero-point {zero.reshape(-1)[0]}"
        )
    scale = _constant_value(model, index, node.input[1])
    if scale is None:
        raise _unsupported(tensor, "a scale that is computed at run time")
    if scale.size != 1:
        raise _unsupported(tensor, f"{scale.size} scales, one a channel")
    value = float(np.float32(scale.reshape(-1)[0]))
    if not np.isfinite(value) or value <= 0.0:
        raise _unsupported(tensor, f"scale {value}")
    return value


def _unsupported(tensor: str, got: str) -> ModelError:
    return ModelError(
        f"tensor {tensor!r} is not quantized to symmetric INT8", got=got,
        expected="INT8 with zero-point 0 and one positive scale", hint="quantize the model with --target tensorrt",
    )  # fmt: skip


def _code_type(model: Model, index: GraphIndex, node: NodeProto) -> int:
    if len(node.input) > 2 and node.input[2]:
        value = _constant_value(model, index, node.input[2])
        if value is not None:
            return int(TensorProto.INT8) if value.dtype == np.int8 else int(_type_of(index, node.input[2], value))
    stated = [int(a.i) for a in node.attribute if a.name == "output_dtype" and a.type == AttributeProto.INT]
    return stated[0] if stated and stated[0] else int(TensorProto.UINT8)


def _type_of(index: GraphIndex, name: str, value: NDArray[np.generic]) -> int:
    stored = index.elem_type(name)
    return stored or {"uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16}.get(
        value.dtype.name, TensorProto.UNDEFINED
    )


def _constant_value(model: Model, index: GraphIndex, name: str) -> NDArray[np.generic] | None:
    """Elements of an initializer, or of the output of a ``Constant`` with a tensor; None for anything else."""
    if name in index.initializers:
        return read_tensor(index.initializers[name], model.data_folder)
    node = index.producer.get(name)
    if node is None or node.op_type != "Constant":
        return None
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            return read_tensor(attribute.t, model.data_folder)
        if attribute.type == AttributeProto.FLOAT:
            return np.array(attribute.f, np.float32)
    return None
