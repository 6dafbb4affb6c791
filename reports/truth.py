"""The truth table: a line for each execution and output, and a sentence for each runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.harness.gap import Gap
from quantlab.harness.truth_figures import Estimate
from quantlab.harness.truth_record import Judgement, OutputTruth, Role, Truth, TruthRow
from quantlab.harness.truth_verdict import LOSS_DB
from quantlab.reports.cells import MISSING, counted, digest, fixed, interval, plain, significant
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = {
    Judgement.AS_WRITTEN: "green",
    Judgement.DIFFERS: "yellow",
    Judgement.CANNOT_TELL: "yellow",
    Judgement.OWN_ERROR: "red",
    Judgement.NON_FINITE: "red",
    Judgement.FAILED: "red",
    Judgement.UNAVAILABLE: "dim",
}
_DISTANCES = (
    "Distances are SQNR in dB over all samples; more is nearer. To graph: from the quantized graph itself, so the "
    "runtime's own error."
)
_ORIGINAL = (
    "To float64, to FP32: from the original, so quantization and runtime together. Own loss: dB that the runtime is "
    f"further from the original than the graph is; from {LOSS_DB:g} dB on, beyond what float32 as written loses, that "
    "is the runtime's error and not quantization's."
)
_REST = (
    "Flips: samples whose highest score is another one. Batch: in batches against one by one. Repeat: the same call "
    "again."
)
_JUDGEMENT_WIDTH = max(len(judgement) for judgement in Judgement)


def headings(truth: Truth) -> tuple[str, ...]:
    """Headings of `cells`."""
    output = ("output",) if _has_outputs(truth) else ()
    if truth.model is None:
        return ("execution", *output, "to graph", "flips, graph", "max abs err", "batch", "repeat")
    loss = ("own loss", f"{truth.intervals.confidence:.0%} interval") if _has_intervals(truth) else ("own loss",)
    return (
        "execution", *output, "to graph", *loss, "to float64", "to FP32",
        "flips, graph", "flips, original", "max abs err", "batch", "repeat",
    )  # fmt: skip


def cells(truth: Truth) -> list[tuple[str, ...]]:
    """A line for each row that was run, and each of its outputs, under `headings`; runtimes first."""
    rows = sorted(truth.rows, key=lambda row: row.role is not Role.RUNTIME)
    return [_line(truth, row, output) for row in rows for output in row.outputs]


def _line(truth: Truth, row: TruthRow, output: OutputTruth) -> tuple[str, ...]:
    exact = output.exact or output.fp32
    worst = output.graph or exact
    named = (plain(row.name), *((plain(output.output),) if _has_outputs(truth) else ()))
    rest = (
        significant(worst.max_abs_error if worst is not None else None),
        _sameness(output.batch),
        _sameness(output.repeat),
    )
    if truth.model is None:
        return (*named, _decibels(output.graph), _flips(output.graph), *rest)
    loss = output.figures.loss if output.figures is not None else None
    spread = (interval(loss.interval if loss is not None else None, 1),) if _has_intervals(truth) else ()
    return (
        *named,
        _decibels(output.graph),
        fixed(loss.value if loss is not None else None, 1),
        *spread,
        _decibels(output.exact),
        _decibels(output.fp32),
        _flips(output.graph),
        _flips(exact),
        *rest,
    )


def truth_head(truth: Truth) -> str:
    """What was compared with what."""
    against = f", compared with {plain(truth.model)}" if truth.model is not None else ""
    return (
        f"{plain(truth.graph)} ({digest(truth.graph_sha256)}){against}: {counted(truth.n_samples, 'sample')} "
        f"({digest(truth.data_sha256)}), one by one and in batches of {truth.batch_size}; the truth of the graph is "
        f"its {truth.truth}."
    )


def verdicts(truth: Truth) -> list[tuple[TruthRow, str]]:
    """Each runtime with what is said of it, and its notes."""
    return [(row, "; ".join((_sentence(row), *row.notes))) for row in truth.runtimes]


def notes(truth: Truth) -> list[str]:
    """What the columns mean, how intervals were made, and what limits the table."""
    how = truth.intervals
    made = (
        f"In brackets: {how.confidence:.0%} intervals ({how.method}, n = {truth.n_samples:,}, {how.resamples:,} "
        f"resamples, seed {how.seed}), each for itself."
    )
    return [
        " ".join((_DISTANCES, *(() if truth.model is None else (_ORIGINAL,)), _REST)),
        *((made,) if _has_intervals(truth) else ()),
        *(f"{note[:1].upper()}{note[1:]}." for note in truth.notes),
    ]


def truth_frame(truth: Truth) -> pd.DataFrame:
    """Every execution x output; one line without figures for each that was not run.

    Columns: execution, role, judgement, output, then for each reference of graph, float64, fp32, batch and repeat:
    ``<reference>_sqnr_db``, ``_max_abs_error``, ``_differing``, ``_flips``, ``_non_finite``; values; then for nearness,
    own, loss and excess, on which the verdict rests: itself, ``_low`` and ``_high``; precision_proved, verdict.
    """
    import pandas as pd

    rows = [_record(row, output) for row in truth.rows for output in (row.outputs or (None,))]
    texts = ("execution", "role", "judgement", "output", "precision_proved", "verdict")
    types = {} if not rows else {name: "string" if name in texts else "Float64" for name in rows[0]}
    types |= {name: "Int64" for name in types if name.endswith(("_differing", "_flips", "_non_finite", "values"))}
    with pd.option_context("mode.string_storage", "python"):  # PyArrow refuses names that are no Unicode
        return pd.DataFrame(rows).astype(types)


def render_terminal(truth: Truth, style: Style) -> str:
    """The sentences, the table, and what limits it."""
    width = max(style.width, MIN_WIDTH)
    lines = [paint("One graph in several runtimes", style, "bold"), *wrap(truth_head(truth), width), ""]
    for row, text in verdicts(truth):
        label = f"{row.judgement.value:<{_JUDGEMENT_WIDTH}}"
        shown = wrap(text + ".", width, f"  {label}  ", " " * (len(label) + 4))
        lines += [paint(line, style, _COLOURS.get(row.judgement, "dim")) for line in shown]
    names, table = headings(truth), cells(truth)
    if table:
        first, *columns = (
            GridColumn(name, tuple(line[i] for line in table), left=name in ("execution", "output"))
            for i, name in enumerate(names)
        )
        lines += [""] + [line for grid in grids(first, columns, width) for line in (*grid, "")]
    for note in notes(truth):
        lines += wrap(note, width)
    if truth.degradations:
        lines += ["", *(f"  - {plain(str(found))}" for found in truth.degradations)]
    return "\n".join(lines) + "\n"


def render_json(truth: Truth, style: Style) -> str:
    """The bytes of ``truth.json``."""
    return truth.to_json()


def _has_outputs(truth: Truth) -> bool:
    return any(len(row.outputs) > 1 for row in truth.rows)


def _has_intervals(truth: Truth) -> bool:
    found = (output.figures for row in truth.rows for output in row.outputs)
    return any(figures.nearness.interval is not None for figures in found if figures is not None)


def _sentence(row: TruthRow) -> str:
    missing = row.judgement is Judgement.UNAVAILABLE or row.role is not Role.RUNTIME
    return f"{row.name} is not available: {row.verdict}" if missing else row.verdict


def _decibels(gap: Gap | None) -> str:
    return MISSING if gap is None else fixed(gap.sqnr_db, 1)


def _flips(gap: Gap | None) -> str:
    return MISSING if gap is None or gap.flips is None else f"{gap.flips:,}"


def _sameness(gap: Gap | None) -> str:
    if gap is None:
        return MISSING
    if gap.is_equal:
        return "equal"
    return f"{fixed(gap.sqnr_db, 1)} dB" if gap.sqnr_db is not None else f"{gap.differing:,} differ"


def _record(row: TruthRow, output: OutputTruth | None) -> dict[str, object]:
    found: dict[str, object] = {
        "execution": row.name,
        "role": row.role.value,
        "judgement": row.judgement.value,
        "output": output.output if output is not None else None,
    }
    gaps = {
        "graph": output.graph if output is not None else None,
        "float64": output.exact if output is not None else None,
        "fp32": output.fp32 if output is not None else None,
        "batch": output.batch if output is not None else None,
        "repeat": output.repeat if output is not None else None,
    }
    for name, gap in gaps.items():
        found[f"{name}_sqnr_db"] = gap.sqnr_db if gap is not None else None
        found[f"{name}_max_abs_error"] = gap.max_abs_error if gap is not None else None
        found[f"{name}_differing"] = gap.differing if gap is not None else None
        found[f"{name}_flips"] = gap.flips if gap is not None else None
        found[f"{name}_non_finite"] = gap.non_finite if gap is not None else None
    found["values"] = next((gap.values for gap in gaps.values() if gap is not None), None)
    for name in ("nearness", "own", "loss", "excess"):
        figure: Estimate | None = getattr(output.figures, name) if output is not None and output.figures else None
        bounds = figure.interval if figure is not None else None
        found[name] = figure.value if figure is not None else None
        found[f"{name}_low"] = bounds.low if bounds is not None else None
        found[f"{name}_high"] = bounds.high if bounds is not None else None
    found["precision_proved"] = row.proved.value if row.proved is not None else None
    found["verdict"] = row.verdict
    return found
