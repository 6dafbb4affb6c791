"""Drift: what a variant's outputs differ from the reference's, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.harness.comparison import Classification, OutputDrift
from quantlab.harness.tasks.rows import OutputRows, classification_output, in_best, output_rows, top_class

__all__ = ["ClassificationMeter", "OutputMeter", "classification_output"]

Array = NDArray[np.generic]


class OutputMeter:
    """Accumulates the drift of one output in float64; memory does not grow with the samples."""

    def __init__(self, output: str, scores: bool) -> None:
        self.output, self.scores = output, scores
        self.n = 0
        self.signal = self.noise = self.cosine = self.kl = self.max_abs = 0.0
        self.non_finite = 0
        self.first: Array | None = None
        self.constant = True

    def add(self, reference: Array, value: Array) -> OutputRows:
        """Add one batch, both (N, ...) of the same shape; what was found sample by sample."""
        rows = output_rows(reference, value, scores=self.scores)
        self.non_finite += int(rows.non_finite.sum())
        if self.first is None and len(value):
            self.first = value[0].copy()
        self.constant = self.constant and bool(np.all(value == self.first))
        # Broken samples add 0 to every sum.
        self.n += int(np.count_nonzero(~rows.broken))
        self.signal += float(rows.signal.sum())
        self.noise += float(rows.noise.sum())
        self.max_abs = max(self.max_abs, float(rows.max_abs.max(initial=0.0)))
        self.cosine += float(rows.cosine.sum())
        if rows.kl is not None:
            self.kl += float(rows.kl.sum())
        return rows

    def result(self, samples: int) -> OutputDrift:
        """The drift so far; NaN where no sample was usable."""
        if self.n == 0:
            nan = float("nan")
            return OutputDrift(self.output, nan, nan, nan, nan if self.scores else None, self.non_finite, self.constant)
        if self.noise == 0.0:
            sqnr = math.inf
        else:
            sqnr = 10.0 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        kl = self.kl / self.n if self.scores else None
        constant = self.constant and samples > 1
        return OutputDrift(self.output, sqnr, self.cosine / self.n, self.max_abs, kl, self.non_finite, constant)


class ClassificationMeter:
    """Counts top-k decisions of a variant, paired with the reference's."""

    def __init__(self) -> None:
        self.n = self.agreement = self.labelled = self.top1 = self.top5 = self.reference = self.lost = self.won = 0
        self.classes = 0

    def add(self, reference: Array, value: Array, labels: Sequence[int | None]) -> None:
        """Add one batch of scores, both (N, C), with the labels there are. Non-finite scores are wrong answers."""
        self.classes = reference.shape[1]
        expected, got = top_class(reference), top_class(value)
        self.n += len(got)
        self.agreement += int(np.count_nonzero((got == expected) & (got >= 0)))
        truth = np.array([-2 if label is None else label for label in labels], np.int64)
        right, reference_right = got == truth, expected == truth  # -2 is nobody's answer
        self.labelled += int(np.count_nonzero(truth >= 0))
        self.top1 += int(right.sum())
        self.reference += int(reference_right.sum())
        self.lost += int((reference_right & ~right).sum())
        self.won += int((right & ~reference_right).sum())
        if self.classes > 5:
            self.top5 += int(in_best(value, truth, 5).sum())

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
