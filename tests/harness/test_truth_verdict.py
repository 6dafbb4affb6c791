"""Whose error it is, from distances alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantlab.harness.gap import Gap
from quantlab.harness.truth_figures import Estimate, TruthFigures, excess, loss, nearness
from quantlab.harness.truth_record import Judgement, OutputTruth
from quantlab.harness.truth_verdict import Finding, Yardstick, judge
from quantlab.statistics.interval import Interval

Bounds = tuple[float, float]


def gap(sqnr: float | None, *, differing: int = 5, non_finite: int = 0) -> Gap:
    return Gap(sqnr, 0.1, differing, 10, 0, non_finite, 0)


def point(value: object, bounds: Bounds | None = None) -> Estimate:
    return Estimate(float(value), None if bounds is None else Interval(*bounds, 0.95))  # type: ignore[arg-type]


def found(
    own: Gap,
    total: float | None = None,
    *,
    quantization: float | None = None,
    rounding: float | None = 62.0,
    rounded: float | None = None,
    excess_bounds: Bounds | None = None,
    nearness_bounds: Bounds | None = None,
    loss_bounds: Bounds | None = None,
    n: int = 32,
) -> Finding:
    """One output; ``rounded`` is what float32 as written has to the original, by default what the graph has."""
    yardstick = Yardstick(
        *(None if value is None else gap(None if own.sqnr_db is None else value) for value in (rounding, quantization))
    )
    output = OutputTruth("y", own, None if total is None else gap(total), None)
    usual = None if rounding is None else np.float64(rounding)
    if own.sqnr_db is None:
        figures = TruthFigures(point(5 - own.differing, nearness_bounds))
    else:
        figures = TruthFigures(point(nearness(np.float64(own.sqnr_db), usual), nearness_bounds), point(own.sqnr_db))
    if total is not None and quantization is not None:
        exact, beside = np.float64(quantization), np.float64(quantization if rounded is None else rounded)
        lost = loss(np.float64(total), exact)
        figures = replace(
            figures,
            loss=point(lost, loss_bounds),
            excess=point(excess(lost, loss(beside, exact)), excess_bounds),
        )
    return judge("openvino", "float64", n, [replace(output, figures=figures)], {"y": yardstick})


class TestWithTheOriginal:
    def test_as_written(self) -> None:
        finding = found(gap(61.0), 25.1, quantization=25.2)
        assert finding.judgement is Judgement.AS_WRITTEN
        assert finding.verdict == (
            "openvino computes the graph as written (61.0 dB to its float64); what is lost is quantization's "
            "(25.2 dB to the original)"
        )
        assert finding.loss_db == pytest.approx(0.1)

    def test_bit_for_bit(self) -> None:
        finding = found(gap(math.inf, differing=0), 25.2, quantization=25.2)
        assert finding.judgement is Judgement.AS_WRITTEN
        assert "as written, bit for bit" in finding.verdict

    def test_an_error_of_its_own(self) -> None:
        finding = found(gap(17.0), 16.2, quantization=25.2)
        assert finding.judgement is Judgement.OWN_ERROR
        assert finding.verdict == (
            "openvino is 9.0 dB worse than the graph says (16.2 dB instead of 25.2 dB to the original): its error, "
            "not quantization's"
        )
        assert finding.loss_db == pytest.approx(9.0)

    def test_the_limit_is_half_a_decibel(self) -> None:
        finding = found(gap(36.0), 24.6, quantization=25.0)
        assert finding.judgement is Judgement.DIFFERS
        assert finding.verdict.endswith("it loses 0.4 dB by that; the rest is quantization's (25.0 dB to the original)")
        assert found(gap(36.0), 24.5, quantization=25.0).judgement is Judgement.OWN_ERROR

    def test_what_float32_as_written_loses_too_is_not_the_runtimes(self) -> None:
        finding = found(gap(28.0), 23.8, quantization=25.0, rounding=29.0, rounded=23.9)
        assert finding.judgement is Judgement.AS_WRITTEN

    def test_other_rounding_that_costs_nothing(self) -> None:
        finding = found(gap(36.0), 25.1, quantization=25.0)
        assert finding.judgement is Judgement.DIFFERS
        assert (
            "36.0 dB to its float64, where float32 as written has 62.0 dB; it loses nothing by that, it is 0.1 dB "
            "nearer to the original" in finding.verdict
        )

    def test_a_graph_that_loses_nothing(self) -> None:
        """An infinite figure of quantization is no reason to call rounding an infinite loss."""
        assert found(gap(120.0), 120.0, quantization=math.inf).judgement is Judgement.AS_WRITTEN
        finding = found(gap(20.0), 20.0, quantization=math.inf)
        assert finding.judgement is Judgement.OWN_ERROR
        assert finding.loss_db == pytest.approx(40.0)

    def test_a_constant_graph(self) -> None:
        assert found(gap(-math.inf), -math.inf, quantization=-math.inf).judgement is Judgement.DIFFERS
        assert found(gap(-math.inf), -math.inf, quantization=20.0).judgement is Judgement.OWN_ERROR


class TestWithoutTheOriginal:
    def test_near_is_as_written(self) -> None:
        finding = found(gap(60.0))
        assert finding.judgement is Judgement.AS_WRITTEN
        assert finding.verdict == "openvino computes the graph as written (60.0 dB to its float64)"
        assert finding.loss_db is None

    def test_a_little_more_than_float32(self) -> None:
        assert found(gap(27.5), rounding=30.0).judgement is Judgement.AS_WRITTEN
        assert found(gap(26.5), rounding=30.0).judgement is Judgement.DIFFERS

    def test_the_original_is_asked_for(self) -> None:
        assert "name the original with --model" in found(gap(20.0)).verdict

    def test_without_float64(self) -> None:
        assert found(gap(61.0), rounding=None).judgement is Judgement.AS_WRITTEN
        assert found(gap(50.0), rounding=None).judgement is Judgement.DIFFERS


@pytest.mark.parametrize("quantization", [None, 25.0])
def test_nan_is_never_as_written(quantization: float | None) -> None:
    finding = found(gap(-math.inf, non_finite=3), -math.inf, quantization=quantization)
    assert finding.judgement is Judgement.NON_FINITE
    assert "NaN or infinity in 3 of 10 values" in finding.verdict


def test_integers_may_differ_where_float32_does() -> None:
    assert found(gap(None, differing=5), rounding=50.0).judgement is Judgement.AS_WRITTEN
    finding = found(gap(None, differing=6), rounding=50.0)
    assert finding.judgement is Judgement.DIFFERS
    assert "6 of 10 values are not those of its float64, where float32 as written has 5;" in finding.verdict


def test_the_worst_output_decides_and_is_named() -> None:
    good = TruthFigures(point(1.0), point(61.0), point(0.0), point(0.0))
    bad = TruthFigures(point(-42.0), point(17.0), point(9.0), point(9.0))
    yardstick = Yardstick(gap(62.0), gap(25.0))
    outputs = [
        OutputTruth("a", gap(61.0), gap(25.0), None, figures=good),
        OutputTruth("b", gap(17.0), gap(16.0), None, figures=bad),
    ]
    finding = judge("openvino", "float64", 32, outputs, {"a": yardstick, "b": yardstick})
    assert finding.judgement is Judgement.OWN_ERROR
    assert finding.verdict.startswith("output b: openvino is 9.0 dB worse")


class TestIntervals:
    def test_an_interval_above_the_limit_decides(self) -> None:
        finding = found(gap(36.0), 24.0, quantization=25.0, excess_bounds=(0.6, 1.4), loss_bounds=(0.6, 1.4))
        assert finding.judgement is Judgement.OWN_ERROR
        assert "is 1.0 dB [0.6, 1.4] worse than the graph says" in finding.verdict

    def test_an_interval_that_holds_the_limit_does_not(self) -> None:
        """From 1.0 down to 0.4 is 0.6, the limit is 0.5 away: (0.6 / 0.5)^2 times 32 samples."""
        finding = found(gap(36.0), 24.0, quantization=25.0, excess_bounds=(0.4, 1.7), loss_bounds=(0.4, 1.7))
        assert finding.judgement is Judgement.CANNOT_TELL
        assert finding.verdict == (
            "cannot tell from 32 samples whether openvino has an error of its own: it is 1.0 dB [0.4, 1.7] worse than "
            "the graph says, and 0.5 dB is the limit; about 47 would tell"
        )

    def test_nor_does_it_if_the_figure_is_below(self) -> None:
        finding = found(gap(36.0), 24.75, quantization=25.0, excess_bounds=(0.0, 0.75))
        assert finding.judgement is Judgement.CANNOT_TELL
        assert finding.verdict.endswith("about 128 would tell")

    def test_what_float32_loses_is_told(self) -> None:
        finding = found(gap(28.0), 23.0, quantization=25.0, rounding=29.0, rounded=24.0, excess_bounds=(0.3, 1.5))
        assert (
            "it is 2.0 dB worse than the graph says, 1.0 dB [0.3, 1.5] more than float32 as written" in finding.verdict
        )

    def test_too_near_to_the_limit(self) -> None:
        finding = found(gap(36.0), 24.499, quantization=25.0, excess_bounds=(-0.5, 1.5))
        assert finding.verdict.endswith("more samples will hardly tell")

    def test_rounding_or_not(self) -> None:
        """It is rounding from 40 dB on, 1 dB away; the bound is 2 dB away: (2 / 1)^2 times 32 samples."""
        finding = found(
            gap(41.0), 25.0, quantization=25.0, rounding=43.0, excess_bounds=(-0.1, 0.1), nearness_bounds=(-1.0, 2.0)
        )
        assert finding.judgement is Judgement.CANNOT_TELL
        assert finding.verdict.startswith(
            "cannot tell from 32 samples whether openvino differs from the graph by more than rounding: 41.0 dB to its "
            "float64, where float32 as written has 43.0 dB; about 128 would tell; it loses 0.0 dB by that"
        )

    @pytest.mark.parametrize(
        ("bounds", "expected"), [((0.0, 1.0), Judgement.AS_WRITTEN), ((-1.0, -0.1), Judgement.DIFFERS)]
    )
    def test_rounding_that_is_told(self, bounds: Bounds, expected: Judgement) -> None:
        assert found(gap(41.0), rounding=43.0, nearness_bounds=bounds).judgement is expected

    def test_without_an_interval_the_sentence_says_so(self) -> None:
        for own, total in ((61.0, 25.0), (40.0, 25.0), (17.0, 16.0)):
            figures = TruthFigures(
                *(Estimate(value, None, "4 samples are too few for an interval") for value in (own - 60, own)),
                *(Estimate(25.0 - total, None, "4 samples are too few for an interval") for _ in range(2)),
            )
            output = OutputTruth("y", gap(own), gap(total), None, figures=figures)
            finding = judge("openvino", "float64", 4, [output], {"y": Yardstick(None, gap(25.0))})
            assert finding.verdict.endswith("; 4 samples are too few for an interval"), finding

    def test_integers(self) -> None:
        finding = found(gap(None, differing=6), rounding=None, nearness_bounds=(-20.0, 0.0))
        assert finding.judgement is Judgement.CANNOT_TELL
        assert "6 of 10 values are not those of its float64" in finding.verdict
