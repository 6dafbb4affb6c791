"""Calibration caches, and other files with ranges, that cannot be converted."""

from __future__ import annotations

import numpy as np
import onnx
from bad_case import Case, Prepare, args, nothing
from cli_bench import Bench, tiny_cnn

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE

CONVERT = args("convert-cache old.calib -o new.calib")
TO_QDQ = args("convert-cache old.calib --model net.onnx -o net.qdq.onnx")
GOOD = "TRT-8601-EntropyCalibration2\nx: 3c010a14\nr1: 3c010a14\n"


def cache(content: str | bytes = GOOD, name: str = "old.calib") -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("net.onnx")
        bench.write(name, content)

    return prepare


def with_output(bench: Bench) -> None:
    cache()(bench)
    bench.write("new.calib", "mine")


def with_provenance(bench: Bench) -> None:
    """A cache that was changed after it was written."""
    bench.take("net.onnx", "calibration")
    bench.write("old.calib", GOOD)
    bench.write(
        "old.calib.json",
        '{"schema": "quantlab.cache-provenance/1", "quantlab": "0", "cache": "old.calib", "cache_sha256": "'
        + "c" * 64
        + '", "source": "observed", "model": "m", "model_sha256": "", "table_sha256": "", "data_sha256": "", '
        '"preprocess_sha256": "", "method": "mse", "algorithm": "A", "tensorrt": "8.6.1", "tensors": 2}',
    )


def other_model(bench: Bench) -> None:
    bench.take("calibration")
    bench.model(tiny_cnn(classes=5))


def quantized(bench: Bench) -> None:
    bench.take("net.onnx", "calibration", "engines")


def huge(bench: Bench) -> None:
    path = bench.write("old.calib", GOOD)
    with path.open("r+b") as file:
        file.truncate(65 * 2**20)


def folder(bench: Bench) -> None:
    (bench / "old.calib").mkdir()


def unwritable(bench: Bench) -> None:
    cache()(bench)
    bench.write("in-the-way", "a file")


def two_scales(bench: Bench) -> None:
    """A Q/DQ model whose first activation has a zero-point."""
    bench.take("net.onnx", "calibration")
    proto = onnx.load(bench / "calibration/net.qdq.onnx")
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == "x":
            for tensor in proto.graph.initializer:
                if tensor.name == node.input[2]:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.int8), tensor.name))
    bench.model(proto, "odd.onnx")


