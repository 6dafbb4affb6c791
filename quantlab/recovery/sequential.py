"""Layer by layer through a quantized graph: what each layer is given there, and what it should make of it.

A layer's inputs come from the quantized graph in which all layers before it are settled; its targets are what the
floating-point graph makes at the same place of the same samples. Where the output goes into a sum with another branch,
the target is the floating-point sum less the quantized graph's other branch: so a layer also makes up for the error of
what it is added to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from quantlab.datasets.lookahead import map_ahead
from quantlab.graph.index import GraphIndex
from quantlab.recovery.layout import Layout
from quantlab.recovery.moments import Sums
from quantlab.recovery.protocol import Context, State
from quantlab.recovery.simulation import MOST_AT_ONCE, Arrays, Walk, float_weights
from quantlab.recovery.spots import Spot, find_spots, own_biases, with_biases

CUT_BYTES = 32 << 20
"""Memory for the values of one graph between layers; where they need more, more is computed again."""

_ROWS, _ROWS_AN_INPUT = 8192, 16
_MOST_VALUES = 1 << 23

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a layer's output should be.

    Attributes:
        tensor: Tensor of the floating-point graph.
        less: Tensor of the quantized graph to take away from it; None for none.
    """

    tensor: str
    less: str | None


class Sequential:
    """A quantized graph whose layers are settled one after the other.

    Attributes:
        spots: Its layers with constant weights, in graph order.
        biases: Bias of each layer that can have one, by layer, as settled so far.
    """

    def __init__(self, state: State, context: Context, batches: Sequence[Arrays]) -> None:
        target = context.target
        made = state.quantized(target, context.exclude)
        self.spots = find_spots(state.model, target, (*made.layers, *made.kept))
        self.biases = own_biases(state.model, self.spots)
        own = state.with_proto(with_biases(state.model.proto, self.spots, self.biases))
        quantized = own.quantized(target, context.exclude).proto
        followed = (state.target or state.prepared).model
        self._walk = Walk(own.model, float_weights(own.model, quantized), batches, context.threads)
        self._float = Walk(followed, followed.proto, batches, context.threads)
        self._nodes = {node.name: node for node in self._walk.proto.graph.node}
        self._float_index = GraphIndex(followed.proto.graph)
        self._rest: list[str] = []
        self._threads = min(context.threads, MOST_AT_ONCE)

    def visits(self) -> Iterator[tuple[int, Spot]]:
        """Each layer in turn, with its number. Settle a layer before asking for the next."""
        for number, spot in enumerate(self.spots):
            self._rest = [later.name for later in self.spots[number:]]
            yield number, spot

    def sums(self, spot: Spot, *, second: bool = True) -> Sums | None:
        """Sums over the rows of the layer that is visited, of products if ``second``; None for an unknown form.

        Raises:
            CalibrationError: If ONNX Runtime fails on the samples.
        """
        if spot.layout is None:
            return None
        self._walk.advance(self._rest, CUT_BYTES)
        self._float.advance(self._rest, CUT_BYTES)
        return self._sums(spot, spot.layout, self._rest, second=second)

    def weight(self, spot: Spot) -> Array:
        """The weight of a layer as the quantized graph has it."""
        return self._walk.value(self._nodes[spot.name].input[spot.slot])

    def settle(self, spot: Spot, weight: Array | None, bias: NDArray[np.float32] | None) -> None:
        """Give a layer another weight, or another bias, for all layers behind it.

        Args:
            spot: The layer.
            weight: Of the weight's shape; None to leave it.
            bias: (channels,); None to leave it.
        """
        if weight is not None:
            self._walk.put(self._nodes[spot.name].input[spot.slot], np.asarray(weight, np.float32))
        if bias is not None and spot.adder is not None:
            self.biases[spot.name] = np.asarray(bias, np.float32)
            adder = self._nodes[spot.adder]
            constant = [i for i, name in enumerate(adder.input) if name in self._walk.index.initializers]
            self._walk.put(adder.input[2 if spot.adder == spot.name else constant[0]], np.asarray(bias, np.float32))

    def _sums(self, spot: Spot, layout: Layout, rest: Sequence[str], *, second: bool) -> Sums:
        aim = self._aim(spot, rest)
        read = self._nodes[spot.name].input[1 - spot.slot]
        quantized = self._walk.runner([read, aim.less] if aim.less is not None else [read])
        exact = self._float.runner([aim.tensor])
        n_batches = len(self._walk.cut)

        def rows(number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            ours, wanted = quantized(number), np.asarray(exact(number)[aim.tensor], np.float32)
            if aim.less is not None:
                wanted = wanted - np.asarray(ours[aim.less], np.float32)
            positions = _positions(spot, layout, wanted.shape, layout.inputs, number, n_batches)
            return layout.rows(np.asarray(ours[read], np.float32), positions), layout.outputs(wanted, positions)

        sums = Sums(second=second)
        for number, (x, y) in enumerate(map_ahead(rows, range(n_batches), self._threads, chunk=1, ahead=1)):
            sums.add(x, y, number % 2)
        return sums

    def _aim(self, spot: Spot, rest: Sequence[str]) -> Aim:
        """The layer's output, or the sum that it goes into alone."""
        index, ours = self._float_index, self._walk.index
        consumers = index.consumers.get(spot.output, [])
        if index.uses(spot.output) != 1 or not consumers or consumers[0].op_type != "Add":
            return Aim(spot.output, None)
        added = self._nodes.get(consumers[0].name)
        other = None if added is None else _other_branch(added, spot.output, ours)
        if other is None or other in ours.initializers or self._walk.depends(other, rest):
            return Aim(spot.output, None)
        if index.shape(spot.output) != index.shape(consumers[0].output[0]) or index.shape(spot.output) is None:
            return Aim(spot.output, None)
        return Aim(str(consumers[0].output[0]), other)


def _other_branch(node: NodeProto, tensor: str, index: GraphIndex) -> str | None:
    """The operand of a sum that is not a tensor, nor the tensor behind a pair."""
    ends = [_raw(name, index) == tensor for name in node.input]
    return str(node.input[1 - ends.index(True)]) if len(node.input) == 2 and sum(ends) == 1 else None


def _raw(tensor: str, index: GraphIndex) -> str:
    """The tensor before a Q/DQ pair."""
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = index.producer.get(tensor)
        if node is None or node.op_type != op_type:
            return tensor
        tensor = node.input[0]
    return tensor


def _positions(
    spot: Spot, layout: Layout, shape: tuple[int, ...], inputs: int, batch: int, n_batches: int
) -> NDArray[np.int64]:
    """Rows of a batch to look at: all of them, or a sample that depends on the layer and the batch alone."""
    rows = layout.n_rows(shape)
    most = -(-max(_ROWS, _ROWS_AN_INPUT * inputs) // n_batches)
    most = max(1, min(most, _MOST_VALUES // max(inputs * layout.groups, 1)))
    if rows <= most:
        return np.arange(rows)
    generator = np.random.default_rng([zlib.crc32(spot.name.encode()), batch])
    return np.sort(generator.choice(rows, most, replace=False))
