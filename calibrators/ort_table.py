"""Calibration tables of ONNX Runtime's TensorRT provider: tensor name to amax, as FlatBuffers, plain text or JSON.

``onnxruntime.quantization.write_calibration_table`` writes all three; the provider reads the FlatBuffers form (option
``trt_int8_calibration_table_name``). Written by it, the first two hold ``max(highest, lowest)``: for a tensor that
reaches further below zero than above, that is not the largest magnitude. Only the JSON form keeps both bounds.

The FlatBuffers schema is ``table TrtTable { dict: [KeyValue]; }`` with ``table KeyValue { key: string; value: string;
}``. It is read here with every offset checked, since files come from elsewhere.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quantlab.calibrators.cache_text import MAX_CACHE_BYTES, MAX_NAME_BYTES, name_fault
from quantlab.errors import CalibrationError

_JSON = re.compile(rb"\s*\{\s*[\"}]")  # a tensor's name in a text table may begin with a brace, too
_LARGEST = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]
"""The largest float32: amax / 127 is kept in one."""


class OrtForm(StrEnum):
    """How a table is written."""

    FLATBUFFERS = "ort-flatbuffers"
    TEXT = "ort-text"
    JSON = "ort-json"


@dataclass(frozen=True, slots=True)
class OrtTable:
    """A table of ONNX Runtime's TensorRT provider.

    Attributes:
        form: How it was written.
        amax: Tensor name to largest magnitude, in the tensor's units, in file order.
    """

    form: OrtForm
    amax: Mapping[str, float]

    def render(self) -> bytes:
        """The file's content.

        Raises:
            CalibrationError: If a name cannot stand in it.
        """
        for name in self.amax:
            reason = name_fault(name)
            if reason is not None:
                raise CalibrationError(f"tensor name {name[:80]!r} cannot stand in a table", got=f"it {reason}")
        rows = {name: self.amax[name] for name in sorted(self.amax)}
        if self.form is OrtForm.TEXT:
            return "".join(f"{name} {amax!r}\n" for name, amax in rows.items()).encode("utf-8")
        if self.form is OrtForm.JSON:
            bounds = {name: {"lowest": -amax, "highest": amax, "CLS": "TensorData"} for name, amax in rows.items()}
            return json.dumps(bounds, ensure_ascii=False, allow_nan=False).encode("utf-8")
        return _write_flatbuffers(rows)

    @classmethod
    def parse(cls, data: bytes, where: str) -> OrtTable:
        """Read a table of any form, strictly.

        Raises:
            CalibrationError: If it is none of the three, holds a name twice, or an amax that is negative or not finite.
        """
        if len(data) > MAX_CACHE_BYTES:
            got, expected = f"{len(data):,} bytes", f"at most {MAX_CACHE_BYTES:,} bytes"
            raise CalibrationError(f"{where} is too large for a calibration table", got=got, expected=expected)
        form = _form_of(data)
        readers = {OrtForm.FLATBUFFERS: _read_flatbuffers, OrtForm.TEXT: _read_text, OrtForm.JSON: _read_json}
        amax: dict[str, float] = {}
        for name, value in readers[form](data, where):
            if (reason := name_fault(name)) is not None:
                raise CalibrationError(f"{where}: a tensor name {reason}", got=repr(name[:80]))
            if name in amax:
                raise CalibrationError(f"{where} gives tensor {name!r} twice", expected="every tensor once")
            if not value / 127.0 <= _LARGEST or math.copysign(1.0, value) < 0:
                hint = None
                if -math.inf < value < 0:
                    hint = "ONNX Runtime wrote max(highest, lowest), not the magnitude; take its calibration.json"
                raise CalibrationError(f"{where}: amax of tensor {name!r} is unusable", got=value,
                                       expected="a finite number >= 0 that float32 holds", hint=hint)  # fmt: skip
            amax[name] = value
        if not amax:
            raise CalibrationError(f"{where} holds no tensor", expected="at least one")
        return cls(form, amax)


def _form_of(data: bytes) -> OrtForm:
    if _JSON.match(data):
        return OrtForm.JSON
    # Offsets of a FlatBuffer hold NUL bytes, which text never does.
    return OrtForm.FLATBUFFERS if b"\0" in data[:4096] else OrtForm.TEXT


def _read_text(data: bytes, where: str) -> Iterator[tuple[str, float]]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as cause:
        raise CalibrationError(f"{where} is not UTF-8 text", got=str(cause)) from cause
    for number, line in enumerate(lines if lines[-1] else lines[:-1], start=1):
        name, separator, text = line.rpartition(" ")
        value = _number(text)
        if not separator or not name or value is None:
            raise CalibrationError(
                f"{where} line {number} is malformed", got=repr(line[:80]), expected="<tensor> <amax>"
            )
        yield name, value


def _number(text: str) -> float | None:
    try:
        return float(text) if text.isascii() and text == text.strip() and "_" not in text else None
    except ValueError:
        return None


def _read_json(data: bytes, where: str) -> Iterator[tuple[str, float]]:
    try:
        pairs: list[tuple[str, Any]] = json.loads(data, object_pairs_hook=_Pairs)
    except (UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise CalibrationError(f"{where} is not valid JSON", got=str(cause) or type(cause).__name__) from cause
    fields = dict(pairs)
    if isinstance(fields.get("data"), _Pairs) and fields.get("CLS") == "TensorsData":  # save_tensors_data
        pairs = fields["data"]
    for name, bounds in pairs:
        lowest, highest = (_bound(bounds, key) for key in ("lowest", "highest"))
        if lowest is None or highest is None:
            expected = 'an object with the numbers "lowest" and "highest"'
            raise CalibrationError(
                f"{where}: tensor {name[:80]!r} has no bounds", got=repr(bounds)[:80], expected=expected
            )
        if not lowest <= highest:
            got, expected = f"{lowest} and {highest}", "lowest <= highest"
            raise CalibrationError(f"{where}: tensor {name[:80]!r} has impossible bounds", got=got, expected=expected)
        yield name, max(abs(lowest), abs(highest))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object that shows repeated keys."""


