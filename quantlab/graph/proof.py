"""Which precision a finished graph really computes in, found from the graph alone, whoever wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from quantlab.graph.checks import WEIGHTED_OPS, has_qdq
from quantlab.graph.half import FORMATS, SELECTING_OPS
from quantlab.graph.index import GraphIndex
from quantlab.graph.layers import dequantized_constants
from quantlab.graph.model import Model
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs
from quantlab.graph.tf32 import DROPPED_BITS, SPLITTER
from quantlab.precision import Precision

_INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"})
_INT8 = frozenset({TensorProto.INT8, TensorProto.UINT8})
_FP8 = frozenset({TensorProto.FLOAT8E4M3FN})
_TYPED: dict[int, Precision] = {TensorProto.FLOAT16: Precision.FP16, TensorProto.BFLOAT16: Precision.BF16}


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found in a graph.

    Attributes:
        precision: The precision that the weighted layers were proved to compute in. INT8, INT8_FP16, INT8_WEIGHTS and
            FP8 mean where quantized: see the counts. None if it is a mixture that has no name, or nothing could be
            proved.
        text: One line for people, such as ``20 of 21 weighted layers INT8; fp32: Conv_3``.
        weighted_layers: ``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul`` and integer nodes, also in subgraphs.
        quantized_layers: Those of them with both operands in 8 bits.
        layers: Precision of each weighted layer, by node name, in graph order.
    """

    precision: Precision | None
    text: str
    weighted_layers: int
    quantized_layers: int
    layers: tuple[tuple[str, Precision], ...]

    def named(self, precision: Precision) -> tuple[str, ...]:
        """Names of the weighted layers of one precision."""
        return tuple(name for name, found in self.layers if found is precision)


def prove(model: Model | ModelProto) -> Proof:
    """Inspect every weighted layer of a graph.

    A layer is INT8 (or FP8) if both operands come from ``DequantizeLinear`` of 8-bit values; INT8_WEIGHTS if only one
    does, of stored integers; FP16 or BF16 if both are
    of that type, or float32 values that were cast through it or, as stored weights, are exactly representable in it;
    TF32 if stored weights have 13 zero low mantissa bits and activations come from the splitting that `to_tf32` writes;
    FP32 otherwise. Cost: reads all weights once.

    Raises:
        ModelError: If weights cannot be read.
    """
    proto, folder = (model.proto, model.data_folder) if isinstance(model, Model) else (model, None)
    layers = tuple(_layers(proto.graph, typed_graph(proto), folder))
    counts = Counter(precision for _, precision in layers)
    quantized = counts[Precision.INT8] + counts[Precision.FP8]
    precision = _overall(counts)
    return Proof(precision, _text(proto, layers, counts, precision), len(layers), quantized, layers)


def _layers(graph: GraphProto, typed: GraphProto, folder: Path | None) -> Iterator[tuple[str, Precision]]:
    inspection = _Inspection(GraphIndex(graph, typed), folder)
    for node in graph.node:
        if node.op_type in _INTEGER_OPS:
            yield node.name or node.output[0], Precision.INT8
        elif node.op_type in WEIGHTED_OPS and node.domain in ("", "ai.onnx"):
            yield node.name or node.output[0], inspection.precision_of(node)
        for inner in subgraphs(node):
            yield from _layers(inner, inner, folder)


def _overall(counts: Counter[Precision]) -> Precision | None:
    kinds = frozenset(counts)
    if len(kinds) == 1:
        return next(iter(kinds))
    if Precision.INT8 in kinds:  # beside it, a layer of which only the weight is INT8 is one that stayed in FP32
        kinds = frozenset(Precision.FP32 if kind is Precision.INT8_WEIGHTS else kind for kind in kinds)
    named = {
        frozenset({Precision.INT8, Precision.FP32}): Precision.INT8,
        frozenset({Precision.INT8, Precision.FP16}): Precision.INT8_FP16,
        frozenset({Precision.INT8_WEIGHTS, Precision.FP32}): Precision.INT8_WEIGHTS,
        frozenset({Precision.FP8, Precision.FP32}): Precision.FP8,
    }
    return named.get(kinds)


def _text(
    proto: ModelProto,
    layers: tuple[tuple[str, Precision], ...],
    counts: Counter[Precision],
    precision: Precision | None,
) -> str:
    if not layers:
        return "no weighted layers" + ("; Q/DQ nodes present" if has_qdq(proto) else "")
    main = counts.most_common(1)[0][0]
    if precision is not None:
        main = Precision.INT8 if precision is Precision.INT8_FP16 else precision
    text = f"{counts[main]} of {len(layers)} weighted layers {_form(main)}"
    for other in counts:
        if other is not main:
            names = [name for name, found in layers if found is other]
            more = f", ... ({len(names)})" if len(names) > 5 else ""
            text += f"; {other.value}: {', '.join(names[:5])}{more}"
    if precision is None:
        text = f"mixed: {text}"
    if main is Precision.FP32 and has_qdq(proto):
        text += "; Q/DQ nodes present, but around no weighted layer"
    return text


