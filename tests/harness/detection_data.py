"""Random detections and truths, and what pycocotools makes of them by its public interface."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from quantlab.datasets.annotations_coco import ImageBoxes
from quantlab.harness.tasks.boxes import Detections

SIDE = 200.0


def random_image(rng: np.random.Generator, classes: int, crowds: bool = True) -> tuple[Detections, ImageBoxes]:
    """Truths, and detections of which some are near one and some are anywhere."""
    n = int(rng.integers(0, 7))
    sizes = rng.uniform(5, 80, (n, 2))
    boxes = np.concatenate([rng.uniform(0, SIDE - sizes), sizes], axis=1)
    numbers = rng.integers(0, classes, n)
    crowd = (rng.random(n) < 0.2) & crowds
    truth = ImageBoxes((int(SIDE), int(SIDE)), boxes, numbers, crowd, sizes.prod(axis=1) * rng.uniform(0.5, 1, n))
    near = rng.random(n) < 0.8
    moved = boxes[near] + rng.normal(0, 2.5, (int(near.sum()), 4))
    stray_sizes = rng.uniform(5, 80, (int(rng.integers(0, 6)), 2))
    stray = np.concatenate([rng.uniform(0, SIDE - stray_sizes), stray_sizes], axis=1)
    both = np.concatenate([moved, stray])
    both[:, 2:] = np.maximum(both[:, 2:], 1.0)
    corners = np.concatenate([both[:, :2], both[:, :2] + both[:, 2:]], axis=1)
    said = np.concatenate([numbers[near], rng.integers(0, classes, len(stray))])
    found = Detections(corners, rng.random(len(corners)), said.astype(np.int64))
    return found.best(len(found)), truth


def coco_figures(images: Sequence[tuple[Detections, ImageBoxes]]) -> tuple[float, float, float]:
    """AP, AP50 and AR100 in percent by pycocotools: COCO, loadRes, evaluate, accumulate, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (found, truth) in enumerate(images, start=1):
        for box, number, crowd, area in zip(truth.boxes, truth.classes, truth.crowd, truth.area, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(number), "bbox": box.tolist(),
                 "iscrowd": int(crowd), "area": float(area)}
            )  # fmt: skip
        for corners, number, score in zip(found.boxes, found.classes, found.scores, strict=True):
            box = [*corners[:2], *(corners[2:] - corners[:2])]
            results.append({"image_id": image, "category_id": int(number), "bbox": list(map(float, box)),
                            "score": float(score)})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = {
            "images": [{"id": image, "width": SIDE, "height": SIDE} for image in range(1, len(images) + 1)],
            "categories": [{"id": number} for number in range(20)],
            "annotations": annotations,
        }
        truth_set.createIndex()
        evaluator = COCOeval(truth_set, truth_set.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    ap, ap50, ar100 = (float(evaluator.stats[index]) for index in (0, 1, 8))
    return 100 * ap, 100 * ap50, 100 * ar100
