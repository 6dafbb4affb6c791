"""Resizing, letterboxing, cropping and greying of uint8 images, as Pillow and torchvision do it."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import DataError

Pixels = NDArray[np.uint8]
"""Height x width x channels, 1 or 3 channels."""


class Interpolation(StrEnum):
    """Resampling filters of Pillow."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def resize(image: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Resize to ``size`` (height, width); the image itself if it has that size already."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    source = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = source.resize((size[1], size[0]), Image.Resampling[interpolation.name])
    return np.asarray(resized).reshape(*size, image.shape[2])


def shortest_size(shape: tuple[int, ...], shortest: int) -> tuple[int, int]:
    """Height and width with the shorter edge at ``shortest``; the longer is rounded down, as in torchvision."""
    height, width = shape[:2]
    if height <= width:
        return shortest, max(shortest, shortest * width // height)
    return max(shortest, shortest * height // width), shortest


def letterbox(image: Pixels, size: tuple[int, int], interpolation: Interpolation, fill: int) -> Pixels:
    """Fit into ``size`` (height, width) keeping the aspect ratio, centred on a canvas of ``fill``."""
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    inner = (
        min(size[0], max(1, round(height * ratio))),
        min(size[1], max(1, round(width * ratio))),
    )
    resized = resize(image, inner, interpolation)
    if inner == size:
        return resized
    canvas = np.full((*size, image.shape[2]), fill, np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = resized
    return canvas


def center_crop(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Cut ``size`` (height, width) out of the middle; offsets are rounded as in torchvision.

    Raises:
        DataError: If the image is smaller than the crop.
    """
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        raise DataError(
            "the image is smaller than the centre crop",
            got=f"{height}x{width} pixels",
            expected=f"at least {size[0]}x{size[1]}",
            hint="resize first: resize = 'shortest'",
        )
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image[top : top + size[0], left : left + size[1]]


def to_gray(image: Pixels) -> Pixels:
    """RGB to one channel by ITU-R 601 luma with Pillow's rounding."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
