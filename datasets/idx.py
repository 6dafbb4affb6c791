"""Images in the IDX format of MNIST and Fashion-MNIST, gzip-compressed or not."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.arrays import Arrays, array_source
from quantlab.datasets.inputs import InputSpec, format_shape
from quantlab.documents import read_file
from quantlab.errors import DataError

IDX_NAME = re.compile(r"(idx\d-\w+|\.idx)(\.gz)?$")
"""File names that are taken for IDX files, such as ``t10k-images-idx3-ubyte.gz``."""

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def open_idx(path: Path, name: str, inputs: Sequence[InputSpec]) -> Arrays:
    """Open an image file with the labels beside it (``t10k-labels-idx1-ubyte`` for ``t10k-images-idx3-ubyte``).

    Raises:
        DataError: If a file is damaged, holds no images, or the labels are not one per image.
    """
    images = read_idx(path)
    if images.ndim < 3:
        raise DataError(
            f"{path} holds no images",
            got=f"an array {format_shape(images.shape)}",
            expected="(samples, height, width)",
            hint="give the images file; labels beside it are found",
        )
    if len(inputs) != 1:
        raise DataError(
            f"{path} feeds one input, and the model has {len(inputs)}",
            expected=", ".join(spec.name for spec in inputs),
            hint="give an .npz with one array per input name",
        )
    beside = _labels_beside(path)
    labels = read_idx(beside) if beside else None
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise DataError(f"{beside} holds no labels", got=format_shape(labels.shape), expected="(samples,) integers")
    stem = IDX_NAME.sub("", path.name).strip("-.") or path.name
    return array_source("idx", name, stem, {inputs[0].name: images}, inputs, labels)


def read_idx(path: Path) -> NDArray[np.generic]:
    """Read a whole IDX file; big-endian values become native.

    Raises:
        DataError: If it is missing, not IDX, or shorter or longer than its header says.
    """
    data = read_file(path, DataError, "IDX file")
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as cause:
            raise DataError(f"IDX file {path} is a damaged gzip file", got=str(cause)) from cause
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _DTYPES or data[3] == 0:
        raise DataError(
            f"{path} is not an IDX file", got=data[:4].hex(" ") or "0 bytes", expected="00 00 <type> <axes>"
        )
    start = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    dtype = np.dtype(_DTYPES[data[2]])
    expected = start + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) != expected:
        raise DataError(
            f"IDX file {path} is damaged",
            got=f"{len(data):,} bytes",
            expected=f"{expected:,} for {format_shape(shape)}",
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _labels_beside(path: Path) -> Path | None:
    if "images" not in path.name:
        return None
    base = re.sub(r"idx\d", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
    names = (base, f"{base}.gz")
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
