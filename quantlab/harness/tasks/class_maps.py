"""A segmentation model's output to the class of every pixel of the original image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Layout
from quantlab.datasets.annotations_masks import IGNORE, MOST_CLASSES
from quantlab.datasets.geometry import Placement
from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.tasks.options import check_range
from quantlab.harness.tasks.protocol import Arrays, Floats

BILINEAR, NEAREST = "bilinear", "nearest"

_CLASSES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """How outputs and truths are read.

    Attributes:
        classes: Numbering of the classes of a COCO file (`class_numbers`). Pixels in no annotation are class 0, but
            where a category has this number they are not judged. Masks hold class numbers already.
        resize: How scores are brought to the image's size: ``bilinear`` or ``nearest``; class numbers always by
            ``nearest``.
        threshold: For models of one channel: pixels above it are class 1, others class 0 (0 for logits, 0.5 for
            probabilities).
        layout: Of scores: ``nchw`` (N, C, h, w) or ``nhwc`` (N, h, w, C).
        ignore: Class number of mask files whose pixels are not judged.
        output: Name of the output; None for the only one that fits.
    """

    classes: str = "from-1"
    resize: str = BILINEAR
    threshold: float | None = None
    layout: str = "nchw"
    ignore: int = IGNORE
    output: str | None = None

    def __post_init__(self) -> None:
        if self.resize not in (BILINEAR, NEAREST):
            raise ConfigError("the setting resize is wrong", got=repr(self.resize), expected=f"{BILINEAR} or {NEAREST}")
        if self.layout not in tuple(Layout):
            raise ConfigError("the setting layout is wrong", got=repr(self.layout), expected="nchw or nhwc")
        check_range("ignore", self.ignore, 0, MOST_CLASSES)


@dataclass(frozen=True, slots=True, eq=False)
class ClassScores:
    """The output of one sample.

    Attributes:
        values: (C, h, w) scores of classes, or (h, w) class numbers.
    """

    values: NDArray[np.generic]

    @property
    def finite(self) -> bool:
        """Whether all values are."""
        return bool(np.isfinite(self.values.astype(np.float64)).all())

    @property
    def classes(self) -> int | None:
        """Number of classes; None for class numbers."""
        return self.values.shape[0] if self.values.ndim == 3 else None


def class_output(outputs: Arrays, settings: SegmentSettings) -> list[ClassScores]:
    """The output that holds the classes, sample by sample.

    Scores (N, C, h, w) of at least two classes, or class numbers (N, h, w) or (N, 1, h, w); scores of one channel are
    compared with the threshold.

    Raises:
        MeasurementError: If no output fits, or several do.
        ConfigError: If there is no output of the name that was given, or a threshold for scores of several classes.
    """
    if settings.output is not None and settings.output not in outputs:
        raise ConfigError(f"the model has no output {settings.output!r}", expected="one of " + ", ".join(outputs))
    wanted = {name: value for name, value in outputs.items() if settings.output in (None, name)}
    fitting = {name: value for name, value in wanted.items() if value.ndim in (3, 4)}
    if len(fitting) != 1:
        raise MeasurementError(
            "cannot tell which output holds the classes of pixels",
            got=", ".join(f"{name} {value.shape}" for name, value in outputs.items()),
            expected="one output (N, classes, height, width) or (N, height, width)",
            hint="name it: --task-option output=NAME" if fitting else None,
        )
    ((name, value),) = fitting.items()
    if value.ndim == 4 and settings.layout == Layout.NHWC:
        value = np.moveaxis(value, 3, 1)
    if value.ndim == 4 and value.shape[1] > 1:
        if settings.threshold is not None:
            raise ConfigError(
                "the setting threshold is for a model of one class", got=f"output {name!r} of {value.shape[1]} classes",
                expected="no threshold, or layout=nhwc if the last axis is the class",
            )  # fmt: skip
        return [ClassScores(row) for row in value]
    flat = value[:, 0] if value.ndim == 4 else value
    if settings.threshold is not None:
        return [ClassScores(np.where(np.isfinite(row), row > settings.threshold, np.nan)) for row in flat]
    finite = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    if flat.dtype.kind == "f" and (np.rint(finite) != finite).any():
        raise MeasurementError(
            f"output {name!r} holds one score a pixel, not class numbers",
            got=f"values such as {finite[np.rint(finite) != finite][0]:g}",
            expected="scores of two or more classes, or whole class numbers",
            hint="for a model of one class: --task-option threshold=0 (logits) or 0.5 (probabilities)",
        )
    if finite.size and not 0 <= finite.min() <= finite.max() <= MOST_CLASSES:
        raise MeasurementError(
            f"output {name!r} holds no class numbers",
            got=f"values from {finite.min():g} to {finite.max():g}", expected=f"0 to {MOST_CLASSES}",
        )  # fmt: skip
    return [ClassScores(row) for row in flat]


def seen(placement: Placement) -> NDArray[np.bool_]:
    """The pixels of the image whose centres lie within what the model was fed; a centre crop cuts others off."""
    rows, columns = (_within(placement, axis) for axis in (0, 1))
    return rows[:, None] & columns


def _fed_centres(placement: Placement, axis: int) -> Floats:
    """Where the centres of the image's rows or columns lie in what is fed."""
    centres: Floats = (np.arange(placement.image[axis], dtype=np.float64) + 0.5) * placement.scale[
        axis
    ] + placement.offset[axis]
    return centres


