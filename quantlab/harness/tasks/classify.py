"""The task ``classify``: one class for each sample, the highest score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.errors import ConfigError, DataError
from quantlab.harness.tasks.columns import Column, only_losses
from quantlab.harness.tasks.protocol import AnyMeter, CountChange, Figure, Kind, Pair
from quantlab.harness.tasks.registry import Beginning, TaskRequest, refuse_options
from quantlab.harness.tasks.rows import classification_output, in_best, log_softmax, top_class
from quantlab.statistics.bootstrap import Additive

Floats = NDArray[np.float64]

BINS = 15
"""Of the calibration error: equal widths from 0 to 1, the number of Guo et al. (2017)."""

_SMALLEST = 1e-15
"""Probabilities below it count as it: a softmax in INT8 gives exact zeros, whose logarithm says nothing."""


@dataclass(frozen=True, slots=True)
class Classify:
    """What the scores mean.

    Attributes:
        output: The output with the scores, (N, C).
        classes: C.
        logits: Whether a softmax makes probabilities of them; False if they are probabilities already.
        class_names: By number, where known.
    """

    output: str
    classes: int
    logits: bool
    class_names: tuple[str, ...] | None = None

    name = "classify"  # not annotated: constants, not fields
    least = 10

    @property
    def figures(self) -> Sequence[Figure]:
        """The shares, then what the probabilities are worth."""
        top5 = (Figure("top5", "%", higher_is_better=True, kind=Kind.PROPORTION),) if self.classes > 5 else ()
        return (
            Figure("top1", "%", higher_is_better=True, kind=Kind.PROPORTION),
            *top5,
            Figure("agreement", "%", higher_is_better=True, kind=Kind.PROPORTION, against_reference=True),
            Figure("calibration_error", "%", higher_is_better=False, sliced=False),
            Figure("nll", "nats", higher_is_better=False, sliced=False),
            Figure("brier", "", higher_is_better=False, sliced=False),
        )

    def meter(self) -> ClassifyMeter:
        """A new meter."""
        return ClassifyMeter(self)

    def class_name(self, number: int) -> str:
        """Name of a class, or its number; in words for the answer of a sample without finite scores."""
        if number < 0:
            return "not finite"
        names = self.class_names
        return names[number] if names is not None and number < len(names) else str(number)


def make(request: TaskRequest, beginning: Beginning) -> Classify:
    """The task, from what the outputs look like.

    Scores whose rows are at least 0 and add up to 1 are taken for probabilities, others for logits.

    Raises:
        ConfigError: If no output looks like class scores, or a setting was given.
    """
    refuse_options(request, "classify")
    output = classification_output(beginning.outputs)
    if output is None:
        shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in beginning.outputs.items())
        raise ConfigError(
            "the task classify needs an output of class scores",
            got=shapes,
            expected="a floating-point output of shape (N, C) with two or more classes",
            hint="leave --task out, or use --task outputs",
        )
    scores = beginning.outputs[output].astype(np.float64)
    sums = scores[np.isfinite(scores).all(axis=1)].sum(axis=1)
    logits = bool((scores < 0).any() or not len(sums) or (np.abs(sums - 1.0) > 1e-2).any())
    return Classify(output, scores.shape[1], logits, beginning.dataset.class_names)


def check_labels(batch: Batch, classes: int) -> None:
    """Refuse labels that are none of the output's classes.

    Raises:
        DataError: Naming the sample.
    """
    for identity, label in zip(batch.ids, batch.labels, strict=True):
        if label is not None and not 0 <= label < classes:
            raise DataError(
                f"sample {identity!r} has a label outside the model's classes",
                got=label,
                expected=f"0 to {classes - 1}",
                hint="check the labels, or the order of the class folders",
            )


class ClassifyMeter:
    """Decisions and probabilities of one variant, sample by sample.

    A sample with a score that is not finite is wrong, and wrong with full confidence: the worst that each figure knows.
    """

    drop_unit = "probability lost"

    def __init__(self, task: Classify) -> None:
        self.task = task
        self.labels, self.answers, self.expected = Column(np.int64), Column(np.int64), Column(np.int64)
        self.in_top5, self.broken = Column(np.bool_), Column(np.bool_)
        self.confidence, self.target = Column(np.float64), Column(np.float64)
        self.nll, self.brier = Column(np.float64), Column(np.float64)

    def add_pair(self, batch: Batch, pair: Pair) -> Mapping[str, NDArray[np.generic]]:
        """Take in a batch; see `PairedMeter`.

        Raises:
            DataError: If a label is outside the classes.
        """
        check_labels(batch, self.task.classes)
        scores = pair.outputs[self.task.output]
        labels = np.array([-1 if label is None else label for label in batch.labels], np.int64)
        answers, expected = top_class(scores), top_class(pair.reference[self.task.output])
        broken = answers < 0
        p = self._probabilities(scores, broken)
        rows = np.arange(len(labels))
        known = labels >= 0
        of_label = p[rows, np.where(known, labels, 0)]
        top = p[rows, np.where(broken, 0, answers)]
        parts = {
            "in_top5": in_best(scores, labels, 5),
            "confidence": np.where(broken, 1.0, top),
            # What the reference said stands in for a label that is not known.
            "target": np.where(broken, 0.0, p[rows, np.where(known, labels, np.maximum(expected, 0))]),
            "nll": np.where(broken | ~known, 0.0, -np.log(np.maximum(of_label, _SMALLEST))),
            "brier": np.where(broken, 2.0, np.sum(p * p, axis=1) - 2.0 * of_label + 1.0),
        }
        self.labels.add(labels)
        self.answers.add(answers)
        self.in_top5.add(parts["in_top5"])
        self.confidence.add(parts["confidence"])
        self.target.add(parts["target"])
        self.nll.add(parts["nll"])
        self.brier.add(parts["brier"])
        self.expected.add(expected)
        self.broken.add(broken)
        return {
            "predicted": answers,
            "right": np.ma.masked_array(answers == labels, ~known),
            "in_top5": np.ma.masked_array(parts["in_top5"], ~known),
            "agrees": (answers == expected) & ~broken,
            "confidence": parts["confidence"],
            "target_probability": parts["target"],
            "nll": np.ma.masked_array(np.where(broken, math.inf, parts["nll"]), ~known),
            "brier": np.ma.masked_array(parts["brier"], ~known),
        }

    def estimators(self) -> Mapping[str, Additive]:
        """See `Meter`: calibration error, negative log-likelihood and Brier score of the labelled samples."""
        known = self.labels.values >= 0
        right = (self.answers.values == self.labels.values) & known
        count = known.astype(np.float64)
        # Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3, bins ((m-1)/M, m/M]:
        # |accuracy - confidence| of a bin times its share of the samples is |sum of (right - confidence)| / n.
        bins = np.clip(np.ceil(self.confidence.values * BINS).astype(np.int64) - 1, 0, BINS - 1)
        gaps = np.zeros((len(known), BINS + 1))
        gaps[np.arange(len(known)), bins] = np.where(known, right - self.confidence.values, 0.0)
        gaps[:, BINS] = count
        broken = (self.broken.values & known).astype(np.float64)
        return {
            "calibration_error": Additive(
                gaps, lambda sums: 100.0 * _over(np.abs(sums[:, :BINS]).sum(axis=1), sums[:, BINS])
            ),
            "nll": Additive(
                np.stack([self.nll.values, count, broken], axis=1),
                lambda sums: np.where(sums[:, 2] > 0, math.inf, _over(sums[:, 0], sums[:, 1])),
            ),
            "brier": Additive(
                np.stack([np.where(known, self.brier.values, 0.0), count], axis=1),
                lambda sums: _over(sums[:, 0], sums[:, 1]),
            ),
        }

    def correct(self, figure: str) -> Floats:
        """See `Meter`; agreement is over all samples, the others over the labelled ones."""
        answers, labels = self.answers.values, self.labels.values
        if figure == "agreement":
            same: NDArray[np.bool_] = (answers == self.expected.values) & (answers >= 0)
            return same.astype(np.float64)
        right: NDArray[np.bool_] = self.in_top5.values if figure == "top5" else answers == labels
        result: Floats = np.where(labels >= 0, right.astype(np.float64), math.nan)
        return result

    def counted(self, figure: str) -> NDArray[np.bool_]:
        """See `Partial`."""
        labels = self.labels.values
        return np.ones(len(labels), bool) if figure == "agreement" else labels >= 0

    def drops(self, reference: AnyMeter) -> Floats:
        """How much less probable the label became; of the reference's answer where there is no label."""
        assert isinstance(reference, ClassifyMeter)
        return only_losses(reference.target.values - self.target.values)

    def says(self, index: int) -> str:
        """Class and its probability."""
        answer = int(self.answers.values[index])
        name = self.task.class_name(answer)
        return name if answer < 0 else f"{name} ({self.confidence.values[index]:.2f})"

    def truth(self, index: int) -> str | None:
        """The label."""
        label = int(self.labels.values[index])
        return None if label < 0 else self.task.class_name(label)

    def changes(self, reference: AnyMeter, most: int) -> tuple[CountChange, ...]:
        """See `Confusions`."""
        assert isinstance(reference, ClassifyMeter)
        labels = self.labels.values
        width = self.task.classes + 1
        both = []
        for meter in (reference, self):
            wrong = (labels >= 0) & (meter.answers.values != labels)
            both.append(labels[wrong] * width + meter.answers.values[wrong] + 1)
        cells = np.unique(np.concatenate(both))
        before, after = (_counts(one, cells) for one in both)
        order = np.argsort(-np.abs(after - before), kind="stable")[:most]
        return tuple(
            CountChange(
                self.task.class_name(int(cells[i]) // width),
                self.task.class_name(int(cells[i]) % width - 1),
                int(before[i]),
                int(after[i]),
            )
            for i in order
            if before[i] != after[i]
        )

    def _probabilities(self, scores: NDArray[np.generic], broken: NDArray[np.bool_]) -> Floats:
        """(n, C); of broken rows all 0."""
        finite = np.where(broken[:, None], 0.0, scores.astype(np.float64))
        p = np.exp(log_softmax(finite)) if self.task.logits else finite
        result: Floats = np.where(broken[:, None], 0.0, p)
        return result


def _over(sums: Floats, count: Floats) -> Floats:
    """Mean; NaN of nothing."""
    result: Floats = np.where(count > 0, sums / np.where(count > 0, count, 1.0), math.nan)
    return result


def _counts(found: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.intp]:
    """How often each cell was found."""
    ordered = np.sort(found)
    return np.searchsorted(ordered, cells, "right") - np.searchsorted(ordered, cells, "left")
