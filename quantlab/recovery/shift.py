"""Asymmetry without zero-points: what a Relu or Clip gives is moved by a constant, and the next layer takes it back.

Values of [0, 6] use half of the codes of a symmetric range. Moved to [-3, 3] they use all: the grid of the moved
tensor is that of unsigned codes with a zero-point, its step half as large, yet the graph holds no zero-point. With
T' = T - c a layer W T + b = W T' + (b + c W 1) has but another bias. Nothing is computed more than before, unless the
layer pads: the zeros around T are -c around T', which takes a Pad of its own before the layer.

What has no bias that could take c, such as the output of a HardSwish or a gate's product, takes an Add, which inference
engines fuse with what makes the tensor.

c is a whole number of steps, so that 0, the value that a Relu gives most, stays a number that a code stands for.

What the graph computes stays the same up to float32's rounding, for every input, borders included.
In the quantized graph, rounding errors of weights that add up to d over a layer's inputs now make its outputs wrong
by a constant, c d. Bias correction takes it away, and so does rounding that looks at the outputs of layers: what this
step gains shows with weights in floating point, or behind those.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, helper

from quantlab.calibrators.quantize import INT8_SYMMETRIC, UINT8_AFFINE, Parameters, parameters
from quantlab.calibrators.table import CalibrationTable, TensorEntry, TensorRange
from quantlab.graph.offsets import (
    Bounded,
    GraphEdit,
    absorbs,
    add_to_output,
    convolution_pads,
    find_bounded,
    input_sums,
    move_behind,
    pad_explicitly,
)
from quantlab.graph.qdq import Quantized
from quantlab.recovery.protocol import Context, Proposal, Proposals, State

LARGE_SHARE = 0.02
"""Share of the noise at the outputs from which a Pad is worth its pass over the tensor."""

SMALL_SHARE = 0.002
"""Share of the noise below which a Pad is never tried."""

_LEAST_GAIN = 1.1
_MIDDLE = 128


@dataclass(frozen=True, slots=True)
class _Move:
    """A tensor that can be moved.

    Attributes:
        tensor: Its name.
        amount: What is subtracted of it.
        step: Step of its grid then.
        border_elements: Elements of one sample's padded tensors; 0 if no layer behind it pads, None if not known.
        pads: Whether a layer behind it pads.
        behind: Whether it takes an Add.
        share: Share of the noise at the model's outputs.
    """

    tensor: str
    amount: float
    step: float
    border_elements: int | None
    pads: bool
    behind: bool
    share: float


class Shift:
    """Moves symmetric ranges over one-sided values."""

    name = "shift"
    summary = "one-sided values are moved to the middle of the symmetric range"

    def propose(self, state: State, context: Context) -> Proposals:
        """See `Step.propose`: tensors whose readers do not pad, then padded ones too, as far as they matter."""
        if not context.target.activation.symmetric:
            return Proposals((), (f"target {context.target.name} has zero-points",))
        quantized = state.quantized(context.target, context.exclude)
        moves, odd = _find_moves(state, context, quantized)
        moves.sort(key=lambda move: (-move.share, move.tensor))
        folded = [move for move in moves if not move.behind]
        behind = [move for move in moves if move.behind and (move.share >= LARGE_SHARE or not context.shares)]
        free = [move for move in folded if not move.pads]
        padded = [move for move in folded if move.pads]
        large = [move for move in padded if move.share >= LARGE_SHARE]
        small = [move for move in padded if move.share >= SMALL_SHARE]
        if not context.shares:
            large, small = [], padded
        chosen: list[tuple[str, list[_Move]]] = []
        if free:
            chosen.append(("readers that do not pad", free))
        if large:
            chosen.append((f"with {len(large)} padded", [*free, *large]))
        if len(small) > len(large):
            chosen.append((f"with {len(small)} padded", [*free, *small]))
        if behind:
            most = chosen[-1][1] if chosen else []
            chosen.append((f"with {len(most) - len(free)} padded, {len(behind)} by an Add", [*most, *behind]))
        notes = [*odd, *(_cost(label, group) for label, group in chosen if any(m.pads or m.behind for m in group))]
        if not chosen:
            return Proposals((), (*notes, "no one-sided tensor with a share of the noise is read by layers alone"))
        proposals = [
            Proposal.of(label, _moved(state, group, quantized.layers), tuple(move.tensor for move in group))
            for label, group in chosen
        ]
        return Proposals(tuple(proposals), tuple(notes))


def moved_grids(state: State, context: Context) -> dict[str, Parameters]:
    """Grids of INT8 with a zero-point that are those of tensors once they are moved, as far as they are likely to be.

    Empty if this step does not follow, or the target has zero-points.
    """
    if not context.moving or not context.target.activation.symmetric:
        return {}
    moves, _ = _find_moves(state, context, state.quantized(context.target, context.exclude))
    return {
        move.tensor: Parameters(move.step, -round(move.amount / move.step))
        for move in moves
        if not (move.pads or move.behind) or not context.shares or move.share >= LARGE_SHARE
    }


def as_int8(grid: Parameters) -> Parameters:
    """The grid of INT8 with a zero-point that stands for the same numbers as one of UINT8."""
    return Parameters(grid.scale, grid.zero_point - _MIDDLE)


def worth_moving(step: float, scale: float) -> bool:
    """Whether a tensor's unsigned grid is enough finer than the symmetric one."""
    return step * _LEAST_GAIN <= scale