CACHES = (
    Case("cache missing", nothing, CONVERT, BAD, (r"old\.calib does not exist",)),
    Case(
        "cache missing, near name",
        cache(name="odl.calib"),
        CONVERT,
        BAD,
        (r"old\.calib does not exist", r"did you mean odl\.calib\?"),
    ),
    Case("cache empty", cache(""), CONVERT, BAD, (r"old\.calib is empty", r"tensorrt-cache, table, qdq")),
    Case("cache is a folder", folder, CONVERT, BAD, (r"old\.calib is a folder",)),
    Case("cache without tensors", cache("TRT-8601-A\n"), CONVERT, BAD, (r"holds no scale",)),
    Case("cache without a header", cache("x: 1\ny: 2\n"), CONVERT, BAD, (r"has no header", r"TensorRT 4 and older")),
    Case("cache of Windows", cache(GOOD.replace("\n", "\r\n")), CONVERT, BAD, (r"Windows line ends", r"dos2unix")),
    Case("cache with a BOM", cache("\ufeff" + GOOD), CONVERT, BAD, (r"byte order mark",)),
    Case("cache with a bad line", cache(GOOD + "y=1\n"), CONVERT, BAD, (r"line 4 is malformed", r"'y=1'")),
    Case("cache with NaN", cache(GOOD + "y: 7fc00000\n"), CONVERT, BAD, (r"line 4: scale of 'y' is unusable", r"nan")),
    Case("cache repeats a tensor", cache(GOOD + "x: 1\n"), CONVERT, BAD, (r"line 4 repeats tensor 'x'", r"line 2")),
    Case("cache is no text", cache(GOOD.encode() + b"\xff: 1\n"), CONVERT, BAD, (r"not UTF-8",)),
    Case("cache is huge", huge, CONVERT, BAD, (r"too large", r"at most 67,108,864 bytes")),
    Case("cache is a picture", cache(b"\x89PNG\r\n\x1a\n\0\0\0"), CONVERT, BAD, (r"holds no ranges", r"a PNG image")),
    Case("cache is an engine", cache(b"ptrt\0\0\0\0"), CONVERT, BAD, (r"holds no ranges", r"a TensorRT engine")),
    Case("cache is unknown bytes", cache(b"\x07\0\0\0\0" * 9), CONVERT, BAD, (r"not a calibration table",)),
    Case(
        "cache was changed", with_provenance, CONVERT, BAD, (r"not the one that old\.calib\.json", r"sha256 cccccccc")
    ),
    Case(
        "ranges from a result",
        quantized,
        args("convert-cache engines/onnxruntime-fp32.onnx.engine.json -o new.calib"),
        BAD,
        (r"holds no ranges", r"quantlab\.engine"),
    ),
    Case(
        "ranges from a float model",
        cache(),
        args("convert-cache net.onnx -o new.calib"),
        BAD,
        (r"quantizes no activation",),
    ),
    Case(
        "ranges from a model with zero-points",
        two_scales,
        args("convert-cache odd.onnx -o new.calib"),
        BAD,
        (r"tensor 'x' is not quantized to symmetric INT8", r"zero-point 3", r"--target tensorrt"),
    ),
    Case(
        "nothing in common",
        cache(GOOD.replace("x", "a").replace("r1", "b")),
        TO_QDQ,
        BAD,
        (r"no tensor in common", r"a, b"),
    ),
    Case(
        "conversion of another model's table",
        other_model,
        args("convert-cache calibration/calibration.json --model net.onnx -o net.qdq.onnx"),
        BAD,
        (r"made from another model", r"sha256"),
    ),
    Case("Q/DQ without a model", cache(), args("convert-cache old.calib -o net.qdq.onnx"), USAGE, (r"--model FILE",)),
    Case(
        "model of a conversion missing",
        cache(),
        (*TO_QDQ[:3], "none.onnx", *TO_QDQ[4:]),
        BAD,
        (r"none\.onnx does not exist",),
    ),
    Case("conversion without -o", cache(), args("convert-cache old.calib"), USAGE, (r"Missing option.*--out",)),
    Case(
        "conversion to nothing known",
        cache(),
        args("convert-cache old.calib -o new"),
        USAGE,
        (r"does not say", r"--to"),
    ),
    Case(
        "conversion to an unknown kind",
        cache(),
        (*CONVERT, "--to", "tabel"),
        USAGE,
        (r"no kind of file 'tabel'", r"'table'"),
    ),
    Case("conversion exists", with_output, CONVERT, USAGE, (r"new\.calib is there already", r"--force")),
    Case(
        "conversion onto the input",
        cache(),
        args("convert-cache old.calib -o ./old.calib --force"),
        USAGE,
        (r"is the input",),
    ),
    Case(
        "folder of the conversion is a file",
        unwritable,
        args("convert-cache old.calib -o in-the-way/new.calib"),
        USAGE,
        (r"cannot write", r"in-the-way is a file"),
    ),
    Case(
        "unknown algorithm",
        cache(),
        (*CONVERT, "--algorithm", "MinMax"),
        USAGE,
        (r"no calibration algorithm 'MinMax'",),
    ),
    Case(
        "version is no version",
        cache(),
        (*CONVERT, "--tensorrt", "ten"),
        BAD,
        (r"not a TensorRT version", r"10\.16\.0"),
    ),
    Case(
        "version without calibrators",
        cache(),
        (*CONVERT, "--tensorrt", "11.1.0"),
        USAGE,
        (r"no calibration caches", r"--model"),
    ),
    Case("header for a model", cache(), (*TO_QDQ, "--tensorrt", "8.6.1"), USAGE, (r"--tensorrt is for the header",)),
    Case("method of a cache", cache(), (*CONVERT, "--method", "mse"), USAGE, (r"--method chooses.*table",)),
    Case("target of a cache", cache(), (*CONVERT, "--target", "onnxruntime"), USAGE, (r"is for a Q/DQ model",)),
    Case("diff and lint", cache(), args("inspect old.calib --lint --diff old.calib"), USAGE, (r"two questions",)),
    Case(
        "diff with a missing file",
        cache(),
        args("inspect old.calib --diff none.calib"),
        BAD,
        (r"none\.calib does not",),
    ),
    Case(
        "diff with a float model",
        cache(),
        args("inspect old.calib --diff net.onnx"),
        BAD,
        (r"quantizes no activation",),
    ),
    Case(
        "ranges for another target",
        cache(),
        (*TO_QDQ, "--target", "onnxruntime"),
        USAGE,
        (r"no imported range of tensor '\w+' for uint8-affine",),
    ),
)
