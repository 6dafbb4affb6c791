"""Running parts of two graphs side by side, layer after layer, without keeping all their activations.

`Walk` holds the values of a cut through a graph for a fixed set of samples. What a layer reads or makes is computed
from the cut; once a layer's weight is settled, the cut moves behind it if its values are small enough to be kept.
Samples are run in the same small batches whatever the caller's are, so that results never depend on these; several
batches at once, each on one thread, so that what is computed here does not depend on the number of threads either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from quantlab.calibrators.quantize import Parameters
from quantlab.datasets.lookahead import map_ahead
from quantlab.errors import CalibrationError
from quantlab.graph.cleanup import remove_dead
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.qdq import Quantized
from quantlab.graph.session import Optimization, first_line, open_proto
from quantlab.graph.tensors import read_tensor

Arrays = Mapping[str, NDArray[np.generic]]

PLAIN_PAIRS = {"session.disable_quant_qdq": "1"}
"""Session option with which ONNX Runtime computes pairs as they are written, whatever stands around them."""

MOST_AT_ONCE = 8
"""Batches that are computed at once, whatever the number of threads: each takes the memory of its activations."""


def float_weights(model: Model, quantized: ModelProto) -> ModelProto:
    """A Q/DQ graph with the numbers that its stored codes stand for in their place, under the same names."""
    proto = ModelProto()
    proto.CopyFrom(quantized)
    graph = proto.graph
    index = GraphIndex(graph)
    kept = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and all(name in index.initializers for name in node.input):
            value = _dequantized(model, index, node)
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            copy = NodeProto()
            copy.CopyFrom(node)
            kept.append(copy)
    del graph.node[:]
    graph.node.extend(kept)
    remove_dead(proto)
    return proto


def _dequantized(model: Model, index: GraphIndex, node: NodeProto) -> NDArray[np.float32]:
    codes, scale, zero = (
        np.asarray(read_tensor(index.initializers[name], model.data_folder), np.float32)
        for name in (*node.input, *[node.input[1]] * (3 - len(node.input)))
    )
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = -1
    offset = zero.reshape(shape if zero.size > 1 else []) if len(node.input) > 2 else np.float32(0)
    return np.asarray((codes - offset) * scale.reshape(shape if scale.size > 1 else []), np.float32)


def exact_weights(model: Model, quantized: ModelProto, layers: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """The floating-point weight of each quantized layer, by the initializer that it has in the quantized graph."""
    original = GraphIndex(model.proto.graph)
    ours = {node.name: node for node in quantized.graph.node}
    stored = {tensor.name for tensor in quantized.graph.initializer}
    found = {}
    for node in model.proto.graph.node:
        if node.name not in layers or node.name not in ours:
            continue
        for slot, name in enumerate(node.input):
            read = ours[node.name].input[slot]
            if name in original.initializers and read in stored and read != name:
                found[read] = np.asarray(tensor_array(model, original.initializers[name]), np.float32)
    return found


def activations_alone(model: Model, quantized: Quantized, proto: ModelProto) -> ModelProto:
    """A Q/DQ graph that was made of a model, with the floating-point weights in place of the quantized ones.

    Args:
        model: The floating-point model.
        quantized: What was made of it.
        proto: Its graph, or that graph with other scales.
    """
    plain = float_weights(model, proto)
    return with_values(plain, exact_weights(model, plain, {*quantized.layers, *quantized.kept}))


def with_values(proto: ModelProto, values: Mapping[str, NDArray[np.generic]]) -> ModelProto:
    """A copy with other values of some initializers."""
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return result


def with_grids(proto: ModelProto, grids: Mapping[str, Parameters]) -> ModelProto:
    """A copy of a Q/DQ graph with other scales and zero-points of some activations, where these are theirs alone."""
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    users: dict[str, set[str]] = {}
    for node in quantizers:
        for name in node.input[1:]:
            users.setdefault(name, set()).add(node.input[0])
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    values: dict[str, NDArray[np.generic]] = {}
    for node in quantizers:
        tensor, scale, zero = node.input
        if tensor in grids and users[scale] == users[zero] == {tensor}:
            kind = helper.tensor_dtype_to_np_dtype(stored[zero].data_type)
            values |= {scale: np.array(grids[tensor].scale, np.float32)}
            values |= {zero: np.array(grids[tensor].zero_point, kind)}
    return with_values(proto, values)


class Walk:
    """One graph, with the values of a cut through it.

    Attributes:
        index: Index of the graph.
        values: Initializers that were set, by name; they take the place of the graph's own.
    """

    def __init__(self, model: Model, proto: ModelProto, batches: Sequence[Arrays], threads: int) -> None:
        self.model, self.proto, self.threads = model, proto, min(threads, MOST_AT_ONCE)
        self.index = GraphIndex(proto.graph)
        self.values: dict[str, NDArray[np.generic]] = {}
        self.cut: list[dict[str, NDArray[np.generic]]] = [dict(batch) for batch in batches]
        self._position = {id(node): number for number, node in enumerate(proto.graph.node)}

    def put(self, initializer: str, value: NDArray[np.generic]) -> None:
        """Put a value in the place of an initializer."""
        self.values[initializer] = value

    def value(self, initializer: str) -> NDArray[np.generic]:
        """Value of an initializer."""
        if initializer in self.values:
            return self.values[initializer]
        return tensor_array(self.model, self.index.initializers[initializer])

    def runner(self, tensors: Sequence[str]) -> Callable[[int], dict[str, NDArray[np.generic]]]:
        """What gives the values of some tensors for a batch, by its number, until the cut moves or a value is put.

        It may be called from several threads at once. It raises `CalibrationError` if ONNX Runtime fails.
        """
        wanted = list(dict.fromkeys(tensors))
        stored = [name for name in wanted if name in self.cut[0]]
        computed = [name for name in wanted if name not in self.cut[0]]
        session, fed = self._session(computed) if computed else (None, [])

        def run(number: int) -> dict[str, NDArray[np.generic]]:
            batch = self.cut[number]
            result = {name: batch[name] for name in stored}
            if session is not None:
                try:
                    found = session.run(computed, {name: batch[name] for name in fed})
                except Exception as cause:  # onnxruntime's exceptions share no base class
                    raise CalibrationError("the model failed on calibration samples", got=first_line(cause)) from cause
                result.update(zip(computed, found, strict=True))
            return result

        return run

    def advance(self, unsettled: Collection[str], limit_bytes: int) -> bool:
        """Move the cut as far as it goes before the nodes of these names, if its values fit.

        Returns:
            Whether it was moved, or had nothing to move past.
        """
        border = self._border(frozenset(unsettled))
        if set(border) == set(self.cut[0]):
            return True
        run = self.runner(border)
        first = run(0)
        size = sum(value.nbytes for value in first.values()) * len(self.cut)
        if size > max(limit_bytes, sum(v.nbytes for batch in self.cut for v in batch.values())):
            return False
        self.cut[0] = first
        later = range(1, len(self.cut))
        for number, values in zip(later, map_ahead(run, later, self.threads, chunk=1), strict=True):
            self.cut[number] = values  # in the old one's place, so that there are not two cuts but for a few batches
        return True

    def depends(self, tensor: str, unsettled: Collection[str]) -> bool:
        """Whether a tensor is computed from the output of one of these nodes."""
        return tensor in self._behind(frozenset(unsettled))

    def _behind(self, unsettled: frozenset[str]) -> set[str]:
        found: set[str] = set()
        for node in self.proto.graph.node:
            inputs = (*node.input, *implicit_inputs(node))
            if node.name in unsettled or any(name in found for name in inputs):
                found.update(node.output)
        return found

    def _border(self, unsettled: frozenset[str]) -> list[str]:
        """Tensors before these nodes that they, or what comes after them, read; and outputs that are before all."""
        behind = self._behind(unsettled)
        border: dict[str, None] = {}
        for node in self.proto.graph.node:
            if any(name in behind for name in node.output):
                for name in (*node.input, *implicit_inputs(node)):
                    if name and name not in behind and name not in self.index.initializers:
                        border[name] = None
        return list(border)

    def _session(self, tensors: Sequence[str]) -> tuple[Any, list[str]]:
        """A session from the cut to some tensors, and the tensors of the cut that it reads."""
        needed: set[str] = set()
        fed: dict[str, None] = {}
        positions: set[int] = set()
        stack = list(tensors)
        while stack:
            name = stack.pop()
            if not name or name in needed:
                continue
            needed.add(name)
            if name in self.cut[0]:
                fed[name] = None
                continue
            node = self.index.producer.get(name)
            if node is None:
                continue
            position = self._position[id(node)]
            if position not in positions:
                positions.add(position)
                stack.extend((*node.input, *implicit_inputs(node)))
        proto = ModelProto()
        proto.ir_version = self.proto.ir_version
        proto.opset_import.extend(self.proto.opset_import)
        proto.functions.extend(self.proto.functions)
        graph = proto.graph
        graph.name = "part"
        graph.node.extend(self.proto.graph.node[position] for position in sorted(positions))
        for name in fed:
            kind = helper.np_dtype_to_tensor_dtype(self.cut[0][name].dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, [None] * self.cut[0][name].ndim))
        graph.output.extend(ValueInfoProto(name=name) for name in tensors)
        for name in sorted(needed & self.index.initializers.keys()):
            graph.initializer.append(self._initializer(name))
        session = open_proto(
            proto, self.model.data_folder, threads=1, optimize=Optimization.ALL, config=PLAIN_PAIRS,
            log_severity=4, error=CalibrationError, name=f"a part of model {self.model.name}",
        )  # fmt: skip
        return session, list(fed)

    def _initializer(self, name: str) -> TensorProto:
        if name in self.values:
            return numpy_helper.from_array(np.ascontiguousarray(self.values[name]), name)
        return self.index.initializers[name]
