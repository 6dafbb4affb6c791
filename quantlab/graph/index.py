"""Who makes and who uses each tensor of a graph."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from quantlab.errors import ModelError
from quantlab.graph.tensors import subgraphs


def implicit_inputs(node: NodeProto) -> tuple[str, ...]:
    """Tensors of the outer graph that a node's subgraphs use; empty for ordinary nodes."""
    names: dict[str, None] = {}
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {output for inner in graph.node for output in inner.output}
        used = [name for inner in graph.node for name in (*inner.input, *implicit_inputs(inner))]
        used += [value.name for value in graph.output]
        names.update(dict.fromkeys(name for name in used if name and name not in own))
    return tuple(names)


class GraphIndex:
    """Producers, consumers, initializers and inferred types of one graph, at the moment it was made.

    Types and shapes come from the graph's value information, and from another graph's if one is given (an inferred
    copy). The index is a snapshot: after changing the graph, make another. Making one is linear in the number of nodes.

    Attributes:
        graph: The graph.
        producer: Node that makes a tensor, by tensor name; graph inputs and initializers have none.
        consumers: Nodes that use a tensor, in graph order, once per use, by tensor name. Nodes whose subgraphs use it
            are among them.
        initializers: Stored tensors by name.
        inputs: Names of the graph's inputs that are not stored.
        outputs: Names of the graph's outputs, in order.
    """

    __slots__ = ("_counters", "_names", "_types", "consumers", "graph", "initializers", "inputs", "outputs", "producer")

    def __init__(self, graph: GraphProto, inferred: GraphProto | None = None) -> None:
        self.graph = graph
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs: tuple[str, ...] = tuple(value.name for value in graph.input if value.name not in self.initializers)
        self.outputs: tuple[str, ...] = tuple(value.name for value in graph.output)
        self._names: set[str] = set(self.initializers) | set(self.inputs) | set(self.outputs)
        self._counters: dict[str, int] = {}
        for node in graph.node:
            self._names.add(node.name)
            for name in node.output:
                if name:
                    self.producer[name] = node
                    self._names.add(name)
            for name in (*node.input, *implicit_inputs(node)):
                if name:
                    self.consumers.setdefault(name, []).append(node)
                    self._names.add(name)
            for inner in subgraphs(node):
                self._names.update(_all_names(inner))
        self._types: dict[str, TypeProto] = {}
        further = (*inferred.value_info, *inferred.output, *inferred.input) if inferred is not None else ()
        values: Iterable[ValueInfoProto] = (*further, *graph.value_info, *graph.output, *graph.input)
        for value in values:
            if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
                self._types[value.name] = value.type

    def uses(self, tensor: str) -> int:
        """How often a tensor is used: by nodes, and as a graph output."""
        return len(self.consumers.get(tensor, ())) + self.outputs.count(tensor)

    def elem_type(self, tensor: str) -> int:
        """Element type (``TensorProto.DataType``) of a tensor; ``UNDEFINED`` (0) where inference gave none."""
        if tensor in self.initializers:
            return int(self.initializers[tensor].data_type)
        kind = self._types.get(tensor)
        return int(kind.tensor_type.elem_type) if kind is not None else 0

    def shape(self, tensor: str) -> tuple[int | str | None, ...] | None:
        """Shape of a tensor: numbers, symbolic names, None for unknown; None if not even the rank is known."""
        if tensor in self.initializers:
            return tuple(self.initializers[tensor].dims)
        kind = self._types.get(tensor)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None)
            for dim in kind.tensor_type.shape.dim
        )

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor is known to be float32."""
        return self.elem_type(tensor) == TensorProto.FLOAT

    def fresh(self, base: str) -> str:
        """A name that no tensor or node has: ``base`` itself if free, else with a number; it is taken from then on."""
        name = base
        while not name or name in self._names:
            self._counters[base] = self._counters.get(base, 0) + 1
            name = f"{base}_{self._counters[base]}"
        self._names.add(name)
        return name

    def topological(self) -> list[NodeProto]:
        """Nodes with every producer before its consumers; the graph's order where that is free.

        Raises:
            ModelError: If the graph has a cycle.
        """
        done: set[str] = set()
        placed: set[int] = set()
        result: list[NodeProto] = []
        for root in self.graph.node:
            stack = [root]
            open_nodes: set[int] = set()
            while stack:
                node = stack[-1]
                if id(node) in placed:
                    stack.pop()
                    continue
                needs = [
                    self.producer[name]
                    for name in (*node.input, *implicit_inputs(node))
                    if name in self.producer and name not in done
                ]
                if not needs:
                    stack.pop()
                    placed.add(id(node))
                    done.update(node.output)
                    result.append(node)
                elif id(node) in open_nodes:
                    raise ModelError(f"the graph has a cycle through node {node.name!r}")
                else:
                    open_nodes.add(id(node))
                    stack.extend(reversed(needs))
        return result


def _all_names(graph: GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for inner in subgraphs(node):
            names |= _all_names(inner)
    return names
