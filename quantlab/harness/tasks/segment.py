"""The task ``segment``: mean intersection over union, and the share of pixels that are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.datasets.annotations import Truths
from quantlab.datasets.annotations_coco import FROM_ZERO, class_numbers, read_coco
from quantlab.datasets.annotations_masks import IGNORE, LoadMask, coco_masks, folder_masks
from quantlab.degradation import Degradation
from quantlab.errors import DataError
from quantlab.files import is_file
from quantlab.harness.tasks.class_maps import ClassScores, SegmentSettings, class_output, image_classes, seen
from quantlab.harness.tasks.columns import only_losses
from quantlab.harness.tasks.images import ImageInput, match_samples, missing_truths
from quantlab.harness.tasks.options import required_truths, settings_from
from quantlab.harness.tasks.protocol import Additive, AnyMeter, Arrays, Estimator, Figure, Floats
from quantlab.harness.tasks.registry import Beginning, TaskRequest

FIGURES = (Figure("miou", "%", higher_is_better=True), Figure("pixel_accuracy", "%", higher_is_better=True))
"""Mean over classes of intersection over union, both summed over the images; share of judged pixels that are right."""


@dataclass(frozen=True, slots=True, eq=False)
class PixelCounts:
    """The judged pixels of one image.

    Attributes:
        classes: (c,) class numbers that are true or were said of some pixel.
        intersections: (c,) pixels of which both say the class.
        unions: (c,) pixels of which at least one says it.
        pixels: Judged.
        broken: Whether the output was not finite.
    """

    classes: NDArray[np.int64]
    intersections: NDArray[np.int64]
    unions: NDArray[np.int64]
    pixels: int
    broken: bool = False

    @property
    def share(self) -> float:
        """Share of the judged pixels that are right; NaN without one."""
        return float(self.intersections.sum() / self.pixels) if self.pixels else float("nan")


def count_pixels(truth: NDArray[np.int64], said: NDArray[np.int64], judged: NDArray[np.bool_]) -> PixelCounts:
    """Compare two maps of classes, numbers from 0, where ``judged``; all (height, width)."""
    true, given = truth[judged], said[judged]
    width = 1 + max(int(true.max(initial=0)), int(given.max(initial=0)))
    both = np.bincount(true[true == given], minlength=width)
    either = np.bincount(true, minlength=width) + np.bincount(given, minlength=width) - both
    classes = np.flatnonzero(either)
    return PixelCounts(classes, both[classes], either[classes], len(true))


class SegmentTask:
    """The class of every pixel.

    Args:
        truths: Masks by sample.
        settings: How outputs are read.
        source: The input that takes the images.
    """

    name = "segment"
    figures: Sequence[Figure] = FIGURES
    least = 10

    def __init__(
        self,
        truths: Truths[LoadMask],
        settings: SegmentSettings,
        source: ImageInput,
    ) -> None:
        self.truths, self.settings, self.source = truths, settings, source
        self._judged = self._objects = self._ignored = False

    def saw(self, truth: NDArray[np.int64], judged: NDArray[np.bool_]) -> None:
        """Note what a mask (height, width) holds."""
        self._judged |= bool(judged.any())
        self._objects |= bool((truth[judged] > 0).any())
        self._ignored |= bool((truth == IGNORE).any())

    def check_seen(self) -> None:
        """Refuse masks that judge nothing: in the end, for one of them may well be without an object.

        Raises:
            DataError: If no mask has a pixel that is judged, or all pixels are of class 0 or 255.
        """
        if self._judged and (self._objects or not self._ignored or self.settings.classes == FROM_ZERO):
            return
        raise DataError(
            f"{self.truths.where} has no pixel of any class" + (" but 0" if self._judged else ""),
            got=f"0 and {IGNORE}" if self._judged else "none that is judged",
            expected=f"class numbers; {IGNORE} means not judged",
            hint="write the masks with 1 for the object, and 0 around it",
        )

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """Samples that have no truth."""
        return missing_truths(self.truths)

    def meter(self) -> SegmentMeter:
        """A new meter, for one variant."""
        return SegmentMeter(self)


class SegmentMeter:
    """Counts of pixels of every image, of one variant."""

    drop_unit = "percentage points of the image's pixels that are no longer right"

    def __init__(self, task: SegmentTask) -> None:
        self._task = task
        self.images: list[PixelCounts | None] = []

    def add(self, batch: Batch, outputs: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Compare a batch with its masks.

        Returns:
            Columns ``pixels``, ``pixel_accuracy``, ``broken``, and ``classes``, ``intersections`` and ``unions``:
            numbers with spaces between.

        Raises:
            MeasurementError: If no output holds classes of pixels.
            DataError: If a mask cannot be read, is of another size than its image, or has a class that the model lacks.
        """
        fed = self._task.source.fed_size(batch)
        rows = class_output(outputs, self._task.settings)
        images = [self._compare(sample, fed, row) for sample, row in zip(batch.ids, rows, strict=True)]
        self.images += images
        return {
            "pixels": np.array([-1 if one is None else one.pixels for one in images], np.int64),
            "pixel_accuracy": np.array([np.nan if one is None else one.share for one in images]),
            "broken": np.array([not row.finite for row in rows], bool),
            "classes": _texts([None if one is None else one.classes for one in images]),
            "intersections": _texts([None if one is None else one.intersections for one in images]),
            "unions": _texts([None if one is None else one.unions for one in images]),
        }

    def _compare(self, sample: str, fed: tuple[int, int], scores: ClassScores) -> PixelCounts | None:
        load = self._task.truths.find(sample)
        if load is None:
            return None
        truth = load()
        size = (truth.shape[0], truth.shape[1])
        placement = self._task.source.placement(size, fed, sample)
        judged = (truth != self._task.settings.ignore) & (truth != IGNORE) & seen(placement)
        self._task.saw(truth, judged)
        classes, highest = scores.classes, int(truth[judged].max(initial=0))
        if classes is not None and highest >= classes:
            raise DataError(
                f"the mask of sample {sample!r} has a class that the model lacks",
                got=highest,
                expected=f"0 to {classes - 1}, or {self._task.settings.ignore} for pixels that are not judged",
                hint="state the number of such pixels: --task-option ignore=NUMBER, or the numbering of the classes",
            )
        if not scores.finite:
            return _broken(truth[judged], classes)
        return count_pixels(truth, image_classes(scores, placement, self._task.settings.resize), judged)

    def estimators(self) -> Mapping[str, Estimator]:
        """By the name of the figure.

        Raises:
            DataError: If the masks judge nothing.
        """
        self._task.check_seen()
        known = [(index, one) for index, one in enumerate(self.images) if one is not None]
        width = 1 + max((int(one.classes.max(initial=-1)) for _, one in known), default=0)
        terms = np.zeros((len(self.images), 2 * width))
        totals = np.zeros((len(self.images), 2))
        for index, one in known:
            terms[index, one.classes] = one.intersections
            terms[index, one.classes + width] = one.unions
            totals[index] = one.intersections.sum(), one.pixels
        return {"miou": Additive(terms, mean_iou), "pixel_accuracy": Additive(totals, _share)}

    def correct(self, figure: str) -> Floats:
        """No figure is a proportion of samples."""
        raise KeyError(figure)

    def counted(self, figure: str) -> NDArray[np.bool_]:
        """The samples that have a mask with judged pixels; (n,)."""
        return np.array([one is not None and one.pixels > 0 for one in self.images], bool)

    def drops(self, reference: AnyMeter) -> Floats:
        """How much larger the share of right pixels was with the reference, in points; (n,), NaN where it was not."""
        if not isinstance(reference, SegmentMeter):
            raise TypeError(type(reference).__name__)
        pairs = zip(reference.images, self.images, strict=True)
        return only_losses(
            np.array([np.nan if a is None or b is None else 100.0 * (a.share - b.share) for a, b in pairs])
        )

    def says(self, index: int) -> str:
        """Such as ``93.1 % of the pixels right``."""
        image = self.images[index]
        if image is None:
            return "not judged"
        return "an output that is not finite" if image.broken else f"{100 * image.share:.1f} % of the pixels right"

    def truth(self, index: int) -> str | None:
        """None: a mask has no few words."""
        return None


