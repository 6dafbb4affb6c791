"""Models that cannot be used."""

from __future__ import annotations

import numpy as np
import onnx
from bad_case import Case, Prepare, args, both, nothing
from cli_bench import SIZE, Bench, features, graph_model, tiny_cnn, value, weight
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345678\n"


def _no_inputs() -> ModelProto:
    return graph_model([helper.make_node("Relu", ["w"], ["y"])], [], [value("y", 2, 2)], [weight("w", 2, 2)])


def _nan_weights() -> ModelProto:
    proto = tiny_cnn()
    broken = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    broken[0, 0] = np.nan
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(broken, "w2"))
    return proto


def _escaping(bench: Bench) -> None:
    bench.images()
    proto = tiny_cnn()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "../../secret.bin"), ("offset", "0"), ("length", str(8 * 3 * 9 * 4))):
        tensor.external_data.add(key=key, value=text)
    bench.model(proto)


def _missing_data(bench: Bench) -> None:
    bench.images()
    onnx.save(tiny_cnn(), bench / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    (bench / "net.data").unlink()


def _with_model(proto: ModelProto) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.images()
        bench.model(proto)

    return prepare


def _with_bytes(content: str | bytes) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.images()
        bench.write("net.onnx", content)

    return prepare


def _quantized(bench: Bench) -> None:
    bench.images()
    bench.write("net.onnx", (bench.shop / "calibration" / "net.qdq.onnx").read_bytes())


def _two(bench: Bench) -> None:
    bench.images()
    bench.model(tiny_cnn(), "a.onnx")
    bench.model(tiny_cnn(), "b.onnx")


def _opset(version: int) -> ModelProto:
    proto = tiny_cnn()
    proto.opset_import[0].version = version
    return proto


def _ir() -> ModelProto:
    proto = tiny_cnn()
    proto.ir_version = 99
    return proto


def _custom_op() -> ModelProto:
    proto = tiny_cnn()
    proto.graph.node[1].op_type = "MagicRelu"
    proto.graph.node[1].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    return proto


def _no_layers() -> ModelProto:
    return graph_model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")], [value("x", "n", 3, 8, 8)], [value("y", "n", 3, 8, 8)]
    )


def _cyclic() -> ModelProto:
    return graph_model(
        [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"], name="two")],
        [value("x", "n", 3, 8, 8)],
        [value("b", "n", 3, 8, 8)],
    )


def _strings() -> ModelProto:
    return graph_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", "n", kind=TensorProto.STRING)],
        [value("y", "n", kind=TensorProto.STRING)],
    )


def _scalar() -> ModelProto:
    return graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        [value("x", 4)],
        [value("y", 3)],
        [weight("w", 4, 3)],
    )


def _model_folder(bench: Bench) -> None:
    bench.images()
    bench.model(tiny_cnn(), "nets/net.onnx")


CALIBRATE = args("calibrate --model net.onnx --data images --threads 1")

