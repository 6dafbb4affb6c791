"""FP8, INT8 weights and models with Q/DQ pairs, from the command line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from cli_bench import Bench, Cli

from quantlab.datasets import sample_data, sample_model
from quantlab.graph.model import load_model, save_model
from quantlab.graph.prepare import prepare
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.targets import TENSORRT

MODEL = str(sample_model())
DATA = ("--data", str(sample_data("calibration")), "--limit", "16", "--threads", "2")
BUILD = ("build", "--model", MODEL, "--table", "calibration/calibration.json", "-o", "engines", "--json")


@pytest.fixture
def calibrated(bench: Bench, cli: Cli) -> Bench:
    assert cli("calibrate", "--model", MODEL, *DATA, "--method", "minmax", "--minmax-only").code == 0
    return bench


def test_fp8(calibrated: Bench, cli: Cli) -> None:
    answer = cli(*BUILD, "--precisions", "fp8")
    assert answer.code == 0
    (engine,) = answer.document()["engines"]
    assert (engine["requested"], engine["proved"], engine["execution"]) == ("fp8", "fp8", "emulated")
    assert (engine["name"], engine["method"], engine["target"]) == ("onnxruntime-fp8", None, "tensorrt")
    assert (len(engine["skipped"]), engine["degradations"]) == (10, [])
    assert "10 of its layers stay in floating point by the target's size limits" in answer.err
    evaluation = ("--data", str(sample_data("evaluation")), "--limit", "40", "--latency-seconds", "0")
    assert cli("build", "--model", MODEL, "--precisions", "fp32", "-o", "engines").code == 0
    compared = cli("compare", *evaluation, "--json", "-o", "compared").document()["variants"]
    (drift,) = next(v for v in compared if v["requested"] == "fp8")["outputs"]
    assert drift["sqnr_db"] > 26


def test_weights_alone_need_no_table(bench: Bench, cli: Cli) -> None:
    answer = cli("build", "--model", MODEL, "--precisions", "int8-weights", "-o", "engines", "--json")
    assert answer.code == 0
    (engine,) = answer.document()["engines"]
    assert (engine["proved"], engine["execution"], engine["table_sha256"]) == ("int8-weights", "native", None)
    assert engine["size_bytes"] < 0.3 * Path(MODEL).stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--precisions", "fp8", "--target", "onnxruntime"), 2, "target onnxruntime has no fp8 quantization"),
        (("--precisions", "int8-weight"), 2, "did you mean 'int8-weights'?"),
        (("--precisions", "int8", "--existing", "kep"), 2, "no policy 'kep'"),
    ],
)
def test_mistakes(calibrated: Bench, cli: Cli, arguments: tuple[str, ...], code: int, words: str) -> None:
    answer = cli(*BUILD, *arguments)
    assert (answer.code, (calibrated / "engines").exists()) == (code, False)
    assert words in answer.out + answer.err


def test_fp8_of_imported_ranges(calibrated: Bench, cli: Cli) -> None:
    """A cache holds ranges, not the largest magnitudes."""
    cache = "calibration/fashion-resnet.calib"
    imported = cli("convert-cache", cache, "-o", "imported.json", "--model", MODEL)
    assert imported.code == 0, imported.err
    answer = cli("build", "--model", MODEL, "--table", "imported.json", "--precisions", "fp8", "-o", "engines")
    assert answer.code == 2
    assert "needs the largest magnitudes themselves" in answer.err


def test_a_model_that_is_quantized_in_part(bench: Bench, cli: Cli) -> None:
    """Weights of the layers that were left out are completed; what was there is kept."""
    prepared = prepare(load_model(Path(MODEL)))
    part = quantize_model(prepared.model, None, TENSORRT, ["/features/features.4*"], kind=QuantizationKind.INT8_WEIGHTS)
    save_model(part.proto, bench / "part.onnx", prepared.model)
    build = ("build", "--model", "part.onnx", "--precisions", "int8-weights", "-o", "engines")
    refused = cli(*build)
    assert refused.code == 5
    assert "--existing complete" in refused.err
    answer = cli(*build, "--existing", "complete", "--json")
    assert answer.code == 0
    (engine,) = answer.document()["engines"]
    assert len(engine["kept"]) == 20
    assert engine["proof"].startswith("22 of 22 weighted layers with INT8 weights")
    whole = {tensor.name for tensor in onnx.load(bench / "engines" / engine["file"]).graph.initializer}
    assert {tensor.name for tensor in part.proto.graph.initializer if tensor.name.endswith("_int8")} <= whole
    shown = cli("inspect", f"engines/{engine['file']}").out
    assert "kept          20 layers that the model held quantized already" in shown
