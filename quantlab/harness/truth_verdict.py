"""What is said of a runtime: whose error it is that it gives other results than the original."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlab.harness.gap import Gap
from quantlab.harness.truth_record import Judgement, OutputTruth

NEAR_DB = 60.0
"""A runtime this near to the graph computes it as written: differences of a thousandth are rounding."""

ROUNDING_DB = 3.0
"""It may lie further from float64 than float32 as written does by so much: kernels add up in other orders."""

LOSS_DB = 0.5
"""Further from the original than the graph is by more than this is an error of the runtime's own."""


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
        loss_db: By how much the runtime is further from the original than the graph says; None without an original.
    """

    judgement: Judgement
    verdict: str
    loss_db: float | None


_WORST_FIRST = (Judgement.NON_FINITE, Judgement.OWN_ERROR, Judgement.DIFFERS, Judgement.AS_WRITTEN)


def judge(name: str, truth: str, outputs: Sequence[OutputTruth], yardsticks: Mapping[str, Yardstick]) -> Finding:
    """Judge a runtime by the output where it does worst.

    Args:
        name: Of the runtime.
        truth: What its own error is told from, in words.
        outputs: Its distances.
        yardsticks: What the graph itself gives, by output.

    Returns:
        The finding of that output; it is named where there are several.
    """
    found = [(_judge_output(name, truth, output, yardsticks[output.output]), output.output) for output in outputs]
    worst, output = min(found, key=lambda pair: (_WORST_FIRST.index(pair[0].judgement), -_sortable(pair[0].loss_db)))
    losses = [finding.loss_db for finding, _ in found if finding.loss_db is not None]
    verdict = f"output {output}: {worst.verdict}" if len(outputs) > 1 else worst.verdict
    return Finding(worst.judgement, verdict, max(losses, key=_sortable, default=None))


def _judge_output(name: str, truth: str, output: OutputTruth, yardstick: Yardstick) -> Finding:
    own = output.graph
    assert own is not None  # a runtime is never the truth itself
    if own.non_finite:
        values = f"{own.non_finite:,} of {own.values:,} values"
        return Finding(Judgement.NON_FINITE, f"{name} gives NaN or infinity in {values} where the graph has none", None)
    if own.sqnr_db is None:
        return _judge_integers(name, truth, own, yardstick)
    loss = _loss(output.exact, yardstick.quantization)
    if loss is not None and _is_own_error(loss, own, yardstick):
        assert output.exact is not None and yardstick.quantization is not None
        return Finding(
            Judgement.OWN_ERROR,
            f"{name} is {decibels(loss)} worse than the graph says ({decibels(output.exact.sqnr_db)} instead of "
            f"{decibels(yardstick.quantization.sqnr_db)} to the original): its error, not quantization's",
            loss,
        )
    blame = _blame(yardstick)
    if own.is_equal:
        return Finding(Judgement.AS_WRITTEN, f"{name} computes this model as written, bit for bit{blame}", loss)
    if is_rounding(own, yardstick.rounding):
        text = f"{name} computes this model as written ({decibels(own.sqnr_db)} to its {truth}){blame}"
        return Finding(Judgement.AS_WRITTEN, text, loss)
    return Finding(Judgement.DIFFERS, _differs(name, truth, own, yardstick, loss), loss)


def _judge_integers(name: str, truth: str, own: Gap, yardstick: Yardstick) -> Finding:
    """Of an output of integers or truth values: only what float32 as written gets wrong too is rounding."""
    if is_rounding(own, yardstick.rounding):
        return Finding(Judgement.AS_WRITTEN, f"{name} computes this model as written{_blame(yardstick)}", None)
    text = f"{name} differs from the {truth} of the graph in {own.differing:,} of {own.values:,} values"
    usual = yardstick.rounding.differing if yardstick.rounding is not None else 0
    return Finding(Judgement.DIFFERS, f"{text}; float32 as written in {usual:,}", None)


def _is_own_error(loss: float, own: Gap, yardstick: Yardstick) -> bool:
    """Whether a loss is more than what float32 as written loses, and the runtime differs from the graph at all."""
    if own.is_equal:
        return False
    usual = _loss(yardstick.rounded, yardstick.quantization)
    return loss > LOSS_DB + max(0.0, usual if usual is not None and math.isfinite(usual) else 0.0)


def _loss(total: Gap | None, quantization: Gap | None) -> float | None:
    """How much further from the original than the graph is, in dB; negative if it is nearer."""
    if total is None or quantization is None or total.sqnr_db is None or quantization.sqnr_db is None:
        return None
    if total.sqnr_db == quantization.sqnr_db:
        return 0.0
    if quantization.sqnr_db == math.inf:  # nothing was lost, so that rounding would be an infinite loss
        return max(0.0, NEAR_DB - total.sqnr_db)
    return quantization.sqnr_db - total.sqnr_db


def _blame(yardstick: Yardstick) -> str:
    if yardstick.quantization is None:
        return ""
    found = yardstick.quantization.sqnr_db
    shown = "" if found is None else f" ({decibels(found)} to the original)"
    return f"; what is lost is quantization's{shown}"


def _differs(name: str, truth: str, own: Gap, yardstick: Yardstick, loss: float | None) -> str:
    usual = yardstick.rounding
    beside = "" if usual is None else f", where float32 as written has {decibels(usual.sqnr_db)}"
    text = f"{name} differs from the graph by more than rounding explains: {decibels(own.sqnr_db)} to its {truth}"
    if loss is None:
        return f"{text}{beside}; name the original with --model to see whether it loses by that"
    if loss <= 0.0:
        return f"{text}{beside}; it loses nothing by that{_blame(yardstick)}"
    rest = _blame(yardstick).replace("what is lost is", "the rest is", 1)
    return f"{text}{beside}; it loses {decibels(loss)} by that{rest}"


def is_rounding(gap: Gap, rounding: Gap | None) -> bool:
    """Whether a difference is no more than what float32 as written has, and a little."""
    if gap.is_equal:
        return True
    if gap.sqnr_db is None:
        return rounding is not None and gap.differing <= rounding.differing
    limit = NEAR_DB
    if rounding is not None and rounding.sqnr_db is not None:
        limit = min(limit, rounding.sqnr_db - ROUNDING_DB)
    return gap.sqnr_db >= limit


def decibels(value: float | None) -> str:
    """Such as ``62.0 dB``."""
    return "no figure" if value is None or math.isnan(value) else f"{value:.1f} dB"


def _sortable(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
