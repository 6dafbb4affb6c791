"""Reading ranges from a file of any kind that holds them: cache, table, Q/DQ model, table of ONNX Runtime."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from quantlab.calibrators.cache_provenance import CacheProvenance, load_cache
from quantlab.calibrators.imported import STEPS, imported_table
from quantlab.calibrators.ort_table import OrtForm, OrtTable
from quantlab.calibrators.table import TABLE_SCHEMA, CalibrationTable
from quantlab.calibrators.tensorrt_cache import CalibrationCache, symmetric_scales, version_text
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import near_match, read_file
from quantlab.errors import CalibrationError, ConfigError
from quantlab.files import is_folder
from quantlab.graph.metadata import stated_recovery
from quantlab.graph.model import load_model
from quantlab.graph.ranges import activation_scales
from quantlab.graph.sniff import looks_like, starts_like_onnx

_HEAD = 4096
_OWN_SCHEMA = re.compile(rb'"schema"\s*:\s*"quantlab\.')


class RangeKind(StrEnum):
    """Kinds of files that hold ranges."""

    CACHE = "tensorrt-cache"
    TABLE = "table"
    QDQ = "qdq"
    ORT_FLATBUFFERS = "ort-flatbuffers"
    ORT_TEXT = "ort-text"
    ORT_JSON = "ort-json"

    @classmethod
    def of(cls, text: str) -> RangeKind:
        """The kind of that name.

        Raises:
            ConfigError: With the nearest name.
        """
        if text in set(cls):
            return cls(text)
        near = near_match(text, list(cls))
        raise ConfigError(f"there is no kind of file {text!r}", expected=", ".join(cls),
                          hint=f"did you mean {near!r}?" if near else None)  # fmt: skip

    @property
    def suffix(self) -> str:
        """Ending of file names."""
        return _SUFFIXES[self]


_SUFFIXES = {
    RangeKind.CACHE: ".calib",
    RangeKind.TABLE: ".json",
    RangeKind.QDQ: ".onnx",
    RangeKind.ORT_FLATBUFFERS: ".flatbuffers",
    RangeKind.ORT_TEXT: ".txt",
    RangeKind.ORT_JSON: ".ort.json",
}


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges from a file.

    Attributes:
        path: The file.
        kind: What it is.
        table: Its ranges as a table: itself, or an imported one.
        cache: The cache, if it is one.
        provenance: What is said of the cache.
        degradations: What is not known of it.
        recovered: Steps of the recovery whose model the ranges are of; empty if they are of a model itself.
    """

    path: Path
    kind: RangeKind
    table: CalibrationTable
    cache: CalibrationCache | None
    provenance: CacheProvenance | None
    degradations: tuple[Degradation, ...]
    recovered: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """What the file is, for people."""
        if self.cache is None:
            return f"{self.kind}, {self.table.method} ranges"
        return f"TensorRT {version_text(self.cache.version) or self.cache.version} {self.cache.algorithm}"

    def scales(self) -> dict[str, float]:
        """Scale (amax / 127, float32) by tensor, in file order.

        Raises:
            ConfigError: If the table has no symmetric range of a tensor.
        """
        return dict(self.cache.scales) if self.cache is not None else symmetric_scales(self.table)


def kind_of(path: Path, head: bytes) -> RangeKind:
    """What kind of file this is, told from its first bytes.

    Raises:
        CalibrationError: If it is empty.
    """
    if not head:
        raise CalibrationError(f"{path} is empty", got="0 bytes", expected="ranges: " + ", ".join(RangeKind))
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64]
    if start.startswith(b"{"):
        return RangeKind.TABLE if _OWN_SCHEMA.search(head) else RangeKind.ORT_JSON
    if start.startswith(b"TRT-"):
        return RangeKind.CACHE
    if path.suffix == ".onnx" or (starts_like_onnx(head) and path.suffix != ".flatbuffers"):
        return RangeKind.QDQ
    if b"\0" in head:
        return RangeKind.ORT_FLATBUFFERS
    lines = head.decode("utf-8", "replace").split("\n")
    plain = lines[0].rstrip("\r").rpartition(" ")
    return (
        RangeKind.ORT_TEXT if plain[1] and not plain[0].endswith(":") and path.suffix != ".calib" else RangeKind.CACHE
    )


