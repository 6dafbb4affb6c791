"""A weighted layer as a matrix product: its weight as rows, its input as columns of numbers that meet them.

Every convolution and product is ``y = W x`` for some rows ``x`` of its input: patches of a convolution, zero-filled
ones of a transposed convolution, the last axis of a product. Statistics over such rows decide how a weight is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from quantlab.graph.layers import Layer, weight_axis

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a layer reads its input.

    Attributes:
        op_type: Its operator.
        weight_shape: Shape of the weight.
        axis: Axis of the weight's output channels.
        slot: Input slot of the weight.
        groups: Groups; 1 for products.
        strides: By spatial axis; empty for products, as the others.
        dilations: By spatial axis.
        pads: Before each spatial axis, then after each.
        output_padding: Of a transposed convolution.
        transposed_input: Whether rows of the input run along its last but one axis.
        transposed_output: Whether rows of the output do.
    """

    op_type: str
    weight_shape: tuple[int, ...]
    axis: int
    slot: int
    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed_input: bool = False
    transposed_output: bool = False

    @property
    def inputs(self) -> int:
        """Inputs K of each output."""
        channels = self.weight_shape[self.axis] * (self.groups if self.op_type == "ConvTranspose" else 1)
        return math.prod(self.weight_shape) // max(channels, 1)

    @property
    def shared_scales(self) -> bool:
        """Whether channels of several groups have one scale: those of a grouped transposed convolution."""
        return self.op_type == "ConvTranspose" and self.groups > 1

    def matrix(self, weight: NDArray[np.generic]) -> NDArray[np.float64]:
        """The weight as (G, N, K) float64: groups, output channels of each, inputs of each."""
        values = np.asarray(weight, np.float64)
        if self.op_type == "Conv":
            return values.reshape(self.groups, values.shape[0] // self.groups, -1)
        if self.op_type == "ConvTranspose":
            taps = values[(slice(None), slice(None), *(slice(None, None, -1),) * (values.ndim - 2))]
            split = taps.reshape(self.groups, -1, *taps.shape[1:])
            return np.moveaxis(split, 2, 1).reshape(self.groups, taps.shape[1], -1)
        return (values if self.axis == 0 else values.T)[None]

    def restore(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """The weight of which `matrix` made this, (G, N, K)."""
        shape = self.weight_shape
        if self.op_type == "Conv":
            return matrix.reshape(shape)
        if self.op_type == "ConvTranspose":
            split = matrix.reshape(self.groups, shape[1], shape[0] // self.groups, *shape[2:])
            taps = np.moveaxis(split, 1, 2).reshape(shape)
            return np.asarray(taps[(slice(None), slice(None), *(slice(None, None, -1),) * (len(shape) - 2))])
        return np.asarray(matrix[0] if self.axis == 0 else matrix[0].T)

    def rows(self, x: FloatArray, positions: NDArray[np.int64]) -> FloatArray:
        """Rows of an input that meet the weight, (G, R, K).

        Args:
            x: Input of the layer.
            positions: Flat indices of the rows among all of this input, (R,), below `n_rows`.
        """
        if not self.strides:
            moved = np.swapaxes(x, -1, -2) if self.transposed_input else x
            return np.asarray(moved.reshape(-1, moved.shape[-1])[positions][None])
        taps, sizes, padded = self._padded(x)
        sample, *at = np.unravel_index(positions, (x.shape[0], *sizes))
        step = self.strides if self.op_type == "Conv" else (1,) * len(sizes)
        shape = (x.shape[0], *padded.shape[2:])
        first = np.ravel_multi_index((sample, *(i * stride for i, stride in zip(at, step, strict=True))), shape)
        across = [np.arange(tap) * dilation for tap, dilation in zip(taps, self.dilations, strict=True)]
        further = np.ravel_multi_index((np.zeros(taps, np.int64), *np.meshgrid(*across, indexing="ij")), shape)
        patches = _by_channel(padded, (first[:, None] + further.reshape(1, -1)).reshape(-1))
        split = patches.reshape(self.groups, -1, len(positions), math.prod(taps))
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(self.groups, len(positions), -1)

    def outputs(self, y: FloatArray, positions: NDArray[np.int64]) -> FloatArray:
        """Values that the layer makes of these rows, (G, R, N).

        Args:
            y: A tensor of the shape of the layer's output.
            positions: As for `rows`.
        """
        if not self.strides:
            moved = np.swapaxes(y, -1, -2) if self.transposed_output else y
            return np.asarray(moved.reshape(-1, moved.shape[-1])[positions][None])
        values = _by_channel(y, positions).reshape(self.groups, -1, len(positions))
        return np.ascontiguousarray(values.transpose(0, 2, 1))

    def n_rows(self, y_shape: Sequence[int]) -> int:
        """Rows that an output of a shape is made of."""
        if self.strides:
            return int(y_shape[0] * math.prod(y_shape[2:]))
        return int(math.prod(y_shape)) // int(y_shape[-2] if self.transposed_output else y_shape[-1])

    def _padded(self, x: FloatArray) -> tuple[tuple[int, ...], tuple[int, ...], FloatArray]:
        """Sizes of the kernel and of the output, and the input with its padding."""
        n = len(self.strides)
        taps = self.weight_shape[2:]
        spans = [dilation * (tap - 1) for dilation, tap in zip(self.dilations, taps, strict=True)]
        before, after, strides = list(self.pads[:n]), list(self.pads[n:]), self.strides
        if self.op_type == "ConvTranspose":  # zeros between the inputs make it a convolution with stride 1
            sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], strides, strict=True)]
            spread = np.zeros((*x.shape[:2], *sizes), np.float32)
            spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))] = x
            x, strides = spread, (1,) * n
            before = [span - pad for span, pad in zip(spans, before, strict=True)]
            more = self.output_padding or (0,) * n
            after = [span - pad + extra for span, pad, extra in zip(spans, after, more, strict=True)]
            cut = tuple(slice(max(0, -b), size - max(0, -a)) for b, a, size in zip(before, after, sizes, strict=True))
            x = x[(slice(None), slice(None), *cut)]
            before, after = [max(0, b) for b in before], [max(0, a) for a in after]
        if any(before) or any(after):
            x = np.pad(x, ((0, 0), (0, 0), *zip(before, after, strict=True)))
        outputs = tuple(
            (size - span - 1) // stride + 1 for size, span, stride in zip(x.shape[2:], spans, strides, strict=True)
        )
        return taps, outputs, x


