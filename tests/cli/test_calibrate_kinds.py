"""``quantlab calibrate --kind`` and ``--existing``: what is in the Q/DQ file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_bench import Bench, Cli
from qdq_checks import Graph

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import sample_data, sample_model
from quantlab.graph.model import load_model, save_model
from quantlab.graph.prepare import prepare
from quantlab.graph.proof import prove
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import TENSORRT
from quantlab.precision import Precision

MODEL = str(sample_model())
COMMON = ("--data", str(sample_data("calibration")), "--limit", "16", "--threads", "2", "--method", "minmax")
QDQ = "calibration/fashion-resnet.qdq.onnx"


@pytest.mark.parametrize("kind", ["int8", "fp8", "int8-weights"])
def test_kinds(bench: Bench, cli: Cli, kind: str) -> None:
    assert cli("calibrate", "--model", MODEL, *COMMON, "--kind", kind).code == 0
    assert prove(load_model(bench / QDQ)).precision is Precision(kind)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kind", "fp8", "--target", "onnxruntime"), "target onnxruntime has no fp8 quantization"),
        (("--kind", "int9"), "no kind of quantization 'int9'"),
        (("--existing", "kep"), "no policy 'kep'"),
    ],
)
def test_mistakes_cost_no_run(bench: Bench, cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    answer = cli("calibrate", "--model", MODEL, *COMMON, *arguments)
    assert answer.code == 2
    assert words in answer.err
    assert not (bench / "calibration").exists()


def _partly(bench: Bench, cli: Cli) -> Path:
    assert cli("calibrate", "--model", MODEL, *COMMON, "-o", "first").code == 0
    table = CalibrationTable.load(bench / "first/calibration.json")
    prepared = prepare(load_model(Path(MODEL)))
    made = quantize_model(prepared.model, table, TENSORRT, ["/features/features.4*"])
    path = bench / "fashion-resnet.onnx"
    save_model(made.proto, path, prepared.model)
    return path


def test_existing_pairs_stay_to_the_bit(bench: Bench, cli: Cli) -> None:
    path = _partly(bench, cli)
    refused = cli("calibrate", "--model", str(path), *COMMON)
    assert refused.code == 5
    assert "--existing complete" in refused.err
    assert cli("calibrate", "--model", str(path), *COMMON, "--existing", "complete").code == 0
    before, after = Graph(load_model(path).proto), Graph(load_model(bench / QDQ).proto)
    pairs = [node for node in before.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 40
    for node in pairs:
        kept = after.named(node.name)
        assert (kept.op_type, list(kept.output), list(kept.attribute)) == (
            node.op_type, list(node.output), list(node.attribute),
        )  # fmt: skip
        for old, new in zip(node.input, kept.input, strict=True):  # equal zero-points may be stored once
            if old in before.constants:
                assert after.constants[new].tobytes() == before.constants[old].tobytes()
            else:
                assert old == new
    assert len(prove(load_model(bench / QDQ)).named(Precision.INT8)) == 21
    built = cli(
        "build", "--model", str(path), "--table", "calibration/calibration.json", "--precisions", "int8",
        "--existing", "complete", "-o", "engines", "--json",
    )  # fmt: skip
    (engine,) = built.document()["engines"]
    assert (engine["proved"], len(engine["kept"])) == ("int8", 19)


def test_auto_says_that_it_cannot(bench: Bench, cli: Cli) -> None:
    path = _partly(bench, cli)
    answer = cli("calibrate", "--model", str(path), *COMMON[:-1], "auto", "--existing", "complete")
    assert answer.code == 2
    assert "method auto cannot choose ranges for a model that already holds" in answer.err
