"""Scores: every figure of a task with its interval, on all samples and slice by slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError
from quantlab.harness.comparison import Score, WorstSample
from quantlab.harness.samples import escaped
from quantlab.harness.slicing import Members
from quantlab.harness.tasks.protocol import (
    AnyMeter,
    Confusions,
    CountChange,
    Estimator,
    Evidence,
    Figure,
    Kind,
    Partial,
    Task,
)
from quantlab.statistics.bootstrap import (
    LEAST_SAMPLES,
    Bootstrapped,
    Replicates,
    Resampling,
    bca,
    part_of,
    replicate,
)
from quantlab.statistics.interval import Interval
from quantlab.statistics.proportion import proportion_lower_bound, proportion_upper_bound
from quantlab.statistics.tango import loss_interval

Indices = NDArray[np.intp]

MOST_WORST = 10
"""Worst samples, and changed cells of the confusion matrix, that are kept of each variant."""


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How intervals are made.

    Attributes:
        confidence: Coverage of the two-sided interval.
        resampling: Of the bootstrap.
    """

    confidence: float = 0.95
    resampling: Resampling = field(default_factory=Resampling)


def scores(
    task: Task, meters: Mapping[str, AnyMeter], samples: int, slices: Sequence[Members], settings: ScoringSettings
) -> dict[str, tuple[Score, ...]]:
    """Scores of every variant, on all samples and then slice by slice.

    Figures without any sample that counts, such as accuracy without labels, are left out.

    Args:
        task: What the figures are.
        meters: By variant, the reference first; each has seen the same samples.
        samples: How many.
        slices: Parts of them.
        settings: How intervals are made.

    Raises:
        DataError: If a figure is over other samples than the reference's.
    """
    built = {name: meter.estimators() for name, meter in meters.items()}
    _check_counted(task, meters)
    found: dict[str, list[Score]] = {name: [] for name in meters}
    for members in (Members(None, np.arange(samples)), *slices):
        figures = [figure for figure in task.figures if members.slice is None or figure.sliced]
        told = _Told(task, meters, members, settings)
        told.shares([figure for figure in figures if figure.kind is Kind.PROPORTION])
        told.estimates([figure for figure in figures if figure.kind is not Kind.PROPORTION], built, samples)
        for figure in figures:
            for name in meters:
                found[name] += told.scores.get((figure.name, name), ())
    return {name: tuple(rows) for name, rows in found.items()}


def _check_counted(task: Task, meters: Mapping[str, AnyMeter]) -> None:
    """Refuse a figure over other samples than the reference's: its difference would not be paired."""
    (_, reference), *others = meters.items()
    if not isinstance(reference, Partial):
        return
    for figure in task.figures:
        wanted = reference.counted(figure.name)
        for name, meter in others:
            differ = int(np.count_nonzero(meter.counted(figure.name) != wanted)) if isinstance(meter, Partial) else 0
            if differ:
                raise DataError(
                    f"{figure.name} leaves out other samples of {name} than of the reference",
                    got=f"{differ:,} samples counted for one of them alone",
                    expected="a mask that depends on the sample, not on the outputs",
                    hint="return NaN for a sample that is wrong: it counts as the worst possible",
                )


