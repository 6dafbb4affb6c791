"""SmoothQuant: outliers of activations behind a layer normalization move into the weights that read them.

Channel j of the normalized tensor X is divided by s_j, which its scale and bias take up, and row j of the weights W
that read it is multiplied by s_j (Xiao et al. 2022, arXiv:2211.10438, equation 4):

    s_j = max|X_j|^strength / max|W_j|^(1 - strength)

The float model computes what it did, up to float32's rounding, on any input. The s_j are divided by their geometric
mean, which changes nothing that is quantized, and keeps the tensor's magnitude.

The normalization may be one operator or written out, ending in a product with a constant by channel and a sum; all that
reads its result must be matrix products with constant weights, also behind operators that leave channels alone.

Not done: inputs of products that are made otherwise, such as an attention's result or a GELU's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.graph.channel_groups import Role, channel_groups, channel_peaks, constant_of
from quantlab.graph.model import Model
from quantlab.recovery.protocol import Context, Proposal, Proposals, State
from quantlab.recovery.scaling import (
    ObservedGroup,
    bounded,
    noisy_groups,
    observe_groups,
    scaled,
    scaled_behind_normalization,
    worthwhile,
)

STRENGTHS = (0.5, 0.75)
"""Exponents of the proposals: 0.5 is the paper's default, 0.75 what it uses where outliers are larger."""

_FLOOR = 1e-5
"""Peaks below this share of the largest count as it, as in the authors' code: no channel divides by zero."""


def smoothing_factors(observed: ObservedGroup, model: Model, strength: float) -> NDArray[np.float64]:
    """The factors 1 / s_j by channel, (C,), of geometric mean 1.

    Args:
        observed: A group that matrix products read.
        model: Holds their weights.
        strength: How much of the activations' spread moves into the weights.

    Raises:
        ModelError: If an external weight cannot be read.
    """
    consumers = observed.group.of(Role.CONSUMER)
    weights = np.max([channel_peaks(absorber, constant_of(model, absorber)) for absorber in consumers], axis=0)
    logs = (1.0 - strength) * _logs(weights) - strength * _logs(observed.widths.max(axis=0))
    return bounded(np.exp(logs - logs.mean()))


def _logs(peaks: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = float(peaks.max())
    logs: NDArray[np.float64] = np.log(np.maximum(peaks, _FLOOR * largest)) if largest > 0 else np.zeros_like(peaks)
    return logs


class Smooth:
    """The step ``smooth``."""

    name = "smooth"
    summary = "moves outliers behind layer normalization into weights"

    def propose(self, state: State, context: Context) -> Proposals:
        """One proposal a strength, for all normalizations at once.

        Raises:
            CalibrationError: If the model fails on a sample.
        """
        if state.rounded:
            return Proposals((), ("the weights are rounded already",))
        groups = [group for group in channel_groups(state.model) if scaled_behind_normalization(group)]
        noisy, notes = noisy_groups(context, groups)
        observed = observe_groups(state, context, noisy)
        if not observed:
            return Proposals((), notes or ("no quantized matrix product reads a layer normalization",))
        proposals: list[Proposal] = []
        for strength in STRENGTHS:
            factors = [(found.group, smoothing_factors(found, state.model, strength)) for found in observed]
            scalings = worthwhile(factors)
            if scalings:
                proposals.append(scaled(state, context, f"strength {strength:g}", scalings))
        if not proposals:
            return Proposals((), (*notes, "channels and weights are balanced already"))
        return Proposals(tuple(proposals), notes)