def mean_iou(sums: Floats) -> Floats:
    """Mean over classes of intersection over union, in percent, of classes that are true or were said of some pixel.

    Args:
        sums: (R, 2 C): intersections of each class, then unions.

    Returns:
        (R,), NaN where no class has a pixel.
    """
    width = sums.shape[1] // 2
    both, either = sums[:, :width], sums[:, width:]
    present = either > 0
    shares = np.where(present, both / np.where(present, either, 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        result: Floats = 100.0 * shares.sum(axis=1) / np.where(present.any(axis=1), present.sum(axis=1), np.nan)
    return result


def _share(sums: Floats) -> Floats:
    result: Floats = 100.0 * sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)
    return result


def _broken(true: NDArray[np.int64], classes: int | None) -> PixelCounts:
    """The worst that an image can do: no pixel right, and every class said of every pixel."""
    numbers = np.unique(true) if classes is None else np.arange(classes)
    none = np.zeros(len(numbers), np.int64)
    return PixelCounts(numbers.astype(np.int64), none, none + len(true), len(true), broken=True)


def _texts(rows: Sequence[NDArray[np.int64] | None]) -> NDArray[np.generic]:
    return np.array([None if row is None else " ".join(map(str, row.tolist())) for row in rows], object)


def make(request: TaskRequest, beginning: Beginning) -> SegmentTask:
    """Make the task from a folder of masks or a COCO file.

    Raises:
        ConfigError: If the truths are not named, or a setting is wrong.
        DataError: If they are wrong or belong to other data.
        BackendUnavailable: If a COCO file is given and pycocotools is missing.
    """
    settings = settings_from(SegmentSettings, request.options, "segment")
    path = required_truths(request.truths, "segment", "a folder of masks, or a COCO JSON file")
    if is_file(path) or path.suffix.lower() == ".json":
        coco = read_coco(path)
        numbers = class_numbers(coco, settings.classes)
        truths = coco_masks(coco, numbers, IGNORE if 0 in numbers.values() else 0)
    else:
        truths = folder_masks(path)
    match_samples(truths, beginning)
    return SegmentTask(truths, settings, ImageInput.of(beginning))
