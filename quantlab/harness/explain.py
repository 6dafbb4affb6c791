"""Why a variant is slower than FP32 on its backend, in words, as far as the result itself says so."""

from __future__ import annotations

from quantlab.engines.kernels import KernelCount
from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.harness.measurement import Latency
from quantlab.precision import Execution, Precision

_WITHOUT_CAUSE = "; the result does not say why: see where the time goes with quantlab bench --profile"


def slower_than_fp32(comparison: Comparison) -> tuple[str, ...]:
    """A sentence for each variant that was shown to be slower than FP32 on its own backend.

    Emulations are left out: their times mean nothing. Shown is what the interval of the latency ratio to the
    reference excludes. Where FP32 on the backend is another variant than the reference, the intervals of both must
    not meet. Variants without such an FP32 are left out.
    """
    return tuple(sentence for result in comparison.variants if (sentence := _sentence(result, comparison)) is not None)


def _sentence(result: VariantResult, comparison: Comparison) -> str | None:
    if result.requested is Precision.FP32 or result.latency is None or _means_nothing(result):
        return None
    base = _fp32_of(result.backend, comparison)
    if base is None or base.latency is None:
        return None
    if base.name == comparison.reference:
        limit, figures = 1.0, _ratio(result.latency, "its latency")
    else:
        limit = base.latency.ratio_interval.high
        of = f"that of {comparison.reference}"
        figures = f"{_ratio(result.latency, of)}; FP32 {_ratio(base.latency, of)}"
    if result.latency.ratio_interval.low <= limit:
        return None
    return f"{result.name} is slower than FP32 on this backend ({figures}){_because(result)}."


def _means_nothing(result: VariantResult) -> bool:
    """Whether a time is that of an emulation of ours, and not of what the runtime makes of a quantized graph."""
    return result.execution is Execution.EMULATED and KernelCount.stated(result.proof) is None


def _fp32_of(backend: str, comparison: Comparison) -> VariantResult | None:
    """FP32 on a backend, the reference before others."""
    found = [one for one in comparison.variants if one.backend == backend and one.requested is Precision.FP32]
    return next((one for one in found if one.name == comparison.reference), found[0] if found else None)


def _ratio(latency: Latency, of: str) -> str:
    bounds = latency.ratio_interval
    confidence = f"{100 * bounds.confidence:.0f} % interval [{bounds.low:.2f}, {bounds.high:.2f}]"
    return f"{latency.ratio:.2f} times {of}, {confidence}"


def _because(result: VariantResult) -> str:
    """The cause, or what the result says against the obvious one."""
    kernels = KernelCount.stated(result.proof)
    if kernels is not None and kernels.integer < kernels.quantized:
        advice = ""
        if result.backend == "onnxruntime" and 2 * kernels.integer <= kernels.quantized:
            advice = ": build it with --target onnxruntime, or with --backend openvino"
        return (
            f", because {kernels.runtime} runs {kernels.integer} of {kernels.quantized} quantized layers with integer "
            f"kernels, and the others in floating point between Q/DQ steps{advice}"
        )
    if result.requested is Precision.INT8_WEIGHTS:
        return ", because only its weights are INT8: its arithmetic is that of FP32"
    if kernels is not None:
        count = f"{kernels.runtime} runs all {kernels.quantized} quantized layers with integer kernels"
        return f", although {count}{_WITHOUT_CAUSE}"
    return _WITHOUT_CAUSE
