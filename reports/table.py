"""The columns of every table: the only place that says what a table of a comparison or verdict holds.

`comparison_frame`, `output_frame` and `verdict_frame` are for programs (CSV, notebooks): one typed column for each
value, its unit in the name. `TABLES` is for people (terminal, Markdown).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from quantlab.gate.verdict import CheckResult, Verdict
from quantlab.harness.comparison import Classification, Comparison, OutputDrift, VariantResult
from quantlab.harness.measurement import Latency
from quantlab.harness.trtexec import DeviceFigures
from quantlab.precision import Execution
from quantlab.reports.cells import EMULATED, MISSING, capped, fixed, interval, mebibytes, significant
from quantlab.statistics.interval import Interval

if TYPE_CHECKING:
    import pandas as pd

Row = TypeVar("Row")
Part = TypeVar("Part")
Value = TypeVar("Value")

_TEXT, _WHOLE, _NUMBER, _TRUTH = "string[python]", "Int64", "Float64", "boolean"


@dataclass(frozen=True, slots=True)
class Field(Generic[Row]):
    """One column of a data frame.

    Attributes:
        name: Name, with the unit.
        dtype: Nullable pandas type.
        value: The value of a row; None if there is none.
    """

    name: str
    dtype: str
    value: Callable[[Row], object]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table for people.

    Attributes:
        heading: Heading, with the unit.
        text: The cell of a variant.
        rank: What the best cell of the column has most of; None where no cell is best.
        left: Whether the cells are words, aligned to the left.
        interval: Of a column of ratios: the interval behind the cell.
    """

    heading: str
    text: Callable[[VariantResult], str]
    rank: Callable[[VariantResult], float | None] | None = None
    left: bool = False
    interval: Callable[[VariantResult], Interval | None] | None = None


def _of(part: Part | None, value: Callable[[Part], Value]) -> Value | None:
    return None if part is None else value(part)


def _worst(
    result: VariantResult, value: Callable[[OutputDrift], float | None], pick: Callable[..., float]
) -> float | None:
    """The worst of the outputs that have the value."""
    values = [found for output in result.outputs if (found := value(output)) is not None]
    return pick(values) if values else None


def _sqnr(result: VariantResult) -> float | None:
    return _worst(result, lambda output: output.sqnr_db, min)


def _cosine(result: VariantResult) -> float | None:
    return _worst(result, lambda output: output.cosine, min)


def _max_abs_error(result: VariantResult) -> float | None:
    return _worst(result, lambda output: output.max_abs_error, max)


def _kl(result: VariantResult) -> float | None:
    return _worst(result, lambda output: output.kl_nats, max)


def _share(part: Classification | None, count: Callable[[Classification], int | None], labelled: bool) -> float | None:
    """A count as percent of the samples that it is over."""
    if part is None or (found := count(part)) is None:
        return None
    n = part.n_labelled if labelled else part.n
    return 100.0 * found / n if n else None


def _top1(result: VariantResult) -> float | None:
    return _share(result.classification, lambda c: c.top1, labelled=True)


def _top5(result: VariantResult) -> float | None:
    return _share(result.classification, lambda c: c.top5, labelled=True)


def _agreement(result: VariantResult) -> float | None:
    return _share(result.classification, lambda c: c.agreement, labelled=False)


def _delta(result: VariantResult) -> float | None:
    counts = result.classification
    return counts.delta_pp if counts is not None and counts.n_labelled else None


def _ratio_bound(result: VariantResult, end: Callable[[Interval], float]) -> float | None:
    return _of(result.latency, lambda latency: end(latency.ratio_interval))


def _latency_field(name: str, dtype: str, value: Callable[[Latency], object]) -> Field[VariantResult]:
    return Field(name, dtype, lambda result: _of(result.latency, value))


