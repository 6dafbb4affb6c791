"""What a task provides: figures of a variant that can be estimated on any weighting of the samples.

A task's meter takes in the outputs batch by batch and keeps, for each sample, only what its figures need. Every figure
is a function of how often each sample counts, so that one mechanism gives the figure itself (each sample once), its
bootstrap distribution (random counts, the same for variant and reference: paired) and its value on a slice (the counts
of the other samples are 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.degradation import Degradation
from quantlab.harness.tasks.rows import OutputRows
from quantlab.statistics.bootstrap import Additive, Estimator

__all__ = [
    "Additive",
    "AnyMeter",
    "Arrays",
    "Confusions",
    "CountChange",
    "Degraded",
    "Estimator",
    "Evidence",
    "Figure",
    "Floats",
    "Kind",
    "Meter",
    "Pair",
    "PairedMeter",
    "Partial",
    "Task",
]

Arrays = Mapping[str, NDArray[np.generic]]
Floats = NDArray[np.float64]


class Kind(StrEnum):
    """What the values of a figure are, which says how an interval is made."""

    PROPORTION = "proportion"
    """A share of samples, each right or wrong: Tango's interval of the paired difference."""
    ESTIMATE = "estimate"
    """Anything else: BCa bootstrap over samples, paired."""
    EXTREME = "extreme"
    """The most or least of any sample: it has no interval, for a resample never holds more than the samples do."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a task.

    Attributes:
        name: Such as ``top1``, ``map``, ``miou``, ``mae``; what a policy calls it.
        unit: ``%`` for shares, else the unit of the values; empty for pure numbers.
        higher_is_better: Direction.
        kind: How its interval is made.
        sliced: Whether it means something on a part of the samples, and is told slice by slice.
        against_reference: Whether it compares with the reference's outputs itself, as an SQNR does: its interval is of
            the value, for the reference's own figure is that of no drift at all.
    """

    name: str
    unit: str
    higher_is_better: bool
    kind: Kind = Kind.ESTIMATE
    sliced: bool = True
    against_reference: bool = False


class _Figures(Protocol):
    """What every meter gives in the end."""

    def estimators(self) -> Mapping[str, Estimator]:
        """By the name of the figure; for `Kind.PROPORTION` see `correct`."""
        ...

    def correct(self, figure: str) -> Floats:
        """For a figure of `Kind.PROPORTION`: 1 for right, 0 for wrong, NaN for samples that do not count; (n,)."""
        ...


class Meter(_Figures, Protocol):
    """What one variant's outputs amount to; one meter for each variant, the reference included."""

    def add(self, batch: Batch, outputs: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Take in a batch.

        Returns:
            Columns of the file of samples, of this variant: arrays of ``len(batch.ids)`` values by name.

        Raises:
            MeasurementError: If the outputs do not fit the task.
            DataError: If a label does not fit the outputs.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """What reference and variant gave on one batch; for the reference itself, twice the same.

    Attributes:
        reference: Outputs of the reference.
        outputs: Outputs of the variant, of the same shapes.
        rows: By output: how far they are apart, sample by sample.
    """

    reference: Arrays
    outputs: Arrays
    rows: Mapping[str, OutputRows]


@runtime_checkable
class PairedMeter(_Figures, Protocol):
    """A meter whose figures need the reference's outputs as well, as an SQNR does."""

    def add_pair(self, batch: Batch, pair: Pair) -> Mapping[str, NDArray[np.generic]]:
        """Take in a batch; as `Meter.add`."""
        ...


AnyMeter = Meter | PairedMeter


@runtime_checkable
class Partial(Protocol):
    """A meter some of whose figures are over a part of the samples, such as the labelled ones."""

    def counted(self, figure: str) -> NDArray[np.bool_]:
        """The samples that a figure is over; (n,)."""
        ...


@runtime_checkable
class Evidence(Protocol):
    """A meter that can tell which samples got worse, and what was said of them."""

    @property
    def drop_unit(self) -> str:
        """What `drops` counts, in words."""
        ...

    def drops(self, reference: AnyMeter) -> Floats:
        """How much worse each sample is than with the reference; (n,), NaN for samples that are not ranked."""
        ...

    def says(self, index: int) -> str:
        """What the variant said of a sample, in a few words."""
        ...

    def truth(self, index: int) -> str | None:
        """What is true of a sample, in a few words; None if that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class CountChange:
    """One cell of the confusion matrix, for the reference and for a variant.

    Attributes:
        label: What is true.
        answer: What was said; never the label.
        reference: How often the reference says so.
        count: How often the variant says so.
    """

    label: str
    answer: str
    reference: int
    count: int


@runtime_checkable
class Confusions(Protocol):
    """A meter that knows what is taken for what."""

    def changes(self, reference: AnyMeter, most: int) -> tuple[CountChange, ...]:
        """The cells of the confusion matrix, off its diagonal, that changed most; largest change first."""
        ...


@runtime_checkable
class Degraded(Protocol):
    """A task that must tell something of its truths, such as samples that have none."""

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """What is told."""
        ...


class Task(Protocol):
    """What a model is for."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def figures(self) -> Sequence[Figure]:
        """The figures, the most important first."""
        ...

    @property
    def least(self) -> int:
        """Fewest samples with a truth that the figures mean something for."""
        ...

    def meter(self) -> AnyMeter:
        """A new meter, for one variant."""
        ...
