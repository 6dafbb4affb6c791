"""Average precision and recall of COCO for any weights of the images.

The formulas are those of ``COCOeval.accumulate`` and ``summarize`` of pycocotools: precision is made monotone and read
at 101 recalls from 0 to 1; classes without a truth do not count. A weight of 2 is an image that is there twice: the
figures are those of pycocotools on such a data set, up to the order of detections of equal scores in one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from quantlab.harness.tasks.matches import IOU_THRESHOLDS, MatchedImage
from quantlab.harness.tasks.protocol import Estimator, Floats

RECALLS = np.linspace(0.0, 1.00, 101)
"""Exactly as ``pycocotools.cocoeval.Params`` makes them."""

_AT_ONCE = 2**21
"""Weights of marks held at a time."""

_NEXT_RECALLS = np.append(RECALLS[1:], np.inf)

Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Class:
    """One class over all images, its detections in the order of their scores.

    Precision need be known at the right detections alone: recall rises nowhere else, and between two of them precision
    falls. So what lies between two *marks*, detections that are right or ignored at some IoU threshold, is only summed.

    Attributes:
        passed: (m, n) how many detections of each image lie after the mark before and up to each mark.
        marked: (m,) image of each mark.
        right: For each IoU threshold, which marks are right.
        ignored: For each IoU threshold, which are neither right nor wrong.
        truth_images: Images with truths.
        truths: How many these have.
    """

    passed: sparse.csr_array
    marked: Indices
    right: tuple[Indices, ...]
    ignored: tuple[Indices, ...]
    truth_images: Indices
    truths: Floats

    @classmethod
    def of(cls, owners: Indices, hits: Flags, ignored: Flags, truth_owners: Indices, n: int) -> _Class:
        """From detections in the order of their scores.

        Args:
            owners: (d,) image of each detection.
            hits: (10, d) matched at each IoU threshold.
            ignored: (10, d) neither right nor wrong.
            truth_owners: (g,) image of each truth.
            n: Images in all.
        """
        marks = np.flatnonzero((hits | ignored).any(axis=0))
        mark_of = np.searchsorted(marks, np.arange(len(owners)))
        counted = mark_of < len(marks)  # what comes after the last mark changes nothing
        entries = (np.ones(int(counted.sum())), (mark_of[counted], owners[counted]))
        with_truth, counts = np.unique(truth_owners, return_counts=True)
        return cls(
            sparse.csr_array(sparse.coo_array(entries, shape=(len(marks), n))),
            owners[marks],
            tuple(np.flatnonzero(row) for row in (hits & ~ignored)[:, marks]),
            tuple(np.flatnonzero(row) for row in ignored[:, marks]),
            with_truth.astype(np.intp),
            counts.astype(np.float64),
        )

    def precision(self, weights: Floats, found: Floats, levels: Sequence[int]) -> Floats:
        """Average precision, mean over IoU thresholds; (r,).

        Args:
            weights: (n, r) of the images.
            found: (r,) weight of all truths, above 0.
            levels: Indices of the IoU thresholds.
        """
        totals = np.cumsum(self.passed @ weights, axis=0)
        own = weights[self.marked]
        total: Floats = np.zeros(weights.shape[1])
        for level in levels:
            right, ignored = self.right[level], self.ignored[level]
            hits = np.cumsum(own[right], axis=0)
            seen = totals[right]
            if len(ignored):
                before = np.cumsum(np.concatenate([np.zeros((1, weights.shape[1])), own[ignored]]), axis=0)
                seen = seen - before[np.searchsorted(ignored, right)]
            precision = hits / (seen + np.spacing(1))  # right and wrong ones
            monotone = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            total += _at_recalls(monotone, _recalls_up_to(hits / found)).mean(axis=0)
        return total / len(levels)

    def recall(self, weights: Floats, found: Floats, levels: Sequence[int]) -> Floats:
        """Share of the truths that were found, mean over IoU thresholds; as `precision`."""
        own = weights[self.marked]
        result: Floats = np.mean([own[self.right[level]].sum(axis=0) / found for level in levels], axis=0)
        return result


def _recalls_up_to(recall: Floats) -> Indices:
    """How many of `RECALLS` are at most each value: ``searchsorted(RECALLS, recall, "right")``, several times faster.

    A product can be off by a rounding, so both neighbours of the guess are compared exactly.
    """
    guess = (recall * (len(RECALLS) - 1)).astype(np.intp)
    reached: Indices = guess + (RECALLS[guess] <= recall) + (_NEXT_RECALLS[guess] <= recall)
    return reached


def _at_recalls(precision: Floats, reached: Indices) -> Floats:
    """Precision where each recall is first reached, 0 where it is not.

    Args:
        precision: (p, r), falling along the first axis.
        reached: (p, r) how many of `RECALLS` are reached, rising along the first axis.

    Returns:
        (101, r)
    """
    r = precision.shape[1]
    counts = np.bincount((reached * r + np.arange(r)).ravel(), minlength=(len(RECALLS) + 1) * r)
    first = np.cumsum(counts.reshape(-1, r), axis=0)[:-1]  # so many come before
    padded = np.concatenate([precision, np.zeros((1, r))])
    found: Floats = np.take_along_axis(padded, first, axis=0)
    return found


class _Rows(Protocol):
    """A figure of one class for columns of weights (n, r), all of which have truths, of weight ``found`` (r,)."""

    def __call__(self, one: _Class, weights: Floats, found: Floats, levels: Sequence[int], /) -> Floats: ...


class Pooled:
    """Matched images of one variant, ready to be weighted.

    Args:
        images: Of each sample; None for samples without a truth, which count nowhere.
    """

    def __init__(self, images: Sequence[MatchedImage | None]) -> None:
        self.n = len(images)
        known = [(index, image) for index, image in enumerate(images) if image is not None]
        if not known:
            self._classes: tuple[_Class, ...] = ()
            return
        owners = np.repeat([index for index, _ in known], [len(image.scores) for _, image in known])
        scores = np.concatenate([image.scores for _, image in known])
        numbers = np.concatenate([image.classes for _, image in known])
        hits = np.concatenate([image.hits for _, image in known], axis=1)
        ignored = np.concatenate([image.ignored for _, image in known], axis=1)
        truth_owners = np.repeat([index for index, _ in known], [len(image.truths) for _, image in known])
        truths = np.concatenate([image.truths for _, image in known])
        classes = []
        for number in np.unique(truths):
            mine = np.flatnonzero(numbers == number)
            mine = mine[np.argsort(-scores[mine], kind="stable")]
            of_class = truth_owners[truths == number].astype(np.intp)
            found = owners[mine].astype(np.intp)
            classes.append(_Class.of(found, hits[:, mine], ignored[:, mine], of_class, self.n))
        self._classes = tuple(classes)

    def average_precision(self, levels: Sequence[int] = tuple(range(len(IOU_THRESHOLDS)))) -> Estimator:
        """Estimator of the mean over classes and IoU thresholds of the average precision, in percent."""
        return lambda weights: self._mean(weights, levels, _Class.precision)

    def average_recall(self) -> Estimator:
        """Estimator of the mean over classes and IoU thresholds of the share of truths found, in percent."""
        return lambda weights: self._mean(weights, tuple(range(len(IOU_THRESHOLDS))), _Class.recall)

    def _mean(self, weights: Floats, levels: Sequence[int], of: _Rows) -> Floats:
        """Mean over the classes that have a truth; rows of weights (r, n), some at a time."""
        step = max(1, _AT_ONCE // max([1, *(len(one.marked) for one in self._classes)]))
        parts = [
            self._part(np.ascontiguousarray(weights[start : start + step].T), levels, of)
            for start in range(0, len(weights), step)
        ]
        return np.concatenate([np.zeros(0), *parts])

    def _part(self, weights: Floats, levels: Sequence[int], of: _Rows) -> Floats:
        total, counted = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for one in self._classes:
            found = one.truths @ weights[one.truth_images]
            there = found > 0
            if there.all():
                total += of(one, weights, found, levels)
            elif there.any():
                total[there] += of(one, np.ascontiguousarray(weights[:, there]), found[there], levels)
            counted += there
        result: Floats = 100.0 * total / np.where(counted > 0, counted, np.nan)
        return result
