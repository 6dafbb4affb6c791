"""Values to be predicted: a CSV file with one or several numbers for each sample."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.annotations import Truths
from quantlab.datasets.labels import read_text
from quantlab.errors import DataError


@dataclass(frozen=True, slots=True)
class Values:
    """Values of samples.

    Attributes:
        columns: Names of the values: the header's, else ``value`` or ``value0``, ``value1``, ...
        truths: (len(columns),) float64 by sample.
    """

    columns: tuple[str, ...]
    truths: Truths[NDArray[np.float64]]


def true_column(name: str) -> str:
    """What the true values of a column are called where the predicted ones have its name."""
    return f"{name}.true"


def read_values(path: Path) -> Values:
    """Read ``file,value[,value...]`` rows (comma or tab); a header is optional.

    Raises:
        DataError: If the file is missing, not text, or empty, a row has another number of columns than the first,
            names a sample again, or a value is not a finite number.
    """
    where = f"values file {path}"
    text = read_text(path, "values file")
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",", strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as cause:
        raise DataError(f"{where} is malformed at line {reader.line_num}", got=str(cause)) from cause
    names: list[str] | None = None
    if rows and len(rows[0][1]) > 1 and all(_number(cell) is None for cell in rows[0][1][1:]):
        names = rows.pop(0)[1][1:]
    if not rows:
        raise DataError(f"{where} has no values", expected="rows file,value")
    width = len(rows[0][1]) if names is None else len(names) + 1
    entries: dict[str, NDArray[np.float64]] = {}
    for line, cells in rows:
        numbers = [number for cell in cells[1:] if (number := _number(cell)) is not None and math.isfinite(number)]
        if len(cells) != width or width < 2 or len(numbers) != width - 1 or not cells[0]:
            raise DataError(
                f"{where} has a wrong row at line {line}", got=",".join(cells)[:120],
                expected=f"a file and {max(width - 1, 1)} finite number{'s' * (width > 2)}",
                hint="separate the columns by commas or tabs" if width == 1 else None,
            )  # fmt: skip
        if cells[0] in entries:
            raise DataError(f"{where} names a sample again at line {line}", got=repr(cells[0]))
        entries[cells[0]] = np.array(numbers, np.float64)
    if names is None:
        names = ["value"] if width == 2 else [f"value{number}" for number in range(width - 1)]
    if len({*names, *(true_column(name) for name in names)}) != 2 * len(names) or not all(names):
        raise DataError(
            f"{where} has a wrong header", got=",".join(names),
            expected=f"a different name for each column, none of them another's with {true_column('')!r} behind",
        )  # fmt: skip
    return Values(tuple(names), Truths(entries, where))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
