"""Merge: finished calibrations of parts of the data in; what one calibration of all of it would have given out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from quantlab.calibrators.histogram import Histogram, load_histograms
from quantlab.calibrators.measure import measure_tensor, table_degradations
from quantlab.calibrators.merging import (
    Part,
    add_histograms,
    check_histograms,
    check_parts,
    merge_extremes,
    merge_odd,
    merge_part_degradations,
    merge_provenance,
    merged_method,
)
from quantlab.calibrators.methods import range_methods
from quantlab.calibrators.table import CalibrationTable, TensorEntry
from quantlab.degradation import merge_degradations
from quantlab.engines.extremes import extreme_tensors
from quantlab.engines.observation import observed_tensors
from quantlab.errors import CalibrationError, ConfigError, EngineMismatch
from quantlab.files import is_file, is_folder
from quantlab.graph.prepare import Prepared
from quantlab.progress import Narrator
from quantlab.workflow.calibrate import absent_everywhere
from quantlab.workflow.sources import open_model

_TABLE, _HISTOGRAMS = "calibration.json", "histograms.npz"


@dataclass(frozen=True, slots=True)
class OpenPart:
    """A part whose table was read; its histograms are read when it is their turn, so that memory stays that of one.

    Attributes:
        part: Its name and table.
        histograms: Path of its histograms.
    """

    part: Part
    histograms: Path


@dataclass(frozen=True, slots=True)
class Merged:
    """The calibration of the whole.

    Attributes:
        prepared: The model.
        table: The table.
        histograms: Histograms by tensor, in the order of the table; none if the parts are min-max only.
    """

    prepared: Prepared
    table: CalibrationTable
    histograms: Mapping[str, Histogram]


def open_part(path: Path) -> OpenPart:
    """Find and read one part.

    Args:
        path: A folder that ``calibrate`` wrote, its table, or its histograms.

    Raises:
        CalibrationError: If the table is missing or damaged, or that of a recovered model.
    """
    if is_folder(path):
        table, histograms = path / _TABLE, path / _HISTOGRAMS
    elif path.suffix == ".npz":
        table, histograms = path.with_name(_TABLE), path
    else:
        table, histograms = path, path.with_name(_HISTOGRAMS)
    part = Part(str(path), CalibrationTable.load(table))
    if part.table.recovered:
        raise CalibrationError(
            f"{path} is a recovered model, which is no calibration",
            got=f"ranges of a model recovered by {', '.join(part.table.recovered)}",
            expected="a folder that quantlab calibrate wrote",
            hint="name the folder that it lies in: that is the part",
        )
    return OpenPart(part, histograms)


def check_output(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse to write the result over one of its parts: merged again with the others it would count them twice.

    Raises:
        ConfigError: If ``folder`` is that of a part.
    """
    for path in paths:
        own = path if is_folder(path) else path.parent
        if own.resolve() == folder.resolve():
            raise ConfigError(
                f"the result would overwrite the part {path}", got=f"-o {folder}", expected="a folder of its own",
                hint="name another folder with -o",
            )  # fmt: skip


def merge_calibrations(
    paths: Sequence[Path], model: Path, method: str | None, threads: int, narrator: Narrator
) -> Merged:
    """Merge calibrations over disjoint parts of the data.

    Args:
        paths: Two or more parts, each a folder, table or histogram file.
        model: The model that all of them were made with.
        method: Range method of the merged table; None for that of the parts.
        threads: Workers.
        narrator: Told of progress.

    Raises:
        ConfigError: If there are fewer than two parts, or the method cannot be computed from them.
        EngineMismatch: If parts, or parts and model, do not belong together.
        CalibrationError: If a part is damaged, its files do not belong together, or samples are in two parts.
        ModelError: If the model cannot be used.
    """
    opened = [open_part(path) for path in paths]
    parts = [each.part for each in opened]
    check_parts(parts)
    method = merged_method(parts, method)
    prepared = open_model(model, parts[0].table.provenance.shapes, narrator)
    _check_model(parts[0], prepared)
    if parts[0].extremes_only:
        histograms, observable = {}, extreme_tensors(prepared)
        tensors = merge_extremes(parts)
    else:
        histograms, observable = _sum(opened, narrator), observed_tensors(prepared)
        entries = (*_measure(parts, histograms, threads), *merge_extremes(parts))
        tensors = tuple(sorted(entries, key=lambda entry: entry.name))
    never = sorted(set(observable) - {entry.name for entry in tensors})
    source = prepared.model
    provenance = merge_provenance(parts, version("quantlab"), source.path.name if source.path else source.name)
    degradations = [
        *prepared.degradations,
        *merge_part_degradations(parts),
        *table_degradations(tensors, method),
        *([absent_everywhere(never)] if never else []),
    ]
    n_samples = sum(part.table.n_samples for part in parts)
    narrator.say(f"merged {len(parts)} parts: {n_samples:,} samples")
    table = CalibrationTable(method, n_samples, tensors, provenance, merge_degradations(degradations))
    return Merged(prepared, table, histograms)


def _measure(parts: Sequence[Part], histograms: Mapping[str, Histogram], threads: int) -> tuple[TensorEntry, ...]:
    methods = range_methods(parts[0].table.provenance.percentile)

    def one(name: str) -> TensorEntry:
        sample, absent = merge_odd(parts, name)
        return measure_tensor(name, histograms[name], methods, non_finite_sample=sample, absent_samples=absent)

    with ThreadPoolExecutor(threads) as pool:
        return tuple(pool.map(one, histograms))


def _check_model(part: Part, prepared: Prepared) -> None:
    origin = part.table.provenance
    if origin.model_sha256 != prepared.model.sha256:
        raise EngineMismatch(
            f"the parts were calibrated with another model than {prepared.model.name}",
            got=f"sha256 {prepared.model.sha256} ({prepared.model.name})",
            expected=f"sha256 {origin.model_sha256} ({origin.model}), of {part.name}",
            hint=f"name the parts' model with --model; it was {origin.model}",
        )
    if origin.graph_sha256 != prepared.graph_sha256:
        raise EngineMismatch(
            f"this version of quantlab prepares {prepared.model.name} otherwise than the one that made the parts",
            got=f"prepared graph of sha256 {prepared.graph_sha256}",
            expected=f"sha256 {origin.graph_sha256}, of {part.name} by quantlab {origin.quantlab}",
            hint="calibrate the parts again",
        )


def _sum(opened: Sequence[OpenPart], narrator: Narrator) -> dict[str, Histogram]:
    total: dict[str, Histogram] = {}
    for each in narrator.track(opened, len(opened), "merging"):
        histograms = _load(each)
        check_histograms(each.part, histograms)
        add_histograms(total, histograms)
    return {name: total[name] for name in sorted(total)}


def _load(opened: OpenPart) -> dict[str, Histogram]:
    if not is_file(opened.histograms):
        raise CalibrationError(
            f"{opened.part.name} has no histograms to merge",
            got=f"no file {opened.histograms}",
            expected=f"{_HISTOGRAMS} beside the table, as quantlab calibrate writes it",
            hint="calibrate this part again, or restore the file",
        )
    return load_histograms(opened.histograms)
