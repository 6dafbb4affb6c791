"""Judging a step: noise at the model's outputs before and after it, on samples that no step learned from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.quantize import Parameters
from quantlab.engines.output_noise import EXACT, Probe, float_outputs
from quantlab.errors import CalibrationError
from quantlab.graph.model import Model, open_session
from quantlab.graph.targets import TargetProfile
from quantlab.recovery.protocol import State
from quantlab.recovery.simulation import PLAIN_PAIRS, activations_alone, with_grids
from quantlab.statistics.bootstrap import Additive, Resampling, bca, replicate
from quantlab.statistics.interval import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000

LIKELY = 1.0
"""Standard errors over the samples by which the noise must fall for a step to be kept."""

Floats = NDArray[np.float64]
_TINY = float(np.finfo(np.float64).tiny)


class Judged(StrEnum):
    """What a step is judged by."""

    BOTH = "both"
    """The quantized graph as it is."""
    ACTIVATIONS = "activations"
    """The graph with its activations alone quantized: before weights are rounded well, their noise hides the rest."""


def noise_of(
    state: State,
    target: TargetProfile,
    exclude: Collection[str],
    probe: Probe,
    by: Judged = Judged.BOTH,
    grids: Mapping[str, Parameters] = MappingProxyType({}),
) -> Floats:
    """Noise of the Q/DQ graph that a state gives, by sample and output, (N, O).

    Args:
        state: The state.
        target: Rules.
        exclude: Layers that stay in floating point.
        probe: Samples, with the outputs of the original FP32 graph.
        by: Whether its weights are quantized too.
        grids: Scales and zero-points of some activations that stand in for its own.

    Raises:
        CalibrationError: If ONNX Runtime cannot run the graph.
    """
    made = state.quantized(target, exclude)
    proto = with_grids(made.proto, grids) if grids else made.proto
    if by is Judged.BOTH:
        return run_noise(state.model.with_proto(proto), probe)
    exact = activations_alone(state.model, made, proto)
    return run_noise(state.model.with_proto(exact), probe, config=dict(PLAIN_PAIRS))


def run_noise(
    model: Model,
    probe: Probe,
    *,
    first: int | None = None,
    config: dict[str, str] | None = None,
    pooled: bool = True,
) -> Floats:
    """Noise of a graph by sample and output, (N, O); see `noise_of` and `Probe.noise`."""
    session = open_session(model, threads=1, config=config, error=CalibrationError)
    names = float_outputs(session)
    return probe.noise(lambda feed: session.run(names, dict(feed)), 0, first, pooled=pooled)


def change_db(before: Floats, after: Floats, signal: Floats, seed: int = 0) -> tuple[float, Interval | None]:
    """Change of the SQNR in dB, the mean over the outputs, with a paired bootstrap interval over the samples.

    Args:
        before: Noise by sample and output, (N, O).
        after: The same samples' noise afterwards, (N, O).
        signal: Sum of the outputs' squares, (O,).
        seed: Of the resamples.
    """
    n, outputs = before.shape
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return (-math.inf if np.isfinite(before).all() else math.inf), None

    def figure(sums: Floats) -> Floats:
        least = np.maximum(EXACT * signal, _TINY)
        ratios = np.maximum(sums[:, :outputs], least) / np.maximum(sums[:, outputs:], least)
        return np.asarray(np.mean(10.0 * np.log10(ratios), axis=1))

    estimator = Additive(np.concatenate([before, after], axis=1), figure)
    found = replicate([estimator], n, Resampling(resamples=RESAMPLES, seed=seed))[0]
    return found.estimate, bca(found, CONFIDENCE).interval


def falls(before: Floats, after: Floats, signal: Floats) -> float:
    """By how many standard errors over the samples the noise falls in sum.

    Infinite for one sample, and where noise that is not finite becomes so, or the other way round.

    Args:
        before: Noise by sample and output, (N, O).
        after: The same samples' noise afterwards, (N, O).
        signal: Sum of the outputs' squares, (O,).
    """
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return math.inf if np.isfinite(after).all() else -math.inf
    scale = np.maximum(before.sum(axis=0), np.maximum(EXACT * signal, _TINY))
    differences = ((before - after) / scale).mean(axis=1)
    fall = float(differences.sum())
    error = float(np.std(differences, ddof=1)) * math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    if error > 0.0:
        return fall / error
    return math.copysign(math.inf, fall) if fall else 0.0
