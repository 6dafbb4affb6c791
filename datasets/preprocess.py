"""Preprocessing: from a decoded image to what the model is fed, as a value with a hash."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import geometry
from quantlab.datasets.inputs import InputSpec, Layout, format_shape
from quantlab.datasets.normalize import normalize
from quantlab.documents import canonical_sha256
from quantlab.errors import ConfigError, DataError
from quantlab.records import from_plain, to_plain


class Resize(StrEnum):
    """How an image is brought to size before the crop."""

    NONE = "none"
    """Not at all."""
    STRETCH = "stretch"
    """To exactly ``size``, whatever the aspect ratio."""
    SHORTEST = "shortest"
    """The shorter edge to ``shortest``, keeping the aspect ratio."""
    LETTERBOX = "letterbox"
    """Into ``size``, keeping the aspect ratio; the rest, on both sides, is ``fill``."""


class Color(StrEnum):
    """Channels and their order."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"

    @property
    def channels(self) -> int:
        """1 for gray, else 3."""
        return 1 if self is Color.GRAY else 3


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Resize, centre crop, colour, then ``(x / scale - mean) / std`` on each channel.

    ``size``, ``color`` and ``layout`` may be None: they then come from the model's input (`fitted`).

    Attributes:
        resize: How the image is brought to size.
        size: Height and width for ``stretch`` and ``letterbox``.
        shortest: Length of the shorter edge for ``shortest``, in pixels.
        interpolation: Resampling filter; all but ``nearest`` average when they shrink (antialias), as Pillow does.
        crop: Height and width of the centre crop, or None.
        color: Channel order; gray is ITU-R 601 luma, as in Pillow.
        scale: What pixel values 0..255 are divided by first.
        mean: One value, or one a channel in the order of ``color``; of the scaled values.
        std: As ``mean``.
        layout: Axis order of the model's input.
        fill: Pixel value around a letterboxed image.
    """

    resize: Resize = Resize.NONE
    size: tuple[int, int] | None = None
    shortest: int | None = None
    interpolation: geometry.Interpolation = geometry.Interpolation.BILINEAR
    crop: tuple[int, int] | None = None
    color: Color | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    fill: int = 114

    def __post_init__(self) -> None:
        _check(self)

    @property
    def sha256(self) -> str:
        """Hash of all fields."""
        return canonical_sha256(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """The fields as plain values, without those that are None."""
        return {key: value for key, value in to_plain(self).items() if value is not None}

    def to_json(self) -> str:
        """One line of JSON, as it travels in a model's metadata."""
        return json.dumps(self.to_plain(), separators=(",", ":"))

    @classmethod
    def from_plain(cls, table: Mapping[str, Any], where: str = "preprocess") -> Preprocess:
        """Build from a TOML or JSON table; ``size`` and ``crop`` may be one number for a square.

        Raises:
            ConfigError: Naming the key that is unknown, of the wrong type, or does not go with the others.
        """
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} has a wrong value", got=repr(table), expected="a table")
        squares = {"size", "crop"}
        plain = {
            key: [value, value] if key in squares and type(value) is int else value for key, value in table.items()
        }
        for key in ("mean", "std"):
            if isinstance(plain.get(key), int | float):
                plain[key] = [plain[key]]
        return from_plain(cls, plain, where)

    def fitted(self, spec: InputSpec) -> Preprocess:
        """Take what is left open (size, colour, layout) from a model's input, as far as the input states it."""
        if not spec.is_image:
            return self
        size, color = self.size, self.color
        height, width = spec.size
        if self.resize in (Resize.STRETCH, Resize.LETTERBOX) and size is None and self.crop is None:
            size = (height, width) if height is not None and width is not None else None
        if color is None and spec.channels in (1, 3):
            color = Color.GRAY if spec.channels == 1 else Color.RGB
        return dataclasses.replace(self, size=size, color=color, layout=self.layout or spec.layout)

    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of one preprocessed sample; None where it depends on the image."""
        height, width = self.crop or (self.size if self.resize is not Resize.NONE else None) or (None, None)
        channels = self.color.channels if self.color else None
        return (height, width, channels) if self.layout is Layout.NHWC else (channels, height, width)

    def check_fits(self, spec: InputSpec) -> None:
        """Refuse a preprocessing whose result cannot be fed to the input.

        Raises:
            DataError: If the input takes no images.
            ConfigError: If a size is missing, or channels, layout or size differ from the input's, or the input's
                dtype is an integer and the preprocessing gives fractions.
        """
        if not spec.is_image:
            raise DataError(
                f"images cannot be fed to the input {spec.name!r}",
                got="images",
                expected=f"tensors of shape {format_shape(spec.shape)}",
                hint="give ready-made tensors: --data tensors.npz, one array per input name",
            )
        if self.resize in (Resize.STRETCH, Resize.LETTERBOX) and self.size is None:
            raise ConfigError(
                f"the preprocessing has no size and the input {spec.name!r} is dynamic",
                got=format_shape(spec.shape),
                expected="height and width",
                hint="state it in the preprocessing: size = [224, 224]",
            )
        given = (self.color.channels,) if self.color else (1, 3)
        if spec.channels is not None and spec.channels not in given:
            wanted = {1: "gray", 3: "rgb"}.get(spec.channels)
            raise ConfigError(
                f"the preprocessing does not give the channels that the input {spec.name!r} takes",
                got=f"{self.color.channels} ({self.color.value})" if self.color else "1 or 3",
                expected=f"{spec.channels} of {format_shape(spec.shape)}",
                hint=f"add color = '{wanted}' to the preprocessing" if wanted else "give ready-made tensors (.npz)",
            )
        shape = self.output_shape()
        if any(None not in (got, want) and got != want for got, want in zip(shape, spec.shape, strict=True)):
            swapped = self.layout is not None and self.layout is not spec.layout
            raise ConfigError(
                f"the preprocessing does not give the shape that the input {spec.name!r} takes",
                got=format_shape(shape),
                expected=format_shape(spec.shape),
                hint=f"set layout = '{spec.layout.value}'" if swapped else _size_hint(self, spec),
            )
        self._check_dtype(spec)

    def _check_dtype(self, spec: InputSpec) -> None:
        dtype = spec.numpy_dtype
        if dtype.kind not in "iu":
            return
        identity = self.scale == 1.0 and not any(self.mean) and all(value == 1.0 for value in self.std)
        if not identity or np.iinfo(dtype.name).max < 255:
            raise ConfigError(
                f"the input {spec.name!r} is of integers and the preprocessing gives other values",
                got=self.describe(),
                expected=f"pixel values 0..255 that fit {spec.dtype}",
                hint="use --preprocess raw" if np.iinfo(dtype.name).max >= 255 else "give ready-made tensors (.npz)",
            )

    def apply(self, image: NDArray[np.uint8], dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """Preprocess one image.

        The arithmetic is float32 in the order ``(x / scale - mean) / std``, which makes results bit-identical to
        torchvision's ``ToTensor`` and ``Normalize``; after that it is cast to ``dtype``.

        Args:
            image: Height x width x channels, uint8, 1 (grey) or 3 (RGB) channels.
            dtype: Of the result; float32 if None.

        Returns:
            C x H x W, or H x W x C for NHWC; C-contiguous. An open ``color`` keeps the image's channels.

        Raises:
            DataError: If the array is no such image, or is smaller than the crop.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
            raise DataError(
                "this is not an image", got=f"{format_shape(image.shape)} {image.dtype}",
                expected="(height, width, 1 or 3) uint8",
            )  # fmt: skip
        color = self.color or (Color.GRAY if image.shape[2] == 1 else Color.RGB)
        if color is Color.GRAY and image.shape[2] == 3:
            image = geometry.to_gray(image)
        image = self._resized(image)
        if self.crop is not None:
            image = geometry.center_crop(image, self.crop)
        return normalize(
            image,
            color.channels,
            reverse=color is Color.BGR,
            channels_last=self.layout is Layout.NHWC,
            scale=self.scale,
            mean=self.mean,
            std=self.std,
            dtype=np.dtype(np.float32) if dtype is None else dtype,
        )

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.resize is Resize.SHORTEST and self.shortest is not None:
            return geometry.resize(image, geometry.shortest_size(image.shape, self.shortest), self.interpolation)
        if self.resize is Resize.STRETCH:
            return geometry.resize(image, self._required_size(), self.interpolation)
        if self.resize is Resize.LETTERBOX:
            return geometry.letterbox(image, self._required_size(), self.interpolation, self.fill)
        return image

    def placement(self, shape: tuple[int, int]) -> geometry.Placement:
        """Where an image of ``shape`` (height, width) lies in what the model is fed; exact for `apply`.

        Raises:
            ConfigError: If the size is missing.
        """
        top, left, fed = 0, 0, shape
        if self.resize is Resize.SHORTEST and self.shortest is not None:
            fed = geometry.shortest_size(shape, self.shortest)
        elif self.resize is not Resize.NONE:
            fed = self._required_size()
        height, width = fed
        if self.resize is Resize.LETTERBOX:
            top, left, height, width = geometry.letterbox_area(shape, fed)
        scale = (height / shape[0], width / shape[1])
        placed = geometry.Placement(shape, fed, scale, (float(top), float(left)))
        return placed if self.crop is None else placed.cropped(self.crop)

    def _required_size(self) -> tuple[int, int]:
        if self.size is None:
            raise ConfigError(f"the preprocessing {self.resize.value!r} has no size", expected="size = [height, width]")
        return self.size

    def describe(self) -> str:
        """One readable line, such as ``stretch to 28x28 bilinear, gray, (x/255 - 0.286) / 0.353, NCHW``."""
        parts: list[str] = []
        if self.resize is Resize.SHORTEST:
            parts.append(f"shortest edge {self.shortest} {self.interpolation.value}")
        elif self.resize is not Resize.NONE:
            size = f"{self.size[0]}x{self.size[1]}" if self.size else "the model's size"
            parts.append(f"{self.resize.value} to {size} {self.interpolation.value}")
        else:
            parts.append("no resize")
        if self.crop:
            parts.append(f"centre crop {self.crop[0]}x{self.crop[1]}")
        if self.color:
            parts.append(self.color.value)
        parts.append(self._formula())
        if self.layout:
            parts.append(self.layout.value.upper())
        return ", ".join(parts)

    def _formula(self) -> str:
        value = "x" if self.scale == 1.0 else f"x/{self.scale:g}"
        if any(self.mean):
            value = f"{value} - {_numbers(self.mean)}"
        if any(std != 1.0 for std in self.std):
            value = f"({value}) / {_numbers(self.std)}"
        return value


