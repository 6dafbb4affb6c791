"""Stability in every format, against files under ``golden``; QUANTLAB_REGENERATE=1 writes them anew."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
from pathlib import Path

import pytest

from quantlab.calibrators.stability_result import SizeStability, Stability, TensorStability
from quantlab.degradation import Degradation, DegradationCode
from quantlab.reports import FORMATS, Style, render
from quantlab.reports.cells import display_width

GOLDEN = Path(__file__).parent / "golden"
NAMES = [name for name in FORMATS if Stability in FORMATS[name].renderers]


def stability() -> Stability:
    """512 images of which 256 would have been enough."""
    sizes = tuple(
        SizeStability(
            32 * groups, groups, 16 if groups == 1 else 8, 0.031 / groups, loss, 0.0321 / groups, moved, "conv2|x", 3.0
        )
        for groups, loss, moved in ((1, 1.25, 0.31), (2, 0.5, 0.18), (4, 0.125, 0.08), (8, 0.0312, 0.0321))
    )
    tensors = tuple(
        TensorStability(
            f"block{i}/conv{i}|x", -i - 1.0, i + 1.0, 0.1 * i, (0.4, 0.2, 0.1, 0.01 * i), (2.0, 1.0, 0.1, 0.05 * i)
        )
        for i in range(10)
    )
    degradations = (Degradation(DegradationCode.METHOD_FALLBACK, "entropy has no meaning", 1, ("conv2",)),)
    return Stability(
        "model.onnx", "a" * 64, "b" * 64, "c" * 64, "mse", "int8-symmetric", 512, 16, 2, 7, 0.1, 0.05, 256, sizes,
        tensors, degradations,
    )  # fmt: skip


def check(path: Path, text: str) -> None:
    if os.environ.get("QUANTLAB_REGENERATE") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"QUANTLAB_REGENERATE=1 pytest writes {path.name} anew"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    text = render(stability(), name)
    assert text.endswith("\n")
    check(GOLDEN / f"stability.{name}{FORMATS[name].suffix}", text)


def test_golden_of_a_narrow_coloured_terminal() -> None:
    check(GOLDEN / "stability.terminal-60.txt", render(stability(), "terminal", Style(60, colour=True)))


def test_formats() -> None:
    assert NAMES == ["terminal", "markdown", "csv", "json"]


def test_json_is_the_saved_document(tmp_path: Path) -> None:
    text = render(stability(), "json")
    assert json.loads(text)["schema"] == "quantlab.stability/1"
    (tmp_path / "stability.json").write_text(text)
    assert Stability.load(tmp_path / "stability.json") == stability()


def test_csv_has_a_row_for_every_size_and_tensor() -> None:
    rows = list(csv.DictReader(io.StringIO(render(stability(), "csv"))))
    assert len(rows) == 4 * 10
    assert {(row["images"], row["subsets"]) for row in rows} == {("32", "16"), ("64", "8"), ("128", "8"), ("256", "8")}
    last = rows[-1]
    assert (last["tensor"], float(last["loss_db_max"])) == ("block9/conv9|x", 0.45)
    assert float(last["movement_percent_max"]) == pytest.approx(9.0)


def test_the_curve_falls() -> None:
    bars = [len(bar) for bar in re.findall(r"#+", render(stability(), "terminal"))]
    assert bars == [12, 5, 1]  # the last rounds to nothing


def test_the_least_stable_are_shown_first() -> None:
    names = re.findall(r"^(block\d)", render(stability(), "terminal"), re.MULTILINE)
    assert names[:8] == [f"block{i}" for i in range(9, 1, -1)]
    assert "block0" not in names


def test_what_the_numbers_do_not_show_is_said() -> None:
    text = " ".join(render(stability(), "terminal").split())
    assert "256 images would have been enough" in text
    assert "at most 0.1 dB and move at most 5 %" in text
    assert "parts of the images that they are compared with" in text
    assert "512 samples" in text and "seed 7" in text and "16 random groups" in text


def test_odd_numbers_and_nothing_to_show() -> None:
    found = stability()
    size = dataclasses.replace(found.sizes[0], loss_db_p95=math.inf, worst_loss_db=math.inf)
    assert "#" * 12 in render(dataclasses.replace(found, sizes=(size, *found.sizes[1:])), "terminal")
    zero = tuple(dataclasses.replace(size, loss_db_p95=-0.1) for size in found.sizes)
    assert "#" not in render(dataclasses.replace(found, sizes=zero), "terminal")
    nothing = dataclasses.replace(found, sizes=(), tensors=(), enough_images=None)
    for name in NAMES:
        assert render(nothing, name).endswith("\n")
    assert "No tensor has more than one value" in render(nothing, "terminal")


@pytest.mark.parametrize("width", [60, 100, 200])
def test_tables_fit_the_width(width: int) -> None:
    assert max(map(display_width, render(stability(), "terminal", Style(width)).splitlines())) <= width


def test_names_cannot_act_on_the_terminal_or_the_page() -> None:
    tensor = dataclasses.replace(stability().tensors[0], name="x\x1b[31m\n| <b>", losses_db=(9.0, 9.0, 9.0, 9.0))
    found = dataclasses.replace(stability(), tensors=(tensor,))
    assert "\x1b" not in render(found, "terminal")
    page = render(found, "markdown")
    assert "\x1b" not in page and "<b>" not in page
