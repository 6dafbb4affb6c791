"""What is checked before any statistics, whatever the policy says: is this evidence at all?

Guards decide (level ``error``), cannot be configured, and are listed in the verdict also when they pass. A waiver may
accept a guard that fails; nothing accepts one that ends in ERROR.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from quantlab.degradation import DegradationCode
from quantlab.gate.policy import Level, Policy
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.harness.comparison import Classification, Comparison, VariantResult

GUARD_IDS = ("guard.samples", "guard.variants", "guard.counts", "guard.finite", "guard.not-constant")
"""Ids of the guards, apart from ``degradation.<code>``."""

RESERVED_PREFIXES = ("guard.", "degradation.", "waiver.")
"""Beginnings of ids that a policy's own checks cannot have."""

_ALWAYS_LISTED = {
    DegradationCode.OVERLAP: "no overlap of calibration and evaluation data was found",
    DegradationCode.RANDOM_DATA: "no random numbers stood in for data",
}


def guard(comparison: Comparison, policy: Policy, variants: tuple[VariantResult, ...]) -> tuple[CheckResult, ...]:
    """Run every guard.

    Args:
        comparison: What is judged.
        policy: Names the degradations that are allowed.
        variants: The reference and the candidates that the policy selects.
    """
    reference = comparison.variant(comparison.reference)
    return (
        _samples(comparison),
        _variants(comparison),
        *(_counts(variant) for variant in variants if variant.classification is not None),
        *(_finite(variant) for variant in variants),
        *(_not_constant(variant, reference or variant, comparison.n_samples) for variant in variants),
        *_degradations(comparison, policy),
    )


def _result(
    name: str, candidate: str | None, metric: str, outcome: Outcome, reason: str, next_step: str = ""
) -> CheckResult:
    return CheckResult(name, candidate, metric, outcome, Level.ERROR, reason, next_step=next_step)


def _samples(comparison: Comparison) -> CheckResult:
    n = comparison.n_samples
    if n < 1:
        reason, step = "no sample was compared", "run quantlab compare on data that can be read"
        return _result("guard.samples", None, "samples", Outcome.ERROR, reason, step)
    return _result("guard.samples", None, "samples", Outcome.PASS, f"{n:,} samples were compared")


def _variants(comparison: Comparison) -> CheckResult:
    repeated = [name for name, count in Counter(v.name for v in comparison.variants).items() if count > 1]
    problem = ""
    if comparison.variant(comparison.reference) is None:
        problem = f"the reference {comparison.reference} is not among the variants"
    elif repeated:
        problem = f"the variant {repeated[0]} is there more than once"
    if problem:
        step = "run quantlab compare again: this comparison is damaged"
        return _result("guard.variants", None, "variants", Outcome.ERROR, problem, step)
    names = f"{len(comparison.variants)} variants, reference {comparison.reference}"
    return _result("guard.variants", None, "variants", Outcome.PASS, names)


def _counts(variant: VariantResult) -> CheckResult:
    counts = variant.classification
    consistent = counts is not None and counts_add_up(counts)
    if not consistent:
        reason = f"the paired counts of {variant.name} contradict each other"
        step = "run quantlab compare again: this comparison is damaged"
        return _result("guard.counts", variant.name, "counts", Outcome.ERROR, reason, step)
    return _result("guard.counts", variant.name, "counts", Outcome.PASS, f"the paired counts of {variant.name} add up")


def counts_add_up(counts: Classification) -> bool:
    """Whether the paired counts can come from one set of samples."""
    b, c = counts.flips_to_wrong, counts.flips_to_right
    return (
        min(b, c) >= 0
        and 0 <= counts.agreement <= counts.n
        and 0 <= counts.n_labelled <= counts.n
        and b <= counts.reference_top1 <= counts.n_labelled - c
        and counts.top1 == counts.reference_top1 - b + c
        and (counts.top5 is None or counts.top1 <= counts.top5 <= counts.n_labelled)
    )


def _finite(variant: VariantResult) -> CheckResult:
    broken = [output for output in variant.outputs if output.non_finite]
    if broken:
        total = sum(output.non_finite for output in broken)
        names = ", ".join(output.output for output in broken)
        reason = f"{variant.name} gave {total:,} NaN or infinite values in {names}"
        step = "choose a precision of wider range: bf16 or fp32"
        return _result("guard.finite", variant.name, "finite", Outcome.FAIL, reason, step)
    reason = f"every output value of {variant.name} is finite"
    return _result("guard.finite", variant.name, "finite", Outcome.PASS, reason)


def _not_constant(variant: VariantResult, reference: VariantResult, n_samples: int) -> CheckResult:
    """An output that is constant in the reference too (prior boxes) is how the model is, unless all of them are."""
    name, metric = "guard.not-constant", "not_constant"
    if n_samples < 2:
        return _result(name, variant.name, metric, Outcome.SKIPPED, "it takes two samples to see a constant output")
    constant = [output.output for output in variant.outputs if output.constant]
    by_design = {output.output for output in reference.outputs if output.constant}
    broken = constant if len(constant) == len(variant.outputs) else [out for out in constant if out not in by_design]
    if broken:
        reason = f"{variant.name} gave the same {', '.join(broken)} for every sample"
        step = "check preprocessing and ranges: the output does not depend on the input"
        return _result(name, variant.name, metric, Outcome.FAIL, reason, step)
    reason = f"the outputs of {variant.name} differ between samples"
    return _result(name, variant.name, metric, Outcome.PASS, reason)


def _degradations(comparison: Comparison, policy: Policy) -> Iterator[CheckResult]:
    """One result for each code that occurred, and for the codes that spoil a comparison in any case."""
    for code in DegradationCode:
        found = [degradation for degradation in comparison.degradations if degradation.code is code]
        name = f"degradation.{code}"
        if found:
            said = "; ".join(f"{d.message} (x{d.count:,})" for d in found)
            if code in policy.gate.allow:
                yield _result(name, None, "degradation", Outcome.PASS, f"allowed by the policy: {said}")
            else:
                step = f'mend the cause, or accept it with allow = ["{code}"] under [gate]'
                yield _result(name, None, "degradation", Outcome.FAIL, said, step)
        elif code in _ALWAYS_LISTED:
            yield _result(name, None, "degradation", Outcome.PASS, _ALWAYS_LISTED[code])
