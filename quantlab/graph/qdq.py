"""Q/DQ: write a calibration table into a graph as QuantizeLinear/DequantizeLinear pairs.

Weights become INT8 initializers behind a per-channel DequantizeLinear; every quantized activation gets one
QuantizeLinear -> DequantizeLinear pair that all its quantized consumers share, so no tensor is quantized twice.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantlab.calibrators.quantize import INT8_WEIGHT, SMALLEST_SCALE, Parameters, parameters, quantize, weight_scales
from quantlab.calibrators.table import CalibrationTable, TensorEntry
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import near_match
from quantlab.errors import ConfigError, EngineBuildError, ModelError
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, has_qdq, tensor_array
from quantlab.graph.targets import BiasType, TargetProfile

_ACTIVATIONS = frozenset({"Relu", "Clip"})
_INT32_LIMIT = float(2**30)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A Q/DQ model and what was done.

    Attributes:
        proto: The quantized model.
        layers: Names of the weighted layers that were quantized.
        excluded: Names of the weighted layers that the caller kept in floating point.
        tensors: Parameters of every quantized activation by tensor name.
        degradations: Weighted layers that stayed in floating point though nobody excluded them.
    """

    proto: ModelProto
    layers: tuple[str, ...]
    excluded: tuple[str, ...]
    tensors: Mapping[str, Parameters]
    degradations: tuple[Degradation, ...]


def quantize_model(
    model: Model, table: CalibrationTable, target: TargetProfile, exclude: Collection[str] = ()
) -> Quantized:
    """Write the ranges of ``table``'s method into ``model`` by the rules of ``target``.

    Args:
        model: The prepared model whose tensors the table names.
        table: Ranges.
        target: Rules.
        exclude: Names or glob patterns of weighted nodes to keep in floating point.

    Raises:
        ModelError: If the model already holds Q/DQ nodes.
        ConfigError: If an exclusion matches no weighted node.
        EngineBuildError: If no layer could be quantized.
    """
    if has_qdq(model.proto):
        raise ModelError(
            "the model already holds QuantizeLinear or DequantizeLinear nodes",
            expected="a floating-point model",
            hint="quantize the model it was made from",
        )
    return _Writer(model, table, target, exclude).write()


def constant_weight(node: NodeProto, initializers: Mapping[str, TensorProto]) -> bool:
    """Whether the node's second input is a constant weight of two or more axes."""
    weight = initializers.get(node.input[1]) if len(node.input) > 1 else None
    return weight is not None and len(weight.dims) >= 2


def excluded_layers(graph: GraphProto, target: TargetProfile, patterns: Collection[str]) -> frozenset[str]:
    """Names of the quantizable layers that the names or patterns select.

    Raises:
        ConfigError: If one selects none.
    """
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    names = [
        node.name for node in graph.node if node.op_type in target.weighted_ops and constant_weight(node, initializers)
    ]
    excluded: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern) or [name for name in names if name == pattern]
        if not matched:
            near = near_match(pattern, names)
            raise ConfigError(
                f"nothing to exclude: no quantizable layer is named {pattern!r}",
                expected=", ".join(names[:6]) + (", ..." if len(names) > 6 else ""),
                hint=f"did you mean {near!r}?" if near else None,
            )
        excluded.update(matched)
    return frozenset(excluded)


