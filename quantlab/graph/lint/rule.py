"""What a lint rule is: a name, a severity for each target, a reason, a fix, and a function that looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from quantlab.findings import Severity
from quantlab.graph.lint.view import GraphView


class Hit(NamedTuple):
    """One place that a rule found: names of nodes or tensors, and a clause with numbers."""

    where: tuple[str, ...]
    message: str


Check = Callable[[GraphView], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: Stable name; ``docs/lint.md`` has a section of this name.
        tensorrt: Severity for the target ``tensorrt``; None if the rule does not hold there.
        onnxruntime: The same for ``onnxruntime``.
        why: What comes of it.
        fix: What to do.
        check: Finds the places in one graph.
    """

    name: str
    tensorrt: Severity | None
    onnxruntime: Severity | None
    why: str
    fix: str
    check: Check

    def severity(self, target: str) -> Severity | None:
        """Severity for a target; None if the rule does not hold there."""
        return self.tensorrt if target == "tensorrt" else self.onnxruntime


def rule(
    name: str, *, why: str, fix: str, tensorrt: Severity | None = None, onnxruntime: Severity | None = None
) -> Callable[[Check], Rule]:
    """Make the decorated function a rule."""

    def decorate(check: Check) -> Rule:
        return Rule(name, tensorrt, onnxruntime, why, fix, check)

    return decorate
