"""Entropy: the KL-divergence search of TensorRT's entropy calibrator.

S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017 (S7310), pseudocode on slides 38 to 40:
a histogram of magnitudes in 2,048 bins, every threshold from 128 bins up, the outliers added to the last kept bin of
the reference P, the kept bins quantized to 128 levels and expanded over the occupied bins as Q, and the threshold of
least KL(P || Q).

Exact zeros are left out, because they are represented exactly at any scale yet would move the threshold twofold.

KL has no meaning for discrete, sparse or spiked tensors (a constant image background gives spikes all through a
network): spreading a spike over a level costs so much divergence that the search flees to the smallest thresholds and
clips what matters. Min-max is used instead, and reported, where fewer than 128 bins are occupied, and where the
threshold found has an expected SQNR more than 3 dB below that of min-max.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.error import sqnr_db
from quantlab.calibrators.histogram import Distribution
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import Scheme

Array = NDArray[np.float64]

BINS = 2048
LEVELS = 128
WORST_LOSS_DB = 3.0


class Entropy:
    """The threshold of least KL divergence on magnitudes; affine ranges are cut at plus and minus that threshold."""

    name = "entropy"

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        whole = MinMax().choose(distribution, scheme)
        found = kl_threshold(distribution)
        if found.meaningless is not None:
            return MethodRange(whole.low, whole.high, found.meaningless)
        threshold = found.threshold
        low, high = (
            (-threshold, threshold) if scheme.symmetric else (max(-threshold, whole.low), min(threshold, whole.high))
        )
        loss_db = sqnr_db(distribution, whole.low, whole.high, scheme) - sqnr_db(distribution, low, high, scheme)
        if loss_db > WORST_LOSS_DB:
            reason = f"values are spiked: the KL threshold {threshold:.4g} would cost {loss_db:.1f} dB against min-max"
            return MethodRange(whole.low, whole.high, reason, found.candidates)
        return MethodRange(low, high, candidates=found.candidates)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Result of the search on magnitudes.

    Attributes:
        threshold: Magnitude of least divergence.
        candidates: Thresholds compared.
        meaningless: Why there is nothing to search; None if there is.
    """

    threshold: float
    candidates: int
    meaningless: str | None = None


@lru_cache(maxsize=16)
def kl_threshold(distribution: Distribution) -> Threshold:
    """Search the threshold of least KL divergence; the same for every scheme, so the last results are remembered."""
    magnitudes = distribution.magnitudes()
    occupied = int(np.count_nonzero(magnitudes.mass * (magnitudes.high > 0.0)))
    if occupied < LEVELS:
        return Threshold(distribution.amax, 1, f"only {occupied} distinct magnitudes, KL has no meaning")
    counts = linear_bins(magnitudes, distribution.amax, BINS)
    filled = int(np.count_nonzero(counts))
    if filled < LEVELS:
        return Threshold(distribution.amax, 1, f"only {filled} of {BINS} bins occupied, KL has no meaning")
    divergences = kl_divergences(counts, LEVELS)
    kept = LEVELS + len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return Threshold(distribution.amax * min((kept + 0.5) / BINS, 1.0), len(divergences))


def linear_bins(magnitudes: Distribution, amax: float, bins: int) -> Array:
    """Counts of non-zero magnitudes in equal bins of [0, amax], (bins,) float64; intervals spread evenly."""
    kept = magnitudes.high > 0.0
    low, high, mass = magnitudes.low[kept], magnitudes.high[kept], magnitudes.mass[kept]
    points = np.linspace(0.0, amax, bins + 1)
    # Intervals in a row have one piecewise linear cumulative count. The few that are points, or that overlap the one
    # before because an extreme trimmed it, are added on their own.
    alone = (low >= high) | (low < np.concatenate([[0.0], np.maximum.accumulate(high)[:-1]]))
    row = ~alone
    knots = np.stack([low[row], high[row]], axis=1).reshape(-1)
    total = np.cumsum(mass[row])
    cumulative = np.stack([total - mass[row], total], axis=1).reshape(-1)
    below = np.interp(points, knots, cumulative) if knots.size else np.zeros(bins + 1)
    counts = np.diff(below)
    for start, stop, weight in zip(low[alone], high[alone], mass[alone], strict=True):
        if stop > start:
            counts += weight * np.diff(np.clip((points - start) / (stop - start), 0.0, 1.0))
        else:
            counts[min(int(start / amax * bins), bins - 1)] += weight
    return np.maximum(counts, 0.0)


def kl_divergences(counts: Array, levels: int) -> Array:
    """KL(P || Q) in nats for every number of kept bins from ``levels`` to ``len(counts)``, by prefix sums.

    Args:
        counts: Histogram of magnitudes, (B,), B >= levels.
        levels: Quantization levels of the kept part.

    Returns:
        (B - levels + 1,); infinity where Q is zero at a bin where P is not.
    """
    bins = len(counts)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    total = float(mass[-1])  # of the same summation, so that no rounding is left over as an outlier
    occupied = np.concatenate([[0], np.cumsum(counts > 0)]).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        plogp = np.where(counts > 0, counts * np.log(counts), 0.0)
    entropy = np.concatenate([[0.0], np.cumsum(plogp)])
    kept = np.arange(levels, bins + 1)
    # Level j of a candidate with m bins covers bins [floor(j m / levels), floor((j + 1) m / levels)).
    borders = (np.arange(levels + 1)[None, :] * kept[:, None]) // levels
    level_mass = np.diff(mass[borders], axis=1)
    level_occupied = np.diff(occupied[borders], axis=1)
    outliers = total - mass[kept]
    last = counts[kept - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        level_value = np.where(level_occupied > 0, level_mass / level_occupied, 0.0)
        log_value = np.where(level_value > 0, np.log(level_value), 0.0)
        # sum P log P with the outliers in the last bin, over the total
        last_with = last + outliers
        p_log_p = entropy[kept - 1] + np.where(last_with > 0, last_with * np.log(last_with), 0.0)
        p_log_q = (level_mass * log_value).sum(axis=1) + outliers * log_value[:, -1]
        q_total = mass[kept]
        result = (p_log_p - p_log_q) / total - np.log(total) + np.log(q_total)
    impossible = ((last <= 0) & (outliers > 0)) | (q_total <= 0)
    result[impossible] = np.inf
    return np.asarray(result, np.float64)
