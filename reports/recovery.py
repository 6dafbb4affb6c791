"""Recovery: what each step did on held-out samples, and where the loss came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from quantlab.recovery.record import StepRecord
from quantlab.recovery.result import Recovery
from quantlab.reports.cells import MISSING, counted, digest, fixed, plain
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 8
"""Parts of the diagnosis that people are shown."""

_WHAT: Mapping[str, str] = MappingProxyType(
    {
        "equalize": "ranges of channels made alike",
        "smooth": "outliers moved into weights",
        "ranges": "ranges by the noise at the outputs",
        "shift": "one-sided tensors centred",
        "spare": "noisy channels in dead ones",
        "round": "second-order rounding",
        "bias": "bias correction",
    }
)

STEP_HEADINGS = ("step", "what", "changed", "before dB", "after dB", "change, interval", "outcome", "seconds")


def step_cells(step: StepRecord) -> tuple[str, ...]:
    """The cells of one step, under `STEP_HEADINGS`."""
    what = ", ".join(text for text in (_WHAT.get(step.name, ""), plain(step.label)) if text)
    change = MISSING
    if step.before_db is not None and step.after_db is not None:
        change = fixed(step.after_db - step.before_db, 2, sign=True)
    if step.change_db is not None:
        change += f" [{fixed(step.change_db.low, 2, sign=True)}, {fixed(step.change_db.high, 2, sign=True)}]"
    return (
        plain(step.name),
        what or MISSING,
        f"{len(step.changed):,}",
        fixed(step.before_db, 2),
        fixed(step.after_db, 2),
        change,
        outcome(step),
        fixed(step.seconds, 1),
    )


def outcome(step: StepRecord) -> str:
    """What became of a step, in a word or three."""
    if step.kept:
        return "kept"
    return "dropped" if step.after_db is not None else "nothing to do"


def recovery_head(recovery: Recovery) -> str:
    """What was recovered, on what, and how far."""
    record = recovery.record
    if not record.n_check:
        return f"{plain(recovery.model)} ({digest(recovery.model_sha256)}): nothing was measured, and nothing changed."
    gain = fixed(record.end_db - record.start_db, 2, sign=True)
    return (
        f"{plain(recovery.model)} ({digest(recovery.model_sha256)}), target {plain(recovery.target)}, "
        f"{plain(recovery.method)} ranges: SQNR at the outputs {_decibels(record.start_db)} -> "
        f"{_decibels(record.end_db)} ({gain}), on {counted(record.n_check, 'calibration sample')} held out; steps "
        f"learned from {record.n_fit:,} others."
    )


def diagnosis_line(recovery: Recovery) -> str:
    """Where the loss came from at the start; empty if it was not measured."""
    found = recovery.record.diagnosis
    if found is None:
        return ""
    return (
        f"Before any step: weights alone in INT8 {_decibels(found.weights_db)}, activations alone "
        f"{_decibels(found.activations_db)}, both {_decibels(found.whole_db)}."
    )


LAYER_HEADINGS = ("part", "kind", "share of its noise")


def layer_rows(recovery: Recovery, most: int | None = None) -> list[tuple[str, ...]]:
    """Parts of the noise, under `LAYER_HEADINGS`, the largest first."""
    found = recovery.record.diagnosis
    layers = sorted(found.layers, key=lambda layer: -layer.share)[:most] if found is not None else []
    return [(plain(layer.name), plain(layer.kind), f"{fixed(100.0 * layer.share, 1)} %") for layer in layers]


def step_notes(recovery: Recovery) -> list[str]:
    """What figures are of, what the steps left out and why, and why one was dropped."""
    steps = recovery.record.steps
    alone = [plain(step.name) for step in steps if step.judged_by == "activations" and step.after_db is not None]
    note = "judged with activations alone quantized, for weights are yet to be rounded"
    first = [f"{', '.join(alone)}: {note}"] if alone else []
    return first + [f"{plain(step.name)}: {plain(note)}" for step in steps for note in step.notes]


def recovery_frame(recovery: Recovery) -> pd.DataFrame:
    """Every step.

    Columns: step, label, kept, before_db, after_db, change_db_low, change_db_high, seconds, changed, judged_by,
    notes.
    """
    import pandas as pd

    rows = [
        {
            "step": step.name,
            "label": step.label,
            "kept": step.kept,
            "before_db": step.before_db,
            "after_db": step.after_db,
            "change_db_low": step.change_db.low if step.change_db is not None else None,
            "change_db_high": step.change_db.high if step.change_db is not None else None,
            "seconds": step.seconds,
            "changed": len(step.changed),
            "judged_by": step.judged_by,
            "notes": "; ".join(step.notes),
        }
        for step in recovery.record.steps
    ]
    with pd.option_context("mode.string_storage", "python"):  # PyArrow refuses names that are no Unicode
        frame = pd.DataFrame(rows)
        kinds = dict.fromkeys(("step", "label", "judged_by", "notes"), "string") | dict.fromkeys(
            ("before_db", "after_db", "change_db_low", "change_db_high"), "Float64"
        )
        return frame.astype(kinds if rows else {})


def render_terminal(recovery: Recovery, style: Style) -> str:
    """The gain, the steps, where the loss came from, and the notes."""
    width = max(style.width, MIN_WIDTH)
    lines = [paint("Recovery", style, "bold"), *wrap(recovery_head(recovery), width), ""]
    lines += _grid(STEP_HEADINGS, [step_cells(step) for step in recovery.record.steps], width, 2)
    if line := diagnosis_line(recovery):
        lines += [*wrap(line, width), ""]
    lines += _grid(LAYER_HEADINGS, layer_rows(recovery, SHOWN), width, 2)
    lines += [line for note in step_notes(recovery) for line in wrap(note, width, "  - ", "    ")]
    lines += [line for found in recovery.degradations for line in wrap(str(found), width, "  - ", "    ")]
    return "\n".join(lines) + "\n"


def render_json(recovery: Recovery, style: Style) -> str:
    """The bytes of ``recovery.json``."""
    return recovery.to_json()


def _decibels(value: float | None) -> str:
    return MISSING if value is None else f"{fixed(value, 2)} dB"


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, words: int) -> list[str]:
    if not rows:
        return []
    first, *columns = (
        GridColumn(heading, tuple(row[i] for row in rows), i < words) for i, heading in enumerate(headings)
    )
    return [line for grid in grids(first, columns, width) for line in (*grid, "")]
