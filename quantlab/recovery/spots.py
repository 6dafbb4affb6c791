"""Where the layers of a graph have their weights and biases, and how to give them others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from quantlab.graph.index import GraphIndex
from quantlab.graph.layers import Layer, find_layers
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.targets import TargetProfile
from quantlab.recovery.layout import Layout, layout_of


@dataclass(frozen=True, slots=True)
class Spot:
    """A layer with a constant weight.

    Attributes:
        name: Name of its node.
        layout: How it reads its input; None if its form is not known.
        weight: Initializer of its weight.
        shared: Whether another node reads the weight too.
        bias: Initializer of its bias; None if it has none.
        adder: Node that adds the bias, its own or an Add behind it; None if it cannot have one.
        output: Tensor behind the bias.
    """

    name: str
    layout: Layout | None
    weight: str
    shared: bool
    bias: str | None
    adder: str | None
    output: str

    @property
    def slot(self) -> int:
        """Input slot of the weight."""
        return 1 if self.layout is None else self.layout.slot

    def bias_slot(self, adder: NodeProto) -> int:
        """Input slot of the bias at the node that adds it, in this graph or a quantized copy."""
        if adder.name == self.name:
            return 2
        return 0 if adder.input[0] == self.bias else 1


def find_spots(model: Model, target: TargetProfile, names: Collection[str]) -> list[Spot]:
    """The layers of these names that have a constant weight, in graph order."""
    index = GraphIndex(model.proto.graph)
    return [
        _spot(layer, str(layer.node.input[layer.weight]), index)
        for layer in find_layers(model.proto.graph, target)
        if layer.name in names and layer.weight is not None and layer.node.input[layer.weight] in index.initializers
    ]


def _spot(layer: Layer, weight: str, index: GraphIndex) -> Spot:
    shared = index.uses(weight) != 1
    output = str(layer.node.output[0])
    layout = layout_of(layer, tuple(index.initializers[weight].dims))
    if layout is None or any(a.name in ("alpha", "beta") and a.f != 1.0 for a in layer.node.attribute):
        return Spot(layer.name, None, weight, shared, None, None, output)
    channels = layout.weight_shape[layout.axis] * (layout.groups if layout.op_type == "ConvTranspose" else 1)
    if layout.op_type == "MatMul":
        return _product(layer, layout, weight, shared, channels, index)
    given = layer.node.input[2] if len(layer.node.input) > 2 else ""
    stored = index.initializers.get(given)
    if given and (layout.slot == 0 or stored is None or tuple(stored.dims) != (channels,)):
        # Its output holds a bias that cannot be told from what the weight makes.
        return Spot(layer.name, None, weight, shared, None, None, output)
    if layout.slot == 0:
        return Spot(layer.name, layout, weight, shared, None, None, output)
    if not given:
        return Spot(layer.name, layout, weight, shared, None, layer.name, output)
    return Spot(layer.name, layout, weight, shared, str(given), layer.name, output)


def _product(layer: Layer, layout: Layout, weight: str, shared: bool, channels: int, index: GraphIndex) -> Spot:
    """A MatMul, whose bias is a constant that an Add behind it adds."""
    output = str(layer.node.output[0])
    consumers = index.consumers.get(output, [])
    if layout.slot == 1 and index.uses(output) == 1 and consumers and consumers[0].op_type == "Add":
        adder = consumers[0]
        other = str(adder.input[0] if adder.input[1] == output else adder.input[1])
        stored = index.initializers.get(other)
        if stored is not None and tuple(stored.dims) == (channels,):
            return Spot(layer.name, layout, weight, shared, other, adder.name, str(adder.output[0]))
    return Spot(layer.name, layout, weight, shared, None, None, output)


def own_biases(model: Model, spots: Collection[Spot]) -> dict[str, NDArray[np.float32]]:
    """The bias of each layer that can have one, by layer; zeros where it has none yet."""
    initializers = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    found = {}
    for spot in spots:
        if spot.adder is None or spot.layout is None:
            continue
        if spot.bias is not None:
            found[spot.name] = np.array(tensor_array(model, initializers[spot.bias]), np.float32)
        else:
            groups = spot.layout.groups if spot.layout.op_type == "ConvTranspose" else 1
            found[spot.name] = np.zeros(spot.layout.weight_shape[spot.layout.axis] * groups, np.float32)
    return found


def with_biases(proto: ModelProto, spots: Collection[Spot], values: Mapping[str, NDArray[np.float32]]) -> ModelProto:
    """A copy of a graph in which layers read biases of their own.

    Args:
        proto: The graph that the layers were found in.
        spots: Layers.
        values: New bias by layer, (channels,) float32; layers without one keep theirs.
    """
    result = ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    index = GraphIndex(graph)
    nodes = {node.name: node for node in graph.node}
    for spot in spots:
        if spot.adder is None or spot.name not in values:
            continue
        node, name = nodes[spot.adder], index.fresh(f"{spot.name}_bias_recovered")
        graph.initializer.append(numpy_helper.from_array(np.asarray(values[spot.name], np.float32), name))
        slot = spot.bias_slot(node)
        if slot < len(node.input):
            node.input[slot] = name
        else:
            node.input.append(name)
    used = GraphIndex(graph)
    for i in reversed(range(len(graph.initializer))):
        name = graph.initializer[i].name
        if name not in used.consumers and name not in used.outputs:
            del graph.initializer[i]
    return result
