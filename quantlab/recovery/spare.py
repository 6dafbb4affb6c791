"""Spare channels: dead ones take a copy of the noisiest, so that the copies' rounding errors average out.

A channel that is constant carries nothing; what it adds to the next layer goes into that layer's bias. In its place
comes a copy of another channel. The k copies stand 1/k of a quantization step apart, and the next layer takes their
mean: the same as a grid k times as fine, whose noise is 1/k^2. The shapes of tensors and layers stay as they are.

The copies lie in the tensor T between two layers. Where a depthwise convolution reads T, its channels are copied too,
up to the layer behind it that mixes channels.

What the graph computes stays the same up to float32's rounding on samples in which the dead channels are constant, as
in those that the step saw, but for parts of a step: less than half a step of T at the border that a depthwise
convolution sees around T, and at values that a bound cuts, of which a copied channel has at most `MOST_CUT`. These too
average out over the copies, as far as the bounds behind the depthwise convolution do not cut them.

Ranges stay as they are: a copy differs from its original by less than half a step, of which the offsets are parts. So
the step works on the ranges, and the graph, that are quantized in the end: it comes after all that changes steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from quantlab.graph.offsets import (
    GraphEdit,
    add_to_output,
    attribute,
)
from quantlab.recovery.channel_sites import Site, Stage, column_axis, columns, find_sites
from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.tail import FloatArray, Tail, Values

LARGE_SHARE = 0.02
"""Share of the noise at the outputs from which a tensor's channels are looked at one by one."""

MOST_CUT = 0.02
"""Largest share of a channel's values that may lie within half a step of a bound, as far as the samples tell."""

LEAST_SAMPLES = 64
"""Samples below which a channel that was the same on all is not taken for dead: of 64, one that fires on a twentieth of
all images is silent on less than 4 %."""

