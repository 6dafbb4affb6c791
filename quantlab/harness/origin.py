"""Whether a quantized graph was made from a floating-point model: its weights tell."""

from __future__ import annotations

from quantlab.errors import QuantlabError
from quantlab.graph.model import Model
from quantlab.graph.twin import PartKind, twin_graph
from quantlab.harness.layer_drift import stored_drift

SAME_WEIGHT_DB = 10.0
"""Quantized weights are nearer than this to those that they were made from; four bits have about 20 dB."""


def foreign_weights(original: Model, quantized: Model) -> tuple[int, int] | None:
    """How many quantized weights of how many are not near those of their name in the original, or of another shape.

    None if no weight has a counterpart of its name: then nothing is known.
    """
    try:
        twins = twin_graph(original, quantized)
    except QuantlabError:
        return None
    weights = [stored_drift(twins, part).local_db for part in twins.stored if part.kind is PartKind.WEIGHT]
    foreign = sum(own is None or not own >= SAME_WEIGHT_DB for own in weights)
    return (foreign, len(weights)) if weights else None
