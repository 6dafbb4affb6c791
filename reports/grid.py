"""Aligned columns of text, stacked where they do not fit side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantlab.reports.cells import display_width, shorten

_GAP = "  "


@dataclass(frozen=True, slots=True)
class GridColumn:
    """One column: a heading and a cell for each row.

    Attributes:
        heading: First line.
        cells: One for each row.
        left: Whether to align to the left.
    """

    heading: str
    cells: tuple[str, ...]
    left: bool = False

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes."""
        return max(map(display_width, (self.heading, *self.cells)))

    def lines(self) -> list[str]:
        """Heading and cells, padded to one width."""
        width = self.width
        return [_pad(text, width, self.left) for text in (self.heading, *self.cells)]


def grids(first: GridColumn, columns: Sequence[GridColumn], width: int) -> list[list[str]]:
    """Lay out ``columns`` behind ``first``, which begins every grid, in as few grids as ``width`` allows.

    A cell of ``first`` that takes more than two fifths of the width is cut in the middle. A single column that is too
    wide is not cut: a number without its end would lie.

    Returns:
        The lines of each grid: headings, then one line for each row.
    """
    limit = max(16, width * 2 // 5)
    first = GridColumn(first.heading, tuple(shorten(cell, limit) for cell in first.cells), left=True)
    blocks = _stack(first, columns, width)
    for narrower in range(width - 1, first.width, -1):  # even out: not one lone column at the end
        fewer = _stack(first, columns, narrower)
        if len(fewer) > len(blocks):
            break
        blocks = fewer
    return [[_GAP.join(line).rstrip() for line in zip(*(c.lines() for c in block), strict=True)] for block in blocks]


def _stack(first: GridColumn, columns: Sequence[GridColumn], width: int) -> list[list[GridColumn]]:
    """Fill one block after the other from the left."""
    blocks: list[list[GridColumn]] = []
    used = width
    for column in columns:
        step = len(_GAP) + column.width
        if used + step > width:
            blocks.append([first])
            used = first.width
        blocks[-1].append(column)
        used += step
    return blocks


def _pad(text: str, width: int, left: bool) -> str:
    blank = " " * (width - display_width(text))
    return text + blank if left else blank + text
