"""Groups of tensors whose channels can be scaled together without changing what a model computes.

If channel c of every tensor of a group is multiplied by a positive number, the constants that make the tensors take it
up, those that read them take its inverse, and the model's outputs stay as they were (Nagel et al. 2019,
arXiv:1906.04721, equation 6, for any number of layers on both sides).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from quantlab.graph.channel_claims import Absorber, ClipLimit, Lane, NodeClaims, Role
from quantlab.graph.channel_rules import claim
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.skeleton import typed_graph


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Tensors whose channels must have the same factors, and the constants that take them up.

    Attributes:
        tensors: Axis of the channels by tensor, in graph order.
        size: Number of channels.
        absorbers: Constants that take the factors up, in graph order; among them a producer and a consumer.
        limits: Clips on the way. With them, factors are exact only for values that stay below their bounds with the
            factors as without; a channel that reaches a bound needs the factor 1.
    """

    tensors: Mapping[str, int]
    size: int
    absorbers: tuple[Absorber, ...]
    limits: tuple[ClipLimit, ...]

    def of(self, role: Role) -> tuple[Absorber, ...]:
        """Constants of a role."""
        return tuple(absorber for absorber in self.absorbers if absorber.role is role)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes whose constants take the factors up, in graph order."""
        return tuple(dict.fromkeys(absorber.node for absorber in self.absorbers))


@dataclass(slots=True)
class _Parts:
    """Lanes on their way into groups: a forest of lanes, and what is known of each."""

    parents: dict[Lane, Lane] = field(default_factory=dict)
    absorbers: list[tuple[Lane, Absorber]] = field(default_factory=list)
    limits: list[tuple[Lane, ClipLimit]] = field(default_factory=list)
    barriers: set[Lane] = field(default_factory=set)

    def root(self, lane: Lane) -> Lane:
        self.parents.setdefault(lane, lane)
        while self.parents[lane] != lane:
            self.parents[lane] = self.parents[self.parents[lane]]
            lane = self.parents[lane]
        return lane

    def add(self, claims: NodeClaims) -> None:
        for first, second in claims.joins:
            self.parents[self.root(first)] = self.root(second)
        for lane, _ in claims.absorbers:
            self.root(lane)
        self.absorbers += claims.absorbers
        self.limits += claims.limits
        uses = ((claims.node.input, claims.inputs), (claims.node.output, claims.outputs))
        for names, covered in uses:
            for slot, name in enumerate(names):
                if name and name not in claims.constants:
                    lanes = {(name, axis) for axis in range(len(claims.shape(name))) if (slot, axis) not in covered}
                    self.barriers |= lanes


def channel_groups(model: Model) -> tuple[ChannelGroup, ...]:
    """The groups of a model that have a producer, a consumer, and nothing that stops factors.

    Inputs and outputs of the graph stop them, and so do tensors that subgraphs read or whose channels are not counted.
    Constants that are not float32 take none up.

    Args:
        model: A prepared model.

    Returns:
        Groups in graph order. A tensor may be in several, by different axes. Constants that others read too are no
        obstacle: `apply` copies them.

    Raises:
        ModelError: If external data of a small constant cannot be read.
    """
    graph = model.proto.graph
    index = GraphIndex(graph, typed_graph(model.proto))
    listed = {value.name for value in graph.input}
    constants = {name: tensor for name, tensor in index.initializers.items() if name not in listed}
    parts = _Parts()
    opaque = listed | set(index.outputs)
    for position, node in enumerate(graph.node):
        opaque.update(implicit_inputs(node))
        claims = NodeClaims(model, index, constants, position, node)
        claim(claims)
        parts.add(claims)
    return _assemble(parts, index, opaque)


def _assemble(parts: _Parts, index: GraphIndex, opaque: set[str]) -> tuple[ChannelGroup, ...]:
    members: dict[Lane, list[Lane]] = {}
    for lane in parts.parents:
        members.setdefault(parts.root(lane), []).append(lane)
    absorbers: dict[Lane, list[Absorber]] = {}
    for lane, absorber in parts.absorbers:
        absorbers.setdefault(parts.root(lane), []).append(absorber)
    limits: dict[Lane, list[ClipLimit]] = {}
    for lane, limit in parts.limits:
        limits.setdefault(parts.root(lane), []).append(limit)
    order = {name: i for i, name in enumerate(index.producer)}
    groups = []
    for root, taking in absorbers.items():
        lanes = members[root]
        tensors = dict(sorted(lanes, key=lambda lane: order.get(lane[0], -1)))
        sizes = {_size(index, lane) for lane in lanes} | {prod(absorber.along) for absorber in taking}
        size = sizes.pop() if len(sizes) == 1 else None
        usable = all(lane not in parts.barriers and lane[0] not in opaque and lane[0] in order for lane in lanes)
        if size is None or size < 2 or len(tensors) < len(lanes) or not usable:
            continue
        group = ChannelGroup(
            MappingProxyType(tensors), size, tuple(sorted(taking, key=lambda absorber: absorber.position)),
            tuple(limits.get(root, ())),
        )  # fmt: skip
        if group.of(Role.PRODUCER) and group.of(Role.CONSUMER):
            groups.append(group)
    return tuple(sorted(groups, key=lambda group: min(order[name] for name in group.tensors)))


def _size(index: GraphIndex, lane: Lane) -> int | None:
    tensor, axis = lane
    shape = index.shape(tensor)
    size = shape[axis] if shape is not None and 0 <= axis < len(shape) else None
    return size if isinstance(size, int) else None


def apply(model: Model, scalings: Sequence[tuple[ChannelGroup, NDArray[np.float64]]]) -> ModelProto:
    """Multiply channel c of all tensors of groups by ``factors[c]``; what the model puts out stays the same.

    Constants are computed in float64 and rounded once. A constant that something else reads too is left as it is, and
    the node gets a copy of its own.

    Args:
        model: The model that the groups were found in; not changed.
        scalings: Groups, each with its factors, (C,) and positive.

    Returns:
        A copy of the graph with other constants; no node, tensor or shape changes.

    Raises:
        ValueError: If factors are not positive, or not as many as the group has channels.
        ModelError: If an external constant cannot be read.
    """
    absorbing: dict[tuple[int, int], list[tuple[Absorber, NDArray[np.float64]]]] = {}
    for group, factors in scalings:
        if factors.shape != (group.size,) or not (np.isfinite(factors) & (factors > 0)).all():
            raise ValueError(f"not {group.size} positive factors: {factors}")
        for absorber in group.absorbers:
            absorbing.setdefault((absorber.position, absorber.slot), []).append((absorber, factors))
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    index = GraphIndex(proto.graph)
    replaced: set[str] = set()
    for (position, slot), absorbers in absorbing.items():
        name = proto.graph.node[position].input[slot]
        values = np.asarray(tensor_array(model, index.initializers[name]), np.float64)
        for absorber, factors in absorbers:
            values = absorber.absorb(values, factors)
        _store(proto, index, proto.graph.node[position], slot, values.astype(np.float32))
        replaced.add(name)
    _drop_unread(proto, replaced)
    return proto


def constant_of(model: Model, absorber: Absorber) -> NDArray[np.float64]:
    """The constant of an absorber.

    Raises:
        ModelError: If it is external and cannot be read.
    """
    name = model.proto.graph.node[absorber.position].input[absorber.slot]
    stored = next(tensor for tensor in model.proto.graph.initializer if tensor.name == name)
    return np.asarray(tensor_array(model, stored), np.float64)


def channel_peaks(absorber: Absorber, constant: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest magnitude of a constant's elements that each channel scales, (C,)."""
    others = tuple(axis for axis, size in enumerate(absorber.along) if size == 1)
    peaks = np.abs(constant.reshape(absorber.view)).max(axis=others, initial=0.0, keepdims=True)
    return np.broadcast_to(peaks, absorber.along).reshape(-1)


def _store(proto: ModelProto, index: GraphIndex, node: NodeProto, slot: int, value: NDArray[np.float32]) -> None:
    """Store a constant of a node under its name if nothing else reads it, else under a fresh one."""
    name = node.input[slot]
    if index.uses(name) == 1:
        index.initializers[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
        return
    node.input[slot] = index.fresh(f"{name}_scaled")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(value, node.input[slot]))


def _drop_unread(proto: ModelProto, names: set[str]) -> None:
    """Forget those of some initializers that nothing reads any more."""
    index = GraphIndex(proto.graph)
    unread = {name for name in names if not index.uses(name)}
    if unread:
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in unread]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


__all__ = [
    "Absorber",
    "ChannelGroup",
    "ClipLimit",
    "Role",
    "apply",
    "channel_groups",
    "channel_peaks",
    "constant_of",
]
