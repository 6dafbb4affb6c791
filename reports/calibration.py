"""The calibration table in rows: one tensor, scheme and method each; and its short form for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.calibrators.quantize import INT8_SYMMETRIC
from quantlab.calibrators.table import CalibrationTable, TensorEntry
from quantlab.reports.cells import digest, plain
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 8


def calibration_frame(table: CalibrationTable) -> pd.DataFrame:
    """Every tensor x scheme x method.

    Columns: tensor, scheme, method, chosen, low, high, clipped_percent, sqnr_db, candidates, fallback, minimum,
    maximum, count, non_finite, zero_percent.
    """
    import pandas as pd

    rows = [
        {
            "tensor": entry.name,
            "scheme": scheme,
            "method": method,
            "chosen": method == table.method,
            "low": chosen.low,
            "high": chosen.high,
            "clipped_percent": 100.0 * chosen.clipped_fraction,
            "sqnr_db": chosen.sqnr_db,
            "candidates": chosen.candidates,
            "fallback": chosen.fallback or "",
            "minimum": entry.minimum,
            "maximum": entry.maximum,
            "count": entry.count,
            "non_finite": entry.non_finite,
            "zero_percent": 100.0 * entry.zero_fraction,
        }
        for entry in table.tensors
        for scheme, by_method in entry.ranges.items()
        for method, chosen in by_method.items()
    ]
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(("tensor", "scheme", "method", "fallback"), "string"))


def render_terminal(table: CalibrationTable, style: Style) -> str:
    """The tensors that lose most under the chosen method, with the other methods beside it; symmetric INT8."""
    entries = sorted(table.tensors, key=lambda entry: entry.ranges[INT8_SYMMETRIC.name][table.method].sqnr_db)
    worst = entries[:_SHOWN]
    provenance = table.provenance
    data = f"{table.n_samples:,} samples ({digest(provenance.data_sha256)})"
    lines = [
        f"calibration of {plain(provenance.model)} ({digest(provenance.model_sha256)}) on {data}:",
        f"{len(table.tensors)} tensors, method {table.method}; the {len(worst)} of least SQNR under symmetric INT8:",
        "amax (values clipped, SQNR) by each method",
        "",
    ]
    first = GridColumn("tensor", tuple(plain(entry.name) for entry in worst))
    methods = list(worst[0].ranges[INT8_SYMMETRIC.name]) if worst else []
    columns = [
        GridColumn(method + ("*" if method == table.method else ""), tuple(_cell(entry, method) for entry in worst))
        for method in methods
    ]
    for grid in grids(first, columns, style.width):
        lines += [*grid, ""]
    lines += [f"  - {degradation}" for degradation in table.degradations] or ["No degradations."]
    return "\n".join(lines) + "\n"


def _cell(entry: TensorEntry, method: str) -> str:
    chosen = entry.ranges[INT8_SYMMETRIC.name][method]
    mark = " =minmax" if chosen.fallback else ""
    return f"{chosen.high:.4g} ({100 * chosen.clipped_fraction:.3g} %, {chosen.sqnr_db:.1f} dB){mark}"


def render_json(table: CalibrationTable, style: Style) -> str:
    """The bytes of ``calibration.json``."""
    return table.to_json()
