"""Every degradation is reported by the command line, and refused by the gate unless the policy allows it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import recovered_model
from bad_case import args
from cli_bench import CLASSES, PASSING, Bench, Cli, graph_model, tiny_cnn, value, weight
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image
from project_tree import ROOT

from quantlab import (
    TARGETS,
    CalibrationTable,
    DataRequest,
    RecoverSettings,
    Silent,
    open_data,
    open_model,
    read_samples,
)
from quantlab.degradation import DegradationCode
from quantlab.errors import ExitCode
from quantlab.recovery.artifact import save_recovery

CALIBRATE = args("calibrate --model net.onnx --data images --preprocess unit.toml --threads 1")
COMPARE = args("compare --data eval --preprocess unit.toml --threads 1 --latency-seconds 0")
BUILD = args("build --model net.onnx --table calibration/calibration.json --precisions")


@dataclass(frozen=True, slots=True)
class Example:
    """How to bring a degradation about, and how it is reported."""

    prepare: Callable[[Bench, Cli], object]
    arguments: tuple[str, ...]
    count: int
    says: str


def plain(bench: Bench, proto: ModelProto | None = None) -> None:
    bench.take("images", "unit.toml")
    bench.model(proto or tiny_cnn())


def _unreadable(bench: Bench, _: Cli) -> None:
    plain(bench)
    bench.write("images/0/x.png", b"no")


def _transparent(bench: Bench, _: Cli) -> None:
    plain(bench)
    Image.new("RGBA", (8, 8), (10, 20, 30, 40)).save(bench / "images/2/ghost.png")


def _duplicate(bench: Bench, _: Cli) -> None:
    plain(bench)
    shutil.copyfile(bench / "images/1/0.png", bench / "images/2/again.png")


def _named_classes(bench: Bench, _: Cli) -> None:
    plain(bench)
    for old, new in zip("0123", ("bird", "cat", "dog", "eel"), strict=True):
        (bench / "images" / old).rename(bench / "images" / new)
    bench.model(tiny_cnn(classes=7))


def _one_label(bench: Bench, _: Cli) -> None:
    bench.take("engines", "eval", "unit.toml")
    bench.write("labels.csv", "0/3.png,0\n")


def _needs_pixels(bench: Bench, _: Cli) -> None:
    """A model that looks its brightest pixel up in a table of four: random numbers lie outside of the table."""
    proto = tiny_cnn()
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["brightest"], name="max", axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["brightest", "three"], ["scaled"], name="scale"),
            helper.make_node("Cast", ["scaled"], ["row"], name="cast", to=TensorProto.INT64),
            helper.make_node("Gather", ["rows", "row"], ["bonus"], name="gather"),
            helper.make_node("Add", ["scores", "bonus"], ["y"], name="add"),
        ]
    )
    proto.graph.initializer.extend([weight("rows", 4, 4), numpy_helper.from_array(np.array(3.0, np.float32), "three")])
    plain(bench, proto)


def _log_of_zero(bench: Bench, _: Cli) -> None:
    proto = tiny_cnn()
    proto.graph.node.append(helper.make_node("Log", ["r1"], ["z"], name="log"))
    proto.graph.output.append(value("z", "n", 8, 8, 8))
    plain(bench, proto)


def _brightest_pixels(bench: Bench, _: Cli) -> None:
    """A second output that holds values above 0.95; the three images of the last class have none."""
    proto = tiny_cnn()
    proto.graph.node.extend(
        [
            helper.make_node("Reshape", ["x", "flat"], ["row"], name="reshape"),
            helper.make_node("Greater", ["row", "limit"], ["is_bright"], name="greater"),
            helper.make_node("Compress", ["row", "is_bright"], ["bright"], name="compress", axis=0),
        ]
    )
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1], np.int64), "flat"),
            numpy_helper.from_array(np.array(0.95, np.float32), "limit"),
        ]
    )
    proto.graph.output.append(value("bright", None))
    plain(bench, proto)


def _labels_of_another_order(bench: Bench, cli: Cli) -> None:
    """Every label is the number after the one that FP32 gives."""
    bench.take("engines", "eval", "unit.toml")
    cli(*COMPARE, "-o", "before", "--quiet")
    found = read_samples(bench / "before" / "samples.parquet")
    answers = found[found["variant"] == "onnxruntime-fp32"].set_index("sample")["predicted"]
    bench.write("labels.csv", "".join(f"{name},{(answer + 1) % CLASSES}\n" for name, answer in answers.items()))


def _fragile_engine(bench: Bench, _: Cli) -> None:
    """The INT8 engine looks a row up that its table has not; its sidecar vouches for the file all the same."""
    bench.take("engines", "eval", "unit.toml")
    path = next((bench / "engines").glob("*int8*.onnx"))
    proto = onnx.load(path)
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["brightest"], name="max", axes=[1, 2, 3], keepdims=0),
            helper.make_node("Add", ["brightest", "ninety"], ["high"], name="raise"),
            helper.make_node("Cast", ["high"], ["row"], name="cast", to=TensorProto.INT64),
            helper.make_node("Gather", ["rows", "row"], ["bonus"], name="gather"),
            helper.make_node("Add", ["scores", "bonus"], ["y"], name="add"),
        ]
    )
    proto.graph.initializer.extend(
        [weight("rows", 4, 4), numpy_helper.from_array(np.array(90.0, np.float32), "ninety")]
    )
    onnx.save(proto, path)
    sidecar = f"engines/{path.name}.engine.json"
    bench.edit_json(sidecar, lambda d: d.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def _dead_branch(bench: Bench, cli: Cli) -> None:
    """A convolution whose input is always zero: ``Relu(-|x|)``."""
    proto = graph_model(
        [
            helper.make_node("Abs", ["x"], ["a"], name="abs"),
            helper.make_node("Neg", ["a"], ["n1"], name="neg"),
            helper.make_node("Relu", ["n1"], ["dead"], name="relu"),
            helper.make_node("Conv", ["x", "w0"], ["c0"], name="wide"),
            helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
            helper.make_node("Conv", ["r0", "w2"], ["c2"], name="conv"),
            helper.make_node("Mul", ["dead", "dead"], ["d"], name="square"),
            helper.make_node("ReduceMean", ["d"], ["m"], name="mean", axes=[1, 2, 3]),
            helper.make_node("Mul", ["r0", "m"], ["none"], name="nothing"),
            helper.make_node("Conv", ["none", "w1"], ["c1"], name="dead_conv"),
            helper.make_node("Add", ["c1", "c2"], ["y"], name="add"),
        ],
        [value("x", "n", 3, 8, 8)],
        [value("y", "n", 16, 8, 8)],
        [weight("w0", 16, 3, 1, 1), weight("w1", 16, 16, 1, 1), weight("w2", 16, 16, 1, 1)],
    )
    plain(bench, proto)
    assert cli(*CALIBRATE).code == 0


def _quantized(bench: Bench, _: Cli) -> None:
    bench.take("calibration")
    shutil.copyfile(bench / "calibration/net.qdq.onnx", bench / "net.onnx")


def _huge_weight(bench: Bench, _: Cli) -> None:
    proto = tiny_cnn()
    values = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    values[0, 0] = 1e6  # beyond 65504
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(values, "w2"))
    bench.model(proto)


def _foreign_cache(bench: Bench, _: Cli) -> None:
    bench.take("net.onnx")
    bench.write("old.calib", "TRT-8601-MinMaxCalibration\nx: 3c010a14\na: 3c010a14\nb: 3c010a14\n")


def _seven_images(bench: Bench, _: Cli) -> None:
    plain(bench)
    for path in sorted((bench / "images").glob("*/*.png"))[7:]:
        path.unlink()


def _recovered(bench: Bench, _: Cli) -> None:
    """A calibration that was recovered for the target tensorrt."""
    bench.take("net.onnx", "calibration")
    table = CalibrationTable.load(bench / "calibration/calibration.json")
    prepared = open_model(bench / "net.onnx", {}, Silent())
    dataset, _ = open_data(prepared.model, DataRequest("random:4"), Silent())
    settings = RecoverSettings(("round",), TARGETS["tensorrt"], 1)
    found = recovered_model.recover(prepared, dataset, table, settings, Silent())
    save_recovery(bench / "calibration/recovered", found, prepared, table, TARGETS["tensorrt"])


EXAMPLES = {
    DegradationCode.ASSUMED_PREPROCESS: Example(
        lambda b, _: plain(b), args("calibrate --data images --threads 1"), 1, r"stretch to 8x8.*--preprocess"
    ),
    DegradationCode.UNREADABLE_SAMPLES: Example(_unreadable, CALIBRATE, 1, r"0/x\.png: is not an image"),
    DegradationCode.LOSSY_DECODE: Example(_transparent, CALIBRATE, 1, r"transparency.*2/ghost\.png"),
    DegradationCode.DUPLICATE_SAMPLES: Example(_duplicate, CALIBRATE, 1, r"same content.*2/again\.png"),
    DegradationCode.OVERLAP: Example(
        lambda b, _: b.take("engines", "images", "unit.toml"),
        args("compare --data images --preprocess unit.toml --latency-seconds 0"),
        12,
        r"12 of 12 evaluation samples were also used for calibration.*0/0\.png",
    ),
    DegradationCode.UNLABELLED_SAMPLES: Example(
        _one_label, (*COMPARE, "--labels", "labels.csv"), 11, r"no label.*0/4\.png"
    ),
    DegradationCode.ASSUMED_LABELS: Example(
        _named_classes, CALIBRATE, 4, r"4 sorted names while the model has 7 classes.*--labels"
    ),
    DegradationCode.RANDOM_DATA: Example(
        lambda b, _: plain(b), args("calibrate --data random:4"), 4, r"4 samples of random numbers"
    ),
    DegradationCode.PADDED_BATCH: Example(
        lambda b, _: plain(b, tiny_cnn(batch=5)), CALIBRATE, 3, r"last batch of 5 was filled with 3"
    ),
    DegradationCode.NOT_SIMPLIFIED: Example(_needs_pixels, CALIBRATE, 1, r"could not be verified on random samples"),
    DegradationCode.NON_FINITE_VALUES: Example(_log_of_zero, CALIBRATE, 1, r"NaN or infinite.*\(z\)"),
    DegradationCode.ABSENT_TENSORS: Example(
        _brightest_pixels, CALIBRATE, 1, r"no values in some samples, in up to 3 of them \(bright\)"
    ),
    DegradationCode.METHOD_FALLBACK: Example(
        lambda b, _: plain(b), (*CALIBRATE, "--method", "percentile"), 6, r"percentile has no meaning.*min-max was used"
    ),
    DegradationCode.UNVERIFIED_CACHE: Example(
        lambda b, _: b.write("old.calib", "TRT-8601-MinMaxCalibration\nx: 3c010a14\n"),
        args("convert-cache old.calib --to table"),
        1,
        r"no old\.calib\.json beside it.*\(old\.calib\)",
    ),
    DegradationCode.UNMATCHED_RANGES: Example(
        _foreign_cache, args("convert-cache old.calib --model net.onnx --to table"), 2, r"model has not.*\(a, b\)"
    ),
    DegradationCode.NOT_QUANTIZED: Example(_dead_branch, (*BUILD, "int8"), 1, r"no range.*dead_conv"),
    DegradationCode.PRECISION_NOT_PROVED: Example(
        _quantized, args("build --model net.onnx --precisions fp32"), 1, r"requested fp32, proved int8"
    ),
    DegradationCode.SATURATED_WEIGHTS: Example(
        _huge_weight, args("build --model net.onnx --precisions fp16"), 1, r"65504.*clipped.*\(w2\)"
    ),
    DegradationCode.RECOVERY_UNUSED: Example(
        _recovered, (*BUILD, "int8", "--target", "onnxruntime"), 1, r"the recovered model was not used.*target tensorrt"
    ),
    DegradationCode.RECOVERY_NOT_RUN: Example(
        _seven_images, (*CALIBRATE, "--recover", "round"), 1, r"no recovery step was run: 7 different samples.*8"
    ),
    DegradationCode.REFERENCE_SCORES_NOTHING: Example(
        _labels_of_another_order,
        (*COMPARE, "--labels", "labels.csv"),
        12,
        r"fp32, the reference, has top1 0 % of 12 samples",
    ),
    DegradationCode.ENGINE_FAILED: Example(
        _fragile_engine, COMPARE, 1, r"int8\S* failed at one of the samples '0/3\.png' to .*after 0 samples.*left out"
    ),
    DegradationCode.OVERFLOW_NOT_MEASURED: Example(
        lambda b, _: b.take("net.onnx"),
        args("build --model net.onnx --backend onnxruntime-cuda --precisions fp16"),  # its builder needs no GPU
        6,
        r"FP16 without knowing whether they overflow: there is no calibration table",
    ),
}


ELSEWHERE = {
    DegradationCode.BATCH_DISAGREES: "engines/test_tensorrt_loading.py",
    DegradationCode.CACHE_REJECTED: "trt10/test_calibrator_cache.py",
    DegradationCode.DROPPED_SAMPLES: "trt10/test_calibrators.py",
}
"""Codes that come about with TensorRT alone, in a build or a run, with the tests of them."""


def test_every_code_is_here() -> None:
    assert sorted([*EXAMPLES, *ELSEWHERE]) == sorted(DegradationCode)
    for code, path in ELSEWHERE.items():
        assert f"DegradationCode.{code.name}" in (ROOT / "tests" / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("code", EXAMPLES, ids=str)
def test_reported(code: DegradationCode, bench: Bench, cli: Cli) -> None:
    """On stderr, even when quiet, and counted in what is written."""
    example = EXAMPLES[code]
    example.prepare(bench, cli)
    answer = cli(*example.arguments, "-o", "out", "--quiet")
    assert answer.code == 0, answer
    lines = [line for line in answer.err.splitlines() if line.startswith(f"warning: {code} x")]
    assert any(re.search(example.says, line) for line in lines), answer.err
    found = [
        degradation
        for path in (bench / "out").rglob("*.json")
        for degradation in json.loads(path.read_text()).get("degradations", [])  # a provenance file has none
        if degradation["code"] == code
    ]
    assert example.count in [degradation["count"] for degradation in found]


@pytest.mark.parametrize("code", DegradationCode, ids=str)
def test_the_gate_refuses_it_unless_allowed(code: DegradationCode, bench: Bench, cli: Cli) -> None:
    bench.take("comparison")
    degradation = {"code": code, "message": "something was lost", "count": 7, "subjects": ["a"]}
    bench.edit_json("comparison/comparison.json", lambda d: d.update(degradations=[degradation]))
    bench.write("no.toml", PASSING.replace('"method-fallback"', ""))
    bench.write("yes.toml", PASSING.replace("method-fallback", code))
    refused = cli("gate", "--policy", "no.toml")
    assert refused.code == ExitCode.GATE_FAILED
    assert f"degradation.{code}" in refused.out and "something was lost (x7)" in refused.out
    assert f'allow = ["{code}"]' in refused.out.replace("\n              ", " ")
    allowed = cli("gate", "--policy", "yes.toml")
    assert allowed.code == 0
    assert "allowed by the policy" in allowed.out


def test_a_corrupt_image_fails_the_default_gate(bench: Bench, cli: Cli) -> None:
    """From the image to the verdict, through the whole chain."""
    bench.take("net.onnx", "images", "eval")
    bench.recipe(gate='policy = "quantlab:numerics"')
    bench.write("eval/0/broken.png", b"\x89PNG\r\n\x1a\nbroken")
    answer = cli("run")
    assert answer.code == ExitCode.GATE_FAILED
    assert "warning: unreadable-samples x1" in answer.err
    assert re.search(r"FAIL +degradation\.unreadable-samples", answer.out)
    again = cli("run")
    assert again.code == ExitCode.GATE_FAILED, "the cached comparison forgot it"
    assert "cached compare" in again.err and "warning: unreadable-samples x1" in again.err
