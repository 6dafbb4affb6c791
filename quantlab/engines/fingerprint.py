"""In which arithmetic an engine really computed, told from its outputs on a probe.

The error of an engine against float64 has a size and a direction. The size separates FP32 (about 1e-7 of the outputs)
from formats of 10 mantissa bits (about 1e-3) and of 7 (about 1e-2). TF32 and FP16 round alike, so their errors are of
one size; three things tell them apart. Outputs that were stored in 16 bits are numbers of that format, which others
are by chance only once in 8,192 or 65,536. The rounding of weights and inputs is the same in every engine of an
arithmetic, so its errors correlate with those of the emulation: closely in shallow networks, less the deeper they are.
And rounding alone cannot be much larger or smaller than emulated. What real kernels do with the shapes of layers is
emulated too, because it decides on the direction: see docs/adr/012-fingerprint.md.

Nothing is decided by one of these where another contradicts it. What remains possible is listed, and a precision is
named only if a single one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.arithmetics import PRECISIONS, RULES, SHALLOW, TAILS, spoken
from quantlab.engines.emulation import (
    BF16,
    BF16_WEIGHTS,
    FLOAT64_REFERENCE,
    FP16,
    FP16_WEIGHTS,
    FP32,
    FP32_UNFUSED,
    OWN,
    OWN_TF32,
    TF32_TRUNCATED,
    TRUTH,
    Values,
)
from quantlab.engines.probe import Probe
from quantlab.errors import EngineMismatch
from quantlab.graph.half import FORMATS
from quantlab.precision import Precision

_FP32_MULTIPLE = 100.0
"""Most that an FP32 engine may err, in errors of the CPU's FP32: Winograd convolutions lose 10 to 40 times."""

_FP32_SHARE = 0.03
"""Most that an FP32 engine may err, as a share of the least error that a shorter format would make."""

_MARGIN = 0.2
"""Correlation by which one arithmetic must lead to exclude another; it must also be three standard errors."""

_CLOSE, _EXPLAINED = 0.9, 0.1
"""In shallow networks instead: least correlation, and most that it may leave unexplained of what the other leaves."""

_STORED_RULE = (0.4, 4.0)
"""Least and largest error in errors of the emulation, where the outputs are numbers of the format."""

_OWN_SIZES = (0.6, 1.6)
"""The same for the variant's own graph, if it is quantized."""

_STEADY, _REPRODUCED = 0.7, 0.75
"""Correlation of two emulations of a quantized graph from which its errors are reproducible, and least share of it."""

_SOME_LAYERS, _ALL_LAYERS = 0.4, 2.0
"""Least error in errors of the emulation that errs least, and largest in those of the one that errs most, to call an
engine TF32 by size alone."""

_MIN_VALUES = 8
"""Values off a format's grid in FP32 that must be on it, to take the outputs for stored in the format."""


