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
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch

Arrays = Mapping[str, NDArray[np.generic]]
Floats = NDArray[np.float64]


class Kind(StrEnum):
    """What the values of a figure are, which says how an interval is made."""

    PROPORTION = "proportion"
    """A share of samples, each right or wrong: Tango's interval of the paired difference."""
    ESTIMATE = "estimate"
    """Anything else: BCa bootstrap over samples, paired."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a task.

    Attributes:
        name: Such as ``top1``, ``map``, ``miou``, ``mae``; what a policy calls it.
        unit: ``%`` for shares, else the unit of the values; empty for pure numbers.
        higher_is_better: Direction.
        kind: How its interval is made.
    """

    name: str
    unit: str
    higher_is_better: bool
    kind: Kind = Kind.ESTIMATE


class Estimator(Protocol):
    """One figure of one variant, as a function of the samples' weights."""

    def __call__(self, weights: Floats) -> Floats:
        """The figure for each row of weights.

        Args:
            weights: (R, n), at least 0; how often each sample counts, in the order in which samples were added.

        Returns:
            (R,), in the figure's unit; NaN where it is undefined, as with no labelled sample.
        """
        ...


class Meter(Protocol):
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

    def estimators(self) -> Mapping[str, Estimator]:
        """By the name of the figure; for `Kind.PROPORTION` see `correct`."""
        ...

    def correct(self, figure: str) -> Floats:
        """For a figure of `Kind.PROPORTION`: 1 for right, 0 for wrong, NaN for samples that do not count; (n,)."""
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

    def meter(self) -> Meter:
        """A new meter, for one variant."""
        ...
