"""Running a graph in float64 on the CPU: the truth that engines of lower precision are measured against.

ONNX Runtime's CPU provider has float64 kernels for few operators (none for convolutions), so ONNX's own reference
evaluator runs a copy of the graph in which every floating-point tensor is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from scipy import special

from quantlab.errors import ModelError
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.double_operands import DOMAIN, Choice, Cut, aligned_only, everywhere, narrow_cut, round_operands
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, model_outputs
from quantlab.graph.reference import Arrays
from quantlab.graph.session import first_line
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs
from quantlab.graph.tf32 import DROPPED_BITS, round_tf32

MAX_MULTIPLICATIONS = 20e9
"""Most multiply-accumulates of one run that are computed in float64; about 10 to 40 s on one core."""

MAX_BYTES = 4e9
"""Most memory that one run may take: all intermediate tensors are kept, and convolutions unfold their inputs."""

_WIDE = TensorProto.DOUBLE
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type", "softmax_precision", "precision"})
_UNSAFE_OPS = frozenset({
    "AffineGrid", "GridSample", "MelWeightMatrix", "LinearAttention", "CausalConvWithState", "TfIdfVectorizer",
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
"""Operators that the reference evaluator computes in float32 whatever its inputs, or that draw random numbers."""

_LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


class Rounding(Enum):
    """What is rounded on the way; the arithmetic is float64 in every case."""

    NONE = "none"
    """Nothing: the exact results of the stored weights, up to float64's own rounding."""
    AS_TYPED = "as-typed"
    """Tensors that the graph declares to be 16-bit floats, to that type where they are stored."""
    TF32 = "tf32"
    """Operands of convolutions and matrix products, to 10 mantissa bits, to nearest with ties to even."""
    TF32_TRUNCATED = "tf32-truncated"
    """The same operands, cut to 10 mantissa bits as tensor cores do with raw float32."""
    TF32_ALIGNED = "tf32-aligned"
    """To nearest, but only in layers whose shapes TF32 kernels take: see `double_operands.aligned_only`."""
    TF32_NARROW_CUT = "tf32-narrow-cut"
    """The same, but cut in convolutions of few channels: see `double_operands.narrow_cut`."""


class TooLargeError(ModelError):
    """The graph would take too long or too much memory in float64."""


