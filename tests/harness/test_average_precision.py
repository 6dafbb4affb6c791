from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from detection_data import coco_figures, random_image
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.datasets.annotations_coco import ImageBoxes
from quantlab.harness.tasks.average_precision import RECALLS, Pooled
from quantlab.harness.tasks.boxes import Detections, suppress
from quantlab.harness.tasks.matches import IOU_THRESHOLDS, MAX_DETECTIONS, MatchedImage, broken_image, match_image

SEEDS = st.integers(0, 2**32 - 1)


def figures(images: list[MatchedImage | None], weights: np.ndarray | None = None) -> np.ndarray:
    rows = np.ones((1, len(images))) if weights is None else np.atleast_2d(weights)
    pooled = Pooled(images)
    estimators = (pooled.average_precision(), pooled.average_precision([0]), pooled.average_recall())
    return np.stack([estimator(rows.astype(float)) for estimator in estimators], axis=1)


def test_thresholds_are_pycocotools_own() -> None:
    from pycocotools.cocoeval import Params

    np.testing.assert_array_equal(Params("bbox").iouThrs, IOU_THRESHOLDS)
    np.testing.assert_array_equal(Params("bbox").recThrs, RECALLS)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 30), classes=st.integers(1, 5))
def test_as_pycocotools(seed: int, n: int, classes: int) -> None:
    """With crowds, areas of their own, images without objects and classes without truths."""
    rng = np.random.default_rng(seed)
    images = [random_image(rng, classes) for _ in range(n)]
    if not any(len(found) for found, _ in images):
        return  # loadRes takes no empty results
    expected = np.array(coco_figures(images))
    got = figures([match_image(*image) for image in images])[0]
    if expected[0] < 0:  # -100: there is no truth
        assert np.isnan(got).all()
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * 100)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_weights_are_repetitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [random_image(rng, 3) for _ in range(20)]
    weights = rng.integers(0, 4, (4, 20))
    got = figures([match_image(*image) for image in images], weights)
    for row, counts in zip(got, weights, strict=True):
        repeated = [image for image, count in zip(images, counts, strict=True) for _ in range(count)]
        np.testing.assert_allclose(row, coco_figures(repeated), rtol=0, atol=1e-10)


def test_many_detections_and_ties() -> None:
    """More than 100 detections of a class in an image, and scores that repeat within and between images."""
    rng = np.random.default_rng(5)
    images = []
    for _ in range(6):
        parts = [random_image(rng, 1, crowds=False) for _ in range(40)]
        boxes = np.concatenate([found.boxes for found, _ in parts])
        scores = np.round(np.concatenate([found.scores for found, _ in parts]), 1)
        found = Detections(boxes, scores, np.zeros(len(scores), np.int64))
        images.append((found.best(300), parts[0][1]))
    assert all(len(found) > MAX_DETECTIONS for found, _ in images)
    got = figures([match_image(*image) for image in images])[0]
    np.testing.assert_allclose(got, coco_figures(images), rtol=0, atol=1e-10)


def test_parts_of_weights_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    images = [match_image(*random_image(rng, 3)) for _ in range(30)]
    weights = rng.integers(0, 3, (50, 30))
    whole = figures(images, weights)
    monkeypatch.setattr("quantlab.harness.tasks.average_precision._AT_ONCE", 1)
    np.testing.assert_allclose(figures(images, weights), whole, rtol=1e-13)


def test_undefined() -> None:
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    nothing = ImageBoxes((9, 9), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
    images = [match_image(empty, nothing), None]
    assert np.isnan(figures(images)).all() and np.isnan(figures([None, None])).all()
    rng = np.random.default_rng(0)
    known = [match_image(*random_image(rng, 2)) for _ in range(8)]
    np.testing.assert_array_equal(figures([*known, None]), figures(known))
    assert np.isnan(figures(known, np.zeros((1, 8)))).all()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_broken_outputs_are_worse_than_any(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [random_image(rng, 3) for _ in range(12)]
    images: list[MatchedImage | None] = [match_image(*pair) for pair in pairs]
    for index, (_, truth) in enumerate(pairs):
        worst = [*images]
        worst[index] = broken_image(truth, range(3))
        floor = figures(worst)[0]
        if np.isnan(floor).any():
            continue
        for _ in range(3):
            other = [*images]
            other[index] = match_image(random_image(rng, 3)[0], truth)
            assert (figures(other)[0] >= floor - 1e-9).all()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_text_for_the_file_of_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [match_image(*random_image(rng, 4)) for _ in range(10)]
    again = [MatchedImage.from_json(image.to_json()) for image in images]
    np.testing.assert_array_equal(figures(list(again)), figures(list(images)))


def test_broken_image_in_the_file_of_samples() -> None:
    _, truth = random_image(np.random.default_rng(1), 2, crowds=False)
    image = broken_image(truth, range(2))
    assert "inf" not in image.to_json().lower()
    assert len(MatchedImage.from_json(image.to_json()).truths) == len(truth.classes) and math.isinf(image.scores[0])
    assert dataclasses.replace(image, broken=False).found.tolist() == [0.0] * 10


@given(seed=SEEDS, n=st.integers(0, 40), iou=st.floats(0.05, 0.95), most=st.integers(1, 30))
def test_suppression(seed: int, n: int, iou: float, most: int) -> None:
    """Against the definition, box by box."""
    rng = np.random.default_rng(seed)
    starts, sizes = rng.uniform(0, 30, (n, 2)), rng.uniform(5, 30, (n, 2))
    found = Detections(np.concatenate([starts, starts + sizes], axis=1), rng.random(n), rng.integers(0, 3, n))
    kept: list[int] = []
    for index in sorted(range(n), key=lambda i: -found.scores[i]):
        x1, y1, x2, y2 = found.boxes[index]
        for other in kept:
            if found.classes[other] != found.classes[index]:
                continue
            a1, b1, a2, b2 = found.boxes[other]
            shared = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            if shared / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared) > iou:
                break
        else:
            kept.append(index)
    got = suppress(found, iou, most)
    np.testing.assert_array_equal(got.scores, found.scores[kept[:most]])
    np.testing.assert_array_equal(got.boxes, found.boxes[kept[:most]])
