"""From what was observed of a tensor to its entry in the table: the ranges of every method for every scheme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.error import clipped_fraction, sqnr_db
from quantlab.calibrators.extremes import Extremes
from quantlab.calibrators.histogram import Histogram
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import RangeMethod
from quantlab.calibrators.quantize import SCHEMES, Scheme
from quantlab.calibrators.table import TensorEntry, TensorRange
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import CalibrationError


def measure_tensor(
    name: str,
    histogram: Histogram,
    methods: Sequence[RangeMethod],
    *,
    non_finite_sample: str | None = None,
    absent_samples: int = 0,
) -> TensorEntry:
    """Ranges of one tensor by every method and scheme, from its histogram.

    Args:
        name: Tensor.
        histogram: Its values.
        methods: One of each.
        non_finite_sample: The sample that made NaN or infinite values, if there were any.
        absent_samples: Samples in which it had no values.

    Raises:
        CalibrationError: If the tensor has no finite value, or a method that searches had nothing to compare and gave
            no reason.
    """
    try:
        distribution = histogram.distribution()
    except CalibrationError as cause:
        raise CalibrationError(
            f"tensor {name!r} has no finite value",
            got=f"{histogram.non_finite} NaN or infinite"
            + (f", first on sample {non_finite_sample!r}" if non_finite_sample else ""),
            hint=cause.hint,
        ) from cause
    ranges = {
        scheme.name: {method.name: _measure(name, distribution, method, scheme) for method in methods}
        for scheme in SCHEMES.values()
    }
    return TensorEntry(
        name,
        distribution.minimum,
        distribution.maximum,
        histogram.total,
        histogram.non_finite,
        distribution.zero_fraction,
        getattr(distribution, "kind", ""),
        ranges,
        non_finite_sample,
        absent_samples,
    )


def measure_extremes(
    name: str, extremes: Extremes, methods: Sequence[str] = (MinMax.name,), *, non_finite_sample: str | None = None
) -> TensorEntry:
    """Min-max ranges of one tensor whose values were not counted, for every scheme.

    Args:
        name: Tensor.
        extremes: Its minimum and maximum.
        methods: Names under which the range is entered: those of the table it goes to.
        non_finite_sample: The sample that made NaN or infinite values, if there were any.

    Raises:
        CalibrationError: If the tensor has no finite value.
    """
    low, high = extremes.minimum, extremes.maximum
    if not extremes.known:
        raise CalibrationError(
            f"tensor {name!r} has no finite value",
            got=f"{extremes.non_finite} NaN or infinite"
            + (f", first on sample {non_finite_sample!r}" if non_finite_sample else ""),
            hint="look for NaN in the inputs or the weights",
        )
    amax = max(abs(low), abs(high))
    ranges = {}
    for scheme in SCHEMES.values():
        ends = (-amax, amax) if scheme.symmetric else (low, high)
        ranges[scheme.name] = dict.fromkeys(methods, TensorRange(*ends, 0.0, None, 1, None))
    kind = "constant" if low == high else ""
    return TensorEntry(name, low, high, extremes.total, extremes.non_finite, None, kind, ranges, non_finite_sample)


def _measure(name: str, distribution: Distribution, method: RangeMethod, scheme: Scheme) -> TensorRange:
    chosen = method.choose(distribution, scheme)
    if getattr(method, "searches", False) and chosen.candidates < 2 and chosen.fallback is None:
        raise CalibrationError(
            f"the search of {method.name} over tensor {name!r} compared nothing",
            got=f"{chosen.candidates} candidate",
            expected="at least two, or a reason to fall back to min-max",
            hint="this is a fault of quantlab; please report it",
        )
    return TensorRange(
        chosen.low,
        chosen.high,
        clipped_fraction(distribution, chosen.low, chosen.high),
        sqnr_db(distribution, chosen.low, chosen.high, scheme),
        chosen.candidates,
        chosen.fallback,
    )


def table_degradations(tensors: Iterable[TensorEntry], method: str) -> tuple[Degradation, ...]:
    """What the chosen method could not do: fallbacks, and non-finite values left out."""
    entries = list(tensors)
    result = []
    fallen = [
        entry.name
        for entry in entries
        if not entry.constant
        and any(by_method[method].fallback for by_method in entry.ranges.values() if method in by_method)
    ]
    if fallen:
        result.append(
            Degradation.of(
                DegradationCode.METHOD_FALLBACK, f"{method} has no meaning for these tensors; min-max was used", fallen
            )
        )
    broken = [entry for entry in entries if entry.non_finite]
    if broken:
        samples = [entry.non_finite_sample for entry in broken if entry.non_finite_sample is not None]
        message = "NaN or infinite activations were left out of ranges" + (
            f"; the first sample by name that made them is {min(samples)!r}" if samples else ""
        )
        result.append(Degradation.of(DegradationCode.NON_FINITE_VALUES, message, [entry.name for entry in broken]))
    absent = [entry for entry in entries if entry.absent_samples]
    if absent:
        most = max(entry.absent_samples for entry in absent)
        message = f"tensors had no values in some samples, in up to {most} of them"
        result.append(Degradation.of(DegradationCode.ABSENT_TENSORS, message, [entry.name for entry in absent]))
    return tuple(result)
