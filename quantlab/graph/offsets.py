"""Constants that move through layers: added behind one layer's output, taken out of the next layer's bias.

Both rewrites that need this change a copy of a graph in place: initializers are replaced by others of their own, so
that nothing changes for other readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.skeleton import typed_graph

FloatArray = NDArray[np.float64]

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm", "LayerNormalization"})
_ABSORBERS = frozenset({"Conv", "Gemm", "MatMul"})


class GraphEdit:
    """A copy of a model's graph that is being changed.

    Attributes:
        proto: The copy.
        index: Its index at the start, with inferred shapes.
    """

    def __init__(self, model: Model) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(model.proto)
        self.index = GraphIndex(self.proto.graph, typed_graph(self.proto))
        self._model = model
        self._own: set[str] = set()
        self._shapes: dict[str, tuple[int | str | None, ...]] = {}
        self._before: dict[int, list[NodeProto]] = {}
        self._after: dict[int, list[NodeProto]] = {}

    def is_stored(self, name: str) -> bool:
        """Whether a tensor is a stored float32 constant."""
        return name in self.index.initializers and self.index.elem_type(name) == TensorProto.FLOAT

    def values(self, name: str) -> FloatArray:
        """Present values of an initializer, in float64, of its shape."""
        return np.array(tensor_array(self._model, self.index.initializers[name]), np.float64)

    def store(self, node: NodeProto, slot: int, values: FloatArray) -> None:
        """Make an input of a node a float32 constant; other readers of what it read before keep that."""
        while len(node.input) <= slot:
            node.input.append("")
        name = node.input[slot]
        array = np.ascontiguousarray(values, np.float32)
        if name in self._own or (name and self.index.uses(name) == 1):
            self.index.initializers[name].CopyFrom(numpy_helper.from_array(array, name))
        else:
            name = self.add_constant(name or f"{node.name}.{slot}", array)
            node.input[slot] = name
        self._own.add(name)

    def add_constant(self, base: str, values: NDArray[np.generic]) -> str:
        """A new initializer; its name."""
        name = self.index.fresh(base)
        stored = self.proto.graph.initializer.add()
        stored.CopyFrom(numpy_helper.from_array(values, name))
        self.index.initializers[name] = stored
        return name

    def insert_before(self, node: NodeProto, new: NodeProto) -> None:
        """Put a node before one of the graph's."""
        self._before.setdefault(id(node), []).append(new)

    def insert_after(self, node: NodeProto, new: NodeProto, *, first: bool = False) -> None:
        """Put a node behind one of the graph's: behind others that were put there, or before them."""
        others = self._after.setdefault(id(node), [])
        others.insert(0 if first else len(others), new)

    def declare(self, name: str, shape: tuple[int | str | None, ...]) -> None:
        """State the shape of a new float32 tensor."""
        self._shapes[name] = shape
        self.proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Shape of a tensor, new ones among them; see `GraphIndex.shape`."""
        return self._shapes.get(name) or self.index.shape(name)

    def finish(self) -> ModelProto:
        """The changed graph, without initializers that nothing reads any more; the edit ends with it."""
        graph = self.proto.graph
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += [*self._before.get(id(node), ()), node, *self._after.get(id(node), ())]
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        index = GraphIndex(graph)
        kept = [tensor for tensor in graph.initializer if index.uses(tensor.name)]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)
        return self.proto


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """A tensor that a layer makes, perhaps clipped behind it.

    Attributes:
        tensor: Its name.
        producer: The layer: a Conv, ConvTranspose, Gemm or LayerNormalization, or the Add of a constant.
        activation: The Relu or Clip between; None if there is none.
        low: Lower bound; minus infinity for none.
        high: Upper bound; infinity for none.
    """

    tensor: str
    producer: NodeProto
    activation: NodeProto | None
    low: float
    high: float


def find_bounded(edit: GraphEdit, tensor: str) -> Bounded | None:
    """What makes a float32 tensor, if that is a layer with a bias of its own, alone or with a Relu or Clip behind.

    None too if anything but the Relu or Clip reads what the layer makes, or if bounds or weights are not constants.
    """
    index = edit.index
    node = index.producer.get(tensor)
    if node is None or node.domain or not index.is_float(tensor):
        return None
    activation, low, high = None, -np.inf, np.inf
    if node.op_type in ("Relu", "Clip"):
        bounds = (0.0, np.inf) if node.op_type == "Relu" else _clip_bounds(edit, node)
        if bounds is None or index.uses(node.input[0]) != 1:
            return None
        activation, (low, high) = node, bounds
        node = index.producer.get(activation.input[0])
        if node is None or node.domain:
            return None
    return Bounded(tensor, node, activation, low, high) if _can_move(edit, node) else None


def _clip_bounds(edit: GraphEdit, node: NodeProto) -> tuple[float, float] | None:
    found = [-np.inf, np.inf]
    for slot, name in enumerate(node.input[1:]):
        if not name:
            continue
        if not edit.is_stored(name):
            return None
        value = edit.values(name)
        if value.size != 1:
            return None
        found[slot] = float(value.reshape(-1)[0])
    return (found[0], found[1]) if found[0] < found[1] else None


def _can_move(edit: GraphEdit, node: NodeProto) -> bool:
    if node.op_type == "Add":
        return len(node.input) == 2 and sum(name in edit.index.initializers for name in node.input) == 1 and (
            edit.is_stored(node.input[_constant_slot(edit, node)])
        )  # fmt: skip
    if node.op_type not in _BIASED or not edit.is_stored(node.input[1]):
        return False
    return len(node.input) < 3 or not node.input[2] or edit.is_stored(node.input[2])


def _constant_slot(edit: GraphEdit, node: NodeProto) -> int:
    return next(slot for slot, name in enumerate(node.input) if name in edit.index.initializers)


def add_to_output(edit: GraphEdit, node: NodeProto, amount: FloatArray | float) -> None:
    """Add a constant to what a layer makes.

    Args:
        edit: The graph.
        node: A Conv, ConvTranspose, Gemm, LayerNormalization or MatMul with a constant weight, or an Add of a constant.
        amount: One number, or one for each output channel, (N,); one number only for Add and LayerNormalization.
    """
    if node.op_type == "Add":
        slot = _constant_slot(edit, node)
        edit.store(node, slot, edit.values(node.input[slot]) + amount)
    elif node.op_type == "MatMul":
        _add_behind(edit, node, amount)
    else:
        has_bias = len(node.input) > 2 and bool(node.input[2])
        before = edit.values(node.input[2]) if has_bias else np.zeros(_bias_shape(edit, node))
        if node.op_type == "Gemm":
            before = before * attribute(node, "beta", 1.0)
            _set(node, "beta", None)
        edit.store(node, 2, before + amount)


def _add_behind(edit: GraphEdit, node: NodeProto, amount: FloatArray | float) -> None:
    """Into the Add of a constant that alone reads the product, else into a new one."""
    readers = edit.index.consumers.get(node.output[0], [])
    if edit.index.uses(node.output[0]) == 1 and readers and readers[0].op_type == "Add" and _can_move(edit, readers[0]):
        slot = _constant_slot(edit, readers[0])
        edit.store(readers[0], slot, edit.values(readers[0].input[slot]) + amount)
        return
    output = node.output[0]
    node.output[0] = edit.index.fresh(f"{output}_product")
    bias = edit.add_constant(f"{node.name}.bias", np.ascontiguousarray(amount, np.float32))
    add = helper.make_node("Add", [node.output[0], bias], [output], name=edit.index.fresh(f"{node.name}_bias"))
    edit.insert_after(node, add, first=True)  # it makes what others behind the node read
    shape = edit.shape(output)
    if shape is not None:
        edit.declare(node.output[0], shape)


def absorbs(edit: GraphEdit, node: NodeProto, tensor: str) -> bool:
    """Whether a node is a layer with a tensor as input and a constant weight, whose bias can take a constant."""
    if node.op_type not in _ABSORBERS or node.domain or list(node.input).count(tensor) != 1 or node.input[0] != tensor:
        return False
    if not edit.is_stored(node.input[1]) or not all(edit.is_stored(name) for name in node.input[2:] if name):
        return False
    if node.op_type == "MatMul":
        rank = len(edit.shape(tensor) or ())
        return len(edit.index.initializers[node.input[1]].dims) == 2 and rank >= 2
    return True


def input_sums(edit: GraphEdit, node: NodeProto) -> FloatArray:
    """What a layer makes of an input of ones, without its bias: one number an output channel, (N,).

    Of a convolution: away from its borders, if it pads.
    """
    weight = edit.values(node.input[1])
    if node.op_type == "Conv":
        return np.asarray(weight.sum(axis=tuple(range(1, weight.ndim))))
    if node.op_type == "Gemm":
        axis = 1 if attribute(node, "transB", 0) else 0
        return np.asarray(weight.sum(axis=axis) * attribute(node, "alpha", 1.0))
    return np.asarray(weight.sum(axis=0))


def _bias_shape(edit: GraphEdit, node: NodeProto) -> tuple[int, ...]:
    dims = tuple(int(dim) for dim in edit.index.initializers[node.input[1]].dims)
    if node.op_type == "LayerNormalization":
        return dims
    if node.op_type == "ConvTranspose":
        return (dims[1] * int(attribute(node, "group", 1)),)
    if node.op_type == "Gemm":
        return (dims[0 if attribute(node, "transB", 0) else 1],)
    return dims[:1]


def convolution_pads(edit: GraphEdit, node: NodeProto) -> tuple[int, ...] | None:
    """Zeros that a layer puts around its input: begins, then ends, of the spatial axes; all 0 if it is no convolution.

    None if they depend on a size that is not known, or are negative. ``SAME_UPPER`` and ``SAME_LOWER`` as ONNX defines
    them.
    """
    if node.op_type not in _CONVOLUTIONS:
        return ()
    kernel = [int(dim) for dim in edit.index.initializers[node.input[1]].dims[2:]]
    rank = len(kernel)
    found = {item.name: item for item in node.attribute}
    mode = found["auto_pad"].s.decode() if "auto_pad" in found else "NOTSET"
    if mode in ("", "NOTSET"):
        pads = tuple(int(pad) for pad in found["pads"].ints) if "pads" in found else ()
        pads = pads or (0,) * (2 * rank)
        return pads if len(pads) == 2 * rank and min(pads) >= 0 else None
    if mode == "VALID":
        return (0,) * (2 * rank)
    shape = edit.shape(node.input[0])
    if shape is None or len(shape) != rank + 2 or mode not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    strides = list(found["strides"].ints) if "strides" in found else [1] * rank
    dilations = list(found["dilations"].ints) if "dilations" in found else [1] * rank
    begins, ends = [], []
    for size, taps, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        if not isinstance(size, int):
            return None
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return (*begins, *ends)


def pad_explicitly(edit: GraphEdit, node: NodeProto, pads: tuple[int, ...], value: float, padded: str | None) -> str:
    """Put a Pad with a constant before a convolution that pads with zeros, which then pads no more.

    Args:
        edit: The graph.
        node: The convolution.
        pads: Its `convolution_pads`.
        value: What to pad with.
        padded: A tensor that was padded so before; None to make it.

    Returns:
        Name of the padded tensor.
    """
    source, rank = node.input[0], len(pads) // 2
    if padded is None:
        padded = edit.index.fresh(f"{source}_padded")
        full = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
        inputs = [
            source,
            edit.add_constant(f"{padded}_pads", full),
            edit.add_constant(f"{padded}_value", np.array(value, np.float32)),
        ]
        edit.insert_before(
            node, helper.make_node("Pad", inputs, [padded], name=edit.index.fresh(f"{padded}_pad"), mode="constant")
        )
        shape = edit.shape(source)
        if shape is not None and len(shape) == rank + 2:
            sizes = zip(shape[2:], pads[:rank], pads[rank:], strict=True)
            grown = tuple(size + a + b if isinstance(size, int) else None for size, a, b in sizes)
            edit.declare(padded, (*shape[:2], *grown))
    node.input[0] = padded
    _set(node, "auto_pad", None)
    _set(node, "pads", [0] * (2 * rank))
    return padded


def move_behind(edit: GraphEdit, tensor: str, amount: float, readers: Iterable[NodeProto]) -> str:
    """Put an Add of a constant behind a tensor that a node makes, and let some of its readers read that.

    Returns:
        Name of the sum.
    """
    moved = edit.index.fresh(f"{tensor}_shifted")
    constant = edit.add_constant(f"{moved}_by", np.array(amount, np.float32))
    add = helper.make_node("Add", [tensor, constant], [moved], name=edit.index.fresh(f"{moved}_add"))
    edit.insert_after(edit.index.producer[tensor], add)
    shape = edit.shape(tensor)
    if shape is not None:
        edit.declare(moved, shape)
    for node in readers:
        node.input[0] = moved
    return moved


def attribute(node: NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    found = next((item for item in node.attribute if item.name == name), None)
    if found is None:
        return default
    return float(helper.get_attribute_value(found))


def _set(node: NodeProto, name: str, value: list[int] | None) -> None:
    kept = [item for item in node.attribute if item.name != name]
    if value is not None:
        kept.append(helper.make_attribute(name, value))
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
