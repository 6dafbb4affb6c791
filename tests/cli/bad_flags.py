"""Flags, recipes and outputs that cannot be used."""

from __future__ import annotations

from bad_case import Case, Prepare, args, both, nothing
from cli_bench import Bench, tiny_cnn

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE
NONE = ExitCode.UNAVAILABLE

CALIBRATE = args("calibrate --model net.onnx --data images --threads 1")
COMPARE = args("compare --data eval --preprocess unit.toml --threads 1 --latency-seconds 0")
BUILD = args("build --model net.onnx --table calibration/calibration.json")


def ready(bench: Bench) -> None:
    bench.take("net.onnx", "images", "unit.toml")


def built(bench: Bench) -> None:
    bench.take("net.onnx", "calibration")


def file_named(name: str) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("net.onnx", "images", "calibration", "engines", "eval", "comparison", "gate", "unit.toml")
        bench.write(name, "in the way")

    return prepare


def folder_named(name: str) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("net.onnx", "images", "calibration", "engines", "eval", "comparison", "gate", "unit.toml")
        bench.write(f"{name}/keep.txt", "mine")

    return prepare


def recipe(text: str = "", **replace: str) -> Prepare:
    def prepare(bench: Bench) -> None:
        bench.take("net.onnx", "images", "eval")
        bench.recipe(text, **replace)

    return prepare


def raw_recipe(text: str | bytes) -> Prepare:
    return lambda bench: bench.write("quantlab.toml", text)


RUN = args("run")
OUTPUT = ("results", "results/**")