def _by_channel(x: FloatArray, positions: NDArray[np.int64]) -> FloatArray:
    """Values of a tensor (N, C, ...) at flat positions among those of a channel, (C, P).

    Of many positions, one channel after the other, whose values lie together: several times as fast as all channels of
    a position at once.
    """
    flat = x.reshape(*x.shape[:2], -1)
    if len(positions) < x.shape[0] * flat.shape[2]:
        sample, at = np.divmod(positions, flat.shape[2])
        return np.asarray(flat[sample, :, at].T)
    return np.take(np.ascontiguousarray(flat.transpose(1, 0, 2)).reshape(x.shape[1], -1), positions, axis=1)


def layout_of(layer: Layer, weight_shape: tuple[int, ...]) -> Layout | None:
    """Layout of a layer with a constant weight; None for forms that are not known (``auto_pad``, stacked products)."""
    node, slot = layer.node, layer.weight or 0
    axis = weight_axis(node, len(weight_shape), slot)
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(node, weight_shape, axis)
    if len(weight_shape) != 2:
        return None
    first = slot == 0
    if node.op_type == "MatMul":
        return Layout("MatMul", weight_shape, axis, slot, transposed_input=first, transposed_output=first)
    flags = {attribute.name: bool(attribute.i) for attribute in node.attribute}
    turned = not flags.get("transB", False) if first else flags.get("transA", False)
    return Layout("Gemm", weight_shape, axis, slot, transposed_input=turned, transposed_output=first)


def _convolution(node: NodeProto, shape: tuple[int, ...], axis: int) -> Layout | None:
    n = len(shape) - 2
    ints = {a.name: tuple(a.ints) for a in node.attribute if a.type == AttributeProto.INTS}
    padding = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    if n < 1 or padding not in (b"", b"NOTSET") or "output_shape" in ints:
        return None
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    ones = (1,) * n
    return Layout(
        node.op_type, shape, axis, 1, groups, ints.get("strides", ones), ints.get("dilations", ones),
        ints.get("pads", (0,) * (2 * n)), ints.get("output_padding", ()),
    )  # fmt: skip
