"""What is said of a runtime: whose error it is that it gives other results than the original."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantlab.harness.gap import Gap
from quantlab.harness.truth_figures import Estimate, rounding_limit
from quantlab.harness.truth_record import Judgement, OutputTruth

LOSS_DB = 0.5
"""Further from the original than the graph is by this is an error of the runtime's own."""

_SHOWN_DB = 0.05
"""Less than this is not seen in figures with one decimal."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the graph itself gives for one output.

    Attributes:
        rounding: Distance of float32 as written from the truth of the graph; None if that is the truth.
        quantization: Distance of the graph's truth from the original's; None without an original.
    """

    rounding: Gap | None
    quantization: Gap | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A judgement with its words.

    Attributes:
        judgement: What is said.
        verdict: The sentence.
        loss_db: Of the output that was judged; None without an original.
    """

    judgement: Judgement
    verdict: str
    loss_db: float | None = None


_WORST_FIRST = (
    Judgement.NON_FINITE, Judgement.OWN_ERROR, Judgement.CANNOT_TELL, Judgement.DIFFERS, Judgement.AS_WRITTEN
)  # fmt: skip


def judge(
    name: str, truth: str, n: int, outputs: Sequence[OutputTruth], yardsticks: Mapping[str, Yardstick]
) -> Finding:
    """Judge a runtime by the output where it does worst.

    Args:
        name: Of the runtime.
        truth: What its own error is told from, in words.
        n: Samples.
        outputs: Its distances, with their figures.
        yardsticks: What the graph itself gives, by output.

    Returns:
        The finding of that output; it is named where there are several.
    """
    found = [(_Output(name, truth, n, one, yardsticks[one.output]).judge(), one.output) for one in outputs]
    worst, output = min(found, key=lambda pair: (_WORST_FIRST.index(pair[0].judgement), -_sortable(pair[0].loss_db)))
    verdict = f"output {output}: {worst.verdict}" if len(outputs) > 1 else worst.verdict
    return Finding(worst.judgement, verdict, worst.loss_db)


class _Output:
    """One output of a runtime, and the words for it."""

    def __init__(self, name: str, truth: str, n: int, output: OutputTruth, yardstick: Yardstick) -> None:
        assert output.graph is not None and output.figures is not None  # a runtime is never the truth itself
        self.name, self.truth, self.yardstick = name, truth, yardstick
        self.samples = f"{n:,} sample{'s' if n > 1 else ''}"
        self.n, self.own, self.total, self.figures = n, output.graph, output.exact, output.figures

    def judge(self) -> Finding:
        own, figures = self.own, self.figures
        if own.non_finite:
            values = f"{own.non_finite:,} of {own.values:,} values"
            return self._finding(
                Judgement.NON_FINITE, f"{self.name} gives NaN or infinity in {values} where the graph has none"
            )
        if own.is_equal:
            verdict = f"{self.name} computes the graph as written, bit for bit{self._rest()}"
            return self._finding(Judgement.AS_WRITTEN, verdict)
        if figures.excess is not None and (lossy := figures.excess.reaches(LOSS_DB)) is not False:
            return self._own_error(figures.excess) if lossy else self._perhaps_own_error(figures.excess)
        near = figures.nearness.reaches(0.0)
        if near:
            verdict = f"{self.name} computes the graph as written ({self._distance()}){self._rest()}"
            return self._finding(Judgement.AS_WRITTEN, verdict + _caution(figures.nearness))
        usual = f"{self._distance()}{self._usual()}"
        if near is None:
            verdict = (
                f"cannot tell from {self.samples} whether {self.name} differs from the graph by more than rounding: "
                f"{usual}{self._needed(figures.nearness, 0.0)}{self._cost()}"
            )
            return self._finding(Judgement.CANNOT_TELL, verdict)
        verdict = f"{self.name} differs from the graph by more than rounding explains: {usual}{self._cost()}"
        return self._finding(Judgement.DIFFERS, verdict + _caution(figures.nearness))

    def _finding(self, judgement: Judgement, verdict: str) -> Finding:
        return Finding(judgement, verdict, self.figures.loss.value if self.figures.loss is not None else None)

    def _own_error(self, excess: Estimate) -> Finding:
        verdict = (
            f"{self.name} is {figure(self.figures.loss)} worse than the graph says ({decibels(_sqnr(self.total))} "
            f"instead of {decibels(_sqnr(self.yardstick.quantization))} to the original): its error, not quantization's"
        )
        return self._finding(Judgement.OWN_ERROR, verdict + _caution(excess))

    def _perhaps_own_error(self, excess: Estimate) -> Finding:
        found = f"it is {figure(self.figures.loss)} worse than the graph says"
        if self.figures.loss is not None and self.figures.loss.value - excess.value >= _SHOWN_DB:
            found += f", {figure(excess)} more than float32 as written"
        verdict = (
            f"cannot tell from {self.samples} whether {self.name} has an error of its own: {found}, and {LOSS_DB:g} dB "
            f"is the limit{self._needed(excess, LOSS_DB)}"
        )
        return self._finding(Judgement.CANNOT_TELL, verdict)

    def _distance(self) -> str:
        """The runtime's own error."""
        if self.figures.own is None:
            return f"{self.own.differing:,} of {self.own.values:,} values are not those of its {self.truth}"
        return f"{figure(self.figures.own)} to its {self.truth}"

    def _usual(self) -> str:
        """What float32 as written has."""
        usual = self.yardstick.rounding
        if usual is None:
            return ""
        shown = decibels(usual.sqnr_db) if usual.sqnr_db is not None else f"{usual.differing:,}"
        return f", where float32 as written has {shown}"

    def _cost(self) -> str:
        """What the difference does to the distance from the original."""
        loss = self.figures.loss
        if loss is None:
            asked = self.yardstick.quantization is None
            return "; name the original with --model to see whether it loses by that" if asked else self._rest()
        if loss.value < 0.0:
            return f"; it loses nothing by that, it is {figure(loss.negative())} nearer to the original{self._rest()}"
        return f"; it loses {figure(loss)} by that{self._rest('the rest')}"

    def _rest(self, what: str = "what is lost") -> str:
        """What quantization loses."""
        if self.yardstick.quantization is None:
            return ""
        found = _sqnr(self.yardstick.quantization)
        return f"; {what} is quantization's" + ("" if found is None else f" ({decibels(found)} to the original)")

    def _needed(self, estimate: Estimate, limit: float) -> str:
        needed = estimate.samples_needed(self.n, limit)
        return "; more samples will hardly tell" if needed is None else f"; about {needed:,} would tell"


def is_rounding(gap: Gap, rounding: Gap | None) -> bool:
    """Whether a difference is no more than what float32 as written has, and a little."""
    if gap.is_equal:
        return True
    if gap.sqnr_db is None:
        return rounding is not None and gap.differing <= rounding.differing
    return gap.sqnr_db >= float(rounding_limit(None if _sqnr(rounding) is None else np.float64(_sqnr(rounding))))


def decibels(value: float | None) -> str:
    """Such as ``62.0 dB``."""
    return "no figure" if value is None or math.isnan(value) else f"{value:z.1f} dB"


def figure(estimate: Estimate | None) -> str:
    """Such as ``9.0 dB [8.2, 9.9]``, with its interval."""
    if estimate is None or estimate.interval is None:
        return decibels(estimate.value if estimate is not None else None)
    return f"{decibels(estimate.value)} [{estimate.interval.low:z.1f}, {estimate.interval.high:z.1f}]"


def _caution(estimate: Estimate) -> str:
    """Why the figure that decided has no interval."""
    return f"; {estimate.missing}" if estimate.missing else ""


def _sqnr(gap: Gap | None) -> float | None:
    return gap.sqnr_db if gap is not None else None


def _sortable(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
