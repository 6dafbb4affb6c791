"""One check on one candidate: what the judges of all metrics get."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantlab.gate.metrics import METRICS, Claim
from quantlab.gate.policy import Check
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.statistics.interval import Interval


@dataclass(frozen=True, slots=True)
class Case:
    """A check, a candidate, and what both are judged against.

    Attributes:
        check: The policy's check.
        candidate: The variant judged.
        reference: The comparison's reference.
        comparison: The whole comparison.
        alpha: One-sided error probability.
    """

    check: Check
    candidate: VariantResult
    reference: VariantResult
    comparison: Comparison
    alpha: float

    @property
    def claim(self) -> Claim:
        """What is claimed."""
        return self.check.effective_claim

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""
        return METRICS[self.check.metric].higher_is_better

    def result(
        self,
        outcome: Outcome,
        reason: str,
        *,
        unit: str | None = None,
        estimate: float | None = None,
        bound: float | None = None,
        interval: Interval | None = None,
        limit: float | None = None,
        n: int | None = None,
        needed: int | None = None,
        next_step: str = "",
        details: tuple[str, ...] = (),
    ) -> CheckResult:
        """A result of this check for this candidate; ``unit`` is the metric's if not given."""
        return CheckResult(
            id=self.check.id,
            candidate=self.candidate.name,
            metric=self.check.metric.value,
            outcome=outcome,
            level=self.check.level,
            reason=reason,
            claim=self.claim,
            unit=METRICS[self.check.metric].unit if unit is None else unit,
            estimate=estimate,
            bound=bound,
            interval=interval,
            limit=limit,
            n=n,
            needed=needed,
            next_step=next_step,
            details=details,
        )

    def missing(self, what: str, next_step: str) -> CheckResult:
        """ERROR: the comparison does not hold what the check is about."""
        return self.result(Outcome.ERROR, f"{what} for {self.candidate.name}", next_step=next_step)


def percent(confidence: float) -> str:
    """A confidence of 0 to 1 for people, such as ``95 %`` or ``97.5 %``."""
    return f"{round(100.0 * confidence, 3):g} %"


def upward(value: float) -> str:
    """Two decimals, rounded up: a bound must not look better than it is."""
    return f"{math.ceil(round(100.0 * value, 6)) / 100.0:.2f}"


def downward(value: float) -> str:
    """Two decimals, rounded down."""
    return f"{math.floor(round(100.0 * value, 6)) / 100.0:.2f}"
