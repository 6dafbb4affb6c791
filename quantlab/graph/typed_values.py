"""How large the values of a graph's tensors get, and what 16 bits make of its constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from quantlab.graph.half import SELECTING_OPS, HalfFormat
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array

_BOUNDED_OPS = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softsign", "Sin", "Cos"})
_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "Mean"})
_SATURATING = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Erf"})

_LARGEST_CODES: dict[int, float] = {
    TensorProto.INT8: 128.0,
    TensorProto.UINT8: 255.0,
    TensorProto.FLOAT8E4M3FN: 448.0,
    TensorProto.FLOAT8E5M2: 57344.0,
}


@dataclass(frozen=True, slots=True)
class Rounded:
    """What a 16-bit format makes of a constant.

    Attributes:
        largest: Largest finite magnitude.
        relative_error: Root of the sum of squared rounding errors over that of the squared values; at most half a unit
            in the last place (2^-11 for FP16) unless values are subnormal or vanish. 0 for a constant of zeros.
    """

    largest: float
    relative_error: float


class Values:
    """Magnitudes of tensors: measured, stored, or bounded by the operator that makes them.

    Args:
        model: The graph.
        index: Its index.
        half: The format.
        extremes: Largest measured magnitude by tensor.
    """

    def __init__(self, model: Model, index: GraphIndex, half: HalfFormat, extremes: Mapping[str, float]) -> None:
        self.model, self.index, self.half, self.extremes = model, index, half, extremes
        self._rounded: dict[str, Rounded] = {}
        self._bounds: dict[str, float | None] = {}

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """Value of an initializer, or None if the tensor is none."""
        stored = self.index.initializers.get(name)
        return None if stored is None else np.asarray(tensor_array(self.model, stored))

    def rounded(self, name: str) -> Rounded:
        """What the format makes of a float32 initializer. Cost: reads it once."""
        found = self._rounded.get(name)
        if found is None:
            value = np.asarray(tensor_array(self.model, self.index.initializers[name]), np.float32)
            found = self._rounded[name] = _rounded(value[np.isfinite(value)], self.half)
        return found

    def magnitude(self, tensor: str) -> float | None:
        """Largest magnitude that a tensor is known to reach, or a bound of it; None if nothing is known."""
        if tensor in self._bounds:
            return self._bounds[tensor]
        self._bounds[tensor] = None  # a cycle bounds nothing
        found = self.extremes.get(tensor)
        if found is None and tensor in self.index.initializers:
            found = self.rounded(tensor).largest if self.index.is_float(tensor) else None
        elif found is None:
            found = self._bound(tensor)
        self._bounds[tensor] = found
        return found

    def harmless(self, tensor: str) -> bool:
        """Whether overflow of a tensor changes nothing: all that read it saturate far below, as Relu does for -inf."""
        readers = self.index.consumers.get(tensor, ())
        if not readers or tensor in self.index.outputs:
            return False
        return all(
            reader.op_type in _SATURATING and reader.input[0] == tensor and self.magnitude(reader.output[0]) is not None
            for reader in readers
        )

    def _bound(self, tensor: str) -> float | None:
        node = self.index.producer.get(tensor)
        if node is None:
            return None
        if node.op_type in _BOUNDED_OPS:
            return 1.0
        if node.op_type == "DequantizeLinear":
            return self._dequantized(list(node.input))
        if node.op_type in SELECTING_OPS | _AVERAGES:
            read = [self.magnitude(name) for name in node.input if name and self.index.is_float(name)]
            return max((bound for bound in read if bound is not None), default=None) if None not in read else None
        return None

    def _dequantized(self, inputs: list[str]) -> float | None:
        scale = self.constant(inputs[1])
        codes = _LARGEST_CODES.get(self.index.elem_type(inputs[0]))
        if scale is None or codes is None or scale.size == 0:
            return None
        return float(np.max(np.abs(scale.astype(np.float64)))) * codes


def _rounded(value: NDArray[np.float32], half: HalfFormat) -> Rounded:
    largest = float(np.max(np.abs(value), initial=0.0))
    clipped = np.clip(value, -half.largest, half.largest)
    exact = clipped.astype(np.float64)
    error = half.round(clipped) - exact
    power = float(np.sum(exact**2))
    return Rounded(largest, float(np.sqrt(np.sum(error**2) / power)) if power > 0 else 0.0)
