"""What each backend accepts of a quantized graph."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quantlab.calibrators.quantize import FP8_E4M3, INT8_SYMMETRIC, INT8_WEIGHT, UINT8_AFFINE, Scheme
from quantlab.errors import ConfigError


class QuantizationKind(StrEnum):
    """Which operands become 8-bit numbers, and of which format."""

    INT8 = "int8"
    """Activations and weights in 8-bit integers."""
    FP8 = "fp8"
    """Activations and weights in FP8 E4M3."""
    INT8_WEIGHTS = "int8-weights"
    """Weights in INT8, activations and arithmetic in floating point: a smaller file, not faster arithmetic."""


class BiasType(StrEnum):
    """How a weighted layer's bias is stored."""

    FLOAT = "float"
    """As it was; TensorRT adds it in floating point."""
    INT32 = "int32"
    """INT32 with scale = input scale * weight scale; ONNX Runtime fuses a layer only then."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Sizes of layers that stay in floating point because 8-bit kernels lose there.

    Quantizing such a layer costs two conversions and gains nothing. None means no limit; a size that is not known,
    such as a dynamic batch, is taken as large.

    Attributes:
        smallest_product: Smallest K and N of a matrix product: tensor cores work on tiles of 16.
        vectors: Whether products with a vector (M, N or K of 1) are quantized: they are bound by memory.
        smallest_channels: Smallest input and output channels (a group's, for the input) of a convolution.
        channel_multiple: Convolutions with fewer channels are quantized all the same where kernels pad them: the input
            or output channels a multiple of this, one of them ``smallest_channels`` or the input the graph's own, the
            kernel square; with groups, the output channels a multiple and every side of the kernel at least 3.
        largest_filter: Largest number of taps of a convolution's kernel, such as 9 for 3x3.
        longest_sequence: Largest K and N of a product of two activations, as in attention.
        largest_head: Largest min(K, N) of a product of two activations: the size of an attention head.
    """

    smallest_product: int = 1
    vectors: bool = True
    smallest_channels: int = 1
    channel_multiple: int | None = None
    largest_filter: int | None = None
    longest_sequence: int | None = None
    largest_head: int | None = None


NO_LIMITS = SizeLimits()
"""Every layer is quantized, however small."""


@dataclass(frozen=True, slots=True)
class TargetProfile:
    """Rules for placing Q/DQ pairs.

    Attributes:
        name: Name on the command line.
        activation: Integer grid of activations; weights are always symmetric per-channel INT8.
        weighted_ops: Operators with a constant weight whose input and weight are quantized.
        joint_ops: Operators quantized on every input and on the output, so that integer kernels run end to end, where
            every input comes from the `output_ops` and not from other weighted operators.
        output_ops: Weighted operators whose output is quantized too; those of the others stay in floating point.
        skip_ops: Operators that fuse with a residual Add behind them; the Add's other input is quantized then, so that
            the sum can be written in 8 bits.
        free_products: Whether a matrix product may also have its weight first, or two activations.
        shared_scale_ops: Operators that only move values: a quantized tensor behind one shares its parameters with the
            quantized tensor before it, so that the pair can be moved across and no value is converted twice.
        bias: Type of biases.
        int8_limits: Sizes of layers that INT8 leaves out.
        fp8_limits: Sizes of layers that FP8 leaves out; None if the target has no FP8.
    """

    name: str
    activation: Scheme
    weighted_ops: frozenset[str]
    joint_ops: frozenset[str]
    output_ops: frozenset[str]
    skip_ops: frozenset[str]
    free_products: bool
    shared_scale_ops: frozenset[str]
    bias: BiasType
    int8_limits: SizeLimits
    fp8_limits: SizeLimits | None

    def limits(self, kind: QuantizationKind) -> SizeLimits:
        """Sizes of layers that a kind leaves out.

        Raises:
            ConfigError: If the target does not have the kind.
        """
        if kind is QuantizationKind.INT8_WEIGHTS:
            return NO_LIMITS
        chosen = self.int8_limits if kind is QuantizationKind.INT8 else self.fp8_limits
        if chosen is None:
            raise ConfigError(
                f"target {self.name} has no {kind} quantization",
                expected="int8 or int8-weights",
                hint="choose another precision, or the target tensorrt",
            )
        return chosen

    def activation_scheme(self, kind: QuantizationKind) -> Scheme:
        """Grid of activations."""
        return FP8_E4M3 if kind is QuantizationKind.FP8 else self.activation


def weight_scheme(kind: QuantizationKind) -> Scheme:
    """Grid of weights, the same for every target."""
    return FP8_E4M3 if kind is QuantizationKind.FP8 else INT8_WEIGHT


MOVING_OPS = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators whose outputs hold values of their inputs and nothing else."""

TENSORRT = TargetProfile(
    name="tensorrt",
    activation=INT8_SYMMETRIC,
    weighted_ops=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    joint_ops=frozenset(),
    output_ops=frozenset(),
    skip_ops=frozenset({"Conv", "ConvTranspose"}),
    free_products=True,
    shared_scale_ops=MOVING_OPS,
    bias=BiasType.FLOAT,
    int8_limits=SizeLimits(
        smallest_product=16, vectors=False, smallest_channels=16, channel_multiple=8, longest_sequence=512
    ),
    fp8_limits=SizeLimits(
        smallest_product=16, vectors=False, smallest_channels=17, largest_filter=32, largest_head=256
    ),
)
"""TensorRT's rules: symmetric INT8, zero-points 0, inputs of weighted operators only, float bias.

The size limits are those of NVIDIA's ModelOpt (``modelopt/onnx/quantization/graph_utils.py``).
"""

ONNXRUNTIME = TargetProfile(
    name="onnxruntime",
    activation=UINT8_AFFINE,
    weighted_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    joint_ops=frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat"}),
    output_ops=frozenset({"Conv"}),
    skip_ops=frozenset(),
    free_products=False,
    shared_scale_ops=frozenset(),
    bias=BiasType.INT32,
    int8_limits=NO_LIMITS,
    fp8_limits=None,
)
"""ONNX Runtime's CPU kernels: UINT8 activations with zero-point, INT32 bias; convolutions, and what lies between them,
quantized on both sides. Matrix products give floating-point numbers, for which there are kernels as fast: what follows
in a transformer (biases, GELU, residual sums) has none that is worth its noise."""

TARGETS = {target.name: target for target in (TENSORRT, ONNXRUNTIME)}