class _Writer:
    """One pass over a graph: decide which edges are quantized, then rewrite them."""

    def __init__(self, model: Model, table: CalibrationTable, target: TargetProfile, exclude: Collection[str]) -> None:
        self.model, self.table, self.target = model, table, target
        self.proto = ModelProto()
        self.proto.CopyFrom(model.proto)
        self.graph = self.proto.graph
        self.index = GraphIndex(self.graph)
        self.entries = table.entries()
        self.outputs = {value.name for value in self.graph.output}
        self.initializers = self.index.initializers
        self.excluded = excluded_layers(self.graph, target, exclude)
        self.parameters: dict[str, Parameters] = {}
        self.edges: set[tuple[int, int]] = set()
        self.weights: dict[tuple[str, int], tuple[str, NDArray[np.float32]]] = {}
        self.before: dict[int, list[NodeProto]] = {}
        self.unranged: list[str] = []
        self.unweighted: list[str] = []

    def _weighted(self, node: NodeProto) -> bool:
        return node.op_type in self.target.weighted_ops and constant_weight(node, self.initializers)

    def _activation(self, tensor: str) -> Parameters | None:
        """Parameters of an activation, or None if the table has no usable range for it."""
        entry: TensorEntry | None = self.entries.get(tensor)
        if entry is None or (entry.minimum == 0.0 and entry.maximum == 0.0):
            return None
        by_method = entry.ranges[self.target.activation.name]
        if self.table.method not in by_method:
            raise ConfigError(
                f"the calibration table has no {self.table.method} ranges for tensor {tensor!r}",
                expected="one of " + ", ".join(by_method),
            )
        chosen = by_method[self.table.method]
        return parameters(chosen.low, chosen.high, self.target.activation)

    def _want(self, position: int, slot: int) -> bool:
        """Mark input ``slot`` of node ``position`` as quantized if its tensor has a range."""
        tensor = self.graph.node[position].input[slot]
        found = self.parameters.get(tensor) or self._activation(tensor)
        if found is None:
            return False
        self.parameters[tensor] = found
        self.edges.add((position, slot))
        return True

    def write(self) -> Quantized:
        layers: list[str] = []
        for position, node in enumerate(self.graph.node):
            if not self._weighted(node) or node.name in self.excluded:
                if node.op_type in WEIGHTED_OPS and not self._weighted(node):
                    self.unweighted.append(node.name)
                continue
            if self._want(position, 0):
                self._quantize_weight(position)
                layers.append(node.name)
            else:
                self.unranged.append(node.name)
        if not layers:
            raise EngineBuildError(
                "no layer could be quantized",
                got=f"{len(self.unranged)} layers without a range, {len(self.excluded)} excluded",
                expected=f"at least one {' / '.join(sorted(self.target.weighted_ops))} with a constant weight",
            )
        quantized = set(layers)
        if self.target.quantize_skip:
            self._quantize_skips(quantized)
        if self.target.joint_ops:
            self._quantize_joint()
        outputs = self._output_tensors(quantized) if self.target.quantize_outputs else frozenset()
        self._rewrite(outputs)
        return Quantized(
            self.proto, tuple(layers), tuple(sorted(self.excluded)), self.parameters, tuple(self._left_out())
        )

    def _left_out(self) -> Iterator[Degradation]:
        """Layers that nobody asked to keep in floating point, and that stayed there."""
        if self.unranged:
            message = "layers stayed in floating point: their input had no range"
            yield Degradation.of(DegradationCode.NOT_QUANTIZED, message, self.unranged)
        if self.unweighted:
            message = f"layers stayed in floating point: target {self.target.name} quantizes " + (
                "/".join(sorted(self.target.weighted_ops)) + " with a constant weight as second input"
            )
            yield Degradation.of(DegradationCode.NOT_QUANTIZED, message, self.unweighted)

    def _quantize_skips(self, quantized: Collection[str]) -> None:
        """Quantize the other input of each Add that a quantized layer feeds alone."""
        for position, node in enumerate(self.graph.node):
            if node.op_type != "Add" or any(name in self.initializers for name in node.input):
                continue
            feeding = [slot for slot, name in enumerate(node.input) if self._fed_alone(name, quantized)]
            if feeding:
                self._want(position, 1 - feeding[0])

    def _fed_alone(self, tensor: str, quantized: Collection[str]) -> bool:
        producer = self.index.producer.get(tensor)
        alone = self.index.uses(tensor) == 1
        return producer is not None and producer.name in quantized and alone

    def _quantize_joint(self) -> None:
        """Quantize both sides of operators that have integer kernels, where every activation has a range."""
        for position, node in enumerate(self.graph.node):
            if node.op_type not in self.target.joint_ops:
                continue
            if any(name in self.initializers or not name for name in node.input):
                continue
            sides = [*node.input, node.output[0]]
            found = {name: self.parameters.get(name) or self._activation(name) for name in sides}
            if node.output[0] in self.outputs or any(value is None for value in found.values()):
                continue
            for slot in range(len(node.input)):
                self._want(position, slot)
            self.parameters[node.output[0]] = found[node.output[0]]  # type: ignore[assignment]

    def _output_tensors(self, quantized: Collection[str]) -> frozenset[str]:
        """Tensors at which a quantized layer ends: its output, or that of the Relu or Clip which follows alone."""
        ends = set()
        for node in self.graph.node:
            if node.name not in quantized and node.op_type not in self.target.joint_ops:
                continue
            tensor = node.output[0]
            consumers = self.index.consumers.get(tensor, [])
            if self.index.uses(tensor) == 1 and consumers and consumers[0].op_type in _ACTIVATIONS:
                self.parameters.pop(tensor, None)
                tensor = consumers[0].output[0]
            if tensor in self.outputs:
                continue
            found = self.parameters.get(tensor) or self._activation(tensor)
            if found is not None:
                self.parameters[tensor] = found
                ends.add(tensor)
        return frozenset(ends)

    def _quantize_weight(self, position: int) -> None:
        node = self.graph.node[position]
        axis = weight_axis(node, self._rank(node.input[1]))
        name = node.input[1]
        if (name, axis) not in self.weights:
            weight = self._values(name)
            others = tuple(i for i in range(weight.ndim) if i != axis)
            dead = np.asarray(np.all(weight == 0.0, axis=others))
            scales = self._scales_for_biases(weight_scales(weight, axis), dead, name)
            shape = [1] * weight.ndim
            shape[axis] = -1
            codes = quantize(weight, scales.reshape(shape), 0, INT8_WEIGHT)
            self.weights[name, axis] = (self._dequantized(position, f"{name}_int8", codes, scales, axis), scales)
        bias = self._int32_bias(node)
        node.input[1], scales = self.weights[name, axis]
        if bias is not None:
            self._quantize_bias(position, bias, scales)

    def _values(self, initializer: str) -> NDArray[np.float32]:
        return np.asarray(tensor_array(self.model, self.index.initializers[initializer]), np.float32)

    def _rank(self, initializer: str) -> int:
        return len(self.index.initializers[initializer].dims)

    def _int32_bias(self, node: NodeProto) -> NDArray[np.float32] | None:
        """The bias, if the target wants it as INT32 and the operator adds it unscaled."""
        if self.target.bias is not BiasType.INT32 or node.op_type == "MatMul" or len(node.input) < 3:
            return None
        scaled = any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute)
        if scaled or node.input[2] not in self.initializers:
            return None
        bias = self._values(node.input[2])
        channels = self.index.initializers[node.input[1]].dims[weight_axis(node, self._rank(node.input[1]))]
        return bias if bias.shape == (channels,) else None

    def _scales_for_biases(
        self, scales: NDArray[np.float32], dead: NDArray[np.bool_], weight: str
    ) -> NDArray[np.float32]:
        """Widen the scales of nearly dead channels until the biases of all layers that share the weight fit INT32.

        The scale of dead channels is free, so it becomes the one that loses nothing of their biases.
        """
        needed = np.zeros(scales.shape)
        for node in self.index.consumers[weight]:
            if not self._weighted(node) or node.input[1] != weight or node.name in self.excluded:
                continue
            bias, chosen = self._int32_bias(node), self._activation(node.input[0])
            if bias is not None and chosen is not None and bias.shape == scales.shape:
                needed = np.maximum(needed, np.abs(bias) / (_INT32_LIMIT * chosen.scale))
        free = dead & (needed > 0)
        widened = np.where(free, np.maximum(needed, SMALLEST_SCALE), np.maximum(scales, needed))
        return np.asarray(widened, np.float32)

    def _quantize_bias(self, position: int, bias: NDArray[np.float32], scales: NDArray[np.float32]) -> None:
        node = self.graph.node[position]
        combined = np.maximum(scales.astype(np.float64) * self.parameters[node.input[0]].scale, SMALLEST_SCALE)
        combined = np.broadcast_to(combined, bias.shape).astype(np.float32)
        codes = np.clip(np.rint(bias / combined.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        node.input[2] = self._dequantized(position, f"{node.input[2]}_int32", codes, combined, 0)

    def _dequantized(
        self, position: int, base: str, codes: NDArray[np.generic], scales: NDArray[np.float32], axis: int
    ) -> str:
        """Store constant codes and put a DequantizeLinear with zero-points 0 before a node; the name of its output."""
        stored = self._constant(base, codes)
        scale = self._constant(f"{base}_scale", scales)
        zero = self._constant(f"{base}_zero", np.zeros(scales.shape, codes.dtype))
        output = self.index.fresh(f"{base}_dq")
        node = helper.make_node("DequantizeLinear", [stored, scale, zero], [output], name=output, axis=axis)
        self.before.setdefault(position, []).append(node)
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Store a constant under this name, or one like it that is free."""
        name = self.index.fresh(name)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def _rewrite(self, outputs: Collection[str]) -> None:
        """Insert the pairs right after each tensor's producer and point the quantized edges at them."""
        pairs: dict[str, list[NodeProto]] = {}
        quantized_edges = {self.graph.node[position].input[slot] for position, slot in self.edges}
        for tensor in sorted(quantized_edges | set(outputs)):
            pairs[tensor] = self._pair(tensor, self.parameters[tensor])
        self.parameters = {name: self.parameters[name] for name in sorted(pairs)}
        for position, node in enumerate(self.graph.node):
            for slot, name in enumerate(node.input):
                if (position, slot) in self.edges or name in outputs:
                    node.input[slot] = pairs[name][-1].output[0] if name in pairs else name
        nodes: list[NodeProto] = []
        for value in self.graph.input:
            nodes += pairs.pop(value.name, [])
        for position, node in enumerate(self.graph.node):
            nodes += [*self.before.get(position, []), node]
            for name in node.output:
                nodes += pairs.pop(name, [])
        if pairs:
            raise AssertionError(f"no producer of {sorted(pairs)}")
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._drop_unused()

    def _pair(self, tensor: str, chosen: Parameters) -> list[NodeProto]:
        base = self.index.fresh(f"{tensor}_quantized")
        dtype = self.target.activation.dtype
        scale = self._constant(f"{base}_scale", np.array(chosen.scale, np.float32))
        zero = self._constant(f"{base}_zero", np.array(chosen.zero_point, dtype))
        output = self.index.fresh(f"{base}_dq")
        quantize = helper.make_node("QuantizeLinear", [tensor, scale, zero], [base], name=self.index.fresh(f"{base}_q"))
        return [quantize, helper.make_node("DequantizeLinear", [base, scale, zero], [output], name=output)]

    def _drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input} | self.outputs
        for node in self.graph.node:
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    used |= {name for inner in graph.node for name in inner.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]


def weight_axis(node: NodeProto, rank: int) -> int:
    """Axis of a weight's output channels.

    Conv: 0; ConvTranspose: 1; Gemm: 0 with ``transB``, else 1; MatMul: the last.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else 1
    return rank - 1


def check_quantized(proto: ModelProto) -> None:
    """Check a written model.

    Raises:
        EngineBuildError: If onnx refuses it: a fault of the writer, never of the user's.
    """
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as cause:
        raise EngineBuildError("the Q/DQ writer made an invalid model", got=str(cause)) from cause
