"""Streaming histograms in float-bit buckets.

The bucket of a float32 is its upper 16 bits: sign, 8 exponent bits and 7 mantissa bits. So a histogram needs no
range in advance, its 65,536 buckets are at most 2**-7 (0.8 %) wide relative to the value, adding is the same in any
order, and two histograms merge by addition to exactly the histogram of the whole. The exact minimum and maximum are
kept beside it. See docs/adr/002-float-bit-histograms.md.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.counting import Kernel, count_numpy
from quantlab.errors import CalibrationError
from quantlab.files import replacing

BUCKETS = 1 << 16
_NEGATIVE = 1 << 15
_FIRST_NON_FINITE = 0x7F80
_CHUNK = 1 << 18  # values that stay in the processor's cache between the two looks at them
HISTOGRAM_FORMAT = 1


class Histogram:
    """Distribution of one tensor's values; not thread-safe, callers hold a lock.

    Values are counted with their content only: neither batch size nor order of `add` changes the result.

    Attributes:
        counts: Counts by bucket number, (65536,) int64.
        minimum: Least finite value; infinity if there was none.
        maximum: Largest finite value; minus infinity if there was none.
    """

    __slots__ = ("_count", "counts", "maximum", "minimum")

    def __init__(self, kernel: Kernel = count_numpy) -> None:
        self._count = kernel
        self.counts: NDArray[np.int64] = np.zeros(BUCKETS, np.int64)
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def add(self, values: NDArray[np.float32]) -> None:
        """Count all of ``values`` (any shape, float32). NaN and infinities are counted apart."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            low, high = float(chunk.min()), float(chunk.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                finite = chunk[np.isfinite(chunk)]
                low = float(finite.min(initial=math.inf))
                high = float(finite.max(initial=-math.inf))
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
            self._count(chunk.view(np.uint32), self.counts)

    def merge(self, other: Histogram) -> None:
        """Add another histogram; the result equals the histogram of all values together."""
        self.counts += other.counts
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    def clipped(self, low: float, high: float) -> Histogram:
        """Histogram of the same values after ``min(max(x, low), high)``, exactly: what Relu and Clip would give.

        A value beyond a bound becomes the bound; the others stay in their bucket. NaN stays NaN.

        Args:
            low: Lower bound, representable in float32; minus infinity for none.
            high: Upper bound, representable in float32; infinity for none.
        """
        result = Histogram(self._count)
        order = _order(np.arange(BUCKETS))
        target = np.clip(order, _order(_bucket(low)), _order(_bucket(high)))
        bucket = np.where(target >= 0, target, _NEGATIVE - 1 - target)
        is_nan = (np.arange(BUCKETS) & (_NEGATIVE - 1)) > _FIRST_NON_FINITE
        np.add.at(result.counts, np.where(is_nan, np.arange(BUCKETS), bucket), self.counts)
        extremes = [self.minimum, self.maximum] if self.minimum <= self.maximum else []
        extremes += [-math.inf] * bool(self.counts[_NEGATIVE + _FIRST_NON_FINITE])
        extremes += [math.inf] * bool(self.counts[_FIRST_NON_FINITE])
        finite = [value for value in (min(max(x, low), high) for x in extremes) if math.isfinite(value)]
        result.minimum, result.maximum = min(finite, default=math.inf), max(finite, default=-math.inf)
        return result

    @property
    def non_finite(self) -> int:
        """NaN and infinite values met."""
        counts = self.counts
        return int(counts[_FIRST_NON_FINITE:_NEGATIVE].sum() + counts[_NEGATIVE + _FIRST_NON_FINITE :].sum())

    @property
    def total(self) -> int:
        """Finite values counted."""
        return int(self.counts.sum()) - self.non_finite

    def distribution(self) -> Distribution:
        """Occupied buckets as intervals in ascending order, trimmed to the exact minimum and maximum.

        Raises:
            CalibrationError: If no finite value was counted.
        """
        counts = self.counts
        positive = np.flatnonzero(counts[1:_FIRST_NON_FINITE]) + 1
        negative = np.flatnonzero(counts[_NEGATIVE + 1 : _NEGATIVE + _FIRST_NON_FINITE]) + 1
        zeros = int(counts[0] + counts[_NEGATIVE])
        if zeros == 0 and positive.size == 0 and negative.size == 0:
            raise CalibrationError("a tensor has no finite value", hint="look for NaN in the inputs or the weights")
        has_zero = np.zeros(1 if zeros else 0)
        mirrored = negative[::-1]
        low = np.concatenate([-_edge(mirrored + 1), has_zero, _edge(positive)])
        high = np.concatenate([-_edge(mirrored), has_zero, _edge(positive + 1)])
        mass = np.concatenate(
            [counts[_NEGATIVE + mirrored], np.full(has_zero.size, zeros, np.int64), counts[positive]]
        ).astype(np.float64)
        low[0] = max(low[0], min(self.minimum, high[0]))
        high[-1] = min(high[-1], max(self.maximum, low[-1]))
        return Distribution(low, high, mass, self.minimum, self.maximum)


