"""Findings in every format: golden files, hostile names, and nothing lost."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from test_formats import HOSTILE
from test_golden import GOLDEN, check

from quantlab.errors import ConfigError, DataError
from quantlab.findings import Finding, LintReport, Severity, sort_findings
from quantlab.reports import FORMATS, Style, render
from quantlab.reports.cells import display_width
from quantlab.workflow.results import load_result

FORMS = [name for name in FORMATS if LintReport in FORMATS[name].renderers]


def finding(number: int, rule: str = "zero-point-not-zero", severity: Severity = Severity.ERROR) -> Finding:
    return Finding(
        rule, severity, (f"conv{number}_q",), f"zero-point {number}, int8", "TensorRT refuses it",
        "calibrate with --target tensorrt",
    )  # fmt: skip


def lint_report(*findings: Finding) -> LintReport:
    names = tuple(dict.fromkeys(each.rule for each in findings)) or ("zero-point-not-zero",)
    return LintReport("net.qdq.onnx", "ab" * 32, "model", "tensorrt", names, sort_findings(findings))


def example() -> LintReport:
    pair = Finding(
        "pair-differs", Severity.ERROR, ("q", "dq"), "written with scale 0.1; read with scale 0.2", "other numbers",
        "give both the same scale",
    )  # fmt: skip
    whole = Finding("no-layer-quantized", Severity.WARNING, (), "2 Q/DQ nodes, none at 1 layer", "no gain", "quantize")
    many = Finding(
        "scale-placeholder", Severity.WARNING, tuple(f"in{i}_q" for i in range(6)), "6 activations have the scale 1",
        "these scales were not measured", "calibrate with images",
    )  # fmt: skip
    return lint_report(
        finding(1, "small-layer", Severity.INFO), whole, many, pair, *(finding(number) for number in range(1, 6))
    )


@pytest.mark.parametrize("name", FORMS)
def test_golden(name: str) -> None:
    check(GOLDEN / f"lint.{name}{FORMATS[name].suffix}", render(example(), name))


def test_golden_of_a_narrow_coloured_terminal() -> None:
    text = render(example(), "terminal", Style(60, colour=True))
    check(GOLDEN / "lint.terminal-60.txt", text)
    assert max(map(display_width, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())) <= 60


def test_formats() -> None:
    assert FORMS == ["terminal", "markdown", "csv", "json"]
    with pytest.raises(ConfigError, match="cannot show a lint report"):
        render(example(), "junit")


def test_no_findings() -> None:
    for name in FORMS:
        text = render(lint_report(), name)
        assert text.endswith("\n")
        assert name == "csv" or name == "json" or "no findings; 1 rule of target tensorrt" in text
    assert len(render(lint_report(), "csv").splitlines()) == 1


def test_the_terminal_counts_what_it_leaves_out() -> None:
    text = render(lint_report(*(finding(number) for number in range(1, 43))), "terminal")
    assert text.startswith("net.qdq.onnx: 42 errors; ")
    assert "zero-point-not-zero, 42 places" in text and "- and 39 more" in text
    assert text.count("why: ") == text.count("fix: ") == 1


@pytest.mark.parametrize("name", ["markdown", "csv", "json"])
def test_other_formats_hold_every_place(name: str) -> None:
    text = render(lint_report(*(finding(number) for number in range(1, 43))), name)
    assert {int(number) for number in re.findall(r"zero-point (\d+), int8", text)} == set(range(1, 43))


def test_names_cannot_act() -> None:
    hostile = dataclasses.replace(
        lint_report(dataclasses.replace(finding(1), where=(HOSTILE,), message=HOSTILE)), file=HOSTILE
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", render(hostile, "terminal"))
    (row,) = (line for line in render(hostile, "markdown").splitlines() if line.startswith("| ") and "calc" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3 and "<b>" not in row
    (record,) = csv.DictReader(io.StringIO(render(hostile, "csv")))
    assert record["where"].startswith("'=cmd")


def test_a_saved_report_renders_the_same(tmp_path: Path) -> None:
    path = tmp_path / "lint.json"
    path.write_text(render(example(), "json"), encoding="utf-8")
    loaded = load_result(path)
    assert loaded == example()
    for name in FORMS:
        assert render(loaded, name) == render(example(), name)
    document = json.loads(path.read_text())
    document["findings"][0]["severity"] = "fatal"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="severity") as caught:
        load_result(path)
    assert "error, warning, info" in str(caught.value)
