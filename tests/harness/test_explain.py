"""Why a variant is slower than FP32: only what the result says."""

from __future__ import annotations

import dataclasses

import pytest

from quantlab.engines.kernels import KernelCount
from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.harness.explain import slower_than_fp32
from quantlab.harness.measurement import Latency
from quantlab.precision import Execution, Precision
from quantlab.reports import markdown, terminal
from quantlab.reports.format import Style
from quantlab.statistics.interval import Interval

INT8_PROOF = "22 of 22 weighted layers INT8; {} runs {} of 22 with integer kernels"


def latency(ratio: float, half: float = 0.05) -> Latency:
    return Latency("host", 1, 100, ratio, ratio, None, 1000 / ratio, ratio, Interval(ratio - half, ratio + half, 0.95))


def result(
    name: str,
    precision: Precision,
    timed: Latency | None,
    proof: str = "",
    execution: Execution = Execution.NATIVE,
) -> VariantResult:
    backend = name.partition("-")[0]
    return VariantResult(name, backend, precision, precision, proof, execution, 1, "0" * 64, None, (), None, timed)


FP32 = result("onnxruntime-fp32", Precision.FP32, latency(1.0, 0.01))


def compared(*variants: VariantResult) -> Comparison:
    return Comparison(
        FP32.name, (FP32, *variants), "net.onnx", "1" * 64, {}, "2" * 64, 10, 0, Interval(0.99, 1.01, 0.95), {}, ()
    )


def test_float_kernels_between_pairs() -> None:
    proof = INT8_PROOF.format("ONNX Runtime", 0)
    slow = result("onnxruntime-int8-minmax", Precision.INT8, latency(1.92), proof, Execution.EMULATED)
    (sentence,) = slower_than_fp32(compared(slow))
    assert sentence == (
        "onnxruntime-int8-minmax is slower than FP32 on this backend (1.92 times its latency, 95 % interval "
        "[1.87, 1.97]), because ONNX Runtime runs 0 of 22 quantized layers with integer kernels, and the others in "
        "floating point between Q/DQ steps: build it with --target onnxruntime, or with --backend openvino."
    )


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (
            result("onnxruntime-int8-weights", Precision.INT8_WEIGHTS, latency(1.3)),
            ", because only its weights are INT8: its arithmetic is that of FP32.",
        ),
        (
            result("onnxruntime-int8-mse", Precision.INT8, latency(1.3), INT8_PROOF.format("ONNX Runtime", 22)),
            ", although ONNX Runtime runs all 22 quantized layers with integer kernels; the result does not say why",
        ),
        (result("onnxruntime-bf16", Precision.BF16, latency(1.3)), "); the result does not say why"),
        (
            result("onnxruntime-int8-mse", Precision.INT8, latency(1.3), INT8_PROOF.format("ONNX Runtime", 20)),
            "runs 20 of 22 quantized layers with integer kernels, and the others in floating point between Q/DQ steps.",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, VariantResult) else "",
)
def test_causes(variant: VariantResult, said: str) -> None:
    (sentence,) = slower_than_fp32(compared(variant))
    assert said in sentence


@pytest.mark.parametrize(
    "variant",
    [
        result("onnxruntime-int8-mse", Precision.INT8, latency(1.04)),
        result("onnxruntime-int8-mse", Precision.INT8, latency(0.6)),
        result("onnxruntime-int8-mse", Precision.INT8, None),
        result("openvino-fp32", Precision.FP32, latency(1.5)),
        result("openvino-int8-mse", Precision.INT8, latency(1.5)),
    ],
    ids=["interval holds 1", "faster", "not timed", "FP32 itself", "no FP32 on its backend"],
)
def test_nothing_is_said_that_was_not_shown(variant: VariantResult) -> None:
    assert slower_than_fp32(compared(variant)) == ()


def test_the_own_backends_fp32_counts() -> None:
    """Slower than the reference, but not than FP32 where it runs; and the other way round."""
    base = result("openvino-fp32", Precision.FP32, latency(0.5))
    proof = INT8_PROOF.format("OpenVINO", 22)
    slow, fast = (result(f"openvino-int8-{i}", Precision.INT8, latency(r), proof) for i, r in enumerate((0.7, 0.58)))
    (sentence,) = slower_than_fp32(compared(base, slow, fast))
    assert sentence.startswith(
        "openvino-int8-0 is slower than FP32 on this backend (0.70 times that of onnxruntime-fp32, 95 % interval "
        "[0.65, 0.75]; FP32 0.50 times that of onnxruntime-fp32, 95 % interval [0.45, 0.55]), although OpenVINO"
    )


def test_it_stands_below_the_latency_table() -> None:
    proof = INT8_PROOF.format("ONNX Runtime", 0)
    slow = result("onnxruntime-int8-minmax", Precision.INT8, latency(1.92), proof, Execution.EMULATED)
    for text in (
        terminal.render_comparison(compared(slow), Style(width=400)),
        markdown.render_comparison(compared(slow), Style()),
    ):
        lines = text.splitlines()
        table = next(i for i, line in enumerate(lines) if "Latency and size" in line)
        said = next(i for i, line in enumerate(lines) if "is slower than FP32 on this backend" in line)
        assert table < said < next(i for i, line in enumerate(lines) if "egradations" in line)
        fine = dataclasses.replace(slow, latency=latency(1.0))
    assert "slower than FP32" not in terminal.render_comparison(compared(fine), Style(width=400))


@pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO"])
def test_the_count_is_read_from_where_it_was_written(runtime: str) -> None:
    count = KernelCount(runtime, 3, 14)
    assert KernelCount.stated(f"14 of 15 weighted layers INT8; fp32: fc; {count}; more") == count
    assert KernelCount.stated(str(count)) == count
    assert KernelCount.stated("50 of 50 weighted layers INT8") is None


def test_an_emulation_is_not_spoken_of() -> None:
    """Its time is that of the roundings in between, and means nothing."""
    assert (
        slower_than_fp32(compared(result("onnxruntime-fp16", Precision.FP16, latency(1.3), "", Execution.EMULATED)))
        == ()
    )
