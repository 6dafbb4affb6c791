"""Decoded content of one sample, before preprocessing, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError


class UnreadableSampleError(DataError):
    """One sample cannot be read; a data set leaves it out and counts it."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageContent:
    """An image.

    Attributes:
        pixels: Height x width x channels, uint8; 1 channel (grey) or 3 (RGB); upright.
        losses: What was lost in decoding, one phrase each; empty if nothing was.
        label: Class index if the source tells it only together with the content.
    """

    pixels: NDArray[np.uint8]
    losses: tuple[str, ...] = ()
    label: int | None = None

    def sha256(self) -> str:
        """SHA-256 of shape, dtype and pixels."""
        digest = hashlib.sha256()
        _update(digest, "", self.pixels)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class TensorContent:
    """Arrays that are fed to the model as they are.

    Attributes:
        arrays: Arrays by model input name, without the batch axis.
        label: Class index if the source tells it only together with the content.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    label: int | None = None

    def sha256(self) -> str:
        """SHA-256 of names, shapes, dtypes and values; the order of the names does not matter."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            _update(digest, name, self.arrays[name])
        return digest.hexdigest()


Content = ImageContent | TensorContent


def _update(digest: hashlib._Hash, name: str, array: NDArray[np.generic]) -> None:
    header = f"{len(name)}:{name}:{array.shape}:{array.dtype.newbyteorder('=').name};"
    digest.update(header.encode("utf-8", "surrogatepass"))
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest.update(little.reshape(-1).view(np.uint8).data)


def as_pixels(array: NDArray[np.generic]) -> NDArray[np.uint8] | None:
    """View a uint8 array as a height x width x (1 or 3) image; None if it has no such form.

    HW, HWC and CHW are understood; where both ends could be channels, the last axis is taken.
    """
    if array.dtype != np.uint8 or array.size == 0:
        return None
    pixels = array.view(np.uint8)
    if pixels.ndim == 2:
        return pixels[:, :, None]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        return pixels.transpose(1, 2, 0)
    return None
