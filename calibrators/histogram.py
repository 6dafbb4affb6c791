"""Streaming histograms in float-bit buckets.

A bucket is a float32's sign, its exponent bits and its upper mantissa bits: 11 of them in the six octaves that end
with that of the largest magnitude, 8 below. So a histogram needs no range in advance, a bucket is nowhere wider than
2**-8 (0.4 %) of its values, and a linear histogram of 2,048 to 4,096 bins can be read off it exactly. When a larger
magnitude comes, the lowest fine octaves become coarse by adding neighbours. Which octaves are fine in the end depends
on the largest magnitude alone, so adding is the same in any order, and two histograms merge to exactly that of the
whole. The exact minimum and maximum are kept beside it. See docs/adr/002-float-bit-histograms.md.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.counting import (
    COARSE,
    COARSE_BITS,
    FINE,
    FINE_BITS,
    OCTAVES,
    SIDE,
    Kernel,
    count_numpy,
    key_values,
)
from quantlab.calibrators.distribution import Distribution
from quantlab.errors import CalibrationError
from quantlab.files import replacing

HISTOGRAM_FORMAT = 2

_ROW = 1 << 12  # values that stay in the processor's cache between the looks at them
_MOST_FRESH = (1 << 32) - 1
_NONE_LOW, _NONE_HIGH = np.iinfo(np.int32).max, np.iinfo(np.int32).min
_BIAS = 127
_LARGEST = float(np.finfo(np.float32).max)
_HIGHEST_OCTAVE = 255 - OCTAVES
_NAN, _LOW, _HIGH = 0, 1, 2


class Histogram:
    """Distribution of one tensor's values; not thread-safe, callers hold a lock.

    Values are counted with their content only: neither batch size nor order of `add` changes the result.

    Attributes:
        octave: Exponent bits of the lowest octave with fine buckets, 0 to 251.
        special: Counts of NaN, minus infinity and infinity, (3,) int64.
        minimum: Least finite value; infinity if there was none.
        maximum: Largest finite value; minus infinity if there was none.
    """

    __slots__ = ("_count", "_counts", "_fresh", "_n_fresh", "maximum", "minimum", "octave", "special")

    def __init__(self, kernel: Kernel = count_numpy) -> None:
        self._count = kernel
        self._counts: NDArray[np.int64] = np.zeros(2 * SIDE, np.int64)
        self._fresh: NDArray[np.uint32] | None = None
        self._n_fresh = 0
        self.special: NDArray[np.int64] = np.zeros(3, np.int64)
        self.octave = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts of finite values by bucket, (2 * SIDE,) int64, the histogram's own.

        Positive ones from zero upwards, then negative ones from zero downwards. Zeros of both signs are in the first.
        Its memory is used only where values are.
        """
        if self._fresh is not None:
            # Counting goes to half as wide numbers, of which twice as many stay in the processor's cache.
            occupied = np.flatnonzero(self._fresh)
            self._counts[occupied] += self._fresh[occupied]
            self._fresh, self._n_fresh = None, 0
            self._counts[0] += self._counts[SIDE]
            self._counts[SIDE] = 0
        return self._counts

    def _room_for(self, n: int) -> NDArray[np.uint32]:
        """Where to count ``n`` values so that no bucket overflows."""
        if self._n_fresh + n > _MOST_FRESH:
            _ = self.counts
        if self._fresh is None:
            self._fresh = np.zeros(2 * SIDE, np.uint32)
        self._n_fresh += n
        return self._fresh

    def add(self, values: NDArray[np.float32]) -> None:
        """Count all of ``values`` (any shape, float32). NaN and infinities are counted apart."""
        self.add_rows(values, _ROW)

    def add_rows(self, values: NDArray[np.float32], row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Count all of ``values`` as `add` does, and find the extremes of rows on the way.

        Args:
            values: Any shape, float32, read as rows of C order.
            row: Values of a row, at least 1; the last one may be shorter.

        Returns:
            Least and largest finite value of each row, (R,) each; infinity and minus infinity of a row without any.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        rows = -(-flat.size // row)
        lows, highs = np.empty(rows, np.int32), np.empty(rows, np.int32)  # the kernel fills them
        done = 0
        while done < rows:
            rest = flat[done * row :].view(np.int32)
            done += self._count(rest, row, self._room_for(rest.size), self.octave, lows[done:], highs[done:])
            if done < rows:
                finite = self._admit(flat[done * row : (done + 1) * row])
                if finite is not None:  # counted alone, without what is not finite
                    lows[done], highs[done] = _NONE_LOW, _NONE_HIGH
                    if finite.size:
                        one = slice(done, done + 1)
                        room = self._room_for(finite.size)
                        self._count(finite.view(np.int32), finite.size, room, self.octave, lows[one], highs[one])
                    done += 1
        least, largest = key_values(lows), key_values(highs)
        least[lows == _NONE_LOW], largest[highs == _NONE_HIGH] = np.inf, -np.inf
        if rows:
            # Plus zero: whether an extreme is 0.0 or -0.0 must not depend on which of them came first.
            self.minimum = min(self.minimum, float(least.min())) + 0.0
            self.maximum = max(self.maximum, float(largest.max())) + 0.0
        return least, largest

    def _admit(self, row: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Widen the fine octaves for a row; what is finite of it, if not all is."""
        is_finite = np.isfinite(row)
        finite = row[is_finite]
        if finite.size:
            self.widen(_octave(float(np.abs(finite).max())))
        if finite.size == row.size:
            return None
        self.special += [np.isnan(row).sum(), np.isneginf(row).sum(), np.isposinf(row).sum()]
        return finite

    def widen(self, octave: int) -> None:
        """Move the fine octaves upwards, to begin at ``octave``: those that drop out become coarse."""
        dropped = octave - self.octave
        if dropped <= 0:
            return
        folded = min(dropped, OCTAVES)
        counts = self.counts
        for side in (counts[:SIDE], counts[SIDE:]):
            first = self.octave * COARSE
            fine = side[first : first + OCTAVES * FINE]
            if not fine.any():  # leaves memory that was never used unused
                continue
            window = fine.copy()
            fine[:] = 0
            cut = folded * FINE
            side[first : first + folded * COARSE] = window[:cut].reshape(-1, FINE // COARSE).sum(axis=1)
            moved = octave * COARSE
            side[moved : moved + len(window) - cut] = window[cut:]
        self.octave = octave

    def merge(self, other: Histogram) -> None:
        """Add another histogram; the result equals the histogram of all values together."""
        if other.octave < self.octave:
            other = other.copy()
            other.widen(self.octave)
        self.widen(other.octave)
        counts = self.counts
        counts += other.counts
        self.special += other.special
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    def copy(self) -> Histogram:
        """An independent histogram of the same content."""
        result = Histogram(self._count)
        occupied = np.flatnonzero(self.counts)
        result.counts[occupied] = self.counts[occupied]
        result.special[:] = self.special
        result.octave, result.minimum, result.maximum = self.octave, self.minimum, self.maximum
        return result

    def clipped(self, low: float, high: float) -> Histogram:
        """Histogram of the same values after ``min(max(x, low), high)``, exactly: what Relu and Clip would give.

        A value beyond a bound becomes the bound; the others stay in their bucket, so the fine octaves stay where they
        are even if the largest magnitude is gone. NaN stays NaN.

        Args:
            low: Lower bound, representable in float32; minus infinity for none.
            high: Upper bound, representable in float32; infinity for none.
        """
        result = Histogram(self._count)
        result.special[_NAN] = self.special[_NAN]
        if math.isinf(low) and low == high:
            result.special[_HIGH if high > 0 else _LOW] = self.total + self.special[_LOW] + self.special[_HIGH]
            return result
        extremes = [self.minimum, self.maximum] if self.minimum <= self.maximum else []
        extremes += [-math.inf] * bool(self.special[_LOW]) + [math.inf] * bool(self.special[_HIGH])
        finite = [value for value in (min(max(x, low), high) for x in extremes) if math.isfinite(value)]
        result.minimum, result.maximum = min(finite, default=math.inf) + 0.0, max(finite, default=-math.inf) + 0.0
        result.octave = max([self.octave, *(_octave(abs(value)) for value in finite)])
        source = self
        if result.octave > self.octave:  # a lower bound above all values
            source = self.copy()
            source.widen(result.octave)
        occupied = np.flatnonzero(source.counts)
        order = np.where(occupied < SIDE, occupied, SIDE - occupied)  # rises with the values
        if math.isfinite(low):
            order = np.maximum(order, _order(low, result.octave))
        if math.isfinite(high):
            order = np.minimum(order, _order(high, result.octave))
        np.add.at(result.counts, np.where(order >= 0, order, SIDE - order), source.counts[occupied])
        for infinite, bound in ((_LOW, low), (_HIGH, high)):
            if math.isinf(bound):
                result.special[infinite] = self.special[infinite]
            elif self.special[infinite]:
                rank = _order(bound, result.octave)
                result.counts[rank if rank >= 0 else SIDE - rank] += self.special[infinite]
        return result

    @property
    def non_finite(self) -> int:
        """NaN and infinite values met."""
        return int(self.special.sum())

    @property
    def empty(self) -> bool:
        """Whether nothing was counted at all."""
        return self.total == 0 and self.non_finite == 0

    @property
    def total(self) -> int:
        """Finite values counted."""
        return int(self.counts.sum())

    def distribution(self) -> Distribution:
        """Occupied buckets as intervals in ascending order, trimmed to the exact minimum and maximum.

        Raises:
            CalibrationError: If no finite value was counted.
        """
        occupied = np.flatnonzero(self.counts)
        if occupied.size == 0:
            raise CalibrationError("a tensor has no finite value", hint="look for NaN in the inputs or the weights")
        first = int(np.searchsorted(occupied, SIDE))
        positive, negative = occupied[:first], occupied[first:][::-1]
        near, far = self._edges(positive), self._edges(positive + 1)
        if positive.size and positive[0] == 0:
            far[0] = 0.0  # zeros are one point
        low = np.concatenate([-self._edges(negative - SIDE + 1), near])
        high = np.concatenate([-self._edges(negative - SIDE), far])
        mass = np.concatenate([self.counts[negative], self.counts[positive]]).astype(np.float64)
        low[0] = max(low[0], min(self.minimum, high[0]))
        high[-1] = min(high[-1], max(self.maximum, low[-1]))
        return Distribution(low, high, mass, self.minimum, self.maximum)

    def _edges(self, buckets: NDArray[np.intp]) -> NDArray[np.float64]:
        """Lower edges of buckets of the positive side; that of the first non-finite one is the largest float32."""
        shift = (FINE - COARSE) * self.octave
        coarse = buckets < self.octave * COARSE
        bits = np.where(coarse, buckets << (23 - COARSE_BITS), (buckets + shift) << (23 - FINE_BITS))
        finite = np.minimum(bits, 0x7F7F_FFFF).astype(np.int32).view(np.float32)
        return np.where(bits > 0x7F7F_FFFF, _LARGEST, finite).astype(np.float64)


def _octave(magnitude: float) -> int:
    """Exponent bits of the lowest of the fine octaves where ``magnitude`` is the largest."""
    exponent = math.frexp(magnitude)[1] - 1 + _BIAS if magnitude else 0
    return min(max(exponent - OCTAVES + 1, 0), _HIGHEST_OCTAVE)


def _order(value: float, octave: int) -> int:
    """Rank of the bucket of a finite value: 0 for zero, and negative for negative values."""
    bits = int(np.array(abs(value), np.float32).view(np.uint32))
    bucket = max(bits >> (23 - COARSE_BITS), (bits >> (23 - FINE_BITS)) - (FINE - COARSE) * octave)
    return -bucket if value < 0 else bucket


def save_histograms(path: Path, histograms: Mapping[str, Histogram]) -> None:
    """Write histograms as a compressed ``.npz``: occupied buckets only, tensors by position.

    Raises:
        OutputError: If it cannot be written.
    """
    every = list(histograms.values())
    occupied = [np.flatnonzero(h.counts) for h in every]
    arrays: dict[str, NDArray[np.generic]] = {
        "format": np.array(HISTOGRAM_FORMAT),
        "names": np.array(list(histograms), dtype=np.str_),
        "extremes": np.array([(h.minimum, h.maximum) for h in every], np.float64).reshape(-1, 2),
        "octaves": np.array([h.octave for h in every], np.int64),
        "special": np.array([h.special for h in every], np.int64).reshape(-1, 3),
        "sizes": np.array([bucket.size for bucket in occupied], np.int64),
        "buckets": np.concatenate([*occupied, np.zeros(0, np.int64)]).astype(np.uint32),
        "counts": np.concatenate(
            [*(h.counts[bucket] for h, bucket in zip(every, occupied, strict=True)), np.zeros(0, np.int64)]
        ),
    }
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
                    f"{path} holds histograms of another format",
                    got=f"format {int(archive['format'])}",
                    expected=f"format {HISTOGRAM_FORMAT}",
                    hint="calibrate again, or use the version of quantlab that wrote it",
                )
            names, extremes, sizes = archive["names"], archive["extremes"], archive["sizes"]
            octaves, special = archive["octaves"], archive["special"]
            buckets, counts = archive["buckets"], archive["counts"]
    except (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, RuntimeError) as cause:
        raise CalibrationError(f"cannot read histograms {path}", got=str(cause)) from cause
    except (zipfile.BadZipFile, zlib.error) as cause:
        raise CalibrationError(f"histograms {path} are damaged", got=str(cause)) from cause
    arrays = (names, extremes, sizes, octaves, special, buckets, counts)
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise CalibrationError(f"histograms {path} are damaged", got="members that are no arrays")
    integers = all(array.dtype == np.int64 for array in (sizes, octaves, special, counts))
    fits = (
        (names.dtype.kind, extremes.dtype, buckets.dtype, integers) == ("U", np.float64, np.uint32, True)
        and names.ndim == sizes.ndim == octaves.ndim == buckets.ndim == counts.ndim == 1
        and extremes.shape == (len(names), 2)
        and special.shape == (len(names), 3)
        and len(names) == len(sizes) == len(octaves) == len(set(names.tolist()))
        and all(bool((array >= 0).all()) for array in (sizes, octaves, special, counts))
        and bool((octaves <= _HIGHEST_OCTAVE).all() and (buckets < 2 * SIDE).all())
        and sizes.sum() == buckets.size == counts.size
    )
    if not fits:
        raise CalibrationError(f"histograms {path} are damaged", got="arrays that do not fit together")
    result: dict[str, Histogram] = {}
    stop = 0
    for i, name in enumerate(names.tolist()):
        start, stop = stop, stop + int(sizes[i])
        histogram = Histogram()
        histogram.counts[buckets[start:stop]] = counts[start:stop]
        histogram.special[:] = special[i]
        histogram.octave = int(octaves[i])
        histogram.minimum, histogram.maximum = float(extremes[i, 0]), float(extremes[i, 1])
        result[name] = histogram
    return result
