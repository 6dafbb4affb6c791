"""Entropy: the KL-divergence search of TensorRT's entropy calibrator.

S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017 (S7310), pseudocode on slides 38 to 40:
a histogram of magnitudes, every threshold from 128 bins up, the outliers added to the last kept bin of the reference P,
the kept bins quantized to 128 levels and expanded over the occupied bins as Q, and the threshold of least KL(P || Q).

What the slides leave open, and what differs:

- The bins are 2**E / 2048 wide, where 2**E is the power of two at or below the largest magnitude: 2,049 to 4,096 bins,
  in which the counts are exact whole numbers (see docs/adr/002-float-bit-histograms.md).
- Where the kept bins do not divide evenly, levels begin at the next whole bin, as in NVIDIA ModelOpt.
- Exact zeros are left out, because they are represented exactly at any scale yet would move the threshold twofold.
- An affine scheme has all its 256 levels on the one side of a one-sided tensor, and so has the search, which then
  begins at 256 bins.

KL has no meaning for constant, discrete, sparse or spiked tensors. Min-max is used instead, and reported, where

- the tensor is constant or discrete (`Distribution.kind`);
- there are fewer values other than zero than bins, or fewer bins occupied than levels: the divergence is then that of
  chance, or of single values;
- the threshold found has an expected SQNR more than 3 dB below that of min-max. A constant image background gives
  spikes all through a network; spreading a spike over a level costs so much divergence that the search flees to the
  smallest thresholds and clips what matters. It also flees into the gap where values keep away from zero: with all of
  them in the last kept bin, P and Q are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.error import sqnr_db
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import Scheme

Array = NDArray[np.float64]

BINS = 2048
"""Bins up to the power of two at or below the largest magnitude."""

LEVELS = 128
ONE_SIDED_LEVELS = 256
WORST_LOSS_DB = 3.0

_TIE = 1e-12  # nats; sums of 4,096 logarithms are no better
_LEAST_EXPONENT = -126  # of normal float32


class Entropy:
    """The threshold of least KL divergence on magnitudes; affine ranges are cut at plus and minus that threshold."""

    name = "entropy"
    searches = True

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        whole = MinMax().choose(distribution, scheme)
        one_sided = distribution.one_sided and not scheme.symmetric
        found = kl_threshold(distribution, ONE_SIDED_LEVELS if one_sided else LEVELS)
        if found.meaningless is not None:
            return MethodRange(whole.low, whole.high, found.meaningless)
        low, high = max(-found.threshold, whole.low), min(found.threshold, whole.high)
        low, high = min(low, whole.high), max(high, whole.low)  # a threshold between zero and all of the values
        loss_db = sqnr_db(distribution, whole.low, whole.high, scheme) - sqnr_db(distribution, low, high, scheme)
        if loss_db > WORST_LOSS_DB:
            reason = (
                f"KL finds {found.threshold:.4g}, which would cost {loss_db:.1f} dB against min-max: "
                "the values are spiked or keep away from zero"
            )
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


def bin_width(amax: float) -> float:
    """Width of the bins for a largest magnitude: a power of two, so that float-bit buckets lie within bins."""
    return math.ldexp(1.0, max(math.frexp(amax)[1] - 1, _LEAST_EXPONENT)) / BINS


@lru_cache(maxsize=8)
def kl_threshold(distribution: Distribution, levels: int) -> Threshold:
    """Search the threshold of least KL divergence; schemes share it, so the last results are remembered."""
    amax = distribution.amax
    match distribution.kind:
        case "constant":
            return Threshold(amax, 1, "constant: every value is the same")
        case "discrete":
            return Threshold(amax, 1, f"discrete: only {distribution.distinct} different values besides zero")
    width = bin_width(amax)
    counts = distribution.linear_counts(width)
    bins, filled, values = len(counts), int(np.count_nonzero(counts)), distribution.nonzeros
    if values < bins:
        return Threshold(amax, 1, f"sparse: {values:.0f} values other than zero, fewer than the {bins} bins")
    if filled < levels or bins == levels:
        return Threshold(amax, 1, f"sparse: only {filled} of {bins} bins occupied, fewer than {levels} levels")
    divergences = kl_divergences(counts, levels)
    kept = levels + int(np.flatnonzero(divergences <= divergences.min() + _TIE)[-1])
    return Threshold(min((kept + 0.5) * width, amax), len(divergences))


def kl_divergences(counts: Array, levels: int) -> Array:
    """KL(P || Q) in nats for every number of kept bins from ``levels`` to ``len(counts)``.

    Level j of m kept bins covers the bins from ceil(j m / levels) to ceil((j + 1) m / levels). With m = w levels + r
    that is w or w + 1 bins, so all levels of all candidates are among the runs of w bins that start anywhere. The part
    of sum(P log Q) of each run is computed once, for all starts, from prefix sums; a candidate looks up its levels.

    Args:
        counts: Histogram of magnitudes, (B,), B >= levels.
        levels: Quantization levels of the kept part.

    Returns:
        (B - levels + 1,); infinity where Q is zero at a bin where P is not.
    """
    bins = len(counts)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    occupied = np.concatenate([[0.0], np.cumsum(counts > 0)])
    total = float(mass[-1])  # of the same summation, so that no rounding is left over as an outlier
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_y(counts, counts))])
    stride = 1 << (bins - 1).bit_length()
    first_of = _first_levels(levels, stride)
    runs = np.zeros(2 * stride)  # of width bins from each start, and behind them of one more
    parts = []
    _run_logs(mass, occupied, 1, runs[stride:])
    for width in range(1, bins // levels + 1):
        runs[:stride] = runs[stride:]
        _run_logs(mass, occupied, width + 1, runs[stride:])
        candidates = min(levels, bins - width * levels + 1)
        parts.append(runs[first_of[:candidates] + np.arange(0, width * levels, width)].sum(axis=1))
    p_log_q = np.concatenate(parts)
    kept = np.arange(levels, bins + 1)
    last, outliers = counts[kept - 1], total - mass[kept]
    start = -(-(levels - 1) * kept // levels)  # of the last level, to which the outliers are compared
    last_level = (mass[kept] - mass[start]) / np.maximum(occupied[kept] - occupied[start], 1.0)
    p_log_q += _x_log_y(outliers, last_level)
    p_log_p = entropy[kept - 1] + _x_log_y(last + outliers, last + outliers)
    q_total = np.maximum(mass[kept], np.finfo(np.float64).tiny)
    result: Array = (p_log_p - p_log_q) / total - np.log(total) + np.log(q_total)
    result[((last <= 0) & (outliers > 0)) | (mass[kept] <= 0)] = np.inf
    return result


@cache
def _first_levels(levels: int, stride: int) -> NDArray[np.intp]:
    """Where the levels of w * levels + r kept bins begin, counted from w times their number.

    (levels, levels) of level j at [r, j]; ``stride`` more where the level has w + 1 bins.
    """
    remainder, level = np.arange(levels)[:, None], np.arange(levels + 1)
    start = -(-level * remainder // levels)
    result: NDArray[np.intp] = (start[:, :-1] + stride * np.diff(start, axis=1)).astype(np.intp)
    return result


def _run_logs(mass: Array, occupied: Array, width: int, result: Array) -> None:
    """Sum of P log Q over every run of ``width`` bins, by its start, from prefix sums."""
    held = mass[width:] - mass[:-width]
    result[: len(held)] = _x_log_y(held, held / np.maximum(occupied[width:] - occupied[:-width], 1.0))


def _x_log_y(x: Array, y: Array) -> Array:
    """``x * log(y)``, and 0 where x is 0 or y is."""
    positive = (x > 0.0) & (y > 0.0)
    return np.where(positive, x * np.log(np.where(positive, y, 1.0)), 0.0)
