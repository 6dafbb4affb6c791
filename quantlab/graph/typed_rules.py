"""Which nodes of a graph stay float32 when the rest becomes 16 bits, each with the reason.

What overflows is measured, not guessed: magnitudes come from calibration data. What loses precision is a short list:
operators whose kernels are defined by sums of many terms, squares or differences. Operators that ONNX, TensorRT and
ONNX Runtime define to accumulate in float32 whatever their type (convolutions, products, Softmax, LayerNormalization
with its ``stash_type``, GroupNormalization, InstanceNormalization) are not on it: to keep them would cost fusions,
attention among them, and buys nothing that shows in an output.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from quantlab.graph.half import SELECTING_OPS
from quantlab.graph.index import GraphIndex
from quantlab.graph.typed_slots import Slots
from quantlab.graph.typed_values import Values
from quantlab.precision import Precision

HEADROOM = 4.0
"""How much larger than any measured value a value may become before it overflows: two bits of the exponent.

Maxima grow slowly with the number of images: on the bundled models, those over 16 images are exceeded by those over
1,000 others by at most 2.3 times, those over 96 by 1.6 times (docs/adr/011-typed-graphs.md)."""

_LOSSY_OPS = {
    "CumSum": "it adds up along an axis, and each sum would be rounded",
    "CumProd": "it multiplies along an axis, and each product would be rounded",
    "ReduceProd": "it multiplies many values, and each product would be rounded",
    "ReduceL2": "it adds up squares, which leave the range of 16 bits before their root does",
    "ReduceSumSquare": "it adds up squares",
    "ReduceLogSum": "it takes the logarithm of a sum",
    "ReduceLogSumExp": "it adds up exponentials, which leave the range of 16 bits before their logarithm does",
    "LogSoftmax": "runtimes take the logarithm of probabilities, and small ones become zero in 16 bits",
    "LRN": "it adds up squares",
    "LpNormalization": "it adds up powers",
    "LpPool": "it adds up powers",
    "GlobalLpPool": "it adds up powers",
    "MeanVarianceNormalization": "it adds up squares",
    "Sin": "its argument is an angle, of which 16 bits lose the turns",
    "Cos": "its argument is an angle, of which 16 bits lose the turns",
    "Tan": "its argument is an angle, of which 16 bits lose the turns",
    "RoiAlign": "its boxes are coordinates in pixels",
    "Det": "it adds up products of opposite signs",
}
_GROWING_OPS = frozenset({"Exp", "Pow", "Reciprocal", "Sinh", "Cosh", "ReduceSum"})
_SENSITIVE_OPS = frozenset({"Sqrt", "Reciprocal", "Log", "Pow"})
_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "AveragePool"})
_FACTORS: dict[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Mul": (0, 1), "Div": (0, 1),
    "LayerNormalization": (1,), "GroupNormalization": (1,), "InstanceNormalization": (1,),
    "BatchNormalization": (1, 4), "PRelu": (1,),
}  # fmt: skip
"""Inputs by which an operator multiplies or divides: a rounding error there is one of the whole result."""

_FOLLOWING_OPS = SELECTING_OPS | {
    "Cast", "Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "NonZero", "IsNaN", "IsInf", "Sign",
}  # fmt: skip
"""Operators that gain nothing from being float32, unless everything around them is: then casts are saved."""

_FOLLOWS = "it only moves or compares float32 values"


@dataclass(frozen=True, slots=True)
class Network:
    """What the rules look at.

    Attributes:
        index: Index of the graph.
        slots: What may become 16 bits, by position of the node.
        values: Magnitudes and constants.
        asked: Names of the nodes that the caller keeps.
    """

    index: GraphIndex
    slots: Sequence[Slots]
    values: Values
    asked: Collection[str]


def nodes_to_keep(network: Network) -> dict[int, str]:
    """Positions of the nodes that stay float32, with the reason of each, details in brackets."""
    return _Classifier(network).classify()


class _Classifier:
    """The rules, applied in turn; the first that applies gives the reason."""

    def __init__(self, network: Network) -> None:
        self.index, self.slots, self.values = network.index, network.slots, network.values
        self.asked = network.asked
        self.half = network.values.half
        self.nodes = list(network.index.graph.node)
        self.positions = {id(node): position for position, node in enumerate(self.nodes)}
        self.limit = self.half.largest / HEADROOM
        fp16 = self.half.precision is Precision.FP16
        self.name = self.half.precision.value.upper()
        self.smallest_normal = 2.0**-14 if fp16 else 2.0**-126
        self.significand = 11 if fp16 else 8
        self.kept: dict[int, str] = {}

    def classify(self) -> dict[int, str]:
        for position, node in enumerate(self.nodes):
            reason = self._reason(position, node)
            if reason is not None:
                self.kept[position] = reason
        self._keep_normalizations()
        self._keep_guards()
        self._keep_followers()
        return dict(sorted(self.kept.items()))

    def _keep(self, node: NodeProto, reason: str) -> None:
        position = self.positions[id(node)]
        if self.slots[position].convertible:
            self.kept.setdefault(position, reason)

    def _reason(self, position: int, node: NodeProto) -> str | None:
        slots = self.slots[position]
        if not slots.convertible:
            return slots.obstacle
        if node.name in self.asked:
            return "asked for"
        if node.op_type in _LOSSY_OPS:
            return _LOSSY_OPS[node.op_type]
        return next(
            (
                reason
                for rule in (self._constants, self._magnitudes, self._sums, self._growth)
                for reason in rule(node, slots)
            ),
            None,
        )

    def _constants(self, node: NodeProto, slots: Slots) -> Iterator[str]:
        for i in sorted(slots.inputs):
            name = node.input[i]
            if name not in self.index.initializers:
                continue
            found = self.values.rounded(name)
            if found.largest > self.half.largest and node.op_type not in ("Clip", "Max", "Min"):
                yield f"a constant beyond {self.name}'s largest value ({name} reaches {found.largest:.3g})"
            if i in _FACTORS.get(node.op_type, ()) and self._vanishes(name):
                yield f"a constant too small for {self.name} ({name} loses {found.relative_error:.2g} of its values)"

    def _vanishes(self, name: str) -> bool:
        """Whether rounding loses more of a constant than it can of normal numbers: twice half a unit."""
        return self.values.rounded(name).relative_error > 2.0 ** (1 - self.significand)

    def _magnitudes(self, node: NodeProto, slots: Slots) -> Iterator[str]:
        for name in self._half_tensors(node, slots):
            if name in self.index.initializers:
                continue
            found = self.values.magnitude(name)
            if found is None:
                continue
            if not found <= self.limit:
                yield f"values beyond 1/{HEADROOM:g} of {self.name}'s largest ({name} reaches {found:.4g})"
            if 0 < found < self.smallest_normal and name in self.values.extremes:
                yield f"values that are all subnormal in {self.name} ({name} stays below {found:.2g})"

    def _sums(self, node: NodeProto, slots: Slots) -> Iterator[str]:
        if node.op_type not in _SUMS or not slots.outputs:
            return
        n = self._terms(node)
        if n is None:
            yield "it sums over axes of unknown size"
        elif n > 2**self.significand:
            yield f"a {self.name} sum of more than {2**self.significand:,} ones stops growing (it sums {n:,} values)"
        elif node.op_type != "ReduceSum":
            found = self.values.magnitude(node.output[0])
            if found is not None and found * n > self.half.largest:
                yield f"the sum behind its mean is beyond {self.name}'s largest value (it reaches {found * n:.3g})"

    def _terms(self, node: NodeProto) -> int | None:
        """How many values each result sums up."""
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if "kernel_shape" in attributes:
            return math.prod(int(size) for size in attributes["kernel_shape"].ints)
        shape = self.index.shape(node.input[0])
        if shape is None:
            return None
        if node.op_type == "GlobalAveragePool":
            axes: Sequence[int] = range(2, len(shape))
        elif "axes" in attributes:
            axes = list(attributes["axes"].ints)
        elif len(node.input) > 1 and node.input[1]:
            stored = self.values.constant(node.input[1])
            if stored is None:
                return None
            axes = [int(axis) for axis in stored.reshape(-1)]
        else:
            noop = "noop_with_empty_axes" in attributes and attributes["noop_with_empty_axes"].i
            axes = [] if noop else range(len(shape))
        sizes = [size for size in (shape[axis] for axis in axes) if isinstance(size, int)]
        return math.prod(sizes) if len(sizes) == len(axes) else None

    def _growth(self, node: NodeProto, slots: Slots) -> Iterator[str]:
        unmeasured = slots.outputs and self.values.magnitude(node.output[0]) is None
        if node.op_type in _GROWING_OPS and unmeasured and self.half.precision is Precision.FP16:
            yield f"it makes large values of small ones, and how large was not measured ({node.output[0]})"

    def _keep_normalizations(self) -> None:
        """Keep normalizations that are written out: the mean of squares, its root, and what is divided by it."""
        reason = "part of a normalization: squares leave the range of 16 bits, their mean sums up rounding errors"
        for node in self.nodes:
            if node.op_type != "Sqrt" and not self._is_root(node):
                continue
            chain = self._variance(node)
            if not chain:
                continue
            for member in (*chain, node, *self._divisions(node.output[0])):
                self._keep(member, reason)

    def _is_root(self, node: NodeProto) -> bool:
        if node.op_type != "Pow":
            return False
        exponent = self.values.constant(node.input[1])
        return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) in (0.5, -0.5)

    def _variance(self, root: NodeProto) -> list[NodeProto]:
        """Nodes from the squares to the root, and the difference that is squared; empty if it is no such root."""
        chain: list[NodeProto] = []
        node = self.index.producer.get(root.input[0])
        while node is not None and node.op_type in ("Add", "Clip", "Max") and len(chain) < 3:
            chain.append(node)
            data = [name for name in node.input if name and name not in self.index.initializers]
            node = self.index.producer.get(data[0]) if len(data) == 1 else None
        if node is None or node.op_type not in ("ReduceMean", "ReduceSum", "GlobalAveragePool"):
            return []
        square = self.index.producer.get(node.input[0])
        if square is None or not self._is_square(square):
            return []
        chain += [node, square]
        difference = self.index.producer.get(square.input[0])
        if difference is not None and difference.op_type == "Sub":
            chain.append(difference)
            mean = self.index.producer.get(difference.input[1])
            if mean is not None and mean.op_type in ("ReduceMean", "GlobalAveragePool"):
                chain.append(mean)
        return chain

    def _is_square(self, node: NodeProto) -> bool:
        if node.op_type == "Mul":
            return bool(node.input[0] == node.input[1])
        exponent = self.values.constant(node.input[1]) if node.op_type == "Pow" else None
        return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) in (2.0,)

    def _divisions(self, tensor: str) -> Iterator[NodeProto]:
        """Nodes that divide by a tensor: a Div, or a Reciprocal and the products with it."""
        for reader in self.index.consumers.get(tensor, ()):
            if reader.op_type in ("Div", "Mul"):
                yield reader
            elif reader.op_type == "Reciprocal":
                yield reader
                yield from self._divisions(reader.output[0])

    def _keep_guards(self) -> None:
        """Keep a constant that keeps a divisor from zero, and what divides by it, where the constant is too small."""
        for position, node in enumerate(self.nodes):
            if not self.slots[position].convertible or not self.slots[position].outputs:
                continue
            factors = _FACTORS.get(node.op_type, ())
            guards = [
                name
                for i, name in enumerate(node.input)
                if i in self.slots[position].inputs
                and i not in factors
                and name in self.index.initializers
                and self._vanishes(name)
            ]
            readers = list(self._sensitive(node.output[0])) if guards else []
            for member in (node, *readers) if readers else ():
                self._keep(member, f"what keeps a divisor from zero is too small for {self.name} ({guards[0]})")
        for node in self.nodes:
            if node.op_type == "Log" and self.slots[self.positions[id(node)]].convertible:
                self._keep_logarithm(node)

    def _sensitive(self, tensor: str) -> Iterator[NodeProto]:
        for reader in self.index.consumers.get(tensor, ()):
            if reader.op_type in _SENSITIVE_OPS:
                yield reader
                yield from self._sensitive(reader.output[0])
            elif reader.op_type == "Div" and reader.input[1] == tensor:
                yield reader

    def _keep_logarithm(self, node: NodeProto) -> None:
        reason = "small values become zero in 16 bits, and their logarithm infinite"
        producer = self.index.producer.get(node.input[0])
        self._keep(node, reason)
        if producer is not None and producer.op_type in ("Softmax", "Sigmoid", "Exp", "Add", "Clip", "Max", "Div"):
            self._keep(producer, reason)

    def _keep_followers(self) -> None:
        """Keep operators that gain nothing from 16 bits and have float32 on all sides: no casts are needed then."""
        floats = set(self.index.inputs) | {
            name
            for position, node in enumerate(self.nodes)
            for i, name in enumerate(node.output)
            if position in self.kept or i not in self.slots[position].outputs
        }
        forward: set[int] = set()
        for position, node in enumerate(self.nodes):
            if position in self.kept or node.op_type not in _FOLLOWING_OPS or not self.slots[position].convertible:
                continue
            read = [node.input[i] for i in self.slots[position].inputs]
            if all(name in floats or name in self.index.initializers for name in read):
                forward.add(position)
                floats.update(node.output)
        for position in sorted(forward, reverse=True):
            node = self.nodes[position]
            outputs = [node.output[i] for i in self.slots[position].outputs]
            if all(self._read_as_float(name) for name in outputs):
                self.kept[position] = _FOLLOWS

    def _read_as_float(self, tensor: str) -> bool:
        for reader in self.index.consumers.get(tensor, ()):
            position = self.positions[id(reader)]
            slots = self.slots[position]
            if position not in self.kept and any(reader.input[i] == tensor for i in slots.inputs):
                return False
        return True

    def _half_tensors(self, node: NodeProto, slots: Slots) -> Iterator[str]:
        yield from (node.input[i] for i in sorted(slots.inputs))
        yield from (node.output[i] for i in sorted(slots.outputs))


def half_tensors(network: Network, kept: Mapping[int, str]) -> Iterator[str]:
    """Names of the activations that become 16 bits, in graph order, some more than once."""
    for position, node in enumerate(network.index.graph.node):
        if position in kept:
            continue
        slots = network.slots[position]
        names = [node.input[i] for i in sorted(slots.inputs)] + [node.output[i] for i in sorted(slots.outputs)]
        yield from (name for name in names if name not in network.index.initializers)


__all__ = ["HEADROOM", "Network", "half_tensors", "nodes_to_keep"]
