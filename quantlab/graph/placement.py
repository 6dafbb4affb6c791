"""Where Q/DQ pairs go: the inputs of which layers are quantized by a target's rules, and with which parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from onnx import NodeProto

from quantlab.calibrators.quantize import Parameters
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.existing import ExistingPairs
from quantlab.graph.index import GraphIndex
from quantlab.graph.layers import Layer, find_layers
from quantlab.graph.limits import reason_to_skip
from quantlab.graph.scales import Scales, moved_from, share_scales
from quantlab.graph.targets import SizeLimits, TargetProfile

_ACTIVATIONS = frozenset({"Relu", "Clip"})
_SUMS = frozenset({"Add", "Sum"})
_SCALING = frozenset({"Add", "Mul", "Sum"})

Edge = tuple[int, int]
"""Position of a node, and one of its input slots."""


@dataclass(slots=True)
class Placement:
    """What is quantized of a graph.

    Attributes:
        layers: Layers whose operands become 8-bit numbers, in graph order.
        kept: Names of layers whose operands all were 8-bit numbers already.
        skipped: Names of layers that a size limit of the target leaves out, with the reason.
        unranged: Names of layers whose input has no range.
        unsupported: Names of convolutions and products of a form that the target does not quantize.
        edges: Inputs that are read through a pair.
        outputs: Tensors that every consumer reads through a pair.
        parameters: Parameters of the tensors that get a pair.
    """

    layers: list[Layer] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unranged: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    edges: set[Edge] = field(default_factory=set)
    outputs: frozenset[str] = frozenset()
    parameters: dict[str, Parameters] = field(default_factory=dict)


def place_weights(
    index: GraphIndex, target: TargetProfile, excluded: Collection[str], pairs: ExistingPairs
) -> Placement:
    """Placement for quantized weights behind floating-point activations: every layer with a constant weight."""
    result = Placement()
    for layer in find_layers(index.graph, target):
        if layer.weight is None or layer.name in excluded:
            continue
        if is_dequantized(layer.node.input[layer.weight], index, pairs, target):
            result.kept.append(layer.name)
        else:
            result.layers.append(layer)
    return result


def place_pairs(
    index: GraphIndex,
    target: TargetProfile,
    limits: SizeLimits,
    scales: Scales,
    excluded: Collection[str],
    pairs: ExistingPairs,
) -> Placement:
    """Placement for quantized activations and weights, by the rules of a target.

    Args:
        index: Index of the graph, with inferred shapes.
        target: Rules.
        limits: Sizes of layers that the target leaves out.
        scales: Parameters by tensor.
        excluded: Names of layers that stay in floating point.
        pairs: Pairs that the graph holds already.
    """
    return _Placer(index, target, limits, scales, excluded, pairs).place()


def is_dequantized(tensor: str, index: GraphIndex, pairs: ExistingPairs, target: TargetProfile) -> bool:
    """Whether a tensor already holds dequantized values, also behind operators that only move them."""
    while tensor not in pairs.dequantized:
        producer = index.producer.get(tensor)
        if producer is None or producer.op_type not in target.shared_scale_ops or len(moved_from(producer)) != 1:
            return False
        tensor = producer.input[0]
    return True


class _Placer:
    """Decisions about one graph."""

    def __init__(
        self,
        index: GraphIndex,
        target: TargetProfile,
        limits: SizeLimits,
        scales: Scales,
        excluded: Collection[str],
        pairs: ExistingPairs,
    ) -> None:
        self.index, self.target, self.limits, self.scales = index, target, limits, scales
        self.excluded, self.pairs = excluded, pairs
        self.nodes = list(index.graph.node)
        self.depth = _depths(self.nodes)
        self.result = Placement()

    def place(self) -> Placement:
        layers = list(find_layers(self.index.graph, self.target))
        known = {layer.position for layer in layers}
        for position, node in enumerate(self.nodes):
            if node.op_type in WEIGHTED_OPS and position not in known:
                self._leave_out(Layer(position, node, 1))
        for layer in layers:
            if layer.name not in self.excluded:
                self._place_layer(layer)
        quantized = {layer.name for layer in self.result.layers} | set(self.result.kept)
        self._quantize_skips(quantized)
        self._quantize_joint()
        if self.target.output_ops:
            ending = (layer for layer in self.result.layers if layer.node.op_type in self.target.output_ops)
            self.result.outputs = self._output_tensors({layer.name for layer in ending})
        self.result.parameters = share_scales(
            self.result.parameters, self.index, self.target.shared_scale_ops, self.pairs.parameters
        )
        return self.result

    def _leave_out(self, layer: Layer) -> None:
        """Count a node that the target has no 8-bit form of: by a rule, as a product with a vector, or without one."""
        reason = reason_to_skip(layer, self.index, self.limits)
        if reason is None:
            self.result.unsupported.append(layer.name)
        elif layer.name not in self.excluded:
            self.result.skipped[layer.name] = reason

    def _place_layer(self, layer: Layer) -> None:
        if all(self._dequantized(name) for name in layer.node.input[:2]):
            self.result.kept.append(layer.name)
            return
        reason = reason_to_skip(layer, self.index, self.limits)
        if reason is not None:
            self.result.skipped[layer.name] = reason
        elif all(self._available(layer.node.input[slot]) for slot in layer.activations):
            for slot in layer.activations:
                self._want(layer.position, slot)
            self.result.layers.append(layer)
        else:
            self.result.unranged.append(layer.name)

    def _dequantized(self, tensor: str) -> bool:
        return is_dequantized(tensor, self.index, self.pairs, self.target)

    def _available(self, tensor: str) -> bool:
        """Whether a tensor can be read through a pair: one that is there, or one that can be made."""
        return self._dequantized(tensor) or tensor in self.pairs.behind or self._parameters(tensor) is not None

    def _parameters(self, tensor: str) -> Parameters | None:
        return self.result.parameters.get(tensor) or self.scales.of(tensor)

    def _want(self, position: int, slot: int) -> None:
        """Read an input through a pair, if it does not hold dequantized values already and a pair can be had."""
        tensor = self.nodes[position].input[slot]
        if self._dequantized(tensor):
            return
        if tensor not in self.pairs.behind:
            found = self._parameters(tensor)
            if found is None:
                return
            self.result.parameters[tensor] = found
        self.result.edges.add((position, slot))

    def _quantize_skips(self, quantized: Collection[str]) -> None:
        """Quantize the other input of each sum that a quantized layer feeds alone.

        Where both sides come from such layers, the one further from the model's inputs is computed last and fuses.
        """
        for position, node in enumerate(self.nodes):
            if node.op_type not in _SUMS or len(node.input) != 2 or self._has_constant(node):
                continue
            feeding = [slot for slot, name in enumerate(node.input) if self._ends_layer(name, quantized)]
            if feeding:
                fused = max(feeding, key=lambda slot: (self.depth.get(node.input[slot], 0), -slot))
                self._want(position, 1 - fused)

    def _ends_layer(self, tensor: str, quantized: Collection[str]) -> bool:
        """Whether a tensor is the output of a quantized layer that nothing else reads, scaled and shifted at most."""
        while self.index.uses(tensor) == 1:
            producer = self.index.producer.get(tensor)
            if producer is None:
                return False
            if producer.op_type in self.target.skip_ops:
                return producer.name in quantized
            if producer.op_type not in _SCALING or not self._has_constant(producer) or len(producer.input) != 2:
                return False
            tensor = next(name for name in producer.input if name not in self.index.initializers)
        return False

    def _has_constant(self, node: NodeProto) -> bool:
        return any(name in self.index.initializers for name in node.input)

    def _quantize_joint(self) -> None:
        """Quantize both sides of operators that have integer kernels, where every activation has a range."""
        floating = self._behind_products()
        for position, node in enumerate(self.nodes):
            if node.op_type not in self.target.joint_ops or any(name in floating for name in node.input):
                continue
            if any(name in self.index.initializers or not name for name in node.input):
                continue
            if node.output[0] in self.index.outputs or self._dequantized(node.input[0]):
                continue
            output = self._parameters(node.output[0])
            if output is None or not all(self._available(name) for name in node.input):
                continue
            for slot in range(len(node.input)):
                self._want(position, slot)
            if node.output[0] not in self.pairs.behind:
                self.result.parameters[node.output[0]] = output

    def _behind_products(self) -> set[str]:
        """Tensors computed from weighted operators whose output stays in floating point, up to the next other one."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type in self.target.output_ops:
                continue
            if node.op_type in WEIGHTED_OPS or any(name in found for name in node.input):
                found.update(node.output)
        return found

    def _output_tensors(self, quantized: Collection[str]) -> frozenset[str]:
        """Tensors at which a quantized layer ends: its output, or that of the Relu or Clip which follows alone."""
        ends = set()
        floating = self._behind_products()
        for node in self.nodes:
            if node.name not in quantized and (node.op_type not in self.target.joint_ops or node.output[0] in floating):
                continue
            tensor = node.output[0]
            consumers = self.index.consumers.get(tensor, [])
            if self.index.uses(tensor) == 1 and consumers and consumers[0].op_type in _ACTIVATIONS:
                self.result.parameters.pop(tensor, None)
                tensor = consumers[0].output[0]
            if tensor in self.index.outputs or tensor in self.pairs.behind or self._dequantized(tensor):
                continue
            found = self._parameters(tensor)
            if found is not None:
                self.result.parameters[tensor] = found
                ends.add(tensor)
        return frozenset(ends)


def _depths(nodes: Collection[NodeProto]) -> Mapping[str, int]:
    """Longest path from the graph's inputs to each tensor, in nodes."""
    depth: dict[str, int] = {}
    for node in nodes:
        behind = 1 + max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, behind))
    return depth
