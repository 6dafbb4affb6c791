"""Engines whose arithmetic is chosen layer by layer: float64 with roundings where a real one would have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.double import operators, to_double, truncate_tf32
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.tf32 import round_tf32

Choice = Callable[[NodeProto], str | None]
Values = NDArray[np.float64]


def nothing(_: NodeProto) -> str | None:
    return None


def everywhere(kind: str) -> Choice:
    return lambda node: kind


def behind(kind: str, *ops: str) -> Choice:
    return lambda node: kind if node.op_type in ops else None


def dense(kind: str) -> Choice:
    """All weighted layers but grouped convolutions, which tensor cores do badly."""
    return lambda node: None if any(a.name == "group" and a.i > 1 for a in node.attribute) else kind


def aligned(model: Model, narrow: str = "tf32") -> Choice:
    """Layers whose channels are multiples of 4, without groups; ``narrow`` where up to 16 channels come in."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}

    def choose(node: NodeProto) -> str | None:
        shape = weights.get(node.input[1])
        if shape is None:
            return "tf32"
        if dense("tf32")(node) is None or any(size % 4 for size in (shape[:2] if len(shape) == 4 else shape)):
            return None
        return narrow if len(shape) == 4 and shape[1] <= 16 else "tf32"

    return choose


def besides(last: str, kind: str) -> Choice:
    """All nodes but the one that makes the tensor ``last``."""
    return lambda node: None if last in node.output else kind


