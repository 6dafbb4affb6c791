"""Findings: what a linter says of a file, in one vocabulary for models, calibration caches and whatever comes later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

LINT_SCHEMA = "quantlab.lint/1"


class Severity(StrEnum):
    """How much a finding weighs."""

    ERROR = "error"
    """The target refuses the file, or computes something else than was meant."""
    WARNING = "warning"
    """It works, but loses accuracy or speed that one change brings back."""
    INFO = "info"
    """Worth knowing; often intended."""

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a linter found at one place.

    Attributes:
        rule: Stable name of the rule, in lower case with dashes, such as ``zero-point-not-zero``.
        severity: How much it weighs.
        where: Names of the nodes or tensors concerned, the one to look at first in front; empty for the whole file.
        message: What was found there, with numbers: a clause without a final stop.
        why: What comes of it for the target; the same text at every place, so that equal findings can be grouped.
        fix: What to do, as an action; the same text at every place.
    """

    rule: str
    severity: Severity
    where: tuple[str, ...]
    message: str
    why: str
    fix: str

    def __str__(self) -> str:
        place = f"{', '.join(self.where)}: " if self.where else ""
        return f"{self.severity} {self.rule}: {place}{self.message}"


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Findings of one rule that differ in place and numbers only.

    Attributes:
        rule: Name of the rule.
        severity: How much each of them weighs.
        why: What comes of it.
        fix: What to do.
        findings: At least one, in the order they were found.
    """

    rule: str
    severity: Severity
    why: str
    fix: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class LintReport:
    """All findings of one file.

    Attributes:
        file: Name of the file, without folders.
        sha256: Hash of its content.
        kind: What it is: ``model`` or ``calibration-cache``.
        target: Whose rules were applied; None if the kind knows no targets.
        rules: Names of the rules that were applied, so that a report without findings says what it looked for.
        findings: What was found, worst first.
    """

    file: str
    sha256: str
    kind: str
    target: str | None
    rules: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding; None if there is none."""
        return min((finding.severity for finding in self.findings), key=lambda found: found.rank, default=None)

    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity, zeros included, worst first."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in Severity}


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first, then by rule; within a rule in the order they were found."""
    return tuple(sorted(findings, key=lambda finding: (finding.severity.rank, finding.rule)))


def group_findings(findings: Iterable[Finding]) -> tuple[FindingGroup, ...]:
    """Put findings that differ in place and numbers only together, worst first."""
    groups: dict[tuple[str, Severity, str, str], list[Finding]] = {}
    for finding in sort_findings(findings):
        groups.setdefault((finding.rule, finding.severity, finding.why, finding.fix), []).append(finding)
    return tuple(FindingGroup(*key, tuple(members)) for key, members in groups.items())