MODELS = (
    Case("model missing", lambda b: b.images(), CALIBRATE, BAD, (r"model net\.onnx does not exist", r"check the path")),
    Case(
        "model near-miss",
        both(lambda b: b.images(), lambda b: b.model(tiny_cnn(), "nets.onnx")),
        CALIBRATE,
        BAD,
        (r"model net\.onnx does not exist", r"did you mean nets\.onnx"),
    ),
    Case(
        "model is a folder",
        _model_folder,
        args("calibrate --model nets --data images"),
        BAD,
        (r"model nets is a folder", r"expected: an \.onnx file", r"did you mean nets/net\.onnx"),
    ),
    Case("model is empty", _with_bytes(b""), CALIBRATE, BAD, (r"model net\.onnx is empty", r"0 bytes", r"export it")),
    Case("model is text", _with_bytes("hello world\n"), CALIBRATE, BAD, (r"net\.onnx is not an ONNX", r"got: +\S+")),
    Case("model is a PNG", _with_bytes(PNG), CALIBRATE, BAD, (r"net\.onnx is not an ONNX model", r"PNG")),
    Case(
        "model is an LFS pointer",
        _with_bytes(POINTER),
        CALIBRATE,
        BAD,
        (r"net\.onnx is not an ONNX model", r"Git LFS", r"git lfs pull"),
    ),
    Case(
        "model is HTML",
        _with_bytes("<!DOCTYPE html><html><body>404</body></html>"),
        CALIBRATE,
        BAD,
        (r"net\.onnx is not an ONNX model", r"HTML"),
    ),
    Case(
        "model truncated",
        _with_bytes(tiny_cnn().SerializeToString()[:-200]),
        CALIBRATE,
        BAD,
        (r"net\.onnx is truncated or damaged", r"bytes", r"export it again"),
    ),
    Case("model without inputs", _with_model(_no_inputs()), CALIBRATE, BAD, (r"net\.onnx has no inputs", r"expected")),
    Case("model with NaN weights", _with_model(_nan_weights()), CALIBRATE, BAD, (r"net\.onnx", r"'w2'", r"(?i)nan")),
    Case("model with Q/DQ", _quantized, CALIBRATE, BAD, (r"already", r"Q/DQ|quantiz", r"FP32|float")),
    Case(
        "two models",
        _two,
        args("calibrate --data images"),
        USAGE,
        (r"no model was named", r"2 \.onnx files.*a\.onnx, b\.onnx", r"--model FILE"),
    ),
    Case(
        "no model",
        lambda b: b.images(),
        args("calibrate --data images"),
        USAGE,
        (r"no model was named", r"0 \.onnx files", r"--model FILE"),
    ),
    Case("opset too new", _with_model(_opset(99)), CALIBRATE, BAD, (r"too new", r"opset 99", r"lower opset_version")),
    Case(
        "IR version too new", _with_model(_ir()), CALIBRATE, BAD, (r"ir_version 99", r"14", r"export the model again")
    ),
    Case("external data escape", _escaping, CALIBRATE, BAD, (r"'w1'", r"\.\./\.\./secret\.bin", r"folder")),
    Case("external data missing", _missing_data, CALIBRATE, BAD, (r"net\.data", r"try:")),
    Case("custom operator", _with_model(_custom_op()), CALIBRATE, BAD, (r"MagicRelu",)),
    Case(
        "cyclic graph",
        _with_model(_cyclic()),
        CALIBRATE,
        BAD,
        (r"net\.onnx is not a valid ONNX model", r"sorted", r"name: one"),
    ),
    Case(
        "nothing to quantize",
        _with_model(_no_layers()),
        CALIBRATE,
        BAD,
        (
            r"no layer could be quantized",
            r"Conv",
        ),
    ),
    Case("string input", _with_model(_strings()), CALIBRATE, BAD, (r"'x'", r"str")),
    Case("input without a batch axis", _with_model(_scalar()), CALIBRATE, BAD, (r"'x'", r"images cannot be fed")),
    Case(
        "features model given images",
        _with_model(features()),
        CALIBRATE,
        BAD,
        (r"images cannot be fed to the input 'x'", r"expected: tensors", r"\.npz"),
    ),
    Case(
        "unknown height",
        _with_model(tiny_cnn(size="side")),
        CALIBRATE,
        BAD,
        (r"shape of input 'x' is not known", r"side", r"--shapes x:1x3xNxN"),
    ),
    Case(
        "data as model",
        lambda b: b.images(),
        args("calibrate --model images/0/0.png --data images"),
        BAD,
        (r"images/0/0\.png is not an ONNX model", r"PNG"),
    ),
    Case(
        "build: model missing",
        nothing,
        args("build --model gone.onnx --precisions fp32"),
        BAD,
        (r"model gone\.onnx does not exist", r"try:"),
    ),
    Case(
        "build: Q/DQ model as fp32",
        _quantized,
        args("build --model net.onnx --precisions fp32"),
        ExitCode.OK,
        (r"precision-not-proved x1", r"requested fp32, proved int8"),
        ("engines", "engines/*"),
    ),
    Case("inspect: missing", nothing, args("inspect gone.onnx"), BAD, (r"gone\.onnx does not exist",)),
    Case("inspect: folder", lambda b: b.images(), args("inspect images"), BAD, (r"images is a folder", r"expected")),
    Case(
        "inspect: random bytes",
        lambda b: b.write("x.bin", np.random.default_rng(3).bytes(4096)),
        args("inspect x.bin"),
        BAD,
        (r"x\.bin", r"first bytes "),
    ),
    Case("inspect: empty", lambda b: b.write("x.bin", b""), args("inspect x.bin"), BAD, (r"x\.bin is empty",)),
    Case(
        "inspect: cache",
        lambda b: b.write("x.calib", "TRT-100\nfoo\n"),
        args("inspect x.calib"),
        BAD,
        (r"x\.calib is not a TensorRT calibration cache", r"expected: first line"),
    ),
    Case(
        "inspect: cache with NaN",
        lambda b: b.write("x.calib", "TRT-101600-EntropyCalibration2\nx: 7fc00000\n"),
        args("inspect x.calib"),
        BAD,
        (r"x\.calib line 2", r"'x'", r"nan", r"finite"),
    ),
    Case(
        "inspect: sidecar without engine",
        both(lambda b: b.take("engines"), lambda b: (b / "engines/onnxruntime-fp32.onnx").unlink()),
        args("inspect engines/onnxruntime-fp32.onnx.engine.json"),
        BAD,
        (r"onnxruntime-fp32\.onnx", r"No such file", r"build it again"),
    ),
    Case(
        "inspect: array file",
        lambda b: b.arrays("data.npz", {"x": np.zeros(3)}),
        args("inspect data.npz"),
        BAD,
        (r"data\.npz is not an ONNX model", r"NumPy \.npz", r"torch\.onnx\.export"),
    ),
    Case("inspect: recipe", lambda b: b.recipe(), args("inspect quantlab.toml"), BAD, (r"quantlab\.toml",)),
    Case(
        "inspect: list as JSON",
        lambda b: b.write("x.json", "[1, 2]"),
        args("inspect x.json"),
        BAD,
        (r"x\.json says no schema", r"quantlab\.comparison/1"),
    ),
    Case(
        "inspect: deep JSON",
        lambda b: b.write("x.json", "[" * 100_000),
        args("inspect x.json"),
        BAD,
        (r"x\.json is not valid JSON",),
    ),
    Case(
        "shape without size",
        _with_model(tiny_cnn()),
        (*CALIBRATE, "--shapes", "x"),
        USAGE,
        (r"--shapes 'x' is malformed", r"NAME:1x3x224x224"),
    ),
    Case(
        "shape with a zero",
        _with_model(tiny_cnn()),
        (*CALIBRATE, "--shapes", "x:1x3x0x8"),
        USAGE,
        (r"malformed", r"1 or more"),
    ),
    Case(
        "shape of an unknown input",
        _with_model(tiny_cnn()),
        (*CALIBRATE, "--shapes", "xx:1x3x8x8"),
        USAGE,
        (
            r"no input 'xx'",
            r"expected: one of x",
        ),
    ),
    Case(
        "shape of a wrong rank",
        _with_model(tiny_cnn()),
        (*CALIBRATE, "--shapes", "x:1x3x8"),
        USAGE,
        (r"input 'x' contradicts", r"1x3x8\b", r"nx3x8x8|\?x3x8x8|3x8x8"),
    ),
    Case(
        "shape twice",
        _with_model(tiny_cnn()),
        (*CALIBRATE, "--shapes", "x:1x3x8x8", "--shapes", "x:2x3x8x8"),
        USAGE,
        (r"names input 'x' twice",),
    ),
    Case(
        "huge shape",
        _with_model(tiny_cnn(size="side")),
        (*CALIBRATE, "--shapes", "x:1x3x99999999x99999999"),
        BAD,
        (r"not enough memory", r"--shapes"),
    ),
    Case(
        "very long model name",
        lambda b: b.images(),
        args(f"calibrate --model {'n' * 5000}.onnx --data images"),
        BAD,
        (r"File name too long",),
    ),
    Case("lint: missing", nothing, args("inspect --lint gone.onnx"), BAD, (r"gone\.onnx does not exist",)),
    Case("lint: missing cache", nothing, args("inspect --lint gone.calib"), BAD, (r"gone\.calib does not exist",)),
    Case(
        "lint: no model",
        lambda b: b.write("x.onnx", b"\x89PNG\r\n\x1a\n"),
        args("inspect --lint x.onnx"),
        BAD,
        (r"x\.onnx", r"PNG image"),
    ),
    Case(
        "lint: TensorRT engine",
        lambda b: b.write("x.engine", b"ptrt" + bytes(600)),
        args("inspect --lint x.engine"),
        BAD,
        (r"x\.engine", r"a TensorRT engine", r"give the ONNX model that it was built from"),
    ),
    Case(
        "lint: result",
        lambda b: b.take("comparison"),
        args("inspect --lint comparison/comparison.json"),
        USAGE,
        (r"no rules for a result: comparison/comparison\.json", r"an ONNX model", r"leave --lint out"),
    ),
    Case(
        "lint: sidecar",
        lambda b: b.take("engines"),
        args("inspect --lint engines/onnxruntime-fp32.onnx.engine.json"),
        USAGE,
        (r"is an engine sidecar", r"lint onnxruntime-fp32\.onnx"),
    ),
    Case(
        "lint: target misspelt",
        lambda b: b.take("net.onnx"),
        args("inspect --lint net.onnx --target tensort"),
        USAGE,
        (r"no target 'tensort'", r"did you mean 'tensorrt'"),
    ),
    Case(
        "lint: model against a model",
        lambda b: b.take("net.onnx"),
        args("inspect --lint net.onnx --model net.onnx"),
        USAGE,
        (r"--model and --tensorrt are for calibration caches",),
    ),
    Case(
        "lint forgotten",
        lambda b: b.take("calibration"),
        args("inspect calibration/net.calib --tensorrt 10.3"),
        USAGE,
        (r"--model and --tensorrt", r"add --lint"),
    ),
    Case("very long name to inspect", nothing, args(f"inspect {'n' * 250}"), BAD, (r"nnn does not exist",)),
    Case("newline in the model's name", nothing, ("inspect", "a\nb.onnx"), BAD, (r"does not exist",)),
    Case("format string as model", nothing, ("inspect", "%s {0} %n.onnx"), BAD, (r"%s \{0\} %n\.onnx does not exist",)),
    Case("dash file", nothing, ("inspect", "./-rf"), BAD, (r"-rf does not exist",)),
    Case("name that is not UTF-8", nothing, ("inspect", "a\udcff.onnx"), BAD, (r"not UTF-8", r"rename")),
)

assert SIZE == 8  # the shapes above
