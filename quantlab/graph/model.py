"""An ONNX model on its way through quantlab: loading with checks, reading weights, running and saving.

The parsed protobuf itself is the intermediate representation. Weights in external files are never read into it:
they are memory-mapped one at a time, and ONNX Runtime reads them from the same files.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto

from quantlab.documents import near_match
from quantlab.errors import ModelError, QuantlabError
from quantlab.files import sha256_bytes, sha256_file
from quantlab.graph.checks import check_finite, check_runtime_versions, check_structure, has_qdq, opset_of
from quantlab.graph.external import check_external, is_external
from quantlab.graph.session import Optimization, open_proto
from quantlab.graph.sniff import looks_like, starts_like_onnx
from quantlab.graph.storage import write_proto
from quantlab.graph.tensors import model_tensors, payload_bytes, read_tensor, type_name

__all__ = [
    "Model",
    "Optimization",
    "TensorSpec",
    "has_qdq",
    "load_model",
    "model_inputs",
    "model_outputs",
    "open_session",
    "opset_of",
    "save_model",
    "tensor_array",
]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A checked ONNX model.

    Attributes:
        proto: The parsed model. Treat it as read-only; passes work on copies. External tensors are not loaded.
        path: File it came from, or None.
        sha256: Hash of what the user gave: of the file's content, or of the file and its external data files. A model
            derived from it (prepared, emulated) keeps the hash of its source.
        data_folder: Folder that external tensors refer to; None if there are none.
        metadata: ``metadata_props`` of the model.
    """

    proto: ModelProto
    path: Path | None
    sha256: str
    data_folder: Path | None
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, proto: ModelProto) -> Model:
        """Wrap a model made in memory, unchecked; it must hold its weights."""
        data = proto.SerializeToString(deterministic=True)
        return cls(proto, None, sha256_bytes(data), None, _metadata(proto))

    def with_proto(self, proto: ModelProto) -> Model:
        """The same source with another graph, whose external tensors, if any, are among this model's."""
        return dataclasses.replace(self, proto=proto, metadata=_metadata(proto))

    @property
    def name(self) -> str:
        """What to call it in messages and file names: the file's stem, else the graph's name."""
        return self.path.stem if self.path else self.proto.graph.name or "model"

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return opset_of(self.proto)

    @property
    def size_bytes(self) -> int:
        """Size of the model with its external data."""
        external = sum(payload_bytes(t) for _, t in model_tensors(self.proto) if is_external(t))
        return int(self.proto.ByteSize()) + external


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of a model's input or output.

    Attributes:
        name: Tensor name.
        dtype: NumPy name of the element type, such as ``float32`` or ``int64``.
        shape: One entry a dimension: a number, the name of a symbolic dimension, or None where nothing is known;
            None instead of a tuple if not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @classmethod
    def of(cls, value: ValueInfoProto) -> TensorSpec:
        """Read a graph's value information.

        Raises:
            ModelError: If the value is not a tensor (sequences, maps, optionals), or of an unknown element type.
        """
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "nothing"
            raise ModelError(
                f"{value.name!r} is not a tensor", got=kind.removesuffix("_type"), expected="a tensor",
                hint="export the model without sequences, maps and optionals at its borders",
            )  # fmt: skip
        tensor = value.type.tensor_type
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        except (KeyError, ValueError, TypeError) as cause:
            got = type_name(tensor.elem_type)
            raise ModelError(f"{value.name!r} has an element type that is not supported", got=got) from cause
        name = "str" if tensor.elem_type == TensorProto.STRING else dtype.name
        if not tensor.HasField("shape"):
            return cls(value.name, name, None)
        return cls(value.name, name, tuple(_dimension(dim) for dim in tensor.shape.dim))


