"""Judges shares of samples against a limit: top-1, top-5 and agreement in percent."""

from __future__ import annotations

from quantlab.gate.case import Case, downward, percent, upward
from quantlab.gate.metrics import Claim
from quantlab.gate.plan import images_for_proportion
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.statistics.interval import Interval
from quantlab.statistics.proportion import proportion_lower_bound, proportion_upper_bound

_MEND = "calibrate with another --method, or keep sensitive layers in floating point with --exclude"


def judge_share(case: Case, subject: str, k: int, n: int, limit_pct: float) -> CheckResult:
    """Judge ``k`` of ``n`` samples against a limit in percent.

    Args:
        case: Check and candidate.
        subject: The share in words, such as ``top-1 accuracy of onnxruntime-int8-minmax``.
        k: Samples that count.
        n: Samples in all, at least 1.
        limit_pct: The check's limit.
    """
    share_pct = 100.0 * k / n
    start = f"{subject} is {share_pct:.2f} % ({k:,} of {n:,}); "
    if case.claim is Claim.ON_THIS_SET:
        outcome = Outcome.PASS if share_pct >= limit_pct - 1e-9 else Outcome.FAIL
        found = f"on this set {'' if outcome is Outcome.PASS else 'not '}at least the limit of {limit_pct:.2f} %"
        step = "" if outcome is Outcome.PASS else _MEND
        return case.result(outcome, start + found, estimate=share_pct, limit=limit_pct, n=n, next_step=step)
    low_pct = 100.0 * proportion_lower_bound(k, n, case.alpha)
    high_pct = 100.0 * proportion_upper_bound(k, n, case.alpha)
    interval = Interval(low_pct, high_pct, 1.0 - 2.0 * case.alpha)
    confidence = percent(1.0 - case.alpha)
    needed, next_step, bound_pct = None, "", low_pct
    if low_pct >= limit_pct:
        outcome = Outcome.PASS
        found = f"with {confidence} confidence it is at least {downward(low_pct)} %, the limit is {limit_pct:.2f} %"
    elif high_pct < limit_pct:
        outcome, bound_pct, next_step = Outcome.FAIL, high_pct, _MEND
        found = f"with {confidence} confidence it is at most {upward(high_pct)} %, the limit is {limit_pct:.2f} %"
    else:
        outcome = Outcome.INCONCLUSIVE
        found = (
            f"it is between {downward(low_pct)} and {upward(high_pct)} % ({percent(interval.confidence)} interval), "
            f"which does not decide about a limit of {limit_pct:.2f} %"
        )
        images = images_for_proportion(limit_pct / 100.0, share_pct / 100.0, alpha=case.alpha)
        if images is None:
            next_step = "the observed share is not above the limit, so more images would probably show a FAIL"
        else:
            needed = max(images, n + 1)
            next_step = f"needs about {needed:,} images if the true share is the observed one (80 % power)"
    return case.result(
        outcome, start + found, estimate=share_pct, bound=bound_pct, interval=interval, limit=limit_pct,
        n=n, needed=needed, next_step=next_step,
    )  # fmt: skip