def _latency_bounds(name: str, value: Callable[[Latency], Interval | None]) -> tuple[Field[VariantResult], ...]:
    """Two columns for the ends of an interval."""
    return (
        _latency_field(f"{name}_low", _NUMBER, lambda t: _of(value(t), lambda i: i.low)),
        _latency_field(f"{name}_high", _NUMBER, lambda t: _of(value(t), lambda i: i.high)),
    )


def _device_field(name: str, dtype: str, value: Callable[[DeviceFigures], object]) -> Field[VariantResult]:
    return Field(name, dtype, lambda result: _of(result.device, value))


def _gpu_ratio_field(name: str, dtype: str, value: Callable[[Latency], object]) -> Field[VariantResult]:
    return Field(name, dtype, lambda result: _of(result.device_latency, value))


def _count_field(name: str, value: Callable[[Classification], object]) -> Field[VariantResult]:
    return Field(name, _WHOLE, lambda result: _of(result.classification, value))


VARIANT_FIELDS: tuple[Field[VariantResult], ...] = (
    Field("variant", _TEXT, lambda r: r.name),
    Field("backend", _TEXT, lambda r: r.backend),
    Field("precision_requested", _TEXT, lambda r: r.requested.value),
    Field("precision_proved", _TEXT, lambda r: _of(r.proved, lambda p: p.value)),
    Field("execution", _TEXT, lambda r: r.execution.value),
    _count_field("samples", lambda c: c.n),
    _count_field("samples_labelled", lambda c: c.n_labelled),
    Field("top1_pct", _NUMBER, _top1),
    Field("top1_delta_pp", _NUMBER, _delta),
    Field("top5_pct", _NUMBER, _top5),
    Field("agreement_pct", _NUMBER, _agreement),
    _count_field("flips_to_wrong", lambda c: c.flips_to_wrong),
    _count_field("flips_to_right", lambda c: c.flips_to_right),
    Field("sqnr_db", _NUMBER, _sqnr),
    Field("cosine", _NUMBER, _cosine),
    Field("max_abs_error", _NUMBER, _max_abs_error),
    Field("kl_nats", _NUMBER, _kl),
    Field("non_finite_values", _WHOLE, lambda r: sum(output.non_finite for output in r.outputs)),
    Field("constant_outputs", _WHOLE, lambda r: sum(output.constant for output in r.outputs)),
    _latency_field("latency_boundary", _TEXT, lambda t: t.boundary),
    _latency_field("batch_size", _WHOLE, lambda t: t.batch_size),
    _latency_field("timed_calls", _WHOLE, lambda t: t.n_calls),
    _latency_field("latency_median_ms", _NUMBER, lambda t: t.median_ms),
    *_latency_bounds("latency_median_ms", lambda t: t.median_interval),
    _latency_field("latency_mean_ms", _NUMBER, lambda t: t.mean_ms),
    _latency_field("latency_q1_ms", _NUMBER, lambda t: t.q1_ms),
    _latency_field("latency_q3_ms", _NUMBER, lambda t: t.q3_ms),
    _latency_field("latency_p90_ms", _NUMBER, lambda t: t.p90_ms),
    *_latency_bounds("latency_p90_ms", lambda t: t.p90_interval),
    _latency_field("latency_p95_ms", _NUMBER, lambda t: t.p95_ms),
    *_latency_bounds("latency_p95_ms", lambda t: t.p95_interval),
    _latency_field("latency_p99_ms", _NUMBER, lambda t: t.p99_ms),
    *_latency_bounds("latency_p99_ms", lambda t: t.p99_interval),
    _latency_field("latency_mild_outliers", _WHOLE, lambda t: _of(t.outliers, lambda o: o.low_mild + o.high_mild)),
    _latency_field(
        "latency_severe_outliers", _WHOLE, lambda t: _of(t.outliers, lambda o: o.low_severe + o.high_severe)
    ),
    _latency_field("latency_calls_per_timing", _WHOLE, lambda t: t.calls_per_timing),
    _latency_field("latency_stationary", _TRUTH, lambda t: t.stationary),
    _latency_field("latency_blocks", _WHOLE, lambda t: t.n_blocks),
    _latency_field("latency_ratio", _NUMBER, lambda t: t.ratio),
    Field("latency_ratio_low", _NUMBER, lambda r: _ratio_bound(r, lambda i: i.low)),
    Field("latency_ratio_high", _NUMBER, lambda r: _ratio_bound(r, lambda i: i.high)),
    Field("latency_ratio_confidence", _NUMBER, lambda r: _ratio_bound(r, lambda i: i.confidence)),
    *_latency_bounds("latency_ratio_90", lambda t: t.equivalence_interval),
    _latency_field("latency_verdict", _TEXT, lambda t: _of(t.change, lambda change: change.value)),
    _latency_field("throughput_per_s", _NUMBER, lambda t: t.throughput_per_s),
    _device_field("device_queries", _WHOLE, lambda d: d.queries),
    _device_field("device_compute_median_ms", _NUMBER, lambda d: d.compute.median_ms),
    _device_field("device_compute_p99_ms", _NUMBER, lambda d: d.compute.p99_ms),
    _device_field("device_latency_median_ms", _NUMBER, lambda d: d.latency.median_ms),
    _device_field("device_h2d_median_ms", _NUMBER, lambda d: d.h2d.median_ms),
    _device_field("device_d2h_median_ms", _NUMBER, lambda d: d.d2h.median_ms),
    _device_field("device_enqueue_median_ms", _NUMBER, lambda d: d.enqueue.median_ms),
    _device_field("device_throughput_per_s", _NUMBER, lambda d: d.samples_per_s),
    _device_field("device_graph", _TRUTH, lambda d: d.graph),
    _device_field("device_transfers", _TRUTH, lambda d: d.transfers),
    _gpu_ratio_field("device_interleaved_median_ms", _NUMBER, lambda t: t.median_ms),
    _gpu_ratio_field("device_blocks", _WHOLE, lambda t: t.n_blocks),
    _gpu_ratio_field("device_ratio", _NUMBER, lambda t: t.ratio),
    _gpu_ratio_field("device_ratio_low", _NUMBER, lambda t: t.ratio_interval.low),
    _gpu_ratio_field("device_ratio_high", _NUMBER, lambda t: t.ratio_interval.high),
    _gpu_ratio_field("device_ratio_confidence", _NUMBER, lambda t: t.ratio_interval.confidence),
    _gpu_ratio_field("device_verdict", _TEXT, lambda t: _of(t.change, lambda change: change.value)),
    Field("size_bytes", _WHOLE, lambda r: r.size_bytes),
    Field("sha256", _TEXT, lambda r: r.sha256),
    Field("table_sha256", _TEXT, lambda r: r.table_sha256),
)
"""Data columns of a comparison. Of several outputs, numeric drift shows the worst; `output_frame` has each."""

