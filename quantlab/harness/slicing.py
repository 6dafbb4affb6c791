"""Slices: samples that have a value in common, by class or by a column of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.slices import SliceTable
from quantlab.harness.comparison import Slice
from quantlab.harness.samples import escaped

CLASS = "class"
"""Column of the slices that are made of the labels."""

MOST_SLICES = 50
"""Of one column; with more, those with the most samples are told."""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """A slice and its samples.

    Attributes:
        slice: What they have in common; None for all samples.
        indices: Of the samples, ascending.
    """

    slice: Slice | None
    indices: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Slicing:
    """All slices of a comparison.

    Attributes:
        members: Every slice, columns in order, values sorted.
        left_out: Number of slices that are not among them, by column.
    """

    members: tuple[Members, ...]
    left_out: dict[str, int]


def slicing(ids: Sequence[str], labels: Sequence[str | None] | None, table: SliceTable | None) -> Slicing:
    """Slices of the samples that were compared.

    Args:
        ids: Of the samples, in the order in which they were added.
        labels: Class of each in words, None where it is not known; None for no slices by class.
        table: Further columns.
    """
    columns: dict[str, Sequence[str | None]] = {}
    if labels is not None:
        columns[CLASS] = labels
    for name in table.columns if table is not None else ():
        if table is not None:
            columns[name] = table.of(ids, name)
    members: list[Members] = []
    left_out: dict[str, int] = {}
    for column, values in columns.items():
        counts = Counter(value for value in values if value is not None)
        if labels is not None and column == CLASS and len(counts) < 2:
            continue
        kept = [value for value, _ in counts.most_common(MOST_SLICES)]
        if len(counts) > len(kept):
            left_out[column] = len(counts) - len(kept)
        places: dict[str, list[int]] = {value: [] for value in sorted(kept, key=_natural)}
        for index, value in enumerate(values):
            if value is not None and value in places:
                places[value].append(index)
        members += [
            Members(Slice(escaped(column), escaped(value)), np.array(indices, np.intp))
            for value, indices in places.items()
        ]
    return Slicing(tuple(members), left_out)


def _natural(value: str) -> tuple[int, str]:
    """Numbers by size, words after them."""
    return (int(value), "") if value.isascii() and value.isdigit() else (10**18, value)