_SAMPLES = 8
_LEAST_VALUES = 300
"""Values of a channel that are looked at, if there are as many, to tell whether bounds cut it."""
_MOST_CHANNELS = 256
_CHANNELS_PER_SPARE = 8
_CONSTANT = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What happens at a site.

    Attributes:
        site: The site.
        constants: Values of the dead channels that are used, by channel.
        copies: Channels that hold a copied channel, itself first, by channel.
        movable: By stage, the channels whose copies may stand apart there, (C,).
    """

    site: Site
    constants: Mapping[int, float]
    copies: Mapping[int, tuple[int, ...]]
    movable: tuple[NDArray[np.bool_], ...]


class Spare:
    """Copies noisy channels into dead ones."""

    name = "spare"
    summary = "dead channels take copies of the noisiest, parts of a step apart"

    def propose(self, state: State, context: Context) -> Proposals:
        """See `Step.propose`: all tensors at once; then the same with depthwise outputs apart too."""
        if not context.batches:
            return Proposals((), ("there are no samples to look at channels with",))
        n = sum(len(next(iter(batch.values()))) for batch in context.batches)
        if n < LEAST_SAMPLES:
            return Proposals((), (f"{n} samples, {LEAST_SAMPLES} are needed to call a channel dead",))
        edit = GraphEdit(state.model)
        quantized = state.quantized(context.target, context.exclude)
        sites = list(find_sites(edit, state, quantized.tensors, context.shares, LARGE_SHARE))
        axes = {site.stages[-1].tensor: 1 for site in sites}
        extremes = context.observations.channels(state, axes) if axes else {}
        notes: list[str] = []
        plans: list[_Plan] = []
        for site in context.narrator.track(sites, len(sites), "looking at channels") if sites else ():
            found = extremes[site.stages[-1].tensor]
            dead = _dead_channels(edit, site, found.minima.astype(np.float64), found.maxima.astype(np.float64))
            if not dead:
                notes.append(f"{site.tensor}: no dead channel")
                continue
            plan = _plan(edit, state, context, site, dead)
            if plan is None:
                notes.append(f"{site.tensor}: {len(dead)} dead channels, but none that a copy would help")
            else:
                plans.append(plan)
                notes.append(f"{site.tensor}: {len(plan.constants)} of {len(dead)} dead channels take a copy")
        if not plans:
            reason = "no tensor with a large share of the noise lies between layers whose channels can be copied"
            return Proposals((), tuple(notes) or (reason,))
        changed = tuple(plan.site.tensor for plan in plans)
        proposals = [Proposal.of("", state.with_proto(_copied(state, plans, 1)), changed)]
        if any(len(plan.movable) > 1 and plan.movable[1][list(plan.copies)].any() for plan in plans):
            both = state.with_proto(_copied(state, plans, 2))
            proposals = [
                Proposal.of("first tensor", proposals[0].state, changed),
                Proposal.of("both tensors", both, changed),
            ]
        return Proposals(tuple(proposals), tuple(notes))


def _dead_channels(edit: GraphEdit, site: Site, minima: FloatArray, maxima: FloatArray) -> dict[int, float]:
    """Constants of the channels behind which nothing depends on the sample, by channel."""
    known = minima <= maxima
    width = float(maxima[known].max(initial=0.0) - minima[known].min(initial=0.0))
    constant = known.copy()
    constant[known] = maxima[known] - minima[known] <= _CONSTANT * width
    for reader in site.readers:
        weight = columns(edit, reader.node)
        unused = ~np.any(weight != 0.0, axis=tuple(range(1, weight.ndim)))
        if reader.border is not None:  # a constant that ends at the border is none
            constant &= unused | (np.abs(maxima - reader.border) <= _CONSTANT * width)
    return {int(channel): float(maxima[channel]) for channel in np.flatnonzero(constant)}


def _plan(edit: GraphEdit, state: State, context: Context, site: Site, dead: Mapping[int, float]) -> _Plan | None:
    """Give each dead channel to the living one from which the next copy takes most noise."""
    alive = _downstream_norms(edit, site)
    alive[list(dead)] = 0.0
    errors = np.zeros(alive.size)
    movable = []
    for stage in site.stages:
        tail = Tail.of(state, stage.tensor, context.threads) if stage.grid is not None else None
        if tail is None or stage.grid is None:
            movable.append(np.zeros(alive.size, np.bool_))
            continue
        feeds = tail.feeds(context.batches, _SAMPLES)
        seen = sum(feed[stage.tensor].size for feed in feeds) // alive.size
        more = -(-_SAMPLES * _LEAST_VALUES // max(seen, 1))
        free = _cut_shares(stage, tail.feeds(context.batches, more) if more > _SAMPLES else feeds) <= MOST_CUT
        movable.append(free)
        if stage.share >= LARGE_SHARE or not context.shares:
            most = min(_MOST_CHANNELS, _CHANNELS_PER_SPARE * len(dead))
            candidates = np.flatnonzero(free & (alive > 0))
            candidates = candidates[np.argsort(-alive[candidates], kind="stable")[:most]]
            errors += tail.errors(feeds, stage.grid, context.target.activation, candidates, context.narrator)
    copies = allocate(errors, sorted(dead))
    if not copies:
        return None
    used = {channel: dead[channel] for group in copies.values() for channel in group[1:]}
    return _Plan(site, used, copies, tuple(movable))


def allocate(errors: FloatArray, spare: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Who gets the spare channels: one after the other, the channel of which another copy takes most noise.

    k copies leave ``error / k**2``. As each further copy takes less than the one before, that is the best of all ways.

    Args:
        errors: Noise of each channel without copies, (C,).
        spare: Channels to give away; their errors are 0.

    Returns:
        Of each channel with copies, itself and them.
    """
    groups: dict[int, tuple[int, ...]] = {}
    counts = np.ones(errors.size)
    for channel in spare:
        gain = errors / counts**2 - errors / (counts + 1) ** 2
        best = int(gain.argmax())
        if not gain[best] > 0.0:
            break
        groups[best] = (*groups.get(best, (best,)), channel)
        counts[best] += 1
    return groups


def _downstream_norms(edit: GraphEdit, site: Site) -> FloatArray:
    """A first guess at how much of a channel's noise reaches further: the squares of the weights behind it, (C,)."""
    total: FloatArray | float = 0.0
    for reader in site.readers:
        weight = columns(edit, reader.node)
        total = total + np.sum(weight**2, axis=tuple(range(1, weight.ndim)))
    for stage in site.stages[1:]:
        weight = edit.values(stage.bounded.producer.input[1])
        total = total * np.sum(weight**2, axis=tuple(range(1, weight.ndim)))
    return np.asarray(total, np.float64)


