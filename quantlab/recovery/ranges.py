"""``ranges``: the range of each activation is chosen anew, by the noise at the model's outputs.

A range method looks at one tensor. Its expected error says little of the model: rounding errors of many inputs average
out in a layer's sum, clipping errors all point one way and do not. So the ranges of the other methods are tried, tensor
by tensor and then for all of them, and judged at the outputs (`quantlab.engines.range_search`), with the weights in
floating point: as they are before `round`, their noise would hide which range is the better one. Method ``auto`` does
the same for a model as it is, whose weights are rounded to the nearest codes.

Where `shift` is to follow, tensors that it is likely to move have the grid that it gives them: unsigned, with a
zero-point. Their symmetric range stays as it is, if it is wide enough for moving to be worthwhile: should they not be
moved after all, nothing was measured with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantlab.calibrators.methods import METHOD_NAMES
from quantlab.calibrators.quantize import INT8_SYMMETRIC, UINT8_AFFINE, Parameters, Scheme, parameters
from quantlab.calibrators.table import TensorEntry
from quantlab.engines.range_search import LIKELY, Candidate, Group, RangeSearch, alike
from quantlab.graph.index import GraphIndex
from quantlab.graph.scales import sharing_groups
from quantlab.graph.targets import BiasType
from quantlab.recovery.judge import falls
from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.shift import as_int8, moved_grids, worth_moving
from quantlab.recovery.simulation import PLAIN_PAIRS, activations_alone

LARGE_SHARE = 0.02
"""Share of the noise at the outputs from which another range is looked for: a search costs runs for each tensor."""

_HOPELESS = -1.0  # a few samples seldom show what clipping costs, so a wider range may look worse on them


class Ranges:
    """Chooses the ranges of activations."""

    name = "ranges"
    summary = "ranges chosen among those of all methods by the noise at the outputs"

    def propose(self, state: State, context: Context) -> Proposals:
        """One proposal: the ranges that a search over the tensors finds. See `Step.propose`."""
        moved = moved_grids(state, context)
        search, grids = _search(state, context, moved)
        candidates = _candidates(state, context, search.groups, grids, moved)
        own = {name: found[0] for name, found in candidates.items()}
        searched = {group.name: candidates[group.name] for group in search.groups if _matters(group, context)}
        if not searched:
            return Proposals((), (f"no tensor makes {LARGE_SHARE:.0%} of the noise",))
        if not any(len(found) > 1 for found in searched.values()):
            return Proposals((), ("the table holds the ranges of one method alone",))
        chosen = search.choose(own, searched, context.narrator)
        for method in METHOD_NAMES:  # tensors in a row, on one grid, gain by another together or not at all
            every = own | {name: one for name, found in searched.items() for one in found if one.label == method}
            if search.falls(search.noise(chosen), search.noise(every)) > LIKELY:
                chosen = search.choose(every, searched, context.narrator)
        changed = {
            name: chosen[group.name].label
            for group in search.groups
            for name in group.tensors
            if not alike(chosen[group.name].grid, own[group.name].grid)
        }
        if not changed:
            return Proposals((), (f"no range is surely better than that of {state.table.method}",))
        counts = {method: list(changed.values()).count(method) for method in METHOD_NAMES}
        label = ", ".join(f"{count} by {method}" for method, count in counts.items() if count)
        entries = state.table.entries()
        for name, found in changed.items():
            if name not in moved:
                entries[name] = _with(entries[name], context.target.activation, state.table.method, found)
                continue
            entries[name] = _with(entries[name], UINT8_AFFINE, state.table.method, found)
            if not worth_moving(chosen[name].grid.scale, grids[name].scale):
                entries[name] = _with(entries[name], INT8_SYMMETRIC, state.table.method, found)
        # What auto measured was with other ranges.
        table = replace(state.table, tensors=tuple(entries[name] for name in sorted(entries)), auto=None)
        n = len(moved)
        notes = (f"measured with {n} tensors on the grids that shift is to give them",) if n else ()
        return Proposals((Proposal.of(label, replace(state, table=table), tuple(sorted(changed))),), notes)


def _search(
    state: State, context: Context, moved: Mapping[str, Parameters]
) -> tuple[RangeSearch, Mapping[str, Parameters]]:
    """The Q/DQ graph with weights and biases in floating point, and the grids of its activations as they are."""
    target, probe = context.target, context.search
    made = state.quantized(replace(target, bias=BiasType.FLOAT), context.exclude)
    together = made.tensors.keys() - moved.keys()  # a moved tensor has a grid of its own
    search = RangeSearch(
        state.model,
        activations_alone(state.model, made, made.proto),
        target.activation,
        probe,
        lambda before, after: falls(before, after, probe.signal),
        sharing_groups(together, GraphIndex(state.model.proto.graph), target.shared_scale_ops),
        hopeless=_HOPELESS,
        config=dict(PLAIN_PAIRS),
    )
    return search, made.tensors


def _candidates(
    state: State,
    context: Context,
    groups: Sequence[Group],
    grids: Mapping[str, Parameters],
    moved: Mapping[str, Parameters],
) -> dict[str, list[Candidate]]:
    """The grids of each group, by its name: its own first, then those of the other methods."""
    entries = state.table.entries()
    found: dict[str, list[Candidate]] = {}
    for group in groups:
        found[group.name] = [Candidate(state.table.method, moved.get(group.name, grids[group.name]))]
        scheme = UINT8_AFFINE if group.name in moved else context.target.activation
        own = [entries[name] for name in group.tensors if name in entries]
        if len(own) < len(group.tensors) or any(entry.minimum == entry.maximum == 0.0 for entry in own):
            continue  # the grid is not the table's
        for label in (name for name in METHOD_NAMES if name != state.table.method):
            ranges = [entry.ranges.get(scheme.name, {}).get(label) for entry in own]
            known = [one for one in ranges if one is not None]
            if len(known) < len(ranges):
                continue
            # Tensors that share a scale have the widest of their ranges.
            grid = parameters(min(one.low for one in known), max(one.high for one in known), scheme)
            if group.name in moved:
                if not _stays_moved(own[0], label, grid.scale, grids[group.name].scale):
                    continue
                grid = as_int8(grid)
            found[group.name].append(Candidate(label, grid))
    return found


def _stays_moved(entry: TensorEntry, label: str, step: float, scale: float) -> bool:
    """Whether a tensor stays worth moving with a method's unsigned step: from its symmetric scale or the method's."""
    symmetric = entry.ranges.get(INT8_SYMMETRIC.name, {}).get(label)
    scales = [scale] if symmetric is None else [scale, parameters(symmetric.low, symmetric.high, INT8_SYMMETRIC).scale]
    return any(worth_moving(step, one) for one in scales)


def _matters(group: Group, context: Context) -> bool:
    return not context.shares or sum(context.shares.get(name, 0.0) for name in group.tensors) >= LARGE_SHARE


def _with(entry: TensorEntry, scheme: Scheme, method: str, label: str) -> TensorEntry:
    """An entry with the range of another method in the place of the table's, for one scheme."""
    by_method = entry.ranges[scheme.name]
    chosen = {**by_method, method: replace(by_method[label], picked=label)}
    return replace(entry, ranges={**entry.ranges, scheme.name: chosen})
