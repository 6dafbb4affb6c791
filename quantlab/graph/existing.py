"""Q/DQ pairs that a model already holds: whether a target takes them, and which tensors they are on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from quantlab.calibrators.quantize import Parameters
from quantlab.errors import ModelError
from quantlab.graph.checks import has_qdq
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.targets import BiasType, QuantizationKind, TargetProfile, weight_scheme
from quantlab.graph.tensors import type_name

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


class ExistingPolicy(StrEnum):
    """What to do with a model that already holds Q/DQ pairs."""

    REFUSE = "refuse"
    """Refuse it: it is not the floating-point model that was asked for."""
    COMPLETE = "complete"
    """Keep every pair as it is, and quantize the operands that have none."""
    KEEP = "keep"
    """Keep the whole model as it is: it is quantized already, and nothing is added."""


@dataclass(frozen=True, slots=True)
class ExistingPairs:
    """Pairs found in a graph.

    Attributes:
        behind: Floating-point tensor to the output of the DequantizeLinear behind its pair.
        parameters: Floating-point tensor to the parameters of its pair, where they are one scale for all.
        dequantized: Outputs of all DequantizeLinear nodes.
    """

    behind: Mapping[str, str]
    parameters: Mapping[str, Parameters]
    dequantized: frozenset[str]


NO_PAIRS = ExistingPairs(MappingProxyType({}), MappingProxyType({}), frozenset())


def check_existing(model: Model, policy: ExistingPolicy) -> None:
    """Refuse a model that holds quantization nodes if the policy is to, and one without any if they are to be kept.

    Raises:
        ModelError: If it is refused.
    """
    if policy is ExistingPolicy.REFUSE and has_qdq(model.proto):
        raise ModelError(
            "the model already holds QuantizeLinear or DequantizeLinear nodes",
            expected="a floating-point model",
            hint="quantize the model it was made from, or keep its pairs and add the missing ones: --existing complete",
        )
    if policy is ExistingPolicy.KEEP and not has_qdq(model.proto):
        raise ModelError(
            "the model holds no QuantizeLinear or DequantizeLinear nodes to keep",
            expected="a model that is quantized already",
            hint="leave --existing keep out",
        )


def read_pairs(
    model: Model, index: GraphIndex, target: TargetProfile, kind: QuantizationKind, policy: ExistingPolicy
) -> ExistingPairs:
    """Pairs of a model, checked against a target's rules.

    Raises:
        ModelError: If there are any and the policy is to refuse them; if the model holds integer operators; or if a
            pair has a type or zero-point that the target refuses, naming its tensor.
    """
    if not has_qdq(model.proto):
        return NO_PAIRS
    check_existing(model, policy)
    behind: dict[str, str] = {}
    parameters: dict[str, Parameters] = {}
    dequantized: set[str] = set()
    for node in index.graph.node:
        if node.op_type not in _PAIR:
            _refuse_integer_operator(node)
            continue
        _check_pair(node, model, index, target, kind)
        if node.op_type == "QuantizeLinear":
            continue
        dequantized.add(node.output[0])
        source = index.producer.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            tensor = source.input[0]
            behind.setdefault(tensor, node.output[0])
            scale, zero_point = (_values(source, slot, model, index) for slot in (1, 2))
            if scale is not None and scale.size == 1:
                zero = 0 if zero_point is None else int(zero_point.reshape(-1)[0])
                parameters.setdefault(tensor, Parameters(float(scale.reshape(-1)[0]), zero))
    return ExistingPairs(behind, parameters, frozenset(dequantized))


def _refuse_integer_operator(node: NodeProto) -> None:
    if node.op_type.startswith("QLinear") or node.op_type in (
        "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"
    ):  # fmt: skip
        raise ModelError(
            f"node {node.name!r} is an integer operator, {node.op_type}, which cannot be completed",
            expected="QuantizeLinear/DequantizeLinear pairs around floating-point operators",
            hint="quantize the floating-point model it was made from",
        )


def _check_pair(
    node: NodeProto, model: Model, index: GraphIndex, target: TargetProfile, kind: QuantizationKind
) -> None:
    """Refuse what a target does not take: another type than its own, a zero-point, several scales of an activation."""
    tensor = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
    found = _code_type(node, index)
    allowed = set(_allowed_types(target, kind))
    if target.bias is BiasType.INT32 and node.op_type == "DequantizeLinear":
        allowed.add(int(TensorProto.INT32))
    if found not in allowed:
        raise ModelError(
            f"the pair on tensor {tensor!r} (node {node.name!r}) has a type that target {target.name} does not take",
            got=type_name(found),
            expected=" or ".join(type_name(kind) for kind in sorted(allowed)),
            hint="quantize the floating-point model it was made from",
        )
    zero = _values(node, 2, model, index)
    if target.activation.symmetric and zero is not None and np.any(zero.astype(np.float32) != 0):
        raise ModelError(
            f"the pair on tensor {tensor!r} (node {node.name!r}) has a zero-point, which target {target.name} refuses",
            got=zero.reshape(-1)[np.flatnonzero(zero.astype(np.float32))[0]],
            expected="0",
            hint="quantize the floating-point model it was made from, with symmetric activations",
        )
    scale = _values(node, 1, model, index)
    constant = index.initializers.keys() >= {node.input[0]}
    if node.op_type == "QuantizeLinear" and not constant and scale is not None and scale.size != 1:
        raise ModelError(
            f"the pair on tensor {tensor!r} (node {node.name!r}) has a scale for each channel of an activation",
            got=f"{scale.size} scales",
            expected="one; only weights have a scale a channel",
            hint="quantize the floating-point model it was made from",
        )


def _allowed_types(target: TargetProfile, kind: QuantizationKind) -> Iterator[int]:
    names = {target.activation_scheme(kind).dtype, weight_scheme(kind).dtype}
    known = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN}
    return (int(known[name]) for name in names)


def _code_type(node: NodeProto, index: GraphIndex) -> int:
    """Element type of a pair's codes; a QuantizeLinear that says nothing makes uint8."""
    if len(node.input) > 2 and node.input[2]:
        return index.elem_type(node.input[2])
    if node.op_type == "QuantizeLinear":
        stated = [int(a.i) for a in node.attribute if a.name == "output_dtype" and a.i]
        return stated[0] if stated else int(TensorProto.UINT8)
    source = index.producer.get(node.input[0])
    if source is not None and source.op_type == "QuantizeLinear":
        return _code_type(source, index)
    return index.elem_type(node.input[0])


def _values(node: NodeProto, slot: int, model: Model, index: GraphIndex) -> NDArray[np.generic] | None:
    """Stored value of an input; None if it has none, or one that is computed."""
    stored = index.initializers.get(node.input[slot]) if len(node.input) > slot else None
    return None if stored is None else np.asarray(tensor_array(model, stored))