class _Told:
    """The scores of one slice, by figure and variant."""

    def __init__(self, task: Task, meters: Mapping[str, AnyMeter], members: Members, settings: ScoringSettings) -> None:
        self.meters, self.members, self.settings = meters, members, settings
        self.reference = next(iter(meters))
        self.least = max(task.least, LEAST_SAMPLES)
        self.scores: dict[tuple[str, str], tuple[Score]] = {}

    def shares(self, figures: Sequence[Figure]) -> None:
        """Figures that count samples as right or wrong."""
        for figure in figures:
            reference = self.meters[self.reference].correct(figure.name)[self.members.indices]
            counted = ~np.isnan(reference)
            if not counted.any():
                continue
            before = reference[counted] > 0.5
            for name, meter in self.meters.items():
                after = meter.correct(figure.name)[self.members.indices][counted] > 0.5
                lost, won = int(np.count_nonzero(before & ~after)), int(np.count_nonzero(after & ~before))
                n, value, old = len(after), 100.0 * float(after.mean()), 100.0 * float(before.mean())
                made = self._alone(int(after.sum()), n) if figure.against_reference else self._paired(lost, won, n)
                self._add(figure, name, n, value, old, made)

    def _paired(self, lost: int, won: int, n: int) -> Bootstrapped:
        """Tango's interval of the gain, in percentage points."""
        if n < self.least:
            return self._too_few(n)
        confidence = self.settings.confidence
        low, high = loss_interval(lost, won, n, 0.5 * (1.0 - confidence))
        return Bootstrapped(Interval(-100.0 * high, -100.0 * low, confidence), "Tango's score interval, paired")

    def _alone(self, right: int, n: int) -> Bootstrapped:
        """Clopper and Pearson's interval of a share that is no difference, in percent."""
        if n < self.least:
            return self._too_few(n)
        confidence = self.settings.confidence
        alpha = 0.5 * (1.0 - confidence)
        low, high = proportion_lower_bound(right, n, alpha), proportion_upper_bound(right, n, alpha)
        return Bootstrapped(Interval(100.0 * low, 100.0 * high, confidence), "Clopper and Pearson's exact interval")

    def estimates(self, figures: Sequence[Figure], built: Mapping[str, Mapping[str, Estimator]], samples: int) -> None:
        """Figures that are functions of the samples' weights; those of the same samples share their resamples."""
        groups: dict[bytes, tuple[Indices, list[Figure]]] = {}
        for figure in figures:
            indices = self._counted(figure)
            if len(indices):
                groups.setdefault(indices.tobytes(), (indices, []))[1].append(figure)
        for indices, group in groups.values():
            n = len(indices)
            parts = {
                (figure.name, name): part_of(built[name][figure.name], indices, samples)
                for figure in group
                for name in self.meters
            }
            drawn = [
                (figure.name, name)
                for figure in group
                if figure.kind is Kind.ESTIMATE and n >= self.least
                for name in self.meters
            ]
            made = replicate([parts[key] for key in drawn], n, self.settings.resampling) if drawn else []
            replicates = dict(zip(drawn, made, strict=True))
            for figure in group:
                self._estimate(figure, n, parts, replicates)

    def _counted(self, figure: Figure) -> Indices:
        meter = self.meters[self.reference]
        if not isinstance(meter, Partial):
            return self.members.indices
        return self.members.indices[meter.counted(figure.name)[self.members.indices]]

    def _estimate(
        self,
        figure: Figure,
        n: int,
        parts: Mapping[tuple[str, str], Estimator],
        replicates: Mapping[tuple[str, str], Replicates],
    ) -> None:
        values = {name: _once(parts[figure.name, name], n) for name in self.meters}
        reference = values[self.reference]
        for name, value in values.items():
            if figure.kind is Kind.EXTREME:
                made = Bootstrapped(None, "no interval: the figure is that of a single sample")
            elif n < self.least:
                made = self._too_few(n)
            else:
                own, other = replicates[figure.name, name], replicates[figure.name, self.reference]
                made = bca(own if figure.against_reference else own.minus(other), self.settings.confidence)
            self._add(figure, name, n, value, reference, made)

    def _too_few(self, n: int) -> Bootstrapped:
        return Bootstrapped(
            None, f"no interval: {n} {'sample' if n == 1 else 'samples'}, at least {self.least} are needed"
        )

    def _add(self, figure: Figure, name: str, n: int, value: float, reference: float, made: Bootstrapped) -> None:
        itself = name == self.reference
        score = Score(
            figure=figure.name,
            unit=figure.unit,
            higher_is_better=figure.higher_is_better,
            value=float(value),
            reference=float(reference),
            difference=0.0 if value == reference else float(value) - float(reference),
            interval=None if itself else made.interval,
            method="" if itself else made.words,
            n=n,
            slice=self.members.slice,
            against_reference=figure.against_reference,
        )
        self.scores[figure.name, name] = (score,)


def _once(estimator: Estimator, n: int) -> float:
    """The figure with each sample once."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(estimator(np.ones((1, n)))[0])


def worst_samples(meters: Mapping[str, AnyMeter], ids: Sequence[str]) -> dict[str, tuple[WorstSample, ...]]:
    """The samples that got worst with each variant, worst first; none of the reference, and of meters that cannot tell.

    Args:
        meters: By variant, the reference first.
        ids: Of the samples.
    """
    (first, reference), *others = meters.items()
    found: dict[str, tuple[WorstSample, ...]] = {first: ()}
    for name, meter in others:
        if not isinstance(meter, Evidence) or not isinstance(reference, Evidence):
            found[name] = ()
            continue
        drops = meter.drops(reference)
        order = np.argsort(-np.where(np.isnan(drops), -math.inf, drops), kind="stable")[:MOST_WORST]
        found[name] = tuple(
            WorstSample(
                escaped(ids[index]), meter.truth(index), reference.says(index), meter.says(index), float(drops[index]),
                meter.drop_unit,
            )
            for index in order.tolist()
            if not math.isnan(drops[index])
        )  # fmt: skip
    return found


def confusions(meters: Mapping[str, AnyMeter]) -> dict[str, tuple[CountChange, ...]]:
    """What each variant takes for what more, or less, often than the reference; the reference comes first."""
    (first, reference), *others = meters.items()
    changes = {
        name: meter.changes(reference, MOST_WORST) if isinstance(meter, Confusions) else () for name, meter in others
    }
    return {first: (), **changes}
