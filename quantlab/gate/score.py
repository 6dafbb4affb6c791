"""Judges a figure of the task, such as mAP, against the reference or a limit; over all samples or every slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantlab.gate.case import Case, percent
from quantlab.gate.metrics import Claim
from quantlab.gate.verdict import CheckResult, Outcome, worst
from quantlab.harness.comparison import Score
from quantlab.statistics.interval import Interval

_MEND = "calibrate with another --method, or keep sensitive layers in floating point with --exclude"
_TOLERANCE = 1e-9
_MOST_DETAILS = 12


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is said of one score.

    Attributes:
        score: The score.
        outcome: Of it alone.
        found: The reason, without the candidate's name.
        estimate: Loss, or value.
        limit: What it is compared with.
        bound: End of the interval that decides.
        interval: Of the estimate.
        needed: Samples that would probably decide.
    """

    score: Score
    outcome: Outcome
    found: str
    estimate: float
    limit: float
    bound: float | None = None
    interval: Interval | None = None
    needed: int | None = None


def judge_score(case: Case) -> CheckResult:
    """Judge the figure that the check names.

    With ``slices``, every slice of that column is judged, and the check passes only if all do: a release that is safe
    for each of them needs no correction for their number (intersection-union test), but each needs its own samples.
    """
    figure, column = case.check.figure, case.check.slices
    scores = [
        score
        for score in case.candidate.scores
        if score.figure == figure and (score.slice.column if score.slice else None) == column
    ]
    if not scores:
        return _missing(case)
    wrong = _wrong_way(case, scores[0])
    if wrong is not None:
        return wrong
    found = [_judge(case, score) for score in scores]
    if column is None:
        return _alone(case, found[0])
    return _together(case, column, found)


def _missing(case: Case) -> CheckResult:
    figure, column = case.check.figure, case.check.slices
    known = dict.fromkeys(score.figure for score in case.candidate.scores)
    if figure not in known:
        return case.missing(
            f"the comparison has no figure {figure!r} (task {case.comparison.task}; it has "
            f"{', '.join(known) or 'none'})",
            "compare with the --task or --metric that gives it, or change the policy",
        )
    columns = dict.fromkeys(score.slice.column for score in case.candidate.scores if score.slice is not None)
    return case.missing(
        f"the comparison has no slices of {figure} by {column!r} (it has {', '.join(columns) or 'none'})",
        "compare with --slices, or change the policy",
    )


def _wrong_way(case: Case, score: Score) -> CheckResult | None:
    """An ERROR if the claim looks at the wrong side of the figure."""
    claims = {Claim.AT_LEAST: True, Claim.AT_MOST: False}
    if claims.get(case.claim, score.higher_is_better) is score.higher_is_better:
        return None
    better, right = ("higher", Claim.AT_LEAST) if score.higher_is_better else ("lower", Claim.AT_MOST)
    return case.missing(
        f"the check claims {case.claim} of {score.figure}, of which {better} is better",
        f'write claim = "{right}", or claim = "on-this-set"',
    )


def _judge(case: Case, score: Score) -> _Judged:
    name = score.figure if score.slice is None else f"{score.figure} of {score.slice.column} {score.slice.value}"
    margin, limit = case.check.margin, case.check.limit
    if margin is None and limit is None:
        raise AssertionError("loading refuses these checks without margin and limit")
    compared = limit if margin is None else margin.in_unit(score.reference, score.unit)
    if compared is None:
        found = f"{name} is in {score.unit or 'no unit'}, so a margin in percentage points has no meaning"
        return _Judged(score, Outcome.ERROR, found, score.value, math.nan)
    if math.isnan(score.value) or math.isnan(score.reference):
        return _Judged(score, Outcome.ERROR, f"{name} is undefined on these samples", score.value, compared)
    if margin is not None:
        return _judge_loss(case, score, name, compared)
    return _judge_value(case, score, name, compared)


def _judge_loss(case: Case, score: Score, name: str, margin: float) -> _Judged:
    if score.against_reference or not math.isfinite(score.difference):
        found = f"{name} has no loss against the reference that could be compared with a margin: check it with a limit"
        return _Judged(score, Outcome.ERROR, found, score.difference, margin)
    if margin <= 0.0:
        found = f"{name} of the reference is 0, so a relative margin has no meaning"
        return _Judged(score, Outcome.ERROR, found, 0.0, margin)
    sign = -1.0 if score.higher_is_better else 1.0
    loss = sign * score.difference
    unit = "pp" if score.unit == "%" else score.unit
    start = f"{name} {_moved(score)} from {_number(score.reference, score.unit)} to {_number(score.value, score.unit)}"
    asked = f"the margin is {_number(margin, unit)}"
    if case.claim is Claim.ON_THIS_SET:
        outcome = Outcome.PASS if loss <= margin + _TOLERANCE else Outcome.FAIL
        return _Judged(score, outcome, f"{start}; on this set, and {asked}", loss, margin)
    if score.interval is None:
        return _Judged(score, Outcome.INCONCLUSIVE, f"{start}; {_why_none(score.method)}", loss, margin)
    ends = sorted((sign * score.interval.low, sign * score.interval.high))
    interval = Interval(ends[0], ends[1], score.interval.confidence)
    narrow = _too_narrow(case, interval)
    if narrow:
        return _Judged(score, Outcome.ERROR, f"{start}; {narrow}", loss, margin)
    between = (
        f"the loss is between {_number(interval.low, unit)} and {_number(interval.high, unit)} "
        f"({percent(interval.confidence)} interval, {score.method})"
    )
    if interval.high < margin:
        return _Judged(score, Outcome.PASS, f"{start}; {between}, {asked}", loss, margin, interval.high, interval)
    if interval.low >= margin:
        return _Judged(score, Outcome.FAIL, f"{start}; {between}, {asked}", loss, margin, interval.low, interval)
    needed = None
    if loss < margin:  # an interval narrows with the square root of the samples
        needed = math.ceil(score.n * ((interval.high - loss) / (margin - loss)) ** 2)
    found = f"{start}; {between}, which does not decide about a margin of {_number(margin, unit)}"
    return _Judged(score, Outcome.INCONCLUSIVE, found, loss, margin, interval.high, interval, needed)