def _within(placement: Placement, axis: int) -> NDArray[np.bool_]:
    centres = _fed_centres(placement, axis)
    inside: NDArray[np.bool_] = (centres >= 0) & (centres < placement.fed[axis])
    return inside


def image_classes(scores: ClassScores, placement: Placement, resize: str) -> NDArray[np.int64]:
    """The class of every pixel of the image, (height, width).

    The centre of each pixel of the image is looked up in the output, whose first and last rows and columns go on
    beyond their centres (``align_corners=False``, as torch's ``interpolate`` and Pillow's resizing enlarge).

    Args:
        scores: Finite.
        placement: Of the image in what the model was fed; the output covers all of that.
        resize: ``bilinear`` or ``nearest``.
    """
    size = scores.values.shape[-2:]
    places = [_fed_centres(placement, axis) * (size[axis] / placement.fed[axis]) for axis in (0, 1)]
    if scores.classes is None or resize == NEAREST:
        rows, columns = (np.clip(np.floor(p), 0, n - 1).astype(np.intp) for p, n in zip(places, size, strict=True))
        picked = scores.values[..., rows[:, None], columns]
        return picked.argmax(axis=0) if scores.classes is not None else picked.astype(np.int64)
    (top, bottom, down), (left, right, along) = (_between(p, n) for p, n in zip(places, size, strict=True))
    best = np.full(placement.image, -np.inf)
    answer = np.zeros(placement.image, np.int64)
    for start in range(0, scores.values.shape[0], _CLASSES_AT_ONCE):  # a whole image of 150 classes may not fit
        block: Floats = scores.values[start : start + _CLASSES_AT_ONCE].astype(np.float64)
        tall: Floats = block[:, top] * (1 - down)[:, None] + block[:, bottom] * down[:, None]
        full: Floats = tall[:, :, left] * (1 - along) + tall[:, :, right] * along
        number = full.argmax(axis=0)
        value = np.take_along_axis(full, number[None], axis=0)[0]
        better = value > best
        best[better], answer[better] = value[better], number[better] + start
    return answer


def _between(places: Floats, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """The two neighbours of each place and the share of the second."""
    centred = np.clip(places - 0.5, 0.0, n - 1)
    low = np.floor(centred).astype(np.intp)
    return low, np.minimum(low + 1, n - 1), centred - low
