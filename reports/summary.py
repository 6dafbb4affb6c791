"""The Markdown of a verdict for a CI summary: worst first, and never larger than the services take.

GitHub drops a step summary above 1,024 kB as a whole and cuts comments at 64 kB; the limit here is below both.
"""

from __future__ import annotations

from types import MappingProxyType

from quantlab.gate.verdict import Verdict
from quantlab.reports.format import Format, Style
from quantlab.reports.markdown import VERDICT_HEADINGS, table, verdict_head, verdict_row

MAX_BYTES = 60_000
_RESERVE = 200  # for the line that says what was left out
_LONGEST = 1_000  # columns of one cell


def render_verdict(verdict: Verdict, style: Style) -> str:
    """As many checks as fit, worst first; what was left out is counted."""
    lines = verdict_head(verdict)
    deciding = [check for check in verdict.checks if check.decides]
    passed_guards = sum(check.is_passed_guard for check in verdict.checks)
    judged = (
        f"{len(verdict.checks) - passed_guards} checks, {len(deciding)} of them against; {passed_guards} guards passed."
    )
    lines += [judged, ""]
    lines += table(VERDICT_HEADINGS, [], len(VERDICT_HEADINGS))
    room = MAX_BYTES - _RESERVE - sum(len(line.encode("utf-8")) + 1 for line in lines)
    left_out = 0
    for check in verdict.worst_first():
        if check.is_passed_guard:
            continue
        row = "| " + " | ".join(verdict_row(check, _LONGEST)) + " |"
        room -= len(row.encode("utf-8")) + 1
        if room < 0 or left_out:
            left_out += 1
            continue
        lines.append(row)
    if left_out:
        lines += ["", f"{left_out:,} more checks are in gate.json."]
    return "\n".join(lines) + "\n"


FORMAT = Format("summary", ".md", MappingProxyType({Verdict: render_verdict}))