@dataclass(frozen=True, slots=True)
class DoubleSession:
    """A graph that is ready to run in float64.

    Attributes:
        outputs: Names of the graph's outputs, in order.
    """

    outputs: tuple[str, ...]
    _evaluator: Any

    def run(self, feed: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run one call, on one thread.

        BLAS would take all cores for products of a few rows: where other work has some of them, its threads wait for
        each other ten times longer than they compute. It is told so for the process, until the call ends.

        Args:
            feed: Inputs by name; float inputs of any width.

        Returns:
            Outputs by name; float outputs as float64, others of their own type.

        Raises:
            ModelError: If an operator is not supported, or fails.
        """
        from threadpoolctl import threadpool_limits

        wide = {name: value.astype(np.float64) if _is_float(value) else value for name, value in feed.items()}
        try:
            with threadpool_limits(1, "blas"):
                values = self._evaluator.run(list(self.outputs), wide)
        except Exception as cause:  # the evaluator raises whatever its NumPy code raises
            raise ModelError("the graph does not run in float64", got=first_line(cause)) from cause
        return dict(zip(self.outputs, (np.asarray(value) for value in values), strict=True))


def open_double(model: Model, rounding: Rounding = Rounding.NONE) -> DoubleSession:
    """Make a float64 copy of a graph and open it in ONNX's reference evaluator.

    Weights keep their stored values. ``Erf`` is SciPy's, because the evaluator's own is float32.

    Args:
        model: A prepared model, or any typed graph with shapes inferred where possible.
        rounding: What is rounded on the way.

    Raises:
        TooLargeError: If one run needs more than `MAX_MULTIPLICATIONS` or `MAX_BYTES`, as far as shapes are known.
        ModelError: If an operator cannot be computed in float64, or weights cannot be read.
    """
    from onnx.reference import ReferenceEvaluator

    check_cost(model.proto)
    proto = to_double(model, rounding)
    try:
        evaluator = ReferenceEvaluator(proto, new_ops=list(operators()))
    except Exception as cause:  # NotImplementedError, RuntimeContextError and others
        raise ModelError("the graph does not run in float64", got=first_line(cause)) from cause
    return DoubleSession(tuple(spec.name for spec in model_outputs(proto)), evaluator)


def to_double(model: Model, rounding: Rounding = Rounding.NONE) -> ModelProto:
    """Copy a graph with every floating-point tensor turned into float64; 8-bit floats stay.

    With `Rounding.AS_TYPED`, a pair of casts behind each operator of the main graph rounds what is declared as a 16-bit
    float.

    Raises:
        ModelError: If weights cannot be read, or an operator is among those whose float64 results are not to be had.
    """
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for node in _all_nodes(proto):
        if node.op_type in _UNSAFE_OPS and node.domain in ("", "ai.onnx"):
            raise ModelError("the graph does not run in float64", got=f"operator {node.op_type} ({node.name})")
    graph = proto.graph
    index = GraphIndex(graph, typed_graph(proto))
    stored_as = {name: index.elem_type(name) for node in graph.node for name in node.output if name}
    _widen_graph(graph, model)
    for function in proto.functions:
        for node in function.node:
            _widen_node(node, model)
    if rounding is Rounding.AS_TYPED:
        _round_stored(graph, index, stored_as)
    elif rounding is not Rounding.NONE:
        round_operands(graph, index, _choice(rounding, index))
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return proto


def _choice(rounding: Rounding, index: GraphIndex) -> Choice:
    if rounding is Rounding.TF32_ALIGNED:
        return aligned_only(index)
    if rounding is Rounding.TF32_NARROW_CUT:
        return narrow_cut(index)
    return everywhere(Cut.TOWARDS_ZERO if rounding is Rounding.TF32_TRUNCATED else Cut.NEAREST)


def truncate_tf32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut float64 values to float32's exponent and 10 mantissa bits, towards zero; infinities and NaN stay."""
    mask = np.uint32(0xFFFFFFFF << DROPPED_BITS & 0xFFFFFFFF)
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    special_value = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    cut = np.where(special_value, bits, bits & mask).astype(np.uint32).view(np.float32)
    return cut.reshape(np.shape(values)).astype(np.float64)


def multiplications(proto: ModelProto) -> float:
    """Multiply-accumulates of one run, by the shapes that the graph states; unknown dimensions count as 1."""
    return _cost(proto)[0]


def check_cost(proto: ModelProto) -> None:
    """Refuse a graph that is too large for float64, by the shapes it states; unknown dimensions count as 1.

    Raises:
        TooLargeError: With the figures.
    """
    n_multiplications, n_bytes = _cost(proto)
    if n_multiplications > MAX_MULTIPLICATIONS or n_bytes > MAX_BYTES:
        raise TooLargeError(
            "the graph is too large for float64 on the CPU",
            got=f"{n_multiplications / 1e9:.1f} billion multiplications, {n_bytes / 1e9:.1f} GB",
            expected=f"at most {MAX_MULTIPLICATIONS / 1e9:.0f} billion and {MAX_BYTES / 1e9:.0f} GB",
        )


def _cost(proto: ModelProto) -> tuple[float, float]:
    """Multiply-accumulates and bytes of one run."""
    index = GraphIndex(proto.graph, typed_graph(proto))
    total, kept, unfolded = 0.0, 0.0, 0.0
    for node in proto.graph.node:
        sizes = [math.prod(_known(index.shape(name))) for name in node.output if name]
        kept += 8.0 * sum(sizes)
        if node.op_type not in WEIGHTED_OPS:
            continue
        left, weight = (_known(index.shape(name)) for name in node.input[:2])
        if node.op_type in ("Conv", "ConvTranspose"):
            per_value = math.prod(weight[1:])
            positions = math.prod(_known(index.shape(node.output[0]))[2:])
            unfolded = max(unfolded, 8.0 * math.prod(left[:2]) * math.prod(weight[2:]) * positions)
        else:
            flipped = any(a.name == "transA" and a.i for a in node.attribute)
            per_value = (left[0] if flipped else left[-1]) if left else 1
        total += float(sizes[0]) * per_value
    return total, kept + 4 * unfolded


def _known(shape: Iterable[int | str | None] | None) -> list[int]:
    return [dim if isinstance(dim, int) else 1 for dim in shape or ()]


def _is_float(value: NDArray[np.generic]) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def _all_nodes(proto: ModelProto) -> Iterable[NodeProto]:
    yield from _graph_nodes(proto.graph.node)
    for function in proto.functions:
        yield from _graph_nodes(function.node)


def _graph_nodes(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from _graph_nodes(inner.node)


def _widen_graph(graph: GraphProto, model: Model) -> None:
    for initializer in graph.initializer:
        _widen_tensor(initializer, model)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = _WIDE
    del graph.value_info[:]
    for node in graph.node:
        _widen_node(node, model)


def _widen_tensor(tensor: TensorProto, model: Model) -> None:
    if tensor.data_type in _FLOATS:
        value = np.asarray(read_tensor(tensor, model.data_folder)).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    elif tensor.data_location == TensorProto.EXTERNAL:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(read_tensor(tensor, model.data_folder)), tensor.name))


