"""Per-layer profiles: what each engine spends where, the layers that got slower and faster, memory and load time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from quantlab.engines.layer_time import LayerKind
from quantlab.harness.alignment import LayerRow
from quantlab.harness.footprint import BOUNDARY, Footprint
from quantlab.harness.profile import EngineProfile, Profiles
from quantlab.harness.profile_words import gains, notes, regressions, worst_first
from quantlab.precision import Execution
from quantlab.reports.cells import EMULATED, MISSING, fixed, mebibytes, plain
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

_REPEATED = re.compile(r"(?<=/)([^/]+)/(?=\1\.\d)")
"""Folders that exporters repeat: ``features`` of ``/features/features.9/Conv``."""

_DTYPES = {
    "row": "Int64",
    "nodes": "string",
    "engine": "string",
    "ms": "Float64",
    "share_percent": "Float64",
    "ratio": "Float64",
    "layers": "Int64",
    "reformats": "Int64",
    "reformat_ms": "Float64",
    "quantizes": "Int64",
    "quantize_ms": "Float64",
    "operators": "string",
    "precisions": "string",
}

SHOWN = 20
"""Rows in tables for people, worst first; CSV and JSON have all."""


def head(profiles: Profiles) -> str:
    """What was profiled."""
    return (
        f"Layers of {len(profiles.engines)} engines at batch {profiles.batch_size}, side by side; reference "
        f"{plain(profiles.reference)}"
    )


def engine_headings(profiles: Profiles) -> tuple[str, ...]:
    """Headings of `engine_cells`."""
    base = ("engine", "layers", "reformats", "Q/DQ left", "layers ms", "run ms")
    return (*base, *(heading for heading, _ in _footprint_columns(profiles)))


def engine_cells(profiles: Profiles, number: int) -> tuple[str, ...]:
    """One engine: its number in the table of layers and its name, its layers, and what it costs besides time."""
    engine = profiles.engines[number]
    found = profiles.footprint(engine.name)
    return (
        f"{number + 1} {plain(engine.name)}",
        f"{len(engine.layers):,}",
        _part(engine, LayerKind.REFORMAT),
        _part(engine, LayerKind.QUANTIZE),
        fixed(engine.total_ms, 3),
        fixed(engine.run_ms, 3),
        *(MISSING if found is None else cell(found) for _, cell in _footprint_columns(profiles)),
    )


def row_headings(profiles: Profiles) -> tuple[str, ...]:
    """Headings of `row_cells`; engines go by their numbers."""
    found = ["layer", "share %"]
    for number in range(len(profiles.engines)):
        found += [f"{number + 1} ms"]
        found += [f"{number + 1} ratio"] if number in profiles.candidates else []
    return tuple(found)


def row_cells(profiles: Profiles, row: LayerRow) -> tuple[str, ...]:
    """One row: its share of the reference's time, then time and ratio of each engine."""
    base = row.cells[profiles.baseline]
    found = [_REPEATED.sub("", plain(row.label)), fixed(None if base is None else 100.0 * base.share, 1)]
    for number, cell in enumerate(row.cells):
        found += [fixed(None if cell is None else cell.ms, 3)]
        found += [fixed(None if cell is None else cell.ratio, 2)] if number in profiles.candidates else []
    return tuple(found)


def shown_rows(profiles: Profiles) -> tuple[LayerRow, ...]:
    """The rows of tables for people."""
    return worst_first(profiles)[:SHOWN]


def more_rows(profiles: Profiles) -> str:
    """What the table of layers leaves out; empty if nothing."""
    n = len(profiles.rows) - len(shown_rows(profiles))
    return f"{n:,} more rows in CSV and JSON." if n else ""


