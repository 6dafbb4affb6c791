"""Labels from a file, and class numbers from names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantlab.datasets.annotations_coco import FROM_ZERO, class_numbers, read_coco
from quantlab.datasets.decode import IMAGE_SUFFIXES
from quantlab.datasets.names import SampleNames
from quantlab.datasets.source import Labelling, Listing
from quantlab.documents import read_file
from quantlab.errors import DataError

_FILE_HEADERS = frozenset({"file", "filename", "file_name", "path", "image", "id", "name"})
_LABEL_HEADERS = frozenset({"label", "labels", "class", "target", "category", "class_id"})
_SPACED = re.compile(r"^(?P<file>.+\.(?P<suffix>\w+))\s+(?P<label>\S+)$")


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of a labels file.

    Attributes:
        line: Line number, from 1; of a COCO file the index of the annotation.
        file: Sample id or base name; None if the file has one label a line.
        label: Number or class name, as written.
    """

    line: int
    file: str | None
    label: str


@dataclass(frozen=True, slots=True)
class NumberedLabels:
    """Class numbers.

    Attributes:
        labels: One per value; None where the value was None.
        class_names: Names by number, or None if numbers were given.
        labelling: How they were found.
    """

    labels: tuple[int | None, ...]
    class_names: tuple[str, ...] | None
    labelling: Labelling


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: If it is missing, unreadable or not UTF-8.
    """
    try:
        return read_file(path, DataError, what).decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise DataError(f"{what} {path} is not UTF-8 text", got=str(cause)) from cause


def read_label_rows(path: Path) -> tuple[LabelRow, ...]:
    """Read ``file,label`` rows (comma or tab; a header is optional) or one label a line.

    Raises:
        DataError: If the file is missing, not text, empty, or a row has too few or too many columns.
    """
    text = read_text(path, "labels file")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = "\t" if "\t" in first else ","
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as cause:
        raise DataError(f"labels file {path} is malformed at line {reader.line_num}", got=str(cause)) from cause
    if rows and len(rows[0][1]) == 1 and all(_is_spaced(cells) for _, cells in rows):
        rows = [(line, list(_split_spaced(cells[0]))) for line, cells in rows]
    if rows and _is_header(rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise DataError(f"labels file {path} has no labels", expected="rows file,label or one label a line")
    columns = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != columns or columns > 2 or not all(cells):
            raise DataError(
                f"labels file {path} has a wrong row at line {line}",
                got=delimiter.join(cells),
                expected="file,label" if columns != 1 else "one label",
            )
    return tuple(LabelRow(line, cells[0] if columns == 2 else None, cells[-1]) for line, cells in rows)


def _is_spaced(cells: list[str]) -> bool:
    match = _SPACED.match(cells[0]) if len(cells) == 1 else None
    return match is not None and f".{match['suffix'].lower()}" in IMAGE_SUFFIXES


def _split_spaced(text: str) -> tuple[str, str]:
    file, label = text.rsplit(None, 1)
    return file, label


def _is_header(cells: list[str]) -> bool:
    names = [cell.lower() for cell in cells]
    return names[-1] in _LABEL_HEADERS and (len(names) == 1 or names[0] in _FILE_HEADERS)


def number_labels(
    values: Sequence[str | None], where: str, class_names: tuple[str, ...] | None = None
) -> NumberedLabels:
    """Turn written labels into class numbers: all numbers, or all names.

    Names are numbered by ``class_names`` if it has them all, else in sorted order.

    Raises:
        DataError: If a label is negative, not whole, or numbers and names are mixed.
    """
    given = [value for value in values if value is not None]
    numbers = [value for value in given if _is_number(value)]
    if given and len(numbers) == len(given):
        return NumberedLabels(
            tuple(None if v is None else _whole(v, where) for v in values), class_names, Labelling.STATED
        )
    if numbers:
        word = next(value for value in given if not _is_number(value))
        raise DataError(
            f"{where} mixes class numbers and names", got=f"{numbers[0]!r} and {word!r}", expected="all of one kind"
        )
    names = class_names if class_names and set(given) <= set(class_names) else tuple(sorted(set(given)))
    index = {name: number for number, name in enumerate(names)}
    labels = tuple(None if value is None else index[value] for value in values)
    return NumberedLabels(labels, names or None, Labelling.SORTED_NAMES if given else Labelling.NONE)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower().lstrip("+-") not in ("nan", "inf", "infinity")


def _whole(text: str, where: str) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{where} has a wrong label", got=text, expected="a whole number from 0, or a class name")
    return label


def override_labels(listing: Listing, path: Path) -> Listing:
    """Replace the labels of a listing by those of a file; samples that it does not name have none.

    Rows name a sample by its id or, where that is unambiguous, by its base name. A file with one label a line gives
    them in the order of the samples. A ``.json`` file is of the COCO form with annotations of one category an image;
    classes are numbered in the order of the categories' ids.

    Raises:
        DataError: If the file is malformed, has conflicting rows for a sample, a row for no sample or for several,
            or not one line a sample.
    """
    if path.suffix.lower() == ".json":
        return _override_by_coco(listing, path)
    rows = read_label_rows(path)
    where = f"labels file {path}"
    if rows[0].file is None:
        if len(rows) != len(listing.ids):
            raise DataError(
                f"{where} does not have one label a sample",
                got=f"{len(rows)} labels",
                expected=f"{len(listing.ids)} samples in {listing.name}",
                hint="give rows file,label to label a part of the samples",
            )
        values: list[str | None] = [row.label for row in rows]
    else:
        values = _by_name(listing, rows, where)
    numbered = number_labels(values, where, listing.class_names)
    return replace(listing, labels=numbered.labels, class_names=numbered.class_names, labelling=numbered.labelling)


def _override_by_coco(listing: Listing, path: Path) -> Listing:
    coco = read_coco(path)
    numbers = class_numbers(coco, FROM_ZERO)
    rows = [
        LabelRow(index, coco.images[one.image].name, str(numbers[one.category]))
        for index, one in enumerate(coco.annotations)
    ]
    hint = "annotations of several objects an image are for --task detect or --task segment"
    values = _by_name(listing, rows, coco.where, "annotation", hint)
    labels = tuple(None if value is None else int(value) for value in values)
    return replace(listing, labels=labels, class_names=tuple(coco.categories.values()), labelling=Labelling.STATED)


def _by_name(
    listing: Listing, rows: Sequence[LabelRow], where: str, unit: str = "line", hint: str | None = None
) -> list[str | None]:
    names = SampleNames(listing.ids, listing.name)
    values: list[str | None] = [None] * len(listing.ids)
    for row in rows:
        index = names.index(row.file or "", f"{where} {unit} {row.line}")
        if values[index] not in (None, row.label):
            raise DataError(
                f"{where} has conflicting labels for {row.file!r}",
                got=f"{values[index]!r} and, at {unit} {row.line}, {row.label!r}",
                expected="one label a sample",
                hint=hint,
            )
        values[index] = row.label
    return values
