"""Linting a model: every rule of a target on every graph of the model."""

from __future__ import annotations

from quantlab.findings import Finding, sort_findings
from quantlab.graph.lint import pairs, parameters, placement, structure, weights
from quantlab.graph.lint.rule import Rule
from quantlab.graph.lint.view import model_views
from quantlab.graph.model import Model
from quantlab.graph.targets import TargetProfile

RULES: tuple[Rule, ...] = (
    *parameters.RULES,
    *weights.RULES,
    *pairs.RULES,
    *placement.RULES,
    *structure.RULES,
)
"""Every rule, in the order of the documentation."""


def rules_of(target: TargetProfile) -> tuple[Rule, ...]:
    """The rules that hold for a target."""
    return tuple(rule for rule in RULES if rule.severity(target.name) is not None)


def lint_model(model: Model, target: TargetProfile) -> tuple[Finding, ...]:
    """Apply every rule of a target to a model and to the graphs inside its nodes.

    Cost: linear in the nodes; weights are read once or a few times, one at a time.

    Returns:
        What was found, worst first; empty for a model that the target takes as it is.

    Raises:
        ModelError: If a weight cannot be read.
    """
    findings = []
    for view in model_views(model):
        for rule in rules_of(target):
            severity = rule.severity(target.name)
            assert severity is not None
            for where, message in rule.check(view):
                findings.append(Finding(rule.name, severity, where, message, rule.why, rule.fix))
    return sort_findings(findings)
