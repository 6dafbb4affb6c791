"""Layer-by-layer drift: a line for each quantized tensor in graph order, and where most is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantlab.graph.twin import PartKind
from quantlab.harness.layer_record import LayerDrift, PartDrift
from quantlab.reports.cells import counted, digest, fixed, plain
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

WORST = "<- most is lost here"

TABLES: tuple[tuple[str, tuple[PartKind, ...]], ...] = (
    ("Tensors", (PartKind.ACTIVATION, PartKind.OUTPUT)),
    ("Layers", (PartKind.LAYER,)),
    ("Weights and biases", (PartKind.WEIGHT, PartKind.BIAS)),
)
"""Title and parts of each table."""

_EXPLANATION = (
    "SQNR in dB against the floating-point graph. Own: the tensor's own quantization alone, on exact values; of a "
    "layer, its output with nothing but its own operands quantized. Arriving: before the tensor's own pair. "
    "Accumulated: in the quantized graph. Lost: against the worst tensor that it is computed from."
)


def part_headings(kinds: Sequence[PartKind]) -> tuple[str, ...]:
    """Headings of `part_cells`."""
    if PartKind.WEIGHT in kinds:
        return ("tensor", "layer", "kind", "own")
    if PartKind.LAYER in kinds:
        return ("layer", "operator", "own", "accumulated", "")
    return ("tensor", "own", "arriving", "accumulated", "lost", "", "layer")


def part_cells(part: PartDrift, worst: str | None) -> tuple[str, ...]:
    """The cells of one part, under the headings of its kind."""
    broken = f"{part.non_finite:,} not finite" if part.non_finite else ""
    marks = " ".join(filter(None, (WORST if part.tensor == worst else "", broken)))
    if part.kind in (PartKind.WEIGHT, PartKind.BIAS):
        return (plain(part.tensor), plain(part.layer), part.kind.value, fixed(part.local_db, 1))
    if part.kind is PartKind.LAYER:
        pair = (fixed(part.local_db, 1), fixed(part.accumulated_db, 1))
        return (plain(part.layer), plain(part.op_type), *pair, marks)
    figures = tuple(fixed(value, 1) for value in (part.local_db, part.arriving_db, part.accumulated_db, part.drop_db))
    return (plain(part.tensor), *figures, marks, plain(part.via or part.layer))


def rows_of(drift: LayerDrift, kinds: Sequence[PartKind]) -> list[tuple[str, ...]]:
    """The lines of one table, in graph order."""
    return [part_cells(part, drift.worst) for part in (*drift.parts, *drift.stored) if part.kind in kinds]


def layers_head(drift: LayerDrift) -> str:
    """What was looked at."""
    return (
        f"{plain(drift.variant)} ({digest(drift.graph_sha256)}) against {plain(drift.model)} "
        f"({digest(drift.model_sha256)}): {counted(drift.n_samples, 'sample')} ({digest(drift.data_sha256)}), "
        f"{drift.emulated}."
    )


def notes(drift: LayerDrift) -> list[str]:
    """What the columns mean, and what is missing."""
    missing = []
    if drift.unmatched:
        names = ", ".join(plain(name) for name in drift.unmatched[:3]) + (", ..." if len(drift.unmatched) > 3 else "")
        missing.append(f"{len(drift.unmatched)} quantized tensors have no counterpart and are left out: {names}.")
    return [_EXPLANATION, *missing]


def layers_frame(drift: LayerDrift) -> pd.DataFrame:
    """Every part in graph order, weights and biases last.

    Columns: position, kind, tensor, layer, operator, local_sqnr_db, arriving_sqnr_db, accumulated_sqnr_db, source,
    drop_db, via, non_finite, worst.
    """
    import pandas as pd

    rows = [
        {
            "position": number,
            "kind": part.kind.value,
            "tensor": part.tensor,
            "layer": part.layer,
            "operator": part.op_type,
            "local_sqnr_db": part.local_db,
            "arriving_sqnr_db": part.arriving_db,
            "accumulated_sqnr_db": part.accumulated_db,
            "source": part.source,
            "drop_db": part.drop_db,
            "via": part.via,
            "non_finite": part.non_finite,
            "worst": part.tensor == drift.worst and part.kind in TABLES[0][1],
        }
        for number, part in enumerate((*drift.parts, *drift.stored))
    ]
    texts = ("kind", "tensor", "layer", "operator", "source", "via")
    numbers = ("local_sqnr_db", "arriving_sqnr_db", "accumulated_sqnr_db", "drop_db")
    types = {**dict.fromkeys(texts, "string"), **dict.fromkeys(numbers, "Float64")}
    with pd.option_context("mode.string_storage", "python"):  # PyArrow refuses names that are no Unicode
        return pd.DataFrame(rows).astype(types)


def render_terminal(drift: LayerDrift, style: Style) -> str:
    """The finding, then the tables in graph order."""
    width = max(style.width, MIN_WIDTH)
    lines = [paint("Layer by layer", style, "bold"), *wrap(layers_head(drift), width), ""]
    finding = drift.finding[:1].upper() + drift.finding[1:] + "."
    lines += [paint(line, style, "bold") for line in wrap(finding, width)]
    for title, kinds in TABLES:
        found = rows_of(drift, kinds)
        if not found:
            continue
        words = ("layer", "operator", "kind", "")
        first, *columns = (
            GridColumn(name, tuple(row[i] for row in found), left=name in words)
            for i, name in enumerate(part_headings(kinds))
        )
        lines += ["", paint(title, style, "bold")]
        lines += [line for grid in grids(first, columns, width) for line in (*grid, "")][:-1]
    lines.append("")
    for note in notes(drift):
        lines += wrap(note, width)
    lines += ["", *(f"  - {plain(str(found))}" for found in drift.degradations)] if drift.degradations else []
    return "\n".join(lines) + "\n"


def render_json(drift: LayerDrift, style: Style) -> str:
    """The bytes of ``layers.json``."""
    return drift.to_json()
