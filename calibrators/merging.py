"""Merging: calibrations of one model over disjoint parts of the data become the calibration of all of it.

Histograms, extremes and counts add up to exactly those of the whole, so everything that is computed from them
afterwards is the same to the last bit, whatever the parts and their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from quantlab.calibrators.extremes import Extremes
from quantlab.calibrators.histogram import Histogram
from quantlab.calibrators.measure import measure_extremes
from quantlab.calibrators.methods import AUTO, METHOD_NAMES, check_method
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.quantize import INT8_SYMMETRIC
from quantlab.calibrators.table import CalibrationTable, Provenance, TensorEntry
from quantlab.datasets.dataset import unreadable_message
from quantlab.datasets.random_source import random_message
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import CalibrationError, ConfigError, EngineMismatch

_SHOWN = 3
_OBSERVED = "observed"
_MUST_MATCH: Mapping[str, Callable[[Provenance], str]] = MappingProxyType(
    {
        "model": lambda p: f"sha256 {p.model_sha256}",
        "input shapes": lambda p: _shapes(p.shapes),
        "prepared graph": lambda p: f"sha256 {p.graph_sha256}",
        "preprocessing": lambda p: f"sha256 {p.preprocess_sha256}" if p.preprocess_sha256 else "none: ready tensors",
        "percentile": lambda p: repr(p.percentile),
    }
)
_RECOMPUTED = frozenset(
    {DegradationCode.METHOD_FALLBACK, DegradationCode.NON_FINITE_VALUES, DegradationCode.ABSENT_TENSORS}
)
_SAME_MESSAGE = frozenset(
    {DegradationCode.LOSSY_DECODE, DegradationCode.DUPLICATE_SAMPLES, DegradationCode.UNLABELLED_SAMPLES}
)
_COUNTED_MESSAGE = frozenset(
    {DegradationCode.UNREADABLE_SAMPLES, DegradationCode.RANDOM_DATA, DegradationCode.PADDED_BATCH}
)


@dataclass(frozen=True, slots=True)
class Part:
    """The calibration of one part of the data.

    Attributes:
        name: What the user called it.
        table: Its table.
    """

    name: str
    table: CalibrationTable

    @property
    def extremes_only(self) -> bool:
        """Whether only minimum and maximum were taken of every tensor, and values were not counted."""
        entries = self.table.tensors
        return bool(entries) and not any(entry.counted for entry in entries)


def check_parts(parts: Sequence[Part]) -> None:
    """Refuse parts that are not calibrations of one model in one way, or that hold the same samples.

    Raises:
        ConfigError: If there are fewer than two parts.
        EngineMismatch: If two parts differ in what must match; both values are said.
        CalibrationError: If ranges were imported, or a sample is in more than one part.
    """
    if len(parts) < 2:
        got = ", ".join(part.name for part in parts) or "no part"
        raise ConfigError("there is nothing to merge", got=got, expected="two or more calibrations")
    for part in parts:
        if part.table.provenance.source != _OBSERVED:
            raise CalibrationError(
                f"{part.name} cannot be merged: its ranges were not observed but imported",
                got=part.table.provenance.source,
                hint="merge tables that quantlab calibrate made from data",
            )
    first, *others = parts
    for other in others:
        _check_pair(first, other)
    _check_tensors(parts)
    _check_overlap(parts)


def _check_pair(first: Part, other: Part) -> None:
    for what, said in _MUST_MATCH.items():
        mine, theirs = said(first.table.provenance), said(other.table.provenance)
        if mine != theirs:
            raise _mismatch(first, other, what, theirs, mine)
    if first.extremes_only != other.extremes_only:
        words = ("with histograms", "min-max only")
        raise _mismatch(first, other, "kind", words[other.extremes_only], words[first.extremes_only])


def _check_tensors(parts: Sequence[Part]) -> None:
    """A part lacks a tensor only if none of its samples gave it a value, and then it says so."""
    union = {name for part in parts for name in part.table.entries()}
    for part in parts:
        lacking = sorted(union - part.table.entries().keys())
        said = any(found.code is DegradationCode.ABSENT_TENSORS for found in part.table.degradations)
        if lacking and not said:
            other = next(other for other in parts if lacking[0] in other.table.entries())
            got = f"{len(part.table.tensors)} tensors, without {', '.join(lacking[:_SHOWN])}"
            raise _mismatch(other, part, "set of tensors", got, f"{len(other.table.tensors)} tensors")


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in sorted(shapes.items())) or "as exported"


def _mismatch(first: Part, other: Part, what: str, got: str, expected: str) -> EngineMismatch:
    return EngineMismatch(
        f"{first.name} and {other.name} cannot be merged: they differ in the {what}",
        got=f"{got}, in {other.name}",
        expected=f"{expected}, as in {first.name}",
        hint="calibrate all parts with the same model and settings",
    )


def _check_overlap(parts: Sequence[Part]) -> None:
    """The same content twice within a part is the data's own; in two parts it would be counted once too often."""
    holders: defaultdict[str, list[Part]] = defaultdict(list)
    for part in parts:
        for sample in set(part.table.provenance.samples):
            holders[sample].append(part)
    shared = sorted(sample for sample, found in holders.items() if len(found) > 1)
    if shared:
        names = " and ".join(part.name for part in holders[shared[0]][:2])
        few = ", ".join(sample[:16] for sample in shared[:_SHOWN])
        raise CalibrationError(
            f"the parts overlap: {len(shared)} samples are in more than one and would be counted again",
            got=f"content {few}{', ...' if len(shared) > _SHOWN else ''}, the first in {names}",
            expected="every sample in one part",
            hint="calibrate disjoint parts of the data, or leave a part out",
        )


