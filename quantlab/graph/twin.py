"""A floating-point graph with a twin beside each quantized part of it, to see what each part alone does.

The twin of a tensor is its Q/DQ pair applied to the exact value; the twin of a layer reads the twins of its inputs. All
hang on the floating-point graph, so that nothing adds up. Tensors of the two graphs are matched by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from quantlab.errors import EngineMismatch, ModelError
from quantlab.graph.checks import WEIGHTED_OPS, has_qdq, opset_of
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.opset import raise_opset
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


class PartKind(StrEnum):
    """What a part of the graph is."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    BIAS = "bias"
    LAYER = "layer"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Part:
    """A quantized tensor, a layer that reads one, or an output of the graph.

    Attributes:
        kind: What it is.
        tensor: Its name in the floating-point graph; of a layer, its output's.
        layer: Node that makes it; of weights and biases, the node that reads it.
        op_type: Operator of that node; empty for inputs of the graph.
        raw: Its name in the quantized graph, before its own pair.
        dequantized: Its name behind the pair; the raw one for layers and outputs.
        twin: Its twin's name; None where there is none.
        sources: Quantized activations that it is computed from, by name, nearest first.
        via: The weighted layer nearest to it on the way from there, else the node that makes it.
        n_values: Elements for one sample, as far as the shape is known.
    """

    kind: PartKind
    tensor: str
    layer: str
    op_type: str
    raw: str
    dequantized: str
    twin: str | None
    sources: tuple[str, ...]
    via: str
    n_values: int


@dataclass(frozen=True, slots=True, eq=False)
class TwinGraph:
    """Both graphs and what to look at in them.

    Attributes:
        model: The floating-point graph with the twins in it.
        quantized: The quantized graph.
        parts: Activations, layers and outputs, in graph order.
        stored: Weights and biases, in graph order, with the exact values' initializer as `Part.tensor`.
        unmatched: Quantized tensors that have no counterpart, by name.
    """

    model: Model
    quantized: Model
    parts: tuple[Part, ...]
    stored: tuple[Part, ...]
    unmatched: tuple[str, ...]


def twin_graph(original: Model, quantized: Model) -> TwinGraph:
    """Match two graphs and add the twins.

    Raises:
        ModelError: If the quantized graph holds no pairs, the original some, or the operator sets cannot be made equal.
        EngineMismatch: If no quantized tensor has a counterpart.
    """
    if not has_qdq(quantized.proto):
        raise ModelError(
            "the quantized model holds no QuantizeLinear or DequantizeLinear nodes",
            expected="a Q/DQ model", hint="name a variant for onnxruntime, or the .qdq.onnx file",
        )  # fmt: skip
    if has_qdq(original.proto):
        raise ModelError("the floating-point model holds Q/DQ nodes itself", expected="the model before quantization")
    return _Twins(original, quantized).build()


