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
from quantlab.graph.macs import multiply_accumulates
from quantlab.graph.model import Model
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs
from quantlab.graph.tf32 import DROPPED_BITS, SPLITTER
from quantlab.precision import Precision

_INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"})
_INT8 = frozenset({TensorProto.INT8, TensorProto.UINT8})
_FP8 = frozenset({TensorProto.FLOAT8E4M3FN})
_TYPED: dict[int, Precision] = {TensorProto.FLOAT16: Precision.FP16, TensorProto.BFLOAT16: Precision.BF16}
_QUANTIZED = frozenset({Precision.INT8, Precision.FP8})
_MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"})
_NOT_ARITHMETIC = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Constant"}) | _MOVES


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found in a graph.

    Attributes:
        precision: The precision that the weighted layers were proved to compute in. INT8, INT8_FP16, INT8_WEIGHTS and
            FP8 mean where quantized: see the counts. FP16 and BF16 of a strongly typed graph mean most of the
            arithmetic: see the shares. None if it is a mixture that has no name, or nothing could be proved.
        text: One line for people, such as ``20 of 21 weighted layers INT8; fp32: Conv_3``.
        weighted_layers: ``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul`` and integer nodes, also in subgraphs.
        quantized_layers: Those of them with both operands in 8 bits.
        layers: Precision of each weighted layer, by node name, in graph order.
        shares: Share of the multiply-accumulates in each precision, 0 to 1, that of the most first; empty if the sizes
            of a layer are not known.
        elsewhere: Type of what is computed between the layers of a strongly typed graph: FP16 or BF16; else FP32.
        float32_nodes: Further nodes of a strongly typed graph, casts and moves aside, that compute in float32.
    """

    precision: Precision | None
    text: str
    weighted_layers: int
    quantized_layers: int
    layers: tuple[tuple[str, Precision], ...]
    shares: tuple[tuple[Precision, float], ...] = ()
    elsewhere: Precision = Precision.FP32
    float32_nodes: int = 0

    def named(self, precision: Precision) -> tuple[str, ...]:
        """Names of the weighted layers of one precision."""
        return tuple(name for name, found in self.layers if found is precision)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A weighted layer.

    Attributes:
        name: Of its node.
        precision: Of its operands.
        output: Type that its result is stored in: FP16, BF16 or FP32.
        typed: Whether an operand or the result really is 16 bits, not only rounded.
        macs: Multiply-accumulates; None if not known.
    """

    name: str
    precision: Precision
    output: Precision
    typed: bool
    macs: int | None


def prove(model: Model | ModelProto) -> Proof:
    """Inspect every weighted layer of a graph.

    A layer is INT8 (or FP8) if both operands come from ``DequantizeLinear`` of 8-bit values, whatever float type these
    are dequantized to; INT8_WEIGHTS if only one does, of stored integers; FP16 or BF16 if both are
    of that type, or float32 values that were cast through it or, as stored weights, are exactly representable in it;
    TF32 if stored weights have 13 zero low mantissa bits and activations come from the splitting that `to_tf32` writes;
    FP32 otherwise. Cost: reads all float32 weights once.

    A strongly typed graph, in which weighted layers read or make 16 bits, is called FP16 or BF16 if at least half of
    its multiply-accumulates are; the layers that stayed FP32 are named. Where it is quantized, its name is that of the
    8-bit layers, and INT8 with FP16 around most layers is INT8_FP16.

    Raises:
        ModelError: If weights cannot be read.
    """
    proto, folder = (model.proto, model.data_folder) if isinstance(model, Model) else (model, None)
    typed = typed_graph(proto)
    layers = tuple(_layers(proto.graph, typed, folder))
    counts = Counter(layer.precision for layer in layers)
    elsewhere = _elsewhere(layers)
    is_typed = any(layer.typed for layer in layers)
    precision = _of_typed(layers, elsewhere) if is_typed else _overall(counts)
    if precision is Precision.INT8 and elsewhere is Precision.FP16:
        precision = Precision.INT8_FP16
    names = tuple((layer.name, layer.precision) for layer in layers)
    shares = _shares(layers)
    text = _text(proto, names, counts, precision)
    float32_nodes = _float32_nodes(GraphIndex(proto.graph, typed)) if is_typed else 0
    if is_typed:
        text += _typed_text(precision, shares, elsewhere, float32_nodes)
    quantized = sum(counts[kind] for kind in _QUANTIZED)
    return Proof(precision, text, len(layers), quantized, names, shares, elsewhere, float32_nodes)


def _layers(graph: GraphProto, typed: GraphProto, folder: Path | None) -> Iterator[_Layer]:
    inspection = _Inspection(GraphIndex(graph, typed), folder)
    for node in graph.node:
        if node.op_type in _INTEGER_OPS:
            yield _Layer(node.name or node.output[0], Precision.INT8, Precision.FP32, False, None)
        elif node.op_type in WEIGHTED_OPS and node.domain in ("", "ai.onnx"):
            yield inspection.layer(node)
        for inner in subgraphs(node):
            yield from _layers(inner, inner, folder)


def _overall(counts: Counter[Precision]) -> Precision | None:
    """Name of what an untyped graph computes in."""
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


def _of_typed(layers: tuple[_Layer, ...], elsewhere: Precision) -> Precision | None:
    """Name of what a strongly typed graph computes in: its 8-bit layers', or that of most of its arithmetic."""
    kinds = {layer.precision for layer in layers}
    eight = [kind for kind in (Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS) if kind in kinds]
    if Precision.TF32 in kinds or {Precision.INT8, Precision.FP8} <= kinds:
        return None
    if eight:
        return eight[0]
    return elsewhere if _share_of(layers, elsewhere) >= 0.5 else None


