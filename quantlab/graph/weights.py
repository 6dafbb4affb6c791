"""Quantized weights and biases: codes stored as initializers, behind a DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from quantlab.calibrators.quantize import (
    INT8_WEIGHT,
    SMALLEST_SCALE,
    Parameters,
    Scheme,
    dequantize,
    quantize,
    weight_scales,
)
from quantlab.graph.index import GraphIndex
from quantlab.graph.layers import Layer, weight_axis
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.targets import BiasType

_INT32_LIMIT = float(2**30)


@dataclass(frozen=True, slots=True, eq=False)
class RoundedWeight:
    """A weight that was rounded by something better than each number to the nearest.

    Attributes:
        codes: INT8 codes, -127..127, of the weight's shape.
        scales: One positive float32 a channel of ``axis``.
        axis: Axis of the output channels.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    def values(self) -> NDArray[np.float32]:
        """The weight that the codes stand for, of its shape."""
        return dequantize(self.codes, self.scales.reshape(_along(self.axis, self.codes.ndim)), 0)


_Stored = tuple[str, NDArray[np.float32]]
"""Output of a DequantizeLinear, and the scales behind it."""


class WeightWriter:
    """Stores the quantized weights of a graph's layers; a weight that layers share is stored once.

    Attributes:
        before: DequantizeLinear nodes to put before the node of a position.
    """

    def __init__(
        self,
        model: Model,
        index: GraphIndex,
        scheme: Scheme,
        bias: BiasType,
        rounded: Mapping[str, RoundedWeight] = MappingProxyType({}),
    ) -> None:
        self.model, self.index, self.scheme, self.bias, self.rounded = model, index, scheme, bias, rounded
        self.before: dict[int, list[NodeProto]] = {}
        self._stored: dict[tuple[str, int], _Stored] = {}

    def write(self, layers: Sequence[Layer], parameters: Mapping[str, Parameters]) -> None:
        """Point the layers of a graph at quantized weights, and at INT32 biases where the target wants them.

        Args:
            layers: Layers; the ones whose weight is no initializer are left as they are.
            parameters: Parameters of the quantized activations.
        """
        weighted = [layer for layer in layers if self._name(layer) in self.index.initializers]
        needed = self._scales_for_biases(weighted, parameters)
        for layer in weighted:
            node, slot, name = layer.node, layer.weight or 0, self._name(layer)
            axis = self._axis(layer)
            bias = self._int32_bias(layer)
            if (name, axis) not in self._stored:
                self._stored[name, axis] = self._weight(layer.position, name, axis, needed.get((name, axis)))
            node.input[slot], scales = self._stored[name, axis]
            chosen = parameters.get(node.input[1 - slot])
            if bias is not None and chosen is not None:
                self._write_bias(layer, bias, scales, chosen)

    def _name(self, layer: Layer) -> str:
        return "" if layer.weight is None else str(layer.node.input[layer.weight])

    def _axis(self, layer: Layer) -> int:
        return weight_axis(layer.node, len(self.index.initializers[self._name(layer)].dims), layer.weight or 0)

    def _values(self, initializer: str) -> NDArray[np.float32]:
        return np.asarray(tensor_array(self.model, self.index.initializers[initializer]), np.float32)

    def _weight(self, position: int, name: str, axis: int, needed: NDArray[np.float64] | None) -> _Stored:
        found = self.rounded.get(name)
        fits = found is not None and found.axis == axis and self.scheme is INT8_WEIGHT
        if found is not None and fits and (needed is None or bool(np.all(found.scales >= needed))):
            return self._dequantized(position, f"{name}_int8", found.codes, found.scales, axis), found.scales
        if found is not None and fits and needed is not None:
            made = _with_wider(found, needed)
            return self._dequantized(position, f"{name}_int8", made.codes, made.scales, axis), made.scales
        weight = self._values(name) if found is None else found.values()
        scales = weight_scales(weight, axis, self.scheme)
        if needed is not None:
            others = tuple(i for i in range(weight.ndim) if i != axis)
            scales = _widened(scales, np.asarray(np.all(weight == 0.0, axis=others)), needed)
        codes = quantize(weight, scales.reshape(_along(axis, weight.ndim)), 0, self.scheme)
        suffix = "fp8" if self.scheme.floating else "int8"
        return self._dequantized(position, f"{name}_{suffix}", codes, scales, axis), scales

    def _int32_bias(self, layer: Layer) -> NDArray[np.float32] | None:
        """The bias, if the target wants it as INT32 and the operator adds it unscaled."""
        node = layer.node
        if self.bias is not BiasType.INT32 or node.op_type == "MatMul" or len(node.input) < 3:
            return None
        scaled = any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute)
        if scaled or node.input[2] not in self.index.initializers:
            return None
        bias = self._values(node.input[2])
        channels = self.index.initializers[self._name(layer)].dims[self._axis(layer)]
        return bias if bias.shape == (channels,) else None

    def _scales_for_biases(
        self, layers: Sequence[Layer], parameters: Mapping[str, Parameters]
    ) -> dict[tuple[str, int], NDArray[np.float64]]:
        """Smallest scales of weights at which the biases of all their layers fit INT32, by weight and axis."""
        needed: dict[tuple[str, int], NDArray[np.float64]] = {}
        for layer in layers:
            bias, chosen = self._int32_bias(layer), parameters.get(layer.node.input[layer.activations[0]])
            if bias is not None and chosen is not None:
                key = self._name(layer), self._axis(layer)
                own = np.abs(bias).astype(np.float64) / (_INT32_LIMIT * chosen.scale)
                needed[key] = np.maximum(needed.get(key, own), own)
        return needed

    def _write_bias(
        self, layer: Layer, bias: NDArray[np.float32], scales: NDArray[np.float32], chosen: Parameters
    ) -> None:
        combined = np.maximum(scales.astype(np.float64) * chosen.scale, SMALLEST_SCALE)
        combined = np.broadcast_to(combined, bias.shape).astype(np.float32)
        codes = np.clip(np.rint(bias / combined.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        base = f"{layer.node.input[2]}_int32"
        layer.node.input[2] = self._dequantized(layer.position, base, codes, combined, 0)

    def _dequantized(
        self, position: int, base: str, codes: NDArray[np.generic], scales: NDArray[np.float32], axis: int
    ) -> str:
        """Store constant codes and put a DequantizeLinear with zero-points 0 before a node; the name of its output."""
        stored = store_constant(self.index, base, codes)
        scale = store_constant(self.index, f"{base}_scale", scales)
        zero = store_constant(self.index, f"{base}_zero", np.zeros(scales.shape, codes.dtype))
        output = self.index.fresh(f"{base}_dq")
        node = helper.make_node("DequantizeLinear", [stored, scale, zero], [output], name=output, axis=axis)
        self.before.setdefault(position, []).append(node)
        return output


def _with_wider(weight: RoundedWeight, needed: NDArray[np.float64]) -> RoundedWeight:
    """A rounded weight whose channels that need a wider scale are rounded anew; the others keep their codes."""
    narrow = weight.scales < needed
    scales = np.where(narrow, np.nextafter(needed.astype(np.float32), np.float32(np.inf)), weight.scales)
    scales = scales.astype(np.float32)
    shape = _along(weight.axis, weight.codes.ndim)
    anew = quantize(weight.values(), scales.reshape(shape), 0, INT8_WEIGHT)
    return RoundedWeight(np.where(narrow.reshape(shape), anew, weight.codes), scales, weight.axis)


def _along(axis: int, rank: int) -> tuple[int, ...]:
    """Shape that lays one number a channel along an axis."""
    return tuple(-1 if i == axis else 1 for i in range(rank))


def _widened(scales: NDArray[np.float32], dead: NDArray[np.bool_], needed: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scales at which biases fit; that of a dead channel is free: the one that loses nothing of its bias."""
    free = dead & (needed > 0)
    widened = np.where(free, np.maximum(needed, SMALLEST_SCALE), np.maximum(scales, needed))
    return np.asarray(widened, np.float32)


def store_constant(index: GraphIndex, name: str, value: NDArray[np.generic]) -> str:
    """Append an initializer to an index's graph, under this name or one like it that is free; the name."""
    name = index.fresh(name)
    index.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return name
