"""Tables of a task's figures: on all samples, slice by slice, the worst samples, and what is taken for what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.harness.comparison import Comparison, Score, VariantResult
from quantlab.reports.cells import MISSING, fixed, significant

if TYPE_CHECKING:
    import pandas as pd

_DECIMALS = {"%": 2, "dB": 1}


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """One table for people, laid out by the format.

    Attributes:
        title: Above it.
        headings: Of the columns.
        rows: Cells as plain text; the first is the variant, and rows of one variant follow each other.
        words: Columns from the left that are words.
        notes: Sentences below it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Most:
    """Rows that are shown.

    Attributes:
        slices: Of each variant.
        samples: Of each variant.
        confusions: Of each variant.
    """

    slices: int
    samples: int
    confusions: int


FEW = Most(slices=5, samples=3, confusions=3)
"""For a terminal."""
MANY = Most(slices=20, samples=10, confusions=10)
"""For a file."""


def score_tables(comparison: Comparison, most: Most) -> tuple[ScoreTable, ...]:
    """The tables that have something to show."""
    found = (_scores(comparison), _slices(comparison, most), _worst(comparison, most), _confusions(comparison, most))
    return tuple(table for table in found if table.rows or (table.headings and table.title.startswith("Slices")))


def score_columns(comparison: Comparison) -> pd.DataFrame:
    """Figures on all samples as columns, one row for each variant: value, difference, interval and samples of each."""
    import pandas as pd

    figures = list(dict.fromkeys(score.figure for result in comparison.variants for score in _overall(result)))
    columns: dict[str, list[float | None]] = {}
    for figure in figures:
        rows = [_find(result, figure) for result in comparison.variants]
        intervals = [None if row is None else row.interval for row in rows]
        columns |= {
            f"score_{figure}": [None if row is None else row.value for row in rows],
            f"score_{figure}_difference": [
                None if row is None or row.against_reference else row.difference for row in rows
            ],
            f"score_{figure}_low": [None if found is None else found.low for found in intervals],
            f"score_{figure}_high": [None if found is None else found.high for found in intervals],
        }
    return pd.DataFrame({name: pd.array(values, dtype="Float64") for name, values in columns.items()})


def score_frame(comparison: Comparison) -> pd.DataFrame:
    """Every score of every variant, slices too, one row each."""
    import pandas as pd

    rows = [
        {
            "variant": result.name,
            "figure": score.figure,
            "unit": score.unit,
            "slice_column": score.slice.column if score.slice else None,
            "slice_value": score.slice.value if score.slice else None,
            "n": score.n,
            "value": score.value,
            "reference": score.reference,
            "difference": score.difference,
            "low": score.interval.low if score.interval else None,
            "high": score.interval.high if score.interval else None,
            "confidence": score.interval.confidence if score.interval else None,
            "method": score.method,
        }
        for result in comparison.variants
        for score in result.scores
    ]
    return pd.DataFrame(rows)


def _overall(result: VariantResult) -> Iterator[Score]:
    return (score for score in result.scores if score.slice is None)


def _find(result: VariantResult, figure: str) -> Score | None:
    return next((score for score in _overall(result) if score.figure == figure), None)


def _candidates(comparison: Comparison) -> list[VariantResult]:
    return [result for result in comparison.variants if result.name != comparison.reference]


def _number(value: float, unit: str, *, sign: bool = False) -> str:
    if unit in _DECIMALS:
        return fixed(value, _DECIMALS[unit], sign=sign)
    text = significant(value, 4)
    return f"+{text}" if sign and value > 0 else text


def _difference(score: Score) -> str:
    """Difference and interval; of the value, where the figure is a difference already."""
    alone = score.against_reference
    start = "value in" if alone else _number(score.difference, score.unit, sign=True)
    if score.interval is None:
        return MISSING if alone else start
    ends = (_number(end, score.unit, sign=not alone) for end in (score.interval.low, score.interval.high))
    return f"{start} [{', '.join(ends)}]"


def _shown(score: Score) -> str:
    """What the interval of the difference shows."""
    if score.interval is None or score.against_reference:
        return MISSING
    low, high = score.interval.low, score.interval.high
    if low == high == 0.0:
        return "the same"
    if low <= 0.0 <= high:
        return "undecided"
    return "better" if (low > 0.0) == score.higher_is_better else "worse"


def _unit(score: Score) -> str:
    return f"{score.figure} {score.unit}".strip()


