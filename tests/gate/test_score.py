"""Figures of a task against a margin or a limit, over all samples and slice by slice."""

from __future__ import annotations

import datetime as dt
import math

import pytest
from gate_examples import INT8, comparison, variant
from hypothesis import given
from hypothesis import strategies as st

from quantlab.gate.evaluate import evaluate
from quantlab.gate.loading import parse_policy
from quantlab.gate.verdict import CheckResult, Outcome
from quantlab.harness.comparison import Score, Slice
from quantlab.statistics.interval import Interval

TODAY = dt.date(2026, 6, 1)
PASS, FAIL, INCONCLUSIVE, ERROR = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.ERROR
MAP = 'figure = "map"\nmargin = { absolute = 0.02 }'


def score(
    difference: float,
    half: float | None,
    figure: str = "map",
    *,
    higher: bool = True,
    reference: float = 0.5,
    unit: str = "",
    n: int = 500,
    part: Slice | None = None,
    confidence: float = 0.95,
) -> Score:
    interval = None if half is None else Interval(difference - half, difference + half, confidence)
    method = "paired BCa bootstrap" if half is not None else "fewer than 10 samples"
    return Score(figure, unit, higher, reference + difference, reference, difference, interval, method, n, part)


def judge(check: str, *scores: Score, gate: str = "", **values: object) -> CheckResult:
    policy = parse_policy(f'schema = 1\n[gate]\n{gate}\n[[check]]\nid = "x"\nmetric = "score"\n{check}')
    verdict = evaluate(comparison(variant(scores=scores), **values), policy, TODAY)
    (found,) = (one for one in verdict.checks if one.id == "x")
    return found


