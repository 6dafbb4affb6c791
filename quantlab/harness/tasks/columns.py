"""Per-sample values that grow batch by batch."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def only_losses(drops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drops, NaN for samples that lost nothing, so that they are not listed among the worst."""
    losses: NDArray[np.float64] = np.where(drops > 0, drops, np.nan)
    return losses


class Column(Generic[Scalar]):
    """One value a sample, given a batch at a time and read as one array; 8 bytes a sample or fewer."""

    def __init__(self, dtype: type[Scalar]) -> None:
        self._dtype = dtype
        self._parts: list[NDArray[Scalar]] = []

    def add(self, values: NDArray[np.generic]) -> None:
        """Append the values of a batch; (n,)."""
        self._parts.append(values.astype(self._dtype))

    @property
    def values(self) -> NDArray[Scalar]:
        """All values so far, in order; (n,)."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts)] if self._parts else [np.empty(0, self._dtype)]
        return self._parts[0]
