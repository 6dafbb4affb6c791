"""What each node that ONNX Runtime executes computes of the model it was given.

ONNX Runtime's optimizers fuse, split and rename nodes and say nowhere what became of what. Found here is: names that
stayed or got an ending; outputs that kept their tensor's name; weights that only one node of the model reads; the scale
that a quantized node writes its output with, which belongs to one tensor of the model. Nodes of the model that nothing
names lie between those that something names: a value that exists in the executed graph ends a layer, others do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto

from quantlab.engines.layer_time import LayerKind
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.index import implicit_inputs
from quantlab.graph.lineage import CONVERSIONS, Lineage

_QUANTIZE = frozenset({"QuantizeLinear", "DequantizeLinear"})
_REFORMATS = frozenset({"ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost", "Cast"})
_BLOCKED = "_nchwc"
_PRODUCT = re.compile(r"Conv|MatMul|Gemm")
_WEIGHTS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8})
_OUTPUT_SCALE = {
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QGemm": 7,
    "QLinearGlobalAveragePool": 3,
    "QLinearAveragePool": 3,
    "QLinearReduceMean": 3,
    "QLinearLeakyRelu": 3,
    "QLinearSigmoid": 3,
    "QLinearSoftmax": 3,
    "QLinearConcat": 0,
}
"""Input slot of the output's scale, by operator (ONNX Runtime's ``ContribOperators.md`` and ONNX)."""


@dataclass(frozen=True, slots=True)
class ExecutedNode:
    """A node of the graph that ONNX Runtime runs.

    Attributes:
        name: Its name; empty for parts of expanded functions.
        operator: Its operator.
        kind: What it is for.
        sources: Names of the model's nodes that it computes, in graph order; of a conversion, those of the node that it
            serves.
    """

    name: str
    operator: str
    kind: LayerKind
    sources: tuple[str, ...]


def executed_nodes(optimized: GraphProto, source: GraphProto) -> tuple[ExecutedNode, ...]:
    """Map an optimized graph to the graph that it was made of.

    Every node of the source that computes with activations is found in at least one executed node, unless nothing at
    all is known of it and its neighbours. Cost: linear in the sizes of the graphs, but for readers of shared constants.

    Args:
        optimized: What ONNX Runtime wrote as its optimized model.
        source: The model that it was given.
    """
    return _Mapping(optimized, source).nodes()


class _Mapping:
    """One optimized graph and its source; ``claims`` are positions in the source by position in the optimized graph."""

    def __init__(self, optimized: GraphProto, source: GraphProto) -> None:
        self.source = Lineage(source)
        self.run = Lineage(optimized)
        self.kinds = [self._kind(node) for node in self.run.nodes]
        self.values: dict[str, int] = {}
        self.claims: list[set[int]] = [set() for _ in self.run.nodes]

    def nodes(self) -> tuple[ExecutedNode, ...]:
        self._name_values()
        self._claim()
        self._find_products()
        self._inherit()
        self._absorb()
        for i in range(len(self.claims)):
            if self.kinds[i] is not LayerKind.COMPUTE:
                self.claims[i] = self._served(i)
        return tuple(
            ExecutedNode(str(node.name), str(node.op_type), kind, self.source.named(claimed))
            for node, kind, claimed in zip(self.run.nodes, self.kinds, self.claims, strict=True)
        )

    def _kind(self, node: NodeProto) -> LayerKind:
        if node.op_type in _QUANTIZE:
            return LayerKind.QUANTIZE
        if node.op_type in _REFORMATS:
            return LayerKind.REFORMAT
        if node.op_type == "Transpose":  # ONNX Runtime puts its own in where a kernel wants channels last
            position = self.source.position(node.name)
            known = position is not None and self.source.nodes[position].op_type == "Transpose"
            return LayerKind.COMPUTE if known else LayerKind.REFORMAT
        return LayerKind.COMPUTE

    def _name_values(self) -> None:
        """Which node of the source computes the values of the optimized graph's tensors, as far as names tell."""
        for node, kind in zip(self.run.nodes, self.kinds, strict=True):
            for name in node.output:
                self._state(name, self.source.owner(name))
            if kind is LayerKind.QUANTIZE and node.input:
                position = self.source.position(node.name)
                twin = None if position is None else self.source.nodes[position]
                if twin is not None and twin.op_type == node.op_type:
                    self._state(node.input[0], self.source.owner(twin.input[0]))
        scales = self._scales()
        for node in self.run.nodes:
            slot = _OUTPUT_SCALE.get(node.op_type)
            if slot is not None and slot < len(node.input):
                self._state(node.output[0], scales.get(node.input[slot]))
        for node, kind in zip(reversed(self.run.nodes), reversed(self.kinds), strict=True):
            if kind is not LayerKind.COMPUTE and node.input and node.output:
                self._state(node.input[0], self.values.get(node.output[0]))

    def _state(self, tensor: str, owner: int | None) -> None:
        if tensor and owner is not None:
            self.values.setdefault(tensor, owner)

    def _scales(self) -> dict[str, int]:
        """The node whose output a scale quantizes, by name of the scale; scales of several are left out."""
        found: dict[str, set[int | None]] = {}
        for node in self.source.nodes:
            if node.op_type in _QUANTIZE and len(node.input) > 1:
                found.setdefault(node.input[1], set()).add(self.source.owner(node.input[0]))
        single = {scale: next(iter(owners)) for scale, owners in found.items() if len(owners) == 1}
        return {scale: owner for scale, owner in single.items() if owner is not None}

    def _claim(self) -> None:
        """What names, values and weights say each computing node covers."""
        for i, node in enumerate(self.run.nodes):
            if self.kinds[i] is not LayerKind.COMPUTE:
                continue
            self.claims[i].update(self._named(str(node.name)))
            self.claims[i].update(self.values[name] for name in node.output if name in self.values)
            for name in node.input:
                self.claims[i].update(self._only_reader(name))

    def _named(self, name: str) -> tuple[int, ...]:
        """The node that a name stands for: its own, or, of nodes in ONNX Runtime's blocked layout, of what it wrote.

        Such a node is named when it is made. Activations and sums that are fused into it afterwards do not rename it.
        """
        position = self.source.position(name) if name else None
        if position is None and name.endswith(_BLOCKED):
            position = self.source.owner(name.removesuffix(_BLOCKED))
        if position is None or self.source.nodes[position].op_type in CONVERSIONS:
            return ()
        return (position,)

    def _find_products(self) -> None:
        """A product that is named after the activation behind it computes the nearest one before that."""
        claimed = set().union(*self.claims) if self.claims else set()
        for i, node in enumerate(self.run.nodes):
            mine = self.claims[i]
            if not mine or not _PRODUCT.search(node.op_type) or any(self._is_product(other) for other in mine):
                continue
            frontier, seen = sorted(mine), set(mine)
            while frontier:
                near = [other for other in self._before(frontier.pop()) if other not in claimed | seen]
                seen.update(near)
                product = next((other for other in reversed(near) if self._is_product(other)), None)
                if product is not None:
                    mine.add(product)
                    claimed.add(product)
                    break
                frontier = sorted({*frontier, *near})

    def _is_product(self, position: int) -> bool:
        return self.source.nodes[position].op_type in WEIGHTED_OPS

    def _only_reader(self, name: str) -> tuple[int, ...]:
        """The node that reads a weight, if only one does."""
        tensor = self.source.index.initializers.get(name)
        if tensor is None or tensor.data_type not in _WEIGHTS or not any(dim > 1 for dim in tensor.dims):
            return ()
        readers = self.source.readers(name)
        return readers if len(readers) == 1 else ()

    def _inherit(self) -> None:
        """A node of which nothing is known, such as a part of a function, belongs to its reader, else to its maker."""
        for i in reversed(range(len(self.claims))):
            if not self.claims[i] and self.kinds[i] is LayerKind.COMPUTE:
                self.claims[i] = set(self._claims_of_reader(i))
        for i in range(len(self.claims)):
            if not self.claims[i] and self.kinds[i] is LayerKind.COMPUTE:
                self.claims[i] = set(self._claims_of_maker(i))

    def _absorb(self) -> None:
        """Give the source's nodes that nothing names to the layer before or behind them."""
        holders: dict[int, list[int]] = {}
        for i, claimed in enumerate(self.claims):
            if self.kinds[i] is LayerKind.COMPUTE:
                for position in claimed:
                    holders.setdefault(position, []).append(i)
        written = {
            self.values[name]
            for node, kind in zip(self.run.nodes, self.kinds, strict=True)
            if kind is LayerKind.COMPUTE
            for name in node.output
            if name in self.values
        }
        open_nodes = self._computing()
        before = {i: self._before(i) for i in open_nodes}
        for i in open_nodes:
            if i not in holders and not self._is_product(i):
                unfinished = [maker for maker in before[i] if maker not in written and maker in holders]
                self._give(i, unfinished[-1:], holders)
        for i in reversed(open_nodes):
            if i not in holders:
                outputs = self.source.nodes[i].output
                behind = [reader for name in outputs for reader in self.source.readers(name) if reader in holders]
                self._give(i, behind[:1], holders)
        for i in open_nodes:
            if i not in holders:
                self._give(i, [maker for maker in before[i] if maker in holders][-1:], holders)

    def _computing(self) -> list[int]:
        """Positions of the source's nodes that compute with activations; what is made of constants alone is folded."""
        live = set(self.source.index.inputs)
        found = []
        for i, node in enumerate(self.source.nodes):
            if live.intersection((*node.input, *implicit_inputs(node))):
                live.update(node.output)
                if node.op_type not in CONVERSIONS:
                    found.append(i)
        return found

    def _before(self, position: int) -> list[int]:
        owners = {self.source.owner(name) for name in self.source.nodes[position].input if name}
        return sorted(owner for owner in owners if owner is not None)

    def _give(self, position: int, neighbour: list[int], holders: dict[int, list[int]]) -> None:
        for other in neighbour:
            holders[position] = [holders[other][-1]]
            self.claims[holders[position][0]].add(position)

    def _served(self, i: int) -> set[int]:
        """As `Lineage.served`, along the executed graph."""
        sides = (self._claims_of_reader, self._claims_of_maker)
        first, second = reversed(sides) if self.run.nodes[i].op_type == "QuantizeLinear" else sides
        return set(first(i) or second(i))

    def _claims_of_reader(self, i: int) -> set[int]:
        """Claims of the first computing node behind a node that has any."""
        return self._search(i, forward=True)

    def _claims_of_maker(self, i: int) -> set[int]:
        """Claims of the last computing node before a node that has any."""
        return self._search(i, forward=False)

    def _search(self, i: int, *, forward: bool) -> set[int]:
        """The claims of the nearest node in one direction, past conversions."""
        level, seen = [i], {i}
        while level:
            near = {other for j in level for other in (self._after(j) if forward else self._makers(j))} - seen
            seen |= near
            computing = sorted(j for j in near if self.kinds[j] is LayerKind.COMPUTE and self.claims[j])
            if computing:
                return self.claims[computing[0] if forward else computing[-1]]
            level = sorted(j for j in near if self.kinds[j] is not LayerKind.COMPUTE)
        return set()

    def _after(self, i: int) -> list[int]:
        consumers = self.run.index.consumers
        return [self.run.place(node) for name in self.run.nodes[i].output for node in consumers.get(name, ())]

    def _makers(self, i: int) -> list[int]:
        producer = self.run.index.producer
        return [self.run.place(producer[name]) for name in self.run.nodes[i].input if name in producer]