def _cut_shares(stage: Stage, feeds: Sequence[Values]) -> FloatArray:
    """Most that can be the share of each channel's values that an offset of half a step pushes over a bound, (C,).

    Three values more than were seen: of n values none of which is such a one, the share is below 3/n with 95 %.
    """
    cut: FloatArray | float = 3.0
    n = 0
    for feed in feeds:
        values = np.moveaxis(feed[stage.tensor], 1, 0)
        near = (values < stage.bounded.low + stage.step / 2) | (values > stage.bounded.high - stage.step / 2)
        cut = cut + near.reshape(len(values), -1).sum(axis=1)
        n += values[0].size
    return np.asarray(cut / max(n, 1), np.float64)


def _copied(state: State, plans: Sequence[_Plan], n_apart: int) -> ModelProto:
    """The graph with copies in place of dead channels.

    Args:
        state: The state before.
        plans: What to copy.
        n_apart: In how many of a site's tensors copies stand apart.
    """
    edit = GraphEdit(state.model)
    nodes = {node.name: node for node in edit.index.graph.node}
    for plan in plans:
        sizes = [stage.step if i < n_apart else 0.0 for i, stage in enumerate(plan.site.stages)]
        for reader in plan.site.readers:
            _mix_copies(edit, nodes[reader.node.name], plan)
        apart = [_offsets(plan, i, size) for i, size in enumerate(sizes)]
        _copy_rows(edit, nodes[plan.site.stages[0].bounded.producer.name], plan, apart[0])
        for stage, before, after in zip(plan.site.stages[1:], apart[:-1], apart[1:], strict=True):
            node = nodes[stage.bounded.producer.name]
            weight = edit.values(node.input[1])
            sums = weight.sum(axis=tuple(range(1, weight.ndim)))
            offsets = {
                channel: after[channel] - before[channel] * sums[source]
                for source, group in plan.copies.items()
                for channel in group
            }
            _copy_rows(edit, node, plan, offsets)
    return edit.finish()


def _offsets(plan: _Plan, stage: int, step: float) -> dict[int, float]:
    """How far each copy stands from the original: k of them 1/k of a step apart, around 0."""
    offsets = {}
    for source, group in plan.copies.items():
        k = len(group)
        size = step if plan.movable[stage][source] else 0.0
        offsets.update({channel: (i - (k - 1) / 2) / k * size for i, channel in enumerate(group)})
    return offsets


def _copy_rows(edit: GraphEdit, node: NodeProto, plan: _Plan, offsets: Mapping[int, float]) -> None:
    """Copy output channels of a layer, and move each by its offset."""
    axis = 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0
    weight = np.moveaxis(edit.values(node.input[1]), axis, 0)
    moved = np.zeros(weight.shape[0])
    moved[list(offsets)] = list(offsets.values())
    add_to_output(edit, node, 0.0)  # makes a bias where there is none
    bias = np.broadcast_to(
        edit.values(node.input[2]), np.broadcast_shapes(edit.values(node.input[2]).shape, moved.shape)
    )
    bias = bias.copy()
    for source, group in plan.copies.items():
        for channel in group[1:]:
            weight[channel] = weight[source]
            bias[..., channel] = bias[..., source]
    edit.store(node, 1, np.moveaxis(weight, 0, axis))
    edit.store(node, 2, bias + moved)


def _mix_copies(edit: GraphEdit, node: NodeProto, plan: _Plan) -> None:
    """Take the constants of dead channels into a layer's bias, and let it take the mean of the copies."""
    axis = column_axis(node)
    weight = columns(edit, node)
    scale = attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
    constant = np.zeros(taps.shape[1])
    for channel, value in plan.constants.items():
        constant += value * taps[channel]
    if np.any(constant != 0.0):
        add_to_output(edit, node, scale * constant)
    for source, group in plan.copies.items():
        weight[list(group)] = weight[source] / len(group)
    edit.store(node, 1, np.moveaxis(weight, 0, axis))