def _dimension(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        # Some exporters write -1 or 0 for "any".
        return int(dim.dim_value) if dim.dim_value > 0 else None
    return str(dim.dim_param) or None


def model_inputs(proto: ModelProto) -> tuple[TensorSpec, ...]:
    """Inputs that a caller must feed: the graph's inputs that are not initializers.

    Raises:
        ModelError: As for `TensorSpec.of`.
    """
    stored = {initializer.name for initializer in proto.graph.initializer}
    return tuple(TensorSpec.of(value) for value in proto.graph.input if value.name not in stored)


def model_outputs(proto: ModelProto) -> tuple[TensorSpec, ...]:
    """Outputs of the graph.

    Raises:
        ModelError: As for `TensorSpec.of`.
    """
    return tuple(TensorSpec.of(value) for value in proto.graph.output)


def tensor_array(model: Model, initializer: TensorProto) -> NDArray[np.generic]:
    """Elements of one of the model's initializers, of its shape and type; read-only, memory-mapped if external.

    Raises:
        ModelError: If it is malformed, or its external data are missing, truncated or outside the model's folder.
    """
    return read_tensor(initializer, model.data_folder)


def load_model(path: Path) -> Model:
    """Read and check an ONNX model file; external data are checked but stay where they are.

    Cost: one pass over the weights, for their hash and to find NaN.

    Raises:
        ModelError: If the file is missing, empty, not ONNX, truncated, invalid, without inputs or outputs, too new for
            ONNX Runtime; if external data are missing, truncated or outside the model's folder; if names occur twice
            or weights are not finite.
    """
    path = Path(path)
    where = f"model {path}"
    if not _is_utf8(path.name):
        raise ModelError(f"the name of {where} is not UTF-8 text", got=repr(path.name), hint="rename or link the file")
    proto = _parse(path, where)
    tensors = [tensor for _, tensor in model_tensors(proto)]
    folder = path.parent
    data_files = check_external(((tensor, payload_bytes(tensor)) for tensor in tensors), folder)
    check_structure(proto, where)
    for value in (*model_inputs(proto), *model_outputs(proto)):
        _ = value  # reading them is the check
    check_runtime_versions(proto, where)
    check_finite(proto, folder, where)
    return Model(proto, path, _hash(path, data_files), folder if data_files else None, _metadata(proto))


def open_session(
    model: Model,
    *,
    threads: int,
    outputs: Sequence[str] | None = None,
    optimize: Optimization = Optimization.ALL,
    config: Mapping[str, str] | None = None,
    log_severity: int = 3,
    arena: bool = True,
    error: type[QuantlabError] = ModelError,
) -> Any:
    """Open an ONNX Runtime CPU session.

    External weights are read by ONNX Runtime from their files, so they are in memory once.

    Args:
        model: The model to run.
        threads: Intra-op threads; 0 for all cores.
        outputs: Tensors to give besides the graph's own outputs; choose among them with ``session.run(names, ...)``.
        optimize: How far ONNX Runtime may rewrite the graph.
        config: Further session config entries, such as ``session.intra_op.allow_spinning``.
        log_severity: Least severe message ONNX Runtime may write to stderr: 3 errors, 4 fatal ones only.
        arena: Whether ONNX Runtime keeps freed memory for the next run: faster, and at times twice the memory.
        error: Class of the error to raise.

    Returns:
        An ``onnxruntime.InferenceSession``; never with the optimizers in `session.DISABLED_OPTIMIZERS`.

    Raises:
        QuantlabError: Of type ``error``, if ONNX Runtime cannot take the model.
    """
    return open_proto(
        model.proto, model.data_folder, threads=threads, outputs=outputs, optimize=optimize, config=config,
        log_severity=log_severity, arena=arena, error=error, name=f"model {model.path or model.name}",
    )  # fmt: skip


def save_model(proto: ModelProto, path: Path, source: Model | None) -> tuple[Path, ...]:
    """Write a model as one file, or with ``<name>.data`` beside it if it is larger than about 1.8 GB.

    Weights are streamed one at a time. The data file is complete before the model file appears.

    Args:
        proto: What to write; not changed.
        path: The ``.onnx`` file.
        source: The model whose external data ``proto`` refers to; None if it holds all its weights.

    Returns:
        The files written, the model first.

    Raises:
        OutputError: If a file cannot be written.
        ModelError: If external data of ``source`` cannot be read.
    """
    return write_proto(proto, Path(path), source.data_folder if source else None)


def _parse(path: Path, where: str) -> ModelProto:
    data = _read(path, where)
    head = data[:512]
    guess = looks_like(head)
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
        parsed = True
    except (DecodeError, RecursionError):
        parsed = False
    if parsed and proto.ir_version > 0 and proto.HasField("graph") and proto.graph.ByteSize() > 0:
        return proto
    if guess is not None:
        raise ModelError(f"{where} is not an ONNX model", got=guess[0], expected="an ONNX protobuf", hint=guess[1])
    if starts_like_onnx(head):
        raise ModelError(
            f"{where} is truncated or damaged", got=f"{len(data):,} bytes that end within the model",
            hint="copy, download or export it again",
        )  # fmt: skip
    raise ModelError(
        f"{where} is not an ONNX model", got=f"unknown content, first bytes {head[:8].hex(' ')}",
        expected="an ONNX protobuf",
    )  # fmt: skip


def _read(path: Path, where: str) -> bytes:
    try:
        if path.is_dir():
            models = sorted(path.glob("*.onnx"))
            hint = f"did you mean {models[0]}?" if models else None
            raise ModelError(f"{where} is a folder", expected="an .onnx file", hint=hint)
        data = path.read_bytes()
    except ValueError as cause:  # a NUL character in the name
        raise ModelError(f"cannot read {where!r}", got=str(cause)) from cause
    except FileNotFoundError:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = near_match(path.name, names)
        hint = f"did you mean {path.parent / near}?" if near else "check the path"
        raise ModelError(f"{where} does not exist", hint=hint) from None
    except OSError as cause:
        raise ModelError(f"cannot read {where}", got=cause.strerror or str(cause)) from cause
    if not data:
        raise ModelError(f"{where} is empty", got="0 bytes", hint="copy, download or export it again")
    return data


def _is_utf8(name: str) -> bool:
    """Whether a file name can be written into provenance; Linux allows any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(proto: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _hash(path: Path, data_files: Sequence[Path]) -> str:
    own = sha256_file(path)
    if not data_files:
        return own
    digest = hashlib.sha256(own.encode())
    for file in data_files:
        digest.update(f"\n{file.relative_to(path.parent).as_posix()} {sha256_file(file)}".encode())
    return digest.hexdigest()
