"""Numeric precisions a model may ship in."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Precision requested of, or proved for, a variant."""

    FP32 = "fp32"
    """IEEE binary32 operands and accumulation."""
    TF32 = "tf32"
    """Operands of convolutions and matrix products rounded to 10 mantissa bits, FP32 accumulation."""
    FP16 = "fp16"
    """IEEE binary16 storage."""
    BF16 = "bf16"
    """bfloat16 storage: 8 exponent bits, 7 mantissa bits."""
    INT8 = "int8"
    """8-bit integer operands where quantized, FP32 elsewhere."""
    INT8_WEIGHTS = "int8-weights"
    """8-bit integer weights where quantized; activations and arithmetic in floating point."""
    INT8_FP16 = "int8-fp16"
    """8-bit integer operands where quantized, FP16 elsewhere."""
    FP8 = "fp8"
    """FP8 E4M3 operands where quantized, FP32 elsewhere."""


class Execution(StrEnum):
    """How a backend carries out a precision."""

    NATIVE = "native"
    """The hardware computes in this precision: accuracy and latency are both real."""
    EMULATED = "emulated"
    """Results carry the precision's rounding, but the kernels run in another: latency means nothing."""
