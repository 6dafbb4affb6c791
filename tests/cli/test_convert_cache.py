"""The verb convert-cache: what it writes, prints and returns."""

from __future__ import annotations

import json

from cli_bench import Bench, Cli

from quantlab.calibrators import CalibrationCache

CALIBRATION = "calibration/calibration.json"


def test_the_bridge_there_and_back(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "calibration")
    there = cli("convert-cache", "calibration/net.calib", "--model", "net.onnx", "-o", "net.qdq.onnx")
    assert there.code == 0, there
    assert "wrote net.qdq.onnx" in there.out
    assert "quantized layers       1" in there.out, "the Gemm is too small"
    back = cli("convert-cache", "net.qdq.onnx", "-o", "back.calib", "--tensorrt", "8.6.1")
    assert back.code == 0, back
    before, after = (CalibrationCache.load(bench / name).scales for name in ("calibration/net.calib", "back.calib"))
    assert after == {"x": before["x"]}


def test_the_same_model_as_calibrate_writes(bench: Bench, cli: Cli) -> None:
    """The cache alone gives the pairs that calibration itself gave."""
    bench.take("net.onnx", "calibration")
    assert cli("convert-cache", "calibration/net.calib", "--model", "net.onnx", "-o", "a.onnx").code == 0
    assert cli("convert-cache", "a.onnx", "-o", "a.calib").code == 0
    assert cli("convert-cache", "calibration/net.qdq.onnx", "-o", "b.calib").code == 0
    assert (bench / "a.calib").read_text() == (bench / "b.calib").read_text()


def test_every_form_in_a_folder(bench: Bench, cli: Cli) -> None:
    bench.take("calibration")
    for kind, name in (
        ("tensorrt-cache", "calibration.calib"),
        ("table", "calibration.json"),
        ("ort-flatbuffers", "calibration.flatbuffers"),
        ("ort-text", "calibration.txt"),
        ("ort-json", "calibration.ort.json"),
    ):
        answer = cli("convert-cache", CALIBRATION, "--to", kind, "--method", "minmax", "-o", "out")
        assert answer.code == 0, answer
        assert f"wrote out/{name}" in answer.out
    assert (bench / "out/calibration.calib").read_text().startswith("TRT-101600-MinMaxCalibration\n")


def test_json(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx")
    bench.write("old.calib", "TRT-8601-EntropyCalibration2\nx: 3c010a14\nforeign: 3c010a14\n")
    answer = cli("convert-cache", "old.calib", "--model", "net.onnx", "-o", "t.json", "--json", "--quiet")
    assert answer.code == 0, answer
    document = answer.document()
    assert (document["schema"], document["source_kind"], document["kind"]) == (
        "quantlab.convert-cache/1", "tensorrt-cache", "table",
    )  # fmt: skip
    assert document["coverage"]["covered"] == ["x"]
    assert document["coverage"]["without_tensor"] == ["foreign"]
    assert {d["code"] for d in document["degradations"]} == {"unverified-cache", "unmatched-ranges"}
    table = json.loads((bench / "t.json").read_text())
    assert table["provenance"]["source"] == "old.calib"
    assert table["degradations"] == document["degradations"]


def test_a_converted_table_builds_and_passes_on_its_degradations(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "calibration")
    source = (bench / "calibration/net.calib").read_bytes()
    bench.write("old.calib", source)
    assert cli("convert-cache", "old.calib", "--model", "net.onnx", "-o", "t.json").code == 0
    answer = cli("build", "--model", "net.onnx", "--table", "t.json", "--precisions", "int8", "-o", "engines")
    assert answer.code == 0, answer
    assert (bench / "engines/onnxruntime-int8-imported.onnx").is_file()


def test_force_replaces(bench: Bench, cli: Cli) -> None:
    bench.take("calibration")
    bench.write("new.calib", "mine")
    assert cli("convert-cache", CALIBRATION, "-o", "new.calib", "--force").code == 0
    assert (bench / "new.calib").read_text().startswith("TRT-")


def test_inspect_diff(bench: Bench, cli: Cli) -> None:
    bench.take("calibration")
    bench.write("old.calib", "TRT-8601-MinMaxCalibration\nx: 3c010a14\nforeign: 3c010a14\n")
    answer = cli("inspect", "old.calib", "--diff", CALIBRATION)
    assert answer.code == 0, answer
    assert "A  old.calib: TensorRT 8.6.1 MinMaxCalibration" in answer.out
    assert "1 in A alone: foreign" in answer.out
    document = cli("inspect", "old.calib", "--diff", CALIBRATION, "--json").document()
    assert (document["schema"], document["common"], document["only_left"]) == ("quantlab.cache-diff/1", 1, ["foreign"])
    assert [move["tensor"] for move in document["moves"]] == ["x"]


def test_inspect_lint_knows_what_convert_cache_wrote(bench: Bench, cli: Cli) -> None:
    """With the provenance beside it there is nothing to find; changed by hand, there is."""
    bench.take("net.onnx", "calibration")
    lint = ("inspect", "new.calib", "--lint", "--model", "net.onnx", "--tensorrt", "10.16.0")
    assert cli("convert-cache", CALIBRATION, "--model", "net.onnx", "-o", "new.calib").code == 0
    assert cli(*lint, "--json").document()["findings"] == []
    path = bench / "new.calib"
    path.write_text(path.read_text().replace("TRT-101600", "TRT-8601"))
    answer = cli(*lint, "--json")
    assert answer.code == 5
    assert [f["rule"] for f in answer.document()["findings"]] == ["other-major-version", "other-provenance"]
