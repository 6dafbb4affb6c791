"""From comparison and policy to verdict: every metric, every guard, waivers, and the overall rule."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from pathlib import Path

import pytest
from gate_examples import INT8, REFERENCE, comparison, counts, drift, latency, reference, variant
from hypothesis import given
from hypothesis import strategies as st

from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import DataError, ExitCode
from quantlab.files import sha256_file, write_text
from quantlab.gate.evaluate import JUDGES, evaluate
from quantlab.gate.loading import load_policy, parse_policy
from quantlab.gate.metrics import Metric
from quantlab.gate.verdict import CheckResult, Outcome, Verdict
from quantlab.harness.comparison import Comparison
from quantlab.precision import Execution, Precision
from quantlab.statistics.interval import Interval

TODAY = dt.date(2026, 6, 1)
PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
ERROR, SKIPPED, WAIVED = Outcome.ERROR, Outcome.SKIPPED, Outcome.WAIVED


def judge(subject: Comparison, check: str, more: str = "", gate: str = "") -> Verdict:
    policy = parse_policy(f'schema = 1\n[gate]\n{gate}\n[[check]]\nid = "x"\n{check}\n{more}')
    return evaluate(subject, policy, TODAY)


def of(verdict: Verdict, name: str = "x") -> CheckResult:
    (found,) = (check for check in verdict.checks if check.id == name)
    return found


def one(check: str, **values: object) -> CheckResult:
    """The result of a check on one INT8 candidate made with ``values``."""
    return of(judge(comparison(variant(**values)), check))


TOP1 = 'metric = "top1"\nmargin = { absolute_pp = 1 }'


class TestTop1:
    def test_pass_although_the_difference_is_nearly_significant(self) -> None:
        result = one(TOP1, classification=counts(60, 40, 5000))
        assert result.outcome is PASS
        assert result.estimate == pytest.approx(0.40)
        assert result.bound == pytest.approx(0.74, abs=0.005)
        assert any("p = 0.057" in detail for detail in result.details)

    def test_inconclusive_says_how_many_images(self) -> None:
        result = one(TOP1, classification=counts(6, 4, 500))
        assert result.outcome is INCONCLUSIVE
        assert result.interval is not None
        assert (round(result.interval.low, 2), round(result.interval.high, 2)) == (-0.72, 1.60)
        assert "needs about 1,237 images at the observed discordance of 2.00 %" in result.next_step
        assert result.needed == 3433  # (1.6449 + 0.8416)^2 (0.02 - 0.004^2) / 0.006^2
        assert "about 3,433 if it is the observed 0.40 pp" in result.next_step

    def test_fail_when_the_whole_interval_is_beyond(self) -> None:
        result = one(TOP1, classification=counts(90, 10, 2000))
        assert result.outcome is FAIL
        assert result.bound is not None
        assert result.bound > 1.0
        assert "with 95 % confidence the loss is above" in result.reason

    def test_the_sentence(self) -> None:
        result = one('metric = "top1"\nmargin = { absolute_pp = 3 }', classification=counts(41, 14, 2000))
        assert result.reason == (
            f"top-1 of {INT8} fell 1.35 pp (flips: 41 to wrong, 14 to right of 2,000); "
            "with 95 % confidence the loss is below 2.00 pp, the margin is 3.00 pp"
        )

    def test_an_observed_loss_beyond_the_margin_needs_no_more_images(self) -> None:
        result = one(TOP1, classification=counts(30, 7, 2000))
        assert result.outcome is INCONCLUSIVE
        assert result.needed is None
        assert "--exclude" in result.next_step

    def test_zero_flips_on_few_images_are_inconclusive(self) -> None:
        result = one('metric = "top1"\nmargin = { absolute_pp = 0.5 }', classification=counts(0, 0, 500))
        assert result.outcome is INCONCLUSIVE
        assert result.needed is not None
        assert result.needed > 500

    def test_relative_margin_is_of_the_reference(self) -> None:
        result = one('metric = "top1"\nmargin = { relative = 0.01 }', classification=counts(0, 0, 5000))
        assert result.limit == pytest.approx(0.9)
        assert result.outcome is PASS

    def test_on_this_set_takes_the_estimate(self) -> None:
        check = 'metric = "top1"\nclaim = "on-this-set"\nmargin = { absolute_pp = 0.5 }'
        assert one(check, classification=counts(10, 0, 2000)).outcome is PASS
        assert one(check, classification=counts(11, 0, 2000)).outcome is FAIL

    def test_at_least(self) -> None:
        check = 'metric = "top1"\nlimit = {}\nclaim = "at-least"'
        assert one(check.format(80)).outcome is PASS
        assert one(check.format(90)).outcome is INCONCLUSIVE
        assert one(check.format(95)).outcome is FAIL
        assert one(check.format("80\nmin_samples = 5000")).needed == 5000

    def test_min_samples_withholds_a_pass_but_not_a_fail(self) -> None:
        enough = TOP1 + "\nmin_samples = 3000"
        result = one(enough)
        assert (result.outcome, result.needed) == (INCONCLUSIVE, 3000)
        assert one(enough, classification=counts(200, 0)).outcome is FAIL

    def test_missing_data_never_passes(self) -> None:
        assert one(TOP1, classification=None).outcome is ERROR
        assert "quantlab:numerics" in one(TOP1, classification=None).next_step
        assert "--labels" in one(TOP1, classification=counts(0, 0, 2000, labelled=0)).next_step

    def test_contradicting_counts_are_an_error(self) -> None:
        broken = dataclasses.replace(counts(), flips_to_wrong=1999, flips_to_right=1999)
        verdict = judge(comparison(variant(classification=broken)), TOP1)
        assert of(verdict).outcome is ERROR
        assert verdict.exit_code is ExitCode.BAD_INPUT


class TestTop5AndAgreement:
    def test_top5_margin_on_this_set(self) -> None:
        check = 'metric = "top5"\nmargin = {{ absolute_pp = {} }}'
        worse = dataclasses.replace(counts(0, 0), top5=1880)  # the reference has 1,900 of 2,000
        assert one(check.format(1.0), classification=worse).outcome is PASS
        assert one(check.format(0.9), classification=worse).outcome is FAIL

    def test_top5_is_missing_with_few_classes(self) -> None:
        few = dataclasses.replace(counts(), top5=None)
        assert one('metric = "top5"\nmargin = { absolute_pp = 1 }', classification=few).outcome is ERROR
        assert one('metric = "top5"\nclaim = "at-least"\nlimit = 90', classification=few).outcome is ERROR

    @pytest.mark.parametrize(("agreement", "outcome"), [(1995, PASS), (1985, INCONCLUSIVE), (1900, FAIL)])
    def test_agreement_uses_the_exact_bound(self, agreement: int, outcome: Outcome) -> None:
        result = one('metric = "agreement"\nlimit = 99', classification=counts(agreement=agreement))
        assert result.outcome is outcome

    def test_agreement_needs_no_labels(self) -> None:
        unlabelled = counts(0, 0, 2000, labelled=0, agreement=2000)
        assert one('metric = "agreement"\nlimit = 99', classification=unlabelled).outcome is PASS

    def test_agreement_on_this_set(self) -> None:
        check = 'metric = "agreement"\nclaim = "on-this-set"\nlimit = 100'
        assert one(check, classification=counts(agreement=2000)).outcome is PASS
        assert one(check, classification=counts(agreement=1999)).outcome is FAIL


class TestOutputs:
    @pytest.mark.parametrize(
        ("metric", "limit", "good", "bad"),
        [
            ("sqnr_db", 20, math.inf, 19.9),
            ("cosine", 0.99, 0.995, 0.98),
            ("kl_nats", 0.1, 0.1, math.inf),
            ("max_abs_error", 1, 1, 2),
        ],
    )
    def test_the_worst_output_decides(self, metric: str, limit: float, good: float, bad: float) -> None:
        check = f'metric = "{metric}"\nlimit = {limit}'
        fine, poor = (
            dataclasses.replace(drift(), **{"output": name, metric: value}) for name, value in (("a", good), ("b", bad))
        )
        assert one(check, outputs=(fine,)).outcome is PASS
        result = one(check, outputs=(fine, poor))
        assert result.outcome is FAIL
        assert "b, the worst of 2 outputs" in result.reason
        assert one(check + '\noutput = "a"', outputs=(fine, poor)).outcome is PASS
        assert one(check + '\noutput = "c"', outputs=(fine, poor)).outcome is ERROR

    def test_not_a_number_is_an_error(self) -> None:
        assert one('metric = "sqnr_db"\nlimit = 20', outputs=(drift(sqnr_db=math.nan),)).outcome is ERROR

    def test_kl_without_class_scores_is_an_error(self) -> None:
        assert one('metric = "kl_nats"\nlimit = 1', outputs=(drift(kl_nats=None),)).outcome is ERROR

    def test_finite_and_not_constant(self) -> None:
        assert one('metric = "finite"').outcome is PASS
        assert one('metric = "finite"', outputs=(drift(non_finite=3),)).outcome is FAIL
        assert one('metric = "not_constant"').outcome is PASS
        assert one('metric = "not_constant"', outputs=(drift(constant=True),)).outcome is FAIL
        assert of(judge(comparison(n_samples=1), 'metric = "not_constant"')).outcome is ERROR
        for metric in ("finite", "not_constant"):
            assert one(f'metric = "{metric}"', outputs=()).outcome is ERROR


LATENCY = 'metric = "latency_ratio"\nlimit = 0.8'


class TestEngine:
    @pytest.mark.parametrize(
        ("ratio", "outcome"), [(0.7, PASS), (0.79, INCONCLUSIVE), (0.81, INCONCLUSIVE), (0.9, FAIL)]
    )
    def test_latency_uses_the_interval(self, ratio: float, outcome: Outcome) -> None:
        assert one(LATENCY, latency=latency(ratio)).outcome is outcome

    def test_calls_needed(self) -> None:
        assert one(LATENCY, latency=latency(0.79, 0.02)).needed == pytest.approx(4000, abs=1)
        assert one(LATENCY, latency=latency(0.81)).needed is None

    def test_emulated_is_skipped_and_a_gate_of_skips_is_an_error(self) -> None:
        verdict = judge(comparison(variant(execution=Execution.EMULATED)), LATENCY)
        assert of(verdict).outcome is SKIPPED
        assert "emulated" in of(verdict).reason
        assert verdict.outcome is ERROR
        assert of(verdict, "guard.judged").outcome is ERROR

    def test_a_skip_beside_a_pass_is_no_error(self) -> None:
        native, emulated = variant(), variant("onnxruntime-fp16", Precision.FP16, execution=Execution.EMULATED)
        assert judge(comparison(native, emulated), LATENCY).outcome is PASS

    def test_missing_or_meaningless_latency_is_an_error(self) -> None:
        assert one(LATENCY, latency=None).outcome is ERROR
        assert one(LATENCY, latency=latency(math.nan)).outcome is ERROR
        assert one(LATENCY, latency=latency(confidence=0.8)).outcome is ERROR
        emulated = comparison(base=reference(execution=Execution.EMULATED))
        assert of(judge(emulated, LATENCY)).outcome is ERROR

    def test_noise_floor(self) -> None:
        check = LATENCY + "\naa_noise_max = 0.02"
        assert of(judge(comparison(), check)).outcome is PASS
        assert of(judge(comparison(noise_floor=Interval(0.97, 1.01, 0.95)), check)).outcome is INCONCLUSIVE
        assert of(judge(comparison(noise_floor=None), check)).outcome is ERROR
        assert of(judge(comparison(noise_floor=None), LATENCY)).outcome is PASS

    def test_on_the_device(self) -> None:
        """The host's time does not count then, and neither does its control."""
        check = LATENCY + '\nboundary = "device"'
        for ratio, outcome in ((0.7, PASS), (0.79, INCONCLUSIVE), (0.9, FAIL)):
            found = one(check, latency=latency(1.5 - ratio), device_latency=latency(ratio))
            assert found.outcome is outcome
            assert found.estimate == ratio
            assert "times as long on the GPU as" in found.reason
        assert one(LATENCY + '\nboundary = "host"', device_latency=latency(0.9)).outcome is PASS
        assert one(check, device_latency=latency(0.7), execution=Execution.EMULATED).outcome is SKIPPED
        missing = one(check)
        assert missing.outcome is ERROR
        assert "no ratio of times on the GPU" in missing.reason

    def test_noise_floor_of_the_device(self) -> None:
        check = LATENCY + '\nboundary = "device"\naa_noise_max = 0.02'
        timed = variant(device_latency=latency(0.7))
        quiet, noisy = Interval(0.999, 1.001, 0.95), Interval(0.97, 1.01, 0.95)
        assert of(judge(comparison(timed, device_noise_floor=quiet, noise_floor=noisy), check)).outcome is PASS
        found = of(judge(comparison(timed, device_noise_floor=noisy, noise_floor=quiet), check))
        assert (found.outcome, found.interval) == (INCONCLUSIVE, noisy)
        assert found.reason.startswith("the GPU is too noisy")
        assert of(judge(comparison(timed), check)).outcome is ERROR

    def test_latency_on_this_set(self) -> None:
        assert one(LATENCY + '\nclaim = "on-this-set"', latency=latency(0.79)).outcome is PASS
        assert one(LATENCY + '\nclaim = "on-this-set"', latency=latency(0.81)).outcome is FAIL

    def test_size(self) -> None:
        assert one('metric = "size_ratio"\nlimit = 0.25').outcome is PASS
        assert one('metric = "size_ratio"\nlimit = 0.24').outcome is FAIL
        assert one('metric = "size_ratio"\nlimit = 0.25', size_bytes=0).outcome is ERROR

    def test_precision(self) -> None:
        check = 'metric = "precision_proved"'
        assert one(check).outcome is PASS
        assert "fp32 was proved" in one(check, proved=Precision.FP32).reason
        assert one(check, proved=None).outcome is FAIL