@pytest.mark.parametrize(
    ("difference", "half", "outcome"),
    [
        (-0.005, 0.01, PASS),  # the loss is below 0.015
        (-0.015, 0.01, INCONCLUSIVE),
        (-0.05, 0.01, FAIL),
        (-0.031, 0.01, FAIL),
        (0.03, 0.01, PASS),
        (0.0, 0.0, PASS),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_non_inferior(difference: float, half: float, outcome: Outcome, higher: bool) -> None:
    """For an error such as MAE, a rise is the loss."""
    given_score = score(difference if higher else -difference, half, higher=higher)
    result = judge(MAP, given_score)
    assert result.outcome is outcome
    assert result.estimate == pytest.approx(-difference)
    assert result.interval is not None
    assert (result.interval.low, result.interval.high) == pytest.approx((-difference - half, -difference + half))


def test_the_sentence_names_the_interval_and_the_margin() -> None:
    result = judge(MAP, score(-0.015, 0.01))
    assert result.reason == (
        f"{INT8}: map fell from 0.5 to 0.485; the loss is between 0.005 and 0.025 "
        "(95 % interval, paired BCa bootstrap), which does not decide about a margin of 0.02"
    )
    assert result.needed == 2000  # the upper half is 0.01, the room 0.005: four times the samples
    assert result.next_step == "needs about 2,000 samples instead of 500"


def test_relative_margins_are_of_the_reference() -> None:
    assert judge('figure = "map"\nmargin = { relative = 0.01 }', score(-0.004, 0.0005)).outcome is PASS
    assert judge('figure = "map"\nmargin = { relative = 0.01 }', score(-0.006, 0.0005)).outcome is FAIL
    assert judge('figure = "map"\nmargin = { relative = 0.01 }', score(0.0, 0.0, reference=0.0)).outcome is ERROR


def test_percentage_points_are_for_percent() -> None:
    check = 'figure = "top1"\nmargin = { absolute_pp = 1 }'
    result = judge(check, score(-0.5, 0.2, "top1", reference=90.0, unit="%"))
    assert (result.outcome, result.unit, result.limit) == (PASS, "pp", 1.0)
    assert judge(check, score(-0.5, 0.2, "top1", reference=90.0)).outcome is ERROR


def test_too_few_samples_show_nothing() -> None:
    result = judge(MAP, score(0.0, None, n=8))
    assert result.outcome is INCONCLUSIVE
    assert "no interval: fewer than 10 samples" in result.reason
    assert judge(MAP + "\nmin_samples = 1000", score(0.0, 0.001)).outcome is INCONCLUSIVE


def test_an_interval_must_hold_as_surely_as_alpha_asks() -> None:
    assert judge(MAP, score(0.0, 0.001), gate="alpha = 0.025").outcome is PASS
    result = judge(MAP, score(0.0, 0.001), gate="alpha = 0.01")
    assert result.outcome is ERROR
    assert "too narrow for alpha = 0.01, which asks for 98 %" in result.reason


@pytest.mark.parametrize("difference", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_passes(difference: float) -> None:
    assert judge(MAP, score(difference, None)).outcome is not PASS
    assert judge(MAP + '\nclaim = "on-this-set"', score(difference, None)).outcome is ERROR


def test_on_this_set_looks_at_the_value_alone() -> None:
    assert judge(MAP + '\nclaim = "on-this-set"', score(-0.02, 0.1)).outcome is PASS
    assert judge(MAP + '\nclaim = "on-this-set"', score(-0.021, None)).outcome is FAIL


def test_limits() -> None:
    at_least = 'figure = "map"\nclaim = "at-least"\nlimit = 0.45'
    assert judge(at_least, score(-0.04, 0.1)).outcome is PASS
    assert judge(at_least, score(-0.06, 0.1)).outcome is FAIL
    mae = score(0.1, 0.01, "mae", higher=False)
    assert judge('figure = "mae"\nclaim = "at-most"\nlimit = 0.6', mae).outcome is PASS
    assert judge('figure = "mae"\nclaim = "at-most"\nlimit = 0.59', mae).outcome is FAIL
    wrong = judge('figure = "mae"\nclaim = "at-least"\nlimit = 0.6', mae)
    assert wrong.outcome is ERROR
    assert "of which lower is better" in wrong.reason


@pytest.mark.parametrize(("limit", "outcome"), [(19, PASS), (20, INCONCLUSIVE), (21.5, FAIL)])
def test_a_figure_that_compares_by_itself_has_the_interval_of_its_value(limit: float, outcome: Outcome) -> None:
    """As SQNR, which the reference has no end of against itself."""
    one = Score(
        "sqnr", "dB", True, 20.3, math.inf, -math.inf, Interval(19.4, 21.0, 0.95), "BCa bootstrap", 100,
        against_reference=True,
    )  # fmt: skip
    assert judge(f'figure = "sqnr"\nclaim = "at-least"\nlimit = {limit}', one).outcome is outcome
    assert judge('figure = "sqnr"\nmargin = { absolute = 1 }', one).outcome is ERROR


def test_a_limit_inside_the_interval_says_how_many_samples_would_tell() -> None:
    one = Score(
        "sqnr", "dB", True, 21.0, math.inf, -math.inf, Interval(19.0, 23.0, 0.95), "BCa bootstrap", 100,
        against_reference=True,
    )  # fmt: skip
    result = judge('figure = "sqnr"\nclaim = "at-least"\nlimit = 20', one)
    assert (result.outcome, result.needed) == (INCONCLUSIVE, 400)  # the half-width is 2, the room 1
    assert result.next_step == "needs about 400 samples instead of 100"
    beyond = judge('figure = "sqnr"\nclaim = "at-least"\nlimit = 22', one)
    assert (beyond.outcome, beyond.needed) == (INCONCLUSIVE, None)
    assert "margin" not in beyond.next_step


class TestSlices:
    def sliced(self, *differences: float, n: int = 500) -> tuple[Score, ...]:
        whole = score(0.0, 0.001)
        return (whole, *(score(d, 0.005, part=Slice("class", str(i)), n=n) for i, d in enumerate(differences)))

    def test_all_must_pass(self) -> None:
        check = MAP + '\nslices = "class"'
        assert judge(check, *self.sliced(0.0, 0.0, 0.01)).outcome is PASS
        result = judge(check, *self.sliced(0.0, -0.05, -0.02))
        assert result.outcome is FAIL
        assert "3 slices by class: 1 FAIL, 1 INCONCLUSIVE, 1 PASS; map of class 1 fell" in result.reason
        assert [detail[:14] for detail in result.details] == ["map of class 2"]

    def test_the_smallest_slice_needs_its_samples(self) -> None:
        check = MAP + '\nslices = "class"\nmin_samples = 100'
        assert judge(check, *self.sliced(0.0, n=99)).outcome is INCONCLUSIVE
        assert judge(check, *self.sliced(0.0, n=100)).outcome is PASS

    def test_slices_that_are_left_out_keep_it_from_passing(self) -> None:
        check = MAP + '\nslices = "class"'
        result = judge(check, *self.sliced(0.0), slices_left_out={"class": 3})
        assert result.outcome is INCONCLUSIVE
        assert "3 more slices are not in the comparison" in result.reason

    def test_a_column_that_is_not_there(self) -> None:
        result = judge(MAP + '\nslices = "site"', *self.sliced(0.0))
        assert result.outcome is ERROR
        assert "no slices of map by 'site' (it has class)" in result.reason


def test_a_figure_that_is_not_there() -> None:
    result = judge(MAP, score(0.0, 0.0, "miou"))
    assert result.outcome is ERROR
    assert "no figure 'map' (task outputs; it has miou)" in result.reason


@given(
    difference=st.floats(-1, 1), half=st.floats(0, 1), margin=st.floats(1e-6, 1), higher=st.booleans(),
)  # fmt: skip
def test_a_pass_is_a_bound_inside_the_margin(difference: float, half: float, margin: float, higher: bool) -> None:
    result = judge(f'figure = "map"\nmargin = {{ absolute = {margin!r} }}', score(difference, half, higher=higher))
    loss = -difference if higher else difference
    assert (result.outcome is PASS) == (loss + half < margin)
    assert (result.outcome is FAIL) == (loss - half >= margin)
