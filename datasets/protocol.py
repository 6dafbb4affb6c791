"""What every data set is: a restartable sequence of samples with a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.manifest import Manifest
from quantlab.degradation import Degradation


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sample, ready for the model.

    Attributes:
        id: Unique and stable within the data set: a path relative to its root, or ``name#index``.
        inputs: Arrays by model input name, **without** the batch axis, C-contiguous, of the model's dtype.
        label: Class index, or None.
        sha256: Hash of the decoded content before preprocessing (see `Manifest`).
    """

    id: str
    inputs: Mapping[str, NDArray[np.generic]]
    label: int | None
    sha256: str


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """What the model will see on one input, over the samples looked at; one value a channel.

    Attributes:
        name: Model input.
        shape: Shape of one sample, without the batch axis.
        dtype: NumPy name of the dtype.
        minimum: Per-channel minimum.
        maximum: Per-channel maximum.
        mean: Per-channel mean.
        std: Per-channel standard deviation.
        n: Samples looked at.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n: int


@runtime_checkable
class Dataset(Protocol):
    """A restartable, sized sequence of samples in a fixed order; never a one-shot generator.

    Iterating twice gives the same samples in the same order. Samples that cannot be read are left out and counted
    in `degradations`; after a complete pass ``len(dataset.manifest.entries)`` samples were given.
    """

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by label, where the source has them."""
        ...

    def __len__(self) -> int:
        """Samples the source lists, readable or not."""
        ...

    def __iter__(self) -> Iterator[Sample]:
        """Samples in order, decoded ahead of the consumer by worker threads."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Content hash and label of every readable sample; takes a pass over the data if none was completed."""
        ...

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """What went wrong or was assumed, up to now; complete after a pass."""
        ...

    def statistics(self, n: int = 64) -> tuple[InputStatistics, ...]:
        """Statistics of the first ``n`` samples of each input."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Plain values for provenance: source kind, root name, counts, limit, seed, preprocessing."""
        ...
