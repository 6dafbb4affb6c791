"""What each backend accepts of a quantized graph."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quantlab.calibrators.quantize import INT8_SYMMETRIC, UINT8_AFFINE, Scheme


class BiasType(StrEnum):
    """How a weighted layer's bias is stored."""

    FLOAT = "float"
    """As it was; TensorRT adds it in floating point."""
    INT32 = "int32"
    """INT32 with scale = input scale * weight scale; ONNX Runtime fuses a layer only then."""


@dataclass(frozen=True, slots=True)
class TargetProfile:
    """Rules for placing Q/DQ pairs.

    Attributes:
        name: Name on the command line.
        activation: Integer grid of activations; weights are always symmetric per-channel INT8.
        weighted_ops: Operators with a constant weight whose input and weight are quantized.
        joint_ops: Operators quantized on every input and on the output, so that integer kernels run end to end.
        quantize_outputs: Whether outputs of weighted operators are quantized too.
        quantize_skip: Whether the skip branch of a residual Add is quantized, so that the addition can fuse into
            the other branch's convolution.
        bias: Type of biases.
    """

    name: str
    activation: Scheme
    weighted_ops: frozenset[str]
    joint_ops: frozenset[str]
    quantize_outputs: bool
    quantize_skip: bool
    bias: BiasType


TENSORRT = TargetProfile(
    name="tensorrt",
    activation=INT8_SYMMETRIC,
    weighted_ops=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    joint_ops=frozenset(),
    quantize_outputs=False,
    quantize_skip=True,
    bias=BiasType.FLOAT,
)
"""TensorRT's rules: symmetric INT8, zero-points 0, inputs of weighted operators only, float bias."""

ONNXRUNTIME = TargetProfile(
    name="onnxruntime",
    activation=UINT8_AFFINE,
    weighted_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    joint_ops=frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat"}),
    quantize_outputs=True,
    quantize_skip=False,
    bias=BiasType.INT32,
)
"""ONNX Runtime's CPU kernels: UINT8 activations with zero-point, quantized on both sides, INT32 bias."""

TARGETS = {target.name: target for target in (TENSORRT, ONNXRUNTIME)}
