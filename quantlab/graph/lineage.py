"""Which nodes of a graph the names that a runtime gives its layers stand for.

A runtime names what it executes after the nodes or tensors that it read, with endings of its own. Quantize, dequantize
and cast nodes are no layers here: each belongs to a node that computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from onnx import GraphProto, NodeProto

from quantlab.graph.index import GraphIndex

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
"""Operators that only change how a value is written."""

_ENDING = re.compile(r"_token_\d+$|_nchwc$|_nhwc$")


def name_of(node: NodeProto) -> str:
    """What a node is called: its name, else its first output."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


class Lineage:
    """The nodes of a graph, found by the names that runtimes make of theirs; subgraphs belong to their nodes.

    Attributes:
        index: Index of the graph.
        nodes: Its nodes, in graph order, which is topological.
    """

    __slots__ = ("_by_name", "_owner", "_positions", "index", "nodes")

    def __init__(self, graph: GraphProto) -> None:
        self.index = GraphIndex(graph)
        self.nodes: tuple[NodeProto, ...] = tuple(graph.node)
        self._positions = {id(node): i for i, node in enumerate(self.nodes)}
        self._by_name: dict[str, int] = {}
        self._owner: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            self._by_name.setdefault(name_of(node), i)
            owner = self._owner.get(node.input[0]) if node.op_type in CONVERSIONS and node.input else i
            if owner is not None:
                self._owner.update(dict.fromkeys(filter(None, node.output), owner))

    def position(self, name: str) -> int | None:
        """Position of the node of that name, endings of runtimes aside; None if there is none."""
        while (found := self._by_name.get(name)) is None:
            shorter = _ENDING.sub("", name)
            if shorter == name:
                return None
            name = shorter
        return found

    def place(self, node: NodeProto) -> int:
        """Position of one of the graph's nodes."""
        return self._positions[id(node)]

    def owner(self, tensor: str) -> int | None:
        """Position of the node that computes a tensor's value, before conversions; None for inputs and constants."""
        while (found := self._owner.get(tensor)) is None:
            shorter = _ENDING.sub("", tensor)
            if shorter == tensor:
                return None
            tensor = shorter
        return found

    def readers(self, tensor: str) -> tuple[int, ...]:
        """Positions of the nodes that compute with a tensor's value, behind conversions too; ascending."""
        found: set[int] = set()
        stack, seen = [tensor], {tensor}
        while stack:
            for node in self.index.consumers.get(stack.pop(), ()):
                if node.op_type not in CONVERSIONS:
                    found.add(self.place(node))
                    continue
                fresh = [name for name in node.output if name not in seen]
                seen.update(fresh)
                stack += fresh
        return tuple(sorted(found))

    def layers(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names of the nodes that compute, in graph order, that names of nodes or tensors stand for.

        Conversions and names that are not known are left out.
        """
        found = set()
        for name in names:
            position = self.position(name)
            if position is None:
                position = self.owner(name)
            if position is not None and self.nodes[position].op_type not in CONVERSIONS:
                found.add(position)
        return self.named(found)

    def around(self, name: str) -> tuple[str, ...]:
        """The node that a quantize, dequantize or cast node serves: see `served`; empty if it is not known."""
        position = self.position(name)
        served = None if position is None else self.served(position)
        return () if served is None else self.named({served})

    def served(self, position: int) -> int | None:
        """The node that a conversion belongs to.

        A quantize node belongs to the node that computes its input, others to the first that reads their output; where
        there is none on that side, to one on the other.
        """
        node = self.nodes[position]
        before = self.owner(node.input[0]) if node.input else None
        behind = next((reader for name in node.output for reader in self.readers(name)), None)
        first, second = (before, behind) if node.op_type == "QuantizeLinear" else (behind, before)
        return first if first is not None else second

    def named(self, positions: Iterable[int]) -> tuple[str, ...]:
        """Names of nodes, in graph order."""
        return tuple(name_of(self.nodes[position]) for position in sorted(positions))
