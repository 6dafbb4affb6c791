"""Which detections of an image are right, by pycocotools; kept, so that figures can be made for any weights."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.annotations_coco import ImageBoxes
from quantlab.errors import BackendUnavailable
from quantlab.harness.tasks.boxes import Detections, Floats, Numbers

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""0.50 to 0.95 by 0.05, exactly as ``pycocotools.cocoeval.Params`` makes them."""

MAX_DETECTIONS = 100
"""Of an image and class; the evaluator passes over the others."""

_ALL_AREAS = [0.0, 1e5**2]


@dataclass(frozen=True, slots=True, eq=False)
class MatchedImage:
    """The detections of one image that the evaluator looks at, and the truths that can be found.

    Attributes:
        scores: (d,), the highest first within a class.
        classes: (d,)
        hits: (10, d) bool: matched to a truth at each IoU threshold.
        ignored: (10, d) bool: neither right nor wrong, being in a crowd.
        truths: (g,) class of each truth that is no crowd.
        broken: Whether the outputs were not finite: all detections are then wrong and before all others.
    """

    scores: Floats
    classes: Numbers
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truths: Numbers
    broken: bool = False

    @property
    def found(self) -> Floats:
        """How many truths were found at each IoU threshold; (10,)."""
        right: Floats = np.count_nonzero(self.hits & ~self.ignored, axis=1).astype(np.float64)
        return right

    def to_json(self) -> str:
        """Text for the file of samples: for each class ``[truths, scores, hits, ignored]``, thresholds as bits.

        A broken image has no scores.
        """
        bits = 1 << np.arange(len(IOU_THRESHOLDS))
        kept = np.zeros(len(self.scores), bool) if self.broken else np.ones(len(self.scores), bool)
        document = {}
        for number in np.union1d(self.truths, self.classes[kept]).tolist():
            mine = kept & (self.classes == number)
            document[str(number)] = [
                int(np.count_nonzero(self.truths == number)),
                self.scores[mine].tolist(),
                (bits @ self.hits[:, mine]).tolist(),
                (bits @ self.ignored[:, mine]).tolist(),
            ]
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> MatchedImage:
        """The inverse of `to_json` for an image that is not broken."""
        shifts = np.arange(len(IOU_THRESHOLDS))[:, None]
        scores, classes, hits, ignored, truths = [], [], [], [], []
        for key, (count, given, hit, left) in json.loads(text).items():
            scores += given
            classes += [int(key)] * len(given)
            hits += hit
            ignored += left
            truths += [int(key)] * count
        return cls(
            np.array(scores, np.float64),
            np.array(classes, np.int64),
            (np.array(hits, np.int64) >> shifts & 1).astype(bool),
            (np.array(ignored, np.int64) >> shifts & 1).astype(bool),
            np.array(truths, np.int64),
        )


def broken_image(truth: ImageBoxes, classes: Collection[int]) -> MatchedImage:
    """The worst that an image can do to any figure: nothing found, and as many false detections as are looked at.

    They are of every class and before all others, so no finite outputs could score lower.
    """
    numbers = np.repeat(np.array(sorted(classes), np.int64), MAX_DETECTIONS)
    none = np.zeros((len(IOU_THRESHOLDS), len(numbers)), bool)
    scores = np.full(len(numbers), math.inf)
    return MatchedImage(scores, numbers, none, none, truth.classes[~truth.crowd], broken=True)


def match_image(found: Detections, truth: ImageBoxes) -> MatchedImage:
    """Match detections to truths, by `pycocotools.cocoeval.COCOeval` for all areas and 100 detections of a class.

    Args:
        found: Boxes in the image's pixels.
        truth: Of the same image.

    Raises:
        BackendUnavailable: If pycocotools is missing.
    """
    evaluator = _evaluator()
    evaluator._gts, evaluator._dts = defaultdict(list), defaultdict(list)
    for index, (box, number, crowd, area) in enumerate(
        zip(truth.boxes.tolist(), truth.classes.tolist(), truth.crowd.tolist(), truth.area.tolist(), strict=True)
    ):
        # Ids count from 1: pycocotools takes 0 for "not matched".
        entry = {"id": index + 1, "bbox": box, "area": area, "iscrowd": int(crowd), "ignore": int(crowd)}
        evaluator._gts[1, number].append(entry)
    sizes = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = np.concatenate([found.boxes[:, :2], sizes], axis=1)
    known = set(truth.classes.tolist()) | set(found.classes.tolist())
    for index, (box, number, score) in enumerate(
        zip(boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True)
    ):
        entry = {"id": index + 1, "bbox": box, "area": box[2] * box[3], "score": score, "iscrowd": 0}
        evaluator._dts[1, number].append(entry)
    parts = []
    for number in sorted(known):
        evaluator.ious = {(1, number): evaluator.computeIoU(1, number)}
        result = evaluator.evaluateImg(1, number, _ALL_AREAS, MAX_DETECTIONS)
        parts.append((number, result))
    counts = [len(result["dtScores"]) for _, result in parts]
    truths = [np.count_nonzero(np.asarray(result["gtIgnore"]) == 0) for _, result in parts]
    numbers = np.array([number for number, _ in parts], np.int64)
    wide = (len(IOU_THRESHOLDS), 0)
    return MatchedImage(
        np.concatenate([np.zeros(0), *(result["dtScores"] for _, result in parts)]),
        np.repeat(numbers, counts),
        np.concatenate([np.zeros(wide, bool), *(result["dtMatches"] != 0 for _, result in parts)], axis=1),
        np.concatenate([np.zeros(wide, bool), *(result["dtIgnore"] for _, result in parts)], axis=1).astype(bool),
        np.repeat(numbers, truths),
    )


def _evaluator() -> Any:
    require_evaluator()
    from pycocotools.cocoeval import COCOeval

    # Without data sets it prints nothing; what it would take from them is set for one image at a time.
    evaluator = COCOeval(iouType="bbox")
    evaluator.params.maxDets = [MAX_DETECTIONS]
    return evaluator


def require_evaluator() -> None:
    """Refuse to go on without pycocotools.

    Raises:
        BackendUnavailable: If it is missing.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as cause:
        raise BackendUnavailable(
            "the task detect needs pycocotools", got=str(cause), hint="pip install 'quantlab[detect]'"
        ) from cause
