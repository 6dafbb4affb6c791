"""Ratio of two durations from paired blocks, with a block bootstrap interval.

The estimator is the mean of the middle third of the log-ratios. On shared machines a block is now and then slower by
tens of percent: the mean follows such blocks, and so do estimators that first average the two rounds of a pair; the
median holds, but its interval needs more rounds. The middle third bears as many bad blocks as a third on either side,
and its intervals are a tenth shorter than the median's.

What is resampled are ABBA pairs of rounds, never single rounds: slow drift has opposite signs in the two rounds of a
pair, and cancels only if they stay together. ``benchmarks/harness.py`` and the tests show how often the interval holds
the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from quantlab.statistics.interval import Interval

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
EQUIVALENCE_CONFIDENCE = 0.90
"""Of the interval that two one-sided tests at 5 % look at (Schuirmann, 1987)."""
RESAMPLES = 2000
FEW_PAIRS = 10
"""With fewer pairs the bootstrap has too few values to choose from, see `ratio_of_pairs`."""
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, slots=True)
class RatioEstimate:
    """A ratio and how sure it is.

    Attributes:
        ratio: Estimate.
        interval: Of 95 %.
        equivalence_interval: Of 90 %.
        log_error: Standard error of the ratio's natural logarithm: the interval's half-width over Student's quantile.
    """

    ratio: float
    interval: Interval
    equivalence_interval: Interval
    log_error: float


def middle_third(values: Floats) -> Floats:
    """Mean of what is left of the last axis when a third of the values, rounded down, is cut off at either end."""
    n = values.shape[-1]
    cut = n // 3
    ordered = np.sort(values, axis=-1)
    found: Floats = np.mean(ordered[..., cut : n - cut], axis=-1)
    return found


def ratio_of_pairs(pairs: Floats, seed: int, resamples: int = RESAMPLES) -> RatioEstimate:
    """Estimate a ratio from log-ratios.

    The interval is the expanded percentile interval of the bootstrap over the rows (Hesterberg, "What Teachers Should
    Know About the Bootstrap", The American Statistician 69, 2015): the percentiles lie further out than
    the nominal ones, as Student's quantile times ``sqrt(n / (n - 1))`` is beyond the normal one, because a small
    sample's own spread is too small. With fewer than ten rows Student's interval of the rows' means is joined to it.

    Args:
        pairs: Natural logarithms of the ratios, float64 of shape (pairs of rounds, rounds in a pair).
        seed: Of the resampling.
        resamples: Number of resamples.

    Returns:
        The estimate; with fewer than two rows its intervals are 0 to infinity.
    """
    n = len(pairs)
    ratio = math.exp(float(middle_third(pairs.reshape(-1))))
    if n < 2:
        nothing = (Interval(0.0, math.inf, CONFIDENCE), Interval(0.0, math.inf, EQUIVALENCE_CONFIDENCE))
        return RatioEstimate(ratio, *nothing, math.inf)
    estimates = _resampled(pairs, seed, resamples)
    interval, equivalence = (
        _interval(pairs, estimates, confidence) for confidence in (CONFIDENCE, EQUIVALENCE_CONFIDENCE)
    )
    return RatioEstimate(ratio, interval, equivalence, half_width(interval) / _student(n, CONFIDENCE))


def half_width(interval: Interval) -> float:
    """Half the width of a ratio's interval on the logarithmic scale: 0.01 is 1 % either way."""
    if interval.low <= 0.0 or not math.isfinite(interval.high):
        return math.inf
    return (math.log(interval.high) - math.log(interval.low)) / 2.0


def _resampled(pairs: Floats, seed: int, resamples: int) -> Floats:
    """Estimates of resamples of the rows, in chunks that bound the memory."""
    n = len(pairs)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // pairs.size)
    parts = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        parts.append(middle_third(pairs[generator.integers(0, n, (count, n))].reshape(count, -1)))
    return np.concatenate(parts)


def _student(n: int, confidence: float) -> float:
    return float(stdtrit(n - 1, (1.0 + confidence) / 2.0))


def _interval(pairs: Floats, estimates: Floats, confidence: float) -> Interval:
    n = len(pairs)
    tail = float(ndtr(-_student(n, confidence) * math.sqrt(n / (n - 1))))
    low, high = (float(value) for value in np.quantile(estimates, [tail, 1.0 - tail]))
    if n < FEW_PAIRS:
        means = np.mean(pairs, axis=1)
        half = _student(n, confidence) * float(np.std(means, ddof=1)) / math.sqrt(n)
        low, high = min(low, float(np.mean(means)) - half), max(high, float(np.mean(means)) + half)
    return Interval(math.exp(low), math.exp(high), confidence)
