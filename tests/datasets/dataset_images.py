"""Images made for the tests of data sets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from quantlab.datasets import InputSpec

MakeFolder = Callable[..., Path]
GRAY = InputSpec("image", (1, 28, 28))
RGB = InputSpec("image", (3, 32, 32))


def png(array: np.ndarray, level: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png", compress_level=level)
    return buffer.getvalue()


def pictures(total: int, shape: tuple[int, ...] = (28, 28), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (total, *shape), dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())
