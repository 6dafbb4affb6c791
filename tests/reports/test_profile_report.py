"""Profiles in every format, against files under ``golden``; QUANTLAB_REGENERATE=1 writes them anew."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from pathlib import Path

import pytest

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.harness.alignment import align
from quantlab.harness.footprint import Footprint
from quantlab.harness.profile import EngineProfile, Profiles
from quantlab.precision import Execution, Precision
from quantlab.reports import FORMATS, Style, render
from quantlab.reports.cells import display_width
from quantlab.reports.profile import SHOWN
from quantlab.workflow.results import load_result

GOLDEN = Path(__file__).parent / "golden"
NAMES = [name for name in FORMATS if Profiles in FORMATS[name].renderers]
HOSTILE = "=cmd|'/c calc'!A1 \x1b[31m`<b>\n|x\x00\u202e @team &"


def layer(
    nodes: str, us: float, operator: str = "Conv", precision: str = "fp32", kind: LayerKind = LayerKind.COMPUTE
) -> LayerTime:
    sources = tuple(nodes.split("+"))
    return LayerTime(f"{sources[0]}_token_1", sources, kind, us / 1000, operator, precision)


def profiles(first: str = "/features/features.0/Conv") -> Profiles:
    """Three convolutions, and more layers than a table for people shows; one engine has no footprint."""
    second, third = "/features/features.1/Conv", "/features/features.2/Conv"
    small = [f"/head/fc{i}" for i in range(SHOWN)]
    quantize = LayerKind.QUANTIZE
    fp32 = [
        layer(f"{first}+{first}/Relu", 100),
        layer(second, 200),
        layer(second, 7, "ReorderOutput", kind=LayerKind.REFORMAT),
        layer(f"{third}+/features/features.2/Add+/features/features.2/Relu", 300),
        *(layer(name, 3, "Gemm") for name in small),
    ]
    native = [
        layer(first, 20, "QuantizeLinear", kind=quantize),
        layer(first, 50, "QLinearConv", "uint8"),
        layer(second, 80, "QLinearConv", "uint8"),
        layer(third, 20, "DequantizeLinear", "uint8", quantize),
        layer(third, 290),
        layer("/features/features.2/Add", 40, "Add"),
        *(layer(name, 2, "QGemm", "uint8") for name in small),
    ]
    emulated = [layer(first, 300, "Conv"), layer(second, 210), layer(third, 305)]
    emulated += [layer(first, 10, "Cast", kind=LayerKind.REFORMAT) for _ in range(4)]
    engines = (
        EngineProfile("onnxruntime-fp32", "onnxruntime", Precision.FP32, Execution.NATIVE, 0.625, tuple(fp32)),
        EngineProfile("onnxruntime-int8-mse", "onnxruntime", Precision.INT8, Execution.NATIVE, 0.41, tuple(native)),
        EngineProfile("onnxruntime-fp16", "onnxruntime", Precision.FP16, Execution.EMULATED, 0.8, tuple(emulated)),
    )
    left_out = {"onnxruntime-cuda-fp32": "the backend onnxruntime-cuda does not time layers"}
    footprints = (
        Footprint("onnxruntime-fp32", 4_000_000, 1, 2, (40.5, 35.0, 36.25), (2.0, 1.5, 1.75), (30_000_000,) * 3),
        Footprint("onnxruntime-int8-mse", 1_100_000, 1, 2, (33.0, 31.0, 90.0), (1.0, 1.5, 1.25), (21_000_000,) * 3),
    )
    rows = align([engine.layers for engine in engines])
    return Profiles("onnxruntime-fp32", engines, rows, 10, 3, 1, 1.12, left_out, footprints)


def check(path: Path, text: str) -> None:
    if os.environ.get("QUANTLAB_REGENERATE") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"QUANTLAB_REGENERATE=1 pytest writes {path.name} anew"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    text = render(profiles(), name)
    assert text.endswith("\n")
    check(GOLDEN / f"profile.{name}{FORMATS[name].suffix}", text)


def test_golden_of_a_narrow_coloured_terminal() -> None:
    check(GOLDEN / "profile.terminal-60.txt", render(profiles(), "terminal", Style(60, colour=True)))


def test_formats() -> None:
    assert NAMES == ["terminal", "markdown", "csv", "json"]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_terminal_is_not_exceeded(width: int) -> None:
    lines = render(profiles(), "terminal", Style(width)).splitlines()
    assert max(map(display_width, lines)) <= width


def test_colour_is_only_colour() -> None:
    painted = render(profiles(), "terminal", Style(colour=True))
    assert "\x1b[" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == render(profiles(), "terminal")


def test_a_saved_profile_is_rendered_alike(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(profiles().to_json(), encoding="utf-8")
    loaded = load_result(tmp_path / "profile.json")
    for name in NAMES:
        assert render(loaded, name) == render(profiles(), name)


def test_csv_has_every_cell() -> None:
    made = profiles()
    rows = list(csv.DictReader(io.StringIO(render(made, "csv"))))
    assert len(rows) == sum(cell is not None for row in made.rows for cell in row.cells)
    for engine in made.engines:
        total = sum(float(row["ms"]) for row in rows if row["engine"] == engine.name)
        assert total == pytest.approx(engine.total_ms)


def test_an_engine_alone() -> None:
    made = profiles()
    alone = dataclasses.replace(
        made, engines=made.engines[:1], rows=align([made.engines[0].layers]), footprints=(), left_out={}
    )
    for name in NAMES:
        text = render(alone, name)
        assert "slower, by time" not in text
    assert "peak MiB" not in render(alone, "terminal")


@pytest.mark.parametrize("name", ["terminal", "markdown", "csv"])
def test_hostile_names(name: str) -> None:
    text = render(profiles(HOSTILE), name)
    assert not re.search(r"[\x00\x1b\u202e]", text)
    if name == "csv":
        (row,) = [r for r in csv.reader(io.StringIO(text)) if "calc" in r[1] and r[2] == "onnxruntime-fp32"]
        assert row[1].startswith("'=")
    if name == "markdown":
        assert "<b>" not in text
        assert "@team" not in text