def _cost(label: str, moves: Sequence[_Move]) -> str:
    padded, adds = [move for move in moves if move.pads], sum(move.behind for move in moves)
    counts = [move.border_elements for move in padded]
    elements = "an unknown number of" if None in counts else f"{sum(count or 0 for count in counts):,}"
    costs = [f"Pads write {elements} elements a sample once more"] if padded else []
    costs += [f"{adds} tensors take an Add"] if adds else []
    return f"{label}: " + ", ".join(costs)


def affine_step(entry: TensorEntry, table: CalibrationTable) -> tuple[float, float]:
    """Step of a tensor's unsigned grid, and the constant that, subtracted, makes that grid symmetric.

    Codes q of UINT8 with zero-point z stand for (q - z) step, codes q - 128 of INT8 for (q - 128) step; so the tensors
    differ by (128 - z) step.
    """
    symmetric, affine = table.range_of(entry, INT8_SYMMETRIC.name), entry.ranges.get(UINT8_AFFINE.name, {})
    chosen = affine.get(table.method) or affine.get(symmetric.picked or "")
    if chosen is not None:
        low, high = chosen.low, chosen.high
    else:  # ranges that were imported
        low, high = max(entry.minimum, -symmetric.high), min(entry.maximum, symmetric.high)
    grid = parameters(low, high, UINT8_AFFINE)
    return grid.scale, (_MIDDLE - grid.zero_point) * grid.scale


def _find_moves(state: State, context: Context, quantized: Quantized) -> tuple[list[_Move], list[str]]:
    edit = GraphEdit(state.model)
    entries = state.table.entries()
    layers = frozenset(quantized.layers)
    moves: list[_Move] = []
    odd: list[str] = []
    for tensor, grid in quantized.tensors.items():
        readers = _readers(edit, tensor, layers)
        if tensor not in entries or tensor not in edit.index.producer or not readers:
            continue
        alone = edit.index.uses(tensor) == len(readers)
        behind = not alone or find_bounded(edit, tensor) is None
        if not alone and _is_added(edit, tensor):
            continue
        step, amount = affine_step(entries[tensor], state.table)
        if not worth_moving(step, grid.scale):
            continue
        pads = [convolution_pads(edit, node) for node in readers]
        if any(found is None for found in pads):
            odd.append(f"{tensor}: a layer behind it pads by a size that is not known")
            continue
        borders = {found for found in pads if found is not None and any(found)}
        elements = [_padded_elements(edit.index.shape(tensor), border) for border in borders]
        total = None if any(count is None for count in elements) else sum(count or 0 for count in elements)
        moves.append(_Move(tensor, amount, step, total, bool(borders), behind, context.shares.get(tensor, 0.0)))
    return moves, odd


def _readers(edit: GraphEdit, tensor: str, quantized: Collection[str]) -> list[NodeProto]:
    """Quantized layers that read a tensor and can take a constant back."""
    nodes = edit.index.consumers.get(tensor, [])
    return [node for node in nodes if node.name in quantized and absorbs(edit, node, tensor)]


def _is_added(edit: GraphEdit, tensor: str) -> bool:
    """Whether a sum reads a tensor, perhaps through a pair of its own, as targets quantize residual inputs."""
    return any(node.op_type in ("Add", "Sum") for node in edit.index.consumers[tensor])


