"""The distribution of a tensor's values, as every range method sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Kind = Literal["", "constant", "discrete", "sparse", "one-sided"]

DISTINCT = 128
"""Distinct magnitudes below which a tensor is discrete: as many as an 8-bit grid has on one side of zero."""

SPARSE_ZEROS = 0.99
"""Share of exact zeros above which a tensor is sparse: any share of all values is then a hundred times that share of
the values that matter."""


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Intervals ``[low, high]`` with counts; values spread evenly within an interval.

    Prefix sums are made once, so that what depends on everything beyond a border costs one look-up.

    Exact zeros (and subnormals that no scale tells from zero) are one point: ``low == high == 0``.

    Attributes:
        low: Lower edges, (K,) float64, ascending.
        high: Upper edges, (K,) float64; intervals do not overlap unless said otherwise.
        mass: Counts, (K,) float64, whole numbers that are exact up to 2**53.
        minimum: Exact minimum.
        maximum: Exact maximum.
        power: Mean square.
        nonzeros: Count of all values but exact zeros.
        distinct: Number of different values other than zero, as far as intervals tell them apart.
    """

    low: Array
    high: Array
    mass: Array
    minimum: float
    maximum: float
    power: float = field(init=False)
    nonzeros: float = field(init=False)
    distinct: int = field(init=False)
    _half_density: Array = field(init=False, repr=False)
    _count_below: Array = field(init=False, repr=False)
    _sum_below: Array = field(init=False, repr=False)
    _sum_above: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Large arrays cost more in fresh memory than in arithmetic, so as few as possible are made.
        # And no dot products: the library behind them starts threads, here beside those that the caller runs.
        moment, upper = self.mass * self.low, self.mass * self.high
        squares = moment * self.low
        moment += upper
        squares += np.multiply(moment, self.high, out=upper)  # low**2 + low * high + high**2, times the mass
        moment *= 0.5
        is_zero = (self.low == 0.0) & (self.high == 0.0)
        # Entry i is of the intervals before i, or from i on. Sums are taken from both ends: that of a tail is made of
        # the tail only, so that a small one is as exact as the whole. Counts are exact from either.
        size = len(self.low) + 1
        count_below, sum_below, sum_above = np.zeros(size), np.zeros(size), np.zeros(size)
        np.cumsum(self.mass, out=count_below[1:])
        np.cumsum(moment, out=sum_below[1:])
        np.cumsum(moment[::-1], out=sum_above[-2::-1])
        half_density = np.zeros(size)
        width = np.subtract(self.high, self.low, out=upper)
        np.divide(0.5 * self.mass, width, out=half_density[:-1], where=width > 0.0)
        for name, value in (
            ("power", float(squares.sum()) / 3.0 / float(count_below[-1])),
            ("nonzeros", float(count_below[-1] - self.mass[is_zero].sum())),
            ("distinct", int(np.count_nonzero(~is_zero))),
            ("_half_density", half_density),
            ("_count_below", count_below),
            ("_sum_below", sum_below),
            ("_sum_above", sum_above),
        ):
            object.__setattr__(self, name, value)

    @property
    def amax(self) -> float:
        """Largest magnitude, exact."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def total(self) -> float:
        """Count of all values."""
        return float(self._count_below[-1])

    @property
    def zero_fraction(self) -> float:
        """Share of exact zeros."""
        return (self.total - self.nonzeros) / self.total

    @property
    def one_sided(self) -> bool:
        """Whether no value is negative, or none positive."""
        return self.minimum >= 0.0 or self.maximum <= 0.0

    @property
    def kind(self) -> Kind:
        """What is odd about the values: the first of these that holds, empty if none does.

        - ``constant``: every value is the same;
        - ``discrete``: fewer than `DISTINCT` different values other than zero, at the resolution of the histogram;
        - ``sparse``: more than `SPARSE_ZEROS` of the values are exact zeros;
        - ``one-sided``: no value is negative, or none is positive.
        """
        if self.minimum == self.maximum:
            return "constant"
        if self.distinct < DISTINCT:
            return "discrete"
        if self.zero_fraction > SPARSE_ZEROS:
            return "sparse"
        return "one-sided" if self.one_sided else ""

    def excess(self, borders: Array) -> Array:
        """Sum of ``|v| - |b|`` over the values v that lie beyond each border b, seen from zero.

        Args:
            borders: Any shape, none of them zero.

        Returns:
            Same shape. Rounding is at most a few times 2**-53 of the sum of ``|v|`` beyond the border.
        """
        above = borders > 0.0
        if above.all():
            return self._excess_above(borders)
        result = np.empty_like(borders)
        result[above] = self._excess_above(borders[above])
        result[~above] = self._excess_below(borders[~above])
        return result

    def _excess_above(self, borders: Array) -> Array:
        index = np.searchsorted(self.high, borders)  # one too many beyond the last, where sums and density are zero
        cut = borders > self.low.take(index, mode="clip")  # the border is in the interval, of which a part counts
        outer = np.minimum(index + cut, len(self.low))
        reach = np.where(cut, self.high.take(index, mode="clip") - borders, 0.0)
        count = self.total - self._count_below[outer]
        whole = np.maximum(self._sum_above[outer] - borders * count, 0.0)
        result: Array = whole + self._half_density[index] * reach * reach
        return result

    def _excess_below(self, borders: Array) -> Array:
        index = np.searchsorted(self.high, borders)
        reach = np.maximum(borders - self.low.take(index, mode="clip"), 0.0)
        whole = np.maximum(borders * self._count_below[index] - self._sum_below[index], 0.0)
        result: Array = whole + self._half_density[index] * reach * reach
        return result

    def outside(self, low: float, high: float) -> float:
        """Count of values below ``low`` and above ``high``, ``low <= high``."""
        first = int(np.searchsorted(self.high, low))
        last = int(np.searchsorted(self.low, high, side="right")) - 1
        below = self._count_below[first] + self._part(first, low, lower=True)
        above = self.total - self._count_below[last + 1] + self._part(last, high, lower=False)
        return float(below + above)

    def _part(self, index: int, border: float, *, lower: bool) -> float:
        """Count of interval ``index`` beyond a border, 0 if there is no such interval."""
        if not 0 <= index < len(self.low):
            return 0.0
        low, high = float(self.low[index]), float(self.high[index])
        if high <= low:
            return float(self.mass[index]) * (low < border if lower else high > border)
        share = (border - low if lower else high - border) / (high - low)
        return float(self.mass[index]) * min(max(share, 0.0), 1.0)

    def ranked(self, rank: int) -> float:
        """The value that is ``rank``-th in ascending order, 1 to `total`, to within the width of its interval."""
        index = int(np.searchsorted(self._count_below[1:], rank))
        position = (rank - 0.5 - self._count_below[index]) / self.mass[index]
        return float(self.low[index] + (self.high[index] - self.low[index]) * position)

    def ranked_magnitude(self, rank: int) -> float:
        """The magnitude that is ``rank``-th in ascending order, 1 to `total`, to within the width of its interval."""
        larger = self.total - rank
        # Only intervals with few enough values beyond them can hold it: those before `lowest`, and from `highest` on.
        lowest = int(np.searchsorted(self._count_below[1:], larger, side="right")) + 1
        highest = max(int(np.searchsorted(self._count_below, rank)) - 1, 0)
        tails = np.unique(np.concatenate([np.arange(min(lowest, len(self.low))), np.arange(highest, len(self.low))]))
        ends = np.abs(np.stack([self.low[tails], self.high[tails]]))
        near, far, mass = ends.min(axis=0), ends.max(axis=0), self.mass[tails]
        order = np.argsort(-near, kind="stable")
        counted = np.cumsum(mass[order])
        index = int(np.searchsorted(counted, larger, side="right"))
        found = order[index]
        position = (counted[index] - larger - 0.5) / mass[found]
        return float(near[found] + (far[found] - near[found]) * position)

    def linear_counts(self, width: float) -> Array:
        """Counts of magnitudes other than zero in bins ``[k * width, (k + 1) * width)``.

        Args:
            width: Bin width, a power of two.

        Returns:
            (floor(amax / width) + 1,). Exact where no interval crosses a border; those that do are spread evenly.
        """
        kept = (self.low != 0.0) | (self.high != 0.0)
        ends = np.abs(np.stack([self.low[kept], self.high[kept]])) / width
        near, far, mass = ends.min(axis=0), ends.max(axis=0), self.mass[kept]
        bins = int(self.amax / width) + 1
        bin_of = np.minimum(near.astype(np.intp), bins - 1)
        # An interval in one bin is spread over no other: its count stays a whole number.
        crossed = np.maximum(np.ceil(far).astype(np.intp) - bin_of, 1)
        if (crossed == 1).all():
            return np.bincount(bin_of, mass, bins).astype(np.float64)
        source = np.repeat(np.arange(len(mass)), crossed)
        bin_of = bin_of[source] + np.arange(len(source)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
        near, far, mass, single = near[source], far[source], mass[source], crossed[source] == 1
        length = np.where(far > near, far - near, 1.0)
        share = np.where(single, 1.0, (np.minimum(far, bin_of + 1.0) - np.maximum(near, bin_of)) / length)
        return np.bincount(np.minimum(bin_of, bins - 1), mass * share, bins).astype(np.float64)
