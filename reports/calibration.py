"""The calibration table in rows: one tensor, scheme and method each; and its short form for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING

from quantlab.calibrators.quantize import INT8_SYMMETRIC, SCHEMES, UINT8_AFFINE
from quantlab.calibrators.table import AutoChoice, CalibrationTable, TensorEntry, TensorRange
from quantlab.reports.cells import digest, plain
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 8
_BOUNDS = MappingProxyType({INT8_SYMMETRIC.name: "amax", UINT8_AFFINE.name: "low..high"})


def calibration_frame(table: CalibrationTable) -> pd.DataFrame:
    """Every tensor x scheme x method.

    Columns: tensor, scheme, method, chosen, low, high, clipped_percent, sqnr_db, candidates, fallback, picked, kind,
    minimum, maximum, count, non_finite, zero_percent; NaN where values were not counted.
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
            "clipped_percent": _percent(chosen.clipped_fraction),
            "sqnr_db": math.nan if chosen.sqnr_db is None else chosen.sqnr_db,
            "candidates": chosen.candidates,
            "fallback": chosen.fallback or "",
            "picked": chosen.picked or "",
            "kind": entry.kind,
            "minimum": entry.minimum,
            "maximum": entry.maximum,
            "count": entry.count,
            "non_finite": entry.non_finite,
            "zero_percent": _percent(entry.zero_fraction),
        }
        for entry in table.tensors
        for scheme, by_method in entry.ranges.items()
        for method, chosen in by_method.items()
    ]
    with pd.option_context("mode.string_storage", "python"):  # PyArrow refuses names that are no Unicode
        frame = pd.DataFrame(rows)
        return frame.astype(dict.fromkeys(("tensor", "scheme", "method", "fallback", "picked", "kind"), "string"))


def _percent(share: float | None) -> float:
    return math.nan if share is None else 100.0 * share


def render_terminal(table: CalibrationTable, style: Style) -> str:
    """The tensors that lose most under the chosen method, with the other methods beside it."""
    scheme = next(
        (name for name in SCHEMES if any(table.method in entry.ranges.get(name, {}) for entry in table.tensors)),
        INT8_SYMMETRIC.name,
    )
    provenance = table.provenance
    data = f"{table.n_samples:,} samples ({digest(provenance.data_sha256)})"
    made = f"on {data}" if provenance.source == "observed" else f"from {plain(provenance.source)}"
    lines = [f"calibration of {plain(provenance.model)} ({digest(provenance.model_sha256)}) {made}:"]
    told = [(found.sqnr_db, entry) for entry in table.tensors if (found := _chosen(table, entry, scheme)) is not None]
    worst = [entry for sqnr_db, entry in sorted(_counted(told), key=lambda row: row[0])[:_SHOWN]]
    summary = f"{len(table.tensors)} tensors, method {table.method}"
    summary += f", of the model as recovered by {plain(', '.join(table.recovered))}" if table.recovered else ""
    if not worst:
        lines += [f"{summary}; values were not counted, so nothing is known of errors", ""]
    else:
        lines += [
            f"{summary}; the {len(worst)} of least SQNR under {scheme}:",
            f"{_BOUNDS[scheme]} (values clipped, SQNR) by each method",
            "",
        ]
        first = GridColumn("tensor", tuple(plain(entry.name) for entry in worst))
        columns = [
            GridColumn(
                name + ("*" if name == table.method else ""), tuple(_cell(entry, name, scheme) for entry in worst)
            )
            for name in worst[0].ranges[scheme]
        ]
        for grid in grids(first, columns, style.width):
            lines += [*grid, ""]
    if table.auto is not None:
        lines += [*_auto(table.auto), ""]
    lines += [f"  - {degradation}" for degradation in table.degradations] or ["No degradations."]
    return "\n".join(lines) + "\n"


def _chosen(table: CalibrationTable, entry: TensorEntry, scheme: str) -> TensorRange | None:
    return entry.ranges.get(scheme, {}).get(table.method)


def _counted(rows: Iterable[tuple[float | None, TensorEntry]]) -> list[tuple[float, TensorEntry]]:
    return [(sqnr_db, entry) for sqnr_db, entry in rows if sqnr_db is not None]


def _cell(entry: TensorEntry, method: str, scheme: str) -> str:
    chosen = entry.ranges[scheme].get(method)
    if chosen is None or chosen.clipped_fraction is None or chosen.sqnr_db is None:
        return "-"
    mark = f" ={chosen.picked}" if chosen.picked else (" =minmax" if chosen.fallback else "")
    ends = f"{chosen.high:.4g}" if chosen.low == -chosen.high else f"{chosen.low:.4g}..{chosen.high:.4g}"
    return f"{ends} ({100 * chosen.clipped_fraction:.3g} %, {chosen.sqnr_db:.1f} dB){mark}"


def _auto(auto: AutoChoice) -> list[str]:
    singles = ", ".join(f"{name} {value:.1f}" for name, value in auto.sqnr_db.items())
    picked = ", ".join(f"{name} {count}" for name, count in auto.picked.items() if count)
    taken = "taken" if auto.taken == "sweep" else f"not surely better, so {auto.taken} is used for all"
    return [
        f"auto, for target {auto.target}: SQNR in dB at the model's outputs on {auto.n_check} calibration samples that",
        f"the search over {auto.n_search} others did not see: {singles}; chosen per tensor {auto.swept_sqnr_db:.1f},",
        f"{taken} (tensors by method: {picked})",
    ]


def render_json(table: CalibrationTable, style: Style) -> str:
    """The bytes of ``calibration.json``."""
    return table.to_json()
