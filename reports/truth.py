"""The truth table: a line for each execution and output, and a sentence for each runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.harness.gap import Gap
from quantlab.harness.truth_record import Judgement, OutputTruth, Role, Truth, TruthRow
from quantlab.reports.cells import MISSING, digest, fixed, plain, significant
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = {
    Judgement.AS_WRITTEN: "green",
    Judgement.DIFFERS: "yellow",
    Judgement.OWN_ERROR: "red",
    Judgement.NON_FINITE: "red",
    Judgement.FAILED: "red",
    Judgement.UNAVAILABLE: "dim",
}
_EXPLANATION = (
    "to graph: SQNR in dB against the truth of the quantized graph, the execution's own error; to float64, to FP32: "
    "against the original, quantization and execution together; flips: samples with another highest score; batch: in "
    "batches against one by one; repeat: the same call again."
)


def headings(truth: Truth) -> tuple[str, ...]:
    """Headings of `cells`."""
    original = () if truth.model is None else ("to float64", "to FP32")
    flips = () if truth.model is None else ("flips, original",)
    output = ("output",) if _has_outputs(truth) else ()
    return ("execution", *output, "to graph", *original, "flips, graph", *flips, "max abs err", "batch", "repeat")


def cells(truth: Truth) -> list[tuple[str, ...]]:
    """A line for each row that was run, and each of its outputs, under `headings`."""
    lines = []
    for row in truth.rows:
        for output in row.outputs:
            exact = output.exact or output.fp32
            original = () if truth.model is None else (_decibels(output.exact), _decibels(output.fp32))
            flips = () if truth.model is None else (_flips(exact),)
            named = (plain(output.output),) if _has_outputs(truth) else ()
            worst = output.graph or exact
            lines.append(
                (
                    plain(row.name),
                    *named,
                    _decibels(output.graph),
                    *original,
                    _flips(output.graph),
                    *flips,
                    significant(worst.max_abs_error if worst is not None else None),
                    _sameness(output.batch),
                    _sameness(output.repeat),
                )
            )
    return lines


def truth_head(truth: Truth) -> str:
    """What was compared with what."""
    against = f", made from {plain(truth.model)}" if truth.model is not None else ""
    return (
        f"{plain(truth.graph)} ({digest(truth.graph_sha256)}){against}: {truth.n_samples:,} samples "
        f"({digest(truth.data_sha256)}), one by one and in batches of {truth.batch_size}; the truth of the graph is "
        f"its {truth.truth}."
    )


def verdicts(truth: Truth) -> list[tuple[TruthRow, str]]:
    """Each runtime with what is said of it, and its notes."""
    return [(row, "; ".join((_sentence(row), *row.notes))) for row in truth.runtimes]


def notes(truth: Truth) -> list[str]:
    """What the columns mean, and what limits the table."""
    return [_EXPLANATION, *(f"{note[:1].upper()}{note[1:]}." for note in truth.notes)]


def truth_frame(truth: Truth) -> pd.DataFrame:
    """Every execution x output; one line without figures for each that was not run.

    Columns: execution, role, judgement, output, then for each reference of graph, float64, fp32, batch and repeat:
    ``<reference>_sqnr_db``, ``_max_abs_error``, ``_differing``, ``_flips``, ``_non_finite``; values, loss_db,
    precision_proved, verdict.
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
        shown = wrap(text + ".", width, "  ", "    ")
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
    found["loss_db"] = row.loss_db
    found["precision_proved"] = row.proved.value if row.proved is not None else None
    found["verdict"] = row.verdict
    return found
