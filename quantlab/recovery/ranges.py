"""``ranges``: the range of each activation is chosen anew, by the noise at the model's outputs.

A range method looks at one tensor. Its expected error says little of the model: rounding errors of many inputs average
out in a layer's sum, clipping errors all point one way and do not. So the ranges of the other methods are tried, tensor
by tensor and then for all of them, and judged at the outputs (`quantlab.engines.range_search`), with the weights in
floating point: as they are before `round`, their noise would hide which range is the better one. Method ``auto`` does
the same for a model as it is, whose weights are rounded to the nearest codes.

Where `shift` is to follow, tensors that it will move have the grid that it will give them: unsigned, with a zero-point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantlab.calibrators.methods import METHOD_NAMES
from quantlab.calibrators.quantize import UINT8_AFFINE, Parameters, parameters
from quantlab.calibrators.table import TensorEntry
from quantlab.engines.range_search import LIKELY, Candidate, Group, RangeSearch
from quantlab.graph.targets import BiasType
from quantlab.recovery.judge import falls
from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.shift import moved_grids
from quantlab.recovery.simulation import PLAIN_PAIRS, exact_weights, float_weights, with_values

LARGE_SHARE = 0.02
"""Share of the noise at the outputs from which another range is looked for: a search costs runs for each tensor."""

_HOPELESS = -1.0  # a few samples seldom show what clipping costs, so a wider range may look worse on them
_MIDDLE = 128


class Ranges:
    """Chooses the ranges of activations."""

    name = "ranges"
    summary = "ranges chosen among those of all methods by the noise at the outputs"

    def propose(self, state: State, context: Context) -> Proposals:
        """One proposal: the ranges that a search over the tensors finds. See `Step.propose`."""
        search = _search(state, context)
        candidates = _candidates(state, context, search.groups)
        own = {scale: found[0] for scale, found in candidates.items()}
        searched = {group.scale: candidates[group.scale] for group in search.groups if _matters(group, context)}
        if not any(len(found) > 1 for found in searched.values()):
            return Proposals((), ("the table holds the ranges of one method alone",))
        chosen = search.choose(own, searched, context.narrator)
        for method in METHOD_NAMES:  # tensors in a row, on one grid, gain by another together or not at all
            every = own | {scale: one for scale, found in searched.items() for one in found if one.label == method}
            if search.falls(search.noise(chosen), search.noise(every)) > LIKELY:
                chosen = search.choose(every, searched, context.narrator)
        changed = {
            name: chosen[group.scale].label
            for group in search.groups
            for name in group.tensors
            if chosen[group.scale] is not own[group.scale]
        }
        if not changed:
            return Proposals((), (f"no range is surely better than that of {state.table.method}",))
        counts = {method: list(changed.values()).count(method) for method in METHOD_NAMES}
        label = ", ".join(f"{count} by {method}" for method, count in counts.items() if count)
        tensors = tuple(_with(entry, state.table.method, changed.get(entry.name)) for entry in state.table.tensors)
        better = replace(state, table=replace(state.table, tensors=tensors))
        return Proposals((Proposal(label, better, tuple(sorted(changed))),))


def _search(state: State, context: Context) -> RangeSearch:
    """The Q/DQ graph with weights and biases in floating point."""
    made = state.quantized(replace(context.target, bias=BiasType.FLOAT), context.exclude)
    plain = float_weights(state.model, made.proto)
    exact = with_values(plain, exact_weights(state.model, plain, {*made.layers, *made.kept}))
    probe = context.search
    return RangeSearch(
        state.model,
        exact,
        context.target.activation,
        probe,
        lambda before, after: falls(before, after, probe.signal),
        hopeless=_HOPELESS,
        config=dict(PLAIN_PAIRS),
    )


def _candidates(state: State, context: Context, groups: Sequence[Group]) -> dict[str, list[Candidate]]:
    """The grids of each group, by the name of its scale: its own first, then those of the other methods."""
    target, entries = context.target.activation, state.table.entries()
    quantized, moved = state.quantized(context.target, context.exclude).tensors, moved_grids(state, context)
    found: dict[str, list[Candidate]] = {}
    for group in groups:
        first = group.tensors[0]
        alone = len(group.tensors) == 1 and first in moved
        scheme, middle = (UINT8_AFFINE, _MIDDLE) if alone else (target, 0)
        own = Candidate(state.table.method, moved[first] if alone else quantized[first])
        found[group.scale] = [own]
        for label in (name for name in METHOD_NAMES if name != state.table.method):
            ranges = [entries[name].ranges.get(scheme.name, {}).get(label) for name in group.tensors]
            known = [one for one in ranges if one is not None]
            if len(known) == len(ranges):  # tensors that share a scale have the widest of their ranges
                grid = parameters(min(one.low for one in known), max(one.high for one in known), scheme)
                found[group.scale].append(Candidate(label, Parameters(grid.scale, grid.zero_point - middle)))
    return found


def _matters(group: Group, context: Context) -> bool:
    return not context.shares or sum(context.shares.get(name, 0.0) for name in group.tensors) >= LARGE_SHARE


def _with(entry: TensorEntry, method: str, label: str | None) -> TensorEntry:
    """An entry with the ranges of another method in the place of the table's; itself without a label."""
    if label is None:
        return entry
    ranges = {
        scheme: {**by_method, method: replace(by_method[label], picked=label)} if label in by_method else by_method
        for scheme, by_method in entry.ranges.items()
    }
    return replace(entry, ranges=ranges)
