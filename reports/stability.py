"""Stability of ranges: a line for each number of images, and the tensors whose ranges move most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantlab.calibrators.stability_result import SizeStability, Stability, TensorStability
from quantlab.reports.cells import digest, fixed, plain, significant
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 8
_BAR = 12

SIZE_HEADINGS = ("images", "subsets", "median loss", "95 % loss", "median moved", "95 % moved", "most lost by")


def size_cells(size: SizeStability) -> tuple[str, ...]:
    """The cells of one number of images, under `SIZE_HEADINGS`."""
    return (
        f"{size.images:,}",
        str(size.subsets),
        f"{fixed(size.loss_db_median, 3)} dB",
        f"{fixed(size.loss_db_p95, 3)} dB",
        f"{fixed(100.0 * size.movement_median, 2)} %",
        f"{fixed(100.0 * size.movement_p95, 2)} %",
        f"{plain(size.worst_tensor)} ({fixed(size.worst_loss_db, 2)} dB)",
    )


def tensor_headings(stability: Stability) -> tuple[str, ...]:
    """Headings of `tensor_cells`."""
    return ("tensor", "range", "groups apart %", *(f"{size.images:,} images" for size in stability.sizes))


def tensor_cells(tensor: TensorStability) -> tuple[str, ...]:
    """One tensor: its range, how far single groups lie apart, and by size the most that it moved and lost."""
    moved = (
        f"{significant(100.0 * movement)} %, {fixed(loss_db, 2)} dB"
        for movement, loss_db in zip(tensor.movements, tensor.losses_db, strict=True)
    )
    span = f"[{significant(tensor.low)}, {significant(tensor.high)}]"
    return (plain(tensor.name), span, significant(100.0 * tensor.spread), *moved)


def stability_head(stability: Stability) -> str:
    """What was compared with what."""
    constant = f" ({stability.n_constant} constant ones left out)" if stability.n_constant else ""
    return (
        f"{plain(stability.model)} ({digest(stability.model_sha256)}), {stability.n_samples:,} samples "
        f"({digest(stability.data_sha256)}) in {stability.n_groups} random groups, seed {stability.seed}: "
        f"{len(stability.tensors)} ranges{constant} by {stability.method} for {stability.scheme}, from subsets of the "
        "groups against those of all samples."
    )


def stability_frame(stability: Stability) -> pd.DataFrame:
    """Every size x tensor.

    Columns: images, groups, subsets, loss_db_median, loss_db_p95, movement_percent_median, movement_percent_p95 (over
    all tensors and subsets of the size), tensor, low, high, spread_percent, movement_percent_max, loss_db_max (of the
    tensor).
    """
    import pandas as pd

    rows = [
        {
            "images": size.images,
            "groups": size.groups,
            "subsets": size.subsets,
            "loss_db_median": size.loss_db_median,
            "loss_db_p95": size.loss_db_p95,
            "movement_percent_median": 100.0 * size.movement_median,
            "movement_percent_p95": 100.0 * size.movement_p95,
            "tensor": tensor.name,
            "low": tensor.low,
            "high": tensor.high,
            "spread_percent": 100.0 * tensor.spread,
            "movement_percent_max": 100.0 * tensor.movements[number],
            "loss_db_max": tensor.losses_db[number],
        }
        for number, size in enumerate(stability.sizes)
        for tensor in stability.tensors
    ]
    with pd.option_context("mode.string_storage", "python"):  # PyArrow refuses names that are no Unicode
        return pd.DataFrame(rows).astype({"tensor": "string"} if rows else {})


def render_terminal(stability: Stability, style: Style) -> str:
    """The curve, the tensors that lose most, and the finding."""
    width = max(style.width, MIN_WIDTH)
    lines = [paint("Stability of the ranges", style, "bold"), *wrap(stability_head(stability), width), ""]
    if stability.sizes:
        rows = [size_cells(size) for size in stability.sizes]
        first, *columns = _columns(SIZE_HEADINGS, rows)
        lines += _stacked(first, [*columns[:3], _curve(stability.sizes), *columns[3:]], width)
        worst = stability.least_stable()[:_SHOWN]
        lines += wrap(f"The {len(worst)} tensors that lose most; most moved and lost in any subset:", width)
        first, *columns = _columns(tensor_headings(stability), [tensor_cells(tensor) for tensor in worst])
        lines += _stacked(first, columns, width)
    finding, *notes = sentences(stability)
    lines += [paint(line, style, "bold") for line in wrap(finding, width)]
    lines += wrap(" ".join(notes), width)
    lines += ["", *(f"  - {plain(str(found))}" for found in stability.degradations)] if stability.degradations else []
    return "\n".join(lines) + "\n"


def sentences(stability: Stability) -> tuple[str, ...]:
    """The finding, what counts as enough, and what the numbers do not show."""
    said = (stability.conclusion, stability.rule, stability.caveat) if stability.sizes else (stability.conclusion,)
    return tuple(text[:1].upper() + text[1:] + "." for text in said)


def _columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[GridColumn]:
    return [GridColumn(heading, tuple(row[i] for row in rows)) for i, heading in enumerate(headings)]


def _curve(sizes: Sequence[SizeStability]) -> GridColumn:
    """Bars of the loss that 95 % do not exceed; the longest is the largest."""
    losses = [max(size.loss_db_p95, 0.0) for size in sizes]
    largest = max((loss for loss in losses if loss != float("inf")), default=0.0)
    bars = [
        "#" * (_BAR if loss == float("inf") else round(_BAR * loss / largest) if largest > 0.0 else 0)
        for loss in losses
    ]
    return GridColumn("", tuple(bars), left=True)


def _stacked(first: GridColumn, columns: Sequence[GridColumn], width: int) -> list[str]:
    return [line for grid in grids(first, columns, width) for line in (*grid, "")]


def render_json(stability: Stability, style: Style) -> str:
    """The bytes of ``stability.json``."""
    return stability.to_json()