class _Twins:
    """The graph in the making."""

    def __init__(self, original: Model, quantized: Model) -> None:
        opset = opset_of(quantized.proto)
        if opset_of(original.proto) > opset:
            raise ModelError(
                "the floating-point model has a later operator set than the quantized one",
                got=f"opset {opset_of(original.proto)}", expected=f"at most {opset}",
                hint="name the model that was quantized",
            )  # fmt: skip
        self.original, self.quantized = original, quantized
        self.proto = ModelProto()
        self.proto.CopyFrom(raise_opset(original.proto, opset, quantized.proto.ir_version))
        self.exact = GraphIndex(self.proto.graph, typed_graph(self.proto))
        self.graph = GraphIndex(quantized.proto.graph)
        self.constants = {
            node.output[0]: node for node in quantized.proto.graph.node if node.op_type == "Constant" and not node.input
        }
        self.known = set(self.exact.inputs) | set(self.exact.producer)
        self.twins: dict[str, str] = {}
        self.activations: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.copied: dict[str, str] = {}

    def build(self) -> TwinGraph:
        parts: list[Part] = []
        stored: list[Part] = []
        unmatched: list[str] = []
        for node in self.graph.topological():
            if node.op_type == "QuantizeLinear":
                continue
            if node.op_type != "DequantizeLinear":
                parts += self._layer(node)
                continue
            quantize = self._pair_of(node)
            if quantize is None or self._is_constant(quantize.input[0]):
                found = self._stored(node, quantize)
                stored += [found] if found else []
            else:
                found = self._activation(quantize, node)
                parts += [found] if found else []
            if found is None:
                unmatched.append(quantize.input[0] if quantize is not None else node.input[0])
        if not self.activations and (unmatched or not stored):
            raise EngineMismatch(
                "no quantized tensor of one model is in the other",
                got=", ".join(unmatched[:3]) or "none",
                expected="tensors of the same names in both",
                hint="name the model that was quantized; a prepared graph has other names than the file",
            )
        parts += [part for name in self.graph.outputs if (part := self._output(name)) is not None]
        imports = {entry.domain for entry in self.proto.opset_import}
        self.proto.opset_import.extend(e for e in self.quantized.proto.opset_import if e.domain not in imports)
        model = self.original.with_proto(self.proto)
        return TwinGraph(model, self.quantized, tuple(parts), tuple(stored), tuple(unmatched))

    def _pair_of(self, dequantize: NodeProto) -> NodeProto | None:
        producer = self.graph.producer.get(dequantize.input[0])
        return producer if producer is not None and producer.op_type == "QuantizeLinear" else None

    def _is_constant(self, name: str) -> bool:
        return name in self.graph.initializers or name in self.constants

    def _value(self, name: str) -> NDArray[np.generic]:
        if name in self.graph.initializers:
            return np.asarray(tensor_array(self.quantized, self.graph.initializers[name]))
        (value,) = (a.t for a in self.constants[name].attribute if a.name == "value")
        return np.asarray(read_tensor(value, self.quantized.data_folder))

    def _copy_constant(self, name: str) -> str:
        """Give the twins a constant of the quantized graph."""
        if name not in self.copied:
            self.copied[name] = self.exact.fresh(f"twin/{name}")
            self.proto.graph.initializer.append(numpy_helper.from_array(self._value(name), self.copied[name]))
        return self.copied[name]

    def _add(self, node: NodeProto, inputs: Sequence[str]) -> str:
        """Add the twin of a node; the name of its first output."""
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name = self.exact.fresh(f"twin/{node.name or node.output[0]}")
        twin.input[:] = inputs
        twin.output[:] = [self.exact.fresh(f"twin/{name}") if name else "" for name in node.output]
        self.proto.graph.node.append(twin)
        return str(twin.output[0])

    def _parameters(self, node: NodeProto) -> list[str] | None:
        """Scale and zero-point among the twins; None if one is computed."""
        names = list(node.input[1:])
        if any(name and not self._is_constant(name) for name in names):
            return None
        return [self._copy_constant(name) if name else "" for name in names]

    def _activation(self, quantize: NodeProto, dequantize: NodeProto) -> Part | None:
        raw, behind = quantize.input[0], dequantize.output[0]
        name = raw if raw in self.known else behind if behind in self.known else None
        first, second = self._parameters(quantize), self._parameters(dequantize)
        if name is None or first is None or second is None:
            return None
        self.aliases[raw] = name
        sources, via = self._upstream(raw)
        codes = self._add(quantize, [name, *first])
        self.twins[behind] = self._add(dequantize, [codes, *second])
        self.activations[behind] = name
        producer = self.exact.producer.get(name)
        layer, op_type = (_name(producer), producer.op_type) if producer is not None else (name, "")
        return Part(
            PartKind.ACTIVATION, name, layer, op_type, raw, behind, self.twins[behind], sources, via or layer,
            self._size(name),
        )  # fmt: skip

    def _stored(self, dequantize: NodeProto, quantize: NodeProto | None) -> Part | None:
        behind = dequantize.output[0]
        constants = [*dequantize.input[1:], *(quantize.input if quantize is not None else dequantize.input[:1])]
        if any(name and not self._is_constant(name) for name in constants):
            return None
        first = self._copy_constant(quantize.input[0] if quantize is not None else dequantize.input[0])
        if quantize is not None:
            first = self._add(quantize, [first, *(self._copy_constant(name) for name in quantize.input[1:])])
        rest = [self._copy_constant(name) if name else "" for name in dequantize.input[1:]]
        self.twins[behind] = self._add(dequantize, [first, *rest])
        for reader in self.graph.consumers.get(behind, ()):
            slot = list(reader.input).index(behind) if behind in reader.input else -1
            exact = self.exact.producer.get(self._exact_name(reader.output[0]))
            if exact is None or exact.op_type != reader.op_type or not 0 <= slot < len(exact.input):
                continue
            stored = self.exact.initializers.get(exact.input[slot])
            if stored is not None:
                kind = PartKind.BIAS if slot == 2 else PartKind.WEIGHT
                size = int(np.prod(stored.dims, dtype=np.int64))
                layer = _name(exact)
                return Part(
                    kind, stored.name, layer, exact.op_type, dequantize.input[0], behind, self.twins[behind], (),
                    layer, size,
                )  # fmt: skip
        return None

    def _exact_name(self, raw: str) -> str:
        """Name in the floating-point graph of what a node of the quantized one makes, renamed for its pair or not."""
        if raw in self.known:
            return raw
        for quantize in self.graph.consumers.get(raw, ()):
            if quantize.op_type == "QuantizeLinear":
                behind = [node.output[0] for node in self.graph.consumers.get(quantize.output[0], ())]
                if behind and behind[0] in self.known:
                    return str(behind[0])
        return raw

    def _layer(self, node: NodeProto) -> Iterator[Part]:
        """The twin of a node that reads a dequantized tensor."""
        if not node.output or not any(name in self.twins for name in node.input) or any(subgraphs(node)):
            return
        output = self._exact_name(node.output[0])
        if output not in self.exact.producer:
            return
        inputs = []
        for name in node.input:
            if name in self.twins:
                inputs.append(self.twins[name])
            elif not name or (name in self.known and not self._is_constant(name)):
                inputs.append(name)
            elif self._is_constant(name):
                inputs.append(self._copy_constant(name))
            else:
                return
        sources, _ = self._upstream(node.output[0])
        yield Part(
            PartKind.LAYER, output, _name(node), node.op_type, node.output[0], node.output[0],
            self._add(node, inputs), sources, _name(node), self._size(output),
        )  # fmt: skip

    def _output(self, name: str) -> Part | None:
        if name not in self.exact.outputs or name not in self.exact.producer or name in self.activations:
            return None
        sources, via = self._upstream(name)
        producer = self.exact.producer[name]
        return Part(
            PartKind.OUTPUT, name, _name(producer), producer.op_type, name, name, None, sources,
            via or _name(producer), self._size(name),
        )  # fmt: skip

    def _upstream(self, raw: str) -> tuple[tuple[str, ...], str]:
        """The nearest quantized activations that a tensor is computed from, and the last weighted layer since."""
        sources: dict[str, None] = {}
        via = ""
        queue, seen = [raw], {raw}
        while queue:
            name = queue.pop(0)
            if name in self.activations:
                sources[self.activations[name]] = None
                continue
            node = self.graph.producer.get(name)
            if node is None or (node.op_type in _PAIR and self._is_constant(node.input[0])):
                continue
            if node.op_type in WEIGHTED_OPS and not via:
                via = _name(node)
            fresh = [source for source in node.input if source and source not in seen]
            seen.update(fresh)
            queue += fresh
        return tuple(sources), via

    def _size(self, name: str) -> int:
        shape = self.exact.shape(name) or ()
        return int(np.prod([dim if isinstance(dim, int) else 1 for dim in shape], dtype=np.int64))


def stored_model(twins: TwinGraph, part: Part) -> ModelProto:
    """A model without inputs that gives the twin of a weight or bias.

    Args:
        twins: The graph.
        part: One of `TwinGraph.stored`.
    """
    index = GraphIndex(twins.model.proto.graph)
    assert part.twin is not None
    nodes: list[NodeProto] = []
    name = part.twin
    while name in index.producer:
        nodes.insert(0, index.producer[name])
        name = nodes[0].input[0]
    needed = {source for node in nodes for source in node.input}
    kept = [tensor for tensor in twins.model.proto.graph.initializer if tensor.name in needed]
    value = helper.make_tensor_value_info(part.twin, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "stored", [], [value], kept)
    return helper.make_model(
        graph, opset_imports=twins.model.proto.opset_import, ir_version=twins.model.proto.ir_version
    )


def _name(node: NodeProto) -> str:
    return str(node.name or node.output[0])
