"""Slices of a data set by the columns of a CSV file: camera, weather, patient."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlab.datasets.labels import read_text
from quantlab.datasets.names import SampleNames
from quantlab.errors import DataError

FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "id", "name", "sample")
"""Names of the first column, which says the sample."""


@dataclass(frozen=True, slots=True, eq=False)
class SliceTable:
    """Values of samples, by which slices are made.

    Attributes:
        columns: Names of the columns, without the one that names the sample.
        values: By sample id: a value for each column, None where the cell is empty. Samples without a row are in no
            slice.
    """

    columns: tuple[str, ...]
    values: Mapping[str, tuple[str | None, ...]]

    def of(self, ids: Sequence[str], column: str) -> list[str | None]:
        """The values of a column for these samples."""
        place = self.columns.index(column)
        return [row[place] if (row := self.values.get(identity)) is not None else None for identity in ids]


def read_slices(path: Path, ids: Sequence[str], dataset: str) -> SliceTable:
    """Read a CSV file with a header, whose first column names samples as a labels file does.

    Args:
        path: The file; comma or tab.
        ids: Of all samples of the data set.
        dataset: What it is called.

    Raises:
        DataError: If the file is missing, not text, malformed, without a header or rows, a column is named twice or has
            no value, a row names no sample or several, or a sample has two different rows.
    """
    where = f"slices file {path}"
    text = read_text(path, "slices file")
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",")
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as cause:
        raise DataError(f"{where} is malformed at line {reader.line_num}", got=str(cause)) from cause
    if len(rows) < 2:
        raise DataError(f"{where} has no rows", expected="a header such as file,camera and a row for each sample")
    header = rows[0][1]
    _check_header(header, where)
    names = SampleNames(ids, dataset)
    values: dict[str, tuple[str | None, ...]] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"{where} has a wrong row at line {line}", got=f"{len(cells)} cells", expected=f"{len(header)} cells"
            )
        identity = ids[names.index(cells[0], f"{where} line {line}")]
        row = tuple(cell or None for cell in cells[1:])
        if values.setdefault(identity, row) != row:
            raise DataError(f"{where} has two different rows for {cells[0]!r}", got=f"another one at line {line}")
    for place, name in enumerate(header[1:]):
        if all(row[place] is None for row in values.values()):
            raise DataError(f"{where} has no value in the column {name!r}", hint="fill it in, or leave it out")
    return SliceTable(tuple(header[1:]), values)


def _check_header(header: Sequence[str], where: str) -> None:
    expected = "file, then the columns to slice by"
    if header[0].lower() not in FILE_COLUMNS:
        hint = "the first column may be called " + ", ".join(FILE_COLUMNS) + "; commas or tabs lie between columns"
        raise DataError(
            f"{where} does not begin with the column file", got=repr(header[0]), expected=expected, hint=hint
        )
    if len(header) < 2:
        raise DataError(f"{where} has no column to slice by", got=", ".join(header), expected=expected)
    for number, name in enumerate(header):
        if not name:
            raise DataError(f"{where} has a column without a name", got=", ".join(header), expected=expected)
        if name in header[:number]:
            raise DataError(f"{where} has the column {name!r} twice", got=", ".join(header), expected="unique names")
