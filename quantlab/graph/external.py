"""External tensor data: where it lies, and refusing what lies outside the model's folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import TensorProto

from quantlab.documents import near_match
from quantlab.errors import ModelError


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's elements lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


@dataclass(frozen=True, slots=True)
class ExternalLocation:
    """Where an external tensor's bytes are.

    Attributes:
        tensor: Name of the tensor.
        file: Location as the model states it, relative to the model's folder.
        offset: First byte.
        length: Bytes.
    """

    tensor: str
    file: str
    offset: int
    length: int

    @classmethod
    def of(cls, tensor: TensorProto, expected_bytes: int) -> ExternalLocation:
        """Read the reference of an external tensor.

        Args:
            tensor: A tensor for which `is_external` holds.
            expected_bytes: Bytes that its shape and type need.

        Raises:
            ModelError: If the reference has no location, numbers that are not numbers, or another length.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if not location:
            raise ModelError(f"external tensor {tensor.name!r} names no file", hint="export the model again")
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", expected_bytes))
        except ValueError as cause:
            raise ModelError(f"external tensor {tensor.name!r} has a malformed position", got=str(cause)) from cause
        if offset < 0 or length != expected_bytes:
            raise ModelError(
                f"external tensor {tensor.name!r} has a wrong position",
                got=f"offset {offset}, length {length}",
                expected=f"offset >= 0, length {expected_bytes}",
                hint="export the model again",
            )
        return cls(tensor.name, location, offset, length)

    def resolve(self, folder: Path | None) -> Path:
        """Find the file inside ``folder`` and check that it is long enough.

        Raises:
            ModelError: If the location is absolute, has ``..``, leaves the folder by a symbolic link, is missing, not a
                regular file, or shorter than offset + length; or if ``folder`` is None.
        """
        if folder is None:
            raise ModelError(
                f"tensor {self.tensor!r} has external data, but the model has no folder",
                got=self.file,
                hint="load the model from its file",
            )
        path = self._confined(folder)
        try:
            size = path.stat().st_size
        except OSError as cause:
            raise self._missing(path) from cause
        if not path.is_file():
            raise ModelError(f"external data {path} of tensor {self.tensor!r} is not a regular file")
        if self.offset + self.length > size:
            raise ModelError(
                f"external data {path} is truncated: tensor {self.tensor!r} lies beyond its end",
                got=f"{size:,} bytes",
                expected=f"at least {self.offset + self.length:,} bytes",
                hint="copy or download the data file again",
            )
        return path

    def _missing(self, path: Path) -> ModelError:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = near_match(path.name, names)
        return ModelError(
            f"external data {path} of tensor {self.tensor!r} does not exist",
            hint=f"did you rename {near}?" if near else "put the data file beside the model; both belong together",
        )

    def _confined(self, folder: Path) -> Path:
        reason = None
        if PurePosixPath(self.file).is_absolute() or PureWindowsPath(self.file).drive or self.file.startswith("\\"):
            reason = "an absolute path"
        elif ".." in PurePosixPath(self.file.replace("\\", "/")).parts:
            reason = "a path with '..'"
        elif "\0" in self.file:
            reason = "a path with a zero byte"
        path = folder / self.file
        if reason is None and not path.resolve().is_relative_to(folder.resolve()):
            reason = f"a symbolic link to {path.resolve()}"
        if reason is not None:
            raise ModelError(
                f"external data of tensor {self.tensor!r} leaves the model's folder",
                got=f"{self.file!r}, {reason}",
                expected=f"a plain file inside {folder}",
                hint="save the model again with its data beside it; models from others are not trusted with your files",
            )
        return path


def check_external(tensors: Iterable[tuple[TensorProto, int]], folder: Path | None) -> tuple[Path, ...]:
    """Check every external reference before anything is read.

    Args:
        tensors: Tensors, external or not, each with the bytes that its shape and type need.
        folder: The model's folder.

    Returns:
        The data files, sorted, each once.

    Raises:
        ModelError: As for `ExternalLocation.of` and `ExternalLocation.resolve`.
    """
    files = {ExternalLocation.of(tensor, size).resolve(folder) for tensor, size in tensors if is_external(tensor)}
    return tuple(sorted(files))
