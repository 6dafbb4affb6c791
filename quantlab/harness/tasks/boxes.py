"""Boxes found by a detector, and the suppression of those that say the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one image, the highest score first.

    Attributes:
        boxes: (k, 4) x1 y1 x2 y2.
        scores: (k,)
        classes: (k,)
    """

    boxes: Floats
    scores: Floats
    classes: Numbers

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: NDArray[np.generic]) -> Detections:
        """Some of them, by index or mask."""
        return Detections(self.boxes[indices], self.scores[indices], self.classes[indices])

    def best(self, most: int) -> Detections:
        """At most so many, the highest scores first; equal scores stay in their order."""
        return self.take(np.argsort(-self.scores, kind="stable")[:most])


def box_iou(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of one box (4,) with others (k, 4); 0 where both are empty."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - shared
    result: Floats = np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0)
    return result


def suppress(found: Detections, iou: float, most: int) -> Detections:
    """Greedy non-maximum suppression within each class: a box goes if it overlaps a better one by more than ``iou``.

    Args:
        found: Any order.
        iou: Threshold.
        most: Boxes kept at the end, over all classes.
    """
    found = found.best(len(found))
    kept: list[int] = []
    for number in np.unique(found.classes):
        left = np.flatnonzero(found.classes == number)
        mine = 0
        while len(left) and mine < most:
            kept.append(int(left[0]))
            mine += 1
            left = left[1:][box_iou(found.boxes[left[0]], found.boxes[left[1:]]) <= iou]
    return found.take(np.sort(np.array(kept, np.int64))[:most])