OUTPUT_FIELDS: tuple[Field[tuple[str, OutputDrift]], ...] = (
    Field("variant", _TEXT, lambda row: row[0]),
    Field("output", _TEXT, lambda row: row[1].output),
    Field("sqnr_db", _NUMBER, lambda row: row[1].sqnr_db),
    Field("cosine", _NUMBER, lambda row: row[1].cosine),
    Field("max_abs_error", _NUMBER, lambda row: row[1].max_abs_error),
    Field("kl_nats", _NUMBER, lambda row: row[1].kl_nats),
    Field("non_finite_values", _WHOLE, lambda row: row[1].non_finite),
    Field("constant", _TRUTH, lambda row: row[1].constant),
)
"""Data columns of the drift by output."""

CHECK_FIELDS: tuple[Field[CheckResult], ...] = (
    Field("check", _TEXT, lambda c: c.id),
    Field("candidate", _TEXT, lambda c: c.candidate),
    Field("metric", _TEXT, lambda c: c.metric),
    Field("outcome", _TEXT, lambda c: c.outcome.value),
    Field("level", _TEXT, lambda c: c.level.value),
    Field("claim", _TEXT, lambda c: _of(c.claim, lambda claim: claim.value)),
    Field("unit", _TEXT, lambda c: c.unit),
    Field("estimate", _NUMBER, lambda c: c.estimate),
    Field("bound", _NUMBER, lambda c: c.bound),
    Field("interval_low", _NUMBER, lambda c: _of(c.interval, lambda i: i.low)),
    Field("interval_high", _NUMBER, lambda c: _of(c.interval, lambda i: i.high)),
    Field("limit", _NUMBER, lambda c: c.limit),
    Field("n", _WHOLE, lambda c: c.n),
    Field("needed", _WHOLE, lambda c: c.needed),
    Field("reason", _TEXT, lambda c: c.reason),
    Field("next_step", _TEXT, lambda c: c.next_step),
    Field("waiver", _TEXT, lambda c: c.waiver),
)
"""Data columns of a verdict."""


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """One row for each variant, the reference first."""
    return _frame(VARIANT_FIELDS, comparison.variants)