def _bound(bounds: object, key: str) -> float | None:
    value = dict(bounds).get(key) if isinstance(bounds, _Pairs) else None
    if isinstance(value, _Pairs):  # a NumPy array of one element
        value = dict(value).get("data")
        while isinstance(value, list) and not isinstance(value, _Pairs) and len(value) == 1:
            value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _read_flatbuffers(data: bytes, where: str) -> Iterator[tuple[str, float]]:
    try:
        buffer = _Buffer(data)
        for pair in buffer.tables(buffer.field(buffer.offset(0), 0)):
            name, text = (buffer.string(buffer.field(pair, i)) for i in (0, 1))
            value = _number(text)
            if value is None:
                raise CalibrationError(f"{where}: amax of tensor {name[:80]!r} is no number", got=repr(text[:80]))
            yield name, value
    except (struct.error, UnicodeDecodeError, _DamagedError) as cause:
        raise CalibrationError(f"{where} is not a calibration table that can be read",
                               got="a binary file that is damaged or of another format",
                               expected="FlatBuffers of ONNX Runtime's TensorRT provider") from cause  # fmt: skip


class _DamagedError(Exception):
    """An offset leads out of the file, or there is none."""


class _Buffer:
    """Reading FlatBuffers: offsets relative to where they stand, little-endian, all within the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.visits = len(data)  # no well-formed file has more tables than bytes; a malicious one may repeat them

    def number(self, form: str, at: int) -> int:
        if at < 0:
            raise _DamagedError
        (value,) = struct.unpack_from(form, self.data, at)
        return int(value)

    def offset(self, at: int) -> int:
        """Where the offset at ``at`` leads."""
        return at + self.number("<I", at)

    def field(self, table: int, index: int) -> int:
        """Where the value of a table's field is referred to from."""
        vtable = table - self.number("<i", table)
        slot = 4 + 2 * index
        offset = self.number("<H", vtable + slot) if slot < self.number("<H", vtable) else 0
        if offset == 0:
            raise _DamagedError
        return table + offset

    def tables(self, at: int) -> Iterator[int]:
        """Positions of the tables of the vector that the offset at ``at`` leads to."""
        vector = self.offset(at)
        count = self.number("<I", vector)
        if count > (len(self.data) - vector) // 4:
            raise _DamagedError
        for i in range(count):
            yield self.offset(vector + 4 + 4 * i)

    def string(self, at: int) -> str:
        start = self.offset(at)
        size = self.number("<I", start)
        self.visits -= size
        if size > len(self.data) - start - 4 or size > MAX_NAME_BYTES or self.visits < 0:
            raise _DamagedError
        return self.data[start + 4 : start + 4 + size].decode("utf-8")


def _write_flatbuffers(rows: Mapping[str, float]) -> bytes:
    """Root offset, both vtables, root table, vector of offsets; then a table and two strings for each tensor."""
    pair_vtable, root_vtable, root = 4, 12, 20
    out = bytearray(struct.pack("<I", root))
    out += struct.pack("<HHHH", 8, 12, 4, 8)  # size of itself, size of the table, where key and value are in it
    out += struct.pack("<HHHxx", 6, 8, 4)  # likewise, with one field
    out += struct.pack("<iI", root - root_vtable, 4) + struct.pack("<I", len(rows))
    slots = len(out)
    out += b"\0" * 4 * len(rows)
    for i, (name, amax) in enumerate(rows.items()):
        slot, table = slots + 4 * i, len(out)
        struct.pack_into("<I", out, slot, table - slot)
        key, value = _string(name), _string(repr(amax))
        out += struct.pack("<iII", table - pair_vtable, 8, 4 + len(key)) + key + value
    return bytes(out)


def _string(text: str) -> bytes:
    """Length, bytes, NUL, filled up to four bytes."""
    data = text.encode("utf-8")
    return struct.pack("<I", len(data)) + data + b"\0" * (4 - len(data) % 4)