def _form(precision: Precision) -> str:
    """How a layer's precision reads in a sentence."""
    return "with INT8 weights, activations float" if precision is Precision.INT8_WEIGHTS else precision.value.upper()


class _Inspection:
    """One graph, with what was found about its tensors."""

    def __init__(self, index: GraphIndex, folder: Path | None) -> None:
        self.index = index
        self.folder = folder
        self._stored = dequantized_constants(index.graph)
        self._origins: dict[str, frozenset[Precision]] = {}

    def precision_of(self, node: NodeProto) -> Precision:
        """Precision that both operands of a layer have in common, or INT8_WEIGHTS if only a stored one is INT8."""
        operands = [(name, self.origins(name)) for name in node.input[:2]]
        both = operands[0][1] & operands[1][1]
        constant = [name in self.index.initializers for name in node.input[:2]]
        if all(constant):
            return Precision.FP32
        order = (Precision.INT8, Precision.FP8, Precision.FP16, Precision.BF16, Precision.TF32)
        common = next((precision for precision in order if precision in both), Precision.FP32)
        weights = any(Precision.INT8 in origins and name in self._stored for name, origins in operands)
        return Precision.INT8_WEIGHTS if weights and common is Precision.FP32 else common

    def origins(self, tensor: str) -> frozenset[Precision]:
        """Precisions that a tensor's values are proved to have."""
        found = self._origins.get(tensor)
        if found is None:
            self._origins[tensor] = frozenset()  # a cycle proves nothing
            found = self._origins[tensor] = self._find(tensor)
        return found

    def _find(self, tensor: str) -> frozenset[Precision]:
        typed = _TYPED.get(self.index.elem_type(tensor))
        if typed is not None:
            return frozenset({typed})
        if tensor in self.index.initializers:
            return self._of_weight(read_tensor(self.index.initializers[tensor], self.folder))
        node = self.index.producer.get(tensor)
        if node is None:
            return frozenset()
        if node.op_type == "DequantizeLinear":
            kind = self._quantized_type(node)
            return frozenset({Precision.INT8} if kind in _INT8 else {Precision.FP8} if kind in _FP8 else ())
        if node.op_type == "Cast":
            before = self._cast_target(node.input[0])
            return frozenset({before}) if before is not None else frozenset()
        if self._is_split(node):
            return frozenset({Precision.TF32})
        if node.op_type in SELECTING_OPS:
            return self._of_selection(node)
        return frozenset()

    def _of_selection(self, node: NodeProto) -> frozenset[Precision]:
        """What all float inputs of a selecting operator have; 8-bit origins survive only moves of a single tensor."""
        floats = [name for name in node.input if name and self.index.elem_type(name) in (0, TensorProto.FLOAT)]
        common = [self.origins(name) for name in floats]
        result = frozenset.intersection(*common) if common else frozenset()
        moves = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"}
        allowed = set(result) if node.op_type in moves else set(result) - {Precision.INT8, Precision.FP8}
        return frozenset(allowed)

    def _of_weight(self, value: NDArray[np.generic]) -> frozenset[Precision]:
        if value.dtype != np.float32:
            return frozenset()
        found: set[Precision] = set()
        bits = np.ascontiguousarray(value).view(np.uint32)
        if not (bits & np.uint32((1 << DROPPED_BITS) - 1)).any():
            found.add(Precision.TF32)
        for precision, half in FORMATS.items():
            if np.array_equal(half.round(value), value, equal_nan=True):
                found.add(precision)
        return frozenset(found)

    def _quantized_type(self, node: NodeProto) -> int:
        names = [node.input[0], *node.input[2:3]]
        producer = self.index.producer.get(node.input[0])
        if producer is not None and producer.op_type == "QuantizeLinear":
            names += producer.input[2:3]
            if len(producer.input) < 3:
                kinds = [a.i for a in producer.attribute if a.name == "output_dtype" and a.i]
                return int(kinds[0]) if kinds else TensorProto.UINT8
        kinds = [self.index.elem_type(name) for name in names if name]
        return next((kind for kind in kinds if kind), TensorProto.UNDEFINED)

    def _cast_target(self, tensor: str) -> Precision | None:
        node = self.index.producer.get(tensor)
        if node is None or node.op_type != "Cast":
            return None
        return next((_TYPED.get(int(a.i)) for a in node.attribute if a.name == "to"), None)

    def _is_split(self, node: NodeProto) -> bool:
        """Whether the node is ``c - (c - x)`` with ``c = SPLITTER * x``."""
        if node.op_type != "Sub":
            return False
        scaled, rest = (self.index.producer.get(name) for name in node.input)
        if scaled is None or rest is None or scaled.op_type != "Mul" or rest.op_type != "Sub":
            return False
        if rest.input[0] != node.input[0] or rest.input[1] not in scaled.input:
            return False
        factors = [name for name in scaled.input if name != rest.input[1]]
        if len(factors) != 1 or factors[0] not in self.index.initializers:
            return False
        value = read_tensor(self.index.initializers[factors[0]], self.folder)
        return value.size == 1 and abs(float(value.reshape(-1)[0]) - SPLITTER) < 0.5
