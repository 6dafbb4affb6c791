"""Resizing, letterboxing, cropping and greying of uint8 images, as Pillow and torchvision do it."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image's pixels lie in what the model is fed: ``fed = scale * image + offset`` on each axis.

    Coordinates are continuous: pixel ``i`` covers ``[i, i + 1]``, so the image spans ``[0, height] x [0, width]``.

    Attributes:
        image: Height and width of the image.
        fed: Height and width of what the model is fed.
        scale: Vertical and horizontal factor; they differ by rounding even where the aspect ratio is kept.
        offset: Vertical and horizontal position of the image's origin in what is fed; negative after a crop.
    """

    image: tuple[int, int]
    fed: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def cropped(self, size: tuple[int, int]) -> Placement:
        """The placement after a centre crop of what is fed to ``size``."""
        top, left = crop_offset(self.fed, size)
        return Placement(self.image, size, self.scale, (self.offset[0] - top, self.offset[1] - left))

    def boxes_to_image(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (k, 4) as x1 y1 x2 y2 of what is fed, in the image's pixels, cut off at its edges."""
        scale, offset = np.array(self.scale[::-1] * 2), np.array(self.offset[::-1] * 2)
        ends = np.array(self.image[::-1] * 2, np.float64)
        moved: NDArray[np.float64] = np.clip((boxes - offset) / scale, 0.0, ends)
        return moved

    def boxes_to_fed(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (k, 4) as x1 y1 x2 y2 in the image's pixels, in those of what is fed; not cut off."""
        moved: NDArray[np.float64] = boxes * np.array(self.scale[::-1] * 2) + np.array(self.offset[::-1] * 2)
        return moved


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


def letterbox_area(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of an image of ``shape`` (height, width, ...) letterboxed into ``size``."""
    height, width = shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    inner = (
        min(size[0], max(1, round(height * ratio))),
        min(size[1], max(1, round(width * ratio))),
    )
    return (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2, *inner


def letterbox(image: Pixels, size: tuple[int, int], interpolation: Interpolation, fill: int) -> Pixels:
    """Fit into ``size`` (height, width) keeping the aspect ratio, centred on a canvas of ``fill``."""
    top, left, height, width = letterbox_area(image.shape, size)
    resized = resize(image, (height, width), interpolation)
    if (height, width) == size:
        return resized
    canvas = np.full((*size, image.shape[2]), fill, np.uint8)
    canvas[top : top + height, left : left + width] = resized
    return canvas


def crop_offset(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of a centre crop to ``size``, rounded as in torchvision."""
    return round((shape[0] - size[0]) / 2), round((shape[1] - size[1]) / 2)


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
    top, left = crop_offset(image.shape, size)
    return image[top : top + size[0], left : left + size[1]]


def to_gray(image: Pixels) -> Pixels:
    """RGB to one channel by ITU-R 601 luma with Pillow's rounding."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
