"""Stability: how far ranges move when they are computed from fewer images, and how many would have been enough.

The images are counted in groups. Ranges from random subsets of the groups are compared with those of all images: by
how far their bounds lie apart, and by what the subset's range costs in expected SQNR on the values of all images. The
subsets are parts of the whole that they are compared with, so that the movement against fresh images is larger than
what is shown; the more so the larger the subset.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.error import sqnr_db
from quantlab.calibrators.histogram import Histogram
from quantlab.calibrators.methods import range_methods
from quantlab.calibrators.protocol import MethodRange, RangeMethod
from quantlab.calibrators.quantize import Scheme
from quantlab.calibrators.stability_result import SizeStability, Stability, TensorStability, images_enough
from quantlab.calibrators.table import CalibrationTable, TensorEntry, TensorRange
from quantlab.errors import CalibrationError

N_GROUPS = 16
"""Groups that the images are counted in."""

SUBSET_GROUPS = (1, 2, 4, 8)
"""Groups of a subset; all of ``N_GROUPS`` are the whole."""

N_SUBSETS = 8
"""Subsets of each number of groups; of one group there are ``N_GROUPS``."""

ENOUGH_LOSS_DB = 0.1
"""A number of images is enough if 95 % of its subsets' ranges lose no more than this against those of all images..."""

ENOUGH_MOVEMENT = 0.05
"""... and 95 % move no further than this, relative to the larger bound."""


@dataclass(frozen=True, slots=True)
class _Deviations:
    """Every subset's range of one tensor: by size, then by subset."""

    entry: TensorStability
    movements: tuple[tuple[float, ...], ...]
    losses_db: tuple[tuple[float, ...], ...]


TensorMap = Callable[[Callable[[str], _Deviations], Iterable[str]], Iterable[_Deviations]]
"""``map``, or that of an executor."""


@dataclass(frozen=True, slots=True, eq=False)
class Occupied:
    """A histogram by its occupied buckets.

    Attributes:
        buckets: Numbers of the occupied buckets, (K,) uint32.
        counts: Their counts, (K,) int64.
        special: As `Histogram.special`.
        octave: As `Histogram.octave`.
        minimum: As `Histogram.minimum`.
        maximum: As `Histogram.maximum`.
    """

    buckets: NDArray[np.uint32]
    counts: NDArray[np.int64]
    special: NDArray[np.int64]
    octave: int
    minimum: float
    maximum: float

    @classmethod
    def of(cls, histogram: Histogram) -> Occupied:
        """The same, kept small."""
        buckets = np.flatnonzero(histogram.counts)
        return cls(
            buckets.astype(np.uint32),
            histogram.counts[buckets],
            histogram.special.copy(),
            histogram.octave,
            histogram.minimum,
            histogram.maximum,
        )

    def histogram(self) -> Histogram:
        """The same again, with all buckets."""
        result = Histogram()
        result.widen(self.octave)
        result.counts[self.buckets] = self.counts
        result.special[:] = self.special
        result.minimum, result.maximum = self.minimum, self.maximum
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A histogram in 10 to 30 KiB, to keep one for every group of images.

    Attributes:
        data: Gaps between occupied buckets and their counts, in bytes of `gap_type` and `count_type`, compressed.
        gap_type: Type of the gaps.
        count_type: Type of the counts.
        rest: All but the buckets.
    """

    data: bytes
    gap_type: np.dtype[np.unsignedinteger]
    count_type: np.dtype[np.unsignedinteger]
    rest: Occupied

    @classmethod
    def of(cls, histogram: Histogram) -> Packed:
        """The same, kept small."""
        full = Occupied.of(histogram)
        gaps = np.diff(full.buckets, prepend=np.uint32(0))
        gap_type, count_type = (np.min_scalar_type(int(values.max(initial=0))) for values in (gaps, full.counts))
        data = gaps.astype(gap_type).tobytes() + full.counts.astype(count_type).tobytes()
        rest = replace(full, buckets=full.buckets[:0].copy(), counts=full.counts[:0].copy())
        return cls(zlib.compress(data, 1), gap_type, count_type, rest)

    def unpack(self) -> Occupied:
        """The histogram by its occupied buckets."""
        data = zlib.decompress(self.data)
        n = len(data) // (self.gap_type.itemsize + self.count_type.itemsize)
        gaps = np.frombuffer(data, self.gap_type, n)
        counts = np.frombuffer(data, self.count_type, n, n * self.gap_type.itemsize)
        return replace(self.rest, buckets=np.cumsum(gaps, dtype=np.uint32), counts=counts.astype(np.int64))


def total(parts: Sequence[Occupied]) -> Histogram:
    """The histogram of all values of the parts."""
    widest = max(parts, key=lambda part: part.octave)
    result = widest.histogram()
    for part in parts:
        if part.octave != widest.octave:  # its buckets are others
            result.merge(part.histogram())
        elif part is not widest:
            result.counts[part.buckets] += part.counts
            result.special += part.special
            result.minimum = min(result.minimum, part.minimum)
            result.maximum = max(result.maximum, part.maximum)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What was counted over one group of images.

    Attributes:
        images: How many they are.
        tensors: Histograms by tensor.
    """

    images: int
    tensors: Mapping[str, Packed]


