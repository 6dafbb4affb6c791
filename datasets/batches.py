"""Samples stacked for the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.inputs import format_shape
from quantlab.datasets.protocol import Sample
from quantlab.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive samples.

    Attributes:
        ids: Of the samples.
        inputs: Arrays by model input name, **with** the batch axis first, C-contiguous.
        labels: Class index of each sample, or None.
        sha256s: Content hash of each sample.
    """

    ids: tuple[str, ...]
    inputs: Mapping[str, NDArray[np.generic]]
    labels: tuple[int | None, ...]
    sha256s: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def batches(dataset: Iterable[Sample], size: int) -> Iterator[Batch]:
    """Stack ``size`` samples at a time, in order; the last batch may be smaller.

    Raises:
        ConfigError: If ``size`` is not positive.
        DataError: If the samples of a batch differ in shape, which a model with dynamic axes allows.
    """
    if size <= 0:
        raise ConfigError("the batch size is wrong", got=size, expected="1 or more")
    return _batches(iter(dataset), size)


def _batches(samples: Iterator[Sample], size: int) -> Iterator[Batch]:
    try:
        while group := list(islice(samples, size)):
            yield stack(group)
    finally:
        close = getattr(samples, "close", None)  # ends the worker threads of an abandoned pass at once
        if close is not None:
            close()


def stack(group: Sequence[Sample]) -> Batch:
    """One batch of samples, at least one.

    Raises:
        DataError: If they differ in shape.
    """
    inputs = {}
    for name, first in group[0].inputs.items():
        odd = next((sample for sample in group if sample.inputs[name].shape != first.shape), None)
        if odd is not None:
            raise DataError(
                f"samples of one batch differ in the shape of input {name!r}",
                got=f"{format_shape(odd.inputs[name].shape)} of {odd.id!r}",
                expected=f"{format_shape(first.shape)} of {group[0].id!r}",
                hint="use --batch-size 1, or a preprocessing that resizes",
            )
        inputs[name] = np.stack([sample.inputs[name] for sample in group])
    return Batch(
        tuple(sample.id for sample in group),
        inputs,
        tuple(sample.label for sample in group),
        tuple(sample.sha256 for sample in group),
    )
