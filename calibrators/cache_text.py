"""The text of a TensorRT calibration cache, line by line: what it holds, and everything that is wrong with it.

One reading serves two users: `CalibrationCache.parse` refuses the first fault, the linter reports them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_CACHE_BYTES = 64 * 2**20
"""Largest file that is read; a cache has about 60 bytes a tensor."""

MAX_LINES = 1_000_000
MAX_NAME_BYTES = 4096

_HEADER = re.compile(r"TRT-(\d{3,7})-([A-Za-z0-9]{1,64})")
_HEX = re.compile(r"[0-9a-fA-F]{1,8}")
_BOM = "\ufeff"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class CacheFault:
    """One thing that is wrong with the text of a cache.

    Attributes:
        rule: Name of the rule of the linter.
        what: Clause that follows the file's name, such as ``line 3 is malformed``.
        got: What was found; None if the clause says it.
        expected: What should stand there.
        hint: The next step.
        tensor: Tensor concerned; empty for none.
        fatal: Whether a strict reader refuses the file for it.
    """

    rule: str
    what: str
    got: str | None = None
    expected: str | None = None
    hint: str | None = None
    tensor: str = ""
    fatal: bool = True


@dataclass(frozen=True, slots=True)
class CacheLine:
    """One line that gives a tensor's scale.

    Attributes:
        number: Line number, from 1.
        tensor: Tensor name.
        scale: The float32 that the bits stand for; may be NaN, infinite, negative or zero.
    """

    number: int
    tensor: str
    scale: float

    @property
    def usable(self) -> bool:
        """Whether the scale is a finite number, not below zero."""
        return bool(np.isfinite(self.scale)) and self.scale >= 0.0 and not np.signbit(self.scale)


@dataclass(frozen=True, slots=True)
class CacheText:
    """What stands in the text.

    Attributes:
        version: Number in the header; None without a header.
        algorithm: Algorithm in the header; None without a header.
        lines: Every line that has the form of a scale, in file order, repeated names included.
        faults: In file order.
    """

    version: int | None
    algorithm: str | None
    lines: tuple[CacheLine, ...]
    faults: tuple[CacheFault, ...]


def decode_cache(data: bytes) -> tuple[str, tuple[CacheFault, ...]]:
    """The text of a file, with what its bytes leave wrong; bytes that are no UTF-8 come escaped."""
    if len(data) > MAX_CACHE_BYTES:
        fault = CacheFault("too-large", "is too large for a calibration cache", f"{len(data):,} bytes",
                           f"at most {MAX_CACHE_BYTES:,} bytes", "check that it is the right file")  # fmt: skip
        return "", (fault,)
    try:
        return data.decode("utf-8"), ()
    except UnicodeDecodeError as cause:
        fault = CacheFault("not-utf8", "is not UTF-8 text", str(cause), "UTF-8, as TensorRT writes it",
                           "copy the file in binary mode")  # fmt: skip
        return data.decode("utf-8", "backslashreplace"), (fault,)


def read_cache_text(text: str) -> CacheText:
    """Take a cache's text apart; nothing is refused, everything wrong is listed."""
    faults: list[CacheFault] = []
    if text.startswith(_BOM):
        text = text.removeprefix(_BOM)
        faults.append(
            CacheFault(
                "byte-order-mark",
                "begins with a byte order mark",
                expected="the letters TRT",
                hint="save it as UTF-8 without a byte order mark",
            )
        )
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    elif lines[-1].strip():
        faults.append(CacheFault("no-final-newline", "does not end with a line break", fatal=False))
    if lines and all(line.endswith("\r") for line in lines[:-1] or lines):
        lines = [line.removesuffix("\r") for line in lines]
        faults.append(
            CacheFault(
                "windows-line-ends",
                "has Windows line ends",
                "carriage return and line feed at the end of lines",
                "a line feed alone",
                "copy it in binary mode, or convert it with dos2unix",
            )
        )
    if len(lines) > MAX_LINES:
        faults.append(CacheFault("too-large", "has too many lines", f"{len(lines):,}", f"at most {MAX_LINES:,}"))
        lines = lines[:MAX_LINES]
    header = _HEADER.fullmatch(lines[0]) if lines else None
    body = lines
    if header is None:
        faults.append(_header_fault(lines[0] if lines else None))
    if header is not None or (lines and _entry(lines[0]) is None):
        body = lines[1:]
    found: list[CacheLine] = []
    faults += _read_body(body, len(lines) - len(body) + 1, found)
    return CacheText(
        int(header[1]) if header else None, header[2] if header else None, tuple(found), tuple(faults)
    )  # fmt: skip


def _header_fault(line: str | None) -> CacheFault:
    expected = "first line TRT-<version>-<algorithm>"
    if line is not None and _entry(line) is not None:
        return CacheFault(
            "no-header", "is not a TensorRT calibration cache of a known version: it has no header", repr(line[:60]),
            expected, "caches of TensorRT 4 and older have none; calibrate again, for nothing says how it was made",
        )  # fmt: skip
    got = "nothing" if line is None else repr(line[:60])
    return CacheFault("no-header", "is not a TensorRT calibration cache", got, expected)


def _entry(line: str) -> tuple[str, str] | None:
    """Name and bits of a line; None if it has not that form. Names may contain the separator: the last one counts."""
    name, separator, bits = line.rpartition(": ")
    return (name, bits) if separator and name and _HEX.fullmatch(bits) else None


def _read_body(lines: list[str], first: int, found: list[CacheLine]) -> Iterator[CacheFault]:
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=first):
        entry = _entry(line)
        if entry is None:
            got, expected = repr(line[:_SHOWN]), "<tensor>: <hex float32>"
            yield CacheFault("malformed-line", f"line {number} is malformed", got, expected)
            continue
        name, bits = entry
        shown = repr(name[:_SHOWN])
        if name in seen:
            yield CacheFault("repeated-tensor", f"line {number} repeats tensor {shown}", f"first in line {seen[name]}",
                             "every tensor once", "keep the line that belongs to this calibration", name)  # fmt: skip
        seen.setdefault(name, number)
        if (reason := name_fault(name)) is not None:
            yield CacheFault("impossible-name", f"line {number}: a tensor name {reason}", shown)
        entry_line = CacheLine(number, name, float(np.uint32(int(bits, 16)).view(np.float32)))
        found.append(entry_line)
        if not entry_line.usable:
            yield CacheFault("unusable-scale", f"line {number}: scale of {shown} is unusable", str(entry_line.scale),
                             "a finite number >= 0", "calibrate again", name)  # fmt: skip


def name_fault(name: str) -> str | None:
    """Why a tensor name cannot stand in a cache; None if it can."""
    if not name:
        return "is empty"
    if any(character in name for character in "\n\r\0"):
        return "holds a line break or a NUL character"
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return f"is longer than {MAX_NAME_BYTES} bytes" if size > MAX_NAME_BYTES else None
