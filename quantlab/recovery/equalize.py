"""Cross-layer equalization: the channels of a tensor get ranges of like widths, and the layers around take it back.

A tensor that is quantized with one scale gives its widest channel 8 bits and every narrower one fewer. So channel c of
all tensors of a group (see `quantlab.graph.channel_groups`) is multiplied by a factor: the weights before it take the
factor up, those behind it the inverse, and the float model computes what it did, up to float32's rounding. Nagel et al.
2019 (arXiv:1906.04721) equalize the weights of both sides; weights here have a scale for each channel, so it is the
activations' ranges, observed on samples, that count:

    s_c = exp(strength * mean over the group's quantized tensors of log(R / r_c))

with r_c the width of channel c's range and R the widest. With strength 1 and one tensor all channels become equally
wide, but the inverses spread the weights that read them; strength 0.5 shares the burden.

Through a Clip, factors are exact for values that stay below its upper bound with them as without. A channel that
reached the bound keeps the factor 1, and others stop `HEADROOM` below it, so that what is larger than all that was
observed is not cut off; on the observed samples the function is the same.

Not done: absorption of high biases (section 4.1.3 of the paper), which is exact only for values above a bound; and the
paper's own factors from the weights of both sides, which need no samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.graph.channel_groups import channel_groups
from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.scaling import (
    LARGEST_FACTOR,
    ObservedGroup,
    Scaling,
    noisy_groups,
    observe_groups,
    scaled,
    scaled_behind_normalization,
    worthwhile,
)

STRENGTHS = (0.5, 1.0)
"""Exponents of the proposals, the cautious first."""

HEADROOM = 1.5
"""How many times the observed maximum still passes below the bound of a Clip."""


def equalizing_factors(observed: ObservedGroup, strength: float) -> NDArray[np.float64]:
    """Factors of at least 1 by channel, (C,); 1 for channels in which nothing was observed.

    Args:
        observed: A group.
        strength: 0 leaves all as it is, 1 makes the channels of a single tensor equally wide.
    """
    widths = observed.widths
    widest = widths.max(axis=1, keepdims=True)
    alive = widths > widest / np.finfo(np.float32).max
    ratios = np.where(alive, widest / np.where(alive, widths, 1.0), 1.0)
    factors = np.minimum(np.exp(strength * np.log(ratios).mean(axis=0)), LARGEST_FACTOR)
    for limit, highest in zip(observed.group.limits, observed.highest, strict=True):
        room = np.where(highest > 0, limit.high / (HEADROOM * np.where(highest > 0, highest, 1.0)), 1.0)
        factors = np.minimum(factors, np.maximum(room, 1.0))
    return np.asarray(factors, np.float64)


class Equalize:
    """The step ``equalize``."""

    name = "equalize"
    summary = "equalizes channel ranges across layers"

    def propose(self, state: State, context: Context) -> Proposals:
        """Proposals by strength: groups without Clip, then also those with one.

        Raises:
            CalibrationError: If the model fails on a sample.
        """
        if state.rounded:
            return Proposals((), ("the weights are rounded already",))
        groups = [group for group in channel_groups(state.model) if not scaled_behind_normalization(group)]
        noisy, notes = noisy_groups(context, groups)
        observed = observe_groups(state, context, noisy)
        if not observed:
            return Proposals((), notes or ("no quantized tensor lies between layers that can take up factors",))
        proposals: list[Proposal] = []
        for also_clipped, suffix in ((False, ""), (True, ", also through Clip")):
            chosen = [found for found in observed if also_clipped or not found.group.limits]
            if also_clipped and len(chosen) == sum(not found.group.limits for found in observed):
                continue
            for strength in STRENGTHS:
                scalings = _scalings(chosen, strength)
                if scalings:
                    proposals.append(scaled(state, context, f"strength {strength:g}{suffix}", scalings))
        if not proposals:
            return Proposals((), (*notes, "the channels' ranges are equally wide already"))
        return Proposals(tuple(proposals), notes)


def _scalings(observed: Sequence[ObservedGroup], strength: float) -> list[Scaling]:
    return worthwhile([(found.group, equalizing_factors(found, strength)) for found in observed])
