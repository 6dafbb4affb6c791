"""``quantlab compare --across`` and ``--layers`` on the command line."""

from __future__ import annotations

import json

import pytest
from cli_bench import Bench, Cli

from quantlab.errors import ExitCode

COMMON = ("--data", "eval", "--preprocess", "unit.toml", "--threads", "1", "-o", "out")
QDQ = "calibration/net.qdq.onnx"


@pytest.fixture
def full(bench: Bench) -> Bench:
    bench.take("engines", "eval", "unit.toml", "calibration", "net.onnx")
    return bench


def names(bench: Bench) -> set[str]:
    return {path.name for path in (bench / "out").iterdir()}


def test_one_file_across_backends(full: Bench, cli: Cli) -> None:
    answer = cli("compare", QDQ, "--across", "onnxruntime", "--model", "net.onnx", *COMMON)
    assert answer.code == 0, answer.err
    assert names(full) == {"truth.json", "truth.csv", "truth.md"}
    document = json.loads((full / "out/truth.json").read_text())
    assert document["graph"] == "net.qdq.onnx"
    assert document["rows"][-1]["name"] == "onnxruntime"
    assert "One graph in several runtimes" in answer.out
    assert "wrote out/truth.json" in answer.out


def test_engines_in_their_own_backends(full: Bench, cli: Cli) -> None:
    answer = cli("compare", "engines", "--across", "engines", "--json", *COMMON)
    assert answer.code == 0, answer.err
    document = answer.document()
    assert (document["schema"], document["model"]) == ("quantlab.truth/1", "onnxruntime-fp32.onnx")
    assert [row["name"] for row in document["rows"] if row["role"] == "runtime"] == ["onnxruntime-int8-mse"]
    alone = sorted(str(path) for path in (full / "engines").glob("*int8*.onnx"))
    assert cli("compare", *alone, "--across", "engines", "--json", *COMMON).document()["model"] is None


def test_layers_of_a_folder(full: Bench, cli: Cli) -> None:
    answer = cli("compare", "engines", "--layers", "3", *COMMON)
    assert answer.code == 0, answer.err
    assert "layers-onnxruntime-int8-mse.json" in names(full)
    assert json.loads((full / "out/layers-onnxruntime-int8-mse.json").read_text())["n_samples"] == 3
    assert "Layer by layer" in answer.out


def test_layers_of_a_file(full: Bench, cli: Cli) -> None:
    answer = cli("compare", QDQ, "--layers", "2", "--model", "net.onnx", "--json", *COMMON)
    assert answer.code == 0, answer.err
    assert answer.document()["variant"] == "net.qdq.onnx"


@pytest.mark.parametrize("kind", ["int8", "int8-weights"])
def test_layers_of_a_table(kind: str, full: Bench, cli: Cli) -> None:
    answer = cli(
        "compare", "--layers", "2", "--table", "calibration/calibration.json", "--model", "net.onnx",
        "--target", "onnxruntime", "--kind", kind, "--json", *COMMON,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    expected = "onnxruntime-int8-mse" if kind == "int8" else "onnxruntime-int8-weights"
    assert answer.document()["variant"] == expected
    assert answer.document()["graph_sha256"] != answer.document()["model_sha256"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--across", "onnxruntime", "--layers", "3"), "ask for one at a time"),
        (("--layers", "3", "--limit", "4"), "--layers takes no --limit"),
        (("--model", "net.onnx"), "--model needs --across or --layers"),
        (("--target", "onnxruntime"), "--target needs --across or --layers"),
        (("--across", "onnxruntime", "--reference", "x"), "--across takes no --reference"),
        (("--across", "onnxruntime", "--kind", "fp8"), "--across takes no --kind"),
        (("--across", "onnxruntme"), "did you mean 'onnxruntime'"),
        (("--across", ","), "--across names no backend"),
        (("--layers", "0"), "0 is not in the range"),
        (("--layers", "2", "--table", "calibration/calibration.json"), "--table needs the model alone"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], said: str, full: Bench, cli: Cli) -> None:
    answer = cli("compare", QDQ, *flags, *COMMON)
    assert answer.code == ExitCode.USAGE
    assert said in answer.err
    assert not (full / "out").exists() or not names(full)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("net.onnx", "--across", "onnxruntime"), ExitCode.BAD_INPUT, "holds no QuantizeLinear"),
        ((QDQ, "net.onnx", "--across", "onnxruntime"), ExitCode.USAGE, "runs one Q/DQ file in several backends"),
        (("missing.onnx", "--across", "onnxruntime"), ExitCode.BAD_INPUT, "does not exist"),
        (("net.onnx", "--layers", "2", "--model", "net.onnx"), ExitCode.BAD_INPUT, "holds no QuantizeLinear"),
        ((QDQ, "--layers", "2", "--model", QDQ), ExitCode.BAD_INPUT, "holds Q/DQ nodes itself"),
        ((QDQ, "--layers", "2"), ExitCode.BAD_INPUT, "has no sidecar"),
    ],
)
def test_bad_input(words: tuple[str, ...], code: ExitCode, said: str, full: Bench, cli: Cli) -> None:
    answer = cli("compare", *words, *COMMON)
    assert answer.code == code, answer.err
    assert said in answer.err
    assert "Traceback" not in answer.err
