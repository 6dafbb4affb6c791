"""The truth table and the drift by layers in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import pytest

from quantlab.degradation import Degradation, DegradationCode
from quantlab.graph.twin import PartKind
from quantlab.harness.gap import Gap
from quantlab.harness.layer_record import LayerDrift, PartDrift
from quantlab.harness.truth_figures import Estimate, TruthFigures
from quantlab.harness.truth_record import Intervals, Judgement, OutputTruth, Role, Truth, TruthRow
from quantlab.precision import Precision
from quantlab.reports import FORMATS, Style, render
from quantlab.statistics.interval import Interval

HOSTILE = "=cmd|'/c calc'!A1 \x1b[31m`<b>\n|x\x00\u202e @team & \ud800"


def gap(sqnr: float | None, flips: int | None = 0, *, differing: int = 5, non_finite: int = 0) -> Gap:
    return Gap(sqnr, 0.125, differing, 40, flips, non_finite, 0)


def figures() -> TruthFigures:
    nearness, own, loss, excess = (
        Estimate(value, Interval(value - 1.0, value + 2.0, 0.95)) for value in (-43.0, 17.0, 9.0, 8.75)
    )
    return TruthFigures(nearness, own, loss, excess)


def truth() -> Truth:
    equal = gap(math.inf, differing=0)
    rows = (
        TruthRow(
            "float64 of the graph", Role.GRAPH, Judgement.REFERENCE, "the truth of the graph",
            (OutputTruth("y", None, gap(25.25), gap(25.0)),),
        ),
        TruthRow(
            "openvino", Role.RUNTIME, Judgement.OWN_ERROR, "openvino is 9.0 dB worse than the graph says",
            (OutputTruth("y", gap(17.0, 3), gap(16.25, 4), gap(16.0, 4), gap(12.0), equal, figures()),),
            Precision.INT8, "read from the graph", ("batches of 8 give other results than one by one: 12.0 dB",),
        ),
        TruthRow("tensorrt-rtx", Role.RUNTIME, Judgement.UNAVAILABLE, "no GPU is here"),
    )  # fmt: skip
    degradation = Degradation(DegradationCode.BATCH_DISAGREES, "openvino: batches of 8 give other results")
    return Truth(
        "m.qdq.onnx", "a" * 64, "m.onnx", "b" * 64, "float64", rows, 16,
        Intervals(0.95, "bootstrap", 2000, 3), 8, {}, "c" * 64, {},
        ("FP32 of the original is 20.0 dB from float64 of the original",), (degradation,),
    )  # fmt: skip


def layers() -> LayerDrift:
    parts = (
        PartDrift(PartKind.ACTIVATION, "x", "x", "", 50.0, math.inf, 50.0, via="x"),
        PartDrift(PartKind.LAYER, "c", "conv7", "Conv", 30.25, None, 20.5, "x", 29.5, "conv7"),
        PartDrift(PartKind.ACTIVATION, "relu", "relu7", "Relu", 40.0, 19.0, 18.5, "x", 31.5, "conv7", 2),
        PartDrift(PartKind.OUTPUT, "y", "fc", "Gemm", None, None, 18.0, "relu", 0.5, "fc"),
    )
    stored = (PartDrift(PartKind.WEIGHT, "w", "conv7", "Conv", 44.0, via="conv7"),)
    return LayerDrift(
        "v", "a" * 64, "m.onnx", "b" * 64, parts, stored, "most is lost at conv7: 50.0 -> 18.5 dB", "relu",
        "run on the CPU", ("lost",), 8, {}, "c" * 64, {}, (),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["terminal", "markdown", "csv", "json"])
@pytest.mark.parametrize("make", [truth, layers])
def test_formats(make: object, name: str) -> None:
    text = render(make(), name)  # type: ignore[operator]
    assert text.endswith("\n")
    assert type(make()) in FORMATS[name].renderers  # type: ignore[operator]


class TestTruth:
    def test_terminal(self) -> None:
        text = render(truth(), "terminal", Style(200))
        assert "openvino is 9.0 dB worse than the graph says; batches of 8 give other results than one by one" in text
        assert "tensorrt-rtx is not available: no GPU is here." in text
        lines = [line.split() for line in text.splitlines()]
        cells = ["17.0", "9.0", "[8.0,", "11.0]", "16.2", "16.0", "3", "4", "0.125", "12.0", "dB", "equal"]
        assert ["openvino", *cells] in lines
        assert lines[lines.index(["openvino", *cells]) + 1][:4] == ["float64", "of", "the", "graph"], "runtimes first"
        assert any(line[:2] == ["own-error", "openvino"] for line in lines)
        assert "In brackets: 95% intervals (bootstrap, n = 16, 2,000 resamples, seed 3), each for itself." in text
        assert "FP32 of the original is 20.0 dB from float64 of the original." in text
        assert "batch-disagrees x1" in text

    def test_width(self) -> None:
        for line in render(truth(), "terminal", Style(60)).splitlines():
            assert len(line) <= 60 or "batch-disagrees" in line

    def test_without_the_original_there_are_no_columns_of_it(self) -> None:
        text = render(dataclasses.replace(truth(), model=None, model_sha256=None), "terminal", Style(200))
        assert "to FP32 " not in text.partition("SQNR in dB")[0]
        assert "flips, original" not in text

    def test_without_intervals_there_is_no_column_of_them(self) -> None:
        missing = TruthFigures(*(Estimate(1.0, None, "too few") for _ in range(4)))
        rows = tuple(
            dataclasses.replace(row, outputs=tuple(dataclasses.replace(one, figures=missing) for one in row.outputs))
            for row in truth().rows
        )
        text = render(dataclasses.replace(truth(), rows=rows), "terminal", Style(200))
        assert "interval" not in text

    def test_several_outputs_are_named(self) -> None:
        rows = tuple(
            dataclasses.replace(row, outputs=(*row.outputs, dataclasses.replace(row.outputs[0], output="mask")))
            for row in truth().rows
            if row.outputs
        )
        lines = [line.split() for line in render(dataclasses.replace(truth(), rows=rows), "terminal").splitlines()]
        assert any(line[:2] == ["openvino", "mask"] for line in lines)
        assert "output" in next(line for line in lines if line and line[0] == "execution")

    def test_csv_holds_every_figure(self) -> None:
        rows = list(csv.DictReader(io.StringIO(render(truth(), "csv"))))
        assert [row["execution"] for row in rows] == ["float64 of the graph", "openvino", "tensorrt-rtx"]
        found = rows[1]
        assert (found["graph_sqnr_db"], found["float64_flips"], found["repeat_sqnr_db"]) == ("17.0", "4", "inf")
        assert (found["judgement"], found["precision_proved"]) == ("own-error", "int8")
        assert (found["loss"], found["loss_low"], found["loss_high"]) == ("9.0", "8.0", "11.0")
        assert (found["nearness"], found["own_low"], found["excess"]) == ("-43.0", "16.0", "8.75")
        assert rows[2]["graph_sqnr_db"] == rows[2]["output"] == ""

    def test_markdown(self) -> None:
        text = render(truth(), "markdown")
        assert "- **own-error**: openvino is 9.0 dB worse" in text
        assert "| openvino | 17.0 | 9.0 | \\[8.0, 11.0\\] | 16.2 | 16.0 | 3 | 4 | 0.125 | 12.0 dB | equal |" in text

    def test_integers(self) -> None:
        row = truth().rows[1]
        output = OutputTruth("y", gap(None, None), gap(None, None), gap(None, None), gap(None, None), gap(None, None))
        found = dataclasses.replace(truth(), rows=(dataclasses.replace(row, outputs=(output,)),))
        assert "5 differ" in render(found, "terminal", Style(200))


class TestLayers:
    def test_terminal(self) -> None:
        text = render(layers(), "terminal", Style(200))
        assert "Most is lost at conv7: 50.0 -> 18.5 dB." in text
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert "relu 40.0 19.0 18.5 31.5 <- most is lost here 2 not finite conv7" in lines
        assert "conv7 Conv 30.2 20.5" in lines
        assert "w conv7 weight 44.0" in lines
        assert "1 quantized tensors have no counterpart and are left out: lost." in text

    def test_csv(self) -> None:
        rows = list(csv.DictReader(io.StringIO(render(layers(), "csv"))))
        assert [row["tensor"] for row in rows] == ["x", "c", "relu", "y", "w"]
        assert [row["worst"] for row in rows] == ["False", "False", "True", "False", "False"]
        assert (rows[0]["arriving_sqnr_db"], rows[2]["drop_db"], rows[4]["accumulated_sqnr_db"]) == ("inf", "31.5", "")

    def test_markdown_has_every_table(self) -> None:
        text = render(layers(), "markdown")
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## Tensors", "## Layers", "## Weights and biases", "## Degradations",
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["terminal", "markdown", "csv"])
def test_hostile_names(name: str) -> None:
    rows = tuple(dataclasses.replace(row, name=HOSTILE, verdict=HOSTILE) for row in truth().rows)
    parts = tuple(dataclasses.replace(part, tensor=HOSTILE, layer=HOSTILE, via=HOSTILE) for part in layers().parts)
    one = dataclasses.replace(truth(), rows=rows, graph=HOSTILE, notes=(HOSTILE,))
    two = dataclasses.replace(layers(), parts=parts, variant=HOSTILE, finding=HOSTILE, unmatched=(HOSTILE,))
    for text in (render(one, name), render(two, name)):
        text.encode()
        assert not {"\x1b", "\x00", "\u202e"} & set(text)
        if name == "markdown":
            assert "<b>" not in text
        if name == "csv":
            assert not any(cell.startswith("=") for row in csv.reader(io.StringIO(text)) for cell in row)


def test_json_is_the_document() -> None:
    assert json.loads(render(truth(), "json"))["schema"] == "quantlab.truth/1"
    assert json.loads(render(layers(), "json"))["schema"] == "quantlab.layers/1"
