"""The JSON files of trtexec, read and written: ``--exportTimes`` and ``--exportProfile`` (``sampleReporting.cpp``).

trtexec writes them by hand: layer names are not escaped, numbers have six significant digits, and a time that is no
number becomes ``nan``. None of them says on what GPU, with what engine or settings it was taken.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from quantlab.documents import read_file
from quantlab.errors import DataError
from quantlab.files import sha256_bytes
from quantlab.harness.queries import COLUMNS, QueryFigures, QueryTimes, file_figures

_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "start_enqueue_ms": "startEnqMs",
        "end_enqueue_ms": "endEnqMs",
        "start_h2d_ms": "startH2dMs",
        "end_h2d_ms": "endH2dMs",
        "start_compute_ms": "startComputeMs",
        "end_compute_ms": "endComputeMs",
        "start_d2h_ms": "startD2hMs",
        "end_d2h_ms": "endD2hMs",
        "h2d_ms": "h2dMs",
        "compute_ms": "computeMs",
        "d2h_ms": "d2hMs",
        "latency_ms": "latencyMs",
    }
)
_DURATIONS = ("h2d_ms", "compute_ms", "d2h_ms", "latency_ms")
_SPANS = (
    ("start_enqueue_ms", "end_enqueue_ms"),
    ("start_h2d_ms", "end_h2d_ms"),
    ("start_compute_ms", "end_compute_ms"),
    ("start_d2h_ms", "end_d2h_ms"),
)
_ROUNDING = 1e-4
"""Relative error that six significant digits of three terms leave, with room."""
_AGAIN = "export it again with trtexec, and let it end by itself"
_NUMBER = r"(-?[0-9][^\s,}]*|-?(?:nan|inf)\w*)"
_ROW = re.compile(
    r'^[\s,]*\{\s*"name"\s*:\s*"(?P<name>.*)"\s*,\s*"timeMs"\s*:\s*' + _NUMBER
    + r'\s*,\s*"averageMs"\s*:\s*' + _NUMBER
    + r'(?:\s*,\s*"medianMs"\s*:\s*' + _NUMBER + r")?"
    + r'\s*,\s*"percentage"\s*:\s*' + _NUMBER + r"\s*\}[\s,]*$"
)  # fmt: skip
_COUNT = re.compile(r'^[\s,\[]*\{\s*"count"\s*:\s*([0-9]+)\s*\}[\s,]*$')


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One layer.

    Attributes:
        name: As trtexec wrote it, unescaped.
        total_ms: Over all runs.
        average_ms: A run.
        median_ms: A run; None in files of versions that do not say.
        percent: Share of all layers.
    """

    name: str
    total_ms: float
    average_ms: float
    median_ms: float | None
    percent: float


@dataclass(frozen=True, slots=True)
class ImportedTimes:
    """A file of ``--exportTimes`` as a measurement.

    Attributes:
        name: File name without its ending.
        sha256: Hash of the file.
        figures: Its summary.
    """

    name: str
    sha256: str
    figures: QueryFigures


@dataclass(frozen=True, slots=True)
class ImportedProfile:
    """A file of ``--exportProfile``.

    Attributes:
        name: File name without its ending.
        sha256: Hash of the file.
        runs: Runs that it is over.
        rows: Layers in the order of execution.
    """

    name: str
    sha256: str
    runs: int
    rows: tuple[ProfileRow, ...]


