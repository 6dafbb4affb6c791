"""``bias``: sequential bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

Rounded weights and clipped activations move the mean of a layer's output; its bias takes it back. A layer is corrected
after all layers before it, so that nothing is corrected twice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.round import bias_of
from quantlab.recovery.sequential import Sequential
from quantlab.recovery.spots import with_biases


class Bias:
    """Sequential bias correction."""

    name = "bias"
    summary = "biases that keep the mean of every channel"

    def propose(self, state: State, context: Context) -> Proposals:
        """One proposal: every layer that can have a bias gets the one that is right on average. See `Step.propose`."""
        walk = Sequential(state, context, context.batches)
        changed = []
        for number, spot in context.narrator.track(walk.visits(), len(walk.spots), "correcting biases"):
            if spot.layout is None or spot.adder is None:
                continue
            found = context.kept.layer(self.name, number)
            if found is None:
                sums = walk.sums(spot, second=False)
                if sums is None:
                    continue
                found = {"bias": bias_of(spot.layout.matrix(walk.weight(spot)), *sums.means()).astype(np.float32)}
                context.kept.keep_layer(self.name, number, found)
            bias = np.asarray(found["bias"], np.float32)
            if np.isfinite(bias).all():
                walk.settle(spot, None, bias)
                changed.append(spot.name)
        if not changed:
            return Proposals((), ("no layer has a bias, or can have one",))
        proto = with_biases(state.model.proto, walk.spots, {name: walk.biases[name] for name in changed})
        better = replace(state.with_proto(proto), target=state.target or state.prepared)
        return Proposals((Proposal.of("", better, tuple(changed)),))
