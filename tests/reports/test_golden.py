"""Every format against a file under ``golden``; QUANTLAB_REGENERATE=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report_examples import comparison, gpu_comparison, verdict

from quantlab.gate.verdict import Verdict
from quantlab.harness.comparison import Comparison
from quantlab.reports import FORMATS, Style, render

GOLDEN = Path(__file__).parent / "golden"
RESULTS = {"comparison": comparison, "gpu-comparison": gpu_comparison, "verdict": verdict}
CASES = [(kind, name) for kind, make in RESULTS.items() for name in FORMATS if type(make()) in FORMATS[name].renderers]


def check(path: Path, text: str) -> None:
    if os.environ.get("QUANTLAB_REGENERATE") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"QUANTLAB_REGENERATE=1 pytest writes {path.name} anew"


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_golden(kind: str, name: str) -> None:
    text = render(RESULTS[kind](), name)
    assert text.endswith("\n")
    check(GOLDEN / f"{kind}.{name}{FORMATS[name].suffix}", text)


@pytest.mark.parametrize("kind", RESULTS)
def test_golden_of_a_narrow_coloured_terminal(kind: str) -> None:
    check(GOLDEN / f"{kind}.terminal-60.txt", render(RESULTS[kind](), "terminal", Style(60, colour=True)))


@pytest.mark.parametrize("name", FORMATS)
def test_rendering_a_saved_result_gives_the_same_text(name: str, tmp_path: Path) -> None:
    for result in (comparison(), gpu_comparison(), verdict()):
        if type(result) not in FORMATS[name].renderers:
            continue
        path = tmp_path / "saved.json"
        path.write_text(result.to_json(), encoding="utf-8")
        loaded = Comparison.load(path) if isinstance(result, Comparison) else Verdict.load(path)
        assert render(loaded, name) == render(result, name)
