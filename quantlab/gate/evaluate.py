"""A comparison and a policy make a verdict."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from quantlab.files import sha256_bytes
from quantlab.gate.case import Case
from quantlab.gate.engine import judge_latency, judge_precision, judge_size
from quantlab.gate.guards import counts_add_up, guard
from quantlab.gate.metrics import Metric
from quantlab.gate.outputs import judge_drift, judge_finite, judge_not_constant
from quantlab.gate.paired import judge_loss
from quantlab.gate.policy import Check, Level, Policy, Waiver
from quantlab.gate.score import judge_score
from quantlab.gate.selection import candidates, judged, matches
from quantlab.gate.share import judge_share
from quantlab.gate.verdict import CheckResult, Outcome, Verdict, worst
from quantlab.harness.comparison import Comparison, VariantResult


def evaluate(comparison: Comparison, policy: Policy, today: dt.date) -> Verdict:
    """Judge a comparison by a policy.

    Guards come first and decide like checks of level ``error``. A check is judged once for each candidate that it
    selects; what it needs and does not find is ERROR, never PASS. Waivers turn FAIL and INCONCLUSIVE into WAIVED until
    they expire; an expired one is an ERROR.

    Args:
        comparison: What was measured.
        policy: What is asked.
        today: The day that waivers are judged by.
    """
    variants = judged(comparison, policy)
    guards = guard(comparison, policy, variants)
    checked = tuple(result for check in policy.checks for result in _evaluate_check(check, comparison, policy))
    waived = tuple(_waive(result, policy, comparison, today) for result in (*guards, *checked))
    results = (*waived, *_nothing_judged(checked), *_expired(policy, today))
    return Verdict(
        outcome=worst(result.outcome for result in results if result.level is Level.ERROR),
        checks=results,
        policy=policy.name,
        policy_sha256=policy.sha256,
        on_inconclusive=policy.gate.on_inconclusive,
        alpha=policy.gate.alpha,
        evaluated_on=today,
        comparison_sha256=sha256_bytes(comparison.to_json().encode("utf-8")),
        model=comparison.model,
        model_sha256=comparison.model_sha256,
        data_sha256=comparison.data_sha256,
        n_samples=comparison.n_samples,
        reference=comparison.reference,
        engines={variant.name: variant.sha256 for variant in variants},
    )


def _evaluate_check(check: Check, comparison: Comparison, policy: Policy) -> Iterator[CheckResult]:
    reference = comparison.variant(comparison.reference)
    if reference is None:
        yield _unjudged(check, f"the reference {comparison.reference} is not among the variants", "compare again")
        return
    if check.reference is not None and not matches(check.reference, reference):
        reason = f"the check asks for the reference {check.reference!r}, the comparison's is {reference.name}"
        yield _unjudged(check, reason, "compare against that reference, or change the policy")
        return
    selected = candidates(comparison, check.candidate)
    if not selected:
        names = ", ".join(v.name for v in comparison.variants if v is not reference) or "none"
        reason = f"no candidate is, or matches, {check.candidate!r}"
        yield _unjudged(check, reason, f"the comparison's candidates are: {names}")
        return
    for candidate in selected:
        case = Case(check, candidate, reference, comparison, policy.gate.alpha)
        yield _enough_samples(case, JUDGES[check.metric](case))


def _unjudged(check: Check, reason: str, next_step: str) -> CheckResult:
    return CheckResult(
        check.id, None, check.metric.value, Outcome.ERROR, check.level, reason,
        claim=check.effective_claim, next_step=next_step,
    )  # fmt: skip


def _judge_accuracy(case: Case) -> CheckResult:
    counts = case.candidate.classification
    if counts is None:
        return case.missing(
            "the comparison has no class decisions",
            'no output looks like class scores: use a policy of numeric checks such as "quantlab:numerics"',
        )
    if not counts_add_up(counts):
        return case.missing("the paired counts contradict each other", "run quantlab compare again")
    if case.check.metric is Metric.AGREEMENT:
        if counts.n < 1:
            return case.missing("no sample was compared", "compare on data that can be read")
        subject = f"agreement of {case.candidate.name} with {case.reference.name}"
        return judge_share(case, subject, counts.agreement, counts.n, _limit(case))
    if counts.n_labelled < 1:
        return case.missing("no sample has a label", "give labels with --labels, or check agreement, which needs none")
    if case.check.margin is not None:
        return judge_loss(case, case.check.margin, counts)
    correct = counts.top1 if case.check.metric is Metric.TOP1 else counts.top5
    if correct is None:
        return case.missing("the comparison has no top-5 counts", "the model has fewer than six classes: check top1")
    subject = f"{case.check.metric.value.replace('top', 'top-')} accuracy of {case.candidate.name}"
    return judge_share(case, subject, correct, counts.n_labelled, _limit(case))


def _limit(case: Case) -> float:
    if case.check.limit is None:
        raise AssertionError("loading refuses these checks without a limit")
    return case.check.limit


JUDGES: Mapping[Metric, Callable[[Case], CheckResult]] = MappingProxyType(
    {
        Metric.TOP1: _judge_accuracy,
        Metric.TOP5: _judge_accuracy,
        Metric.AGREEMENT: _judge_accuracy,
        Metric.SQNR_DB: judge_drift,
        Metric.COSINE: judge_drift,
        Metric.KL_NATS: judge_drift,
        Metric.MAX_ABS_ERROR: judge_drift,
        Metric.LATENCY_RATIO: judge_latency,
        Metric.SIZE_RATIO: judge_size,
        Metric.SCORE: judge_score,
        Metric.FINITE: judge_finite,
        Metric.NOT_CONSTANT: judge_not_constant,
        Metric.PRECISION_PROVED: judge_precision,
    }
)
"""Who judges which metric."""


def _enough_samples(case: Case, result: CheckResult) -> CheckResult:
    """Withhold a PASS that rests on fewer samples than the policy asks for; a FAIL stands."""
    minimum = case.check.min_samples
    if result.n is None or result.n >= minimum or result.outcome not in (Outcome.PASS, Outcome.INCONCLUSIVE):
        return result
    return dataclasses.replace(
        result,
        outcome=Outcome.INCONCLUSIVE,
        reason=f"{result.reason}; but the policy asks for at least {minimum:,} samples and there are {result.n:,}",
        needed=max(minimum, result.needed or 0),
        next_step=result.next_step or f"compare on at least {minimum:,} samples",
    )


def _waive(result: CheckResult, policy: Policy, comparison: Comparison, today: dt.date) -> CheckResult:
    if result.outcome not in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        return result
    variant = comparison.variant(result.candidate) if result.candidate is not None else None
    for waiver in policy.waivers:
        if waiver.check == result.id and waiver.expires >= today and _covers(waiver, variant):
            note = f"{result.outcome}, waived until {waiver.expires.isoformat()}: {waiver.reason}"
            return dataclasses.replace(
                result, outcome=Outcome.WAIVED, waiver=waiver.reason, details=(note, *result.details)
            )
    return result


def _covers(waiver: Waiver, variant: VariantResult | None) -> bool:
    return waiver.candidate == "*" if variant is None else matches(waiver.candidate, variant)


def _expired(policy: Policy, today: dt.date) -> Iterator[CheckResult]:
    for waiver in policy.waivers:
        if waiver.expires < today:
            yield CheckResult(
                f"waiver.{waiver.check}",
                None if waiver.candidate == "*" else waiver.candidate,
                "waiver",
                Outcome.ERROR,
                Level.ERROR,
                f"the waiver of {waiver.check} ({waiver.reason}) expired on {waiver.expires.isoformat()}",
                next_step="mend what it waived and remove it, or decide again and give it a new date",
            )


def _nothing_judged(checked: tuple[CheckResult, ...]) -> Iterator[CheckResult]:
    """A gate whose deciding checks were all skipped has judged nothing, and must not say PASS."""
    deciding = [result for result in checked if result.level is Level.ERROR] or list(checked)
    if all(result.outcome is Outcome.SKIPPED for result in deciding):
        yield CheckResult(
            "guard.judged",
            None,
            "checks",
            Outcome.ERROR,
            Level.ERROR,
            "every check that could decide was skipped, so nothing was judged",
            next_step="add a check that applies to these candidates",
        )
