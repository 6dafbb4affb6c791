"""Ranges for the tensors that only the user's own file has, so that TensorRT 10 finds every tensor in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.extremes import ChannelExtremes, Extremes
from quantlab.calibrators.histogram import Histogram
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.engines.observation import Observation, observe
from quantlab.errors import CalibrationError
from quantlab.graph.folded import OriginalPlan
from quantlab.graph.model import Model, open_session
from quantlab.graph.original import constant_operands, float_activations, runnable_original
from quantlab.graph.prepare import Prepared
from quantlab.graph.session import Optimization, first_line
from quantlab.progress import Narrator

TOLERANCE = 1e-3
"""Largest difference, relative to the tensor's largest magnitude, that folding of weights may make on one sample."""

_TOGETHER = 40


@dataclass(frozen=True, slots=True)
class OriginalObservation:
    """What is known of the tensors that only the original graph has.

    Attributes:
        histograms: By name: aliases share the histogram of their tensor, paddings add zeros to it, and the tensors that
            nothing tells were counted in a second pass.
        extremes: Minimum and maximum by name, of tensors before a folded batch normalization.
        stored: The same of stored operands; their totals are 0, for they were not observed.
        observed: Names that the second pass counted.
    """

    histograms: Observation
    extremes: Mapping[str, Extremes]
    stored: Mapping[str, Extremes]
    observed: tuple[str, ...]


def observe_original(
    prepared: Prepared,
    original: Model,
    plan: OriginalPlan,
    observation: Observation,
    dataset: Dataset,
    threads: int,
    narrator: Narrator,
) -> OriginalObservation:
    """Ranges of the tensors that the user's file has and the prepared graph has not.

    What the plan derives is compared on the first sample with what the original graph gives. Tensors that differ, and
    those that cannot be derived, are counted in one more pass over the data; without any there is no second pass.

    Args:
        prepared: The graph that was observed.
        original: The model that it was prepared from.
        plan: Where ranges come from, for these two.
        observation: What `observe` counted of the prepared graph, with the channels that the plan asks for.
        dataset: The same samples.
        threads: Workers, at least 1.
        narrator: Told of progress.

    Raises:
        CalibrationError: If the original graph cannot be run, or fails on a sample.
        DataError: From the data set.
    """
    runnable = runnable_original(prepared, original)
    differing, zeros = _differing(prepared, runnable, plan, next(iter(dataset)))
    found = Observation()
    for name, source in plan.aliases.items():
        if name not in differing:
            _share(observation, source, found, name)
    for name, source in plan.pads.items():
        if name not in differing:
            _share(observation, source, found, name)
            found[name] = _with_zeros(observation[source], *zeros[name])
    extremes = {
        name: observation.channels[norm.source].before(norm.factor, norm.shift)
        for name, norm in plan.norms.items()
        if name not in differing
    }
    wanted = [name for name in float_activations(original.proto) if name in {*plan.missing, *differing}]
    if wanted:
        narrator.say(f"tensors of the model file that preparation folded away: {len(wanted)}; one more pass for them")
        second = observe(runnable, dataset, wanted, threads, narrator)
        found.update(second)
        found.note(second)
    stored = {
        name: Extremes(float(value.min()), float(value.max()))
        for name, value in constant_operands(original).items()
        if name not in observation and value.size and np.isfinite(value).all()
    }
    return OriginalObservation(found, extremes, stored, tuple(wanted))


def _share(observation: Observation, source: str, found: Observation, name: str) -> None:
    found[name] = observation[source]
    if source in observation.non_finite:
        found.non_finite[name] = observation.non_finite[source]
    if source in observation.absent:
        found.absent[name] = observation.absent[source]


def _with_zeros(histogram: Histogram, values: int, zeros: int) -> Histogram:
    """The histogram with so many zeros added for every so many values."""
    added = (histogram.total + histogram.non_finite) * zeros // values
    result = histogram.copy()
    if added:
        result.add(np.zeros(1, np.float32))
        result.counts[0] += added - 1
    return result