def _padded_elements(shape: Sequence[int | str | None] | None, pads: Sequence[int]) -> int | None:
    sizes = [] if shape is None else list(shape[1:])
    rank = len(pads) // 2
    grown = [
        size + a + b for size, a, b in zip(sizes[1:], pads[:rank], pads[rank:], strict=False) if isinstance(size, int)
    ]
    if len(sizes) != rank + 1 or len(grown) != rank or not isinstance(sizes[0], int):
        return None
    return math.prod([sizes[0], *grown])


def _moved(state: State, moves: Collection[_Move], quantized: Collection[str]) -> State:
    edit = GraphEdit(state.model)
    entries = state.table.entries()
    bounds: dict[float, str] = {}
    layers = frozenset(quantized)
    for move in moves:
        readers = _readers(edit, move.tensor, layers)
        borders = [convolution_pads(edit, node) or () for node in readers]
        moved = _moved_entry(entries[move.tensor], move.amount)
        name = move.tensor
        if move.behind:
            name = move_behind(edit, move.tensor, -move.amount, readers)
        else:
            bounded = find_bounded(edit, move.tensor)
            assert bounded is not None
            source = _move_output(edit, bounded, move.amount, bounds)
            if source in entries:
                entries[source] = _moved_entry(entries[source], move.amount)
        entries[name] = replace(_on_grid(moved, state.table.method, move.step), name=name)
        padded: dict[tuple[int, ...], str] = {}
        for node, pads in zip(readers, borders, strict=True):
            add_to_output(edit, node, move.amount * input_sums(edit, node))
            if any(pads):
                padded[pads] = pad_explicitly(edit, node, pads, -move.amount, padded.get(pads))
        for border in padded.values():
            entries[border] = _with_border(entries[name], border, -move.amount)
    table = replace(state.table, tensors=tuple(sorted(entries.values(), key=lambda entry: entry.name)))
    return replace(state.with_proto(edit.finish()), table=table)


def _move_output(edit: GraphEdit, bounded: Bounded, amount: float, bounds: dict[float, str]) -> str | None:
    """Subtract a constant of a layer's bias and of the bounds behind it, if any; a Relu becomes a Clip.

    Returns:
        What the bounds are put on, which is moved too; None if there are none.
    """
    add_to_output(edit, bounded.producer, -amount)
    node = bounded.activation
    if node is None:
        return None
    inputs = [node.input[0]]
    for bound in (bounded.low, bounded.high):
        value = float(np.float32(bound - amount))
        if math.isinf(value):
            inputs.append("")
        else:
            if value not in bounds:
                bounds[value] = edit.add_constant("shifted_bound", np.array(value, np.float32))
            inputs.append(bounds[value])
    while not inputs[-1]:
        inputs.pop()
    clip = helper.make_node("Clip", inputs, [bounded.tensor], name=node.name)
    _become(node, clip)
    return str(inputs[0])


def _become(node: NodeProto, other: NodeProto) -> None:
    node.Clear()
    node.MergeFrom(other)


def _moved_entry(entry: TensorEntry, amount: float) -> TensorEntry:
    """The entry of a tensor less a constant, from that of the tensor: extremes move, and each range with them."""
    ranges: dict[str, Mapping[str, TensorRange]] = {}
    affine = entry.ranges.get(UINT8_AFFINE.name, {})
    for scheme, by_method in entry.ranges.items():
        moved = {}
        for method, found in by_method.items():
            source = affine.get(method, found)
            low, high = source.low - amount, source.high - amount
            if scheme == INT8_SYMMETRIC.name:
                low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
            moved[method] = replace(source, low=low, high=high)
        ranges[scheme] = moved
    low, high = float(np.float32(entry.minimum - amount)), float(np.float32(entry.maximum - amount))
    zeros = None if entry.zero_fraction is None else 0.0
    return replace(entry, minimum=low, maximum=high, zero_fraction=zeros, kind="", ranges=ranges)


def _on_grid(entry: TensorEntry, method: str, step: float) -> TensorEntry:
    """The entry with the symmetric range that has a given step."""
    by_method = entry.ranges[INT8_SYMMETRIC.name]
    amax = INT8_SYMMETRIC.qmax * step
    chosen = replace(by_method[method], low=-amax, high=amax)
    return replace(entry, ranges={**entry.ranges, INT8_SYMMETRIC.name: {**by_method, method: chosen}})


def _with_border(entry: TensorEntry, name: str, value: float) -> TensorEntry:
    border = float(np.float32(value))
    return replace(entry, name=name, minimum=min(entry.minimum, border), maximum=max(entry.maximum, border))
