"""Markdown (GitHub's) of comparisons, verdicts and findings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType

from quantlab.calibrators.stability_result import Stability
from quantlab.findings import LintReport, group_findings
from quantlab.gate.verdict import CheckResult, Verdict
from quantlab.harness.bench import Bench
from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.harness.layer_record import LayerDrift
from quantlab.harness.profile import Profiles
from quantlab.harness.truth_record import Truth
from quantlab.recovery.result import Recovery
from quantlab.reports import layer_drift, profile, recovery, truth
from quantlab.reports.bench import bench_head, bench_notes, bench_tables, bench_warnings
from quantlab.reports.cells import digest, interval, plain, shorten
from quantlab.reports.findings import lint_head, place
from quantlab.reports.format import Format, Style
from quantlab.reports.notes import any_undecided, best, device_notes, drift_notes, latency_notes, undecided
from quantlab.reports.scores import MANY, score_tables
from quantlab.reports.stability import (
    SIZE_HEADINGS,
    sentences,
    size_cells,
    stability_head,
    tensor_cells,
    tensor_headings,
)
from quantlab.reports.table import DRIFT_COLUMNS, LATENCY_COLUMNS, TABLES, Column, shown

_SPECIAL = re.compile(r"[\\`*_\[\]|~#]")


def escape(text: str) -> str:
    """``text`` as literal text on one line: safe in a table cell, a list item and a heading.

    Angle brackets and ampersands become entities, so that no HTML gets through; an ``@`` must not notify anyone.
    """
    entities = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", entities).replace("@", "@<!-- -->")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> Iterator[str]:
    """Lines of a table whose cells are escaped already; the first ``words`` columns are aligned to the left."""
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "|".join(" --- " if number < words else " ---: " for number in range(len(headings))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def render_comparison(comparison: Comparison, style: Style) -> str:
    """Head, two tables and the degradations."""
    origin = (
        f"{comparison.n_samples:,} samples, reference {escape(comparison.reference)}, "
        f"model `{digest(comparison.model_sha256)}`, data `{digest(comparison.data_sha256)}`, seed {comparison.seed}."
    )
    lines = [
        f"# {escape(comparison.model)}: precision comparison",
        "",
        origin,
        "",
    ]
    for title, columns in TABLES:
        visible = shown(columns, comparison)
        if not visible:
            continue
        headings = ["variant", *(escape(column.heading) for column in visible)]
        rows = [
            [escape(result.name), *(_cell(column, result, comparison) for column in visible)]
            for result in comparison.variants
        ]
        words = 1 + sum(column.left for column in visible)
        lines += [f"## {title}", "", *table(headings, rows, words), ""]
        if columns is DRIFT_COLUMNS and (told := drift_notes(comparison)):
            lines += [*(f"- {escape(sentence)}" for sentence in told), ""]
        if columns is LATENCY_COLUMNS and (told := latency_notes(comparison)):
            lines += [*(f"- {escape(sentence)}" for sentence in told), ""]
    for scored in score_tables(comparison, MANY):
        cells = [[escape(cell) for cell in row] for row in scored.rows]
        headings = [escape(heading) for heading in scored.headings]
        lines += [f"## {escape(scored.title)}", ""]
        lines += [*table(headings, cells, scored.words), ""] if cells else []
        lines += [escape(" ".join(scored.notes)), ""] if scored.notes else []
    notes = ["Bold: best of the candidates."]
    if any_undecided(comparison):
        notes.append("Italic ratio: the interval holds 1, neither faster nor slower was shown.")
    if any(len(result.outputs) > 1 for result in comparison.variants):
        notes.append("Of several outputs, the worst is shown.")
    if comparison.noise_floor is not None:
        notes.append(f"A/A control of latency: {escape(interval(comparison.noise_floor, 3))}.")
    lines += [" ".join(notes), ""]
    if warnings := device_notes(comparison):
        lines += [*(f"- {escape(warning)}" for warning in warnings), ""]
    lines += ["## Degradations", ""]
    lines += [f"- {escape(str(degradation))}" for degradation in comparison.degradations] or ["None."]
    return "\n".join(lines) + "\n"


def _cell(column: Column, result: VariantResult, comparison: Comparison) -> str:
    text = escape(column.text(result))
    if undecided(column, result, comparison.reference):
        return f"*{text}*"
    return f"**{text}**" if result.name in best(column, comparison) else text


def render_bench(bench: Bench, style: Style) -> str:
    """Head, every table that has something to show, notes, warnings and degradations."""
    lines = ["# Bench", "", escape(bench_head(bench)), ""]
    for found in bench_tables(bench):
        headings = [escape(found.first), *(escape(column.heading.strip()) for column in found.columns)]
        rows = [
            [escape(name), *(escape(column.cells[number]) for column in found.columns)]
            for number, name in enumerate(found.names)
        ]
        lines += [f"## {escape(found.title)}", "", *table(headings, rows, 1), ""]
    lines += [escape(" ".join(bench_notes(bench))), "", "## Warnings", ""]
    lines += [f"- {escape(text)}" for text in bench_warnings(bench)] or ["None."]
    lines += ["", "## Degradations", ""]
    lines += [f"- {escape(str(degradation))}" for degradation in bench.degradations] or ["None."]
    return "\n".join(lines) + "\n"


def verdict_head(verdict: Verdict) -> list[str]:
    """Heading, and what was judged by what."""
    origin = (
        f"Policy {escape(verdict.policy)} `{digest(verdict.policy_sha256)}`, model {escape(verdict.model)} "
        f"`{digest(verdict.model_sha256)}`, comparison `{digest(verdict.comparison_sha256)}`, "
        f"{verdict.n_samples:,} samples, one-sided alpha {verdict.alpha:g}, {verdict.evaluated_on.isoformat()}."
    )
    return [f"# Gate: {verdict.outcome}", "", origin, ""]


VERDICT_HEADINGS = ("outcome", "check", "candidate", "finding", "next step")


def verdict_row(check: CheckResult, longest: int | None = None) -> list[str]:
    """The cells of one check, the words cut to ``longest`` characters each before they are escaped."""
    outcome = check.outcome.value if check.level == "error" else f"{check.outcome} ({check.level})"
    finding = check.reason if check.waiver is None else f"{check.reason} (waived: {check.waiver})"
    words = (check.id, check.candidate or "", finding, check.next_step)
    cells = [escape(text if longest is None else shorten(text, longest)) for text in words]
    return [f"**{outcome}**" if check.decides else outcome, *cells]


def render_verdict(verdict: Verdict, style: Style) -> str:
    """Every check in one table, worst first, then the further facts."""
    ordered = verdict.worst_first()
    lines = verdict_head(verdict)
    lines += table(VERDICT_HEADINGS, [verdict_row(check) for check in ordered], len(VERDICT_HEADINGS))
    facts = [
        f"- {escape(check.id)} {escape(check.candidate or '')}: {escape('; '.join(check.details))}"
        for check in ordered
        if check.details
    ]
    lines += ["", "## Details", "", *facts] if facts else []
    return "\n".join(lines) + "\n"


def render_findings(report: LintReport, style: Style) -> str:
    """A section for each rule that found something, with a table of every place."""
    lines = [f"# Lint: {escape(report.file)}", "", f"{escape(lint_head(report))}."]
    for group in group_findings(report.findings):
        lines += [
            "",
            f"## {group.severity}: {escape(group.rule)}",
            "",
            f"{escape(group.why[:1].upper() + group.why[1:])}.",
        ]
        lines += ["", f"Fix: {escape(group.fix)}.", ""]
        lines += table(("where", "found"), [(escape(place(f)), escape(f.message)) for f in group.findings], 2)
    return "\n".join(lines) + "\n"


def render_profiles(profiles: Profiles, style: Style) -> str:
    """Engines, what got slower and faster, the rows that cost most, and what to know of the times."""
    engines = [[escape(cell) for cell in profile.engine_cells(profiles, i)] for i in range(len(profiles.engines))]
    rows = [[escape(cell) for cell in profile.row_cells(profiles, row)] for row in profile.shown_rows(profiles)]
    lines = ["# Profile of the layers", "", f"{escape(profile.head(profiles))}.", ""]
    lines += table([escape(heading) for heading in profile.engine_headings(profiles)], engines, 1)
    for title, changes in profile.findings(profiles):
        lines += ["", f"## {escape(title)}", "", *(f"- {escape(change)}" for change in changes)]
    lines += ["", "## Layers", "", *table([escape(text) for text in profile.row_headings(profiles)], rows, 1), ""]
    lines += [profile.more_rows(profiles), ""] if profile.more_rows(profiles) else []
    lines += [f"- {escape(remark)}" for remark in profile.remarks(profiles)]
    return "\n".join(lines) + "\n"


def render_stability(stability: Stability, style: Style) -> str:
    """The finding, a table of sizes, and one of all tensors, least stable first."""
    finding, *notes = sentences(stability)
    lines = [f"# {escape(stability.model)}: stability of the ranges", "", escape(stability_head(stability)), ""]
    lines += [f"**{escape(finding)}**", "", escape(" ".join(notes))]
    if stability.sizes:
        sizes = [[escape(cell) for cell in size_cells(size)] for size in stability.sizes]
        tensors = [[escape(cell) for cell in tensor_cells(tensor)] for tensor in stability.least_stable()]
        lines += ["", *table(SIZE_HEADINGS, sizes, 0), "", "Most moved and lost in any subset:", ""]
        lines += table(tensor_headings(stability), tensors, 1)
    lines += ["", "## Degradations", ""]
    lines += [f"- {escape(str(degradation))}" for degradation in stability.degradations] or ["None."]
    return "\n".join(lines) + "\n"


def render_recovery(result: Recovery, style: Style) -> str:
    """The gain, a table of the steps, where the loss came from, and the notes."""
    lines = [f"# {escape(result.model)}: recovery", "", escape(recovery.recovery_head(result)), ""]
    steps = [[escape(cell) for cell in recovery.step_cells(step)] for step in result.record.steps]
    lines += [*table(recovery.STEP_HEADINGS, steps, 2), ""]
    lines += [escape(line), ""] if (line := recovery.diagnosis_line(result)) else []
    if layers := [[escape(cell) for cell in row] for row in recovery.layer_rows(result)]:
        lines += [*table(recovery.LAYER_HEADINGS, layers, 2), ""]
    lines += [*(f"- {escape(note)}" for note in recovery.step_notes(result)), "", "## Degradations", ""]
    lines += [f"- {escape(str(degradation))}" for degradation in result.degradations] or ["None."]
    return "\n".join(lines) + "\n"


def render_truth(result: Truth, style: Style) -> str:
    """The sentence of each runtime, the table, and what limits it."""
    lines = [f"# {escape(result.graph)} in several runtimes", "", escape(truth.truth_head(result)), ""]
    lines += [f"- **{row.judgement}**: {escape(text)}." for row, text in truth.verdicts(result)]
    names, cells = truth.headings(result), truth.cells(result)
    if cells:
        words = 1 + ("output" in names)
        lines += ["", *table(names, [[escape(cell) for cell in line] for line in cells], words)]
    lines += ["", *(f"{escape(note)}\n" for note in truth.notes(result))]
    lines += ["## Degradations", ""]
    lines += [f"- {escape(str(degradation))}" for degradation in result.degradations] or ["None."]
    return "\n".join(lines) + "\n"


def render_layers(drift: LayerDrift, style: Style) -> str:
    """Where most is lost, and the tables in graph order."""
    finding = drift.finding[:1].upper() + drift.finding[1:] + "."
    lines = [f"# {escape(drift.variant)}: layer by layer", "", escape(layer_drift.layers_head(drift)), ""]
    lines += [f"**{escape(finding)}**"]
    for title, kinds in layer_drift.TABLES:
        if rows := layer_drift.rows_of(drift, kinds):
            cells = [[escape(cell) for cell in row] for row in rows]
            lines += ["", f"## {title}", "", *table(layer_drift.part_headings(kinds), cells, 2)]
    lines += ["", *(f"{escape(note)}\n" for note in layer_drift.notes(drift))]
    lines += ["## Degradations", ""]
    lines += [f"- {escape(str(degradation))}" for degradation in drift.degradations] or ["None."]
    return "\n".join(lines) + "\n"


FORMAT = Format(
    "markdown",
    ".md",
    MappingProxyType(
        {
            Comparison: render_comparison,
            Bench: render_bench,
            Verdict: render_verdict,
            LintReport: render_findings,
            Stability: render_stability,
            Recovery: render_recovery,
            Profiles: render_profiles,
            Truth: render_truth,
            LayerDrift: render_layers,
        }
    ),
)