def output_frame(comparison: Comparison) -> pd.DataFrame:
    """One row for each output of each variant."""
    return _frame(OUTPUT_FIELDS, [(result.name, output) for result in comparison.variants for output in result.outputs])


def verdict_frame(verdict: Verdict) -> pd.DataFrame:
    """One row for each check and candidate, in the order of the verdict."""
    return _frame(CHECK_FIELDS, verdict.checks)


def _frame(fields: Sequence[Field[Row]], rows: Iterable[Row]) -> pd.DataFrame:
    import pandas as pd

    kept = list(rows)
    return pd.DataFrame(
        {field.name: pd.array([field.value(row) for row in kept], dtype=field.dtype) for field in fields}  # type: ignore[call-overload]
    )


def _precision(result: VariantResult) -> str:
    if result.proved is result.requested:
        return result.requested.value
    return f"{result.requested.value} ({result.proved.value if result.proved is not None else 'not'} proved)"


def _flips(result: VariantResult) -> str:
    counts = result.classification
    return MISSING if counts is None else f"{counts.flips_to_wrong:,} / {counts.flips_to_right:,}"


def _timed(value: Callable[[Latency], str], emulated: str = MISSING) -> Callable[[VariantResult], str]:
    """The cell of a latency column: no number where the kernels run in another precision."""

    def text(result: VariantResult) -> str:
        if result.execution is Execution.EMULATED:
            return emulated
        return MISSING if result.latency is None else value(result.latency)

    return text


def _native(value: Callable[[Latency], float]) -> Callable[[VariantResult], float | None]:
    return lambda result: None if result.execution is Execution.EMULATED else _of(result.latency, value)


def _negative(value: Callable[[VariantResult], float | None]) -> Callable[[VariantResult], float | None]:
    return lambda result: None if (found := value(result)) is None else -found


DRIFT_COLUMNS: tuple[Column, ...] = (
    Column("precision", _precision, left=True),
    Column("top-1 %", lambda r: fixed(_top1(r), 2), rank=_top1),
    Column("delta pp", lambda r: fixed(_delta(r), 2, sign=True)),
    Column("top-5 %", lambda r: fixed(_top5(r), 2), rank=_top5),
    Column("agree %", lambda r: capped(_agreement(r), 2, 100.0), rank=_agreement),
    Column("to wrong / right", _flips),
    Column("SQNR dB", lambda r: fixed(_sqnr(r), 1), rank=_sqnr),
    Column("cosine", lambda r: capped(_cosine(r), 4, 1.0), rank=_cosine),
    Column("max abs err", lambda r: significant(_max_abs_error(r)), rank=_negative(_max_abs_error)),
    Column("KL nats", lambda r: significant(_kl(r)), rank=_negative(_kl)),
)
"""Columns of accuracy drift for people, after the variant's name."""

