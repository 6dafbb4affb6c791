"""How far two runs of the same samples lie apart, value by value, accumulated sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

TERMS = ("signal", "noise", "non_finite", "differing", "values")
"""What `GapMeter.add` returns, in this order: sums over the values that were added."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Distance of one output from a reference, over all samples.

    Attributes:
        sqnr_db: 10 log10(sum ref^2 / sum (ref - out)^2), in dB; inf if identical, -inf if a value is not finite where
            the reference's is; None for outputs that are not floating-point.
        max_abs_error: Largest absolute difference; inf with values that are not finite.
        differing: Values that are not equal.
        values: Values compared.
        flips: Samples whose highest score is another one; None where the output does not look like class scores.
        non_finite: Values that are NaN or infinite where the reference has something else.
        undefined: Values that are not finite in the reference; they count in nothing but `differing`.
    """

    sqnr_db: float | None
    max_abs_error: float
    differing: int
    values: int
    flips: int | None
    non_finite: int
    undefined: int

    @property
    def is_equal(self) -> bool:
        """Whether all values are the same."""
        return self.differing == 0


class GapMeter:
    """Accumulates a `Gap` in float64; memory does not grow with the samples."""

    def __init__(self) -> None:
        self.signal = self.noise = self.max_abs = 0.0
        self.differing = self.values = self.flips = self.non_finite = self.undefined = 0
        self.has_scores = self.is_float = True

    def add(self, reference: Array, value: Array) -> tuple[float, ...]:
        """Add the output of one sample, or of several stacked ones; both of the same shape.

        Scores are arrays of shape (N, C) of floating-point numbers with C >= 2; a row with a value that is not finite
        has no highest score, and counts as a flip unless the reference's has none either.

        Returns:
            What was added to the sums that are named by `TERMS`.
        """
        self.is_float = self.is_float and _is_float(reference) and _is_float(value)
        expected, got = np.asarray(reference, np.float64), np.asarray(value, np.float64)
        same = (expected == got) | (np.isnan(expected) & np.isnan(got))
        known, finite = np.isfinite(expected), np.isfinite(got)
        with np.errstate(over="ignore"):  # an infinite sum is -inf or inf dB
            difference = got[known & finite] - expected[known & finite]
            signal, noise = float(np.sum(expected[known & finite] ** 2)), float(np.sum(difference * difference))
        differing, non_finite = int(np.count_nonzero(~same)), int(np.count_nonzero(~finite & ~same))
        self.values += expected.size
        self.differing += differing
        self.undefined += int(np.count_nonzero(~known))
        self.non_finite += non_finite
        self.signal += signal
        self.noise += noise
        self.max_abs = max(self.max_abs, float(np.max(np.abs(difference), initial=0.0)))
        self.has_scores = self.has_scores and self.is_float and expected.ndim == 2 and expected.shape[1] >= 2
        if self.has_scores:
            self.flips += int(np.count_nonzero(_highest(expected) != _highest(got)))
        return signal, noise, float(non_finite), float(differing), float(expected.size)

    def result(self) -> Gap:
        """The distance so far; NaN where nothing was added."""
        broken = self.non_finite > 0
        return Gap(
            sqnr_db=self._sqnr_db() if self.is_float else None,
            max_abs_error=math.inf if broken else self.max_abs if self.values else math.nan,
            differing=self.differing,
            values=self.values,
            flips=self.flips if self.has_scores and self.values else None,
            non_finite=self.non_finite,
            undefined=self.undefined,
        )

    def _sqnr_db(self) -> float:
        if self.values == 0:
            return math.nan
        if self.non_finite:
            return -math.inf
        return sqnr_db(self.signal, self.noise)


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise): inf without noise, -inf with noise alone."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 and math.isfinite(noise) else -math.inf


def _is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def _highest(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the highest score by row; -1 where one is not finite."""
    finite = np.isfinite(scores).all(axis=1)
    found: NDArray[np.int64] = np.where(finite, np.where(np.isfinite(scores), scores, -np.inf).argmax(axis=1), -1)
    return found
