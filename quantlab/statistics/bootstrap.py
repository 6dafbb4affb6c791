"""Bias-corrected and accelerated (BCa) bootstrap over samples, by weights.

A figure is a function of how often each sample counts. A resample is a set of such counts, and the same counts for two
models make the difference of their figures a paired one. References: B. Efron, "Better bootstrap confidence intervals",
Journal of the American Statistical Association 82 (1987) 171-185; B. Efron and R. J. Tibshirani, "An Introduction to
the Bootstrap" (1993), section 14.3. From the same resamples come the same numbers as from
``scipy.stats.bootstrap(paired=True, method="BCa")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from quantlab.statistics.interval import Interval

Floats = NDArray[np.float64]

LEAST_SAMPLES = 10
"""Fewer samples than this have no interval: their resamples are too few different ones."""

_WEIGHTS_AT_ONCE = 2**22
_MOST_LEFT_OUT_ONE_BY_ONE = 500
_GROUPS = 200
_MOST_UNDEFINED = 0.05


class Estimator(Protocol):
    """One figure of one variant, as a function of the samples' weights."""

    def __call__(self, weights: Floats) -> Floats:
        """The figure for each row of weights.

        Args:
            weights: (R, n), at least 0; how often each sample counts, in the order in which samples were added.

        Returns:
            (R,), in the figure's unit; NaN where it is undefined, as with no labelled sample.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Additive:
    """A figure that is a function of sums over samples, which makes leaving one out cheap.

    Attributes:
        terms: (n, k) finite; what each sample adds to each sum. 0 times infinity is undefined, so a sample that cannot
            be used adds 1 to a sum that counts such samples, and 0 to the others.
        function: From sums (R, k) to figures (R,).
    """

    terms: Floats
    function: Callable[[Floats], Floats]

    def __call__(self, weights: Floats) -> Floats:
        """See `Estimator`."""
        return self.function(weights @ self.terms)

    def leave_one_out(self) -> Floats:
        """The figure without each sample in turn; (n,)."""
        return self.function(self.terms.sum(axis=0) - self.terms)

    def part(self, indices: NDArray[np.intp]) -> Additive:
        """The same figure of some samples alone."""
        return Additive(self.terms[indices], self.function)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A figure of some of the samples, as a function of the weights of these alone; made by `part_of`.

    Attributes:
        estimator: Of all samples.
        indices: Of the samples that count.
        n: Samples in all.
    """

    estimator: Estimator
    indices: NDArray[np.intp]
    n: int

    def __call__(self, weights: Floats) -> Floats:
        """See `Estimator`."""
        spread = np.zeros((len(weights), self.n))
        spread[:, self.indices] = weights
        return self.estimator(spread)


def part_of(estimator: Estimator, indices: NDArray[np.intp], n: int) -> Estimator:
    """An estimator of the samples at ``indices`` alone, of ``n`` in all."""
    if isinstance(estimator, Additive):
        return estimator.part(indices)
    return estimator if len(indices) == n else Part(estimator, indices, n)


@dataclass(frozen=True, slots=True, eq=False)
class Replicates:
    """What a figure comes to on the samples, on resamples of them, and with samples left out.

    Attributes:
        estimate: On the samples as they are.
        resampled: (B,), on each resample.
        left_out: (m,), without each sample, or each of m groups of them.
        scale: Magnitude of what was subtracted, by which differences are told from rounding.
    """

    estimate: float
    resampled: Floats
    left_out: Floats
    scale: float = 0.0

    def minus(self, other: Replicates) -> Replicates:
        """The difference, resample by resample; equal infinities differ by 0."""
        return Replicates(
            float(_minus(np.float64(self.estimate), np.float64(other.estimate))),
            _minus(self.resampled, other.resampled),
            _minus(self.left_out, other.left_out),
            max(abs(one) for one in (self.estimate, other.estimate, 0.0) if math.isfinite(one)),
        )


def _minus(a: Floats | np.float64, b: Floats | np.float64) -> Floats:
    with np.errstate(invalid="ignore"):
        result: Floats = np.where(a == b, 0.0, np.subtract(a, b))
    return result


@dataclass(frozen=True, slots=True)
class Resampling:
    """How resamples are drawn.

    Attributes:
        resamples: How many.
        seed: Of the draws; the same seed and number of samples give the same resamples.
    """

    resamples: int = 2000
    seed: int = 0


