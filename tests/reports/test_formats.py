"""What each format promises, also for hostile names and odd results."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import comparison, gpu_comparison, verdict

from quantlab.errors import ConfigError
from quantlab.gate.policy import OnInconclusive
from quantlab.gate.verdict import CheckResult, Outcome, Verdict
from quantlab.harness.comparison import Comparison
from quantlab.harness.measurement import Change
from quantlab.precision import Execution
from quantlab.reports import FORMATS, Style, render
from quantlab.reports.cells import capped, display_width, fixed, shorten
from quantlab.reports.csv_table import inert
from quantlab.reports.markdown import escape
from quantlab.reports.summary import MAX_BYTES
from quantlab.reports.table import comparison_frame, output_frame, verdict_frame
from quantlab.statistics.interval import Interval

HOSTILE = "=cmd|'/c calc'!A1 \x1b[31m`<b>\n|x\x00\u202e @team & \ud800"


def renamed(name: str) -> Comparison:
    original = comparison()
    variants = (*original.variants[:-1], dataclasses.replace(original.variants[-1], name=name))
    return dataclasses.replace(original, variants=variants, model=name)


def renamed_verdict(name: str) -> Verdict:
    original = verdict()
    check = dataclasses.replace(original.checks[-1], candidate=name, reason=name, next_step=name)
    return dataclasses.replace(original, checks=(*original.checks[:-1], check), model=name, policy=name)


def on_gpu(*ratios: float) -> Comparison:
    """The first engine of the example on a GPU is the reference; the others have these ratios to it."""
    original = gpu_comparison()
    base = original.variants[1]
    assert original.variants[0].latency is not None
    variants = []
    for name, ratio in zip((base.name, "a", "b"), (1.0, *ratios), strict=True):
        timed = dataclasses.replace(
            original.variants[0].latency, ratio=ratio, ratio_interval=Interval(ratio - 0.01, ratio + 0.02, 0.95),
            change=Change.FASTER if ratio < 0.98 else Change.INCONCLUSIVE,
        )  # fmt: skip
        variants.append(dataclasses.replace(base, name=name, device_latency=timed))
    floor = Interval(0.998, 1.001, 0.95)
    return dataclasses.replace(original, reference=base.name, variants=tuple(variants), device_noise_floor=floor)


class TestOnGpu:
    def test_ratios_with_intervals(self) -> None:
        text = render(on_gpu(0.7, 0.999), "terminal", Style(200))
        table = text[text.index("On the GPU, by CUDA events") :]
        assert re.search(r"\ba +graph, with copies .* 0\.700\*? +\[0\.690, 0\.720\]  faster", table)
        assert re.search(r"\bb +graph, with copies .* 0\.999~ +\[0\.989, 1\.019\]  inconclusive", table)
        assert re.search(r"tensorrt-rtx-fp32 +graph, .* 1\.000 ", table), "the reference has no mark"
        told = (
            "On the GPU: ratio to tensorrt-rtx-fp32 of the execution, 95 % interval, interleaved; A/A control [0.998, 1"
        )
        assert told in text

    def test_markdown(self) -> None:
        text = render(on_gpu(0.7, 0.999), "markdown")
        assert "*0.999*" in text and "**0.700**" in text
        assert "Italic ratio: the interval holds 1" in text

    def test_only_undecided_ratios_are_explained(self) -> None:
        assert "holds 1" not in render(on_gpu(0.7, 0.8), "terminal")

    def test_the_hosts_interval_marks_no_ratio_of_the_gpu(self) -> None:
        undecided = on_gpu(0.7, 0.999).variants[2].device_latency
        original = on_gpu(0.7, 0.8)
        variants = tuple(dataclasses.replace(result, latency=undecided) for result in original.variants)
        text = render(dataclasses.replace(original, variants=variants), "terminal", Style(200))
        on_host, _, on_device = text.partition("On the GPU, by CUDA events")
        assert "0.999~" in on_host and "~" not in on_device.partition("\n\n")[0]

    def test_columns_for_programs(self) -> None:
        frame = comparison_frame(on_gpu(0.7, 0.999))
        assert frame["device_ratio"].tolist() == [1.0, 0.7, 0.999]
        assert frame["device_ratio_low"].tolist() == pytest.approx([0.99, 0.69, 0.989])
        assert frame["device_verdict"].tolist() == ["inconclusive", "faster", "inconclusive"]
        assert comparison_frame(gpu_comparison())["device_ratio"].isna().all()

    def test_without_the_reference_it_is_said(self) -> None:
        for name in ("terminal", "markdown"):
            text = " ".join(render(gpu_comparison(), name).split())
            assert "On the GPU: no ratios, because the reference onnxruntime-fp32 is not timed there." in text
            assert "On the GPU:" not in render(comparison(), name)


class TestRegistry:
    def test_names(self) -> None:
        assert list(FORMATS) == ["terminal", "markdown", "csv", "json", "junit", "summary"]
        assert all(FORMATS[name].name == name for name in FORMATS)

    def test_unknown_format(self) -> None:
        with pytest.raises(ConfigError, match="no report format") as caught:
            render(comparison(), "markdwon")
        assert "did you mean 'markdown'" in str(caught.value)

    def test_a_format_that_cannot_show_the_result_names_those_that_can(self) -> None:
        with pytest.raises(ConfigError, match="cannot show a comparison") as caught:
            render(comparison(), "junit")
        assert "terminal, markdown, csv, json" in str(caught.value)
        with pytest.raises(ConfigError, match="cannot show a int"):
            render(3, "json")


class TestTerminal:
    @pytest.mark.parametrize("width", [60, 80, 100, 200])
    def test_fits_the_width(self, width: int) -> None:
        for result in (comparison(), verdict()):
            lines = render(result, "terminal", Style(width)).splitlines()
            assert max(map(display_width, lines)) <= width

    def test_a_wide_terminal_has_two_tables(self) -> None:
        assert "(continued)" not in render(comparison(), "terminal", Style(200))

    def test_colour_is_only_colour(self) -> None:
        for result in (comparison(), verdict()):
            painted = render(result, "terminal", Style(colour=True))
            assert "\x1b[" in painted
            assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == render(result, "terminal")

    def test_emulated_latency_is_a_word_here_and_a_number_in_csv_and_json(self) -> None:
        (line,) = (
            line for line in render(comparison(), "terminal", Style(200)).splitlines() if line.count("emulated") == 2
        )
        assert line.startswith("onnxruntime-fp16")
        assert "11.021" not in render(comparison(), "terminal") + render(comparison(), "markdown")
        assert "11.021" in render(comparison(), "csv")
        assert "11.021" in render(comparison(), "json")

    def test_names_cannot_act_on_the_terminal(self) -> None:
        for text in (render(renamed(HOSTILE), "terminal"), render(renamed_verdict(HOSTILE), "terminal")):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)

    def test_no_latency_no_degradations(self) -> None:
        bare = dataclasses.replace(
            comparison(),
            variants=tuple(dataclasses.replace(v, latency=None, classification=None) for v in comparison().variants),
            degradations=(),
            noise_floor=None,
        )
        text = render(bare, "terminal")
        assert "No degradations." in text
        assert "median" not in text
        assert "top-1" not in text


class TestMarkdown:
    def test_names_stay_in_their_cell(self) -> None:
        tables = [part for part in render(renamed(HOSTILE), "markdown").split("\n\n") if part.startswith("|")]
        assert len(tables) == 6
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
            assert "<b>" not in table

    @given(st.text())
    def test_escape_leaves_nothing_active(self, text: str) -> None:
        escaped = escape(text).replace("@<!-- -->", "@")
        assert "\n" not in escaped
        assert "<" not in escaped
        assert not re.search(r"(?<!\\)(?:\\\\)*[`|*_\[\]]", escaped)

    def test_every_row_of_the_verdict_is_there(self) -> None:
        rows = [line for line in render(verdict(), "markdown").splitlines() if line.startswith("| ")]
        assert len(rows) == 2 + len(verdict().checks)


class TestSummary:
    def test_never_larger_than_the_limit_and_counts_what_it_leaves_out(self) -> None:
        filler = [
            dataclasses.replace(verdict().checks[-1], id=f"check.{number}", reason="ü" * 3000) for number in range(500)
        ]
        text = render(dataclasses.replace(verdict(), checks=(*filler, *verdict().checks)), "summary")
        assert len(text.encode()) <= MAX_BYTES
        left_out = re.search(r"([\d,]+) more checks are in gate.json", text)
        assert left_out is not None
        shown = sum(line.startswith("| ") for line in text.splitlines()) - 2
        guards = sum(check.is_passed_guard for check in verdict().checks)
        assert shown + int(left_out[1]) == 500 + len(verdict().checks) - guards
        assert text.index("**FAIL**") < text.index("check.0")


class TestCsv:
    def test_reads_back(self) -> None:
        rows = list(csv.DictReader(io.StringIO(render(comparison(), "csv"))))
        assert [row["variant"] for row in rows] == [v.name for v in comparison().variants]
        assert [float(row["sqnr_db"]) for row in rows] == [v.outputs[0].sqnr_db for v in comparison().variants]
        assert rows[1]["precision_proved"] == ""
        assert rows[3]["latency_p99_ms"] == ""
        assert rows[1]["execution"] == "emulated"

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
    def test_no_formulas(self, start: str) -> None:
        (row,) = list(csv.DictReader(io.StringIO(render(renamed(f"{start}1+1"), "csv"))))[-1:]
        assert row["variant"] == (" 1+1" if start in "\t\r" else f"'{start}1+1")
        assert float(row["top1_delta_pp"]) < 0  # a negative number is not a formula
        assert (inert("plain"), inert("\t=1")) == ("plain", "' =1")

    def test_frames_are_typed(self) -> None:
        frame = comparison_frame(comparison())
        assert str(frame["size_bytes"].dtype) == "Int64"
        assert str(frame["sqnr_db"].dtype) == "Float64"
        assert str(frame["variant"].dtype) == "string"
        assert math.isinf(frame["sqnr_db"][0])
        assert list(output_frame(comparison())["output"]) == ["logits"] * 4
        assert len(verdict_frame(verdict())) == len(verdict().checks)


def cases(text: str) -> dict[str, ET.Element]:
    return {case.attrib["name"]: case for case in ET.fromstring(text.encode()).iter("testcase")}


class TestJunit:
    def test_states(self) -> None:
        found = cases(render(verdict(), "junit"))
        assert found["degradation.unreadable-samples"].find("failure") is not None
        unsure = found["accuracy.top1 [onnxruntime-int8-minmax]"].find("error")
        assert unsure is not None
        assert unsure.attrib["type"] == "inconclusive"
        for name in ("precision.proved [onnxruntime-fp16]", "latency.ratio [onnxruntime-fp16]"):
            assert found[name].find("skipped") is not None
        assert [child.tag for child in found["guard.samples"]] == ["system-out"]

    def test_a_check_that_does_not_decide_is_not_red(self) -> None:
        warned = cases(render(verdict(), "junit"))["accuracy.agreement [onnxruntime-int8-minmax]"]
        skipped = warned.find("skipped")
        assert skipped is not None
        assert skipped.attrib["message"].startswith("FAIL: agreement")

    def test_totals(self) -> None:
        suite = ET.fromstring(render(verdict(), "junit").encode()).find("testsuite")
        assert suite is not None
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert int(suite.attrib[attribute]) == len(list(suite.iter(tag)))

    def test_inconclusive_is_not_red_where_the_policy_only_warns(self) -> None:
        checks = tuple(check for check in verdict().checks if check.outcome is not Outcome.FAIL)
        soft = dataclasses.replace(
            verdict(), checks=checks, outcome=Outcome.INCONCLUSIVE, on_inconclusive=OnInconclusive.WARN
        )
        case = cases(render(soft, "junit"))["accuracy.top1 [onnxruntime-int8-minmax]"]
        assert case.find("skipped") is not None
        assert case.find("error") is None

    def test_names_are_unique(self) -> None:
        twice = dataclasses.replace(verdict(), checks=verdict().checks * 3)
        names = [case.attrib["name"] for case in ET.fromstring(render(twice, "junit").encode()).iter("testcase")]
        assert len(set(names)) == len(names) == 3 * len(verdict().checks)

    @given(st.text(st.characters(codec=None)))
    def test_any_text_is_valid_xml(self, text: str) -> None:
        ET.fromstring(render(renamed_verdict(text), "junit").encode())

    def test_hostile_names(self) -> None:
        ET.fromstring(render(renamed_verdict(HOSTILE), "junit").encode())


class TestJson:
    def test_is_the_document(self) -> None:
        assert json.loads(render(verdict(), "json"))["schema"] == "quantlab.gate/1"
        assert render(comparison(), "json") == comparison().to_json()


class TestCells:
    def test_nothing_is_rounded_up_to_perfect(self) -> None:
        assert capped(99.999, 2, 100.0) == ">99.99"
        assert capped(0.9999999, 4, 1.0) == ">0.9999"
        assert capped(100.0, 2, 100.0) == "100.00"
        assert capped(99.99, 2, 100.0) == "99.99"

    def test_missing(self) -> None:
        assert (fixed(None, 2), fixed(math.nan, 2), fixed(-math.inf, 1), fixed(0.0, 2, sign=True)) == (
            "-",
            "-",
            "-inf",
            "+0.00",
        )

    @given(st.text(), st.integers(1, 50))
    def test_shorten(self, text: str, width: int) -> None:
        short = shorten(text, width)
        assert display_width(short) <= width
        assert short == text or "…" in short


@given(st.text(st.characters(codec=None), max_size=30))
def test_every_format_survives_every_name(name: str) -> None:
    if name in [v.name for v in comparison().variants]:
        return
    for format_name in ("terminal", "markdown"):
        render(renamed(name), format_name).encode()
        render(renamed_verdict(name), format_name).encode()


def test_execution_is_part_of_the_data() -> None:
    assert set(comparison_frame(comparison())["execution"]) == {mode.value for mode in Execution}


def test_check_results_without_candidate_are_rendered() -> None:
    lone = CheckResult("x", None, "top1", Outcome.ERROR, verdict().checks[0].level, "no candidate")
    broken = dataclasses.replace(verdict(), checks=(lone,), outcome=Outcome.ERROR)
    for name in FORMATS:
        assert "no candidate" in render(broken, name)
