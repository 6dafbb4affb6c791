"""The task ``outputs``: no labels, only how far each output is from the reference's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.harness.tasks.columns import Column
from quantlab.harness.tasks.protocol import AnyMeter, Figure, Kind, Pair
from quantlab.harness.tasks.registry import Beginning, TaskRequest, refuse_options
from quantlab.harness.tasks.rows import OutputRows, classification_output
from quantlab.statistics.bootstrap import Additive, Estimator

Floats = NDArray[np.float64]

TAIL = 0.05
"""Share of the samples below the quantile that is reported: a mean hides the samples that users complain of."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is compared.

    Attributes:
        outputs: Names of the outputs.
        scores: The one that looks like class scores and has a KL divergence; None without.
    """

    outputs: tuple[str, ...]
    scores: str | None

    name = "outputs"  # not annotated: constants, not fields
    least = 10

    @property
    def figures(self) -> Sequence[Figure]:
        """Of each output; the reference's own are those of outputs without any drift."""
        found: list[Figure] = []
        for output in self.outputs:
            found += [
                _figure(f"{output}.sqnr_db", "dB", higher_is_better=True, sliced=True),
                _figure(f"{output}.sqnr_db_p5", "dB", higher_is_better=True),
                _figure(f"{output}.cosine", "", higher_is_better=True),
            ]
            if output == self.scores:
                found.append(_figure(f"{output}.kl_nats", "nats", higher_is_better=False))
            found.append(_figure(f"{output}.max_abs_error", "", higher_is_better=False, kind=Kind.EXTREME))
        return tuple(found)

    def meter(self) -> OutputsMeter:
        """A new meter."""
        return OutputsMeter(self)


def make(request: TaskRequest, beginning: Beginning) -> Outputs:
    """The task, for all outputs.

    Raises:
        ConfigError: If a setting was given.
    """
    refuse_options(request, "outputs")
    return Outputs(tuple(beginning.outputs), classification_output(beginning.outputs))


def _figure(
    name: str, unit: str, *, higher_is_better: bool, kind: Kind = Kind.ESTIMATE, sliced: bool = False
) -> Figure:
    return Figure(name, unit, higher_is_better, kind, sliced, against_reference=True)


class _Rows:
    """What is kept of one output: six numbers a sample."""

    def __init__(self) -> None:
        self.signal, self.noise = Column(np.float64), Column(np.float64)
        self.cosine, self.max_abs, self.kl = Column(np.float64), Column(np.float64), Column(np.float64)
        self.broken, self.sqnr = Column(np.bool_), Column(np.float64)

    def add(self, rows: OutputRows) -> None:
        self.signal.add(rows.signal)
        self.noise.add(rows.noise)
        self.cosine.add(rows.cosine)
        self.max_abs.add(rows.max_abs)
        self.broken.add(rows.broken)
        self.sqnr.add(rows.sqnr_db())
        if rows.kl is not None:
            self.kl.add(rows.kl)


class OutputsMeter:
    """Drift of one variant, sample by sample; a sample that is not finite has the worst figures there are."""

    drop_unit = "dB noise to signal, worst output"

    def __init__(self, task: Outputs) -> None:
        self.task = task
        self.rows = {output: _Rows() for output in task.outputs}

    def add_pair(self, batch: Batch, pair: Pair) -> Mapping[str, NDArray[np.generic]]:
        """Take in a batch; the columns of each output are in the file of samples whatever the task."""
        for output, kept in self.rows.items():
            kept.add(pair.rows[output])
        return {}

    def estimators(self) -> Mapping[str, Estimator]:
        """See `Meter`."""
        found: dict[str, Estimator] = {}
        for output, kept in self.rows.items():
            broken = kept.broken.values.astype(np.float64)
            ones = np.ones(len(broken))
            found[f"{output}.sqnr_db"] = Additive(
                np.stack([kept.signal.values, kept.noise.values, broken], axis=1), _sqnr_db
            )
            found[f"{output}.sqnr_db_p5"] = Quantile(kept.sqnr.values, TAIL)
            found[f"{output}.cosine"] = Additive(
                np.stack([np.where(kept.broken.values, -1.0, kept.cosine.values), ones], axis=1), _mean
            )
            found[f"{output}.max_abs_error"] = Most(np.where(kept.broken.values, math.inf, kept.max_abs.values))
            if output == self.task.scores:
                found[f"{output}.kl_nats"] = Additive(np.stack([kept.kl.values, ones, broken], axis=1), _mean)
        return found

    def correct(self, figure: str) -> Floats:
        """No figure here is a share.

        Raises:
            KeyError: Always.
        """
        raise KeyError(figure)

    def drops(self, reference: AnyMeter) -> Floats:
        """The SQNR of the worst output with its sign turned; samples without any noise are not ranked."""
        worst = np.min([kept.sqnr.values for kept in self.rows.values()], axis=0)
        result: Floats = np.where(worst == math.inf, math.nan, -worst)
        return result

    def says(self, index: int) -> str:
        """Figures of the worst output; nothing where there is no drift."""
        output, kept = min(self.rows.items(), key=lambda entry: float(entry[1].sqnr.values[index]))
        sqnr, cosine = float(kept.sqnr.values[index]), float(kept.cosine.values[index])
        if sqnr == math.inf:
            return ""
        words = f"{sqnr:.1f} dB, cosine {cosine:.4f}, max abs err {kept.max_abs.values[index]:.3g}"
        words = "not finite" if kept.broken.values[index] else words
        return f"{output}: {words}" if len(self.rows) > 1 else words

    def truth(self, index: int) -> None:
        """There is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantile:
    """The least value that a share of the samples does not exceed.

    Attributes:
        values: (n,), infinities allowed.
        share: 0 to 1.
    """

    values: Floats
    share: float

    def __call__(self, weights: Floats) -> Floats:
        """See `Estimator`."""
        order = np.argsort(self.values, kind="stable")
        reached = np.cumsum(weights[:, order], axis=1)
        wanted = self.share * reached[:, -1:]
        found: Floats = self.values[order][np.argmax((reached >= wanted) & (reached > 0), axis=1)]
        return np.where(reached[:, -1] > 0, found, math.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Most:
    """The largest value of any sample that counts.

    Attributes:
        values: (n,).
    """

    values: Floats

    def __call__(self, weights: Floats) -> Floats:
        """See `Estimator`."""
        result: Floats = np.max(np.where(weights > 0, self.values, -math.inf), axis=1)
        return np.where(np.isneginf(result), math.nan, result)


def _sqnr_db(sums: Floats) -> Floats:
    """Of the sums of signal, noise and broken samples."""
    signal, noise, broken = sums[:, 0], sums[:, 1], sums[:, 2]
    ratio = 10.0 * np.log10(np.where((signal > 0) & (noise > 0), signal / np.where(noise > 0, noise, 1.0), 1.0))
    usable = np.where(noise <= 0, math.inf, np.where(signal > 0, ratio, -math.inf))
    result: Floats = np.where(broken > 0, -math.inf, usable)
    return result


def _mean(sums: Floats) -> Floats:
    """Of the sums of values, samples and, if there are three, broken samples, one of which makes it infinite."""
    mean = np.where(sums[:, 1] > 0, sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1.0), math.nan)
    result: Floats = np.where(sums[:, 2] > 0, math.inf, mean) if sums.shape[1] == 3 else mean
    return result