LATENCY_COLUMNS: tuple[Column, ...] = (
    Column("execution", lambda r: r.execution.value, left=True),
    Column("median ms", _timed(lambda t: fixed(t.median_ms, 3), EMULATED)),
    Column("p90 ms", _timed(lambda t: fixed(t.p90_ms, 3))),
    Column("p99 ms", _timed(lambda t: fixed(t.p99_ms, 3))),
    Column(
        "ratio",
        _timed(lambda t: fixed(t.ratio, 3)),
        rank=_negative(_native(lambda t: t.ratio)),
        interval=lambda r: None if r.execution is Execution.EMULATED else _of(r.latency, lambda t: t.ratio_interval),
    ),
    Column("interval", _timed(lambda t: interval(t.ratio_interval, 3))),
    Column("verdict", _timed(lambda t: MISSING if t.change is None else t.change.value), left=True),
    Column("per s", _timed(lambda t: fixed(t.throughput_per_s, 1))),
    Column("size MiB", lambda r: mebibytes(r.size_bytes), rank=_negative(lambda r: float(r.size_bytes))),
)
"""Columns of latency and size for people, after the variant's name."""


def _on_device(value: Callable[[DeviceFigures], float], decimals: int = 3) -> Callable[[VariantResult], str]:
    return lambda result: fixed(_of(result.device, value), decimals)


def _against_on_device(value: Callable[[Latency], str]) -> Callable[[VariantResult], str]:
    return lambda result: MISSING if result.device_latency is None else value(result.device_latency)


def _device_mode(result: VariantResult) -> str:
    if result.device is None:
        return MISSING
    return f"{'graph' if result.device.graph else 'plain'}, {'with' if result.device.transfers else 'no'} copies"


DEVICE_COLUMNS: tuple[Column, ...] = (
    Column("mode", _device_mode, left=True),
    Column(
        "compute ms",
        _on_device(lambda d: d.compute.median_ms),
        rank=_negative(lambda r: _of(r.device, lambda d: d.compute.median_ms)),
    ),
    Column("p99 ms", _on_device(lambda d: d.compute.p99_ms)),
    Column(
        "ratio",
        _against_on_device(lambda t: fixed(t.ratio, 3)),
        rank=_negative(lambda r: _of(r.device_latency, lambda t: t.ratio)),
        interval=lambda r: _of(r.device_latency, lambda t: t.ratio_interval),
    ),
    Column("interval", _against_on_device(lambda t: interval(t.ratio_interval, 3))),
    Column("verdict", _against_on_device(lambda t: MISSING if t.change is None else t.change.value), left=True),
    Column("to GPU ms", _on_device(lambda d: d.h2d.median_ms)),
    Column("back ms", _on_device(lambda d: d.d2h.median_ms)),
    Column("enqueue ms", _on_device(lambda d: d.enqueue.median_ms)),
    Column("per s", _on_device(lambda d: d.samples_per_s, 1)),
    Column("compiled ms", _on_device(lambda d: d.load_ms + d.first_run_ms, 0)),
)
"""Columns of the times on the GPU for people, after the variant's name.

Medians are by trtexec's definitions, engine after engine; ratios are of the execution, from interleaved blocks.
"""

TABLES: tuple[tuple[str, tuple[Column, ...]], ...] = (
    ("Accuracy drift", DRIFT_COLUMNS),
    ("Latency and size", LATENCY_COLUMNS),
    ("On the GPU, by CUDA events", DEVICE_COLUMNS),
)
"""Title and columns of each table of a comparison for people; one that has nothing to show is left out."""


def shown(columns: Sequence[Column], comparison: Comparison) -> tuple[Column, ...]:
    """The columns that have something to show for some variant."""
    nothing = (MISSING, EMULATED)
    return tuple(
        column for column in columns if any(column.text(result) not in nothing for result in comparison.variants)
    )