def _widen_node(node: NodeProto, model: Model) -> None:
    """Turn the types that a node's attributes state into float64, in place; with those of its subgraphs."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t, model)
        elif attribute.name in ("value_float", "value_floats") and node.op_type == "Constant":
            values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = onnx.numpy_helper.from_array(np.array(values, np.float64))
            attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in _FLOATS and attribute.name != "stash_type":
            attribute.i = _WIDE
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1))))
    for inner in subgraphs(node):
        _widen_graph(inner, model)


def _round_stored(graph: GraphProto, index: GraphIndex, stored_as: Mapping[str, int]) -> None:
    """Put a pair of casts behind every operator whose result is declared as a 16-bit float, in place."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            kind = stored_as.get(name, TensorProto.UNDEFINED)
            if kind in _HALVES:
                node.output[i] = index.fresh(f"{name}_unrounded")
                stored = index.fresh(f"{name}_stored")
                nodes.append(onnx.helper.make_node("Cast", [node.output[i]], [stored], to=kind))
                nodes.append(onnx.helper.make_node("Cast", [stored], [name], to=_WIDE))
    del graph.node[:]
    graph.node.extend(nodes)


def operators() -> Iterable[Any]:
    """Operators that the evaluator lacks or computes in float32."""
    from onnx.reference.op_run import OpRun

    class Erf(OpRun):  # type: ignore[misc, unused-ignore]
        """Error function of the input's own width."""

        def _run(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64]]:
            return (np.asarray(special.erf(x), x.dtype),)

    class TruncateTf32(OpRun):  # type: ignore[misc, unused-ignore]
        """See `truncate_tf32`."""

        op_domain = DOMAIN

        def _run(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64]]:
            return (truncate_tf32(x),)

    class RoundTf32(OpRun):  # type: ignore[misc, unused-ignore]
        """See `round_tf32`."""

        op_domain = DOMAIN

        def _run(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64]]:
            with np.errstate(over="ignore"):
                return (round_tf32(x.astype(np.float32)).astype(np.float64),)

    class QuantizeLinear(OpRun):  # type: ignore[misc, unused-ignore]
        """Of opset 10 to 25, without blocks; INT8, UINT8, INT16, UINT16 and FP8 E4M3 results."""

        def _run(
            self,
            x: NDArray[np.float64],
            scale: NDArray[np.float64],
            zero_point: NDArray[np.generic] | None = None,
            *,
            axis: int | None = 1,
            output_dtype: int | None = None,
            **_: object,
        ) -> tuple[NDArray[np.generic]]:
            kind = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
            if zero_point is None and output_dtype:
                kind = onnx.helper.tensor_dtype_to_np_dtype(output_dtype)
            scaled = x / _along(scale, x, axis)
            if kind.kind not in "iu":  # saturating, as the default of the operator
                largest = _LARGEST[kind.name]
                return (np.clip(scaled, -largest, largest).astype(kind),)
            offset = 0 if zero_point is None else _along(zero_point, x, axis).astype(np.float64)
            limits = np.iinfo(kind.name)
            return (np.clip(np.rint(scaled) + offset, limits.min, limits.max).astype(kind),)

    class DequantizeLinear(OpRun):  # type: ignore[misc, unused-ignore]
        """Of opset 10 to 25, without blocks."""

        def _run(
            self,
            x: NDArray[np.generic],
            scale: NDArray[np.float64],
            zero_point: NDArray[np.generic] | None = None,
            *,
            axis: int | None = 1,
            **_: object,
        ) -> tuple[NDArray[np.float64]]:
            values = x.astype(np.float64)
            if zero_point is not None:
                values = values - _along(zero_point, x, axis).astype(np.float64)
            return (values * _along(scale, x, axis),)

    return (Erf, RoundTf32, TruncateTf32, QuantizeLinear, DequantizeLinear)


def _along(values: NDArray[Any], x: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Scales or zero-points, one for all or one a channel, in a shape that broadcasts against ``x``.

    Raises:
        ValueError: If they are given in blocks.
    """
    if values.size == 1:
        return values.reshape(())
    if values.ndim != 1:
        raise ValueError("quantization in blocks is not supported")
    shape = [1] * x.ndim
    shape[1 if axis is None else axis] = -1
    return values.reshape(shape)
