"""What is said of a runtime: whose error it is that it gives other results than the original."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlab.harness.gap import Gap
from quantlab.harness.truth_figures import NEAR_DB, ROUNDING_DB, Estimate, TruthFigures
from quantlab.harness.truth_record import Judgement, OutputTruth

LOSS_DB = 0.5
"""Further from the original than the graph is by this is an error of the runtime's own."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the graph itself gives for one output.

    Attributes:
        rounding: Distance of float32 as written from the truth of the graph; None if that is the truth.
        quantization: Distance of the graph's truth from the original's; None without an original.
        rounded: Distance of float32 as written from the original's truth; None without an original.
    """

    rounding: Gap | None
    quantization: Gap | None
    rounded: Gap | None


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
    found = [
        (_Output(name, truth, n, output, yardsticks[output.output]).judge(), output.output) for output in outputs
    ]
    worst, output = min(found, key=lambda pair: (_WORST_FIRST.index(pair[0].judgement), -_sortable(pair[0].loss_db)))
    verdict = f"output {output}: {worst.verdict}" if len(outputs) > 1 else worst.verdict
    return Finding(worst.judgement, verdict, worst.loss_db)


class _Output:
    """One output of a runtime under judgement."""

    def __init__(self, name: str, truth: str, n: int, output: OutputTruth, yardstick: Yardstick) -> None:
        assert output.graph is not None and output.figures is not None  # a runtime is never the truth itself
        self.name, self.n, self.output, self.yardstick = name, n, output, yardstick
        self.truth = f"the graph in {truth}"
        self.own: Gap = output.graph
        self.figures: TruthFigures = output.figures

    def judge(self) -> Finding:
        own, figures = self.own, self.figures
        if own.non_finite:
            values = f"{own.non_finite:,} of {own.values:,} values"
            return Finding(Judgement.NON_FINITE, f"{self.name} gives NaN or infinity in {values} where the graph has none")
        if own.is_equal:
            return self._finding(Judgement.AS_WRITTEN, f"{self.name} computes this graph as written, bit for bit{self._rest()}")
        if figures.excess is not None and (lossy := figures.excess.reaches(LOSS_DB)) is not False:
            return self._own_error(figures.excess) if lossy else self._perhaps_own_error(figures.excess)
        near = figures.nearness.reaches(0.0)
        if near:
            text = f"{self.name} computes this graph as written{self._bracket()}{self._rest()}{self._caution()}"
            return self._finding(Judgement.AS_WRITTEN, text)
        if near is None:
            return self._finding(Judgement.CANNOT_TELL, self._perhaps_rounding())
        return self._finding(Judgement.DIFFERS, self._differs() + self._caution())

    def _finding(self, judgement: Judgement, verdict: str) -> Finding:
        return Finding(judgement, verdict, self.figures.loss.value if self.figures.loss is not None else None)

    def _own_error(self, excess: Estimate) -> Finding:
        total, quantization = self.output.exact, self.yardstick.quantization
        assert total is not None and quantization is not None
        text = (
            f"{self.name} is {_figure(self.figures.loss)} worse than the graph says ({decibels(total.sqnr_db)} instead "
            f"of {decibels(quantization.sqnr_db)} to the original): its error, not quantization's"
        )
        return self._finding(Judgement.OWN_ERROR, text + _caution(excess))

    def _perhaps_own_error(self, excess: Estimate) -> Finding:
        loss = self.figures.loss
        usual = loss is not None and loss.value != excess.value
        beyond = f" more than float32 as written, which is {decibels(loss.value - excess.value)}" if usual and loss else ""
        text = (
            f"{self.name} may have an error of its own, which {self.n:,} samples do not tell: it is {_figure(excess)}"
            f"{beyond} worse than the graph says, and {LOSS_DB:g} dB is the limit{self._needed(excess, LOSS_DB)}"
        )
        return self._finding(Judgement.CANNOT_TELL, text)

    def _perhaps_rounding(self) -> str:
        text = f"{self.name} differs from the graph{self._bracket()}, and {self.n:,} samples do not tell whether"
        return (
            f"{text} that is more than rounding{self._beside()}{self._needed(self.figures.nearness, 0.0)}"
            f"{self._cost()}"
        )

    def _differs(self) -> str:
        return f"{self.name} differs from the graph by more than rounding explains{self._bracket()}{self._beside()}{self._cost()}"

    def _bracket(self) -> str:
        """The runtime's own error."""
        if self.figures.own is None:
            return f" ({self.own.differing:,} of {self.own.values:,} values are not those of {self.truth})"
        return f" ({_figure(self.figures.own)} to {self.truth})"

    def _beside(self) -> str:
        """What float32 as written has."""
        usual = self.yardstick.rounding
        if usual is None:
            return ""
        return f"; float32 as written has {decibels(usual.sqnr_db) if usual.sqnr_db is not None else f'{usual.differing:,}'}"

    def _cost(self) -> str:
        """What a difference from the graph does to the distance from the original."""
        loss = self.figures.loss
        if loss is None:
            hint = "; name the original with --model to see whether it loses by that"
            return hint if self.yardstick.quantization is None else self._rest()
        if loss.value < 0.0:
            nearer = _figure(Estimate(-loss.value, _negative(loss), loss.missing))
            return f"; it loses nothing by that, but is {nearer} nearer to the original{self._rest()}"
        return f"; it loses {_figure(loss)} by that, less than {LOSS_DB:g} dB{self._rest('the rest')}"

    def _rest(self, what: str = "what is lost") -> str:
        """What quantization does."""
        if self.yardstick.quantization is None:
            return ""
        found = self.yardstick.quantization.sqnr_db
        shown = "" if found is None else f" ({decibels(found)} to the original)"
        return f"; {what} is quantization's{shown}"
