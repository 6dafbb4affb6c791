"""What factors on the channels of tensors do to one node: the terms in which rules of operators say it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array

Lane = tuple[str, int]
"""A tensor and the axis of its channels."""


class Role(StrEnum):
    """What a constant has to do with the tensors of a group."""

    PRODUCER = "producer"
    """It makes a tensor: with factors on it, the tensor has them."""
    CONSUMER = "consumer"
    """It takes a tensor: with the factors' inverses on it, the result is as before."""
    OFFSET = "offset"
    """It is added on the way: it needs the factors that the tensor has."""


@dataclass(frozen=True, slots=True)
class Absorber:
    """A constant that takes factors up.

    Attributes:
        position: Position of its node in the graph.
        node: Name of the node.
        op_type: Operator of the node.
        slot: Input slot of the constant.
        role: What it has to do with the group.
        inverse: Whether it is divided by the factors.
        view: Shape in which the factors lie along axes of the constant.
        along: Shape of the factors that broadcasts against ``view``.
        result: Shape of the changed constant.
    """

    position: int
    node: str
    op_type: str
    slot: int
    role: Role
    inverse: bool
    view: tuple[int, ...]
    along: tuple[int, ...]
    result: tuple[int, ...]

    def absorb(self, constant: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """The constant with factors (C,) taken up, of shape ``result``."""
        shaped = factors.reshape(self.along)
        viewed = constant.reshape(self.view)
        return (viewed / shaped if self.inverse else viewed * shaped).reshape(self.result)


@dataclass(frozen=True, slots=True)
class ClipLimit:
    """A Clip on the way of a group: exact as long as no factored value passes its bound that did not before.

    Attributes:
        tensor: Its output.
        high: Its upper bound; the lower one is 0 or none.
    """

    tensor: str
    high: float


@dataclass(slots=True)
class NodeClaims:
    """What a rule says of one node.

    Attributes:
        model: The model.
        index: Index of its graph, with inferred types.
        constants: Stored tensors that nothing can override.
        position: Position of the node.
        node: The node.
        joins: Lanes that must have the same factors.
        absorbers: Constants that take up the factors of a lane.
        limits: Bounds of Clips, by a lane of the output.
        inputs: Input slots and axes that the rule covers.
        outputs: Output slots and axes that it covers.
    """

    model: Model
    index: GraphIndex
    constants: Mapping[str, TensorProto]
    position: int
    node: NodeProto
    joins: list[tuple[Lane, Lane]] = field(default_factory=list)
    absorbers: list[tuple[Lane, Absorber]] = field(default_factory=list)
    limits: list[tuple[Lane, ClipLimit]] = field(default_factory=list)
    inputs: set[tuple[int, int]] = field(default_factory=set)
    outputs: set[tuple[int, int]] = field(default_factory=set)

    def attribute(self, name: str, default: float) -> float:
        """A numeric attribute of the node."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return float(attribute.f if attribute.type == onnx.AttributeProto.FLOAT else attribute.i)
        return default

    def given(self, slot: int) -> str:
        """Name of an input; empty if it is left out."""
        return str(self.node.input[slot]) if slot < len(self.node.input) else ""

    def shape(self, tensor: str) -> tuple[int | str | None, ...]:
        """Shape of a tensor; empty if it is not known."""
        return self.index.shape(tensor) or ()

    def shape_in(self, slot: int = 0) -> tuple[int | str | None, ...]:
        """Shape of an input; empty if it is not known."""
        return self.shape(self.given(slot))

    def shape_out(self, slot: int = 0) -> tuple[int | str | None, ...]:
        """Shape of an output; empty if it is not known."""
        return self.shape(self.node.output[slot])

    def constant(self, slot: int) -> tuple[int, ...] | None:
        """Shape of a float32 constant input; None for anything else."""
        found = self.constants.get(self.given(slot))
        return tuple(found.dims) if found is not None and found.data_type == TensorProto.FLOAT else None

    def values(self, slot: int) -> NDArray[np.generic] | None:
        """Elements of a constant input; None if it is not constant."""
        found = self.constants.get(self.given(slot))
        return np.asarray(tensor_array(self.model, found)) if found is not None else None

    def through(self, slot: int, axis: int, behind: int, output: int = 0) -> None:
        """Factors on an axis of an input pass to an axis of an output."""
        self.joins.append(((self.node.input[slot], axis), (self.node.output[output], behind)))
        self.inputs.add((slot, axis))
        self.outputs.add((output, behind))

    def takes(self, axis: int, slot: int = 0) -> None:
        """The constants of the node take up factors on an axis of an input."""
        self.inputs.add((slot, axis))

    def makes(self, axis: int) -> None:
        """The constants of the node can put factors on an axis of its output."""
        self.outputs.add((0, axis))

    def absorbs(
        self,
        lane: Lane,
        role: Role,
        slot: int,
        along: tuple[int, ...],
        *,
        inverse: bool = False,
        view: tuple[int, ...] | None = None,
        result: tuple[int, ...] | None = None,
    ) -> None:
        """A constant takes up factors of a lane; see `Absorber`."""
        stored = self.constant(slot) or ()
        absorber = Absorber(
            self.position, self.node.name, self.node.op_type, slot, role, inverse,
            stored if view is None else view, along, stored if result is None else result,
        )  # fmt: skip
        self.absorbers.append((lane, absorber))

    def absorbs_bias(self, lane: Lane, slot: int, channels: int) -> bool:
        """Let the bias of a producer, (C,), (1, C) or one number, take up factors; False if it cannot."""
        if not self.given(slot):
            return True
        stored = self.constant(slot)
        if stored is None:
            return False
        if math.prod(stored) == 1:
            self.absorbs(lane, Role.OFFSET, slot, (channels,), view=(1,), result=(channels,))
        elif stored[-1] == channels and math.prod(stored) == channels:
            self.absorbs(lane, Role.OFFSET, slot, (*[1] * (len(stored) - 1), channels))
        else:
            return False
        return True