def merged_method(parts: Sequence[Part], requested: str | None) -> str:
    """The method of the merged table: the requested one, else that of all parts.

    Raises:
        ConfigError: If there is no such method, the parts disagree and none was requested, or it cannot be computed
            from what the parts hold.
    """
    methods = sorted({part.table.method for part in parts})
    if requested is None and len(methods) > 1:
        raise ConfigError(
            "the parts were calibrated with different methods", got=", ".join(methods), expected="one method",
            hint="choose one with --method; the parts hold what every method needs",
        )  # fmt: skip
    method = check_method(requested or methods[0])
    if parts[0].extremes_only and method != MinMax.name:
        raise ConfigError(
            f"the parts are min-max only and hold nothing to compute {method} from", got=method, expected=MinMax.name,
            hint="merge with --method minmax, or calibrate the parts without --minmax-only",
        )  # fmt: skip
    if method not in METHOD_NAMES:
        reason = "it needs the images, not histograms" if method == AUTO else "it is not computed from histograms"
        raise ConfigError(
            f"the method {method!r} cannot be merged: {reason}", got=method, expected=", ".join(METHOD_NAMES),
            hint=f"merge with --method {METHOD_NAMES[-1]}, or calibrate all the data at once with --method {method}",
        )  # fmt: skip
    return method


def check_histograms(part: Part, histograms: Mapping[str, Histogram]) -> None:
    """Refuse histograms that are not those of the part's table.

    Raises:
        CalibrationError: If the tensors, their counts or their extremes differ.
    """
    entries = {entry.name: entry for entry in part.table.tensors if entry.counted}
    hint = "the files of one calibration belong together; calibrate this part again"
    if entries.keys() != histograms.keys():
        odd = sorted(entries.keys() ^ histograms.keys())
        raise CalibrationError(
            f"the histograms of {part.name} do not belong to its table",
            got=f"histograms of {len(histograms)} tensors; in one of the two only: {', '.join(odd[:_SHOWN])}",
            expected=f"{len(entries)} tensors",
            hint=hint,
        )
    for name, entry in entries.items():
        found = histograms[name]
        got = (found.total, found.non_finite, found.minimum, found.maximum)
        expected = (entry.count, entry.non_finite, entry.minimum, entry.maximum)
        if got != expected:
            raise CalibrationError(
                f"the histogram of tensor {name!r} of {part.name} does not belong to its table",
                got=_counts(*got),
                expected=_counts(*expected),
                hint=hint,
            )


