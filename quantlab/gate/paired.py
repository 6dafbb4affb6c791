"""Judges accuracy against the reference: top-1 and top-5 with a margin."""

from __future__ import annotations

from quantlab.gate.case import Case, downward, percent, upward
from quantlab.gate.metrics import Claim, Metric
from quantlab.gate.plan import images_for_margin
from quantlab.gate.policy import Margin
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.harness.comparison import Classification
from quantlab.statistics.interval import Interval
from quantlab.statistics.mcnemar import mcnemar_p
from quantlab.statistics.tango import loss_interval

_TOLERANCE_PP = 1e-9  # a loss of exactly the margin is inside it, whatever the last bit says

_MEND = "calibrate with another --method, or keep sensitive layers in floating point with --exclude"


def judge_loss(case: Case, margin: Margin, counts: Classification) -> CheckResult:
    """Judge the loss of accuracy against ``margin``; the samples must be labelled.

    Args:
        case: Check and candidate.
        margin: The check's margin.
        counts: The candidate's decisions, with at least one labelled sample.
    """
    name = case.check.metric.value.replace("top", "top-")
    reference_correct, correct = counts.reference_top1, counts.top1
    if case.check.metric is Metric.TOP5:
        reference = case.reference.classification
        if counts.top5 is None or reference is None or reference.top5 is None:
            return case.missing(
                "the comparison has no top-5 counts", "the model has fewer than six classes: check top1"
            )
        if reference.n_labelled != counts.n_labelled:
            return case.missing("reference and candidate saw different samples", "run quantlab compare again")
        reference_correct, correct = reference.top5, counts.top5
    n = counts.n_labelled
    margin_pp = margin.in_pp(100.0 * reference_correct / n)
    if margin_pp <= 0.0:
        return case.missing("the reference is never right, so a relative margin has no meaning", "check the labels")
    loss_pp = 100.0 * (reference_correct - correct) / n
    if case.claim is Claim.NON_INFERIOR:
        return _non_inferior(case, counts, name, loss_pp, margin_pp)
    outcome = Outcome.PASS if loss_pp <= margin_pp + _TOLERANCE_PP else Outcome.FAIL
    flips = _flips(counts) if case.check.metric is Metric.TOP1 else f"{reference_correct:,} to {correct:,} of {n:,}"
    reason = (
        f"{name} of {case.candidate.name} {_changed(loss_pp)} ({flips}); on this set the loss is "
        f"{'within' if outcome is Outcome.PASS else 'beyond'} the margin of {margin_pp:.2f} pp"
    )
    return case.result(outcome, reason, unit="pp", estimate=loss_pp, limit=margin_pp, n=n, next_step=_remedy(outcome))


def _non_inferior(case: Case, counts: Classification, name: str, loss_pp: float, margin_pp: float) -> CheckResult:
    b, c, n = counts.flips_to_wrong, counts.flips_to_right, counts.n_labelled
    low_pp, high_pp = (100.0 * bound for bound in loss_interval(b, c, n, case.alpha))
    interval = Interval(low_pp, high_pp, 1.0 - 2.0 * case.alpha)
    start = f"{name} of {case.candidate.name} {_changed(loss_pp)} ({_flips(counts)}); "
    confidence = percent(1.0 - case.alpha)
    needed, next_step = None, ""
    if high_pp < margin_pp:
        outcome, bound_pp = Outcome.PASS, high_pp
        found = f"with {confidence} confidence the loss is below {upward(high_pp)} pp, the margin is {margin_pp:.2f} pp"
    elif low_pp >= margin_pp:
        outcome, bound_pp = Outcome.FAIL, low_pp
        found = (
            f"with {confidence} confidence the loss is above {downward(low_pp)} pp, the margin is {margin_pp:.2f} pp"
        )
        next_step = _remedy(outcome)
    else:
        outcome, bound_pp = Outcome.INCONCLUSIVE, high_pp
        found = (
            f"the loss is between {downward(low_pp)} and {upward(high_pp)} pp "
            f"({percent(interval.confidence)} interval), which does not decide about a margin of {margin_pp:.2f} pp"
        )
        needed, next_step = _images_needed(counts, margin_pp / 100.0, case.alpha)
    side = "within" if loss_pp <= margin_pp + _TOLERANCE_PP else "beyond"
    details = (
        f"on this set alone the loss of {loss_pp:.2f} pp is {side} the margin",
        f"{percent(interval.confidence)} interval of the loss (Tango): {downward(low_pp)} to {upward(high_pp)} pp",
        f"exact McNemar p = {mcnemar_p(b, c):.2g} for any difference at all (for information; it decides nothing)",
    )
    return case.result(
        outcome, start + found, unit="pp", estimate=loss_pp, bound=bound_pp, interval=interval, limit=margin_pp,
        n=n, needed=needed, next_step=next_step, details=details,
    )  # fmt: skip


def _images_needed(counts: Classification, margin: float, alpha: float) -> tuple[int | None, str]:
    """How many images would probably decide (``margin`` is a fraction), and the sentence that says so."""
    discordance = (counts.flips_to_wrong + counts.flips_to_right) / counts.n_labelled
    loss = (counts.flips_to_wrong - counts.flips_to_right) / counts.n_labelled
    unharmed = max(images_for_margin(margin, discordance, alpha=alpha), counts.n_labelled + 1)
    start = f"needs about {unharmed:,} images at the observed discordance of {100.0 * discordance:.2f} %"
    if loss <= 0.0:
        return unharmed, f"{start} (80 % power)"
    if loss >= margin:
        return None, ("the observed loss is not below the margin, so more images would probably show a FAIL: " + _MEND)
    as_observed = max(images_for_margin(margin, discordance, true_loss=loss, alpha=alpha), counts.n_labelled + 1)
    return as_observed, (
        f"{start} if the true loss is zero, about {as_observed:,} if it is the observed {100.0 * loss:.2f} pp "
        "(80 % power)"
    )


def _changed(loss_pp: float) -> str:
    if loss_pp == 0.0:
        return "did not change"
    return f"fell {loss_pp:.2f} pp" if loss_pp > 0.0 else f"rose {-loss_pp:.2f} pp"


def _flips(counts: Classification) -> str:
    return f"flips: {counts.flips_to_wrong:,} to wrong, {counts.flips_to_right:,} to right of {counts.n_labelled:,}"


def _remedy(outcome: Outcome) -> str:
    return "" if outcome is Outcome.PASS else _MEND
