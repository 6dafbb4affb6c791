"""Which variants a policy's check means."""

from __future__ import annotations

from fnmatch import fnmatchcase

from quantlab.gate.policy import Policy
from quantlab.harness.comparison import Comparison, VariantResult


def matches(pattern: str, variant: VariantResult) -> bool:
    """Whether ``pattern`` is the variant's requested precision, its name, or a pattern of its name."""
    return pattern in (variant.requested.value, variant.name) or fnmatchcase(variant.name, pattern)


def candidates(comparison: Comparison, pattern: str) -> tuple[VariantResult, ...]:
    """The variants that ``pattern`` selects, in the comparison's order; the reference is never one of them."""
    return tuple(
        variant for variant in comparison.variants if variant.name != comparison.reference and matches(pattern, variant)
    )


def judged(comparison: Comparison, policy: Policy) -> tuple[VariantResult, ...]:
    """The reference and every variant that some check of the policy selects: those that the guards look at.

    A variant that no check selects is not to be released, and must not fail the others.
    """
    selected = {variant.name for check in policy.checks for variant in candidates(comparison, check.candidate)}
    return tuple(
        variant for variant in comparison.variants if variant.name in selected or variant.name == comparison.reference
    )