FLAGS = (
    Case(
        "unknown verb",
        nothing,
        args("calibrat"),
        USAGE,
        (r"No such command 'calibrat'", r"(?i)did you mean.*calibrate"),
    ),
    Case("unknown verb, far", nothing, args("xyzzy"), USAGE, (r"No such command 'xyzzy'", r"Verbs: calibrate, build")),
    Case("planned verb", nothing, args("history"), USAGE, (r"quantlab history is planned",)),
    Case("verb missing a flag value", ready, args("calibrate --data"), USAGE, (r"--data.*requires an argument",)),
    Case("unknown flag", ready, (*CALIBRATE, "--treads", "2"), USAGE, (r"No such option '?--treads'?", r"--threads")),
    Case("flag before the verb", nothing, args("--jsn doctor"), USAGE, (r"No such option '?--jsn",)),
    Case(
        "extra argument",
        ready,
        (*CALIBRATE, "surplus"),
        USAGE,
        (r"unexpected argument surplus", r"images with --data, parts with --merge"),
    ),
    Case(
        "unknown method",
        ready,
        (*CALIBRATE, "--method", "entropie"),
        USAGE,
        (r"no range method 'entropie'", r"minmax, percentile, entropy, mse", r"did you mean 'entropy'"),
    ),
    Case(
        "unknown target",
        ready,
        (*CALIBRATE, "--target", "tensorr"),
        USAGE,
        (r"no target 'tensorr'", r"tensorrt, onnxruntime", r"did you mean 'tensorrt'"),
    ),
    Case("percentile 200", ready, (*CALIBRATE, "--percentile", "200"), USAGE, (r"percentile", r"200", r"at most 100")),
    Case("percentile NaN", ready, (*CALIBRATE, "--percentile", "nan"), USAGE, (r"percentile", r"nan", r"at most 100")),
    Case(
        "threads -1",
        ready,
        args("calibrate --model net.onnx --data images --threads -1"),
        USAGE,
        (r"threads", r"-1", r"1 or more"),
    ),
    Case(
        "threads absurd",
        ready,
        args("calibrate --model net.onnx --data images --threads 1000000"),
        USAGE,
        (r"threads", r"1000000", r"expected|range"),
    ),
    Case("batch size 0", ready, (*CALIBRATE, "--batch-size", "0"), USAGE, (r"--batch-size", r"0 is not in the range")),
    Case("seed negative", ready, (*CALIBRATE, "--seed", "-1"), USAGE, (r"--seed", r"-1 is not in the range")),
    Case(
        "latency NaN",
        file_named("x"),
        args("compare --data eval --latency-seconds nan"),
        USAGE,
        (r"latency-seconds", r"nan", r"expected: seconds from 0"),
    ),
    Case(
        "latency negative",
        file_named("x"),
        args("compare --data eval --latency-seconds -1"),
        USAGE,
        (r"--latency-seconds", r"-1"),
    ),
    Case(
        "unknown task",
        file_named("x"),
        (*COMPARE, "--task", "clasify"),
        USAGE,
        (r"no task 'clasify'", r"expected: one of classify, outputs", r"did you mean 'classify'"),
    ),
    Case(
        "task option malformed",
        file_named("x"),
        (*COMPARE, "--task-option", "decoder"),
        USAGE,
        (r"'decoder' is malformed", r"KEY=VALUE"),
    ),
    Case(
        "task option of no task",
        file_named("x"),
        (*COMPARE, "--task-option", "decoder=yolov8"),
        USAGE,
        (r"classify has no setting 'decoder'",),
    ),
    Case("metric and task", file_named("x"), (*COMPARE, "--task", "outputs", "--metric", "m:f"), USAGE, (r"--metric",)),
    Case("slices missing", file_named("x"), (*COMPARE, "--slices", "gone.csv"), BAD, (r"gone\.csv does not exist",)),
    Case(
        "slices of no sample",
        both(file_named("x"), lambda b: b.write("slices.csv", "file,camera\n0/9.png,left\n")),
        (*COMPARE, "--slices", "slices.csv"),
        BAD,
        (r"slices\.csv line 2 is about a sample that is not in eval", r"'0/9\.png'", r"did you mean"),
    ),
    Case(
        "unknown backend",
        built,
        (*BUILD, "--backend", "onnxruntim"),
        USAGE,
        (r"no backend 'onnxruntim'", r"expected", r"did you mean 'onnxruntime'"),
    ),
    Case(
        "a precision that OpenVINO lacks",
        built,
        (*BUILD, "--backend", "openvino", "--precisions", "tf32"),
        NONE,
        (r"cannot build tf32|OpenVINO is not installed", r"another --backend"),
    ),
    Case(
        "TensorRT's options without TensorRT",
        built,
        (*BUILD, "--workspace", "1GiB", "--refit"),
        USAGE,
        (r"--memory-pool workspace, --refit: not for the backend 'onnxruntime'", r"--backend tensorrt"),
    ),
    Case(
        "a range of shapes without TensorRT",
        built,
        (*BUILD, "--shapes", "x:1x3x8x8:2x3x8x8:4x3x8x8"),
        USAGE,
        (r"--shapes MIN:OPT:MAX: not for the backend", r"--backend tensorrt"),
    ),
    Case(
        "half a range of shapes",
        built,
        (*BUILD, "--shapes", "x:1x3x8x8:2x3x8x8"),
        USAGE,
        (r"'x:1x3x8x8:2x3x8x8' is malformed", r"NAME:MIN:OPT:MAX"),
    ),
    Case(
        "network code without TensorRT",
        built,
        ("build", "--network", "net:build", "--precisions", "fp32"),
        USAGE,
        (r"--network is for TensorRT", r"--backend tensorrt"),
    ),
    Case(
        "unknown precision",
        built,
        (*BUILD, "--precisions", "fp32,fp17"),
        USAGE,
        (r"no precision 'fp17'", r"fp32, tf32", r"did you mean 'fp1?"),
    ),
    Case("no precision", built, (*BUILD, "--precisions", " , "), USAGE, (r"no precision was named", r"fp32,fp16,int8")),
    Case(
        "TensorRT's calibration elsewhere",
        built,
        (*BUILD, "--data", "images", "--calibrator", "minmax"),
        USAGE,
        (r"--data, --calibrator: calibration by TensorRT itself", r"--backend tensorrt --typing weak", r"pass --table"),
    ),
    Case(
        "samples for nothing",
        built,
        (*BUILD, "--limit", "5"),
        USAGE,
        (r"--limit is about samples, and there are none", r"--data too"),
    ),
    Case(
        "precision of GPUs",
        built,
        (*BUILD, "--precisions", "int8-fp16"),
        NONE,
        (r"cannot build int8-fp16", r"is for GPUs", r"another --backend"),
    ),
    Case(
        "int8 without a table",
        built,
        args("build --model net.onnx --precisions fp32,int8"),
        USAGE,
        (r"int8 needs a calibration table", r"quantlab calibrate", r"--table"),
    ),
    Case(
        "exclude nothing",
        built,
        (*BUILD, "--exclude", "convv"),
        USAGE,
        (r"'convv'", r"expected: conv, head", r"did you mean 'conv'"),
    ),
    Case("completion shell", nothing, args("completion tcsh"), USAGE, (r"'tcsh'", r"'bash', 'zsh', 'fish'")),
    Case("completion without a shell", nothing, args("completion"), USAGE, (r"Missing argument", r"bash")),
    Case("doctor with an argument", nothing, args("doctor please"), USAGE, (r"extra argument",)),
    Case("plan without a margin", nothing, args("gate plan"), USAGE, (r"Missing option '--margin'",)),
    Case(
        "plan: words", nothing, args("gate plan --margin half"), USAGE, (r"--margin", r"'half' is not a number of pp")
    ),
    Case("plan: wrong unit", nothing, args("gate plan --margin 0.5%"), USAGE, (r"--margin", r"'0\.5%'", r"pp")),
    Case(
        "plan: margin 0", nothing, args("gate plan --margin 0"), USAGE, (r"margin is out of range", r"0 pp", r"above 0")
    ),
    Case(
        "plan: discordance",
        nothing,
        args("gate plan --margin 1 --discordance 200%"),
        USAGE,
        (r"discordance is out of range", r"200 %", r"to 100 %"),
    ),
    Case(
        "plan: loss beyond the margin",
        nothing,
        args("gate plan --margin 0.5 --true-loss 1pp"),
        USAGE,
        (r"true loss 1 pp, margin 0\.5 pp", r"below the margin"),
    ),
    Case("plan: alpha", nothing, args("gate plan --margin 1 --alpha 0.7"), USAGE, (r"--alpha", r"0\.7")),
    Case("plan: alpha NaN", nothing, args("gate plan --margin 1 --alpha nan"), USAGE, (r"alpha", r"nan")),
    Case("plan: tiny margin", nothing, ("gate", "plan", "--margin", "0." + "0" * 300 + "1"), USAGE, (r"margin",)),
    Case("plan: huge margin", nothing, ("gate", "plan", "--margin", "9" * 400), USAGE, (r"margin",)),
    Case(
        "calibrate: file in the way",
        file_named("out"),
        (*CALIBRATE, "-o", "out"),
        USAGE,
        (r"cannot write (to )?out", r"got", r"-o"),
    ),
    Case(
        "calibrate: below a file",
        file_named("out"),
        (*CALIBRATE, "-o", "out/below/it"),
        USAGE,
        (r"cannot write (to )?out/below/it", r"-o"),
    ),
    Case(
        "calibrate: folder of the table's name",
        folder_named("out/calibration.json"),
        (*CALIBRATE, "-o", "out"),
        USAGE,
        (r"cannot write out/calibration\.json", r"folder", r"-o"),
    ),
    Case(
        "calibrate: over another model's",
        both(lambda b: b.take("images", "calibration"), lambda b: b.model(tiny_cnn(classes=5))),
        CALIBRATE,
        USAGE,
        (r"calibration/calibration\.json is there already", r"got: +sha256", r"expected: sha256", r"--force"),
    ),
    Case(
        "calibrate: over a foreign file",
        both(ready, lambda b: b.write("calibration/calibration.json", "{}")),
        CALIBRATE,
        USAGE,
        (r"calibration\.json is there already", r"--force"),
    ),
    Case("build: file in the way", file_named("out"), (*BUILD, "-o", "out"), USAGE, (r"cannot write (to )?out", r"-o")),
    Case(
        "compare: file in the way",
        file_named("out"),
        args("compare --data eval --latency-seconds 0 --preprocess unit.toml -o out"),
        USAGE,
        (r"cannot write (to )?out", r"-o"),
    ),
    Case(
        "gate: file in the way",
        file_named("out"),
        args("gate --policy quantlab:numerics -o out"),
        USAGE,
        (r"cannot write (to )?out", r"-o"),
    ),
    Case(
        "gate: device",
        file_named("x"),
        args("gate --policy quantlab:numerics -o /dev/null"),
        USAGE,
        (r"cannot write (to )?/dev/null", r"-o"),
    ),
    Case(
        "report: folder in the way",
        folder_named("out"),
        args("report comparison/comparison.json -o out"),
        USAGE,
        (r"cannot write (to )?out", r"folder", r"-o"),
    ),
    Case(
        "report: below a file",
        file_named("out"),
        args("report comparison/comparison.json -o out/table.md"),
        USAGE,
        (r"cannot write (to )?out/table\.md",),
    ),
    Case(
        "report: full disk",
        file_named("x"),
        args("report comparison/comparison.json -o /dev/full"),
        USAGE,
        (r"cannot write /dev/full", r"device"),
    ),
    Case(
        "output name too long",
        file_named("x"),
        args(f"report comparison/comparison.json -o {'o' * 300}"),
        USAGE,
        (r"cannot write ooo", r"too long"),
    ),
    Case(
        "demo: not empty",
        lambda b: b.write("demo/mine.txt", "mine"),
        args("demo demo"),
        USAGE,
        (r"folder demo is not empty", r"--force"),
    ),
    Case(
        "demo: a file", lambda b: b.write("demo", "mine"), args("demo demo"), USAGE, (r"demo is not a folder", r"try")
    ),
    Case("demo: below a file", lambda b: b.write("demo", "mine"), args("demo demo/below"), USAGE, (r"demo/below",)),
    Case(
        "demo --run: not a demo",
        lambda b: b.write("demo/mine.txt", "mine"),
        args("demo demo --run"),
        USAGE,
        (r"folder demo is not empty",),
    ),
    Case("run: no recipe", nothing, RUN, USAGE, (r"recipe quantlab\.toml does not exist", r"try")),
    Case("run: near-miss", lambda b: b.write("quantlab.tml", ""), RUN, USAGE, (r"did you mean quantlab\.tml",)),
    Case(
        "run: folder",
        lambda b: b.write("here/quantlab.toml", ""),
        args("run here"),
        USAGE,
        (
            r"here is a folder",
            r"expected: a file",
        ),
    ),
    Case("run: bad TOML", raw_recipe("[model\n"), RUN, USAGE, (r"quantlab\.toml is not valid TOML", r"line 1")),
    Case("run: not text", raw_recipe(b"\xff\xfe\x00"), RUN, USAGE, (r"quantlab\.toml is not UTF-8",)),
    Case("run: empty recipe", raw_recipe(""), RUN, USAGE, (r"schema version", r"none", r"schema = 1")),
    Case("run: schema 2", raw_recipe("schema = 2\n"), RUN, USAGE, (r"got: +2", r"expected: schema = 1")),
    Case("run: schema true", raw_recipe("schema = true\n[model]\nfile='x'\n"), RUN, USAGE, (r"schema", r"(?i)true")),
    Case("run: no model", raw_recipe("schema = 1\n"), RUN, USAGE, (r"quantlab\.toml lacks the key 'model'",)),
    Case("run: no calibrate", recipe(calibrate=""), RUN, USAGE, (r"no \[calibrate\] section", r"with data = ")),
    Case("run: no compare", recipe(compare=""), RUN, USAGE, (r"no \[compare\] section", r"with data = ")),
    Case(
        "run: unknown section",
        recipe("[calibarte]\ndata = 'x'\n"),
        RUN,
        USAGE,
        (r"unknown key 'calibarte'", r"did you mean 'calibrate'"),
    ),
    Case(
        "run: unknown key",
        recipe(calibrate='data = "images"\nmetod = "mse"'),
        RUN,
        USAGE,
        (r"unknown key 'metod' in quantlab\.toml\.calibrate", r"did you mean 'method'"),
    ),
    Case("run: wrong type", recipe(calibrate="data = 3"), RUN, USAGE, (r"calibrate\.data", r"got: +3", r"a string")),
    Case(
        "run: unknown precision",
        recipe(build='precisions = ["int9"]'),
        RUN,
        USAGE,
        (r"precisions\[0\]", r"'int9'", r"fp32", r"did you mean 'int8'"),
    ),
    Case(
        "run: unknown method",
        recipe(calibrate='data = "images"\nmethod = "mes"'),
        RUN,
        USAGE,
        (r"no range method 'mes'", r"did you mean 'mse'"),
    ),
    Case("run: unknown target", recipe(build='target = "onnxruntme"'), RUN, USAGE, (r"did you mean 'onnxruntime'",)),
    Case(
        "run: a precision that OpenVINO lacks",
        recipe(build='backend = "openvino"\nprecisions = ["tf32"]'),
        RUN,
        NONE,
        (r"cannot build tf32|OpenVINO is not installed", r"another --backend"),
        OUTPUT,
    ),
    Case("run: model missing", recipe(model='file = "nt.onnx"'), RUN, BAD, (r"nt\.onnx does not exist", r"net\.onnx")),
    Case("run: model empty name", recipe(model='file = ""'), RUN, BAD, (r"is a folder", r"expected: an \.onnx file")),
    Case("run: data missing", recipe(calibrate='data = "image"'), RUN, BAD, (r"no data at 'image'", r"did you mean")),
    Case(
        "run: labels missing",
        recipe(compare='data = "eval"\nlabels = "gone.csv"\nlatency-seconds = 0'),
        RUN,
        BAD,
        (r"gone\.csv does not exist",),
    ),
    Case(
        "run: policy missing",
        recipe(gate='policy = "polcy.toml"'),
        RUN,
        USAGE,
        (r"polcy\.toml does not exist", r"did you mean policy\.toml"),
    ),
    Case(
        "run: policy misspelt",
        recipe(gate='policy = "quantlab:defalt"'),
        RUN,
        USAGE,
        (r"no preset policy 'quantlab:defalt'", r"did you mean 'quantlab:default'"),
    ),
    Case("run: percentile", recipe(calibrate='data = "images"\npercentile = 200'), RUN, USAGE, (r"percentile", r"200")),
    Case(
        "run: limit 0", recipe(calibrate='data = "images"\nlimit = 0'), RUN, USAGE, (r"limit", r"got: +0", r"1 or more")
    ),
    Case("run: threads -2", recipe(run="threads = -2"), RUN, USAGE, (r"threads", r"-2")),
    Case("run: seed -1", recipe(run="threads = 1\nseed = -1"), RUN, USAGE, (r"seed", r"-1", r"expected")),
    Case(
        "run: batch size 0",
        recipe(compare='data = "eval"\nlatency-seconds = 0\nbatch-size = 0'),
        RUN,
        USAGE,
        (r"batch.size", r"got: +0", r"1 "),
    ),
    Case(
        "run: latency batch 0",
        recipe(compare='data = "eval"\nlatency-seconds = 0.1\nlatency-batch = 0'),
        RUN,
        USAGE,
        (r"latency.batch", r"got: +0", r"1 "),
    ),
    Case(
        "run: latency NaN",
        recipe(compare='data = "eval"\nlatency-seconds = nan'),
        RUN,
        USAGE,
        (r"latency.seconds", r"nan", r"expected"),
    ),
    Case(
        "run: latency infinite",
        recipe(compare='data = "eval"\nlatency-seconds = inf'),
        RUN,
        USAGE,
        (r"latency.seconds", r"inf", r"expected"),
    ),
    Case(
        "run: shape 0",
        recipe(model='file = "net.onnx"\nshapes = { x = [1, 3, 0, 8] }'),
        RUN,
        USAGE,
        (r"x", r"1x3x0x8|0", r"expected|contradicts"),
    ),
    Case("run: preset near", recipe(preprocess='preset = "imagnet"'), RUN, USAGE, (r"did you mean 'imagenet'",)),
    Case("run: preprocess key", recipe(preprocess="sclae = 2"), RUN, USAGE, (r"'sclae'", r"did you mean 'scale'")),
    Case(
        "run: file in the way",
        recipe(run='threads = 1\nout = "policy.toml"'),
        RUN,
        USAGE,
        (r"cannot write.*policy\.toml",),
    ),
    Case("run: NUL in the model", recipe(model=r'file = "a\u0000b.onnx"'), RUN, USAGE, (r"model\.file", r"NUL")),
    Case("run: NUL in data", recipe(calibrate=r'data = "a\u0000b"'), RUN, USAGE, (r"a\\x00b",)),
    Case("run: NUL in out", recipe(run='threads = 1\nout = "a\\u0000b"'), RUN, USAGE, (r"NUL",)),
    Case("run: NUL in the policy", recipe(gate=r'policy = "a\u0000b"'), RUN, USAGE, (r"NUL",)),
    Case(
        "run: damaged state",
        both(recipe(), lambda b: b.write("results/state.json", "{")),
        RUN,
        USAGE,
        (r"run state results/state\.json is not valid JSON", r"--force"),
    ),
    Case(
        "run: other state",
        both(recipe(), lambda b: b.write("results/state.json", '{"schema": "x"}')),
        RUN,
        USAGE,
        (r"results/state\.json has another schema", r"--force"),
    ),
)