def _elsewhere(layers: tuple[_Layer, ...]) -> Precision:
    """The type that most layers store their results in."""
    kinds = Counter(layer.output for layer in layers)
    return kinds.most_common(1)[0][0] if kinds else Precision.FP32


def _share_of(layers: tuple[_Layer, ...], precision: Precision) -> float:
    """Share of the arithmetic in a precision; of the layers, if the sizes of one are not known."""
    shares = dict(_shares(layers))
    if not shares:
        return sum(layer.precision is precision for layer in layers) / max(1, len(layers))
    return shares.get(precision, 0.0)


def _shares(layers: tuple[_Layer, ...]) -> tuple[tuple[Precision, float], ...]:
    macs: Counter[Precision] = Counter()
    for layer in layers:
        if layer.macs is None:
            return ()
        macs[layer.precision] += layer.macs
    total = sum(macs.values())
    return tuple((kind, count / total) for kind, count in macs.most_common()) if total else ()


def _float32_nodes(index: GraphIndex) -> int:
    """Nodes of a typed graph's main graph, other than weighted layers, that compute in float32."""
    return sum(
        any(index.is_float(name) for name in node.output)
        for node in index.graph.node
        if node.op_type not in WEIGHTED_OPS | _NOT_ARITHMETIC
    )


def _typed_text(
    precision: Precision | None, shares: tuple[tuple[Precision, float], ...], elsewhere: Precision, float32_nodes: int
) -> str:
    text = ""
    if len(shares) > 1:
        text += "; multiply-accumulates: " + ", ".join(f"{100 * share:.1f} % {kind.value}" for kind, share in shares)
    if precision is not elsewhere:
        text += f"; {elsewhere.value} between the layers"
    return text + (f"; {float32_nodes} other nodes fp32" if float32_nodes else "")


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

    def layer(self, node: NodeProto) -> _Layer:
        """What is found about a weighted layer."""
        output = self._stored_as(node.output[0])
        typed = any(self.index.elem_type(name) in _TYPED for name in (*node.input[:2], node.output[0]))
        macs = multiply_accumulates(node, self.index)
        return _Layer(node.name or node.output[0], self.precision_of(node), output, typed, macs)

    def _stored_as(self, tensor: str) -> Precision:
        """Type of a tensor, or of the cast that all its readers are."""
        typed = _TYPED.get(self.index.elem_type(tensor))
        if typed is not None:
            return typed
        readers = self.index.consumers.get(tensor, ())
        casts = {self._cast_target(name) for reader in readers for name in reader.output[:1]}
        rounded = casts.pop() if len(casts) == 1 and tensor not in self.index.outputs else None
        return rounded if rounded is not None else Precision.FP32

    def precision_of(self, node: NodeProto) -> Precision:
        """Precision that both operands of a layer have in common, or INT8_WEIGHTS if only a stored one is INT8."""
        operands = [(name, self.origins(name)) for name in node.input[:2]]
        both = operands[0][1] & operands[1][1]
        constant = [name in self.index.initializers for name in node.input[:2]]
        if all(constant):
            return Precision.FP32
        order = (Precision.INT8, Precision.FP8, Precision.FP16, Precision.BF16, Precision.TF32)
        common = next((precision for precision in order if precision in both), Precision.FP32)
        weights = any(Precision.INT8 in origins and self._is_stored(name) for name, origins in operands)
        return Precision.INT8_WEIGHTS if weights and common not in _QUANTIZED else common

    def _is_stored(self, tensor: str) -> bool:
        """Whether a tensor holds a dequantized constant, cast and moved at most."""
        node = self.index.producer.get(tensor)
        while tensor not in self._stored and node is not None and node.op_type in _MOVES | {"Cast"}:
            tensor = node.input[0]
            node = self.index.producer.get(tensor)
        return tensor in self._stored

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
            return frozenset({typed, *self._behind(tensor)})
        if tensor in self.index.initializers:
            return self._of_weight(read_tensor(self.index.initializers[tensor], self.folder))
        node = self.index.producer.get(tensor)
        if node is None:
            return frozenset()
        if node.op_type == "DequantizeLinear":
            return self._behind(tensor)
        if node.op_type == "Cast":
            before = self._cast_target(node.input[0])
            return frozenset({before}) if before is not None else self._behind(tensor)
        if self._is_split(node):
            return frozenset({Precision.TF32})
        if node.op_type in SELECTING_OPS:
            return self._of_selection(node)
        return frozenset()

    def _behind(self, tensor: str) -> frozenset[Precision]:
        """8-bit origin of a typed or cast tensor: dequantized values that were cast or moved at most."""
        node = self.index.producer.get(tensor)
        if node is None:
            return frozenset()
        if node.op_type == "DequantizeLinear":
            kind = self._quantized_type(node)
            return frozenset({Precision.INT8} if kind in _INT8 else {Precision.FP8} if kind in _FP8 else ())
        return self.origins(node.input[0]) & _QUANTIZED if node.op_type in _MOVES | {"Cast"} else frozenset()

    def _of_selection(self, node: NodeProto) -> frozenset[Precision]:
        """What all float inputs of a selecting operator have; 8-bit origins survive only moves of a single tensor."""
        floats = [name for name in node.input if name and self.index.elem_type(name) in (0, TensorProto.FLOAT)]
        common = [self.origins(name) for name in floats]
        result = frozenset.intersection(*common) if common else frozenset()
        return result if node.op_type in _MOVES else result - _QUANTIZED

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
