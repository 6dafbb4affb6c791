"""What the steps that scale channels have in common: what is observed of groups, and the state behind a scaling."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantlab.graph.channel_groups import ChannelGroup, Role, apply
from quantlab.graph.layers import PRODUCTS
from quantlab.recovery.protocol import Context, Proposal, State

LARGEST_FACTOR = 1e3
"""Factors stay between its inverse and this: channels that hardly carry anything are not blown up without end."""

SMALLEST_CHANGE = 1.02
"""Factors that all lie within this ratio are not worth a proposal."""

SMALLEST_SHARE = 0.005
"""Groups whose tensors make less of the noise at the outputs than this, all together, are left alone."""

_SCALES = frozenset({"LayerNormalization", "Mul"})

Scaling = tuple[ChannelGroup, NDArray[np.float64]]
"""A group with its factors by channel, (C,)."""


@dataclass(frozen=True, slots=True, eq=False)
class ObservedGroup:
    """A group of which a tensor is quantized, with what the samples put into its channels.

    Attributes:
        group: The group.
        widths: Width of each channel's range, which always includes zero, in each quantized tensor: the largest
            magnitude if the target is symmetric, else from the minimum to the maximum. (tensors, C).
        highest: Maximum of each channel behind each Clip of the group, (Clips, C), in the order of its limits.
    """

    group: ChannelGroup
    widths: NDArray[np.float64]
    highest: NDArray[np.float64]


def scaled_behind_normalization(group: ChannelGroup) -> bool:
    """Whether a group is made by per-channel scales alone and read by matrix products alone: `smooth`'s part."""
    made = {absorber.op_type for absorber in group.of(Role.PRODUCER)}
    read = {absorber.op_type for absorber in group.of(Role.CONSUMER)}
    return made <= _SCALES and read <= PRODUCTS and not group.limits


def noisy_groups(context: Context, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], tuple[str, ...]]:
    """Groups that are worth looking at, and a note on the others; all of them where shares were not measured."""
    if not context.shares:
        return list(groups), ()
    noisy = [group for group in groups if sum(context.shares.get(name, 0.0) for name in group.tensors) > SMALLEST_SHARE]
    n_quiet = len(groups) - len(noisy)
    note = (
        f"{n_quiet} of {len(groups)} groups make less than {SMALLEST_SHARE:.1%} of the noise each and stay as they are"
    )
    return noisy, (note,) if n_quiet else ()


def observe_groups(state: State, context: Context, groups: Sequence[ChannelGroup]) -> tuple[ObservedGroup, ...]:
    """Look at the channels of groups; those without a quantized tensor, or that no sample reached, are left out.

    Raises:
        CalibrationError: If the model fails on a sample.
    """
    quantized = state.quantized(context.target, context.exclude).tensors if groups else {}
    chosen: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for group in groups:  # a tensor that is in two groups by two axes is scaled by one of them
        among = any(tensor in quantized for tensor in group.tensors)
        if among and all(taken.get(name, axis) == axis for name, axis in group.tensors.items()):
            taken.update(group.tensors)
            chosen.append(group)
    axes: dict[str, int] = {}
    for group in chosen:
        clips = {limit.tensor for limit in group.limits}
        for tensor, axis in group.tensors.items():
            if tensor in quantized or tensor in clips:
                axes.setdefault(tensor, axis)
    extremes: dict[str, NDArray[np.float64]] = {}
    for tensor, found in context.observations.channels(state, axes).items() if axes else ():
        ends = np.stack([found.minima, found.maxima]).astype(np.float64)
        extremes[tensor] = np.where(np.isfinite(ends), ends, 0.0)
    return tuple(
        observed
        for group in chosen
        if (observed := _observed(group, quantized, extremes, symmetric=context.target.activation.symmetric))
    )


def _observed(
    group: ChannelGroup,
    quantized: Collection[str],
    extremes: Mapping[str, NDArray[np.float64]],
    *,
    symmetric: bool,
) -> ObservedGroup | None:
    tensors = [tensor for tensor in group.tensors if tensor in quantized]
    clips = [limit.tensor for limit in group.limits]
    found = {tensor: extremes.get(tensor) for tensor in (*tensors, *clips)}
    known = {tensor: ends for tensor, ends in found.items() if ends is not None and ends.shape[1] == group.size}
    if len(known) < len(found):
        return None
    widths = [
        np.abs(known[tensor]).max(axis=0) if symmetric else known[tensor][1].clip(0) - known[tensor][0].clip(None, 0)
        for tensor in tensors
    ]
    highest = np.array([known[tensor][1] for tensor in clips]).reshape(len(clips), group.size)
    return ObservedGroup(group, np.stack(widths), highest)


def bounded(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors within `LARGEST_FACTOR` of 1."""
    return np.clip(factors, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR)


def worthwhile(scalings: Sequence[Scaling]) -> list[Scaling]:
    """Those whose factors tell channels apart."""
    return [(group, factors) for group, factors in scalings if factors.max() > SMALLEST_CHANGE * factors.min()]


def scaled(state: State, context: Context, label: str, scalings: Sequence[Scaling]) -> Proposal:
    """The proposal to multiply the channels of groups; their tensors' ranges are observed anew.

    Raises:
        CalibrationError: If the model fails on a sample.
    """

    def scale() -> State:
        return state.with_proto(apply(state.model, scalings))

    moved = {tensor for group, _ in scalings for tensor in group.tensors}
    tensors = [entry.name for entry in state.table.tensors if entry.name in moved]
    table = context.observations.ranges(scale(), tensors)
    changed = tuple(dict.fromkeys(node for group, _ in scalings for node in group.nodes))
    return Proposal(label, lambda: replace(scale(), table=table), changed)
