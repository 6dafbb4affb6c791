"""Tables of scores: order, words for what an interval shows, and what is left out."""

from __future__ import annotations

import dataclasses
import math

import pytest
from report_examples import comparison

from quantlab.harness.comparison import Score, Slice, VariantResult
from quantlab.reports import render
from quantlab.reports.scores import FEW, MANY, Most, score_columns, score_frame, score_tables
from quantlab.statistics.interval import Interval


def with_score(score: Score) -> str:
    """The cells of the only score of the third variant."""
    base = comparison()
    results = tuple(
        dataclasses.replace(result, scores=(score,) if number == 2 else ())
        for number, result in enumerate(base.variants)
    )
    (table, *_) = score_tables(dataclasses.replace(base, variants=results), FEW)
    ((_, *cells),) = table.rows
    return " ".join(cells)


def gain(low: float | None, high: float | None, *, higher: bool = True, value: float = 1.0) -> Score:
    interval = None if low is None or high is None else Interval(low, high, 0.95)
    return Score("f", "", higher, value, 0.0, value, interval, "by hand", 50)


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        (gain(0.5, 1.5), "better"),
        (gain(0.5, 1.5, higher=False), "worse"),
        (gain(-1.5, -0.5), "worse"),
        (gain(-1.5, -0.5, higher=False), "better"),
        (gain(-0.5, 1.5), "undecided"),
        (gain(0.0, 1.5), "undecided"),
        (gain(0.0, 0.0), "the same"),
        (gain(None, None), "-"),
    ],
)
def test_what_an_interval_shows(score: Score, shown: str) -> None:
    assert with_score(score).endswith(f"{shown} 50")


def test_infinities_and_nan_are_written() -> None:
    lost = Score("sqnr_db", "dB", True, -math.inf, math.inf, -math.inf, Interval(-math.inf, 12.0, 0.95), "m", 9, None, True)  # fmt: skip  # noqa: E501
    assert with_score(lost) == "sqnr_db dB -inf - value in [-inf, 12.0] - 9"
    assert with_score(gain(None, None, value=math.nan)) == "f - 0 - - 50"


def test_slices_are_sorted_by_loss_and_those_without_interval_come_last() -> None:
    slices = score_tables(comparison(), MANY)[1]
    assert [row[1] for row in slices.rows[:2]] == ["class=shirt|coat", "camera=left"]


def test_rows_beyond_the_limit_are_counted() -> None:
    _, slices, worst, _ = score_tables(comparison(), Most(slices=1, samples=1, confusions=1))
    assert len(slices.rows) == len(worst.rows) == 2, "one for each variant"
    assert slices.notes[:2] == ("2 of 6 did not change.", "2 of 4 that changed; all are in comparison.json.")
    assert "3 further values of class" in slices.notes[2]


def test_slices_too_small_for_an_interval_count_as_unchanged_where_nothing_changed() -> None:
    def of(value: str, difference: float) -> Score:
        return Score("top1", "%", True, 50.0 + difference, 50.0, difference, None, "m", 4, Slice("camera", value))

    base = comparison()
    scores = (of("a", 0.0), of("b", 0.0), of("c", -25.0))
    results = tuple(
        dataclasses.replace(one, scores=scores if number == 2 else ()) for number, one in enumerate(base.variants)
    )
    (table,) = [t for t in score_tables(dataclasses.replace(base, variants=results), MANY) if "Slices" in t.title]
    assert [row[1] for row in table.rows] == ["camera=c"]
    assert table.notes[0] == "2 of 3 did not change."
    assert "3 have too few samples for an interval." in table.notes


@pytest.mark.parametrize("form", ["terminal", "markdown"])
def test_outputs_that_are_not_finite_or_constant_are_told(form: str) -> None:
    base = comparison()
    reference, first, *others = base.variants
    clean = dataclasses.replace(base, variants=(reference,))
    text = " ".join(render(clean, form).split())
    assert "NaN or infinite" not in text
    assert "for every sample." not in text
    output = dataclasses.replace(first.outputs[0], output="out", non_finite=1234, constant=True)
    broken = dataclasses.replace(first, outputs=(output, *first.outputs[1:]))
    text = " ".join(render(dataclasses.replace(base, variants=(reference, broken, *others)), form).split())
    assert f"{first.name} gave 1,234 NaN or infinite values in out: the drift above is without their samples" in text
    assert f"{first.name} gave the same out for every sample." in text


def test_without_scores_there_are_no_tables() -> None:
    bare = tuple(dataclasses.replace(result, scores=(), worst=(), confusions=()) for result in comparison().variants)
    assert score_tables(dataclasses.replace(comparison(), variants=bare), FEW) == ()
    assert "Scores" not in render(dataclasses.replace(comparison(), variants=bare), "terminal")


def test_frames() -> None:
    columns = score_columns(comparison())
    assert list(columns["score_top1"].dropna()) == [91.5, 90.15, 91.35]
    assert columns["score_agreement_difference"].isna().all(), "it is a difference already"
    frame = score_frame(comparison())
    assert len(frame) == sum(len(result.scores) for result in comparison().variants)
    assert set(frame[frame.slice_column.notna()].slice_column) == {"class", "camera"}


def test_names_of_files_do_nothing_in_a_terminal() -> None:
    base = comparison()
    minmax: VariantResult = base.variants[2]
    hostile = dataclasses.replace(minmax.worst[0], sample="\x1b[31m\udce9\nx|<b>.png", variant="\x07`x`")
    changed = dataclasses.replace(minmax, worst=(hostile,))
    text = render(dataclasses.replace(base, variants=(*base.variants[:2], changed)), "terminal")
    assert "\x1b" not in text and "\x07" not in text and "\udce9" not in text
