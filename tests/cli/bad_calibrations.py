"""Calibrations that cannot be: too little to choose by, nothing to measure, and tables used for what they are not."""

from __future__ import annotations

import json
import shutil

import numpy as np
from bad_case import Case, Prepare, args
from cli_bench import Bench, graph_model, tiny_cnn, value, weight
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE

CALIBRATE = args("calibrate --model net.onnx --data images --preprocess unit.toml --threads 1")
AUTO = (*CALIBRATE, "--method", "auto")
EXTREMES = (*CALIBRATE, "--method", "minmax", "--minmax-only")
TOKENS = args("calibrate --model net.onnx --data tokens.npz --threads 1")
BUILD = args("build --model net.onnx --precisions int8 --table calibration/calibration.json")
TABLE = "calibration/calibration.json"


def with_model(proto: ModelProto | None = None) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("images", "unit.toml")
        bench.model(proto or tiny_cnn())

    return prepare


def _seven(bench: Bench) -> None:
    with_model()(bench)
    for path in sorted((bench / "images").glob("*/*.png"))[7:]:
        path.unlink()


def _one_image(bench: Bench) -> None:
    """The same image under twelve names."""
    with_model()(bench)
    first, *others = sorted((bench / "images").glob("*/*.png"))
    for path in others:
        shutil.copyfile(first, path)


def _black(bench: Bench) -> None:
    with_model()(bench)
    bench.arrays("black.npz", {"x": np.zeros((12, 3, 8, 8), np.float32)})


def _classifier() -> ModelProto:
    """The index of the best class alone."""
    proto = tiny_cnn()
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["top"], name="top", axis=1, keepdims=0))
    del proto.graph.output[:]
    proto.graph.output.append(value("top", "n", kind=TensorProto.INT64))
    return proto


def _root_of_negative() -> ModelProto:
    """``sqrt(x - 2)`` of pixels from 0 to 1: NaN everywhere."""
    return graph_model(
        [
            helper.make_node("Sub", ["x", "two"], ["less"], name="less"),
            helper.make_node("Sqrt", ["less"], ["root"], name="root"),
            helper.make_node("Conv", ["root", "w"], ["y"], name="conv"),
        ],
        [value("x", "n", 3, 8, 8)],
        [value("y", "n", 16, 8, 8)],
        [weight("w", 16, 3, 1, 1), numpy_helper.from_array(np.array(2, np.float32), "two")],
    )


def _tokens(length: int | str = 5, name: str = "tokens", words: int = 20) -> Prepare:
    """A model with a vocabulary of ten words, and texts of some more."""

    def prepare(bench: Bench) -> None:
        proto = graph_model(
            [
                helper.make_node("Gather", ["words", name], ["e"], name="embedding"),
                helper.make_node("MatMul", ["e", "w"], ["y"], name="fc"),
            ],
            [value(name, "n", length, kind=TensorProto.INT64)],
            [value("y", "n", length, 16)],
            [weight("words", 10, 16), weight("w", 16, 16)],
        )
        bench.model(proto)
        bench.arrays("tokens.npz", {name: np.random.default_rng(2).integers(0, words, (12, 5))})

    return prepare


def _of_extremes(bench: Bench) -> None:
    """A table with min-max ranges and nothing else."""
    bench.take("net.onnx", "calibration")

    def strip(document: object) -> None:
        assert isinstance(document, dict)
        document["method"] = "minmax"
        for entry in document["tensors"]:
            for by_method in entry["ranges"].values():
                for method in set(by_method) - {"minmax"}:
                    del by_method[method]

    bench.edit_json(TABLE, strip)


def _of_auto(bench: Bench) -> None:
    """A table that method auto made for TensorRT."""
    bench.take("net.onnx", "calibration")

    def choose(document: object) -> None:
        assert isinstance(document, dict)
        document["method"] = "auto"
        for entry in document["tensors"]:
            by_method = entry["ranges"]["int8-symmetric"]
            by_method["auto"] = by_method["mse"] | {"picked": "mse"}

    bench.edit_json(TABLE, choose)


def _older(bench: Bench) -> None:
    bench.take("net.onnx", "calibration")
    shutil.copytree(bench / "calibration", bench / "other")
    bench.edit_json(TABLE, lambda document: document.update(schema="quantlab.calibration/1"))


def _unknown_choice(bench: Bench) -> None:
    bench.take("net.onnx", "calibration")
    text = (bench / TABLE).read_text()
    document = json.loads(text)
    document["auto"] = {"target": "tensorrt", "taken": "sweep"}
    bench.write(TABLE, json.dumps(document))


def _older_table(name: str, arguments: tuple[str, ...]) -> Case:
    says = (r"schema", r"got: +'quantlab\.calibration/1'", r"expected: .*quantlab\.calibration/2'?", r"make it again")
    return Case(f"older table: {name}", _older, arguments, BAD, says)


