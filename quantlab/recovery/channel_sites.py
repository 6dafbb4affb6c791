"""Where channels can be copied: tensors between a layer that makes channels and layers that mix them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from quantlab.calibrators.quantize import Parameters
from quantlab.graph.offsets import Bounded, GraphEdit, absorbs, attribute, convolution_pads, find_bounded
from quantlab.recovery.protocol import State
from quantlab.recovery.tail import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A layer that mixes or filters the channels of a tensor.

    Attributes:
        node: The layer.
        border: What lies around the tensor there; None if nothing does.
        source: The tensor that it reads: the one in question, or what a Pad made of it.
    """

    node: NodeProto
    border: float | None
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A tensor whose channels are copied.

    Attributes:
        bounded: The tensor, and the layer that makes it.
        grid: Parameters of its pair; None if it has none.
        share: Its share of the noise at the outputs.
    """

    bounded: Bounded
    grid: Parameters | None
    share: float

    @property
    def tensor(self) -> str:
        """Name of the tensor."""
        return self.bounded.tensor

    @property
    def step(self) -> float:
        """Step of its grid; 0 if it is not quantized."""
        return 0.0 if self.grid is None else self.grid.scale


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A place where channels can be copied.

    Attributes:
        stages: The tensor, and if a depthwise convolution reads it, what that makes.
        readers: The layers behind, which mix channels.
    """

    stages: tuple[Stage, ...]
    readers: tuple[Reader, ...]

    @property
    def tensor(self) -> str:
        """The first tensor."""
        return self.stages[0].tensor


def column_axis(node: NodeProto) -> int:
    """Axis of a weight's input channels, of a layer that mixes channels."""
    return 1 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else 0


def columns(edit: GraphEdit, node: NodeProto) -> FloatArray:
    """The weight with its input channels first: (C, ...)."""
    return np.moveaxis(edit.values(node.input[1]), column_axis(node), 0)


def find_sites(
    edit: GraphEdit, state: State, grids: Mapping[str, Parameters], shares: Mapping[str, float], least: float
) -> Iterator[Site]:
    """Places in graph order.

    Args:
        edit: The graph.
        state: Its state; layers whose weights are rounded already are left alone.
        grids: Parameters of the tensors that are quantized.
        shares: Of the noise at the outputs, by tensor; empty if not measured.
        least: Share that one of a place's tensors must have at least.
    """
    for node in edit.index.graph.node:
        if node.op_type not in ("Conv", "Gemm") or _group(node) != 1:
            continue
        first = _stage(edit, node, grids, shares)
        if first is None:
            continue
        stages, readers = [first], _readers(edit, first.tensor)
        if len(readers) == 1 and _is_depthwise(edit, readers[0].node):
            second = _stage(edit, readers[0].node, grids, shares)
            if second is None:
                continue
            stages, readers = [first, second], _readers(edit, second.tensor)
        nodes = [*(stage.bounded.producer for stage in stages), *(reader.node for reader in readers)]
        if not readers or not all(_mixes(edit, reader) for reader in readers):
            continue
        if any(node.input[1] in state.rounded for node in nodes):
            continue
        if any(stage.grid is not None and (stage.share >= least or not shares) for stage in stages):
            yield Site(tuple(stages), tuple(readers))


def _stage(
    edit: GraphEdit, producer: NodeProto, grids: Mapping[str, Parameters], shares: Mapping[str, float]
) -> Stage | None:
    tensor = producer.output[0]
    readers = edit.index.consumers.get(tensor, [])
    if (
        edit.index.uses(tensor) == 1
        and readers
        and readers[0].op_type in ("Relu", "Clip")
        and readers[0].input[0] == tensor
    ):
        tensor = readers[0].output[0]
    bounded = find_bounded(edit, tensor)
    if bounded is None or bounded.producer is not producer:
        return None
    names = [tensor, *(node.output[0] for node in edit.index.consumers.get(tensor, []) if node.op_type == "Pad")]
    grid = next((grids[name] for name in names if name in grids), None)
    return Stage(bounded, grid, max(shares.get(name, 0.0) for name in names))


def _readers(edit: GraphEdit, tensor: str, border: float | None = None) -> list[Reader]:
    """Layers that read a tensor, perhaps behind a Pad; none if anything else does."""
    if tensor in edit.index.outputs:
        return []
    found: list[Reader] = []
    for node in edit.index.consumers.get(tensor, []):
        if node.op_type == "Pad" and border is None and (value := _pad_value(edit, node, tensor)) is not None:
            behind = _readers(edit, node.output[0], value)
            if not behind:
                return []
            found += behind
            continue
        pads = convolution_pads(edit, node) if absorbs(edit, node, tensor) else None
        if pads is None or (any(pads) and border is not None):
            return []
        found.append(Reader(node, 0.0 if any(pads) else border, tensor))
    return found


def _pad_value(edit: GraphEdit, node: NodeProto, tensor: str) -> float | None:
    """The constant that a Pad writes around a tensor; None if it does anything else, such as adding channels."""
    mode = next((item.s for item in node.attribute if item.name == "mode"), b"constant")
    stored = edit.index.initializers
    if (
        node.domain
        or mode != b"constant"
        or node.input[0] != tensor
        or len(node.input) > 3
        or node.input[1] not in stored
    ):
        return None
    pads = edit.values(node.input[1])
    rank = pads.size // 2
    if pads.min(initial=0) < 0 or pads[:2].any() or pads[rank : rank + 2].any():
        return None
    if len(node.input) < 3 or not node.input[2]:
        return 0.0
    return float(edit.values(node.input[2]).reshape(-1)[0]) if edit.is_stored(node.input[2]) else None


def _group(node: NodeProto) -> int:
    return int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1


def _is_depthwise(edit: GraphEdit, node: NodeProto) -> bool:
    dims = edit.index.initializers[node.input[1]].dims
    return node.op_type == "Conv" and _group(node) == dims[0] and dims[1] == 1 and dims[0] > 1


def _mixes(edit: GraphEdit, reader: Reader) -> bool:
    """Whether a layer has a column of weights for each channel, axis 1, of what it reads."""
    if reader.node.op_type == "Conv":
        return _group(reader.node) == 1
    shape = edit.index.shape(reader.source)
    return shape is not None and len(shape) == 2 and not attribute(reader.node, "transA", 0)
