"""The tensors of the user's own file beside those of the prepared graph.

TensorRT 10 calibrates before it fuses, so its cache names the tensors of the ONNX file as it was exported. Preparation
folds and removes some of them: the output of a convolution whose batch normalization was folded, of an ``Identity``, of
a repeated subexpression. Those that provably hold the values of a tensor that survived take its range; the rest must
be observed in the original graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from quantlab.graph.cleanup import name_nodes, strip_initializer_inputs
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.prepare import MIN_IR_VERSION, Prepared
from quantlab.graph.shapes import set_input_shapes, settle_inputs
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.tensors import read_tensor, subgraphs

_MOVING_OPS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
"""Operators whose output holds exactly the values of their first input, in another shape or order."""

_RANDOM_OPS = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
                         "Multinomial"})  # fmt: skip

_CONSTANT_OPERANDS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Concat", "Where", "PRelu"})
"""Operators that TensorRT feeds a constant to as a tensor of its own, which has a scale like any other."""


def float_activations(proto: ModelProto) -> tuple[str, ...]:
    """Names of all float32 tensors of a model that depend on its inputs, the inputs among them, in graph order."""
    typed = GraphIndex(typed_graph(proto))
    stored = {tensor.name for tensor in proto.graph.initializer}
    constant = set(stored)
    names = [value.name for value in proto.graph.input if value.name not in stored]
    for node in proto.graph.node:
        if all(name in constant or not name for name in node.input) and not any(True for _ in subgraphs(node)):
            constant.update(node.output)
        else:
            names += [name for name in node.output if name]
    return tuple(name for name in names if typed.elem_type(name) == TensorProto.FLOAT)


def constant_operands(original: Model) -> dict[str, NDArray[np.float32]]:
    """Stored float32 operands of element-wise operators, by name; their ranges need no data."""
    index = GraphIndex(original.proto.graph)
    found: dict[str, NDArray[np.float32]] = {}
    for node in original.proto.graph.node:
        if node.op_type not in _CONSTANT_OPERANDS:
            continue
        for name in node.input:
            tensor = index.initializers.get(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and name not in found:
                found[name] = np.asarray(read_tensor(tensor, original.data_folder), np.float32)
    return found


def value_classes(proto: ModelProto) -> dict[str, str]:
    """For every tensor of a model the first one that provably holds the same values, itself if there is none.

    Values are numbered: two tensors are the same if the same operator with the same attributes made them of the same
    tensors. ``Identity`` and inference ``Dropout`` copy; operators that only move values (`Reshape`, `Transpose`, ...)
    make a tensor of the same class, though not one that other operators could take in its place.
    """
    number: dict[str, int] = {}
    root: dict[int, int] = {}
    known: dict[object, int] = {}
    first: dict[int, str] = {}

    def numbered(key: object, of: int | None = None) -> int:
        if key not in known:
            known[key] = len(known)
            root[known[key]] = known[key] if of is None else root[of]
        return known[key]

    for name in [*(value.name for value in proto.graph.input), *(t.name for t in proto.graph.initializer)]:
        number[name] = numbered(("given", name))
    for position, node in enumerate(proto.graph.node):
        sources = tuple(number.setdefault(name, numbered(("outside", name))) if name else -1 for name in node.input)
        key = _key(node, position, sources)
        for i, name in enumerate(node.output):
            if not name:
                continue
            if i == 0 and _copies(node):
                number[name] = sources[0]
            elif i == 0 and node.op_type in _MOVING_OPS and not node.domain:
                number[name] = numbered((key, i), sources[0])
            else:
                number[name] = numbered((key, i))
    return {name: first.setdefault(root[value], name) for name, value in number.items()}


def _copies(node: NodeProto) -> bool:
    # From opset 12 on, a third input may switch training on.
    return not node.domain and (node.op_type == "Identity" or (node.op_type == "Dropout" and len(node.input) < 3))


def _key(node: NodeProto, position: int, sources: tuple[int, ...]) -> object:
    if node.op_type in _RANDOM_OPS or any(True for _ in subgraphs(node)):
        return ("once", position)
    attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
    return (node.domain, node.op_type, attributes, sources)


@dataclass(frozen=True, slots=True)
class OriginalTensors:
    """How the tensors of the original graph stand to those of the prepared one.

    Attributes:
        aliases: Tensors that the prepared graph has not, each with one of the prepared graph of the same values.
        missing: Tensors that the prepared graph has not and that must be observed, in graph order.
    """

    aliases: Mapping[str, str]
    missing: tuple[str, ...]


def original_only_tensors(original: Model, known: Collection[str]) -> OriginalTensors:
    """Float activations of the user's file beyond the ``known`` ones.

    Args:
        original: The model as the user gave it.
        known: Tensors whose ranges are there: those observed in the prepared graph, or those of a cache.
    """
    names = float_activations(original.proto)
    classes = value_classes(original.proto)
    member = {classes[name]: name for name in reversed(names) if name in known}
    absent = [name for name in names if name not in known]
    aliases = {name: member[classes[name]] for name in absent if classes[name] in member}
    return OriginalTensors(aliases, tuple(name for name in absent if name not in aliases))


def runnable_original(prepared: Prepared, original: Model) -> Prepared:
    """The original graph with the prepared one's input shapes and batch, unsimplified, so that it can be observed.

    Raises:
        ModelError: If the shapes do not settle, which preparing the same model would have said.
    """
    proto = ModelProto()
    proto.CopyFrom(original.proto)
    strip_initializer_inputs(proto)
    proto.ir_version = max(proto.ir_version, MIN_IR_VERSION)
    settled = settle_inputs(proto, {}, prepared.shapes)
    set_input_shapes(proto, settled.specs, dynamic_batch=prepared.fixed_batch is None)
    name_nodes(proto)
    typed = typed_graph(proto)
    if typed is not proto.graph:
        proto.graph.value_info.extend(typed.value_info)
    return replace(prepared, model=original.with_proto(proto))
