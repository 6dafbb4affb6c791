"""Whose error it is, from distances alone."""

from __future__ import annotations

import math

import pytest

from quantlab.harness.gap import Gap
from quantlab.harness.truth_record import Judgement, OutputTruth
from quantlab.harness.truth_verdict import Finding, Yardstick, judge


def gap(sqnr: float | None, *, differing: int = 5, non_finite: int = 0) -> Gap:
    return Gap(sqnr, 0.1, differing, 10, 0, non_finite, 0)


def found(
    own: Gap,
    total: float | None = None,
    *,
    quantization: float | None = None,
    rounding: float | None = 62.0,
    rounded: float | None = None,
) -> Finding:
    """One output; ``rounded`` is what float32 as written has to the original, by default what the graph has."""
    beside = quantization if rounded is None else rounded
    yardstick = Yardstick(
        None if rounding is None else gap(rounding),
        None if quantization is None else gap(quantization),
        None if beside is None else gap(beside),
    )
    output = OutputTruth("y", own, None if total is None else gap(total), None)
    return judge("openvino", "float64", [output], {"y": yardstick})


class TestWithTheOriginal:
    def test_as_written(self) -> None:
        finding = found(gap(61.0), 25.1, quantization=25.2)
        assert finding.judgement is Judgement.AS_WRITTEN
        assert finding.verdict == (
            "openvino computes this model as written (61.0 dB to its float64); what is lost is quantization's "
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
        assert found(gap(36.0), 24.4, quantization=25.0).judgement is Judgement.OWN_ERROR

    def test_what_float32_as_written_loses_too_is_not_the_runtimes(self) -> None:
        finding = found(gap(28.0), 23.8, quantization=25.0, rounding=29.0, rounded=23.9)
        assert finding.judgement is Judgement.AS_WRITTEN

    def test_other_rounding_that_costs_nothing(self) -> None:
        finding = found(gap(36.0), 25.1, quantization=25.0)
        assert finding.judgement is Judgement.DIFFERS
        assert (
            "36.0 dB to its float64, where float32 as written has 62.0 dB; it loses nothing by that" in finding.verdict
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
        assert finding.verdict == "openvino computes this model as written (60.0 dB to its float64)"
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
    assert "6 of 10 values; float32 as written in 5" in finding.verdict


def test_the_worst_output_decides_and_is_named() -> None:
    good, bad = gap(61.0), gap(17.0)
    yardstick = Yardstick(gap(62.0), gap(25.0), gap(25.0))
    outputs = [OutputTruth("a", good, gap(25.0), None), OutputTruth("b", bad, gap(16.0), None)]
    finding = judge("openvino", "float64", outputs, {"a": yardstick, "b": yardstick})
    assert finding.judgement is Judgement.OWN_ERROR
    assert finding.verdict.startswith("output b: openvino is 9.0 dB worse")
    assert finding.loss_db == pytest.approx(9.0)
