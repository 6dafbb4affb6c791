"""Writing a model so that it is whole or absent, with its weights inside or, when large, in a data file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from quantlab.files import replacing
from quantlab.graph.external import is_external
from quantlab.graph.tensors import graph_tensors, make_inline, model_tensors, payload_bytes, raw_bytes

INLINE_LIMIT_BYTES = 1_800_000_000
"""Models up to this size are one file; protobuf ends at 2 GiB."""

ALIGNMENT_BYTES = 4096
"""External tensors start at multiples of this, so that they can be memory-mapped."""

_EXTERNAL_MIN_BYTES = 1024
_BLOCK_BYTES = 1 << 24


def write_proto(
    proto: ModelProto, path: Path, folder: Path | None, *, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> tuple[Path, ...]:
    """Write a model file, and a data file ``<name>.data`` first if the weights do not fit into it.

    Args:
        proto: The model; not changed. Its external tensors refer to files in ``folder``.
        path: The ``.onnx`` file to write.
        folder: Folder of the external data of ``proto``; may be the folder of ``path``.
        inline_limit_bytes: Largest size of a model with everything inside.

    Returns:
        The files written, the model first.

    Raises:
        OutputError: If a file cannot be written.
        ModelError: If external data of ``proto`` cannot be read.
    """
    total = proto.ByteSize() + sum(payload_bytes(t) for _, t in model_tensors(proto) if is_external(t))
    if total <= inline_limit_bytes:
        result = ModelProto()
        result.CopyFrom(proto)
        for _, tensor in model_tensors(result):
            if is_external(tensor):
                make_inline(tensor, folder)
        _write_model(result, path)
        return (path,)
    data_path = path.with_name(path.name + ".data")
    result = _without_initializers(proto)
    with replacing(data_path) as temporary, temporary.open("wb") as stream:
        for initializer in proto.graph.initializer:
            result.graph.initializer.append(_moved(initializer, folder, stream, data_path.name))
        for node in result.graph.node:
            _make_node_inline(node, folder)
    _write_model(result, path)
    return path, data_path


def _make_node_inline(node: NodeProto, folder: Path | None) -> None:
    """Bring external tensors in a node's attributes and subgraphs inside; large ones are in the main graph."""
    scratch = GraphProto(node=[node])
    for _, tensor in graph_tensors(scratch):
        if is_external(tensor):
            make_inline(tensor, folder)
    node.CopyFrom(scratch.node[0])


def _write_model(proto: ModelProto, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _without_initializers(proto: ModelProto) -> ModelProto:
    result = ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            for part, content in proto.graph.ListFields():
                if part.name == "initializer":
                    continue
                if isinstance(content, str):
                    setattr(result.graph, part.name, content)
                else:
                    getattr(result.graph, part.name).extend(content)
        elif isinstance(value, str | int):
            setattr(result, field.name, value)
        else:
            getattr(result, field.name).extend(value)
    return result


def _moved(tensor: TensorProto, folder: Path | None, stream: BinaryIO, location: str) -> TensorProto:
    """Append the tensor's bytes to the data file and give its reference; small tensors and strings stay inline."""
    size = payload_bytes(tensor)
    if size < _EXTERNAL_MIN_BYTES:
        stub = TensorProto()
        stub.CopyFrom(tensor)
        if is_external(stub):
            make_inline(stub, folder)
        return stub
    stream.write(b"\0" * (-stream.tell() % ALIGNMENT_BYTES))
    offset = stream.tell()
    data = memoryview(raw_bytes(tensor, folder))
    for start in range(0, len(data), _BLOCK_BYTES):
        stream.write(data[start : start + _BLOCK_BYTES])
    stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(len(data)))):
        stub.external_data.add(key=key, value=value)
    return stub