CALIBRATIONS = (
    Case(
        "auto: seven images", _seven, AUTO, BAD, (r"too few samples", r"7 different", r"at least 8", r"name a method")
    ),
    Case("auto: one image often", _one_image, AUTO, BAD, (r"duplicate-samples x11", r"got: +1 different samples")),
    Case(
        "auto: no float output",
        with_model(_classifier()),
        AUTO,
        BAD,
        (r"no output to measure at", r"no float output", r"name a method"),
    ),
    Case("auto misspelt", with_model(), (*CALIBRATE, "--method", "atuo"), USAGE, (r"did you mean 'auto'",)),
    *(
        Case(
            f"min-max only: {method}",
            with_model(),
            (*CALIBRATE, "--minmax-only", "--method", method),
            USAGE,
            (rf"method {method} needs more than minima and maxima", r"--method minmax"),
        )
        for method in ("mse", "entropy", "percentile", "auto")
    ),
    Case(
        "min-max only: default method",
        with_model(),
        (*CALIBRATE, "--minmax-only"),
        USAGE,
        (r"method mse needs more than minima", r"--method minmax"),
    ),
    Case(
        "min-max only: stability",
        with_model(),
        (*EXTREMES, "--stability"),
        USAGE,
        (r"--stability needs counted values",),
    ),
    Case(
        "method imported",
        with_model(),
        (*CALIBRATE, "--method", "imported"),
        USAGE,
        (r"imported is not for calibrating", r"minmax, percentile, entropy, mse, auto"),
    ),
    Case(
        "merge with images",
        with_model(),
        (*CALIBRATE, "--merge"),
        USAGE,
        (r"--merge takes no --data",),
    ),
    Case(
        "merge of one part",
        lambda b: b.take("net.onnx", "calibration"),
        args("calibrate --merge calibration --model net.onnx -o out"),
        USAGE,
        (r"nothing to merge", r"two or more"),
    ),
    *(
        Case(
            f"activation always NaN: {name}",
            with_model(_root_of_negative()),
            arguments,
            BAD,
            (r"tensor 'root' has no finite value", r"got: +2304 NaN or infinite", r"look for NaN"),
        )
        for name, arguments in (("counted", CALIBRATE), ("auto", AUTO), ("min-max only", EXTREMES))
    ),
    Case(
        "activation always NaN: which image",
        with_model(_root_of_negative()),
        CALIBRATE,
        BAD,
        (r"first on sample '0/0\.png'",),
    ),
    *(
        Case(
            f"all images black: {name}",
            _black,
            (*args("calibrate --model net.onnx --data black.npz --threads 1"), *flags),
            BAD,
            (r"duplicate-samples x11", says),
        )
        for name, flags, says in (
            ("counted", (), r"no layer could be quantized\n.*1 layers without a range"),
            ("min-max only", EXTREMES[-3:], r"no layer could be quantized\n.*1 layers without a range"),
            ("auto", AUTO[-2:], r"got: +1 different samples"),
        )
    ),
    *(
        Case(
            f"word beyond the vocabulary: {name}",
            _tokens(),
            (*TOKENS, *flags),
            BAD,
            (r"the model failed on sample 'tokens#\d+'", r"indices element out of data bounds"),
        )
        for name, flags in (("counted", ()), ("auto", AUTO[-2:]), ("min-max only", EXTREMES[-3:]))
    ),
    *(
        Case(
            f"length not known: {name}",
            _tokens("t", words=10),
            (*TOKENS, *flags),
            BAD,
            (r"shape of input 'tokens' is not known", r"dimension 1 \(t\)", r"--shapes tokens:1xN"),
        )
        for name, flags in (("counted", ()), ("auto", AUTO[-2:]), ("min-max only", EXTREMES[-3:]))
    ),
    Case(
        "input called like the samples' ids",
        _tokens(name="ids"),
        TOKENS,
        BAD,
        (r"the model failed on sample 'tokens#\d+'", r"indices element out of data bounds"),
    ),
    Case(
        "min-max table: another method",
        _of_extremes,
        (*BUILD, "--method", "mse"),
        USAGE,
        (r"no mse range of tensor '\w+'", r"expected: minmax"),
    ),
    Case(
        "min-max table: auto",
        _of_extremes,
        (*BUILD, "--method", "auto"),
        USAGE,
        (r"no auto range of tensor '\w+'", r"expected: minmax"),
    ),
    Case(
        "min-max table: converted by another method",
        _of_extremes,
        args(f"convert-cache {TABLE} --method entropy -o new.calib"),
        USAGE,
        (r"no entropy range of tensor '\w+'", r"expected: minmax"),
    ),
    Case(
        "auto for another target",
        _of_auto,
        (*BUILD, "--target", "onnxruntime"),
        USAGE,
        (r"no auto range of tensor '\w+' for uint8-affine", r"got: +minmax, percentile, entropy, mse", r"--target"),
    ),
    Case(
        "evidence of auto incomplete",
        _unknown_choice,
        BUILD,
        BAD,
        (r"calibration\.json\.auto lacks the key 'n_search'",),
    ),
    Case(
        "auto of a table without it",
        lambda b: b.take("net.onnx", "calibration"),
        (*BUILD, "--method", "auto"),
        USAGE,
        (r"no auto range of tensor '\w+'", r"expected: entropy, minmax, mse, percentile"),
    ),
    _older_table("build", BUILD),
    _older_table("report", args(f"report {TABLE}")),
    _older_table("inspect", args(f"inspect {TABLE}")),
    _older_table("diff", args(f"inspect other/net.calib --diff {TABLE}")),
    _older_table("convert", args(f"convert-cache {TABLE} -o new.calib")),
    _older_table("merge", args("calibrate --merge calibration other --model net.onnx -o out")),
    Case(
        "recipe: auto with too few images",
        lambda b: (_seven(b), b.take("eval"), b.recipe(calibrate='data = "images"\nmethod = "auto"')),
        args("run"),
        BAD,
        (r"method auto has too few samples", r"got: +7 different"),
        ("results", "results/**"),
    ),
)
