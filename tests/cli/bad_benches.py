"""Benches that cannot be made: flags, engines, saved benches, files of trtexec."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bad_case import Case, Prepare, args, nothing
from cli_bench import Bench, tiny_cnn

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE
NONE = ExitCode.UNAVAILABLE

BENCH = args("bench --threads 1 --seconds 0.01 --query-seconds 0.01")
INT8 = "engines/onnxruntime-int8-mse.onnx"
ROW = (
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"),
    *("h2dMs", "computeMs", "d2hMs", "latencyMs"),
)


def engines(*steps: Prepare) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("net.onnx", "engines", "eval", "calibration", "unit.toml")
        for step in steps:
            step(bench)

    return prepare


def sidecars(change: Callable[[dict[str, Any]], object], only: str = "") -> Prepare:
    def prepare(bench: Bench) -> None:
        for path in (bench / "engines").glob(f"*{only}.onnx.engine.json"):
            bench.edit_json(f"engines/{path.name}", change)

    return prepare


def times(text: str) -> Prepare:
    return lambda bench: bench.write("times.json", text)


def other_model(bench: Bench) -> None:
    bench.model(tiny_cnn(classes=3), "other.onnx")


QUERY = json.dumps([dict.fromkeys(ROW, 0.0) | {"computeMs": -1.0}])

BENCHES = (
    Case("bench without engines", nothing, BENCH, USAGE, (r"engine engines does not exist", r"quantlab build")),
    Case("bench of a missing file", engines(), (*BENCH, "gone.onnx"), USAGE, (r"engine gone\.onnx does not exist",)),
    Case("bench of a model", engines(), (*BENCH, "net.onnx"), BAD, (r"net\.onnx has no sidecar", r"quantlab build")),
    Case("bench with batch 0", engines(), (*BENCH, "--batch", "0"), USAGE, (r"--batch", r"'0'", r"1,8,32")),
    Case("bench with a huge batch", engines(), (*BENCH, "--batch", "65537"), USAGE, (r"'65537'", r"1 to 65536")),
    Case("bench with batch words", engines(), (*BENCH, "--batch", "1,x"), USAGE, (r"--batch", r"'1,x'")),
    Case("bench with an empty list", engines(), (*BENCH, "--streams", "1,,2"), USAGE, (r"--streams", r"'1,,2'")),
    Case("bench threads -1", engines(), args("bench --threads -1"), USAGE, (r"--threads is malformed", r"'-1'")),
    Case("bench threads absurd", engines(), args("bench --threads 9999"), USAGE, (r"--threads", r"9999", r"at most")),
    Case("bench seconds NaN", engines(), args("bench --seconds nan"), USAGE, (r"--seconds", r"nan", r"0 to 86400")),
    Case(
        "bench of nothing",
        engines(),
        args("bench --seconds 0 --query-seconds 0"),
        USAGE,
        (r"nothing is left to measure",),
    ),
    Case("bench in no process", engines(), (*BENCH, "--processes", "0"), USAGE, (r"--processes", r"0 is not in")),
    Case(
        "bench processes without timing",
        engines(),
        args("bench --seconds 0 --processes 2"),
        USAGE,
        (r"--processes repeats the interleaved timing",),
    ),
    Case(
        "bench of one build",
        engines(),
        (*BENCH, "--rebuilds", "1", "--model", "net.onnx"),
        USAGE,
        (r"one build cannot be compared", r"2 or more"),
    ),
    Case("bench model without rebuilds", engines(), (*BENCH, "--model", "x"), USAGE, (r"--model says", r"--rebuilds")),
    Case(
        "bench rebuilds of another model",
        engines(other_model),
        (*BENCH, "--rebuilds", "2", "--model", "other.onnx"),
        BAD,
        (r"built from another model than other\.onnx", r"--model"),
    ),
    Case(
        "bench rebuilds without the table",
        engines(),
        (*BENCH, "--rebuilds", "2", "--model", "net.onnx", INT8),
        USAGE,
        (r"was built with a calibration table", r"--table"),
    ),
    Case(
        "bench allows a mismatch of nothing",
        engines(),
        (*BENCH, "--allow-env-mismatch"),
        USAGE,
        (r"--allow-env-mismatch", r"--against FILE"),
    ),
    Case("bench against nothing", engines(), (*BENCH, "--against", "gone.json"), BAD, (r"gone\.json does not exist",)),
    Case(
        "bench against a comparison",
        engines(lambda bench: bench.write("c.json", '{"schema": "quantlab.comparison/1"}')),
        (*BENCH, "--against", "c.json"),
        BAD,
        (r"another schema", r"quantlab\.bench/1"),
    ),
    Case(
        "bench unknown reference",
        engines(),
        (*BENCH, "--reference", "onnxruntime-fp23"),
        USAGE,
        (r"no engine is named 'onnxruntime-fp23'", r"did you mean 'onnxruntime-fp32'"),
    ),
    Case(
        "bench of a batch that does not fit",
        engines(sidecars(lambda sidecar: sidecar.update(fixed_batch=2))),
        (*BENCH, "--batch", "2,4"),
        USAGE,
        (r"takes batches of 2 alone", r"--batch 4", r"expected: --batch 2"),
    ),
    Case(
        "bench of engines with other inputs",
        engines(sidecars(lambda sidecar: sidecar["inputs"][0].update(name="z"), "int8-mse")),
        BENCH,
        BAD,
        (r"takes other inputs than", r"one model together"),
    ),
    Case(
        "bench of one engine twice",
        engines(lambda bench: _copy(bench)),
        (*BENCH, INT8, "again/onnxruntime-int8-mse.onnx"),
        BAD,
        (r"two engines are named onnxruntime-int8-mse", r"two runs"),
    ),
    Case(
        "bench shapes of no input",
        engines(),
        (*BENCH, "--shapes", "q:1x3x8x8"),
        USAGE,
        (r"--shapes names no input: 'q'", r"expected: x"),
    ),
    Case(
        "bench shapes that do not fit",
        engines(),
        (*BENCH, "--shapes", "x:1x3x9x9"),
        USAGE,
        (r"--shapes does not fit input 'x'", r"1x3x9x9", r"\(3, 8, 8\)"),
    ),
    Case(
        "bench shapes with data",
        engines(),
        (*BENCH, "--shapes", "x:1x3x8x8", "--data", "eval"),
        USAGE,
        (r"--shapes is for random numbers",),
    ),
    Case(
        "bench preprocess without data",
        engines(),
        (*BENCH, "--preprocess", "unit.toml"),
        USAGE,
        (r"--preprocess is about samples", r"--data"),
    ),
    Case(
        "bench with another preprocessing",
        engines(lambda bench: bench.write("other.toml", "scale = 255\nmean = [0.5, 0.5, 0.5]\n")),
        (*BENCH, "--data", "eval", "--preprocess", "other.toml"),
        BAD,
        (r"was calibrated with another preprocessing", r"--preprocess"),
    ),
    Case(
        "bench end to end without data",
        engines(),
        (*BENCH, "--end-to-end"),
        USAGE,
        (r"--end-to-end times reading and preprocessing", r"--data too"),
    ),
    Case(
        "bench end to end of random data",
        engines(sidecars(lambda sidecar: sidecar.update(preprocess_sha256=None))),
        (*BENCH, "--end-to-end", "--data", "random:4"),
        USAGE,
        (r"random numbers have none", r"--data random:4", r"--data with files"),
    ),
    Case(
        "bench end to end without time",
        engines(),
        args("bench --seconds 0 --end-to-end --data eval --preprocess unit.toml"),
        USAGE,
        (r"--end-to-end takes its time from --seconds",),
    ),
    Case(
        "bench end to end of an unreadable sample",
        engines(lambda bench: bench.write("eval/1/4.png", b"no image")),
        (*BENCH, "--end-to-end", "--data", "eval", "--preprocess", "unit.toml"),
        BAD,
        (r"sample '1/4\.png' of eval cannot be read", r"repair it"),
    ),
    Case(
        "bench plugin without TensorRT", engines(), (*BENCH, "--plugin", "x.so"), USAGE, (r"--plugin is for engines",)
    ),
    Case("bench of empty times", times(""), (*BENCH, "times.json"), BAD, (r"times\.json is empty", r"--exportTimes")),
    Case("bench of no query", times("[]"), (*BENCH, "times.json"), BAD, (r"holds no query",)),
    Case("bench of cut times", times(QUERY[:-9]), (*BENCH, "times.json"), BAD, (r"damaged or cut off", r"trtexec")),
    Case("bench of negative times", times(QUERY), (*BENCH, "times.json"), BAD, (r"computeMs of query 0 is negative",)),
    Case(
        "bench of other JSON",
        times('{"schema": "quantlab.bench/1"}'),
        (*BENCH, "times.json"),
        BAD,
        (r"is no file of trtexec", r"--exportTimes"),
    ),
    Case(
        "bench output in the way",
        engines(lambda bench: bench.write("bench", "mine")),
        BENCH,
        USAGE,
        (r"bench", r"folder|file is in the way"),
    ),
)


def _copy(bench: Bench) -> None:
    for path in (bench / "engines").glob("onnxruntime-int8*"):
        bench.write(f"again/{path.name}", path.read_bytes())
