"""Truth tables and looks into layers that cannot be made: models, data and runtimes that do not fit."""

from __future__ import annotations

import numpy as np
from bad_case import Case, Prepare, args
from cli_bench import Bench, tiny_cnn

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE

QDQ = "calibration/net.qdq.onnx"
COMMON = args("--data eval --preprocess unit.toml --threads 1")
ACROSS = ("compare", QDQ, "--across", "onnxruntime", *COMMON)
LAYERS = ("compare", QDQ, "--layers", "2", *COMMON)
TABLE = args("compare --layers 2 --table calibration/calibration.json --model net.onnx")


def folder(*steps: Prepare) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("net.onnx", "calibration", "engines", "eval", "unit.toml")
        for step in steps:
            step(bench)

    return prepare


def tensors(value: float) -> Prepare:
    """Ready tensors, one value of which is another."""

    def prepare(bench: Bench) -> None:
        found = np.full((12, 3, 8, 8), 0.5, np.float32)
        found[5, 0, 0, 0] = value
        bench.arrays("x.npz", {"x": found})

    return prepare


def classes(bench: Bench) -> None:
    """A model with the same inputs and outputs by name, one of another shape."""
    bench.model(tiny_cnn(classes=3), "other.onnx")


def cut(bench: Bench) -> None:
    bench.write("cut.onnx", (bench / QDQ).read_bytes()[:900])


TRUTHS = (
    Case(
        "across a missing file",
        folder(),
        ("compare", "calibration/nte.qdq.onnx", *ACROSS[2:]),
        BAD,
        (r"nte\.qdq\.onnx does not exist", r"did you mean .*net\.qdq\.onnx"),
    ),
    Case(
        "across a damaged file",
        folder(cut),
        ("compare", "cut.onnx", *ACROSS[2:]),
        BAD,
        (r"cut\.onnx is truncated or damaged", r"900 bytes"),
    ),
    Case(
        "across a float model",
        folder(),
        ("compare", "net.onnx", *ACROSS[2:]),
        BAD,
        (r"net\.onnx holds no QuantizeLinear", r"expected: a Q/DQ model", r"--model"),
    ),
    Case(
        "across with a missing original",
        folder(),
        (*ACROSS, "--model", "nte.onnx"),
        BAD,
        (r"nte\.onnx does not exist",),
    ),
    Case(
        "across with a quantized original",
        folder(),
        (*ACROSS, "--model", QDQ),
        BAD,
        (r"holds Q/DQ nodes itself", r"floating-point model"),
    ),
    Case(
        "across with an original of another shape",
        folder(classes),
        (*ACROSS, "--model", "other.onnx"),
        BAD,
        (r"other\.onnx has other outputs", r"y \[.*,3\]", r"y \[.*,4\]", r"name the model"),
    ),
    Case(
        "across NaN",
        folder(tensors(np.nan)),
        (*ACROSS, "--data", "x.npz"),
        BAD,
        (r"sample 'x#5' has values that are not finite", r"1 of 192 values", r"remove or repair"),
    ),
    Case("across no data", folder(), (*ACROSS, "--data", "gone"), BAD, (r"there is no data at 'gone'",)),
    Case("across no samples", folder(), (*ACROSS, "--limit", "0"), USAGE, (r"limit on samples", r"1 or more")),
    Case(
        "across a folder",
        folder(),
        ("compare", "engines", *ACROSS[2:]),
        BAD,
        (r"engines", r"folder"),
    ),
    Case(
        "across with another preprocessing",
        folder(lambda bench: bench.write("gray.toml", "scale = 255\ncolor = 'gray'\n")),
        (*ACROSS, "--preprocess", "gray.toml"),
        USAGE,
        (r"channels that the input 'x' takes", r"expected: 3"),
    ),
    Case(
        "across with the output in the way",
        folder(lambda bench: bench.write("file", "mine")),
        (*ACROSS, "-o", "file"),
        USAGE,
        (r"cannot write to file", r"name another output"),
    ),
    Case(
        "layers of NaN",
        folder(tensors(np.nan)),
        (*LAYERS, "--layers", "12", "--model", "net.onnx", "--data", "x.npz"),
        BAD,
        (r"sample 'x#5' has values that are not finite",),
    ),
    Case(
        "layers of another model",
        folder(classes),
        (*LAYERS, "--model", "other.onnx"),
        BAD,
        (r"has another shape in the quantized graph", r"name the model that was quantized"),
    ),
    Case(
        "layers of another table",
        folder(lambda bench: bench.model(tiny_cnn(classes=3))),
        (*TABLE, *COMMON),
        BAD,
        (r"made from another model", r"sha256"),
    ),
    Case(
        "layers of an unknown target",
        folder(),
        (*TABLE, *COMMON, "--target", "trt"),
        USAGE,
        (r"no target 'trt'", r"tensorrt"),
    ),
    Case(
        "layers of an unknown kind",
        folder(),
        (*TABLE, *COMMON, "--kind", "fp9"),
        USAGE,
        (r"'fp9'", r"did you mean 'fp8'"),
    ),
)
