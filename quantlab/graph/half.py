"""FP16 and BF16 emulation: every tensor rounded to 16 bits where it is stored, FP32 inside each operator.

ONNX Runtime's CPU provider cannot be trusted with a typed half graph: it runs it in float32 between casts that it then
removes, so that only weights, inputs and outputs are rounded (and bfloat16 convolutions have no kernel at all). A
float32 graph with explicit ``Cast`` pairs behind each operator keeps every rounding: the optimizer does not remove a
cast pair that loses precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from quantlab.degradation import Degradation, DegradationCode
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.skeleton import typed_graph
from quantlab.precision import Precision

SELECTING_OPS = frozenset({
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Concat", "Split", "Slice", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "Relu", "Neg", "Abs", "Max", "Min", "Clip", "MaxPool",
    "GlobalMaxPool", "ReduceMax", "ReduceMin", "Where", "DepthToSpace", "SpaceToDepth", "Dropout", "Pad", "TopK",
})  # fmt: skip
"""Operators whose results are among their inputs (or their negatives): rounded inputs give rounded outputs."""

_EXACT_OPS = SELECTING_OPS | {"DequantizeLinear"}
"""Operators behind which nothing is rounded: an 8-bit operand enters its layer as 8 bits."""

_PARAMETERS: dict[str, tuple[int, ...]] = {
    "Resize": (1, 2),
    "Upsample": (1,),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "NonMaxSuppression": (3, 4),
    "Range": (0, 1, 2),
}
"""Float inputs that say how an operator works and keep their precision in a half graph too."""


@dataclass(frozen=True, slots=True)
class HalfFormat:
    """A 16-bit floating-point format.

    Attributes:
        precision: Its name.
        onnx_type: ``TensorProto.DataType``.
        largest: Largest finite value.
    """

    precision: Precision
    onnx_type: int
    largest: float

    def round(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Round float32 values to the format, to nearest with ties to even, and give them as float32."""
        kind = np.dtype(np.float16) if self.precision is Precision.FP16 else np.dtype(ml_dtypes.bfloat16)
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32).astype(kind).astype(np.float32)


FORMATS = {
    Precision.FP16: HalfFormat(Precision.FP16, TensorProto.FLOAT16, 65504.0),
    Precision.BF16: HalfFormat(Precision.BF16, TensorProto.BFLOAT16, float.fromhex("0x1.fep127")),
}


def to_half(model: Model, precision: Precision) -> tuple[ModelProto, tuple[Degradation, ...]]:
    """Make a float32 graph whose results carry the rounding of 16-bit storage.

    Inputs, float weights and biases, and the result of every operator are rounded to nearest, ties to even; operators
    compute and accumulate in float32. Values beyond the format become infinite, as in the real thing, except weights,
    which are clipped and counted. A tensor keeps its name and holds the rounded value. Inputs and outputs stay float32.
    Values that come from ``DequantizeLinear`` are not rounded: they stand for 8-bit operands. Bodies of ``If``,
    ``Loop`` and ``Scan`` are not rounded inside.

    Args:
        model: A prepared model. Weights become inline.
        precision: FP16 or BF16.

    Returns:
        The graph, and a degradation if weights had to be clipped.

    Raises:
        ModelError: If weights cannot be read.
        ValueError: If ``precision`` is another.
    """
    if precision not in FORMATS:
        raise ValueError(f"{precision} is not a 16-bit floating-point format")
    rounding = _Rounding(model, FORMATS[precision])
    rounding.round_initializers()
    rounding.round_nodes()
    message = f"weights beyond the largest {precision} value, {rounding.format.largest:g}, were clipped"
    degradation = Degradation.of(DegradationCode.SATURATED_WEIGHTS, message, rounding.saturated)
    return rounding.proto, (degradation,) if rounding.saturated else ()


class _Rounding:
    """The graph being changed."""

    def __init__(self, model: Model, half: HalfFormat) -> None:
        self.model = model
        self.format = half
        self.proto = ModelProto()
        self.proto.CopyFrom(model.proto)
        self.index = GraphIndex(self.proto.graph, typed_graph(self.proto))
        self.saturated: list[str] = []
        self.suffix = f"_{half.precision.value}"

    def round_initializers(self) -> None:
        """Round float32 initializers; those used as parameters too get a rounded copy for the other uses."""
        for name, initializer in self.index.initializers.items():
            if initializer.data_type != TensorProto.FLOAT:
                continue
            n_parameter = self._parameter_uses(name)
            if n_parameter and n_parameter == self.index.uses(name):
                continue
            value = np.asarray(tensor_array(self.model, initializer), np.float32)
            clipped = np.where(np.isfinite(value), np.clip(value, -self.format.largest, self.format.largest), value)
            if (self.format.round(clipped) != self.format.round(value)).any() and not np.isnan(value).any():
                self.saturated.append(name)
            rounded = self.format.round(clipped)
            if not n_parameter:
                initializer.CopyFrom(onnx.numpy_helper.from_array(rounded, name))
                continue
            copy = self.index.fresh(name + self.suffix)
            self.proto.graph.initializer.append(onnx.numpy_helper.from_array(rounded, copy))
            for node in self.index.consumers.get(name, ()):
                self._rename_inputs(node, {name: copy})

    def round_nodes(self) -> None:
        """Put a pair of casts behind every graph input and every operator whose float32 result may need rounding."""
        graph = self.proto.graph
        nodes: list[NodeProto] = []
        renamed: dict[str, str] = {}
        for name in self.index.inputs:
            if self._is_float(name):
                renamed[name] = self.index.fresh(name + self.suffix + "_rounded")
                nodes.extend(self._casts(name, renamed[name]))
        for node in graph.node:
            self._rename_inputs(node, renamed)
            nodes.append(node)
            if node.op_type in _EXACT_OPS and node.domain in ("", "ai.onnx"):
                continue
            for i, name in enumerate(node.output):
                if not name or not self._is_float(name):
                    continue
                uses = self.index.uses(name)
                if uses and self._parameter_uses(name) == uses:
                    continue
                node.output[i] = self.index.fresh(name + "_unrounded")
                nodes.extend(self._casts(node.output[i], name))
        del graph.node[:]
        graph.node.extend(nodes)

    def _casts(self, source: str, target: str) -> Iterable[NodeProto]:
        middle = self.index.fresh(target + self.suffix)
        make = onnx.helper.make_node
        yield make("Cast", [source], [middle], name=self.index.fresh(f"{middle}_Cast"), to=self.format.onnx_type)
        yield make("Cast", [middle], [target], name=self.index.fresh(f"{target}_Cast"), to=TensorProto.FLOAT)

    def _is_float(self, name: str) -> bool:
        kind = self.index.elem_type(name)
        if kind == TensorProto.UNDEFINED and name in self.index.producer:
            first = next((used for used in self.index.producer[name].input if used), "")
            kind = self.index.elem_type(first)
        return kind == TensorProto.FLOAT

    def _parameter_uses(self, name: str) -> int:
        nodes = {id(node): node for node in self.index.consumers.get(name, ())}.values()
        return sum(
            1
            for node in nodes
            for position in _PARAMETERS.get(node.op_type, ())
            if position < len(node.input) and node.input[position] == name
        )

    def _rename_inputs(self, node: NodeProto, names: dict[str, str]) -> None:
        kept = _PARAMETERS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name in names and i not in kept:
                node.input[i] = names[name]