@dataclass(frozen=True, slots=True)
class Match:
    """How an engine's errors compare with those of one emulation.

    Attributes:
        arithmetic: Name of the emulation, as in `Probe.expected`.
        relative_error: Error of the emulation, Euclidean norm relative to the reference's.
        ratio: The engine's error in errors of the emulation.
        correlation: Cosine of the angle between both errors.
    """

    arithmetic: str
    relative_error: float
    ratio: float
    correlation: float


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the outputs of an engine tell.

    Attributes:
        precision: The only arithmetic that fits; None if several do, or none.
        text: One line for people, with the figures.
        relative_error: The engine's error, Euclidean norm relative to the reference's; NaN if outputs are not finite.
        candidates: How its errors compare with each emulation.
        possible: Precisions that cannot be excluded, the likeliest first.
        follows_own: Whether it computes what the variant's own graph says; None if there is no such graph.
        reference: What it was compared with: ``float64``, or ``float32 on the CPU``.
        values: Number of output values compared.
        multiple: The error in errors of FP32; NaN if outputs are not finite.
        sizes: FP32 or TF32, if an engine whose types leave nothing else can err so much in it, be it in some layers
            alone. Empty if the outputs show 16-bit values.
    """

    precision: Precision | None
    text: str
    relative_error: float
    candidates: tuple[Match, ...]
    possible: tuple[Precision, ...]
    follows_own: bool | None
    reference: str
    values: int
    multiple: float = math.nan
    sizes: tuple[Precision, ...] = ()


def fingerprint(probe: Probe, outputs: Mapping[str, NDArray[np.generic]]) -> Fingerprint:
    """Judge the outputs of an engine on a probe's inputs.

    Args:
        probe: With its inputs the engine was run.
        outputs: From `Probe.run`: whole outputs by name, stacked along a first axis of calls.

    Raises:
        EngineMismatch: If an output is missing or of another size.
    """
    values = _values(probe, outputs)
    truth = probe.expected[TRUTH]
    finite = np.isfinite(values)
    if not finite.all():
        return _not_finite(probe, values)
    usable = {name: expected for name, expected in probe.expected.items() if np.isfinite(expected).all()}
    if TRUTH not in usable or not np.any(truth):
        text = "cannot tell: the model's own outputs are zero or not finite on random inputs"
        return Fingerprint(None, text, math.nan, (), (), None, probe.reference, values.size)
    return _Judgement(probe, values, usable).verdict()


def _values(probe: Probe, outputs: Mapping[str, NDArray[np.generic]]) -> Values:
    for name in probe.sizes:
        if name in outputs and np.shape(outputs[name])[:1] != (probe.calls,):
            raise EngineMismatch(
                f"output {name!r} is not of all calls", got=str(np.shape(outputs[name])),
                expected=f"{probe.calls} calls along the first axis",
            )  # fmt: skip
    calls = [{name: np.asarray(array)[i] for name, array in outputs.items()} for i in range(probe.calls)]
    return np.stack([probe.kept(call) for call in calls])


def _not_finite(probe: Probe, values: Values) -> Fingerprint:
    n_nan, n_infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    text = f"cannot tell: {n_nan:,} NaN and {n_infinite:,} infinite of {values.size:,} output values"
    emulated = [name for name in (FP16, BF16) if name in probe.expected]
    overflowing = [name for name in emulated if not np.isfinite(probe.expected[name]).all()]
    if overflowing:
        text += f"; so has the emulation of {' and '.join(name.upper() for name in overflowing)}"
    return Fingerprint(None, text, math.nan, (), (), None, probe.reference, values.size)


class _Judgement:
    """One engine's values against all emulations."""

    def __init__(self, probe: Probe, values: Values, usable: Mapping[str, Values]) -> None:
        self.probe = probe
        self.values = values
        self.usable = usable
        self.truth = usable[TRUTH]
        self.scale = float(np.linalg.norm(self.truth))
        self.error = values - self.truth
        self.size = float(np.linalg.norm(self.error))
        self.floor = max(
            [float(np.linalg.norm(usable[name] - self.truth)) for name in (FP32, FP32_UNFUSED) if name in usable]
            + [2.0**-25 * self.scale]
        )
        self.chance = 3.0 / math.sqrt(values.size)  # three standard errors of the correlation of unrelated errors
        self.matches = {name: self._match(name) for name in usable if name != TRUTH}
        self.stored = self._stored_format()

    def verdict(self) -> Fingerprint:
        """Exclude what does not fit, and say what is left."""
        imitation = self._imitation()
        fitting = {} if imitation else self._fitting()
        follows = self._follows_own(fitting)
        own = max(self._own_matches(), key=lambda match: match.correlation, default=None)
        if own is not None and follows is not False and self.probe.own_precision is not None:
            fitting = {name: match for name, match in fitting.items() if not (follows and self._leads(own, match))}
            fitting[own.arithmetic] = own
        ordered = sorted(fitting.values(), key=lambda match: -match.correlation)
        possible = tuple(dict.fromkeys(p for match in ordered if (p := self._precision(match)) is not None))
        certain = follows or any(self._is_significant(match) for match in ordered)
        precision = possible[0] if len(possible) == 1 and certain else None
        text = self._text(precision, possible, imitation, follows)
        return Fingerprint(
            precision, text, self.size / self.scale, tuple(self.matches.values()), possible, follows,
            self.probe.reference, self.values.size, self.size / self.floor, () if imitation else self._sizes(),
        )  # fmt: skip

    def _sizes(self) -> tuple[Precision, ...]:
        """FP32 or TF32, if it can err so much in some of the layers or all."""
        short = [m for m in self.matches.values() if PRECISIONS.get(m.arithmetic) is Precision.TF32]
        if self.stored is not None or not short:
            return ()
        least, most = (pick(m.relative_error for m in short) * self.scale for pick in (min, max))
        found = [Precision.FP32] if self.size <= _FP32_MULTIPLE * self.floor else []
        if self.size > _FP32_MULTIPLE * self.floor and _SOME_LAYERS * least <= self.size <= _ALL_LAYERS * most:
            found.append(Precision.TF32)
        return tuple(found)

    def _match(self, name: str) -> Match:
        error = self.usable[name] - self.truth
        size = float(np.linalg.norm(error))
        both = size * self.size
        correlation = float(np.sum(error * self.error)) / both if both > 0 else 0.0
        return Match(name, size / self.scale, self.size / size if size > 0 else math.inf, correlation)

    def _precision(self, match: Match) -> Precision | None:
        if match.arithmetic in (OWN, OWN_TF32):
            return self.probe.own_precision
        return PRECISIONS.get(match.arithmetic)

    def _stored_format(self) -> Precision | None:
        """The 16-bit format that all outputs are numbers of, though FP32 outputs would not be."""
        plain = self.usable.get(FP32, self.usable.get(FP32_UNFUSED, self.truth))
        for precision in (Precision.BF16, Precision.FP16):  # most BF16 numbers are FP16 numbers too
            half = FORMATS[precision]
            off = half.round(plain.astype(np.float32)) != plain.astype(np.float32)
            values = self.values[off]
            if values.size >= _MIN_VALUES and np.array_equal(half.round(values.astype(np.float32)), values):
                return precision
        return None

    def _imitation(self) -> str | None:
        """What a 16-bit engine looks like of which only the stored values are 16-bit; these errors are reproducible."""
        plain = self.usable.get(FP32)
        if plain is None:
            return None
        for weights, precision in ((FP16_WEIGHTS, Precision.FP16), (BF16_WEIGHTS, Precision.BF16)):
            half = FORMATS[precision]
            kinds = [("outputs", plain, True)]
            if weights in self.usable:
                kinds += [("weights", self.usable[weights], False), ("weights and outputs", self.usable[weights], True)]
            for name, computed, is_stored in kinds:
                expected = half.round(computed.astype(np.float32)).astype(np.float64) if is_stored else computed
                rounding = float(np.linalg.norm(expected - computed))
                if np.linalg.norm(expected - self.truth) < 100 * self.floor:
                    continue  # too close to FP32 to mean anything
                if np.linalg.norm(self.values - expected) <= 0.3 * rounding + 30 * self.floor:
                    return f"only the {name} are rounded to {precision.upper()}"
        return None

    def _fitting(self) -> dict[str, Match]:
        """Arithmetics that the size of the error, its direction and the outputs' format do not exclude."""
        shorter = [self.matches[name] for name in RULES if name in self.matches]
        if self.size <= _FP32_MULTIPLE * self.floor and self.stored is None and FP32 in self.matches:
            whole = [match for match in shorter if match.arithmetic not in TAILS]
            like = [match for match in whole if self.size > _FP32_SHARE * match.relative_error * self.scale]
            return {match.arithmetic: match for match in (self.matches[FP32], *like)}
        allowed = [match for match in shorter if self._allowed(match)]
        rivals = [match for match in shorter if any(self._leads(match, other) for other in allowed)]
        left = [match for match in allowed if not any(self._leads(rival, match) for rival in rivals)]
        return {match.arithmetic: match for match in left}

    def _allowed(self, match: Match) -> bool:
        """Whether size and direction of the error and the outputs' format allow an arithmetic."""
        if match.relative_error * self.scale * _FP32_SHARE <= self.floor:
            return False  # this arithmetic is too close to FP32 on this model
        low, high, least = RULES[match.arithmetic]
        if self.stored is not None:
            low, high = _STORED_RULE
            least = -1.0
            if self._precision(match) is not self.stored or match.arithmetic in TAILS:
                return False
        return low <= match.ratio <= high and match.correlation >= least - self.chance

    def _is_significant(self, match: Match) -> bool:
        """Whether the direction of the error means something; the outputs' format and FP32's size do without it."""
        if match.arithmetic == FP32 or (self.stored is not None and self._precision(match) is self.stored):
            return True
        if match.arithmetic not in RULES:
            return False
        return match.correlation >= max(RULES[match.arithmetic][2], min(0.95, self.chance))

    def _own_matches(self) -> list[Match]:
        """The matches with the variant's own graph that its size allows."""
        low, high = _STORED_RULE if self.probe.own_precision in FORMATS else _OWN_SIZES
        return [
            match
            for name in (OWN, OWN_TF32)
            if (match := self.matches.get(name)) is not None
            and match.relative_error * self.scale * _FP32_SHARE > self.floor
            and low <= match.ratio <= high
        ]

    def _follows_own(self, fitting: Mapping[str, Match]) -> bool | None:
        """Whether the engine computes what the variant's own graph says.

        Quantization rounds so coarsely that most of its error is reproduced, if the graph does not amplify the least
        difference; how far it does is seen in two emulations of it. None if it does, or without such a graph.
        """
        if OWN not in self.matches:
            return None
        own_precision = self.probe.own_precision
        best = max(self._own_matches(), key=lambda match: match.correlation, default=None)
        if best is None or any(self._leads(match, best) for match in fitting.values()):
            return False
        if own_precision in FORMATS:
            if self.stored is not None:
                return self.stored is own_precision
            return True if best.correlation >= max(SHALLOW, self.chance) else None
        steadiness = self._steadiness()
        if steadiness >= _STEADY:
            return best.correlation >= _REPRODUCED * steadiness
        return True if best.correlation >= max(0.5, self.chance) else None

    def _steadiness(self) -> float:
        """Correlation of the errors of two emulations of the variant's own graph; 1 if there is but one."""
        if OWN_TF32 not in self.usable:
            return 1.0
        first, second = (self.usable[name] - self.truth for name in (OWN, OWN_TF32))
        return float(np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second)))

    def _leads(self, first: Match, second: Match) -> bool:
        """Whether the first correlates clearly more (Fisher's z)."""
        unexplained, rest = (1.0 - match.correlation * abs(match.correlation) for match in (first, second))
        clear = first.correlation - second.correlation >= _MARGIN or (
            first.correlation >= _CLOSE and unexplained <= _EXPLAINED * rest
        )
        if first.correlation < 0.5 or not clear:
            return False
        limit = 1 - 1e-9
        z = math.atanh(min(first.correlation, limit)) - math.atanh(max(min(second.correlation, limit), -limit))
        return z > 3.0 * math.sqrt(2.0 / max(self.values.size - 3, 1))

    def _text(
        self, precision: Precision | None, possible: tuple[Precision, ...], imitation: str | None, follows: bool | None
    ) -> str:
        reference = self.probe.reference
        truth = "float64" if reference == FLOAT64_REFERENCE else f"the reference, {reference}"
        parts = [f"error {self.size / self.scale:.1e} against {truth}: {self._times(self.size / self.floor)} FP32's"]
        names = [name for name in (*RULES, OWN, OWN_TF32) if name in self.matches]
        if TF32_TRUNCATED in names and not 0.3 <= self.matches[TF32_TRUNCATED].ratio <= 3.0:
            names.remove(TF32_TRUNCATED)
        if precision is Precision.FP32:
            names = [OWN] if OWN in self.matches else []
        matches = [self.matches[name] for name in names if math.isfinite(self.matches[name].ratio)]
        best = {
            spoken(m.arithmetic): m
            for m in sorted(matches, key=lambda m: m.correlation)  # the last stays
        }
        shown = sorted(best.values(), key=lambda match: -match.correlation)[:2]
        parts += [
            f"{self._times(match.ratio)} {spoken(match.arithmetic)}, correlation {match.correlation:.2f}"
            for match in shown
        ]
        text = "; ".join(parts)
        if self.stored is not None:
            text += f"; all outputs are {self.stored.upper()} numbers"
        if precision is not None:
            verdict = f"computes in {precision.upper()}{', as its own graph says' if follows else ''}"
        elif follows:
            verdict = "computes what its own graph says"
        elif len(possible) == 1:
            verdict = f"cannot tell: {possible[0].upper()} gives errors of this size, but their direction shows nothing"
        elif possible:
            verdict = f"cannot tell {' from '.join(p.upper() for p in possible)}"
        else:
            verdict = f"cannot tell: {imitation or self._bracket()}"
        if follows is False:
            verdict += ", not what its own graph says"
        return f"{verdict} ({text})"

    def _bracket(self) -> str:
        least = min((self.matches[name].ratio for name in RULES if name in self.matches), default=0.0)
        most = max((self.matches[name].ratio for name in RULES if name in self.matches), default=math.inf)
        if most < 1.0 and self.size > self.floor:
            return "between FP32 and the shorter formats, as if some layers were in one of these"
        if least > 3.0:
            return "worse than any of the formats"
        return "no arithmetic fits both in size and in direction"

    @staticmethod
    def _times(ratio: float) -> str:
        if ratio >= 20:
            return f"{ratio:,.0f} times"
        return f"{ratio:.2f} times" if ratio >= 0.01 else f"{ratio:.0e} times"
