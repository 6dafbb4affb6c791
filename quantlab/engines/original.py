"""Ranges for the tensors that only the user's own file has, so that TensorRT 10 finds every tensor in the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.histogram import Histogram
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.observation import Observation, observe
from quantlab.errors import CalibrationError
from quantlab.graph.model import Model, open_session
from quantlab.graph.original import constant_operands, float_activations, original_only_tensors, runnable_original
from quantlab.graph.prepare import Prepared
from quantlab.graph.session import first_line
from quantlab.progress import Narrator

TOLERANCE = 1e-3
"""Largest difference, relative to the tensor's largest magnitude, that folding of weights may make on one sample."""


@dataclass(frozen=True, slots=True)
class OriginalObservation:
    """What was observed of the original graph.

    Attributes:
        histograms: By name: aliases share the histogram of their tensor; the others were counted.
        aliases: Names that took the range of a tensor of the prepared graph.
        observed: Names that a second pass counted.
        constants: Names of stored operands.
        degradations: Tensors of the prepared graph that hold other values in the original one.
    """

    histograms: Observation
    aliases: Mapping[str, str]
    observed: tuple[str, ...]
    constants: tuple[str, ...]
    degradations: tuple[Degradation, ...]


def observe_original(
    prepared: Prepared,
    original: Model,
    histograms: Observation,
    dataset: Dataset,
    threads: int,
    narrator: Narrator,
) -> OriginalObservation:
    """Histograms of the tensors that the user's file has and the prepared graph has not.

    Names that survive, and aliases, are compared on the first sample: both graphs must give the same values. Tensors
    that differ, or that only the original graph has, are counted in one more pass over the data; without any there is
    no second pass.

    Args:
        prepared: The graph that ``histograms`` belong to.
        original: The model that it was prepared from.
        histograms: What `observe` counted of the prepared graph.
        dataset: The same samples.
        threads: Workers, at least 1.
        narrator: Told of progress.

    Raises:
        CalibrationError: If the original graph cannot be run, or fails on a sample.
        DataError: From the data set.
    """
    tensors = original_only_tensors(original, histograms)
    runnable = runnable_original(prepared, original)
    differing = _differing(prepared, runnable, histograms, tensors.aliases, next(iter(dataset)))
    aliases = {name: source for name, source in tensors.aliases.items() if name not in differing}
    missing = [name for name in float_activations(original.proto) if name in {*tensors.missing, *differing}]
    found = Observation()
    for name, source in aliases.items():
        found[name] = histograms[source]
        if source in histograms.non_finite:
            found.non_finite[name] = histograms.non_finite[source]
        if source in histograms.absent:
            found.absent[name] = histograms.absent[source]
    survivors = [name for name in missing if name in histograms]  # the table keeps those of the prepared graph
    wanted = [name for name in missing if name not in histograms]
    if wanted:
        narrator.say(f"tensors of the model file that preparation folded away: {len(wanted)}; one more pass for them")
        second = observe(runnable, dataset, wanted, threads, narrator)
        found.update(second)
        found.non_finite.update(second.non_finite)
        found.absent.update(second.absent)
    constants = {name: value for name, value in constant_operands(original).items() if name not in histograms}
    for name, value in constants.items():
        found[name] = Histogram()
        found[name].add(value)
    degradations = []
    if survivors:
        message = "tensors hold other values in the prepared graph than in the model file; the cache has the former"
        degradations.append(Degradation.of(DegradationCode.UNMATCHED_RANGES, message, survivors))
    return OriginalObservation(found, aliases, tuple(wanted), tuple(constants), tuple(degradations))


def _differing(
    prepared: Prepared,
    runnable: Prepared,
    known: Collection[str],
    aliases: Mapping[str, str],
    sample: Sample,
) -> set[str]:
    """Names of the original graph whose values on a sample are not those of their tensor in the prepared graph."""
    names = [name for name in float_activations(runnable.model.proto) if name in known]
    feed = {
        name: np.repeat(value[None], prepared.fixed_batch or 1, axis=0) for name, value in sample.inputs.items()
    }  # fmt: skip
    names = [name for name in names if name not in feed]
    theirs = _values(runnable, [*names, *aliases], feed)
    ours = _values(prepared, [*names, *aliases.values()], feed) | feed
    pairs = [*((name, name) for name in names), *aliases.items()]
    return {name for name, source in pairs if not _same(theirs[name], ours[source], ordered=name == source)}


def _values(
    prepared: Prepared, names: Sequence[str], feed: Mapping[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    wanted = list(dict.fromkeys(name for name in names if name not in feed))
    if not wanted:  # an empty list would mean all outputs to ONNX Runtime
        return {}
    session = open_session(prepared.model, threads=0, outputs=wanted, error=CalibrationError)
    try:
        return dict(zip(wanted, session.run(wanted, dict(feed)), strict=True))
    except Exception as cause:  # onnxruntime's exceptions share no base class
        raise CalibrationError(
            f"model {prepared.model.name} failed on the first sample", got=first_line(cause)
        ) from cause  # fmt: skip


def _same(a: NDArray[np.generic], b: NDArray[np.generic], *, ordered: bool) -> bool:
    if a.size != b.size:
        return False
    left, right = (np.asarray(value, np.float64).reshape(-1) for value in (a, b))
    if not ordered:
        left, right = np.sort(left), np.sort(right)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return False
    largest = float(np.abs(right[finite]).max(initial=0.0))
    return float(np.abs(left[finite] - right[finite]).max(initial=0.0)) <= TOLERANCE * largest