def _order(bucket: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of buckets by value: their own number for positive ones, -1 downwards for negative ones."""
    return np.where(bucket < _NEGATIVE, bucket, _NEGATIVE - 1 - bucket)


def _bucket(value: float) -> NDArray[np.int64]:
    return (np.array(value, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.int64)


def _edge(bucket: NDArray[np.int64]) -> NDArray[np.float64]:
    """Lower edge of positive buckets; that of the first non-finite one is infinity, taken as the float32 maximum."""
    edges = (bucket.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return np.minimum(edges, float(np.finfo(np.float32).max))


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """A histogram as intervals ``[low, high]`` with counts; values spread evenly within an interval.

    Zeros (and subnormals below 2**-133, which quantize to zero at any scale) are one point: ``low == high == 0``.

    Attributes:
        low: Lower edges, (K,) float64, ascending.
        high: Upper edges, (K,) float64.
        mass: Counts, (K,) float64.
        minimum: Exact minimum.
        maximum: Exact maximum.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mass: NDArray[np.float64]
    minimum: float
    maximum: float

    @property
    def amax(self) -> float:
        """Largest magnitude, exact."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def total(self) -> float:
        """Count of all values."""
        return float(self.mass.sum())

    @property
    def zero_fraction(self) -> float:
        """Share of exact zeros."""
        return float(self.mass[(self.low == 0.0) & (self.high == 0.0)].sum()) / self.total

    @property
    def power(self) -> float:
        """Mean square."""
        squares = (self.low * self.low + self.low * self.high + self.high * self.high) / 3.0
        return float((squares * self.mass).sum()) / self.total

    def magnitudes(self) -> Distribution:
        """Distribution of the absolute values; intervals of both signs that coincide are added."""
        low = np.minimum(np.abs(self.low), np.abs(self.high))
        high = np.maximum(np.abs(self.low), np.abs(self.high))
        order = np.lexsort((high, low))
        low, high, mass = low[order], high[order], self.mass[order]
        first = np.concatenate([[True], (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
        starts = np.flatnonzero(first)
        smallest = 0.0 if self.minimum <= 0.0 <= self.maximum else min(abs(self.minimum), abs(self.maximum))
        return Distribution(low[starts], high[starts], np.add.reduceat(mass, starts), smallest, self.amax)

    def reaching(self, magnitude: float) -> Distribution:
        """Only the intervals that hold a value of at least ``magnitude``."""
        kept = np.maximum(np.abs(self.low), np.abs(self.high)) >= magnitude
        return Distribution(self.low[kept], self.high[kept], self.mass[kept], self.minimum, self.maximum)

    def coarsened(self, factor: int) -> Distribution:
        """Neighbouring intervals joined ``factor`` at a time: less exact and that much cheaper."""
        starts = np.arange(0, len(self.low), factor)
        ends = np.minimum(starts + factor, len(self.low)) - 1
        mass = np.add.reduceat(self.mass, starts)
        return Distribution(self.low[starts], self.high[ends], mass, self.minimum, self.maximum)

    def quantile(self, share: float) -> float:
        """Value below which ``share`` (0..1) of the mass lies, linear within an interval."""
        cumulative = np.cumsum(self.mass)
        target = share * cumulative[-1]
        index = int(np.searchsorted(cumulative, target, side="left"))
        index = min(index, len(cumulative) - 1)
        before = cumulative[index] - self.mass[index]
        part = (target - before) / self.mass[index]
        return float(self.low[index] + (self.high[index] - self.low[index]) * min(max(part, 0.0), 1.0))


def save_histograms(path: Path, histograms: Mapping[str, Histogram]) -> None:
    """Write histograms as a compressed ``.npz``: occupied buckets only, tensors by position.

    Raises:
        OutputError: If it cannot be written.
    """
    arrays: dict[str, NDArray[np.generic]] = {
        "format": np.array(HISTOGRAM_FORMAT),
        "names": np.array(list(histograms), dtype=np.str_),
        "extremes": np.array([(h.minimum, h.maximum) for h in histograms.values()], np.float64).reshape(-1, 2),
    }
    occupied = [np.flatnonzero(h.counts) for h in histograms.values()]
    arrays["sizes"] = np.array([bucket.size for bucket in occupied], np.int64)
    arrays["buckets"] = np.concatenate([*occupied, np.zeros(0, np.int64)]).astype(np.uint16)
    counts = [h.counts[bucket] for h, bucket in zip(histograms.values(), occupied, strict=True)]
    arrays["counts"] = np.concatenate([*counts, np.zeros(0, np.int64)])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_histograms(path: Path) -> dict[str, Histogram]:
    """Read what `save_histograms` wrote.

    Raises:
        CalibrationError: If the file is missing, damaged or of another format.
    """
    try:
        # numpy.load leaks the file of a damaged archive if it opens it itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if int(archive["format"]) != HISTOGRAM_FORMAT:
                raise CalibrationError(
                    f"{path} has another format", got=int(archive["format"]), expected=HISTOGRAM_FORMAT
                )
            names, extremes, sizes = archive["names"], archive["extremes"], archive["sizes"]
            buckets, counts = archive["buckets"], archive["counts"]
    except (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, RuntimeError) as cause:
        raise CalibrationError(f"cannot read histograms {path}", got=str(cause)) from cause
    except (zipfile.BadZipFile, zlib.error) as cause:
        raise CalibrationError(f"histograms {path} are damaged", got=str(cause)) from cause
    fits = (
        (names.dtype.kind, sizes.dtype, buckets.dtype, counts.dtype) == ("U", np.int64, np.uint16, np.int64)
        and names.ndim == sizes.ndim == buckets.ndim == counts.ndim == 1
        and extremes.shape == (len(names), 2)
        and len(names) == len(sizes) == len(set(names.tolist()))
        and bool((sizes >= 0).all() and (counts >= 0).all())
        and sizes.sum() == buckets.size == counts.size
    )
    if not fits:
        raise CalibrationError(f"histograms {path} are damaged", got="arrays that do not fit together")
    result: dict[str, Histogram] = {}
    ends = np.cumsum(sizes)
    for name, (low, high), end, size in zip(names, extremes, ends, sizes, strict=True):
        histogram = Histogram()
        histogram.counts[buckets[end - size : end]] = counts[end - size : end]
        histogram.minimum, histogram.maximum = float(low), float(high)
        result[str(name)] = histogram
    return result