def findings(profiles: Profiles) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Titles, each with its sentences: what each engine runs slower, and faster; what is empty is left out."""
    found = []
    for number in profiles.candidates:
        engine = profiles.engines[number]
        name = plain(engine.name) + (f" ({EMULATED})" if engine.execution is Execution.EMULATED else "")
        for title, changes in (("slower", regressions(profiles, number)), ("faster", gains(profiles, number))):
            if changes:
                found.append((f"{name}: {title}, by time", tuple(plain(change.words) + "." for change in changes)))
    return tuple(found)


def remarks(profiles: Profiles) -> tuple[str, ...]:
    """What the tables do not say."""
    said = tuple(map(plain, notes(profiles)))
    if not profiles.footprints:
        return said
    processes = min(found.processes for found in profiles.footprints)
    return (*said, f"Memory and load time: medians of {processes} runs, {BOUNDARY}.")


def profile_frame(profiles: Profiles) -> pd.DataFrame:
    """Every row x engine that runs something of it.

    Columns: row (number, in the reference's order), nodes, engine, ms, share_percent, ratio, layers, reformats,
    reformat_ms, quantizes, quantize_ms, operators, precisions.
    """
    import pandas as pd

    rows = [
        {
            "row": number,
            "nodes": " + ".join(row.nodes) or row.label,
            "engine": engine.name,
            "ms": cell.ms,
            "share_percent": 100.0 * cell.share,
            "ratio": cell.ratio,
            "layers": cell.layers,
            "reformats": cell.reformats,
            "reformat_ms": cell.reformat_ms,
            "quantizes": cell.quantizes,
            "quantize_ms": cell.quantize_ms,
            "operators": " ".join(cell.operators),
            "precisions": " ".join(cell.precisions),
        }
        for number, row in enumerate(profiles.rows)
        for engine, cell in zip(profiles.engines, row.cells, strict=True)
        if cell is not None
    ]
    with pd.option_context("mode.string_storage", "python"):
        return pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)


def render_terminal(profiles: Profiles, style: Style) -> str:
    """Engines, what got slower and faster, the rows that cost most, and what to know of the times."""
    width = max(style.width, MIN_WIDTH)
    lines = [paint("Profile of the layers", style, "bold"), *wrap(f"{head(profiles)}.", width), ""]
    engines = [engine_cells(profiles, number) for number in range(len(profiles.engines))]
    lines += _stacked(engine_headings(profiles), engines, width)
    for title, sentences in findings(profiles):
        lines.append(paint(title, style, "bold"))
        lines += [line for sentence in sentences for line in wrap(sentence, width, "  - ", "    ")]
        lines.append("")
    lines += _stacked(row_headings(profiles), [row_cells(profiles, row) for row in shown_rows(profiles)], width)
    lines += [more_rows(profiles), ""] if more_rows(profiles) else []
    lines += [line for remark in remarks(profiles) for line in wrap(remark, width)]
    return "\n".join(lines) + "\n"


def render_json(profiles: Profiles, style: Style) -> str:
    """The bytes of ``profile.json``."""
    return profiles.to_json()


def _footprint_columns(profiles: Profiles) -> tuple[tuple[str, Callable[[Footprint], str]], ...]:
    """Headings and cells of what was measured for some engine."""
    if not profiles.footprints:
        return ()
    columns: list[tuple[str, Callable[[Footprint], str]]] = [
        ("file MiB", lambda found: mebibytes(found.size_bytes)),
        ("load ms", lambda found: fixed(found.median_load_ms, 1)),
        ("first run ms", lambda found: fixed(found.median_first_run_ms, 1)),
    ]
    if any(found.peak_bytes for found in profiles.footprints):
        columns.append(("peak MiB", lambda found: _bytes(found.median_peak_bytes)))
    if any(found.device_bytes for found in profiles.footprints):
        columns.append(("GPU MiB", lambda found: _bytes(found.median_device_bytes)))
    return tuple(columns)


def _bytes(size: int | None) -> str:
    return MISSING if size is None else mebibytes(size)


def _part(engine: EngineProfile, kind: LayerKind) -> str:
    count = engine.count(kind)
    return f"{count:,} ({fixed(100.0 * engine.share(kind), 0)} %)" if count else "0"


def _stacked(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    if not rows:
        return []
    columns = [GridColumn(heading, tuple(row[i] for row in rows)) for i, heading in enumerate(headings)]
    return [line for grid in grids(columns[0], columns[1:], width) for line in (*grid, "")]
