"""``round``: weights whose rounding errors cancel at the layer's output, and that make up for those before it.

Layer by layer: weights are drawn to those that give the floating-point layer's output from the quantized graph's
inputs (Hubara et al. 2021, arXiv:2006.10518; how far is decided by the other half of the samples), rounded to second
order (`rounding`), and the bias is set so that the mean of every output channel is right (Nagel et al. 2019,
arXiv:1906.04721, section 4.2, here after all layers before it are settled).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantlab.graph.model import tensor_array
from quantlab.graph.weights import RoundedWeight
from quantlab.recovery.layout import Layout
from quantlab.recovery.moments import Moments, Sums
from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.rounding import channel_scales, damped, least_squares, round_second_order
from quantlab.recovery.sequential import Sequential
from quantlab.recovery.spots import Spot, with_biases

STRENGTHS = (math.inf, 10.0, 1.0, 0.1, 0.01)
"""How strongly weights are held where they are, in mean diagonals of the Hessian, the most cautious first."""

_DAMPING = 0.01
_MOST_PRODUCTS = 1 << 24
"""Products of a layer's inputs that are kept: about ten matrices of 128 MiB at a time."""
_WORTH = 0.002
"""Share by which the error on the other half must fall for a weaker hold to be taken."""

Floats = NDArray[np.float64]


class Round:
    """Second-order rounding of weights."""

    name = "round"
    summary = "weights rounded to second order, layer after layer, with their biases"

    def propose(self, state: State, context: Context) -> Proposals:
        """One proposal: every layer of a known form rounded. See `Step.propose`."""
        walk = Sequential(state, context, context.batches)
        rounded = dict(state.rounded)
        changed, left = [], []
        for number, spot in context.narrator.track(walk.visits(), len(walk.spots), "rounding"):
            reason = _reason(spot, state)
            found = context.kept.layer(self.name, number)
            if reason is None and found is None:
                found, reason = self._settled(spot, state, walk)
                if found is not None:
                    context.kept.keep_layer(self.name, number, found)
            if reason is not None or found is None:
                left.append(f"{spot.name} keeps the nearest codes: {reason}")
                continue
            made = RoundedWeight(found["codes"].astype(np.int8), found["scales"].astype(np.float32), int(found["axis"]))
            rounded[spot.weight] = made
            bias = np.asarray(found["bias"], np.float32) if "bias" in found else None
            walk.settle(spot, made.values(), bias)
            changed.append(spot.name)
        if not changed:
            return Proposals((), tuple(left) or ("no layer has a constant weight",))
        proto = with_biases(
            state.model.proto, walk.spots, {name: walk.biases[name] for name in changed if name in walk.biases}
        )
        better = replace(state.with_proto(proto), rounded=rounded, target=state.target or state.prepared)
        return Proposals((Proposal.of("", better, tuple(changed)),), tuple(left))

    def _settled(
        self, spot: Spot, state: State, walk: Sequential
    ) -> tuple[dict[str, NDArray[np.generic]] | None, str | None]:
        """Codes, scales, axis and bias of a layer; or why it is left alone."""
        sums = walk.sums(spot)
        if sums is None or spot.layout is None:
            return None, "its operator has attributes or shapes that rounding does not know"
        if not sums.finite:
            return None, "its inputs or outputs are not finite"
        stored = next(tensor for tensor in state.model.proto.graph.initializer if tensor.name == spot.weight)
        weight = np.asarray(tensor_array(state.model, stored), np.float32)
        try:
            made, bias = settle_layer(spot, spot.layout, weight, sums)
        except np.linalg.LinAlgError:
            return None, "its inputs are too much alike for the equations to be solved"
        found: dict[str, NDArray[np.generic]] = {
            "codes": made.codes, "scales": made.scales, "axis": np.array(made.axis)
        }  # fmt: skip
        return found if bias is None else {**found, "bias": bias}, None


def settle_layer(
    spot: Spot, layout: Layout, weight: NDArray[np.float32], sums: Sums
) -> tuple[RoundedWeight, NDArray[np.float32] | None]:
    """The codes of a layer's weight, and its bias if it can have one.

    Args:
        spot: The layer.
        layout: How it reads its input.
        weight: Its floating-point weight.
        sums: Over its rows in the quantized graph; they are forgotten.
    """
    free = spot.adder is not None
    matrix = layout.matrix(weight)
    halves = [sums.moments(half) for half in (0, 1)] if sums.halves == 2 else []
    whole = sums.moments()
    sums.forget()  # of wide layers, each matrix of inputs by inputs is large
    strength = _strength(matrix, halves, free=free)
    del halves
    x, y = whole.x, whole.y
    used = whole.centred() if free else whole
    del whole
    aimed = matrix if math.isinf(strength) else least_squares(used.yx, used.xx, matrix, strength)
    dead = ~matrix.any(axis=2, keepdims=True)
    aimed = np.where(dead, 0.0, aimed)
    scales = channel_scales(aimed)
    if layout.shared_scales:
        groups, outputs, inputs = aimed.shape
        joined = channel_scales(aimed.swapaxes(0, 1).reshape(1, outputs, groups * inputs))
        scales = np.broadcast_to(joined, (groups, outputs)).copy()
    hessian = damped(used.xx, _DAMPING)
    del used, matrix
    codes = round_second_order(aimed, scales, hessian)
    per_channel = scales[0] if layout.shared_scales else scales.reshape(-1)
    made = RoundedWeight(
        np.ascontiguousarray(layout.restore(codes)).astype(np.int8), per_channel.astype(np.float32), layout.axis
    )
    if not free:
        return made, None
    values = codes * scales[:, :, None]
    return made, bias_of(values, x, y).astype(np.float32)


def bias_of(weight: Floats, x: Floats, y: Floats) -> Floats:
    """The bias at which a weight (G, N, K) gives the mean that its targets have, (G * N,).

    Args:
        weight: (G, N, K).
        x: Mean of its rows, (G, K).
        y: Mean of their targets, (G, N).
    """
    return np.asarray((y - np.einsum("gnk,gk->gn", weight, x)).reshape(-1))


def _strength(matrix: Floats, halves: Sequence[Moments], *, free: bool) -> float:
    """The hold at which weights of either half of the samples serve the other half best.

    Holds are tried from the strongest on; the search ends at the first that does not surely serve better.
    """
    if not halves:
        return math.inf
    best, lowest = math.inf, math.inf
    for strength in STRENGTHS:
        loss = 0.0
        for own, other in (halves, halves[::-1]):
            used = own.centred() if free else own
            weight = matrix if math.isinf(strength) else least_squares(used.yx, used.xx, matrix, strength)
            bias = bias_of(weight, own.x, own.y).reshape(own.y.shape) if free else np.zeros_like(own.y)
            loss += other.loss(weight, bias)
        if loss >= lowest * (1.0 - _WORTH):
            break
        best, lowest = strength, loss
    return best


def _reason(spot: Spot, state: State) -> str | None:
    """Why a layer is left alone before anything is measured; None if it is not."""
    if spot.shared:
        return "its weight is read by another node too"
    if spot.layout is not None and spot.layout.groups * spot.layout.inputs**2 > _MOST_PRODUCTS:
        return f"its {spot.layout.inputs:,} inputs have too many products to be kept"
    return "its weight is rounded already" if spot.weight in state.rounded else None
