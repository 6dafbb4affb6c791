"""JUnit XML of a verdict, which GitLab, Jenkins and GitHub actions show.

Red is what decides: FAIL becomes a failure, ERROR and INCONCLUSIVE an error, WAIVED and SKIPPED are skipped. A check of
level ``warn`` or ``info`` that did not pass is skipped with its message, so that the report agrees with the exit code.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from types import MappingProxyType

from quantlab.errors import ExitCode
from quantlab.gate.verdict import CheckResult, Outcome, Verdict
from quantlab.reports.format import Format, Style

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_verdict(verdict: Verdict, style: Style) -> str:
    """One test suite; one test case for each check and candidate, with a name of its own."""
    kinds = [_kind(check, verdict) for check in verdict.checks]
    counts = Counter(kinds)
    totals = {
        "tests": str(len(kinds)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
    }
    root = ET.Element("testsuites", {"name": "quantlab gate", **totals})
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": _valid(f"gate {verdict.policy}"),
            **totals,
            "timestamp": f"{verdict.evaluated_on.isoformat()}T00:00:00",
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("outcome", verdict.outcome.value),
        ("policy_sha256", verdict.policy_sha256),
        ("comparison_sha256", verdict.comparison_sha256),
        ("model", verdict.model),
        ("model_sha256", verdict.model_sha256),
        ("data_sha256", verdict.data_sha256),
    ):
        ET.SubElement(properties, "property", {"name": name, "value": _valid(value)})
    taken: Counter[str] = Counter()
    for check, kind in zip(verdict.checks, kinds, strict=True):
        name = _unique(_valid(f"{check.id} [{check.candidate}]" if check.candidate is not None else check.id), taken)
        case = ET.SubElement(suite, "testcase", {"classname": "quantlab.gate", "name": name})
        _describe(case, check, kind)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _kind(check: CheckResult, verdict: Verdict) -> str:
    """What a test case of the check holds: ``failure``, ``error``, ``skipped`` or nothing for a pass."""
    if check.outcome is Outcome.PASS:
        return ""
    blocked = verdict.outcome is not Outcome.INCONCLUSIVE or verdict.exit_code is not ExitCode.OK
    if not check.decides or (check.outcome is Outcome.INCONCLUSIVE and not blocked):
        return "skipped"
    return "failure" if check.outcome is Outcome.FAIL else "error"


def _describe(case: ET.Element, check: CheckResult, kind: str) -> None:
    lines = [check.reason, *check.details]
    if check.next_step:
        lines.append(f"next: {check.next_step}")
    text = _valid("\n".join(lines))
    if not kind:
        ET.SubElement(case, "system-out").text = text
        return
    message = _valid(f"{check.outcome}: {check.reason if check.waiver is None else check.waiver}")
    if kind == "skipped":
        ET.SubElement(case, kind, {"message": message})
        ET.SubElement(case, "system-out").text = text
    else:
        ET.SubElement(case, kind, {"message": message, "type": check.outcome.value.lower()}).text = text


def _unique(name: str, taken: Counter[str]) -> str:
    """``name``, numbered if it is taken: GitLab ignores a case whose name it has seen."""
    candidate = name
    while taken[candidate]:
        taken[name] += 1
        candidate = f"{name} #{taken[name]}"
    taken[candidate] += 1
    return candidate


def _valid(text: str) -> str:
    """``text`` without the characters that XML 1.0 cannot hold, even escaped."""
    return _NOT_XML.sub("", text)


FORMAT = Format("junit", ".xml", MappingProxyType({Verdict: render_verdict}))