def read_ranges(path: Path, method: str | None = None) -> Ranges:
    """Read a file that holds ranges.

    Args:
        path: A TensorRT calibration cache, ``calibration.json``, a Q/DQ model, or a table of ONNX Runtime.
        method: Range method to take from a table; None for its own.

    Raises:
        QuantlabError: If the file is missing, a folder, empty, damaged, of no such kind, or holds no symmetric ranges.
    """
    if is_folder(path):
        raise CalibrationError(f"{path} is a folder", expected="a file with ranges: " + ", ".join(RangeKind))
    head = _head(path)
    kind = kind_of(path, head)
    guess = looks_like(head) if kind is RangeKind.ORT_FLATBUFFERS else None
    if guess is not None:
        raise CalibrationError(f"{path} holds no ranges", got=guess[0], expected=", ".join(RangeKind), hint=guess[1])
    if method is not None and kind is not RangeKind.TABLE:
        raise ConfigError("--method chooses among the methods of a calibration table", got=f"{kind} {path.name}",
                          expected="a calibration table", hint="leave --method out")  # fmt: skip
    if kind is RangeKind.TABLE:
        _check_schema(path)
        table = CalibrationTable.load(path)
        chosen = table.with_method(method) if method else table
        return Ranges(path, kind, chosen, None, None, table.degradations, table.recovered)
    if kind is RangeKind.CACHE:
        return _of_cache(path)
    degradations: tuple[Degradation, ...] = ()
    recovered: tuple[str, ...] = ()
    if kind is RangeKind.QDQ:
        model = load_model(path)
        scales, recovered = activation_scales(model), stated_recovery(model.metadata)
    else:
        data = read_file(path, CalibrationError, "calibration table")
        scales = {name: float(np.float32(amax / STEPS)) for name, amax in OrtTable.parse(data, str(path)).amax.items()}
        degradations = (_unverified(path, "a table of ONNX Runtime says nothing of its model and data"),)
    table = imported_table(scales, path.name, degradations=degradations)
    return Ranges(path, kind, table, None, None, degradations, recovered)


def _of_cache(path: Path) -> Ranges:
    cache, provenance = load_cache(path)
    if not cache.scales:
        raise CalibrationError(f"{path} holds no scale", got="a header alone", expected="at least one tensor",
                               hint="calibrate again")  # fmt: skip
    degradations: tuple[Degradation, ...] = ()
    if provenance is None:
        degradations = (_unverified(path, f"no {path.name}.json beside it says which model and data it was made with"),)
    table = imported_table(
        cache.scales, path.name, model=provenance.model if provenance else "",
        model_sha256=provenance.model_sha256 if provenance else "", degradations=degradations,
    )  # fmt: skip
    return Ranges(path, RangeKind.CACHE, table, cache, provenance, degradations)


def _unverified(path: Path, message: str) -> Degradation:
    return Degradation(DegradationCode.UNVERIFIED_CACHE, message, 1, (path.name,))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return read_file(path, CalibrationError, "file with ranges")[:_HEAD]  # which says what is wrong


def _check_schema(path: Path) -> None:
    """Name other documents of quantlab by what they are."""
    try:
        schema = json.loads(read_file(path, CalibrationError, "calibration table")).get("schema")
    except (UnicodeDecodeError, ValueError, RecursionError, AttributeError):
        return  # the loader says it
    if isinstance(schema, str) and schema.partition("/")[0] != TABLE_SCHEMA.partition("/")[0]:
        raise CalibrationError(f"{path} holds no ranges", got=f"schema {schema!r}", expected=f"schema {TABLE_SCHEMA!r}")


def kind_of_name(path: Path) -> RangeKind | None:
    """The kind of file that a name asks for; None if it does not say."""
    if path.name.endswith(_SUFFIXES[RangeKind.ORT_JSON]):
        return RangeKind.ORT_JSON
    suffixes = {suffix: kind for kind, suffix in _SUFFIXES.items()} | {".cache": RangeKind.CACHE}
    return suffixes.get(path.suffix)


ORT_FORMS = {
    RangeKind.ORT_FLATBUFFERS: OrtForm.FLATBUFFERS,
    RangeKind.ORT_TEXT: OrtForm.TEXT,
    RangeKind.ORT_JSON: OrtForm.JSON,
}