class TestGuards:
    def test_passing_guards_are_listed(self) -> None:
        ids = {check.id for check in judge(comparison(), TOP1).checks if check.outcome is PASS}
        assert {
            "guard.samples", "guard.variants", "guard.counts", "guard.finite", "guard.not-constant",
            "degradation.calibration-evaluation-overlap", "degradation.random-data",
        } <= ids  # fmt: skip

    @pytest.mark.parametrize("code", DegradationCode)
    def test_every_degradation_fails_unless_it_is_allowed(self, code: DegradationCode) -> None:
        subject = comparison(degradations=(Degradation(code, "something happened", 3),))
        verdict = judge(subject, TOP1)
        assert verdict.outcome is FAIL
        assert of(verdict, f"degradation.{code}").next_step.count(code) == 1
        assert judge(subject, TOP1, gate=f'allow = ["{code}"]').outcome is PASS

    def test_non_finite_and_constant_outputs_fail_whatever_the_policy_says(self) -> None:
        for broken in (drift(non_finite=1), drift(constant=True)):
            assert judge(comparison(variant(outputs=(broken,))), TOP1).outcome is FAIL
            assert judge(comparison(base=reference(outputs=(broken,))), TOP1).outcome is FAIL

    def test_an_output_that_the_reference_keeps_constant_may_be_constant(self) -> None:
        outputs = (drift(), drift("prior_boxes", constant=True))
        subject = comparison(variant(outputs=outputs), base=reference(outputs=outputs))
        assert judge(subject, TOP1).outcome is PASS

    def test_a_variant_that_no_check_selects_does_not_fail_the_others(self) -> None:
        broken = variant("onnxruntime-fp16", Precision.FP16, outputs=(drift(non_finite=1),))
        subject = comparison(variant(), broken)
        assert judge(subject, TOP1 + '\ncandidate = "int8"').outcome is PASS
        assert judge(subject, TOP1).outcome is FAIL

    def test_no_samples(self) -> None:
        assert of(judge(comparison(n_samples=0), TOP1), "guard.samples").outcome is ERROR

    def test_damaged_variants(self) -> None:
        assert judge(comparison(variant(), variant()), TOP1).outcome is ERROR
        absent = judge(comparison(reference="other"), TOP1)
        assert (absent.outcome, of(absent).outcome) == (ERROR, ERROR)


