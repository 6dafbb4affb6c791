"""Encoded image files to upright uint8 pixels, with a note of whatever was lost on the way.

Pillow does the work. What it would do silently is done on purpose here: EXIF orientation is applied, alpha is
composited over white, 16-bit values are scaled (Pillow clips them), truncated files are refused, and images beyond
Pillow's pixel limit are refused instead of warned of.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.content import ImageContent, UnreadableSampleError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif",
     ".tiff", ".webp", ".avif"}
)  # fmt: skip
"""File name suffixes, in lower case, that are taken for images."""

_NO_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def quiet_pillow() -> None:
    """Keep Pillow's own warnings off the user's terminal; what they tell is reported as losses and reasons.

    ``warnings.catch_warnings`` is not safe with threads, so a filter for the modules of Pillow alone is added instead.
    """
    if _NO_PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_file(path: Path) -> ImageContent:
    """Read and decode an image file.

    Raises:
        UnreadableSampleError: With the reason, if it cannot be read or is not a whole, supported image.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableSampleError("no such file") from None
    except IsADirectoryError:
        raise UnreadableSampleError("is a folder") from None
    except OSError as cause:
        raise UnreadableSampleError(cause.strerror or type(cause).__name__) from cause
    return decode_image(data)


def decode_image(data: bytes) -> ImageContent:
    """Decode an encoded image: the content decides its format, not a file name.

    Returns:
        Grey images with 1 channel, all others as RGB; upright.

    Raises:
        UnreadableSampleError: With the reason, if it is not a whole, supported image.
    """
    if not data:
        raise UnreadableSampleError("is empty (0 bytes)")
    from PIL import Image, UnidentifiedImageError

    quiet_pillow()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return decode_pillow(image)
    except (UnreadableSampleError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableSampleError("is not an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableSampleError(_too_large()) from None
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more on broken files.
    except Exception as cause:
        raise UnreadableSampleError(f"is damaged: {cause or type(cause).__name__}") from cause


def _too_large(pixels: int | None = None) -> str:
    from PIL import Image

    size = f"{pixels:,} pixels" if pixels else "too many pixels"
    return f"has {size}, beyond the safety limit of {Image.MAX_IMAGE_PIXELS or 0:,}"


def decode_pillow(image: Image.Image) -> ImageContent:
    """Turn an opened Pillow image into upright pixels.

    Raises:
        UnreadableSampleError: If it is too large or of a kind without a defined 8-bit meaning.
        Exception: Whatever Pillow raises for a damaged file.
    """
    from PIL import Image, ImageOps

    quiet_pillow()
    pixels = image.width * image.height
    if pixels == 0:
        raise UnreadableSampleError("has no pixels")
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise UnreadableSampleError(_too_large(pixels))
    losses: list[str] = []
    # MPO is a JPEG with a thumbnail or a second view, not an animation.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        losses.append("only the first frame is used")
    if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        losses.append("16 bits a channel reduced to 8")
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:
        upright = image
        losses.append("EXIF data is damaged, orientation unknown")
    return ImageContent(np.ascontiguousarray(_to_pixels(upright, losses)), tuple(losses))


def _to_pixels(image: Image.Image, losses: list[str]) -> NDArray[np.uint8]:
    mode = image.mode
    if mode.startswith("I"):
        losses.append("16 bits a channel reduced to 8")
        return _from_wide(np.asarray(image))
    if mode == "F":
        raise UnreadableSampleError("is a floating-point image, which has no defined range; save it as .npy")
    if image.has_transparency_data:
        image = _without_alpha(image, losses)
    elif mode in ("CMYK", "LAB", "HSV"):
        losses.append(f"{mode} converted to RGB")
        image = image.convert("RGB")
    elif mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _from_wide(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit grey to 8 bits by the nearest ``x / 257``, so that 0 and 65535 become 0 and 255."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise UnreadableSampleError(
            f"has 32-bit values from {wide.min()} to {wide.max()}, beyond 0..65535; save it as .npy"
        )
    return ((wide + 128) // 257).astype(np.uint8)[:, :, None]


def _without_alpha(image: Image.Image, losses: list[str]) -> Image.Image:
    """Composite over white; an alpha channel that is opaque everywhere is no loss."""
    from PIL import Image

    gray = image.mode in ("L", "LA", "La")
    alpha = image.convert("LA" if gray else "RGBA")
    opaque = alpha.getchannel("A").getextrema() == (255, 255)
    plain = "L" if gray else "RGB"
    if opaque:
        return alpha.convert(plain)
    losses.append("transparency composited over white")
    canvas = Image.new("RGBA", alpha.size, "white")
    return Image.alpha_composite(canvas, alpha.convert("RGBA")).convert(plain)