def _counts(count: int, non_finite: int, minimum: float, maximum: float) -> str:
    return f"{count:,} values in [{minimum:.9g}, {maximum:.9g}], {non_finite:,} not finite"


def add_histograms(total: dict[str, Histogram], part: Mapping[str, Histogram]) -> None:
    """Add the histograms of a part to those in ``total``, in place; ``part`` must not be used afterwards."""
    for name, histogram in part.items():
        if name in total:
            total[name].merge(histogram)
        else:
            total[name] = histogram


def merge_odd(parts: Sequence[Part], name: str) -> tuple[str | None, int]:
    """What `measure_tensor` is told beside the histogram: the sample of non-finite values, and samples without any."""
    samples, absent = [], 0
    for part in parts:
        entry = part.table.entries().get(name)
        if entry is None:
            absent += part.table.n_samples
            continue
        absent += entry.absent_samples
        samples += [entry.non_finite_sample] if entry.non_finite_sample is not None else []
    return min(samples, default=None), absent


def merge_extremes(parts: Sequence[Part]) -> tuple[TensorEntry, ...]:
    """Entries of tensors that were not counted: least minimum, largest maximum, and sums of counts."""
    total: dict[str, Extremes] = {}
    methods: dict[str, list[str]] = {}
    for part in parts:
        for entry in part.table.tensors:
            if entry.counted:
                continue
            methods[entry.name] = [name for name in METHOD_NAMES if name in entry.ranges[INT8_SYMMETRIC.name]]
            extremes = Extremes(entry.minimum, entry.maximum, entry.count, entry.non_finite)
            if entry.name in total:
                total[entry.name].merge(extremes)
            else:
                total[entry.name] = extremes
    return tuple(measure_extremes(name, total[name], methods[name]) for name in sorted(total))


def merge_provenance(parts: Sequence[Part], quantlab: str, model: str) -> Provenance:
    """Provenance of the whole.

    Args:
        parts: As checked by `check_parts`.
        quantlab: Version that merges.
        model: File name of the model.
    """
    origins = [part.table.provenance for part in parts]
    stated = all(origin.preprocess is not None for origin in origins)
    return replace(
        origins[0],
        quantlab=quantlab,
        model=model,
        # What one part only assumed is not stated for the whole; the degradation of that part stays.
        preprocess=origins[0].preprocess if stated else None,
        samples=tuple(sorted(sample for origin in origins for sample in origin.samples)),
    )


def merge_part_degradations(parts: Sequence[Part]) -> tuple[Degradation, ...]:
    """Degradations of the parts as those of the whole.

    Those that count samples are added up, with the names sorted; those that follow from the merged ranges are left
    out, for they are found again; all others are kept, once each. The model's fixed batch is an exception: every part
    filled its own last batch, and says so, where one pass over the whole fills one batch or none.
    """
    kept: list[Degradation] = []
    counted: defaultdict[tuple[DegradationCode, str], list[Degradation]] = defaultdict(list)
    for part in parts:
        for found in part.table.degradations:
            if found.code in _SAME_MESSAGE:
                counted[found.code, found.message].append(found)
            elif found.code in _COUNTED_MESSAGE:
                counted[found.code, ""].append(found)
            elif found.code not in _RECOMPUTED:
                kept.append(found)
    total = sum(part.table.n_samples for part in parts)
    for (code, message), group in counted.items():
        count = sum(found.count for found in group)
        text = message or _counted_message(code, group, count, total)
        subjects = sorted(name for found in group for name in found.subjects)
        kept.append(Degradation(code, text, count, tuple(subjects[: Degradation.MAX_SUBJECTS])))
    return tuple(kept)


def _counted_message(code: DegradationCode, group: Sequence[Degradation], count: int, readable: int) -> str:
    if len(group) == 1 and code is DegradationCode.PADDED_BATCH:
        return group[0].message
    if code is DegradationCode.PADDED_BATCH:
        return (
            f"the last batches of {len(group)} parts were filled with {count} repeated samples, which are not counted"
        )
    if code is DegradationCode.RANDOM_DATA:
        return random_message(count)
    return unreadable_message(count, count + readable)
