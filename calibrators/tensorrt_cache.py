"""TensorRT's calibration cache: the text format that ``IInt8Calibrator`` reads and writes (TensorRT 7 to 10).

The first line is ``TRT-<version>-<algorithm>``; every other line ``<tensor>: <hex>``, where the number is the bits of
the float32 scale = amax / 127 as an integer in hexadecimal, not padded. Names may contain ``: ``, so a line splits at
its last one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlab.calibrators.quantize import INT8_SYMMETRIC, parameters
from quantlab.calibrators.table import CalibrationTable
from quantlab.documents import read_file
from quantlab.errors import CalibrationError

ALGORITHMS = {"entropy": "EntropyCalibration2", "minmax": "MinMaxCalibration"}
DEFAULT_VERSION = "10.16.0"

_LARGEST = float(np.finfo(np.float32).max)
_HEADER = re.compile(r"TRT-(\d{3,7})-([A-Za-z0-9]+)")
_HEX = re.compile(r"[0-9a-fA-F]{1,8}")


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
            CalibrationError: If a name holds a line break, or a scale is not a non-negative finite number.
        """
        lines = [f"TRT-{self.version}-{self.algorithm}"]
        for name, scale in self.scales.items():
            if not name or "\n" in name or "\r" in name:
                raise CalibrationError(f"tensor name {name!r} cannot stand in a calibration cache")
            if not 0.0 <= scale <= _LARGEST:
                raise CalibrationError(
                    f"tensor {name!r} has no usable scale", got=scale, expected="a finite number >= 0"
                )
            lines.append(f"{name}: {int(np.float32(scale).view(np.uint32)):x}")
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> CalibrationCache:
        """Read a cache's text, strictly.

        Raises:
            CalibrationError: With the line, if the header or a line is malformed, a scale is negative or not finite,
                or a name comes twice.
        """
        lines = text.split("\n")
        if lines and lines[-1] == "":
            lines.pop()
        header = _HEADER.fullmatch(lines[0]) if lines else None
        if header is None:
            raise CalibrationError(
                f"{where} is not a TensorRT calibration cache",
                got=repr(lines[0][:60]) if lines else "nothing",
                expected="first line TRT-<version>-<algorithm>",
            )
        scales: dict[str, float] = {}
        for number, line in enumerate(lines[1:], start=2):
            name, separator, bits = line.rpartition(": ")
            if not separator or not name or not _HEX.fullmatch(bits):
                raise CalibrationError(
                    f"{where} line {number} is malformed", got=repr(line[:80]), expected="<tensor>: <hex float32>"
                )
            if name in scales:
                raise CalibrationError(f"{where} line {number} repeats tensor {name!r}")
            scale = float(np.uint32(int(bits, 16)).view(np.float32))
            if not np.isfinite(scale) or scale < 0.0:
                raise CalibrationError(
                    f"{where} line {number}: scale of {name!r} is unusable", got=scale, expected="a finite number >= 0"
                )
            scales[name] = scale
        return cls(int(header[1]), header[2], scales)

    @classmethod
    def load(cls, path: Path) -> CalibrationCache:
        """Read a cache file.

        Raises:
            CalibrationError: As `parse`, or if the file is missing or not UTF-8.
        """
        data = read_file(path, CalibrationError, "calibration cache")
        try:
            return cls.parse(data.decode("utf-8"), str(path))
        except UnicodeDecodeError as cause:
            raise CalibrationError(f"{path} is not UTF-8 text", got=str(cause)) from cause

    @classmethod
    def from_table(cls, table: CalibrationTable, version: str = DEFAULT_VERSION) -> CalibrationCache:
        """The cache of a table's chosen method.

        TensorRT only compares the header with the class of the calibrator that reads it: min-max ranges go under
        ``MinMaxCalibration``, all others under ``EntropyCalibration2``. Tensors that were constant zero get scale 0,
        as TensorRT itself writes them.
        """
        scales = {}
        for entry in table.tensors:
            chosen = entry.ranges[INT8_SYMMETRIC.name][table.method]
            scales[entry.name] = parameters(chosen.low, chosen.high, INT8_SYMMETRIC).scale if chosen.high > 0 else 0.0
        return cls(version_number(version), ALGORITHMS.get(table.method, "EntropyCalibration2"), scales)


def version_number(version: str) -> int:
    """``NV_TENSORRT_VERSION`` of a dotted version: 8.6.1 is 8601, 10.14.1 is 101401.

    Raises:
        CalibrationError: If it is not three dotted numbers.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(\.\d+)?", version)
    if match is None:
        raise CalibrationError("not a TensorRT version", got=version, expected="for example 10.16.0")
    major, minor, patch = (int(match[i]) for i in (1, 2, 3))
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch
