"""One comparison with everything a report has to show, and the verdict of a policy on it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import math

from quantlab.degradation import Degradation, DegradationCode
from quantlab.gate.evaluate import evaluate
from quantlab.gate.loading import parse_policy
from quantlab.gate.verdict import Verdict
from quantlab.harness.comparison import (
    Classification,
    Comparison,
    OutputDrift,
    Score,
    Slice,
    VariantResult,
    WorstSample,
)
from quantlab.harness.measurement import Latency
from quantlab.harness.tasks.protocol import CountChange
from quantlab.harness.trtexec import DeviceFigures, Spread
from quantlab.precision import Execution, Precision
from quantlab.statistics.interval import Interval

POLICY = """
schema = 1
[gate]
allow = ["lossy-decode"]
[[check]]
id = "accuracy.top1"
metric = "top1"
margin = { absolute_pp = 1.0 }
[[check]]
id = "accuracy.agreement"
metric = "agreement"
limit = 97.5
level = "warn"
[[check]]
id = "latency.ratio"
metric = "latency_ratio"
limit = 0.8
level = "info"
[[check]]
id = "precision.proved"
metric = "precision_proved"
[[waiver]]
check = "precision.proved"
candidate = "fp16"
reason = "GH-118: emulated on this machine"
expires = 2026-12-31
"""


def _latency(ratio: float, low: float, high: float, *, p99: bool = True) -> Latency:
    return Latency(
        "host: feed to fetch", 1, 640, 8.4131 * ratio, 8.9 * ratio, 9.75 * ratio if p99 else None,
        1000 / (8.4131 * ratio), ratio, Interval(low, high, 0.95),
    )  # fmt: skip


def _variant(
    name: str,
    precision: Precision,
    proved: Precision | None,
    drift: OutputDrift,
    classification: Classification | None,
    latency: Latency | None,
    size_bytes: int,
    execution: Execution = Execution.NATIVE,
) -> VariantResult:
    return VariantResult(
        name, name.split("-")[0], precision, proved, "read from the graph" if proved else "", execution, size_bytes,
        f"{size_bytes:064x}", "7" * 64 if precision is Precision.INT8 else None, (drift,), classification, latency,
    )  # fmt: skip


def _score(
    figure: str, unit: str, value: float, reference: float, low: float | None, high: float | None, n: int = 2000,
    *, higher: bool = True, method: str = "Tango's score interval, paired", where: str = "",
) -> Score:  # fmt: skip
    column, _, name = where.partition("=")
    return Score(
        figure, unit, higher, value, reference, 0.0 if value == reference else value - reference,
        None if low is None or high is None else Interval(low, high, 0.95), method, n,
        Slice(column, name) if where else None, against_reference=figure == "agreement",
    )  # fmt: skip


_BCA = "paired BCa bootstrap, 2,000 resamples"
_FEW = "no interval: 7 samples, at least 10 are needed"


def _scored(
    result: VariantResult, top1: tuple[float, float, float], agreement: tuple[float, float, float], nll: float
) -> VariantResult:
    """With scores, two slices, samples that got worse and a confusion."""
    scores = (
        _score("top1", "%", top1[0], 91.5, *top1[1:]),
        _score("agreement", "%", agreement[0], 100.0, *agreement[1:]),
        _score("nll", "nats", nll, 0.2413, nll - 0.2513, nll - 0.2313, higher=False, method=_BCA),
        _score("top1", "%", 80.0, 90.0, -16.31, -5.27, 200, where="class=shirt|coat"),
        _score("top1", "%", 99.5, 99.5, -1.89, 1.89, 200, where="class=boot"),
        _score("top1", "%", 57.142857, 100.0, None, None, 7, method=_FEW, where="camera=left"),
    )
    worst = (
        WorstSample("shirt/0017.png", "shirt|coat", "shirt|coat (0.93)", "boot (0.51)", 0.8612, "probability lost"),
        WorstSample("boot/0003.png", None, "boot (0.71)", "not finite", 0.71, "probability lost"),
    )
    return dataclasses.replace(
        result, scores=scores, worst=worst, confusions=(CountChange("shirt|coat", "boot", 3, 12),)
    )


def _scored_reference(result: VariantResult) -> VariantResult:
    scores = (
        _score("top1", "%", 91.5, 91.5, None, None, method=""),
        _score("agreement", "%", 100.0, 100.0, None, None, method=""),
        _score("nll", "nats", 0.2413, 0.2413, None, None, higher=False, method=""),
    )
    return dataclasses.replace(result, scores=scores)


@functools.cache
def comparison() -> Comparison:
    """Four variants on 2,000 labelled images."""
    variants = (
        _variant(
            "onnxruntime-fp32", Precision.FP32, Precision.FP32,
            OutputDrift("logits", math.inf, 1.0, 0.0, 0.0, 0, False),
            Classification(2000, 2000, 2000, 1830, 1990, 1830, 0, 0), _latency(1.0, 0.995, 1.004), 18_612_480,
        ),
        _variant(
            "onnxruntime-fp16", Precision.FP16, None,
            OutputDrift("logits", 58.31, 0.9999994, 0.0123, 1.2e-06, 0, False),
            Classification(2000, 1999, 2000, 1830, 1990, 1830, 1, 1), _latency(1.31, 1.29, 1.33), 9_306_240,
            Execution.EMULATED,
        ),
        _variant(
            "onnxruntime-int8-minmax", Precision.INT8, Precision.INT8,
            OutputDrift("logits", 15.62, 0.98641, 4.31, 0.0871, 0, False),
            Classification(2000, 1931, 2000, 1803, 1985, 1830, 41, 14), _latency(0.62, 0.605, 0.634), 4_712_390,
        ),
        _variant(
            "onnxruntime-int8-entropy+3excl", Precision.INT8, Precision.INT8,
            OutputDrift("logits", 22.47, 0.99721, 2.08, 0.0131, 0, False),
            Classification(2000, 1972, 2000, 1827, 1989, 1830, 9, 6), _latency(0.99, 0.97, 1.012, p99=False), 5_871_104,
        ),
    )  # fmt: skip
    fp32, fp16, minmax, entropy = variants
    variants = (
        _scored_reference(fp32),
        fp16,
        _scored(minmax, (90.15, -2.1, -0.63), (96.55, 95.66, 97.26), 0.2689),
        _scored(entropy, (91.35, -0.57, 0.26), (98.6, 97.98, 99.03), 0.2401),
    )
    return Comparison(
        "onnxruntime-fp32", variants, "fashion-mobilenet.onnx", "b" * 64, {"source": "images"}, "c" * 64, 2000, 7,
        Interval(0.991, 1.012, 0.95), {"threads": 2},
        (
            Degradation(DegradationCode.LOSSY_DECODE, "alpha was dropped", 2, ("cat|1.png", "dog`2.png")),
            Degradation(DegradationCode.UNREADABLE_SAMPLES, "samples were left out", 1, ("broken.jpg",)),
        ),
        "classify", {"class": 3},
    )  # fmt: skip


def _device(compute_ms: float, warnings: tuple[str, ...] = ()) -> DeviceFigures:
    def spread(ms: float) -> Spread:
        return Spread(0.98 * ms, 1.2 * ms, 1.01 * ms, ms, 1.03 * ms, 1.05 * ms, 1.1 * ms, 1.7)

    total = compute_ms + 0.013
    return DeviceFigures(
        2000, 150, 8, 3.0, 1000 / compute_ms, 8000 / compute_ms, spread(total), spread(0.009), spread(compute_ms),
        spread(0.004), spread(0.0031), 2.0 * compute_ms, True, True, 812.0, 40.5, warnings,
    )  # fmt: skip


@functools.cache
def gpu_comparison() -> Comparison:
    """ONNX Runtime on the CPU against two engines on a GPU; what was asked for as FP32 computes in TF32."""
    first = dataclasses.replace(comparison().variants[0], scores=())
    counts = first.classification
    drift = OutputDrift("logits", 67.49, 0.9999999, 0.0021, 3.1e-09, 0, False)
    engines = (
        VariantResult(
            "tensorrt-rtx-fp32", "tensorrt-rtx", Precision.FP32, Precision.TF32, "NOT FP32: TF32", Execution.NATIVE,
            4_595_268, "5" * 64, None, (drift,), counts, None, _device(0.149),
        ),
        VariantResult(
            "tensorrt-rtx-fp16", "tensorrt-rtx", Precision.FP16, Precision.FP16, "26 of 26 layers", Execution.NATIVE,
            3_850_004, "6" * 64, None, (drift,), counts, None, _device(0.101, ("the compute time is unstable",)),
        ),
    )  # fmt: skip
    return dataclasses.replace(comparison(), variants=(first, *engines), degradations=(), slices_left_out={})


@functools.cache
def verdict() -> Verdict:
    """FAIL for a degradation, with every other outcome among its checks."""
    return evaluate(comparison(), parse_policy(POLICY, "gate.toml"), dt.date(2026, 6, 1))
