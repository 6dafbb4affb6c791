"""The vocabulary of linters: order, groups and counts."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from quantlab.findings import Finding, LintReport, Severity, group_findings, sort_findings

FINDINGS = st.lists(
    st.builds(
        Finding,
        rule=st.sampled_from(["a", "b", "c"]),
        severity=st.sampled_from(Severity),
        where=st.lists(st.text(max_size=3), max_size=2).map(tuple),
        message=st.text(max_size=3),
        why=st.sampled_from(["x", "y"]),
        fix=st.sampled_from(["x", "y"]),
    ),
    max_size=12,
)


def report(findings: list[Finding]) -> LintReport:
    return LintReport("m.onnx", "0" * 64, "model", "tensorrt", ("a", "b", "c"), sort_findings(findings))


@given(FINDINGS)
def test_groups_hold_every_finding_once_and_the_worst_first(findings: list[Finding]) -> None:
    groups = group_findings(findings)
    held = [finding for group in groups for finding in group.findings]
    assert sorted(map(repr, held)) == sorted(map(repr, findings))
    assert [group.severity.rank for group in groups] == sorted(group.severity.rank for group in groups)
    keys = [(group.rule, group.severity, group.why, group.fix) for group in groups]
    assert len(set(keys)) == len(keys)
    for group in groups:
        assert all((f.rule, f.severity, f.why, f.fix) == keys[groups.index(group)] for f in group.findings)


@given(FINDINGS)
def test_sorting_keeps_the_order_within_a_rule(findings: list[Finding]) -> None:
    ordered = sort_findings(findings)
    for rule in "abc":
        for severity in Severity:
            mine = [f for f in findings if (f.rule, f.severity) == (rule, severity)]
            assert [f for f in ordered if (f.rule, f.severity) == (rule, severity)] == mine


@given(FINDINGS)
def test_counts_and_worst(findings: list[Finding]) -> None:
    made = report(findings)
    counts = made.counts()
    assert list(counts) == [Severity.ERROR, Severity.WARNING, Severity.INFO]
    assert sum(counts.values()) == len(findings)
    assert made.worst == next((severity for severity, number in counts.items() if number), None)


def test_text() -> None:
    finding = Finding("zero-scale", Severity.WARNING, ("a", "b"), "scale 0", "why", "fix")
    assert str(finding) == "warning zero-scale: a, b: scale 0"
    assert str(dataclasses.replace(finding, where=())) == "warning zero-scale: scale 0"
