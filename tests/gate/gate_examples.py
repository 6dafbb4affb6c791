"""Small comparisons for the tests of the gate; every argument has a value with which the gate passes."""

from __future__ import annotations

from quantlab.degradation import Degradation
from quantlab.harness.comparison import Classification, Comparison, OutputDrift, VariantResult
from quantlab.harness.measurement import Latency
from quantlab.precision import Execution, Precision
from quantlab.statistics.interval import Interval

REFERENCE = "onnxruntime-fp32"
INT8 = "onnxruntime-int8-minmax"


def counts(b: int = 2, c: int = 1, n: int = 2000, labelled: int | None = None, agreement: int = 1990) -> Classification:
    n_labelled = n if labelled is None else labelled
    reference = int(0.9 * n_labelled)
    top1 = reference - b + c
    return Classification(
        n, min(agreement, n), n_labelled, top1, min(top1 + n_labelled // 20, n_labelled), reference, b, c
    )


def drift(name: str = "logits", sqnr_db: float = 25.0, **values: object) -> OutputDrift:
    fields = {"cosine": 0.999, "max_abs_error": 0.5, "kl_nats": 0.01, "non_finite": 0, "constant": False} | values
    return OutputDrift(name, sqnr_db, **fields)  # type: ignore[arg-type]


def latency(ratio: float = 0.6, half_width: float = 0.02, confidence: float = 0.95, n_calls: int = 1000) -> Latency:
    interval = Interval(ratio - half_width, ratio + half_width, confidence)
    return Latency("host", 1, n_calls, 5 * ratio, 6 * ratio, 7 * ratio, 200 / ratio, ratio, interval)


def variant(name: str = INT8, precision: Precision = Precision.INT8, **values: object) -> VariantResult:
    fields: dict[str, object] = {
        "backend": "onnxruntime",
        "requested": precision,
        "proved": precision,
        "proof": "read from the graph",
        "execution": Execution.NATIVE,
        "size_bytes": 1000,
        "sha256": "a" * 64,
        "table_sha256": None,
        "outputs": (drift(),),
        "classification": counts(),
        "latency": latency(),
    }
    return VariantResult(name, **(fields | values))  # type: ignore[arg-type]


def reference(**values: object) -> VariantResult:
    fields: dict[str, object] = {
        "outputs": (drift(sqnr_db=float("inf"), cosine=1.0, max_abs_error=0.0, kl_nats=0.0),),
        "classification": counts(0, 0, agreement=2000),
        "latency": latency(1.0, 0.01),
        "size_bytes": 4000,
    }
    return variant(REFERENCE, Precision.FP32, **(fields | values))


def comparison(
    *candidates: VariantResult,
    base: VariantResult | None = None,
    degradations: tuple[Degradation, ...] = (),
    **values: object,
) -> Comparison:
    fields: dict[str, object] = {
        "reference": REFERENCE,
        "variants": (base or reference(), *(candidates or (variant(),))),
        "model": "model.onnx",
        "model_sha256": "b" * 64,
        "data": {"source": "images"},
        "data_sha256": "c" * 64,
        "n_samples": 2000,
        "seed": 0,
        "noise_floor": Interval(0.99, 1.01, 0.95),
        "environment": {"processor": "test"},
        "degradations": degradations,
    }
    return Comparison(**(fields | values))  # type: ignore[arg-type]
