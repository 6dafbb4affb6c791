"""What a network tells of the ranges of its tensors before any data are seen."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from onnx import NodeProto

from quantlab.calibrators.cache_lint import NetworkTensors
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.original import float_activations, value_classes
from quantlab.graph.tensors import read_tensor

_LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "Sigmoid": 1.0,
        "HardSigmoid": 1.0,
        "Tanh": 1.0,
        "Softmax": 1.0,
        "Softsign": 1.0,
        "Erf": 1.0,
        "Sin": 1.0,
        "Cos": 1.0,
    }
)

_SHRINKING_OPS = frozenset(
    {"Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout", "Reshape",
     "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"}
)  # fmt: skip
"""Operators none of whose outputs exceeds the largest magnitude of their first input."""


def network_tensors(model: Model) -> NetworkTensors:
    """Names, constants, equal tensors and bounds of a model, for the linter of calibration caches."""
    index = GraphIndex(model.proto.graph)
    names = float_activations(model.proto)
    limits: dict[str, float] = {}
    within: dict[str, str] = {}
    for name in names:
        node = index.producer.get(name)
        if node is None or node.domain or node.output[0] != name:
            continue
        limit = _clip_limit(model, index, node) if node.op_type == "Clip" else _LIMITS.get(node.op_type)
        if limit is not None:
            limits[name] = limit
        if node.op_type in _SHRINKING_OPS and (node.op_type != "Clip" or _holds_zero(model, index, node)):
            within[name] = node.input[0]
    return NetworkTensors(names, frozenset(index.initializers), value_classes(model.proto), limits, within)


def _bounds(model: Model, index: GraphIndex, node: NodeProto) -> tuple[float | None, float | None]:
    """Constant bounds of a ``Clip``: attributes before opset 11, inputs after; None where it has none."""
    found: dict[str, float | None] = {"min": None, "max": None}
    for attribute in node.attribute:
        if attribute.name in found:
            found[attribute.name] = float(attribute.f)
    for slot, key in ((1, "min"), (2, "max")):
        name = node.input[slot] if len(node.input) > slot else ""
        if name in index.initializers:
            value = read_tensor(index.initializers[name], model.data_folder)
            found[key] = float(np.asarray(value, np.float64).reshape(-1)[0]) if value.size else None
        elif name and (producer := index.producer.get(name)) is not None and producer.op_type == "Constant":
            tensors = [attribute.t for attribute in producer.attribute if attribute.name == "value"]
            value = read_tensor(tensors[0], model.data_folder) if tensors else np.zeros(0)
            found[key] = float(np.asarray(value, np.float64).reshape(-1)[0]) if value.size else None
    return found["min"], found["max"]


def _clip_limit(model: Model, index: GraphIndex, node: NodeProto) -> float | None:
    low, high = _bounds(model, index, node)
    if low is None or high is None:
        return None
    limit = max(abs(low), abs(high))
    return limit if 0.0 < limit < float("inf") else None


def _holds_zero(model: Model, index: GraphIndex, node: NodeProto) -> bool:
    """Whether a ``Clip`` lets 0 through: otherwise it moves small values away from it."""
    low, high = _bounds(model, index, node)
    return (low is None or low <= 0.0) and (high is None or high >= 0.0)
