"""Aligned plain text for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from quantlab.calibrators.stability_result import Stability
from quantlab.calibrators.table import CalibrationTable
from quantlab.degradation import Degradation
from quantlab.findings import LintReport
from quantlab.gate.verdict import CheckResult, Outcome, Verdict
from quantlab.harness.bench import Bench
from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.harness.layer_record import LayerDrift
from quantlab.harness.profile import Profiles
from quantlab.harness.truth_record import Truth
from quantlab.recovery.result import Recovery
from quantlab.reports import bench, calibration, findings, layer_drift, profile, recovery, stability, truth
from quantlab.reports.cells import digest, fixed, interval, plain, shorten
from quantlab.reports.format import Format, Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap
from quantlab.reports.notes import any_undecided, best, device_notes, drift_notes, latency_notes, undecided
from quantlab.reports.scores import FEW, ScoreTable, score_tables
from quantlab.reports.table import DRIFT_COLUMNS, LATENCY_COLUMNS, TABLES, Column, shown

_COLOURS: Mapping[Outcome, str] = MappingProxyType(
    {
        Outcome.PASS: "green",
        Outcome.FAIL: "red",
        Outcome.ERROR: "magenta",
        Outcome.INCONCLUSIVE: "yellow",
        Outcome.WAIVED: "yellow",
        Outcome.SKIPPED: "dim",
    }
)
_OUTCOME_WIDTH = max(len(outcome) for outcome in Outcome)
_LONGEST_CELL = 48
_BEST, _UNDECIDED, _PLAIN = "*", "~", " "


def render_comparison(comparison: Comparison, style: Style) -> str:
    """Accuracy drift, latency and size, and the degradations; tables are stacked where the width does not suffice."""
    width = max(style.width, MIN_WIDTH)
    head = (
        f"{comparison.model}: {comparison.n_samples:,} samples, reference {comparison.reference}, "
        f"model {digest(comparison.model_sha256)}, data {digest(comparison.data_sha256)}"
    )
    lines = [*wrap(head, width), ""]
    for title, columns in TABLES:
        if visible := shown(columns, comparison):
            lines += _tables(title, visible, comparison, width, style)
        if columns is DRIFT_COLUMNS and (notes := drift_notes(comparison)):
            lines += [*(line for sentence in notes for line in wrap(plain(sentence), width)), ""]
        if columns is LATENCY_COLUMNS and (notes := latency_notes(comparison)):
            lines += [*(line for sentence in notes for line in wrap(plain(sentence), width)), ""]
    for table in score_tables(comparison, FEW):
        lines += _score_table(table, width, style)
    lines += _legend(comparison, width)
    lines += _degradations(comparison.degradations, width, style)
    return "\n".join(lines) + "\n"


def render_verdict(verdict: Verdict, style: Style) -> str:
    """The verdict, then every check with its sentence, worst first."""
    width = max(style.width, MIN_WIDTH)
    head = (
        f"policy {verdict.policy} ({digest(verdict.policy_sha256)}), model {verdict.model} "
        f"({digest(verdict.model_sha256)}), {verdict.n_samples:,} samples, one-sided alpha {verdict.alpha:g}"
    )
    lines = [paint(f"Gate: {verdict.outcome}", style, "bold", _COLOURS[verdict.outcome]), *wrap(head, width), ""]
    ordered = verdict.worst_first()
    for check in ordered:
        if not check.is_passed_guard:
            lines += _check(check, width, style)
    n_guards = sum(check.is_passed_guard for check in ordered)
    lines += ["", f"{n_guards} guards passed."] if n_guards else []
    return "\n".join(lines) + "\n"


def _tables(title: str, columns: Sequence[Column], comparison: Comparison, width: int, style: Style) -> Iterator[str]:
    first = GridColumn("variant", tuple(plain(result.name) for result in comparison.variants))
    prepared = [_column(column, comparison) for column in columns]
    for number, lines in enumerate(grids(first, prepared, width)):
        yield paint(title if number == 0 else f"{title} (continued)", style, "bold")
        yield lines[0]
        for result, line in zip(comparison.variants, lines[1:], strict=True):
            yield paint(line, style, "dim") if result.name == comparison.reference else line
        yield ""


def _score_table(table: ScoreTable, width: int, style: Style) -> Iterator[str]:
    """The rows of each variant below a line with its name; notes alone where nothing changed."""
    if not table.rows:
        yield paint(table.title, style, "bold")
        yield from wrap(" ".join(table.notes), width)
        yield ""
        return
    blank = ("",) * (len(table.headings) - 2)
    rows: list[tuple[str, ...]] = []
    for variant, members in itertools.groupby(table.rows, key=lambda row: row[0]):
        rows.append((variant, *blank))
        rows += [(f"  {row[1]}", *row[2:]) for row in members]
    headings = (f"{table.headings[0]}, {table.headings[1]}", *table.headings[2:])
    first, *others = (
        GridColumn(heading, tuple(shorten(plain(cell), _LONGEST_CELL) for cell in cells), number + 1 < table.words)
        for number, (heading, cells) in enumerate(zip(headings, zip(*rows, strict=True), strict=True))
    )
    for number, lines in enumerate(grids(first, others, width)):
        yield paint(table.title if number == 0 else f"{table.title} (continued)", style, "bold")
        yield from lines
        yield ""
    if table.notes:
        yield from wrap(" ".join(table.notes), width)
        yield ""


def _column(column: Column, comparison: Comparison) -> GridColumn:
    """The cells, marked; where one cell is marked the others get a blank, so that digits stay aligned."""
    winners = best(column, comparison)
    marks = [_mark(column, result, winners, comparison) for result in comparison.variants]
    if set(marks) == {_PLAIN}:
        return GridColumn(column.heading, tuple(column.text(result) for result in comparison.variants), column.left)
    cells = tuple(column.text(result) + mark for result, mark in zip(comparison.variants, marks, strict=True))
    return GridColumn(column.heading + _PLAIN, cells, column.left)


def _mark(column: Column, result: VariantResult, winners: frozenset[str], comparison: Comparison) -> str:
    if undecided(column, result, comparison.reference):
        return _UNDECIDED
    return _BEST if result.name in winners else _PLAIN


def _legend(comparison: Comparison, width: int) -> list[str]:
    notes = []
    if any(best(column, comparison) for _, columns in TABLES for column in columns):
        notes.append("* best of the candidates.")
    if any_undecided(comparison):
        notes.append("~ the interval holds 1: neither faster nor slower was shown.")
    if any(len(result.outputs) > 1 for result in comparison.variants):
        notes.append("Of several outputs, the worst is shown.")
    timed = next((result.latency for result in comparison.variants if result.latency is not None), None)
    if timed is not None:
        confidence = fixed(100 * timed.ratio_interval.confidence, 0)
        notes.append(
            f"Latency: {timed.boundary}, batch {timed.batch_size}, ratio to {comparison.reference}, "
            f"{confidence} % interval; A/A control {interval(comparison.noise_floor, 3)}."
        )
    lines = [*wrap(" ".join(notes), width), ""] if notes else []
    on_device = [line for note in device_notes(comparison) for line in wrap(plain(note), width)]
    return [*lines, *on_device, ""] if on_device else lines


def _degradations(degradations: Sequence[Degradation], width: int, style: Style) -> Iterator[str]:
    if not degradations:
        yield "No degradations."
        return
    yield paint(f"Degradations ({len(degradations)})", style, "bold", "yellow")
    for degradation in degradations:
        yield from wrap(str(degradation), width, "  - ", "    ")


def _check(check: CheckResult, width: int, style: Style) -> Iterator[str]:
    level = "" if check.level == "error" else f" [{check.level}]"
    title = check.id + level + (f" {check.candidate}" if check.candidate is not None else "")
    indent = " " * (_OUTCOME_WIDTH + 2)
    first, *more = wrap(title, width, indent, indent) or [""]
    label = paint(f"{check.outcome:<{_OUTCOME_WIDTH}}", style, "bold", _COLOURS[check.outcome])
    yield f"{label}  {first.strip()}"
    yield from more
    yield from wrap(check.reason, width, indent, indent)
    if check.waiver is not None:
        yield from wrap(f"waived: {check.waiver}", width, indent, indent)
    if check.next_step:
        yield from wrap(f"next: {check.next_step}", width, indent, indent)


FORMAT = Format(
    "terminal",
    ".txt",
    MappingProxyType(
        {
            Comparison: render_comparison,
            Bench: bench.render_terminal,
            Verdict: render_verdict,
            CalibrationTable: calibration.render_terminal,
            LintReport: findings.render_terminal,
            Stability: stability.render_terminal,
            Recovery: recovery.render_terminal,
            Profiles: profile.render_terminal,
            Truth: truth.render_terminal,
            LayerDrift: layer_drift.render_terminal,
        }
    ),
)