def _scores(comparison: Comparison) -> ScoreTable:
    pairs = [(result, score) for result in _candidates(comparison) for score in _overall(result)]
    rows = tuple((result.name, _unit(score), *_cells(score)) for result, score in pairs)
    scores = [score for _, score in pairs]
    headings = ("variant", "figure", *_headings(scores))
    return ScoreTable(f"Scores, task {comparison.task}", headings, rows, 2, tuple(_methods(scores)))


def _headings(scores: Sequence[Score]) -> tuple[str, ...]:
    known = next((score.interval.confidence for score in scores if score.interval), None)
    difference = "difference" if known is None else f"difference [{100 * known:.0f} % interval]"
    return ("value", "reference", difference, "shown", "n")


def _cells(score: Score) -> tuple[str, ...]:
    reference = MISSING if score.against_reference else _number(score.reference, score.unit)
    return (_number(score.value, score.unit), reference, _difference(score), _shown(score), f"{score.n:,}")


def _methods(scores: Sequence[Score]) -> Iterator[str]:
    """How the intervals were made, and why some are missing."""
    by_method: dict[str, list[str]] = {}
    for score in scores:
        figures = by_method.setdefault(score.method, [])
        if score.figure not in figures:
            figures.append(score.figure)
    for method, figures in by_method.items():
        yield f"{', '.join(figures)}: {method}."


def _slices(comparison: Comparison, most: Most) -> ScoreTable:
    sliced = [(result, score) for result in _candidates(comparison) for score in result.scores if score.slice]
    if not sliced:
        return ScoreTable("Slices", (), (), 0)
    first = sliced[0][1]
    told = [(result.name, score) for result, score in sliced if score.figure == first.figure]
    told.sort(key=lambda pair: (pair[1].interval is None, -_loss(pair[1])))  # of equal losses in the order of slices
    rows = [
        (name, f"{score.slice.column}={score.slice.value}", *_cells(score))
        for result in _candidates(comparison)
        for name, score in [pair for pair in told if pair[0] == result.name and _changed(pair[1])][: most.slices]
        if score.slice is not None
    ]
    scores = [score for _, score in told]
    headings = ("variant", "slice", *_headings(scores))
    title = f"Slices by {_unit(first)}, worst first"
    return ScoreTable(title, headings, tuple(rows), 2, tuple(_slice_notes(comparison, scores, len(rows))))


def _changed(score: Score) -> bool:
    return score.against_reference or score.difference != 0.0


def _loss(score: Score) -> float:
    """How much worse, by direction; of figures that are differences already, the value itself."""
    change = score.value if score.against_reference else score.difference
    loss = -change if score.higher_is_better else change
    return math.inf if math.isnan(loss) else loss


def _slice_notes(comparison: Comparison, scores: Sequence[Score], rows: int) -> Iterator[str]:
    same = sum(not _changed(score) for score in scores)
    if same:
        yield f"{same:,} of {len(scores):,} did not change."
    if rows < len(scores) - same:
        yield f"{rows:,} of {len(scores) - same:,} that changed; all are in comparison.json."
    for column, count in comparison.slices_left_out.items():
        yield f"{count:,} further values of {column}, none with more samples, are not told."
    without = sum(score.interval is None for score in scores)
    if without:
        yield f"{without:,} have too few samples for an interval."
    levels = [score.interval.confidence for score in scores if score.interval and not score.against_reference]
    if levels:
        by_chance = len(levels) * 0.5 * (1.0 - levels[0])
        yield (
            "A release needs every slice within its margin (intersection-union), so the intervals are not widened for "
            f"their number: if none of the {len(levels):,} with an interval had really changed, about {by_chance:.1f} "
            "would show as worse by chance."
        )


def _worst(comparison: Comparison, most: Most) -> ScoreTable:
    rows = [
        (
            result.name, sample.sample, sample.label or MISSING, sample.reference or MISSING, sample.variant,
            significant(sample.drop),
        )
        for result in _candidates(comparison)
        for sample in result.worst[: most.samples]
    ]  # fmt: skip
    unit = next((sample.unit for result in comparison.variants for sample in result.worst), "")
    headings = ("variant", "sample", "label", "reference", "says", "drop")
    notes = (f"Drop: {unit}. samples.parquet has every sample, and so every answer that changed.",)
    return ScoreTable("Worst samples", headings, tuple(rows), 5, notes)


def _confusions(comparison: Comparison, most: Most) -> ScoreTable:
    rows = [
        (result.name, change.label, change.answer, f"{change.reference:,}", f"{change.count:,}",
         f"{change.count - change.reference:+,}")
        for result in _candidates(comparison)
        for change in result.confusions[: most.confusions]
    ]  # fmt: skip
    headings = ("variant", "label", "taken for", "reference", "count", "change")
    return ScoreTable("Confusions that changed most", headings, tuple(rows), 3)