def _away(values: Values) -> Values:
    """To 10 mantissa bits, to nearest, ties away from zero: PTX's ``cvt.rna.tf32``."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


ROUNDINGS: Mapping[str, Callable[[Values], Values]] = {
    "tf32": lambda x: round_tf32(x.astype(np.float32)).astype(np.float64),
    "tf32-away": _away,
    "tf32-cut": truncate_tf32,
    "fp16": lambda x: x.astype(np.float16).astype(np.float64),
    "bf16": lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float64),
    "fp32": lambda x: x.astype(np.float32).astype(np.float64),
}


class Rounded(OpRun):  # type: ignore[misc, unused-ignore]
    op_domain = "test"

    def _run(self, x: Values, kind: str | None = None) -> tuple[Values]:
        assert kind is not None
        if kind.startswith("noise:"):  # relative to the tensor's own magnitude, the same in every run
            rng = np.random.default_rng(x.size)
            return (x + float(kind[6:]) * np.sqrt(np.mean(np.square(x))) * rng.standard_normal(x.shape),)
        with np.errstate(over="ignore", invalid="ignore"):
            return (ROUNDINGS[kind](x),)


def simulate(
    model: Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    operands: Choice = nothing,
    stores: Choice = nothing,
    *,
    weights: str | None = None,
    inputs: str | None = None,
    outputs: str = "fp32",
) -> list[dict[str, NDArray[np.float32]]]:
    """Outputs of each call, of an engine that rounds so.

    Args:
        model: What it computes.
        feeds: Inputs of each call.
        operands: Rounding of both operands of a weighted layer.
        stores: Rounding of the first output of a node.
        weights: Rounding of all stored weights.
        inputs: Rounding of float inputs.
        outputs: Rounding of the graph's outputs at the very end.
    """
    proto = to_double(model)
    index = GraphIndex(proto.graph)
    names = [value.name for value in proto.graph.output]
    if weights is not None:
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.DOUBLE:
                value = ROUNDINGS[weights](onnx.numpy_helper.to_array(tensor))
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    nodes: list[NodeProto] = []
    for node in list(proto.graph.node):
        kind = operands(node) if node.op_type in WEIGHTED_OPS else None
        for position in (0, 1) if kind else ():
            rounded = index.fresh(f"{node.input[position]}_operand")
            nodes.append(onnx.helper.make_node("Rounded", [node.input[position]], [rounded], domain="test", kind=kind))
            node.input[position] = rounded
        nodes.append(node)
        kinds = [stores(node), outputs if node.output[0] in names else None]
        final = node.output[0]
        for kind in filter(None, kinds if final in floats(proto) else ()):
            before = index.fresh(f"{final}_before")
            nodes[-1].output[0] = before
            nodes.append(onnx.helper.make_node("Rounded", [before], [final], domain="test", kind=kind))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import.append(onnx.helper.make_opsetid("test", 1))
    evaluator = ReferenceEvaluator(proto, new_ops=[Rounded, *operators()])
    results = []
    for feed in feeds:
        wide = {name: _taken(value, inputs) for name, value in feed.items()}
        values = evaluator.run(names, wide)
        results.append({name: np.asarray(value, np.float32) for name, value in zip(names, values, strict=True)})
    return results


def _taken(value: NDArray[Any], inputs: str | None) -> NDArray[Any]:
    if value.dtype.kind != "f":
        return value
    wide = value.astype(np.float64)
    return wide if inputs is None else ROUNDINGS[inputs](wide)


def _fp16_sums(node: NodeProto) -> str:
    return "noise:5e-4" if node.op_type in WEIGHTED_OPS else "fp16"


_INTEGER_OPS = frozenset({"Shape", "Equal", "ArgMax", "Size", "NonZero", "Greater", "Less", "QuantizeLinear"})


def floats(proto: ModelProto) -> frozenset[str]:
    """Names of tensors that hold floats, as far as operators tell: shapes and what is computed of them are not."""
    integer = {t.name for t in proto.graph.initializer if t.data_type != onnx.TensorProto.DOUBLE}
    found: set[str] = set()
    for node in proto.graph.node:
        whole = node.op_type in _INTEGER_OPS or (bool(node.input) and node.input[0] in integer)
        whole &= node.op_type != "DequantizeLinear"
        (integer if whole else found).update(node.output)
    return frozenset(found)


def every_arithmetic(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of engines to tell apart; the name starts with the arithmetic that it has."""
    activations = ("Relu", "HardSwish", "Clip", "Add", "Gemm", "MatMul", "LayerNormalization", "Softmax", "Mul")
    last = model.proto.graph.output[0].name
    half, short = ({"weights": kind, "inputs": kind} for kind in ("fp16", "bf16"))
    yield "fp32, exact", {}
    yield "fp32, other order", {"stores": everywhere("noise:2e-7")}
    yield "fp32, Winograd", {"stores": behind("noise:3e-6", "Conv")}
    yield "tf32, nearest", {"operands": everywhere("tf32")}
    yield "tf32, ties away", {"operands": everywhere("tf32-away")}
    yield "tf32, other order", {"operands": everywhere("tf32"), "stores": everywhere("noise:1e-6")}
    yield "tf32, cut", {"operands": everywhere("tf32-cut")}
    yield "tf32, dense layers only", {"operands": dense("tf32")}
    yield "tf32, aligned layers only", {"operands": aligned(model)}
    yield "tf32, aligned layers, other order", {"operands": aligned(model), "stores": everywhere("noise:1e-6")}
    yield "tf32, aligned layers, narrow ones cut", {"operands": aligned(model, "tf32-cut")}
    yield "tf32, not in Gemm", {"operands": lambda node: None if node.op_type == "Gemm" else "tf32"}
    yield "fp16, every operator", {**half, "stores": everywhere("fp16")}
    yield "fp16, fused", {**half, "stores": behind("fp16", *activations)}
    yield (
        "fp16, FP16 sums",
        {**half, "stores": lambda n: "noise:5e-4" if n.op_type in WEIGHTED_OPS else "fp16", "outputs": "fp16"},
    )
    yield "fp16, last layer in FP32", {**half, "stores": besides(last, "fp16")}
    yield "bf16, every operator", {**short, "stores": everywhere("bf16")}
    yield "bf16, fused", {**short, "stores": behind("bf16", *activations)}
    yield "bf16, last layer in FP32", {**short, "stores": besides(last, "bf16")}
    yield "none, weights in FP16 only", {"weights": "fp16"}
    yield "none, weights in BF16 only", {"weights": "bf16"}
    yield "none, output in FP16 only", {"outputs": "fp16"}
    yield "none, TF32 in Gemm only", {"operands": lambda node: "tf32" if node.op_type == "Gemm" else None}
