"""Recovery in every format, against files under ``golden``; QUANTLAB_REGENERATE=1 writes them anew."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from pathlib import Path

import pytest

from quantlab.degradation import Degradation, DegradationCode
from quantlab.recovery.record import Diagnosis, LayerShare, RecoveryRecord, StepRecord
from quantlab.recovery.result import Recovery
from quantlab.reports import FORMATS, Style, render
from quantlab.reports.cells import display_width
from quantlab.statistics.interval import Interval

GOLDEN = Path(__file__).parent / "golden"
NAMES = [name for name in FORMATS if Recovery in FORMATS[name].renderers]


def recovery() -> Recovery:
    """A step that is kept, one that is dropped, one that has nothing to do, and one that ends in nothing."""
    steps = (
        StepRecord(
            "equalize", "strength 0.5", False, 20.0, 20.04, Interval(-0.31, 0.4, 0.95), 1.46, ("a", "b"),
            ("dropped: it does not surely gain on held-out samples",),
            judged_by="activations",
        ),
        StepRecord("smooth", "", False, None, None, None, 0.0, (), ("no matrix product reads a layer normalization",)),
        StepRecord("bias", "", False, 20.0, float("-inf"), None, 3.0, ("a",), ()),
        StepRecord("round", "", True, 20.0, 23.25, Interval(2.9, 3.6, 0.95), 61.04, tuple("abcdefghijkl"), ()),
    )  # fmt: skip
    shares = tuple(LayerShare(f"block{i}/conv|{i}", ("weight", "activation")[i % 2], 0.4 / (i + 1)) for i in range(12))
    record = RecoveryRecord(steps, 384, 128, 20.0, 23.25, Diagnosis(24.5, 22.0, 20.1, shares))
    degradations = (Degradation(DegradationCode.METHOD_FALLBACK, "entropy has no meaning", 1, ("conv2",)),)
    files = dict.fromkeys(("model.onnx", "calibration.json", "weights.npz"), "f" * 64)
    return Recovery(
        "1.0", "model.onnx", "a" * 64, "b" * 64, "c" * 64, "tensorrt", "mse", ("round",), record, degradations, files
    )


def check(path: Path, text: str) -> None:
    if os.environ.get("QUANTLAB_REGENERATE") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"QUANTLAB_REGENERATE=1 pytest writes {path.name} anew"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    text = render(recovery(), name)
    assert text.endswith("\n")
    check(GOLDEN / f"recovery.{name}{FORMATS[name].suffix}", text)


def test_golden_of_a_narrow_coloured_terminal() -> None:
    check(GOLDEN / "recovery.terminal-60.txt", render(recovery(), "terminal", Style(60, colour=True)))


def test_formats() -> None:
    assert NAMES == ["terminal", "markdown", "csv", "json"]


def test_json_is_the_saved_document(tmp_path: Path) -> None:
    (tmp_path / "recovery.json").write_text(render(recovery(), "json"))
    assert Recovery.load(tmp_path / "recovery.json") == recovery()


def test_csv_has_a_row_for_every_step() -> None:
    rows = list(csv.DictReader(io.StringIO(render(recovery(), "csv"))))
    assert [row["step"] for row in rows] == ["equalize", "smooth", "bias", "round"]
    assert [row["kept"] for row in rows] == ["False", "False", "False", "True"]
    assert (rows[1]["before_db"], rows[3]["after_db"], rows[3]["changed"]) == ("", "23.25", "12")


def test_times_do_not_change_what_it_is() -> None:
    found = recovery()
    steps = tuple(dataclasses.replace(step, seconds=step.seconds + 1) for step in found.record.steps)
    later = dataclasses.replace(found, record=dataclasses.replace(found.record, steps=steps))
    assert later.sha256 == found.sha256
    assert dataclasses.replace(found, files={**found.files, "weights.npz": "e" * 64}).sha256 != found.sha256
    assert dataclasses.replace(found, table_sha256="d" * 64).sha256 != found.sha256


def test_nothing_measured() -> None:
    found = recovery()
    steps = tuple(dataclasses.replace(found.record.steps[1], name=name) for name in ("bias", "round"))
    record = RecoveryRecord(steps, 0, 0, float("nan"), float("nan"))
    nothing = dataclasses.replace(found, record=record, steps=())
    for name in NAMES:
        assert "nan" not in render(nothing, name).replace('"nan"', "")
    assert "nothing was measured" in render(nothing, "terminal")
    empty = dataclasses.replace(nothing, record=dataclasses.replace(record, steps=()))
    for name in NAMES:
        assert render(empty, name).endswith("\n")


@pytest.mark.parametrize("width", [60, 100, 200])
def test_tables_fit_the_width(width: int) -> None:
    assert max(map(display_width, render(recovery(), "terminal", Style(width)).splitlines())) <= width


def test_names_cannot_act_on_the_terminal_or_the_page() -> None:
    step = dataclasses.replace(recovery().record.steps[0], label="\x1b[31m\n| <b>", notes=("\x1b[31m\n| <b>",))
    found = dataclasses.replace(recovery(), record=dataclasses.replace(recovery().record, steps=(step,)))
    assert "\x1b" not in render(found, "terminal")
    page = render(found, "markdown")
    assert "\x1b" not in page and "<b>" not in page
