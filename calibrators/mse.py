"""MSE: the range of least expected squared quantization error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.error import errors_of
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.protocol import MethodRange
from quantlab.calibrators.quantize import SMALLEST_SCALE, Scheme

Array = NDArray[np.float64]
Codes = NDArray[np.intp]

_SMALLEST_SHARE = 2.0**-12
_COARSE = 49  # four candidates an octave
_VALLEYS = 2  # lowest local minima that are refined
_FINE, _ROUNDS = 17, 3  # each round is eight times as fine; the last step is 0.03 %


class MeanSquaredError:
    """Searches the scale, and for affine schemes the zero-point, that lose least.

    Scales are looked at from the full range down to 1/4096 of it on a geometric grid, and more closely around the two
    lowest minima. For each scale the errors of all zero-points come at once: they are a sum over the borders on the one
    side of zero and one over those on the other, and cumulative sums give both for every number of codes a side.
    """

    name = "mse"
    searches = True

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """See `RangeMethod.choose`."""
        whole = MinMax().choose(distribution, scheme)
        if distribution.minimum == distribution.maximum:
            return MethodRange(whole.low, whole.high, "constant: every value is the same")
        search = _Search(distribution, scheme)
        scale, negative_codes = search.run()
        if scheme.symmetric:
            amax = min(scale * scheme.qmax, distribution.amax)
            return MethodRange(-amax, amax, candidates=search.candidates)
        # Of the ranges that give this scale and zero-point, the one within the extremes.
        bottom, top, width = min(whole.low, 0.0), max(whole.high, 0.0), scale * (scheme.qmax - scheme.qmin)
        low = min(max(-negative_codes * scale, bottom), max(top - width, bottom))
        high = min(low + width, whole.high)
        return MethodRange(min(max(low, whole.low), high), max(high, whole.low), candidates=search.candidates)


class _Search:
    """Finds the scale of least error among those of the full range and less."""

    def __init__(self, distribution: Distribution, scheme: Scheme) -> None:
        self.distribution, self.scheme = distribution, scheme
        self.bottom, self.top = min(distribution.minimum, 0.0), max(distribution.maximum, 0.0)
        self.steps = scheme.qmax - scheme.qmin
        self.candidates = 0

    def run(self) -> tuple[float, int]:
        """Scale and number of codes below zero; ties go to the larger scale, so that nothing is clipped for no gain."""
        scheme, amax = self.scheme, self.distribution.amax
        full = amax / scheme.qmax if scheme.symmetric else (self.top - self.bottom) / self.steps
        scales, errors, codes = self._evaluate(full * np.geomspace(_SMALLEST_SHARE, 1.0, _COARSE))
        found = []
        for valley in _valleys(errors):
            i, around = valley, (scales, errors, codes)
            for _ in range(_ROUNDS):
                ends = around[0][max(i - 1, 0)], around[0][min(i + 1, len(around[0]) - 1)]
                around = self._evaluate(np.geomspace(*ends, _FINE))
                i = len(around[1]) - 1 - int(np.argmin(around[1][::-1]))
            found.append((float(around[1][i]), -float(around[0][i]), int(around[2][i])))
        _, negative_scale, negative_codes = min(found)
        return -negative_scale, negative_codes

    def _evaluate(self, scales: Array) -> tuple[Array, Array, Codes]:
        """The scales as float32 holds them, the error of each, and the codes below zero that give it."""
        self.candidates += len(scales)
        scales = np.maximum(scales.astype(np.float32).astype(np.float64), SMALLEST_SCALE)
        if self.scheme.symmetric:
            above, below = self._gains(scales, self.scheme.qmax), self._gains(-scales, -self.scheme.qmin)
            errors = errors_of(self.distribution, scales, above.sum(axis=1) + below.sum(axis=1))
            return scales, errors, np.full(len(scales), -self.scheme.qmin)
        positive, negative = (
            np.concatenate([np.zeros((len(scales), 1)), np.cumsum(gains, axis=1)], axis=1)
            for gains in (self._gains(scales, self.steps), self._gains(-scales, self.steps))
        )
        errors = errors_of(self.distribution, scales[:, None], positive[:, ::-1] + negative)  # by codes below zero
        # Ranges within the extremes have no other zero-points than these; rounding must leave at least one of them.
        number = np.arange(self.steps + 1)
        most = np.rint(-self.bottom / scales)[:, None]
        least = np.minimum(np.ceil(self.steps - self.top / scales - 0.5)[:, None], most)
        errors = np.where((number >= least) & (number <= most), errors, np.inf)
        codes: Codes = np.argmin(errors, axis=1)
        return scales, errors[np.arange(len(scales)), codes], codes

    def _gains(self, scales: Array, count: int) -> Array:
        """`Distribution.excess` at the first borders from zero, (C, count); negative scales mean the negative side."""
        extreme = self.top if scales[0] > 0.0 else self.bottom
        if extreme == 0.0:
            return np.zeros((len(scales), count))
        return self.distribution.excess((np.arange(count) + 0.5) * scales[:, None])


def _valleys(errors: Array) -> list[int]:
    """Indices of the lowest local minima, the lowest first."""
    padded = np.concatenate([[np.inf], errors, [np.inf]])
    minima = np.flatnonzero((errors <= padded[:-2]) & (errors <= padded[2:]))
    return sorted(minima.tolist(), key=lambda i: (errors[i], -i))[:_VALLEYS]
