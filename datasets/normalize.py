"""From pixels to model values: ``(x / scale - mean) / std`` on each channel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=64)
def _table(scale: float, mean: float, std: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Value of each of the 256 pixel levels, computed in float32 in torchvision's order."""
    levels = np.arange(256, dtype=np.float32)
    values = (levels / np.float32(scale) - np.float32(mean)) / np.float32(std)
    return values.astype(dtype)


def normalize(
    image: NDArray[np.uint8],
    channels: int,
    *,
    reverse: bool,
    channels_last: bool,
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Normalise an image by table look-up: a pixel has only 256 levels, so no arithmetic is done per pixel.

    Args:
        image: H x W x (1 or 3), uint8.
        channels: Channels of the result; a grey image is repeated.
        reverse: Whether the channel order is reversed (RGB to BGR).
        channels_last: Whether the result is H x W x C instead of C x H x W.
        scale: Divisor of the pixel values.
        mean: One value or one a channel, in the order of the result.
        std: As ``mean``.
        dtype: Of the result.

    Returns:
        C-contiguous array.
    """
    height, width, present = image.shape
    shape = (height, width, channels) if channels_last else (channels, height, width)
    result = np.empty(shape, dtype)
    for channel in range(channels):
        source = 0 if present == 1 else (channels - 1 - channel if reverse else channel)
        table = _table(scale, mean[channel % len(mean)], std[channel % len(std)], dtype)
        if channels_last:
            result[:, :, channel] = table[image[:, :, source]]
        else:  # mode="clip" skips the bounds check that a uint8 index into 256 entries cannot fail
            np.take(table, image[:, :, source], out=result[channel], mode="clip")
    return result
