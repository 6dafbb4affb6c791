"""TensorRT's calibration cache: the text format that ``IInt8Calibrator`` reads and writes (TensorRT 5 to 10).

The first line is ``TRT-<version>-<algorithm>``; every other line ``<tensor>: <hex>``, where the number is the bits of
the float32 scale = amax / 127 as an integer in hexadecimal, not padded. Names may contain ``: ``, so a line splits at
its last one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from quantlab.calibrators.cache_text import CacheFault, decode_cache, name_fault, read_cache_text
from quantlab.calibrators.quantize import INT8_SYMMETRIC, parameters
from quantlab.calibrators.table import CalibrationTable
from quantlab.documents import near_match, read_file
from quantlab.errors import CalibrationError, ConfigError


class Algorithm(StrEnum):
    """Algorithms that a header names; TensorRT takes a cache only if the calibrator's class has the same."""

    ENTROPY_2 = "EntropyCalibration2"
    MINMAX = "MinMaxCalibration"
    ENTROPY = "EntropyCalibration"
    LEGACY = "LegacyCalibration"
    """Unverified: no published cache of the legacy calibrator shows what its header says."""

    @property
    def calibrator(self) -> str:
        """The class of TensorRT's Python module that reads such a cache."""
        return _CALIBRATORS[self]

    @classmethod
    def of(cls, text: str) -> Algorithm:
        """The algorithm of that name, or of the calibrator class of that name.

        Raises:
            ConfigError: With the nearest name.
        """
        names = {a.value: a for a in cls} | {a.calibrator: a for a in cls}
        if text in names:
            return names[text]
        near = near_match(text, names)
        raise ConfigError(f"there is no calibration algorithm {text!r}", expected=", ".join(cls),
                          hint=f"did you mean {near!r}?" if near else None)  # fmt: skip


_CALIBRATORS = {
    Algorithm.ENTROPY_2: "IInt8EntropyCalibrator2",
    Algorithm.MINMAX: "IInt8MinMaxCalibrator",
    Algorithm.ENTROPY: "IInt8EntropyCalibrator",
    Algorithm.LEGACY: "IInt8LegacyCalibrator",
}

ALGORITHMS = {"entropy": Algorithm.ENTROPY_2, "minmax": Algorithm.MINMAX}
"""Algorithm of the header for tables of a method; `Algorithm.ENTROPY_2` for all others."""

DEFAULT_VERSION = "10.16.0"
LAST_MAJOR = 10
"""TensorRT 11 has no calibrators: it reads Q/DQ models only."""

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """A calibration cache.

    Attributes:
        version: ``NV_TENSORRT_VERSION`` of the header: major * 10000 + minor * 100 + patch from TensorRT 10 on,
            major * 1000 + minor * 100 + patch before.
        algorithm: As in the header, for example ``EntropyCalibration2``.
        scales: Tensor name to scale (amax / 127, float32), in file order.
    """

    version: int
    algorithm: str
    scales: Mapping[str, float]

    def render(self) -> str:
        """The file's text.

        Raises:
            CalibrationError: If a name cannot stand in a line, or a scale is not a non-negative finite number.
        """
        lines = [f"TRT-{self.version}-{self.algorithm}"]
        for name, scale in self.scales.items():
            reason = name_fault(name)
            if reason is not None:
                raise CalibrationError(
                    f"tensor name {name[:80]!r} cannot stand in a calibration cache", got=f"it {reason}"
                )
            if not 0.0 <= scale <= _LARGEST:
                raise CalibrationError(
                    f"tensor {name!r} has no usable scale", got=scale, expected="a finite number >= 0"
                )
            lines.append(f"{name}: {int(np.float32(scale + 0.0).view(np.uint32)):x}")  # + 0.0: -0.0 has a sign bit
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> CalibrationCache:
        """Read a cache's text, strictly.

        Raises:
            CalibrationError: With the line, if the header or a line is malformed, a scale is negative or not finite,
                a name comes twice, or the text has Windows line ends or a byte order mark.
        """
        read = read_cache_text(text)
        for fault in read.faults:
            if fault.fatal:
                raise _refusal(fault, where)
        if read.version is None or read.algorithm is None:
            raise AssertionError("a cache without a header has a fault")
        return cls(read.version, read.algorithm, {line.tensor: line.scale for line in read.lines})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> CalibrationCache:
        """Read a cache file's content, strictly.

        Raises:
            CalibrationError: As `parse`, or if it is too large or not UTF-8.
        """
        text, faults = decode_cache(data)
        if faults:
            raise _refusal(faults[0], where)
        return cls.parse(text, where)

    @classmethod
    def load(cls, path: Path) -> CalibrationCache:
        """Read a cache file.

        Raises:
            CalibrationError: As `from_bytes`, or if the file is missing.
        """
        return cls.from_bytes(read_file(path, CalibrationError, "calibration cache"), str(path))

    @classmethod
    def from_table(
        cls, table: CalibrationTable, version: str = DEFAULT_VERSION, algorithm: Algorithm | None = None
    ) -> CalibrationCache:
        """The cache of a table's chosen method.

        TensorRT only compares the header with the class of the calibrator that reads it: min-max ranges go under
        ``MinMaxCalibration``, all others under ``EntropyCalibration2``, unless ``algorithm`` says otherwise.
        """
        chosen = algorithm or ALGORITHMS.get(table.method, Algorithm.ENTROPY_2)
        return cls(version_number(version), chosen.value, symmetric_scales(table))


def symmetric_scales(table: CalibrationTable) -> dict[str, float]:
    """Scale (amax / 127, float32) of every tensor by the table's method, in the table's order.

    Tensors that were constant zero get scale 0, as TensorRT itself writes them.

    Raises:
        ConfigError: If the table has no symmetric range of a tensor.
    """
    scales = {}
    for entry in table.tensors:
        chosen = table.range_of(entry, INT8_SYMMETRIC.name)
        scales[entry.name] = parameters(chosen.low, chosen.high, INT8_SYMMETRIC).scale if chosen.high > 0 else 0.0
    return scales


def _refusal(fault: CacheFault, where: str) -> CalibrationError:
    return CalibrationError(f"{where} {fault.what}", got=fault.got, expected=fault.expected, hint=fault.hint)


def version_number(version: str) -> int:
    """``NV_TENSORRT_VERSION`` of a dotted version: 8.6.1 is 8601, 10.14.1 is 101401.

    Raises:
        CalibrationError: If it is not three dotted numbers, or one of them does not fit the scheme.
    """
    match = re.fullmatch(r"([1-9]\d?)\.(\d{1,2})\.(\d{1,2})(\.\d{1,6})?", version, re.ASCII)
    if match is None:
        raise CalibrationError("not a TensorRT version", got=version, expected="for example 10.16.0")
    major, minor, patch = (int(match[i]) for i in (1, 2, 3))
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def version_text(number: int) -> str | None:
    """Dotted version of ``NV_TENSORRT_VERSION``; None if no release has that number.

    The scheme before TensorRT 10 is ambiguous from minor version 10 on, which no release reached.
    """
    for unit, majors in ((10000, range(10, 100)), (1000, range(1, 10))):
        if number // unit in majors:
            return f"{number // unit}.{number % unit // 100}.{number % 100}"
    return None