class TestSelection:
    @pytest.mark.parametrize("pattern", ["int8", INT8, "*-minmax", "*"])
    def test_candidates(self, pattern: str) -> None:
        assert of(judge(comparison(), f'{TOP1}\ncandidate = "{pattern}"')).candidate == INT8

    @pytest.mark.parametrize("pattern", ["fp16", REFERENCE, "tensorrt-*"])
    def test_a_missing_candidate_is_an_error_that_names_those_there_are(self, pattern: str) -> None:
        result = of(judge(comparison(), f'{TOP1}\ncandidate = "{pattern}"'))
        assert result.outcome is ERROR
        assert INT8 in result.next_step

    def test_the_reference_must_match(self) -> None:
        assert of(judge(comparison(), f'{TOP1}\nreference = "fp32"')).outcome is PASS
        assert of(judge(comparison(), f'{TOP1}\nreference = "tf32"')).outcome is ERROR


def waiver(expires: str, more: str = "", check: str = "x") -> str:
    return f'[[waiver]]\ncheck = "{check}"\nreason = "GH-118"\nexpires = {expires}\n{more}'


class TestWaivers:
    bad = counts(200, 0)

    def subject(self) -> Comparison:
        return comparison(variant(classification=self.bad))

    def test_waived_until_the_last_day(self) -> None:
        verdict = judge(self.subject(), TOP1, waiver("2026-06-01"))
        assert (of(verdict).outcome, of(verdict).waiver, verdict.outcome) == (WAIVED, "GH-118", PASS)
        assert "FAIL, waived until 2026-06-01: GH-118" in of(verdict).details

    def test_an_expired_waiver_is_an_error(self) -> None:
        verdict = judge(self.subject(), TOP1, waiver("2026-05-31"))
        assert of(verdict).outcome is FAIL
        assert of(verdict, "waiver.x").outcome is ERROR
        assert verdict.exit_code is ExitCode.BAD_INPUT

    def test_only_its_candidate(self) -> None:
        assert judge(self.subject(), TOP1, waiver("2027-01-01", 'candidate = "fp16"')).outcome is FAIL
        assert judge(self.subject(), TOP1, waiver("2027-01-01", 'candidate = "int8"')).outcome is PASS

    def test_never_an_error(self) -> None:
        verdict = judge(comparison(variant(classification=None)), TOP1, waiver("2027-01-01"))
        assert verdict.outcome is ERROR

    def test_a_degradation(self) -> None:
        subject = comparison(degradations=(Degradation(DegradationCode.LOSSY_DECODE, "alpha dropped"),))
        assert judge(subject, TOP1, waiver("2027-01-01", check="degradation.lossy-decode")).outcome is PASS
        narrow = waiver("2027-01-01", 'candidate = "int8"', "degradation.lossy-decode")
        assert judge(subject, TOP1, narrow).outcome is FAIL