def read_trtexec(path: Path) -> ImportedTimes | ImportedProfile:
    """Read a file of either kind.

    Raises:
        DataError: If it is missing, of neither kind, cut off, empty, or holds times that cannot be.
    """
    data = read_file(path, DataError, "trtexec file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise DataError(f"trtexec file {path} is not UTF-8 text", got=str(cause)) from cause
    if not text.strip():
        raise DataError(f"trtexec file {path} is empty", expected="what --exportTimes or --exportProfile writes")
    if re.match(r'\s*\[\s*\{\s*"count"', text):
        return _profile(path, text, sha256_bytes(data))
    times = _times(path, text)
    return ImportedTimes(path.name.removesuffix(".json"), sha256_bytes(data), file_figures(times))


def read_times(path: Path) -> QueryTimes:
    """The queries in a file of ``--exportTimes``.

    Raises:
        DataError: As `read_trtexec`.
    """
    return _times(path, read_file(path, DataError, "trtexec file").decode("utf-8", "replace"))


def times_text(times: QueryTimes) -> str:
    """Queries in the form of ``--exportTimes``: one object a line, numbers in full precision."""
    columns = [getattr(times, name).tolist() for name in COLUMNS]
    keys = [_KEYS[name] for name in COLUMNS]
    lines = (
        "{ " + ", ".join(f'"{key}" : {value!r}' for key, value in zip(keys, row, strict=True)) + " }"
        for row in zip(*columns, strict=True)
    )
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


def profile_text(runs: int, rows: Sequence[ProfileRow]) -> str:
    """Layers in the form of ``--exportProfile``, names escaped so that it is JSON."""
    lines = [f'  {{ "count" : {runs} }}']
    for row in rows:
        median = "" if row.median_ms is None else f', "medianMs" : {row.median_ms!r}'
        lines.append(
            f', {{ "name" : {json.dumps(row.name, ensure_ascii=False)}, "timeMs" : {row.total_ms!r}'
            f', "averageMs" : {row.average_ms!r}{median}, "percentage" : {row.percent!r} }}'
        )
    return "[\n" + "\n".join(lines) + "\n]\n"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no time")


def _times(path: Path, text: str) -> QueryTimes:
    try:
        rows = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as cause:
        wrong = re.search(r":\s*-?(nan|inf)\b", text, re.IGNORECASE)
        got = f"{wrong.group(1)} for a time" if wrong else str(cause) or type(cause).__name__
        raise DataError(f"trtexec file {path} is damaged or cut off", got=got, hint=_AGAIN) from cause
    if not isinstance(rows, list):
        expected = "a list of queries (--exportTimes) or of layers (--exportProfile)"
        raise DataError(f"{path} is no file of trtexec", got=type(rows).__name__, expected=expected)
    if not rows:
        raise DataError(f"trtexec file {path} holds no query", got="an empty list", hint="measure for longer")
    columns = {name: np.empty(len(rows), np.float64) for name in _KEYS}
    for number, row in enumerate(rows):
        for name, key in _KEYS.items():
            columns[name][number] = _time(path, number, row, key)
    times = QueryTimes(**columns)
    _check(path, times)
    return times


def _time(path: Path, number: int, row: Any, key: str) -> float:
    if not isinstance(row, dict) or key not in row:
        got = ", ".join(map(str, list(row)[:4])) + ", ..." if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{path}: query {number} lacks {key!r}", got=got, expected=", ".join(_KEYS.values()))
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{path}: {key} of query {number} is no time", got=repr(value), expected="milliseconds")
    return float(value)


def _check(path: Path, times: QueryTimes) -> None:
    """Durations are not negative, add up, and no part ends before it begins.

    A start may be negative: trtexec counts from a moment of its own.
    """
    for name in _DURATIONS:
        negative = np.flatnonzero(getattr(times, name) < 0)
        if len(negative):
            number = int(negative[0])
            got = f"{getattr(times, name)[number]} ms"
            raise DataError(f"{path}: {_KEYS[name]} of query {number} is negative", got=got, hint=_AGAIN)
    for start, end in _SPANS:
        begin, finish = getattr(times, start), getattr(times, end)
        backwards = np.flatnonzero(finish < begin - _ROUNDING * np.abs(begin))
        if len(backwards):
            number = int(backwards[0])
            got = f"{_KEYS[start]} {begin[number]:g}, {_KEYS[end]} {finish[number]:g}"
            raise DataError(f"{path}: query {number} ends before it begins", got=got, hint=_AGAIN)
    total = times.h2d_ms + times.compute_ms + times.d2h_ms
    wrong = np.flatnonzero(np.abs(total - times.latency_ms) > _ROUNDING * np.maximum(total, times.latency_ms))
    if len(wrong):
        number = int(wrong[0])
        raise DataError(
            f"{path}: latencyMs of query {number} is not the sum of its parts",
            got=f"{times.latency_ms[number]:g} ms",
            expected=f"h2dMs + computeMs + d2hMs = {total[number]:g} ms",
        )


def _profile(path: Path, text: str, sha256: str) -> ImportedProfile:
    lines = [line for line in text.split("\n") if line.strip() not in ("", "[", "]")]  # names may hold other breaks
    head, *rest = lines
    count = _COUNT.match(head)
    if not text.rstrip().endswith("]") or count is None:
        raise DataError(f"trtexec file {path} is damaged or cut off", got=lines[-1][:80], hint=_AGAIN)
    runs = int(count.group(1))
    if runs == 0 or not rest:
        got = f"{runs} runs, {len(rest)} layers"
        raise DataError(f"trtexec file {path} profiles nothing", got=got, hint="profile for longer")
    return ImportedProfile(path.name.removesuffix(".json"), sha256, runs, tuple(_layer(path, line) for line in rest))


def _layer(path: Path, line: str) -> ProfileRow:
    """One row, by its shape and not as JSON: the name is whatever lies between the first quote and the last key."""
    found = _ROW.match(line)
    if found is None:
        raise DataError(f"{path}: a line is no layer of a profile", got=line.strip()[:80], hint=_AGAIN)
    numbers = [None if text is None else _number(path, line, text) for text in found.groups()[1:]]
    total, average, median, percent = numbers
    if total is None or average is None or percent is None:  # the pattern has them
        raise DataError(f"{path}: a line is no layer of a profile", got=line.strip()[:80], hint=_AGAIN)
    return ProfileRow(_unescaped(found.group("name")), total, average, median, percent)


def _number(path: Path, line: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise DataError(
            f"{path}: a time of a layer is none", got=line.strip()[:80], expected="milliseconds", hint=_AGAIN
        )
    return value


def _unescaped(name: str) -> str:
    """A name as it was before escaping, if it was escaped at all: ours are, trtexec's are not."""
    try:
        decoded = json.loads(f'"{name}"')
    except ValueError:
        return name
    return str(decoded)
