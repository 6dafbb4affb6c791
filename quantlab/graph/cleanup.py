"""Removal of nodes that do nothing, and names for those that have none."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from quantlab.graph.index import GraphIndex, implicit_inputs


def strip_initializer_inputs(proto: ModelProto) -> None:
    """Drop initializers from the graph's inputs (IR version 3 lists them there), so that nobody can override them."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def remove_no_ops(proto: ModelProto) -> int:
    """Remove ``Identity`` and inference ``Dropout`` nodes, in place; the graph's inputs and outputs keep their names.

    Those between a graph input or a shared tensor and a graph output stay: nothing else can carry both names.

    Returns:
        Number of nodes removed.
    """
    graph = proto.graph
    index = GraphIndex(graph)
    in_subgraphs = {name for node in graph.node for name in implicit_inputs(node)}
    source_of: dict[str, str] = {}
    at_output: list[str] = []
    for node in graph.node:
        if not _is_no_op(node, index):
            continue
        output = node.output[0]
        if output in index.outputs:
            at_output.append(output)
        elif output not in in_subgraphs:
            source_of[output] = source_of.get(node.input[0], node.input[0])
    _drop(proto, set(source_of))
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = source_of.get(name, name)
    return len(source_of) + sum(_merge_into_producer(proto, output, in_subgraphs) for output in at_output)


def _merge_into_producer(proto: ModelProto, output: str, in_subgraphs: set[str]) -> bool:
    """Let the producer of a no-op's source make the graph output itself."""
    index = GraphIndex(proto.graph)
    source = index.producer[output].input[0]
    if source not in index.producer or index.uses(source) != 1 or source in in_subgraphs:
        return False
    _drop(proto, {output})
    producer = GraphIndex(proto.graph).producer[source]  # dropping copies the nodes
    producer.output[list(producer.output).index(source)] = output
    return True


def _drop(proto: ModelProto, first_outputs: set[str]) -> None:
    rest = [node for node in proto.graph.node if not (node.output and node.output[0] in first_outputs)]
    if len(rest) < len(proto.graph.node):
        del proto.graph.node[:]
        proto.graph.node.extend(rest)


def _is_no_op(node: NodeProto, index: GraphIndex) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    # From opset 12 on, a third input may switch training on; without it Dropout is the identity.
    mask = node.output[1] if len(node.output) > 1 else ""
    return node.op_type == "Dropout" and len(node.input) < 3 and not (mask and index.uses(mask))


def remove_dead(proto: ModelProto) -> None:
    """Remove nodes that no output depends on, and initializers that nothing uses, in place."""
    graph = proto.graph
    index = GraphIndex(graph)
    needed: set[str] = set()
    stack = list(index.outputs)
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        needed.add(name)
        node = index.producer.get(name)
        if node is not None:
            stack.extend(used for used in (*node.input, *implicit_inputs(node)) if used)
    rest = [node for node in graph.node if any(name in needed for name in node.output)]
    del graph.node[:]
    graph.node.extend(rest)
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def name_nodes(proto: ModelProto) -> None:
    """Give nodes without a name, or with another node's, a name made of operator and output, in place."""
    index = GraphIndex(proto.graph)
    seen: set[str] = set()
    for node in proto.graph.node:
        if not node.name or node.name in seen:
            node.name = index.fresh(f"{node.op_type}_{node.output[0]}" if node.output else node.op_type)
        seen.add(node.name)