def _differing(
    prepared: Prepared, runnable: Prepared, plan: OriginalPlan, sample: Sample
) -> tuple[set[str], dict[str, tuple[int, int]]]:
    """Compare both graphs on one sample.

    Returns:
        The names whose values in the original graph are not those that the plan derives from the prepared one; and for
        each padding the values of one call before it and the zeros that it added to them.
    """
    feed = {name: np.repeat(value[None], prepared.fixed_batch or 1, axis=0) for name, value in sample.inputs.items()}
    sources = [*plan.aliases.values(), *plan.pads.values(), *sorted(plan.channelwise)]
    ours, channels = {}, {}
    for name, value in _each(prepared, sources, feed):
        ours[name] = _Summary.of(value)
        if name in plan.channelwise:
            channels[name] = ChannelExtremes()
            channels[name].add(np.asarray(value, np.float32))
    differing: set[str] = set()
    zeros: dict[str, tuple[int, int]] = {}
    for name, value in _each(runnable, [*plan.aliases, *plan.norms, *plan.pads], feed):
        if name in plan.norms:
            norm = plan.norms[name]
            told = channels[norm.source].before(norm.factor, norm.shift)
            seen = _Summary.of(np.asarray(value)[:, norm.factor != 0.0])
            alike = told.known and seen.has_extremes(told.minimum, told.maximum)
        elif name in plan.pads:
            source = ours[plan.pads[name]]
            zeros[name] = (source.size, value.size - source.size)
            alike = source.size > 0 and _Summary.of(value).like(source.with_zeros(value.size - source.size))
        else:
            alike = _Summary.of(value).like(ours[plan.aliases[name]])
        if not alike:
            differing.add(name)
    return differing, zeros


def _each(
    prepared: Prepared, names: Sequence[str], feed: Mapping[str, NDArray[np.generic]]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Values of some tensors on one batch, a few at a time, so that they are never in memory together."""
    wanted = list(dict.fromkeys(names))
    yield from ((name, feed[name]) for name in wanted if name in feed)
    wanted = [name for name in wanted if name not in feed]
    if not wanted:  # an empty list would mean all outputs to ONNX Runtime
        return
    for start in range(0, len(wanted), _TOGETHER):
        part = wanted[start : start + _TOGETHER]
        session = open_session(
            prepared.model, threads=0, outputs=part, optimize=Optimization.BASIC, arena=False, error=CalibrationError
        )
        try:
            values = session.run(part, dict(feed))
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise CalibrationError(
                f"model {prepared.model.name} failed on the first sample", got=first_line(cause)
            ) from cause
        yield from zip(part, values, strict=True)


@dataclass(frozen=True, slots=True)
class _Summary:
    """What tells tensors of other values apart, in whatever order the values are.

    Attributes:
        size: Values.
        minimum: Least finite value.
        maximum: Largest finite value.
        total: Sum of the finite values.
        squares: Sum of their squares.
        non_finite: NaN and infinite values.
    """

    size: int
    minimum: float
    maximum: float
    total: float
    squares: float
    non_finite: int

    @classmethod
    def of(cls, value: NDArray[np.generic]) -> _Summary:
        values = np.asarray(value, np.float64).reshape(-1)
        finite = values[np.isfinite(values)]
        low, high = float(finite.min(initial=math.inf)), float(finite.max(initial=-math.inf))
        squares = float(np.sum(finite * finite))
        return cls(values.size, low, high, float(finite.sum()), squares, values.size - finite.size)

    @property
    def amax(self) -> float:
        return max(abs(self.minimum), abs(self.maximum)) if self.size > self.non_finite else 0.0

    def with_zeros(self, zeros: int) -> _Summary:
        if zeros <= 0:
            return self
        return replace(self, size=self.size + zeros, minimum=min(self.minimum, 0.0), maximum=max(self.maximum, 0.0))

    def has_extremes(self, minimum: float, maximum: float) -> bool:
        """Whether its extremes are these."""
        slack = TOLERANCE * self.amax
        return abs(self.minimum - minimum) <= slack and abs(self.maximum - maximum) <= slack

    def like(self, other: _Summary) -> bool:
        """Whether both may be of the same values."""
        if (self.size, self.non_finite) != (other.size, other.non_finite):
            return False
        if self.size == self.non_finite:
            return True
        n, amax = self.size - self.non_finite, other.amax
        return (
            self.has_extremes(other.minimum, other.maximum)
            and abs(self.total - other.total) <= TOLERANCE * amax * n
            and abs(self.squares - other.squares) <= TOLERANCE * amax * amax * n
        )
