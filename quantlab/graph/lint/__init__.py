"""The linter of ONNX models: what a target refuses, what costs accuracy or speed, and how to mend it."""

from __future__ import annotations

from quantlab.graph.lint.linter import RULES, lint_model, rules_of
from quantlab.graph.lint.rule import Rule

__all__ = ["RULES", "Rule", "lint_model", "rules_of"]
