"""How far each sample's output is from the reference's: the numbers that every measure of drift is a sum of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OutputRows:
    """One output of a batch, compared sample by sample with the reference's; all (n,), in float64.

    Attributes:
        signal: Sum of squares of the reference's values; 0 for broken samples.
        noise: Sum of squares of the differences; 0 for broken samples.
        cosine: Cosine similarity; 0 for broken samples.
        max_abs: Largest absolute difference; 0 for broken samples.
        kl: KL(softmax(reference) || softmax(value)) in nats; 0 for broken samples. None where values are no scores.
        non_finite: Values of the variant that are NaN or infinite.
        broken: Samples of which a value, or a value of the reference, is not finite: nothing can be said of them.
    """

    signal: Floats
    noise: Floats
    cosine: Floats
    max_abs: Floats
    kl: Floats | None
    non_finite: NDArray[np.int64]
    broken: NDArray[np.bool_]

    def sqnr_db(self) -> Floats:
        """SQNR of each sample in dB: inf if identical, -inf if broken or without a signal."""
        noisy = (self.noise > 0) & (self.signal > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = 10.0 * np.log10(np.where(noisy, self.signal / np.where(noisy, self.noise, 1.0), 1.0))
        usable = np.where(self.noise == 0, math.inf, np.where(noisy, ratio, -math.inf))
        result: Floats = np.where(self.broken, -math.inf, usable)
        return result

    def columns(self, output: str) -> dict[str, Array]:
        """Columns of the file of samples; broken samples have the worst values there are."""
        found: dict[str, Array] = {
            f"{output}.sqnr_db": self.sqnr_db(),
            f"{output}.cosine": np.where(self.broken, -1.0, self.cosine),
            f"{output}.max_abs_error": np.where(self.broken, math.inf, self.max_abs),
            f"{output}.signal": self.signal,
            f"{output}.noise": self.noise,
            f"{output}.non_finite": self.non_finite,
            f"{output}.broken": self.broken,
        }
        if self.kl is not None:
            found[f"{output}.kl_nats"] = np.where(self.broken, math.inf, self.kl)
        return found


def output_rows(reference: Array, value: Array, *, scores: bool) -> OutputRows:
    """Compare one output of a batch.

    Args:
        reference: (n, ...), any real dtype; computed with in float64.
        value: Of the same shape.
        scores: Whether the values of a sample are class scores, so that there is a KL divergence.
    """
    n = len(reference)
    width = math.prod(reference.shape[1:])  # not -1, which cannot be told for an array without elements
    expected = reference.reshape(n, width).astype(np.float64)
    got = value.reshape(n, width).astype(np.float64)
    non_finite = np.count_nonzero(~np.isfinite(got), axis=1).astype(np.int64)
    broken = (non_finite > 0) | ~np.isfinite(expected).all(axis=1)
    if broken.any():
        expected[broken] = got[broken] = 0.0
    difference = got - expected
    return OutputRows(
        signal=np.einsum("ij,ij->i", expected, expected),
        noise=np.einsum("ij,ij->i", difference, difference),
        cosine=np.where(broken, 0.0, _cosines(expected, got)),
        max_abs=np.max(np.abs(difference), axis=1, initial=0.0),
        kl=np.maximum(_kl(expected, got), 0.0) if scores else None,
        non_finite=non_finite,
        broken=broken,
    )


def classification_output(outputs: Mapping[str, Array]) -> str | None:
    """The output that looks like class scores: the first floating one of shape (N, C) with C >= 2; None without."""
    for name, value in outputs.items():
        if value.ndim == 2 and value.shape[1] >= 2 and np.issubdtype(value.dtype, np.floating):
            return name
    return None


def top_class(scores: Array) -> NDArray[np.int64]:
    """Index of the highest score by row, the first of equals; -1 where a score is not finite."""
    finite = np.isfinite(scores)
    result: NDArray[np.int64] = np.where(
        finite.all(axis=1), np.where(finite, scores, -np.inf).argmax(axis=1), -1
    ).astype(np.int64)
    return result


def in_best(scores: Array, labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether the label is among the ``k`` best scores of its row.

    Ties count against the variant: the label is in only if fewer than ``k`` other scores are at least as high. A row
    with a score that is not finite, or a label below 0, is not.
    """
    known = np.where(labels < 0, 0, labels)
    finite = np.isfinite(scores).all(axis=1)
    cleaned = np.where(np.isfinite(scores), scores, -np.inf)
    own = cleaned[np.arange(len(cleaned)), known]
    as_high = (cleaned >= own[:, None]).sum(axis=1) - 1
    result: NDArray[np.bool_] = (as_high < k) & finite & (labels >= 0)
    return result


def log_softmax(x: Floats) -> Floats:
    """Logarithm of the softmax of each row of finite values."""
    shifted = x - x.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    return result


def _cosines(a: Floats, b: Floats) -> Floats:
    """Cosine similarity by row; 1 for two zero rows, 0 for one."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    result: Floats = np.where(norms > 0, np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1.0), both_zero)
    return result


def _kl(reference: Floats, value: Floats) -> Floats:
    """KL(softmax(reference) || softmax(value)) by row, in nats."""
    log_p, log_q = log_softmax(reference), log_softmax(value)
    result: Floats = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    return result
