"""What is said beside the tables of a comparison, and which of their cells are marked."""

from __future__ import annotations

from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.harness.explain import slower_than_fp32
from quantlab.reports.cells import fixed, interval
from quantlab.reports.table import TABLES, Column


def drift_notes(comparison: Comparison) -> tuple[str, ...]:
    """Outputs that make the numbers of drift mean something else: not finite, or the same for every input."""
    broken = tuple(
        f"{result.name} gave {output.non_finite:,} NaN or infinite values in {output.output}: the drift above is "
        "without their samples, the scores count these as the worst possible."
        for result in comparison.variants
        for output in result.outputs
        if output.non_finite
    )
    constant = tuple(
        f"{result.name} gave the same {output.output} for every sample."
        for result in comparison.variants
        for output in result.outputs
        if output.constant
    )
    return broken + constant


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def latency_notes(comparison: Comparison) -> tuple[str, ...]:
    """What there is to say of the latencies: why a variant is slow, and what may make them other than they seem."""
    return (*slower_than_fp32(comparison), *(_sentence(warning.message) for warning in comparison.timing_warnings))


def device_notes(comparison: Comparison) -> tuple[str, ...]:
    """How to read the times on a GPU: what ratios are of, or why there are none, and what may distort the times."""
    timed = [result for result in comparison.variants if result.device is not None]
    warnings = tuple(f"{one.name}: {warning}." for one in timed if one.device for warning in one.device.warnings)
    against = next((result.device_latency for result in timed if result.device_latency is not None), None)
    if against is not None:
        confidence = fixed(100 * against.ratio_interval.confidence, 0)
        text = (
            f"On the GPU: ratio to {comparison.reference} of the execution, {confidence} % interval, interleaved; A/A "
            f"control {interval(comparison.device_noise_floor, 3)}."
        )
        return (text, *warnings)
    if timed and comparison.reference not in {result.name for result in timed}:
        text = f"On the GPU: no ratios, because the reference {comparison.reference} is not timed there."
        return (text, *warnings)
    return warnings


def best(column: Column, comparison: Comparison) -> frozenset[str]:
    """Names of the candidates with the best cell; none unless there are two candidates that differ."""
    if column.rank is None:
        return frozenset()
    candidates = [result for result in comparison.variants if result.name != comparison.reference]
    ranks = {result.name: rank for result in candidates if (rank := column.rank(result)) is not None}
    if len(set(ranks.values())) < 2:
        return frozenset()
    top = max(ranks.values())
    return frozenset(name for name, rank in ranks.items() if rank >= top)


def undecided(column: Column, result: VariantResult, reference: str) -> bool:
    """Whether the column is of ratios, and the interval of this one holds 1: neither faster nor slower was shown."""
    found = column.interval(result) if column.interval is not None and result.name != reference else None
    return found is not None and found.low <= 1.0 <= found.high


def any_undecided(comparison: Comparison) -> bool:
    """Whether a ratio of some table is undecided."""
    columns = [column for _, table in TABLES for column in table if column.interval is not None]
    return any(undecided(column, result, comparison.reference) for column in columns for result in comparison.variants)