def replicate(estimators: Sequence[Estimator], n: int, how: Resampling) -> list[Replicates]:
    """Evaluate figures of the same ``n`` samples on the same resamples.

    Cost: each estimator is called with ``resamples`` rows of weights, in parts of about 32 MiB. One that is not
    `Additive` is called for each sample left out, or, of more than 500, for each of 200 groups: the acceleration is a
    ratio of moments of the samples' influences, which those of groups estimate as well (only less precisely).

    Args:
        estimators: The figures.
        n: Number of samples, at least 2.
        how: Number and seed of the resamples.
    """
    ones = np.ones((1, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        estimates = [float(estimator(ones)[0]) for estimator in estimators]
        resampled = np.empty((len(estimators), how.resamples))
        start = 0
        for weights in _resamples(n, how):
            for row, estimator in zip(resampled, estimators, strict=True):
                row[start : start + len(weights)] = estimator(weights)
            start += len(weights)
        left_out = _left_out(estimators, n)
    return [Replicates(*parts) for parts in zip(estimates, resampled, left_out, strict=True)]


def _resamples(n: int, how: Resampling) -> Iterator[Floats]:
    """Counts of each sample in draws with replacement, some rows at a time; how many does not change the draws."""
    rng = np.random.default_rng(how.seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // n)
    for start in range(0, how.resamples, at_once):
        rows = min(at_once, how.resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _left_out(estimators: Sequence[Estimator], n: int) -> list[Floats]:
    """Jackknife values; of one length for all, so that figures can be subtracted."""
    if all(isinstance(estimator, Additive) for estimator in estimators):
        return [estimator.leave_one_out() for estimator in estimators if isinstance(estimator, Additive)]
    groups = n if n <= _MOST_LEFT_OUT_ONE_BY_ONE else _GROUPS
    values = np.empty((len(estimators), groups))
    at_once = max(1, _WEIGHTS_AT_ONCE // n)
    for start in range(0, groups, at_once):
        numbers = np.arange(start, min(start + at_once, groups))
        # Every group takes samples from everywhere: neighbours are often of one class.
        weights = (np.arange(n) % groups != numbers[:, None]).astype(np.float64)
        for row, estimator in zip(values, estimators, strict=True):
            row[numbers] = estimator(weights)
    return list(values)


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """An interval, or why there is none.

    Attributes:
        interval: None if there is none.
        words: How it was made, or why there is none.
    """

    interval: Interval | None
    words: str


def bca(replicates: Replicates, confidence: float) -> Bootstrapped:
    """The BCa interval of a figure.

    Resamples on which the figure is undefined are left out, and said; more than one in twenty of them, and there is no
    interval. Where all resamples give the same, the interval has no width.

    Args:
        replicates: Of the figure, or of a difference of two.
        confidence: Coverage, 0 to 1.
    """
    n = len(replicates.resampled)
    defined = replicates.resampled[~np.isnan(replicates.resampled)]
    undefined = n - len(defined)
    if math.isnan(replicates.estimate):
        return Bootstrapped(None, "no interval: the figure is undefined")
    if undefined > _MOST_UNDEFINED * n:
        return Bootstrapped(None, f"no interval: the figure is undefined on {undefined:,} of {n:,} resamples")
    words = f"paired BCa bootstrap, {n:,} resamples" + (f", {undefined:,} of them undefined" if undefined else "")
    if _are(defined, replicates.estimate, replicates.scale):
        interval = Interval(replicates.estimate, replicates.estimate, confidence)
        return Bootstrapped(interval, f"{words}, which all give the same")
    z0 = bias_correction(replicates.estimate, defined)
    if math.isinf(z0):
        return Bootstrapped(None, "no interval: all resamples lie on one side of the figure")
    a = acceleration(replicates.left_out)
    levels = []
    for z in (ndtri(0.5 * (1.0 - confidence)), ndtri(0.5 * (1.0 + confidence))):
        shifted = z0 + z
        shrink = 1.0 - a * shifted
        if shrink <= 0.0:
            return Bootstrapped(None, "no interval: the figure hangs on single samples (acceleration too large)")
        levels.append(float(ndtr(z0 + shifted / shrink)))
    ordered = np.sort(defined)
    low, high = (_quantile(ordered, level) for level in levels)
    return Bootstrapped(Interval(low, high, confidence), words)


def _are(values: Floats, wanted: float, scale: float) -> bool:
    """Whether all values are the wanted one, but for rounding."""
    tolerance = 64.0 * np.finfo(np.float64).eps * max(scale, abs(wanted) if math.isfinite(wanted) else 0.0)
    with np.errstate(invalid="ignore"):
        return bool(((values == wanted) | (np.abs(values - wanted) <= tolerance)).all())


def bias_correction(estimate: float, resampled: Floats) -> float:
    """``z0``: the normal quantile of the share of resamples below the estimate, ties counted half."""
    below = float(np.mean(resampled < estimate) + np.mean(resampled <= estimate)) / 2.0
    return float(ndtri(below))


def acceleration(left_out: Floats) -> float:
    """``a``: a sixth of the skewness of the jackknife influences (Efron 1987, equation 6.6); 0 if they are equal."""
    if not np.isfinite(left_out).all():
        return 0.0
    influence = left_out.mean() - left_out
    spread = float(np.sum(influence**2))
    scale = float(np.max(np.abs(left_out), initial=0.0))
    if spread <= len(left_out) * (4.0 * np.finfo(np.float64).eps * scale) ** 2:  # nothing but rounding
        return 0.0
    return float(np.sum(influence**3)) / (6.0 * spread * math.sqrt(spread))


def _quantile(ordered: Floats, level: float) -> float:
    """Linear between neighbours, as NumPy's default; next to an infinity there is nothing between."""
    place = level * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if not (np.isfinite(low) and np.isfinite(high)):
        return float(low if level < 0.5 else high)
    return float(low + (place - math.floor(place)) * (high - low))