def _numbers(values: tuple[float, ...]) -> str:
    text = " ".join(f"{value:g}" for value in values)
    return text if len(values) == 1 else f"[{text}]"


def _size_hint(preprocess: Preprocess, spec: InputSpec) -> str:
    height, width = spec.size
    key = "crop" if preprocess.crop else "size"
    return f"set {key} = [{height or 'height'}, {width or 'width'}] in the preprocessing"


def _check(value: Preprocess) -> None:
    """Refuse combinations that mean nothing."""

    def refuse(key: str, expected: str) -> None:
        raise ConfigError(f"preprocess.{key} has a wrong value", got=repr(getattr(value, key)), expected=expected)

    if (value.shortest is None) == (value.resize is Resize.SHORTEST):
        refuse("shortest", "a length with resize = 'shortest', and only with it")
    if value.size is not None and value.resize not in (Resize.STRETCH, Resize.LETTERBOX):
        refuse("size", "none: only resize = 'stretch' and 'letterbox' have a size")
    for key in ("size", "crop"):
        pair = getattr(value, key)
        if pair is not None and not (len(pair) == 2 and min(pair) > 0 and max(pair) <= 65535):
            refuse(key, "height and width from 1 to 65535")
    if value.shortest is not None and not 0 < value.shortest <= 65535:
        refuse("shortest", "1 to 65535")
    if not 0 <= value.fill <= 255:
        refuse("fill", "0 to 255")
    if not (math.isfinite(value.scale) and value.scale > 0):
        refuse("scale", "a number above 0")
    lengths = (1, value.color.channels) if value.color else (1, 3)
    for key in ("mean", "std"):
        numbers = getattr(value, key)
        if len(numbers) not in lengths:
            refuse(key, " or ".join(f"{n} number{'s' * (n > 1)}" for n in sorted(set(lengths))))
        if not all(math.isfinite(number) for number in numbers) or (key == "std" and min(numbers) <= 0):
            refuse(key, "finite numbers" + (" above 0" if key == "std" else ""))