def draw_subsets(n_groups: int, size: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Random subsets of ``size`` groups each: every group once for size 1, else ``N_SUBSETS`` of them.

    Random orders of the groups are cut into pieces, so that within an order subsets share no image, and each group is
    used about as often as any other.
    """
    if size == 1:
        return tuple((group,) for group in range(n_groups))
    rng = np.random.default_rng((seed, size))
    subsets: list[tuple[int, ...]] = []
    while len(subsets) < N_SUBSETS:
        order = rng.permutation(n_groups).tolist()
        subsets += [tuple(sorted(order[at : at + size])) for at in range(0, n_groups - size + 1, size)]
    return tuple(subsets[:N_SUBSETS])


def measure_stability(
    groups: Sequence[Group],
    table: CalibrationTable,
    scheme: Scheme,
    seed: int,
    tensors: Iterable[str] | None = None,
    run: TensorMap = map,
) -> Stability:
    """Compare ranges from subsets of the groups with those of the table.

    The cost is that of one range and one SQNR for each tensor and subset: a few milliseconds.

    Args:
        groups: All images of the table, each in one group.
        table: The calibration over all of them.
        scheme: Whose ranges to compare.
        seed: Of the subsets.
        tensors: Which tensors; None for all of the table.
        run: How to go through the tensors.

    Raises:
        ConfigError: If the table has no ranges for the scheme.
        CalibrationError: If groups and table do not belong together.
    """
    entries = table.entries()
    wanted = sorted(entries if tensors is None else entries.keys() & set(tensors))
    varied = [name for name in wanted if not entries[name].constant]
    plans = [draw_subsets(len(groups), size, seed) for size in SUBSET_GROUPS if size < len(groups)]
    methods = {method.name: method for method in range_methods(table.provenance.percentile)}

    def one(name: str) -> _Deviations:
        chosen = table.range_of(entries[name], scheme.name)
        method = methods[chosen.picked or table.method]
        return _measure(
            entries[name], [group.tensors[name].unpack() for group in groups], chosen, method, scheme, plans
        )

    measured = tuple(run(one, varied))
    sizes = tuple(
        _size_stability(number, subsets, groups, measured) for number, subsets in enumerate(plans) if measured
    )
    origin = table.provenance
    return Stability(
        model=origin.model,
        model_sha256=origin.model_sha256,
        data_sha256=origin.data_sha256,
        table_sha256=table.sha256,
        method=table.method,
        scheme=scheme.name,
        n_samples=table.n_samples,
        n_groups=len(groups),
        n_constant=len(wanted) - len(varied),
        seed=seed,
        enough_loss_db=ENOUGH_LOSS_DB,
        enough_movement=ENOUGH_MOVEMENT,
        enough_images=images_enough(sizes, ENOUGH_LOSS_DB, ENOUGH_MOVEMENT),
        sizes=sizes,
        tensors=tuple(deviations.entry for deviations in measured),
        degradations=table.degradations,
    )


def _measure(
    entry: TensorEntry,
    parts: Sequence[Occupied],
    chosen: TensorRange,
    method: RangeMethod,
    scheme: Scheme,
    plans: Sequence[Sequence[tuple[int, ...]]],
) -> _Deviations:
    histogram = total(parts)
    if (histogram.total, histogram.minimum, histogram.maximum) != (entry.count, entry.minimum, entry.maximum):
        raise CalibrationError(
            f"the groups are not those of the table: tensor {entry.name!r} differs",
            got=f"{histogram.total:,} values in [{histogram.minimum:.9g}, {histogram.maximum:.9g}]",
            expected=f"{entry.count:,} in [{entry.minimum:.9g}, {entry.maximum:.9g}]",
        )
    whole = histogram.distribution()
    best_db = sqnr_db(whole, chosen.low, chosen.high, scheme)
    magnitude = max(abs(chosen.low), abs(chosen.high))
    movements: list[tuple[float, ...]] = []
    losses: list[tuple[float, ...]] = []
    spread = 0.0
    for subsets in plans:
        found = [_range([parts[group] for group in subset], method, scheme) for subset in subsets]
        moved = (max(abs(r.low - chosen.low), abs(r.high - chosen.high)) for r in found)
        movements.append(tuple(_relative(distance, magnitude) for distance in moved))
        losses.append(tuple(_loss(best_db, sqnr_db(whole, r.low, r.high, scheme)) for r in found))
        if len(subsets[0]) == 1:
            apart = np.ptp(np.array([(r.low, r.high) for r in found]), axis=0)
            spread = _relative(float(apart.max()), magnitude)
    entry_stability = TensorStability(
        entry.name, chosen.low, chosen.high, spread, tuple(map(max, movements)), tuple(map(max, losses))
    )
    return _Deviations(entry_stability, tuple(movements), tuple(losses))


def _relative(distance: float, magnitude: float) -> float:
    if magnitude > 0.0:
        return distance / magnitude
    return math.inf if distance > 0.0 else 0.0


def _range(parts: Sequence[Occupied], method: RangeMethod, scheme: Scheme) -> MethodRange:
    try:
        distribution: Distribution = total(parts).distribution()
    except CalibrationError:  # these images gave nothing finite
        return MethodRange(0.0, 0.0)
    return method.choose(distribution, scheme)


def _loss(best_db: float, found_db: float) -> float:
    return 0.0 if best_db == found_db else best_db - found_db  # both may be infinite: nothing is lost at all


def _size_stability(
    number: int, subsets: Sequence[tuple[int, ...]], groups: Sequence[Group], measured: Sequence[_Deviations]
) -> SizeStability:
    losses = [loss for deviations in measured for loss in deviations.losses_db[number]]
    movements = [moved for deviations in measured for moved in deviations.movements[number]]
    worst = max((deviations.entry for deviations in measured), key=lambda entry: entry.losses_db[number])
    return SizeStability(
        images=max(sum(groups[group].images for group in subset) for subset in subsets),
        groups=len(subsets[0]),
        subsets=len(subsets),
        loss_db_median=quantile(losses, 0.5),
        loss_db_p95=quantile(losses, 0.95),
        movement_median=quantile(movements, 0.5),
        movement_p95=quantile(movements, 0.95),
        worst_tensor=worst.name,
        worst_loss_db=worst.losses_db[number],
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least ``share`` of the values do not exceed; never between two of them."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
