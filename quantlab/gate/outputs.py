"""Judges the numbers of model outputs: SQNR, cosine, KL, largest error, and whether they are numbers at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from quantlab.gate.case import Case
from quantlab.gate.metrics import METRICS, Metric
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.harness.comparison import OutputDrift

_VALUES: Mapping[Metric, tuple[str, Callable[[OutputDrift], float | None]]] = MappingProxyType(
    {
        Metric.SQNR_DB: ("SQNR", lambda output: output.sqnr_db),
        Metric.COSINE: ("cosine similarity", lambda output: output.cosine),
        Metric.KL_NATS: ("KL divergence", lambda output: output.kl_nats),
        Metric.MAX_ABS_ERROR: ("largest absolute error", lambda output: output.max_abs_error),
    }
)


def judge_drift(case: Case) -> CheckResult:
    """Judge the worst of the selected outputs against the check's limit."""
    limit = case.check.limit
    if limit is None:
        raise AssertionError("loading refuses these checks without a limit")
    selected = _selected(case)
    if not selected:
        return _no_output(case)
    words, value_of = _VALUES[case.check.metric]
    values = {output.output: value for output in selected if (value := value_of(output)) is not None}
    if not values:
        return case.missing(f"the comparison has no {words}", "check another metric: the outputs are not class scores")
    undefined = next((name for name, value in values.items() if math.isnan(value)), None)
    if undefined is not None:
        return case.missing(f"the {words} of {undefined} is not a number", "look for non-finite outputs")
    name = (min if case.higher_is_better else max)(values, key=values.__getitem__)
    value, unit = values[name], METRICS[case.check.metric].unit
    good = value >= limit if case.higher_is_better else value <= limit
    shown = f"{value:.4g} {unit}".rstrip()
    asked = f"{'at least' if case.higher_is_better else 'at most'} {limit:g} {unit}".rstrip()
    which = f"output {name}" if len(values) == 1 else f"{name}, the worst of {len(values)} outputs"
    reason = f"{words} of {case.candidate.name} is {shown} ({which}), {asked} is required"
    step = "" if good else "keep the layers that lose most in floating point with quantlab build --exclude"
    outcome = Outcome.PASS if good else Outcome.FAIL
    return case.result(outcome, reason, estimate=value, limit=limit, n=case.comparison.n_samples, next_step=step)


def judge_finite(case: Case) -> CheckResult:
    """Judge whether the selected outputs hold NaN or infinities."""
    selected = _selected(case)
    if not selected:
        return _no_output(case)
    count = sum(output.non_finite for output in selected)
    names = ", ".join(output.output for output in selected if output.non_finite)
    reason = f"{case.candidate.name} gave " + (
        f"{count:,} NaN or infinite values in {names}" if count else "finite values only"
    )
    step = "choose a precision of wider range: bf16 or fp32" if count else ""
    outcome = Outcome.FAIL if count else Outcome.PASS
    return case.result(outcome, reason, estimate=float(count), n=case.comparison.n_samples, next_step=step)


def judge_not_constant(case: Case) -> CheckResult:
    """Judge whether a selected output is the same for every sample."""
    selected = _selected(case)
    if not selected:
        return _no_output(case)
    n = case.comparison.n_samples
    if n < 2:
        return case.missing(
            "two samples are needed to see a constant output, and there are fewer", "compare more samples"
        )
    names = ", ".join(output.output for output in selected if output.constant)
    if not names:
        return case.result(Outcome.PASS, f"the outputs of {case.candidate.name} differ between samples", n=n)
    step = "check preprocessing and ranges: the output does not depend on the input"
    return case.result(
        Outcome.FAIL, f"{case.candidate.name} gave the same {names} for every sample", n=n, next_step=step
    )


def _selected(case: Case) -> tuple[OutputDrift, ...]:
    return tuple(output for output in case.candidate.outputs if fnmatchcase(output.output, case.check.output))


def _no_output(case: Case) -> CheckResult:
    names = ", ".join(output.output for output in case.candidate.outputs) or "none"
    return case.missing(f"the comparison has no output {case.check.output!r}", f"the outputs are: {names}")
