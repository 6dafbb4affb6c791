"""Running statistics a channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.inputs import InputSpec, Layout
from quantlab.datasets.protocol import InputStatistics


class ChannelStatistics:
    """Minimum, maximum, mean and deviation of one input, sample by sample, in float64 (Chan et al. 1979)."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._shape: tuple[int, ...] = ()
        self._samples = 0
        self._values = 0
        self._mean = np.zeros(1)
        self._squares = np.zeros(1)
        self._minimum = np.full(1, np.inf)
        self._maximum = np.full(1, -np.inf)

    def add(self, array: NDArray[np.generic]) -> None:
        """Take one sample, without the batch axis."""
        values = array.astype(np.float64)
        if self._spec.is_image:
            axis = 2 if self._spec.layout is Layout.NHWC else 0
            values = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        else:
            values = values.reshape(1, -1)
        count = values.shape[1]
        mean = values.mean(axis=1)
        squares = ((values - mean[:, None]) ** 2).sum(axis=1)
        total = self._values + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + squares + delta**2 * (self._values * count / total)
        self._minimum = np.minimum(self._minimum, values.min(axis=1))
        self._maximum = np.maximum(self._maximum, values.max(axis=1))
        self._values = total
        self._shape = self._shape or array.shape
        self._samples += 1

    def result(self) -> InputStatistics:
        """Statistics of the samples so far; the shape is the first one's."""
        return InputStatistics(
            name=self._spec.name,
            shape=self._shape,
            dtype=self._spec.dtype,
            minimum=tuple(self._minimum.tolist()),
            maximum=tuple(self._maximum.tolist()),
            mean=tuple(self._mean.tolist()),
            std=tuple(np.sqrt(self._squares / max(self._values, 1)).tolist()),
            n=self._samples,
        )
