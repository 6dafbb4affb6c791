"""Tensors of an ONNX model where they lie: walking over them, their sizes, and reading them without loading a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from quantlab.errors import ModelError
from quantlab.graph.external import ExternalLocation, is_external

FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
"""Element types whose NaN and infinities are looked for."""

_TWO_BIT_TYPES = frozenset(value for name, value in TensorProto.DataType.items() if name in {"INT2", "UINT2"})
_FOUR_BIT_TYPES = frozenset(
    value for name, value in TensorProto.DataType.items() if name in {"INT4", "UINT4", "FLOAT4E2M1"}
)
_PACKED_TYPES = _TWO_BIT_TYPES | _FOUR_BIT_TYPES


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Graphs in the attributes of a node (``If``, ``Loop``, ``Scan``), outermost only."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def graph_tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """All stored tensors of a graph and its subgraphs, initializers and attributes, each with a name for people."""
    for initializer in graph.initializer:
        yield initializer.name, initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield node.output[0] if node.op_type == "Constant" else f"{node.name}.{attribute.name}", attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from ((f"{node.name}.{attribute.name}", tensor) for tensor in attribute.tensors)
        for inner in subgraphs(node):
            yield from graph_tensors(inner)


def model_tensors(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """All stored tensors of a model, including those of its local functions."""
    yield from graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield f"{function.name}.{node.name}.{attribute.name}", attribute.t


def element_count(tensor: TensorProto) -> int:
    """Number of elements; 1 for a scalar."""
    return math.prod(tensor.dims)


def payload_bytes(tensor: TensorProto) -> int:
    """Bytes that the tensor's elements take (packed types rounded up); 0 for strings and unknown types."""
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    if tensor.data_type in _PACKED_TYPES:
        bits = 2 if tensor.data_type in _TWO_BIT_TYPES else 4
        return -(-element_count(tensor) * bits // 8)
    return element_count(tensor) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def read_tensor(tensor: TensorProto, folder: Path | None) -> NDArray[np.generic]:
    """Elements of a tensor, read-only where they can be viewed in place.

    Args:
        tensor: An initializer or tensor attribute of any type; ``bfloat16`` and ``float8`` come as `ml_dtypes` types.
        folder: Folder that external locations are relative to.

    Returns:
        Array of shape ``tensor.dims``; memory-mapped if the tensor is external, so that nothing is read until used.

    Raises:
        ModelError: If the tensor is malformed, or external and its file is missing, too short or outside ``folder``.
    """
    if is_external(tensor):
        location = ExternalLocation.of(tensor, payload_bytes(tensor))
        file = location.resolve(folder)
        if tensor.data_type not in _PACKED_TYPES:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if element_count(tensor) == 0:
                return np.zeros(tuple(tensor.dims), dtype)
            raw = np.memmap(file, np.uint8, "r", offset=location.offset, shape=(location.length,))
            return raw.view(dtype).reshape(tuple(tensor.dims))
        inline = TensorProto()
        inline.CopyFrom(tensor)
        make_inline(inline, folder)
        tensor = inline
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as cause:
        raise ModelError(
            f"tensor {tensor.name!r} is malformed",
            got=str(cause),
            expected=f"{element_count(tensor)} elements of {type_name(tensor.data_type)}",
            hint="export the model again",
        ) from cause


def make_inline(tensor: TensorProto, folder: Path | None) -> None:
    """Replace a tensor's external reference by its bytes, in place.

    Raises:
        ModelError: As for `read_tensor`.
    """
    location = ExternalLocation.of(tensor, payload_bytes(tensor))
    file = location.resolve(folder)
    with file.open("rb") as stream:
        stream.seek(location.offset)
        tensor.raw_data = stream.read(location.length)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


def raw_bytes(tensor: TensorProto, folder: Path | None) -> bytes | memoryview:
    """Little-endian bytes of a tensor as ``raw_data`` holds them, wherever it keeps them.

    Raises:
        ModelError: As for `read_tensor`.
    """
    if is_external(tensor):
        location = ExternalLocation.of(tensor, payload_bytes(tensor))
        file = location.resolve(folder)
        if location.length == 0:
            return b""
        return np.memmap(file, np.uint8, "r", offset=location.offset, shape=(location.length,)).data
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    array = read_tensor(tensor, folder)
    return onnx.numpy_helper.from_array(np.asarray(array), tensor.name).raw_data


def type_name(data_type: int) -> str:
    """Lower-case name of an ONNX element type, such as ``float16``."""
    try:
        return str(TensorProto.DataType.Name(data_type)).lower()
    except ValueError:
        return f"type {data_type}"