def _judge_value(case: Case, score: Score, name: str, limit: float) -> _Judged:
    bound, interval = score.value, None
    if case.claim is not Claim.ON_THIS_SET and score.against_reference and score.interval is not None:
        interval = score.interval  # of the value: see `Score`
        narrow = _too_narrow(case, interval)
        if narrow:
            return _Judged(score, Outcome.ERROR, f"{name}: {narrow}", score.value, limit)
        bound = interval.low if score.higher_is_better else interval.high
    good = bound >= limit - _TOLERANCE if score.higher_is_better else bound <= limit + _TOLERANCE
    if not good and interval is not None:
        other = interval.high if score.higher_is_better else interval.low
        if other >= limit if score.higher_is_better else other <= limit:
            found = f"{name} is {_number(score.value, score.unit)}, and its interval holds the limit of {limit:g}"
            needed = None
            inside = score.value > limit if score.higher_is_better else score.value < limit
            if inside and math.isfinite(score.value) and math.isfinite(bound):
                needed = math.ceil(score.n * ((score.value - bound) / (score.value - limit)) ** 2)
            return _Judged(score, Outcome.INCONCLUSIVE, found, score.value, limit, bound, interval, needed)
    asked = f"{'at least' if score.higher_is_better else 'at most'} {_number(limit, score.unit)} is required"
    outcome = Outcome.PASS if good else Outcome.FAIL
    found = f"{name} is {_number(score.value, score.unit)}, {asked}"
    return _Judged(score, outcome, found, score.value, limit, bound if interval else None, interval)


def _why_none(method: str) -> str:
    """The reason for which there is no interval; comparisons say the words themselves."""
    return method if method.startswith("no interval") else f"no interval: {method}"


def _too_narrow(case: Case, interval: Interval) -> str:
    """Why an interval holds less surely than the policy asks for; empty if it does not."""
    # A two-sided interval of 95 % holds one-sided at 97.5 %: more than alpha = 0.05 asks for is fine, less is not.
    if (1.0 + interval.confidence) / 2.0 >= 1.0 - case.alpha - _TOLERANCE:
        return ""
    return (
        f"an interval of {percent(interval.confidence)} is too narrow for alpha = {case.alpha:g}, which asks for "
        f"{percent(1.0 - 2.0 * case.alpha)}"
    )


def _alone(case: Case, one: _Judged) -> CheckResult:
    return case.result(
        one.outcome, f"{case.candidate.name}: {one.found}", unit="pp" if _in_points(case, one) else one.score.unit,
        estimate=one.estimate, bound=one.bound, interval=one.interval, limit=one.limit, n=one.score.n,
        needed=one.needed, next_step=_next_step(case, one),
    )  # fmt: skip


def _together(case: Case, column: str, found: list[_Judged]) -> CheckResult:
    """The worst of the slices; none may be missing."""
    ranks = {Outcome.ERROR: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 2, Outcome.PASS: 3}
    ordered = sorted(found, key=lambda one: (ranks[one.outcome], one.score.n))
    first = ordered[0]
    outcome = worst(one.outcome for one in ordered)
    left_out = case.comparison.slices_left_out.get(column, 0)
    counts = ", ".join(f"{number} {each}" for each in ranks if (number := sum(one.outcome is each for one in ordered)))
    reason = f"{case.candidate.name}, {len(ordered)} slices by {column}: {counts}; {first.found}"
    next_step = _next_step(case, first)
    if left_out and outcome is Outcome.PASS:
        outcome = Outcome.INCONCLUSIVE
        reason += f"; {left_out} more slices are not in the comparison"
        next_step = "slice by a column of fewer values"
    details = tuple(one.found for one in ordered[1 : 1 + _MOST_DETAILS] if one.outcome is not Outcome.PASS)
    return case.result(
        outcome, reason, unit="pp" if _in_points(case, first) else first.score.unit, estimate=first.estimate,
        bound=first.bound, interval=first.interval, limit=first.limit, n=min(one.score.n for one in ordered),
        needed=first.needed, next_step=next_step, details=details,
    )  # fmt: skip


def _in_points(case: Case, one: _Judged) -> bool:
    return case.check.margin is not None and one.score.unit == "%"


def _next_step(case: Case, one: _Judged) -> str:
    checked = case.check
    match one.outcome:
        case Outcome.FAIL:
            return _MEND
        case Outcome.INCONCLUSIVE if one.needed is not None:
            return f"needs about {one.needed:,} samples instead of {one.score.n:,}"
        case Outcome.INCONCLUSIVE if one.interval is None:
            return "compare on more samples"
        case Outcome.INCONCLUSIVE if checked.margin is None:
            return "compare on more samples, or " + _MEND
        case Outcome.INCONCLUSIVE:
            return "the observed loss is not below the margin, so more samples would probably show a FAIL: " + _MEND
        case Outcome.ERROR:
            return "run quantlab compare again, or change the policy"
    return ""


def _moved(score: Score) -> str:
    if score.difference == 0.0:
        return "stays"
    return "rose" if score.difference > 0.0 else "fell"


def _number(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()
