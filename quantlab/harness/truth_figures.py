"""The figures that a verdict about a runtime rests on, with intervals over the samples.

A figure is a function of sums over samples, so it is resampled by weights (`quantlab.statistics.bootstrap`): the same
weights for the runtime, for the graph and for float32 as written, which makes their differences paired ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.harness.gap import TERMS
from quantlab.statistics.bootstrap import LEAST_SAMPLES, Additive, Resampling, bca, replicate
from quantlab.statistics.interval import Interval

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
METHOD = "paired BCa bootstrap over samples"

NEAR_DB = 60.0
"""A runtime this near to the graph computes it as written: differences of a thousandth are rounding."""

ROUNDING_DB = 3.0
"""It may lie further from float64 than float32 as written does by so much: kernels add up in other orders."""

_LARGEST_SUM = 1e290
_MOST_TIMES = 1000.0
"""A number of samples is told up to so many times those that there are."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and how well the samples tell it.

    Attributes:
        value: Over all samples.
        interval: Two-sided, over samples; None if there is none.
        missing: Why there is none.
    """

    value: float
    interval: Interval | None
    missing: str = ""

    def reaches(self, limit: float) -> bool | None:
        """Whether the figure is at least ``limit``: None if the interval holds the limit.

        Without an interval, what the figure itself says.
        """
        if self.interval is None:
            return self.value >= limit
        if self.interval.low >= limit:
            return True
        return False if self.interval.high < limit else None

    def negative(self) -> Estimate:
        """The figure with the other sign."""
        found = self.interval
        turned = None if found is None else Interval(-found.high, -found.low, found.confidence)
        return Estimate(-self.value, turned, self.missing)

    def samples_needed(self, n: int, limit: float) -> int | None:
        """Samples at which the interval, narrowing with the square root, would no longer hold the limit.

        None if there is no interval, or the figure is too near to the limit for any number to be told.
        """
        if self.interval is None:
            return None
        distance = abs(self.value - limit)
        end = self.interval.low if self.value >= limit else self.interval.high
        reach = abs(self.value - end)
        if not np.isfinite([distance, reach]).all() or reach >= _MOST_TIMES**0.5 * distance:
            return None
        return int(np.ceil(n * (reach / distance) ** 2))


@dataclass(frozen=True, slots=True)
class TruthFigures:
    """Figures of one output of a runtime; all but the first None where there is nothing to compute them from.

    Attributes:
        nearness: By how much it is nearer to the graph than `rounding_limit`, in dB: below 0, it differs by more than
            rounding explains. Of outputs that are no floating-point numbers: values that float32 as written gets wrong,
            less those that the runtime does, in percent.
        own: SQNR against the truth of the graph, in dB: its own error.
        loss: By how much it is further from the original than the graph is, in dB; negative if nearer.
        excess: The same less what float32 as written loses too, in dB.
    """

    nearness: Estimate
    own: Estimate | None = None
    loss: Estimate | None = None
    excess: Estimate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """Terms (n, 5) of `quantlab.harness.gap.TERMS`, a line a sample, all of the same samples in the same order.

    Attributes:
        own: The runtime against the truth of the graph; never None.
        rounding: Float32 as written against the truth of the graph; None if that is the truth.
        total: The runtime against the original; None without one, as the two below.
        quantization: The graph's truth against the original.
        rounded: Float32 as written against the original.
    """

    own: Floats | None
    rounding: Floats | None
    total: Floats | None
    quantization: Floats | None
    rounded: Floats | None


def truth_figures(distances: Distances, is_float: bool, different: int, how: Resampling) -> TruthFigures:
    """Figures of one output with their intervals.

    Args:
        distances: By sample.
        is_float: Whether the output is one of floating-point numbers.
        different: Samples that are not repeats of others; fewer than `LEAST_SAMPLES` have no interval.
        how: Of the resamples.
    """
    found = {name: getattr(distances, name) for name in ("own", "rounding", "total", "quantization", "rounded")}
    given = {name: _finite(terms) for name, terms in found.items() if terms is not None}
    places = {name: slice(len(TERMS) * i, len(TERMS) * (i + 1)) for i, name in enumerate(given)}
    table = np.hstack(list(given.values()))

    def decibels(sums: Floats, name: str) -> Floats:
        return sqnr(sums[:, places[name]])

    def near(sums: Floats) -> Floats:
        return nearness(decibels(sums, "own"), decibels(sums, "rounding") if "rounding" in places else None)

    def lost(sums: Floats, name: str = "total") -> Floats:
        return loss(decibels(sums, name), decibels(sums, "quantization"))

    def exceeding(sums: Floats) -> Floats:
        return excess(lost(sums), lost(sums, "rounded") if "rounded" in places else None)

    wanted: list[Callable[[Floats], Floats]] = [near, lambda sums: decibels(sums, "own")]
    if not is_float:
        wanted = [lambda sums: _fewer_wrong(sums, places)]
    elif {"total", "quantization"} <= places.keys():
        wanted += [lost, exceeding]
    return TruthFigures(*_estimates(table, wanted, different, how))


def _finite(terms: Floats) -> Floats:
    """Samples whose sums overflow count as not finite: 0 times infinity is undefined (see `Additive`)."""
    broken = ~(terms[:, :2] < _LARGEST_SUM).all(axis=1)
    found = terms.copy()
    found[broken, :2], found[broken, 2] = 0.0, np.maximum(1.0, found[broken, 2])
    return found


def _estimates(
    table: Floats, functions: list[Callable[[Floats], Floats]], different: int, how: Resampling
) -> list[Estimate]:
    n = len(table)
    if different < LEAST_SAMPLES:
        kind = "different " if different < n else ""
        missing = f"{different} {kind}sample{'s are' if different > 1 else ' is'} too few for an interval"
        sums = table.sum(axis=0, keepdims=True)
        return [Estimate(float(function(sums)[0]), None, missing) for function in functions]
    found = []
    for replicates in replicate([Additive(table, function) for function in functions], n, how):
        made = bca(replicates, CONFIDENCE)
        found.append(Estimate(replicates.estimate, made.interval, made.words if made.interval is None else ""))
    return found


def sqnr(sums: Floats) -> Floats:
    """`quantlab.harness.gap.sqnr_db` of sums (R, 5); -inf with values that are not finite, NaN without values."""
    signal, noise, non_finite, _, values = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10.0 * np.log10(signal / noise)
    found = np.where(noise == 0.0, np.inf, np.where(signal > 0.0, ratio, -np.inf))
    result: Floats = np.where(values == 0.0, np.nan, np.where(non_finite > 0.0, -np.inf, found))
    return result


def rounding_limit(rounding: Floats | np.float64 | None) -> Floats:
    """SQNR from which on a difference is rounding, in dB; ``rounding`` is that of float32 as written."""
    result: Floats = np.minimum(NEAR_DB, np.inf if rounding is None else rounding - ROUNDING_DB)
    return result


def nearness(own: Floats, rounding: Floats | None) -> Floats:
    """See `TruthFigures.nearness`; equal infinities differ by 0."""
    return _minus(own, rounding_limit(rounding))


def loss(total: Floats, quantization: Floats) -> Floats:
    """See `TruthFigures.loss`.

    Where the graph loses nothing, rounding would be an infinite loss: distance then counts from `NEAR_DB`.
    """
    result: Floats = np.where(
        (quantization == np.inf) & (total != np.inf),
        np.maximum(0.0, NEAR_DB - total),
        _minus(quantization, total),
    )
    return result


def excess(lost: Floats, usual: Floats | None) -> Floats:
    """See `TruthFigures.excess`; what float32 gains is not asked of a runtime."""
    if usual is None:
        return lost
    result: Floats = lost - np.maximum(0.0, np.where(np.isfinite(usual), usual, 0.0))
    return result


def _fewer_wrong(sums: Floats, places: dict[str, slice]) -> Floats:
    own = sums[:, places["own"]]
    usual = sums[:, places["rounding"]][:, 3] if "rounding" in places else 0.0
    result: Floats = 100.0 * (usual - own[:, 3]) / own[:, 4]
    return result


def _minus(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        result: Floats = np.where(a == b, 0.0, np.subtract(a, b))
    return result
