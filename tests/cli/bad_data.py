"""Data, labels and preprocessing that cannot be used."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from bad_case import Case, Prepare, args
from cli_bench import Bench, tiny_cnn, two_inputs
from numpy.typing import NDArray
from onnx import ModelProto

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE
OK = ExitCode.OK
OUTPUTS = ("calibration", "calibration/*")

CALIBRATE = args("calibrate --model net.onnx --data images --preprocess unit.toml --threads 1")


def given(*steps: Prepare, images: bool = True, proto: ModelProto | None = None) -> Prepare:
    """A folder with net.onnx, images and unit.toml, and then some steps."""

    def prepare(bench: Bench) -> None:
        bench.model(proto or tiny_cnn())
        bench.write("unit.toml", "scale = 255\n")
        if images:
            bench.images()
        for step in steps:
            step(bench)

    return prepare


def data(source: str) -> tuple[str, ...]:
    return (*args("calibrate --model net.onnx --preprocess unit.toml --threads 1 --data"), source)


def _corrupt(name: str) -> Prepare:
    return lambda bench: bench.write(f"images/1/{name}", b"\x89PNG\r\n\x1a\nnot really")


def _all_corrupt(bench: Bench) -> None:
    for path in (bench / "images").rglob("*.png"):
        path.write_bytes(b"garbage")


def _truncated_jpeg(bench: Bench) -> None:
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    image.save(bench / "images/0/whole.jpg")
    content = (bench / "images/0/whole.jpg").read_bytes()
    (bench / "images/0/whole.jpg").unlink()
    bench.write("images/0/cut.jpg", content[: len(content) // 2])


def _npz(**arrays: NDArray[Any]) -> Prepare:
    return lambda bench: bench.arrays("data.npz", arrays)


def _pickled(bench: Bench) -> None:
    np.savez(bench / "data.npz", x=np.array([{"evil": 1}], dtype=object))


def _idx(bench: Bench, cut: int) -> None:
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, 4, 8, 8)
    bench.write("t-images-idx3-ubyte", (header + bytes(4 * 64))[: -cut or None])


def _module(text: str, name: str) -> Prepare:
    return lambda bench: bench.write(f"{name}.py", text)


def _labels(text: str) -> Prepare:
    return lambda bench: bench.write("labels.csv", text)


LABELLED = (*CALIBRATE, "--labels", "labels.csv")
FLOATS = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
WITH_NAN = FLOATS.copy()
WITH_NAN[2, 0, 0, 0] = np.nan


def toml(text: str) -> Prepare:
    return given(lambda bench: bench.write("unit.toml", text))


DATA = (
    Case(
        "no --data",
        given(),
        args("calibrate --model net.onnx"),
        USAGE,
        (r"missing option '--data'", r"what are the images\?"),
    ),
    Case("empty --data", given(), data(""), BAD, (r"no data was named", r"expected")),
    Case("blank --data", given(), data("  "), BAD, (r"no data was named", r"expected")),
    Case("data missing", given(), data("gone"), BAD, (r"no data at 'gone'", r"expected: a folder", r"check the path")),
    Case("data near-miss", given(), data("imags"), BAD, (r"no data at 'imags'", r"did you mean images")),
    Case(
        "empty folder",
        given(lambda b: (b / "none").mkdir()),
        data("none"),
        BAD,
        (r"no images in folder none", r"no files", r"expected: files such as"),
    ),
    Case(
        "folder of text",
        given(lambda b: b.write("notes/a.txt", "hi")),
        data("notes"),
        BAD,
        (r"no images in folder notes", r"1 x \.txt", r"expected: files such as"),
    ),
    Case(
        "corrupt among good",
        given(_corrupt("broken.png")),
        CALIBRATE,
        OK,
        (r"warning: unreadable-samples x1", r"1 of 9 samples could not be read", r"1/broken\.png"),
        OUTPUTS,
    ),
    Case(
        "zero bytes among good",
        given(lambda b: b.write("images/0/zero.png", b"")),
        CALIBRATE,
        OK,
        (r"unreadable-samples x1", r"0/zero\.png.*0 bytes"),
        OUTPUTS,
    ),
    Case(
        "truncated JPEG among good",
        given(_truncated_jpeg),
        CALIBRATE,
        OK,
        (r"unreadable-samples x1", r"0/cut\.jpg.*(truncated|damaged)"),
        OUTPUTS,
    ),
    Case(
        "all corrupt",
        given(_all_corrupt),
        CALIBRATE,
        BAD,
        (r"none of the 8 samples of images could be read", r"not an image of a known format \(x8\)"),
    ),
    Case(
        "gray images, preprocess says gray",
        given(lambda b: b.images("gray", channels=1), lambda b: b.write("unit.toml", 'scale = 255\ncolor = "gray"\n')),
        data("gray"),
        USAGE,
        (r"channels that the input 'x' takes", r"1 \(gray\)", r"expected: 3", r"color = 'rgb'"),
    ),
    Case(
        "preprocess says five channels",
        given(proto=tiny_cnn(channels=5)),
        CALIBRATE,
        USAGE,
        (r"channels", r"expected: 5", r"npz"),
    ),
    Case(
        "size mismatch",
        given(lambda b: b.images("large", size=12)),
        data("large"),
        BAD,
        (r"sample '0/0\.png' does not fit input 'x'", r"\(3, 12, 12\)", r"expected: \(3, 8, 8\)", r"resize"),
    ),
    Case(
        "crop larger than image",
        toml("scale = 255\ncrop = 9\n"),
        CALIBRATE,
        USAGE,
        (r"does not give the shape", r"9", r"\(3, 8, 8\)", r"crop = \[8, 8\]"),
    ),
    Case(
        "labels too large",
        given(_labels("file,label\n0/0.png,7\n")),
        LABELLED,
        BAD,
        (r"'0/0\.png'", r"got: +7", r"0 to 3", r"try"),
    ),
    Case("labels negative", given(_labels("0/0.png,-1\n")), LABELLED, BAD, (r"labels\.csv", r"-1", r"whole number")),
    Case("labels fraction", given(_labels("0/0.png,1.5\n")), LABELLED, BAD, (r"labels\.csv", r"1\.5", r"whole")),
    Case(
        "labels conflict",
        given(_labels("0/0.png,1\n0/0.png,2\n")),
        LABELLED,
        BAD,
        (r"conflicting labels for '0/0\.png'", r"'1' and, at line 2, '2'", r"one label a sample"),
    ),
    Case(
        "labels of missing files",
        given(_labels("0/00.png,1\n")),
        LABELLED,
        BAD,
        (r"line 1 is about a sample that is not in images", r"'0/00\.png'", r"did you mean '0/0\.png'"),
    ),
    Case("labels empty", given(_labels("")), LABELLED, BAD, (r"labels\.csv has no labels", r"file,label")),
    Case("labels header only", given(_labels("file,label\n")), LABELLED, BAD, (r"labels\.csv has no labels",)),
    Case("labels missing", given(), LABELLED, BAD, (r"labels\.csv does not exist", r"try")),
    Case("labels too few", given(_labels("0\n1\n")), LABELLED, BAD, (r"2 labels", r"8 samples")),
    Case(
        "labels binary",
        given(lambda b: b.write("labels.csv", b"\xff\xfe\x00\x01")),
        LABELLED,
        BAD,
        (r"labels\.csv is not UTF-8",),
    ),
    Case("labels are a folder", given(), (*CALIBRATE, "--labels", "images"), BAD, (r"images is a folder", r"a file")),
    Case(
        "folder number beyond classes",
        given(lambda b: (b / "images/3").rename(b / "images/9")),
        CALIBRATE,
        BAD,
        (r"'9/0\.png'", r"got: +9", r"0 to 3", r"--labels"),
    ),
    Case(
        "npz with objects",
        given(_pickled),
        data("data.npz"),
        BAD,
        (r"cannot read arrays from data\.npz", r"Python objects", r"numeric arrays", r"never unpickles"),
    ),
    Case(
        "npz is text",
        given(lambda b: b.write("data.npz", "no")),
        data("data.npz"),
        BAD,
        (r"cannot read arrays from data\.npz", r"expected: plain"),
    ),
    Case(
        "npz truncated",
        given(_npz(x=FLOATS), lambda b: b.write("data.npz", (b / "data.npz").read_bytes()[:500])),
        data("data.npz"),
        BAD,
        (r"cannot read arrays from data\.npz",),
    ),
    Case(
        "npz missing an input",
        given(_npz(a=np.zeros((4, 4), np.float32)), proto=two_inputs()),
        data("data.npz"),
        BAD,
        (r"data\.npz has no array for input 'b'", r"got: +a", r"expected: a, b"),
    ),
    Case(
        "npz wrong dtype",
        given(_npz(x=FLOATS.astype(np.int32))),
        data("data.npz"),
        BAD,
        (r"'x'", r"int32", r"float32", r"try"),
    ),
    Case(
        "npz wrong shape",
        given(_npz(x=FLOATS[:, :2])),
        data("data.npz"),
        BAD,
        (r"input 'x' in data\.npz does not fit", r"\(4, 2, 8, 8\) float32", r"\(samples, 3, 8, 8\) float32"),
    ),
    Case("npz without a batch axis", given(_npz(x=FLOATS[0])), data("data.npz"), BAD, (r"array\[None\]",)),
    Case(
        "npz with NaN",
        given(_npz(x=WITH_NAN)),
        data("data.npz"),
        BAD,
        (r"sample 'data#2'", r"not finite in input 'x'", r"1 of 192 values", r"repair"),
    ),
    Case("npz zero-length", given(_npz(x=FLOATS[:0])), data("data.npz"), BAD, (r"data\.npz has no samples",)),
    Case(
        "npz lengths differ",
        given(_npz(x=FLOATS, labels=np.zeros(3, np.int64))),
        data("data.npz"),
        BAD,
        (r"differ in length", r"x: 4, labels: 3"),
    ),
    Case("images for two inputs", given(proto=two_inputs()), CALIBRATE, BAD, (r"the model has 2", r"a .*b ", r"npz")),
    Case(
        "IDX truncated",
        given(lambda b: _idx(b, 10)),
        data("t-images-idx3-ubyte"),
        BAD,
        (r"IDX file t-images-idx3-ubyte is damaged", r"262 bytes", r"272 for \(4, 8, 8\)"),
    ),
    Case(
        "IDX header only",
        given(lambda b: b.write("t-images-idx3-ubyte", b"\0\0\x08")),
        data("t-images-idx3-ubyte"),
        BAD,
        (r"is not an IDX file",),
    ),
    Case("factory missing module", given(), data("gone_module_q:make"), BAD, (r"no Python module 'gone_module_q'",)),
    Case(
        "factory in this folder",
        given(_module("def make(): return []", "mine_q")),
        data("mine_q:make"),
        BAD,
        (r"mine_q", r"PYTHONPATH=\."),
    ),
    Case("factory missing function", given(), data("json:load_all_q"), BAD, (r"'json' has no function 'load_all_q'",)),
    Case("factory near-miss", given(), data("json:dmups"), BAD, (r"did you mean 'dumps'",)),
    Case("factory raises", given(), data("json:loads"), BAD, (r"factory 'json:loads' failed", r"TypeError")),
    Case("factory generator", given(), data("os:walk_q"), BAD, (r"no function",)),
    Case("factory returns one-shot", given(), data("itertools:count"), BAD, (r"only once", r"one-shot", r"list\(")),
    Case("factory returns text", given(), data("os:getcwd"), BAD, (r"gives no data set", r"got: +str", r"expected")),
    Case("torchvision missing", given(), data("torchvision:MNISTT"), ExitCode.UNAVAILABLE, (r"quantlab\[torch\]",)),
    Case("random zero", given(), data("random:0"), USAGE, (r"'random:0' is wrong", r"N from 1")),
    Case("random words", given(), data("random:many"), USAGE, (r"'many'", r"N from 1")),
    Case("random too many", given(), data("random:99999999999999"), USAGE, (r"random:99999999999999", r"expected")),
    Case(
        "kind unknown",
        given(lambda b: b.write("data.h5", b"x")),
        data("data.h5"),
        BAD,
        (r"kind of data in data\.h5", r"'\.h5'", r"expected"),
    ),
    Case("glob without match", given(), data("nothing/*.png"), BAD, (r"nothing/\*\.png", r"try|expected|got")),
    Case(
        "list of missing files",
        given(lambda b: b.write("l.txt", "gone.png 0\nlost.png 1\n")),
        data("l.txt"),
        BAD,
        (r"none of the 2 samples of l\.txt could be read", r"no such file"),
    ),
    Case("list empty", given(lambda b: b.write("l.txt", "# nothing\n")), data("l.txt"), BAD, (r"l\.txt is empty",)),
    Case(
        "list twice", given(lambda b: b.write("l.txt", "a.png 0\na.png 1\n")), data("l.txt"), BAD, (r"twice at line",)
    ),
    Case("very long data", given(), data("d" * 5000), BAD, (r"no data at 'ddd.*\.\.\.'",)),
    Case("unicode data", given(), data("çedilla/ß – 画像"), BAD, (r"no data at 'çedilla/ß – 画像'",)),
    Case("newline data", given(), data("a\nb"), BAD, (r"no data at 'a\\nb'",)),
    Case("format data", given(), data("%s {0}"), BAD, (r"'%s \{0\}'",)),
    Case(
        "unknown preset",
        given(),
        args("calibrate --model net.onnx --data images --preprocess imagent"),
        USAGE,
        (r"imagent", r"did you mean 'imagenet'"),
    ),
    Case(
        "preprocess file missing",
        given(),
        args("calibrate --model net.onnx --data images --preprocess p.toml"),
        USAGE,
        (r"p\.toml", r"does not exist|no preset"),
    ),
    Case("preprocess bad TOML", toml("scale = = 1"), CALIBRATE, USAGE, (r"unit\.toml is not valid TOML", r"line 1")),
    Case(
        "preprocess unknown key",
        toml("scael = 255"),
        CALIBRATE,
        USAGE,
        (r"unknown key 'scael' in .*unit\.toml", r"expected: one of", r"did you mean 'scale'"),
    ),
    Case(
        "preprocess wrong type",
        toml('scale = "255"'),
        CALIBRATE,
        USAGE,
        (r"unit\.toml\.scale has a wrong value", r"'255'", r"expected: a number"),
    ),
    Case(
        "preprocess std 0",
        toml("scale = 255\nstd = 0"),
        CALIBRATE,
        USAGE,
        (r"preprocess\.std has a wrong value|std", r"0", r"above 0"),
    ),
    Case("preprocess std two", toml("std = [1, 2]"), CALIBRATE, USAGE, (r"std", r"1 number or 3 numbers")),
    Case("preprocess NaN mean", toml("mean = nan"), CALIBRATE, USAGE, (r"mean", r"nan", r"finite")),
    Case("preprocess color", toml('color = "rbg"'), CALIBRATE, USAGE, (r"'rbg'", r"rgb, bgr, gray", r"did you mean")),
    Case("limit 0", given(), (*CALIBRATE, "--limit", "0"), USAGE, (r"limit", r"0", r"1 or more|x>=1")),
    Case("limit -3", given(), (*CALIBRATE, "--limit", "-3"), USAGE, (r"limit", r"-3", r"1 or more|x>=1")),
    Case("limit word", given(), (*CALIBRATE, "--limit", "all"), USAGE, (r"--limit", r"'all'", r"integer")),
    Case(
        "fixed batch, odd images",
        given(proto=tiny_cnn(batch=3)),
        CALIBRATE,
        OK,
        (r"padded-batch x1", r"last batch of 3 was filled with 1"),
        OUTPUTS,
    ),
)
