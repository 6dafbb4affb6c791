"""The task ``detect``: COCO's mean average precision of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.datasets.annotations import Truths
from quantlab.datasets.annotations_coco import ImageBoxes, class_numbers, coco_boxes, read_coco
from quantlab.degradation import Degradation
from quantlab.harness.tasks.average_precision import Pooled
from quantlab.harness.tasks.boxes import Detections
from quantlab.harness.tasks.columns import only_losses
from quantlab.harness.tasks.decoders import DECODERS, DetectSettings, Reading
from quantlab.harness.tasks.images import ImageInput, match_samples, missing_truths
from quantlab.harness.tasks.matches import MatchedImage, broken_image, match_image, require_evaluator
from quantlab.harness.tasks.options import required_truths, settings_from
from quantlab.harness.tasks.protocol import AnyMeter, Arrays, Estimator, Figure, Floats
from quantlab.harness.tasks.registry import Beginning, TaskRequest

FIGURES = (
    Figure("map", "%", higher_is_better=True),
    Figure("map50", "%", higher_is_better=True),
    Figure("ar100", "%", higher_is_better=True),
)
"""Mean average precision over IoU 0.50 to 0.95, the same at IoU 0.50, and average recall with 100 detections."""


class DetectTask:
    """Boxes of objects in images.

    Args:
        truths: Boxes by sample.
        classes: Class numbers that are judged; detections of others are passed over, as COCO's evaluator does.
        settings: How outputs are read.
        source: The input that takes the images.
    """

    name = "detect"
    figures: Sequence[Figure] = FIGURES
    least = 10

    def __init__(
        self,
        truths: Truths[ImageBoxes],
        classes: Sequence[int],
        settings: DetectSettings,
        source: ImageInput,
    ) -> None:
        self.truths, self.classes, self.settings, self.source = truths, tuple(classes), settings, source

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """Samples that have no truth."""
        return missing_truths(self.truths)

    def meter(self) -> DetectMeter:
        """A new meter, for one variant."""
        return DetectMeter(self)


class DetectMeter:
    """The matched detections of every image, of one variant."""

    drop_unit = "objects no longer found (mean over IoU 0.50 to 0.95)"

    def __init__(self, task: DetectTask) -> None:
        self._task = task
        self._decode = DECODERS[task.settings.decoder].decode
        self.images: list[MatchedImage | None] = []

    def add(self, batch: Batch, outputs: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Decode and match a batch.

        Returns:
            Columns ``objects``, ``found50``, ``detections``, ``broken`` and ``matches`` (`MatchedImage.to_json`).

        Raises:
            MeasurementError: If the decoder does not fit the outputs.
            DataError: If a truth is for an image of another size.
        """
        fed = self._task.source.fed_size(batch)
        decoded = self._decode(outputs, Reading(self._task.settings, fed, self._task.classes))
        images = [self._match(sample, fed, found) for sample, found in zip(batch.ids, decoded, strict=True)]
        self.images += images
        none = -1
        return {
            "objects": np.array([none if one is None else len(one.truths) for one in images], np.int64),
            "found50": np.array([none if one is None else int(one.found[0]) for one in images], np.int64),
            "detections": np.array([none if one is None else len(one) for one in decoded], np.int64),
            "broken": np.array([one is None for one in decoded], bool),
            "matches": np.array([None if one is None else one.to_json() for one in images], object),
        }

    def _match(self, sample: str, fed: tuple[int, int], found: Detections | None) -> MatchedImage | None:
        truth = self._task.truths.find(sample)
        if truth is None:
            return None
        if found is None:
            return broken_image(truth, self._task.classes)
        judged = found.take(np.isin(found.classes, self._task.classes))
        placement = self._task.source.placement(truth.size, fed, sample)
        return match_image(Detections(placement.boxes_to_image(judged.boxes), judged.scores, judged.classes), truth)

    def estimators(self) -> Mapping[str, Estimator]:
        """By the name of the figure."""
        pooled = Pooled(self.images)
        return {
            "map": pooled.average_precision(),
            "map50": pooled.average_precision([0]),
            "ar100": pooled.average_recall(),
        }

    def correct(self, figure: str) -> Floats:
        """No figure is a proportion of samples."""
        raise KeyError(figure)

    def counted(self, figure: str) -> NDArray[np.bool_]:
        """The samples that have a truth; (n,)."""
        return np.array([one is not None for one in self.images], bool)

    def drops(self, reference: AnyMeter) -> Floats:
        """How many more objects the reference found of each sample; (n,), NaN without a truth or a loss."""
        if not isinstance(reference, DetectMeter):
            raise TypeError(type(reference).__name__)
        pairs = zip(reference.images, self.images, strict=True)
        return only_losses(
            np.array([np.nan if a is None or b is None else _quality(a) - _quality(b) for a, b in pairs])
        )

    def says(self, index: int) -> str:
        """Such as ``found 3 of 4 at IoU 0.5``."""
        image = self.images[index]
        if image is None:
            return "not judged"
        if image.broken:
            return "outputs that are not finite"
        return f"found {image.found[0]:.0f} of {len(image.truths)} at IoU 0.5, {image.found[5]:.0f} at 0.75"

    def truth(self, index: int) -> str | None:
        """Such as ``4 objects``."""
        image = self.images[index]
        return None if image is None else f"{len(image.truths)} object{'s' * (len(image.truths) != 1)}"


def _quality(image: MatchedImage) -> float:
    """Objects found, on average over the IoU thresholds; -1 where the outputs were broken, worse than finding none."""
    return -1.0 if image.broken else float(image.found.mean())


def make(request: TaskRequest, beginning: Beginning) -> DetectTask:
    """Make the task from a COCO file.

    Raises:
        ConfigError: If the truths or the decoder are not named, or a setting is wrong.
        DataError: If the file is wrong or belongs to other data.
        BackendUnavailable: If pycocotools is missing.
    """
    settings = settings_from(DetectSettings, request.options, "detect")
    path = required_truths(request.truths, "detect", "a COCO JSON file")
    require_evaluator()
    coco = read_coco(path)
    numbers = class_numbers(coco, settings.classes or DECODERS[settings.decoder].classes)
    truths = coco_boxes(coco, numbers)
    match_samples(truths, beginning)
    return DetectTask(truths, sorted(numbers.values()), settings, ImageInput.of(beginning))
