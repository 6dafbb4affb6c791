"""Drift: what a variant's outputs differ from the reference's, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.harness.comparison import Classification, OutputDrift

Array = NDArray[np.generic]
Floats = NDArray[np.float64]


def classification_output(outputs: Mapping[str, Array]) -> str | None:
    """The output that looks like class scores: the first floating one of shape (N, C) with C >= 2; None without."""
    for name, value in outputs.items():
        if value.ndim == 2 and value.shape[1] >= 2 and np.issubdtype(value.dtype, np.floating):
            return name
    return None


class OutputMeter:
    """Accumulates the drift of one output in float64; memory does not grow with the samples."""

    def __init__(self, output: str, scores: bool) -> None:
        self.output, self.scores = output, scores
        self.n = 0
        self.signal = self.noise = self.cosine = self.kl = self.max_abs = 0.0
        self.non_finite = 0
        self.first: Array | None = None
        self.constant = True

    def add(self, reference: Array, value: Array) -> None:
        """Add one batch, both (N, ...) of the same shape."""
        n = len(reference)
        width = math.prod(reference.shape[1:])  # not -1, which cannot be told for an array without elements
        expected = reference.reshape(n, width).astype(np.float64)
        got = value.reshape(n, width).astype(np.float64)
        broken = ~np.isfinite(got)
        self.non_finite += int(np.count_nonzero(broken))
        if self.first is None and n:
            self.first = got[0].copy()
        self.constant = self.constant and bool(np.all(got == self.first))
        usable = ~(broken.any(axis=1) | ~np.isfinite(expected).all(axis=1))
        expected, got = expected[usable], got[usable]
        if not len(expected):
            return
        difference = got - expected
        self.n += len(expected)
        self.signal += float(np.sum(expected * expected))
        self.noise += float(np.sum(difference * difference))
        self.max_abs = max(self.max_abs, float(np.max(np.abs(difference), initial=0.0)))
        self.cosine += float(np.sum(_cosines(expected, got)))
        if self.scores:
            self.kl += float(np.sum(_kl(expected, got)))

    def result(self, samples: int) -> OutputDrift:
        """The drift so far; NaN where no sample was usable."""
        if self.n == 0:
            nan = float("nan")
            return OutputDrift(self.output, nan, nan, nan, nan if self.scores else None, self.non_finite, self.constant)
        if self.noise == 0.0:
            sqnr = math.inf
        else:
            sqnr = 10.0 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        kl = max(self.kl / self.n, 0.0) if self.scores else None
        constant = self.constant and samples > 1
        return OutputDrift(self.output, sqnr, self.cosine / self.n, self.max_abs, kl, self.non_finite, constant)


def _cosines(a: Floats, b: Floats) -> Floats:
    """Cosine similarity by row; 1 for two zero rows, 0 for one."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    result: Floats = np.where(norms > 0, np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1.0), both_zero)
    return result


def _kl(reference: Floats, value: Floats) -> Floats:
    """KL(softmax(reference) || softmax(value)) by row, in nats."""
    log_p, log_q = _log_softmax(reference), _log_softmax(value)
    result: Floats = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    return result


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    return result


class ClassificationMeter:
    """Counts top-k decisions of a variant, paired with the reference's."""

    def __init__(self) -> None:
        self.n = self.agreement = self.labelled = self.top1 = self.top5 = self.reference = self.lost = self.won = 0
        self.classes = 0

    def add(self, reference: Array, value: Array, labels: Sequence[int | None]) -> None:
        """Add one batch of scores, both (N, C), with the labels there are. Non-finite scores are wrong answers."""
        self.classes = reference.shape[1]
        expected, got = _decide(reference), _decide(value)
        self.n += len(got)
        self.agreement += int(np.count_nonzero((got == expected) & (got >= 0)))
        known = np.array([label is not None for label in labels], bool)
        truth = np.array([-2 if label is None else label for label in labels])
        right, reference_right = (got == truth) & known, (expected == truth) & known
        self.labelled += int(known.sum())
        self.top1 += int(right.sum())
        self.reference += int(reference_right.sum())
        self.lost += int((reference_right & ~right).sum())
        self.won += int((right & ~reference_right).sum())
        if self.classes > 5 and known.any():
            # Ties count against the variant: the label is in only if fewer than five scores are at least as high.
            scores = np.where(np.isfinite(value), value, -np.inf)[known]
            own = scores[np.arange(len(scores)), truth[known]]
            better = (scores >= own[:, None]).sum(axis=1) - 1
            self.top5 += int(((better < 5) & (got[known] >= 0)).sum())

    def result(self) -> Classification:
        """The counts so far."""
        return Classification(
            n=self.n,
            agreement=self.agreement,
            n_labelled=self.labelled,
            top1=self.top1,
            top5=self.top5 if self.classes > 5 else None,
            reference_top1=self.reference,
            flips_to_wrong=self.lost,
            flips_to_right=self.won,
        )


def _decide(scores: Array) -> NDArray[np.int64]:
    """Index of the highest score by row; -1 where a score is not finite."""
    finite = np.isfinite(scores).all(axis=1)
    result: NDArray[np.int64] = np.where(finite, np.where(np.isfinite(scores), scores, -np.inf).argmax(axis=1), -1)
    return result
