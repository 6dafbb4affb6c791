"""What a linter found: in words for a terminal, in rows, and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from quantlab.documents import dump_json
from quantlab.findings import LINT_SCHEMA, Finding, FindingGroup, LintReport, Severity, group_findings
from quantlab.records import to_plain
from quantlab.reports.format import Style
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 3
_NAMED = 3
_COLOURS: Mapping[Severity, str] = MappingProxyType(
    {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
)
_LABEL = max(len(severity) for severity in Severity)


def findings_frame(report: LintReport) -> pd.DataFrame:
    """One row for each finding; the names of ``where`` are separated by spaces.

    Columns: severity, rule, where, message, why, fix.
    """
    import pandas as pd

    columns = ("severity", "rule", "where", "message", "why", "fix")
    rows = [
        (found.severity.value, found.rule, " ".join(found.where), found.message, found.why, found.fix)
        for found in report.findings
    ]
    with pd.option_context("mode.string_storage", "python"):  # PyArrow refuses names that are no Unicode
        return pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(columns, "string"))


def lint_head(report: LintReport) -> str:
    """One sentence: the file, the rules, and how much was found."""
    rules = f"{len(report.rules)} rule{'' if len(report.rules) == 1 else 's'}" + (
        f" of target {report.target}" if report.target else ""
    )
    if not report.findings:
        return f"{report.file}: no findings; {rules}"
    counts = ", ".join(_counted(number, severity) for severity, number in report.counts().items() if number)
    return f"{report.file}: {counts}; {rules}"


def place(finding: Finding) -> str:
    """The first few names of a finding."""
    more = len(finding.where) - _NAMED
    return ", ".join(finding.where[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def render_terminal(report: LintReport, style: Style) -> str:
    """Every rule that found something once, worst first, with the first few places, the reason and the fix."""
    width = max(style.width, MIN_WIDTH)
    lines = wrap(lint_head(report), width)
    for group in group_findings(report.findings):
        lines += ["", *_group(group, width, style)]
    return "\n".join(lines) + "\n"


def render_json(report: LintReport, style: Style) -> str:
    """The whole report: every finding at every place."""
    return dump_json({"schema": LINT_SCHEMA, **to_plain(report)})


def _group(group: FindingGroup, width: int, style: Style) -> Iterator[str]:
    indent = " " * (_LABEL + 2)
    label = paint(f"{group.severity:<{_LABEL}}", style, "bold", _COLOURS[group.severity])
    count = len(group.findings)
    first, *more = wrap(group.rule + (f", {count:,} places" if count > 1 else ""), width, indent, indent)
    yield f"{label}  {first.strip()}"
    yield from more
    for finding in group.findings[:_SHOWN]:
        names = place(finding)
        yield from wrap(
            f"{names}: {finding.message}" if names else finding.message, width, f"{indent}- ", f"{indent}  "
        )
    if count > _SHOWN:
        yield f"{indent}- and {count - _SHOWN:,} more"
    yield from wrap(f"why: {group.why}", width, indent, indent)
    yield from wrap(f"fix: {group.fix}", width, indent, indent)


def _counted(number: int, severity: Severity) -> str:
    word = severity.value if severity is Severity.INFO or number == 1 else f"{severity}s"
    return f"{number:,} {word}"
