"""Judges the engine itself: latency, size, and the precision that was proved."""

from __future__ import annotations

import math

from quantlab.gate.case import Case, percent
from quantlab.gate.metrics import Claim
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.harness.measurement import Boundary, Latency
from quantlab.precision import Execution


def judge_latency(case: Case) -> CheckResult:
    """Judge the latency ratio at the check's boundary, by the upper end of its interval unless it claims this set."""
    on_device = case.check.boundary is Boundary.DEVICE
    limit, latency = case.check.limit, case.candidate.device_latency if on_device else case.candidate.latency
    if limit is None:
        raise AssertionError("loading refuses latency checks without a limit")
    if case.candidate.execution is Execution.EMULATED:
        reason = f"{case.candidate.name} is emulated here, so its latency says nothing about the real precision"
        return case.result(Outcome.SKIPPED, reason, next_step="measure on hardware that has this precision")
    if case.reference.execution is Execution.EMULATED:
        return case.missing(
            "the reference is emulated, so there is no latency to compare with", "take a native reference"
        )
    if latency is None and on_device:
        return case.missing(
            "there is no ratio of times on the GPU",
            f"compare with latency, with {case.reference.name} and {case.candidate.name} on a GPU by TensorRT both",
        )
    if latency is None:
        return case.missing("latency was not measured", "run quantlab compare with latency")
    if not all(map(math.isfinite, (latency.ratio, latency.ratio_interval.low, latency.ratio_interval.high))):
        return case.missing("the latency ratio is not a number", "run quantlab compare again")
    noise = _noise(case)
    if noise is not None:
        return noise
    where = " on the GPU" if on_device else ""
    start = f"{case.candidate.name} takes {latency.ratio:.3f} times as long{where} as {case.reference.name}"
    if case.claim is Claim.ON_THIS_SET:
        good = latency.ratio <= limit
        outcome = Outcome.PASS if good else Outcome.FAIL
        reason = f"{start}; as measured that is {'' if good else 'not '}at most the limit of {limit:g}"
        return case.result(
            outcome, reason, estimate=latency.ratio, interval=latency.ratio_interval, limit=limit, n=latency.n_calls
        )
    return _bounded(case, latency, limit, start)


def _bounded(case: Case, latency: Latency, limit: float, start: str) -> CheckResult:
    interval = latency.ratio_interval
    # A two-sided interval of 95 % holds one-sided at 97.5 %: more than alpha = 0.05 asks for is fine, less is not.
    if (1.0 + interval.confidence) / 2.0 < 1.0 - case.alpha - 1e-9:
        return case.missing(
            f"the latency interval of {percent(interval.confidence)} is too narrow for alpha = {case.alpha:g}",
            f"compare with an interval of at least {percent(1.0 - 2.0 * case.alpha)}",
        )
    found = f"{start} ({percent(interval.confidence)} interval {interval.low:.3f} to {interval.high:.3f})"
    needed, step, bound = None, "", interval.high
    if interval.high <= limit:
        outcome, reason = Outcome.PASS, f"{found}; the limit is {limit:g}"
    elif interval.low > limit:
        outcome, bound, reason = Outcome.FAIL, interval.low, f"{found}; the limit is {limit:g}"
        step = "choose another precision or target; quantlab inspect says which kernels the variant runs on"
    else:
        outcome, reason = Outcome.INCONCLUSIVE, f"{found}, which does not decide about a limit of {limit:g}"
        needed, step = _calls_needed(latency, limit)
    return case.result(
        outcome, reason, estimate=latency.ratio, bound=bound, interval=interval, limit=limit, n=latency.n_calls,
        needed=needed, next_step=step,
    )  # fmt: skip


def _noise(case: Case) -> CheckResult | None:
    """What the A/A control says against a verdict, if the check asks for a control and it does."""
    on_device = case.check.boundary is Boundary.DEVICE
    allowed = case.check.aa_noise_max
    floor = case.comparison.device_noise_floor if on_device else case.comparison.noise_floor
    if allowed is None:
        return None
    if floor is None:
        return case.missing("the comparison has no A/A control of latency", "run quantlab compare with latency")
    deviation = max(abs(floor.low - 1.0), abs(floor.high - 1.0))
    if deviation <= allowed:
        return None
    where = "GPU" if on_device else "machine"
    reason = (
        f"the {where} is too noisy: the latency of {case.reference.name} against itself differs by up to "
        f"{100.0 * deviation:.1f} %, the policy allows {100.0 * allowed:g} %"
    )
    step = "measure again on a quiet machine with fixed clocks"
    return case.result(Outcome.INCONCLUSIVE, reason, interval=floor, limit=case.check.limit, next_step=step)


def _calls_needed(latency: Latency, limit: float) -> tuple[int | None, str]:
    """Calls at which the interval, narrowing with the square root, would end below the limit."""
    room = limit - latency.ratio
    if room <= 0.0:
        return None, "the measured ratio is not below the limit, so more calls would probably show a FAIL"
    needed = math.ceil(latency.n_calls * ((latency.ratio_interval.high - latency.ratio) / room) ** 2)
    return needed, f"needs about {needed:,} timed calls instead of {latency.n_calls:,}"


def judge_size(case: Case) -> CheckResult:
    """Judge the size ratio."""
    limit = case.check.limit
    if limit is None:
        raise AssertionError("loading refuses size checks without a limit")
    if case.reference.size_bytes <= 0 or case.candidate.size_bytes <= 0:
        return case.missing("the size of an engine file is not known", "run quantlab build again")
    ratio = case.candidate.size_bytes / case.reference.size_bytes
    reason = (
        f"{case.candidate.name} has {ratio:.3f} times the size of {case.reference.name} "
        f"({case.candidate.size_bytes:,} and {case.reference.size_bytes:,} bytes), at most {limit:g} is required"
    )
    return case.result(Outcome.PASS if ratio <= limit else Outcome.FAIL, reason, estimate=ratio, limit=limit)


def judge_precision(case: Case) -> CheckResult:
    """Judge whether the proved precision is the requested one; nothing proved is a failure, not missing data."""
    candidate = case.candidate
    if candidate.proved is candidate.requested:
        return case.result(Outcome.PASS, f"{candidate.name} is {candidate.proved}: {candidate.proof}")
    found = "no precision could be proved" if candidate.proved is None else f"{candidate.proved} was proved"
    reason = f"{candidate.requested} was requested of {candidate.name}, but {found}"
    step = "quantlab inspect shows the precision of every layer"
    details = (candidate.proof,) if candidate.proof else ()
    return case.result(Outcome.FAIL, reason, next_step=step, details=details)
