"""Extremes: what min-max calibration needs of a tensor, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Extremes:
    """Exact minimum and maximum of one tensor's values; not thread-safe, callers hold a lock.

    Attributes:
        minimum: Least finite value; infinity if there was none.
        maximum: Largest finite value; minus infinity if there was none.
        total: Finite values seen.
        non_finite: NaN and infinite values seen.
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    total: int = 0
    non_finite: int = 0

    @property
    def known(self) -> bool:
        """Whether there was a finite value."""
        return self.minimum <= self.maximum

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in all of ``values`` (any shape, float32). NaN and infinities are counted apart."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        size = values.size
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = values[np.isfinite(values)]
            low, high = float(finite.min(initial=math.inf)), float(finite.max(initial=-math.inf))
            self.non_finite += size - finite.size
            size = finite.size
        self._widen(low, high, size)

    def add_maxima(self, maxima: NDArray[np.float32], bound: float, size: int) -> None:
        """Take in ``size`` values none of which is below ``bound``, of which only some maxima are known.

        The minimum becomes ``bound`` at most: what a Relu or Clip guarantees, whether or not a value reached it.
        """
        self.add(maxima)
        self._widen(bound, -math.inf, size - maxima.size)

    def _widen(self, low: float, high: float, size: int) -> None:
        # Plus zero: whether an extreme is 0.0 or -0.0 must not depend on which of them came first.
        self.minimum, self.maximum = min(self.minimum, low) + 0.0, max(self.maximum, high) + 0.0
        self.total += size

    def merge(self, other: Extremes) -> None:
        """Take in another one; the result equals that of all values together."""
        self._widen(other.minimum, other.maximum, other.total)
        self.non_finite += other.non_finite


class ChannelExtremes:
    """Exact minimum and maximum of each channel of a tensor (N, C, ...); not thread-safe, callers hold a lock.

    Attributes:
        minima: Least finite value by channel, (C,) float32; empty before the first values.
        maxima: Largest finite value by channel, (C,) float32.
        total: Values seen, NaN and infinite ones among them.
    """

    __slots__ = ("maxima", "minima", "total")

    def __init__(self) -> None:
        self.minima: NDArray[np.float32] = np.zeros(0, np.float32)
        self.maxima: NDArray[np.float32] = np.zeros(0, np.float32)
        self.total = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in ``values``, (N, C, ...) float32. NaN and infinities are left out."""
        if values.size:
            rows = values.reshape(values.shape[0] * values.shape[1], -1)
            finite = np.isfinite(rows)
            low = np.where(finite, rows, np.float32(np.inf)).min(axis=1)
            self.add_rows(low, np.where(finite, rows, np.float32(-np.inf)).max(axis=1), values.shape)

    def add_rows(self, lows: NDArray[np.float32], highs: NDArray[np.float32], shape: tuple[int, ...]) -> None:
        """Take in the extremes of the rows of values of a shape (N, C, ...).

        Args:
            lows: Least finite value of each channel of each sample, (N * C,); infinity without any.
            highs: Largest finite value, (N * C,); minus infinity without any.
            shape: Of the values.
        """
        if math.prod(shape):
            self._widen(lows.reshape(shape[:2]).min(axis=0), highs.reshape(shape[:2]).max(axis=0), math.prod(shape))

    def merge(self, other: ChannelExtremes) -> None:
        """Take in another one; the result equals that of all values together."""
        if other.total:
            self._widen(other.minima, other.maxima, other.total)

    def _widen(self, low: NDArray[np.float32], high: NDArray[np.float32], size: int) -> None:
        self.minima = np.minimum(self.minima, low) if self.total else low.copy()
        self.maxima = np.maximum(self.maxima, high) if self.total else high.copy()
        self.total += size

    def before(self, factor: NDArray[np.float64], shift: NDArray[np.float64]) -> Extremes:
        """Extremes of the tensor x of which this one is ``factor * x + shift``, channel by channel.

        Channels with factor 0 do not tell what they were made of and are left out.

        Args:
            factor: (C,).
            shift: (C,).
        """
        telling = (factor != 0.0) & (self.minima <= self.maxima)
        if not telling.any():
            return Extremes()
        ends = (np.stack([self.minima, self.maxima])[:, telling] - shift[telling]) / factor[telling]
        low, high = float(np.float32(ends.min())), float(np.float32(ends.max()))
        return Extremes(low, high, self.total) if math.isfinite(low) and math.isfinite(high) else Extremes()