class TestVerdict:
    def test_levels_below_error_do_not_decide(self) -> None:
        extra = '[[check]]\nid = "y"\nmetric = "sqnr_db"\nlimit = 99\nlevel = "{}"'
        assert judge(comparison(), TOP1, extra.format("warn")).outcome is PASS
        assert judge(comparison(), TOP1, extra.format("error")).outcome is FAIL

    def test_exit_codes(self) -> None:
        unsure = comparison(variant(classification=counts(6, 4, 500)))
        assert judge(comparison(), TOP1).exit_code is ExitCode.OK
        assert judge(unsure, TOP1).exit_code is ExitCode.INCONCLUSIVE
        tolerant = judge(unsure, TOP1, gate='on_inconclusive = "warn"')
        assert (tolerant.outcome, tolerant.exit_code) == (INCONCLUSIVE, ExitCode.OK)
        assert judge(comparison(variant(classification=counts(200, 0))), TOP1).exit_code is ExitCode.GATE_FAILED

    def test_round_trip_and_hashes(self, tmp_path: Path) -> None:
        infinite = comparison(variant(outputs=(drift(sqnr_db=math.inf),)))
        verdict = evaluate(infinite, load_policy("quantlab:default"), TODAY)
        write_text(tmp_path / "gate.json", verdict.to_json())
        write_text(tmp_path / "comparison.json", infinite.to_json())
        loaded = Verdict.load(tmp_path / "gate.json")
        assert loaded == verdict
        assert loaded.to_json() == verdict.to_json()
        assert verdict.comparison_sha256 == sha256_file(tmp_path / "comparison.json")
        again = evaluate(Comparison.load(tmp_path / "comparison.json"), load_policy("quantlab:default"), TODAY)
        assert again.to_json() == verdict.to_json()
        assert set(verdict.engines) == {REFERENCE, INT8}

    def test_an_edited_verdict_is_refused(self, tmp_path: Path) -> None:
        verdict = judge(comparison(variant(classification=counts(200, 0))), TOP1)
        path = tmp_path / "gate.json"
        write_text(path, verdict.to_json().replace('"outcome": "FAIL"', '"outcome": "PASS"', 1))
        with pytest.raises(DataError, match="contradicts its own checks"):
            Verdict.load(path)

    def test_worst_first(self) -> None:
        more = '[[check]]\nid = "y"\nmetric = "sqnr_db"\nlimit = 99\nlevel = "warn"'
        verdict = judge(comparison(variant(classification=counts(200, 0))), TOP1, more)
        ordered = [check.id for check in verdict.worst_first()]
        assert ordered[:2] == ["x", "y"]
        assert sorted(ordered) == sorted(check.id for check in verdict.checks)

    def test_presets_pass_a_good_variant(self) -> None:
        good = comparison(
            variant(classification=counts(2, 2, 20000, agreement=19990)),
            base=reference(classification=counts(0, 0, 20000)),
            n_samples=20000,
        )
        for name in ("quantlab:default", "quantlab:strict", "quantlab:numerics"):
            assert evaluate(good, load_policy(name), TODAY).outcome is PASS, name

    def test_every_metric_has_a_judge(self) -> None:
        assert set(JUDGES) == set(Metric)


@given(
    n=st.integers(1, 3000),
    flips=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    margin_pp=st.floats(0.01, 50),
)
def test_any_counts_make_a_verdict_that_agrees_with_its_bound(n: int, flips: tuple[int, int], margin_pp: float) -> None:
    right = int(0.9 * n)
    classification = counts(min(flips[0], right), min(flips[1], n - right), n)
    result = one(f'metric = "top1"\nmargin = {{ absolute_pp = {margin_pp!r} }}', classification=classification)
    assert result.outcome in (PASS, FAIL, INCONCLUSIVE)
    assert result.interval is not None
    assert result.estimate is not None
    assert (result.outcome is PASS) == (result.interval.high < margin_pp)
    assert (result.outcome is FAIL) == (result.interval.low >= margin_pp)
    assert result.interval.low <= result.estimate + 1e-9
    assert (result.next_step == "") == (result.outcome is PASS)
    if result.needed is not None:
        assert result.needed > n
