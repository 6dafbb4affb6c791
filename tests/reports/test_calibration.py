"""The calibration table in rows and on a terminal."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from quantlab.calibrators import CalibrationTable, Provenance, TensorEntry, TensorRange
from quantlab.degradation import Degradation, DegradationCode
from quantlab.reports import Style, render
from quantlab.reports.calibration import calibration_frame
from quantlab.reports.cells import display_width

METHODS = ("minmax", "percentile", "entropy", "mse")


def entry(name: str, sqnr_db: float, fallback: str | None = None) -> TensorEntry:
    by_method = {
        method: TensorRange(
            -i - 1.0, i + 1.0, i / 100, sqnr_db + i, 10 * i + 1, fallback if method == "entropy" else None
        )
        for i, method in enumerate(METHODS)
    }
    return TensorEntry(name, -1.5, 2.5, 1000, 3, 0.25, "", {"int8-symmetric": by_method, "uint8-affine": by_method})


def table(*entries: TensorEntry, method: str = "mse") -> CalibrationTable:
    provenance = Provenance("0", "observed", "model.onnx", "a" * 64, "b" * 64, {}, None, "", (), 99.99)
    degradation = Degradation(DegradationCode.METHOD_FALLBACK, "entropy has no meaning", 1, ("conv2",))
    return CalibrationTable(method, 1234, entries, provenance, (degradation,))


TABLE = table(entry("conv1", 30.0), entry("conv2", 10.0, "only 3 distinct magnitudes"), entry("conv3", 20.0))


class TestFrame:
    def test_a_row_for_every_tensor_scheme_and_method(self) -> None:
        frame = calibration_frame(TABLE)
        assert len(frame) == 3 * 2 * 4
        assert not frame.duplicated(["tensor", "scheme", "method"]).any()
        assert frame.groupby("method")["chosen"].all().to_dict() == {m: m == "mse" for m in METHODS}

    def test_values_and_units(self) -> None:
        frame = calibration_frame(TABLE).set_index(["tensor", "scheme", "method"])
        row = frame.loc[("conv2", "int8-symmetric", "entropy")]
        assert (row["low"], row["high"], row["sqnr_db"], row["candidates"]) == (-3.0, 3.0, 12.0, 21)
        assert row["clipped_percent"] == pytest.approx(2.0)
        assert row["zero_percent"] == pytest.approx(25.0)
        assert (row["minimum"], row["maximum"], row["count"], row["non_finite"]) == (-1.5, 2.5, 1000, 3)
        assert row["fallback"] == "only 3 distinct magnitudes"
        assert frame.loc[("conv1", "int8-symmetric", "entropy")]["fallback"] == ""


class TestTerminal:
    def test_the_worst_tensor_comes_first(self) -> None:
        text = render(TABLE, "terminal", Style(200))
        assert re.findall(r"^conv\d", text, re.MULTILINE) == ["conv2", "conv3", "conv1"]

    def test_only_the_worst_are_shown_and_the_rest_counted(self) -> None:
        many = table(*(entry(f"t{i:02d}", float(i)) for i in range(30)))
        text = render(many, "terminal", Style(200))
        assert len(re.findall(r"^t\d\d", text, re.MULTILINE)) == 8
        assert "30 tensors" in text
        assert "1,234 samples" in text

    def test_chosen_method_and_fallbacks_are_marked(self) -> None:
        text = render(TABLE, "terminal", Style(200))
        assert "mse*" in text
        assert "minmax*" not in text
        assert "minmax*" in render(TABLE.with_method("minmax"), "terminal", Style(200))
        (line,) = (line for line in text.splitlines() if line.startswith("conv2"))
        assert "3 (2 %, 12.0 dB) =minmax" in line
        assert text.count("=minmax") == 1

    def test_degradations_are_printed(self) -> None:
        assert "method-fallback x1: entropy has no meaning (conv2)" in render(TABLE, "terminal")
        assert "No degradations." in render(dataclasses.replace(TABLE, degradations=()), "terminal")

    @pytest.mark.parametrize("width", [70, 100, 200])
    def test_tables_fit_the_width(self, width: int) -> None:
        long = table(*(entry(f"block{i}/" + "very_long_name/" * 9, 10.0 + i) for i in range(9)))
        lines = [
            line for line in render(long, "terminal", Style(width)).splitlines() if line.startswith(("block", "tensor"))
        ]
        assert lines
        assert max(map(display_width, lines)) <= width

    def test_names_cannot_act_on_the_terminal(self) -> None:
        text = render(table(entry("x\x1b[31m\n\u202e", 1.0)), "terminal")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)

    def test_odd_numbers(self) -> None:
        assert "inf dB" in render(table(entry("lossless", math.inf)), "terminal")

    def test_no_tensors(self) -> None:
        assert "0 tensors" in render(table(), "terminal")


def test_json_is_the_saved_document() -> None:
    assert render(TABLE, "json") == TABLE.to_json()


def test_every_format_of_tables_ends_its_last_line() -> None:
    for name in ("terminal", "json"):
        assert render(TABLE, name).endswith("\n")
