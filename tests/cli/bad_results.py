"""Engines, tables, comparisons and policies that cannot be used."""

from __future__ import annotations

import json
from typing import Any

from bad_case import Case, Prepare, args, both, nothing
from cli_bench import Bench, tiny_cnn

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE

BUILD = args("build --model net.onnx --table calibration/calibration.json --precisions int8")
COMPARE = args("compare --data eval --preprocess unit.toml --threads 1 --latency-seconds 0")
GATE = args("gate --policy policy.toml")
TABLE = "calibration/calibration.json"
COMPARISON = "comparison/comparison.json"
INT8 = "engines/onnxruntime-int8-mse.onnx"
VERDICT = ("gate", "gate/*")


def taking(*steps: Prepare) -> Any:
    """Everything finished, and then some steps."""

    def prepare(bench: Bench) -> None:
        bench.take("net.onnx", "images", "eval", "calibration", "engines", "comparison", "unit.toml")
        for step in steps:
            step(bench)

    return prepare


def edited(name: str, change: object) -> Any:
    return taking(lambda bench: bench.edit_json(name, change))  # type: ignore[arg-type]


def replaced(name: str, content: str | bytes) -> Any:
    return taking(lambda bench: bench.write(name, content))


def _write(name: str, content: str | bytes) -> Prepare:
    return lambda bench: bench.write(name, content)


def policy(text: str) -> Any:
    return taking(lambda bench: bench.write("policy.toml", text))


def check(text: str) -> Any:
    return policy(f'schema = 1\n[[check]]\nid = "a"\n{text}\n')


def _tamper(bench: Bench) -> None:
    content = bytearray((bench / INT8).read_bytes())
    content[-5] ^= 1
    bench.write(INT8, bytes(content))


def _other_engine(bench: Bench) -> None:
    """The FP16 engine of another model under the same name."""
    for path in (bench / "engines").glob("onnxruntime-fp16*"):
        if path.suffix == ".json":
            bench.edit_json(f"engines/{path.name}", lambda d: d.update(model_sha256="0" * 64))


def _set(*path: str | int, to: object) -> Any:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


RANGE = ("tensors", 0, "ranges", "int8-symmetric", "mse")

RESULTS = (
    Case(
        "table missing",
        taking(),
        args("build --model net.onnx --table gone.json"),
        BAD,
        (r"calibration table gone\.json does not exist", r"try"),
    ),
    Case(
        "table is a folder",
        taking(),
        args("build --model net.onnx --table calibration"),
        BAD,
        (r"calibration is a folder", r"expected: a file"),
    ),
    Case("table not JSON", replaced(TABLE, "{"), BUILD, BAD, (r"calibration\.json is not valid JSON", r"line 1|char")),
    Case("table empty", replaced(TABLE, ""), BUILD, BAD, (r"calibration\.json is not valid JSON",)),
    Case(
        "table of another schema",
        taking(),
        args(f"build --model net.onnx --table {COMPARISON}"),
        BAD,
        (r"another schema", r"quantlab\.comparison/1", r"expected: 'quantlab\.calibration/2'"),
    ),
    Case("table lacks a key", edited(TABLE, lambda d: d.pop("n_samples")), BUILD, BAD, (r"lacks the key 'n_samples'",)),
    Case(
        "table with a key too many",
        edited(TABLE, lambda d: d.update(metod="x")),
        BUILD,
        BAD,
        (r"did you mean 'method'",),
    ),
    Case(
        "table with NaN",
        edited(TABLE, _set(*RANGE, "high", to="nan")),
        BUILD,
        BAD,
        (r"tensor '.+' has an impossible mse range", r"nan", r"finite"),
    ),
    Case(
        "table with low above high",
        edited(TABLE, _set(*RANGE, "low", to=1e9)),
        BUILD,
        BAD,
        (r"impossible mse range", r"low <= high"),
    ),
    Case(
        "table with a bare NaN",
        taking(lambda b: b.write(TABLE, (b / TABLE).read_text().replace('"n_samples": 12', '"n_samples": NaN'))),
        BUILD,
        BAD,
        (r"n_samples", r"nan", r"whole number"),
    ),
    Case(
        "table with an unknown method",
        edited(TABLE, _set("method", to="mes")),
        BUILD,
        BAD,
        (r"no mes range", r"entropy, minmax, mse, percentile", r"quantlab calibrate"),
    ),
    Case(
        "table without a tensor", edited(TABLE, _set("tensors", to=[])), BUILD, BAD, (r"no layer could be quantized",)
    ),
    Case(
        "table without a scheme",
        edited(TABLE, lambda d: [t["ranges"].pop("int8-symmetric") for t in d["tensors"]]),
        BUILD,
        USAGE,
        (r"no mse range of tensor '\w+' for int8-symmetric", r"got: +no ranges for int8-symmetric", r"--target"),
    ),
    Case(
        "table of another model",
        taking(lambda b: b.model(tiny_cnn(classes=5))),
        BUILD,
        BAD,
        (r"made from another model", r"got: +sha256 .* in the table", r"expected: sha256", r"quantlab calibrate again"),
    ),
    Case(
        "table of other shapes",
        taking(),
        (*BUILD, "--shapes", "x:2x3x8x8"),
        BAD,
        (r"made from another prepared graph", r"same --shapes"),
    ),
    Case("method unknown", taking(), (*BUILD, "--method", "entropi"), USAGE, (r"did you mean 'entropy'",)),
    Case("engines missing", taking(), (*COMPARE, "gone"), USAGE, (r"gone does not exist", r"quantlab build")),
    Case(
        "engines default missing",
        lambda b: b.take("eval", "unit.toml"),
        COMPARE,
        USAGE,
        (r"engines does not exist", r"quantlab build"),
    ),
    Case(
        "engines folder empty",
        taking(lambda b: (b / "none").mkdir()),
        (*COMPARE, "none"),
        USAGE,
        (r"folder none holds no engines", r"quantlab build first"),
    ),
    Case(
        "engine tampered",
        taking(_tamper),
        COMPARE,
        BAD,
        (r"int8-mse\.onnx is not the file its sidecar describes", r"got: +sha256", r"expected: sha256", r"build it"),
    ),
    Case(
        "engine without a sidecar",
        taking(),
        (*COMPARE, "net.onnx"),
        BAD,
        (r"engine net\.onnx has no sidecar", r"net\.onnx\.engine\.json beside it", r"quantlab build"),
    ),
    Case(
        "sidecar without an engine",
        taking(lambda b: (b / INT8).unlink()),
        COMPARE,
        BAD,
        (r"int8-mse\.onnx", r"No such file", r"build it again"),
    ),
    Case(
        "sidecar damaged",
        replaced(INT8 + ".engine.json", "{}"),
        COMPARE,
        BAD,
        (r"another schema", r"quantlab\.engine/1"),
    ),
    Case(
        "sidecar given as engine",
        taking(),
        (*COMPARE, INT8 + ".engine.json"),
        USAGE,
        (r"which engine is the reference",),
    ),
    Case(
        "sidecar of an unknown backend",
        edited(INT8 + ".engine.json", _set("backend", to="onnxruntim")),
        COMPARE,
        USAGE,
        (r"no backend 'onnxruntim'",),
    ),
    Case(
        "engine of another model",
        taking(_other_engine),
        COMPARE,
        BAD,
        (r"onnxruntime-fp16 was made from another model than onnxruntime-fp32", r"got: +sha256 0000", r"one folder"),
    ),
    Case(
        "no reference", taking(), (*COMPARE, INT8), USAGE, (r"which engine is the reference", r"0 fp32", r"--reference")
    ),
    Case(
        "two references",
        taking(
            lambda b: [b.write(f"more/{p.name}", p.read_bytes()) for p in (b / "engines").glob("onnxruntime-fp32*")]
        ),
        (*COMPARE, "engines", "more"),
        BAD,
        (r"two engines are named onnxruntime-fp32",),
    ),
    Case(
        "reference misspelt",
        taking(),
        (*COMPARE, "--reference", "onnxruntime-fp3"),
        USAGE,
        (r"no engine is named 'onnxruntime-fp3'", r"onnxruntime-fp32", r"did you mean"),
    ),
    Case(
        "other preprocessing",
        taking(lambda b: b.write("unit.toml", "scale = 127")),
        COMPARE,
        BAD,
        (r"int8-mse was calibrated with another preprocessing", r"got: +sha256", r"same --preprocess"),
    ),
    Case(
        "label beyond the classes",
        taking(lambda b: b.write("l.csv", "0/3.png,4\n")),
        (*COMPARE, "--labels", "l.csv"),
        BAD,
        (r"'0/3\.png'", r"got: +4", r"0 to 3"),
    ),
    *(
        Case(f"slices {name}", taking(_write("s.csv", text)), (*COMPARE, "--slices", "s.csv"), BAD, says)
        for name, text, says in (
            ("empty", "", (r"s\.csv has no rows", r"file,camera")),
            ("without rows", "file,camera\n", (r"s\.csv has no rows",)),
            ("without a column", "file\n0/3.png\n", (r"no column to slice by", r"got: +file")),
            ("with semicolons", "file;a\n0/3.png;x\n", (r"begin with the column file", r"'file;a'", r"commas or tabs")),
            (
                "of an unknown sample",
                "file,a\nno.png,x\n",
                (r"line 2 is about a sample", r"'no\.png'", r"did you mean|look like"),
            ),
            ("with two rows", "file,a\n0/3.png,x\n0/3.png,y\n", (r"two different rows for '0/3\.png'", r"line 3")),
            ("with one name twice", "file,a,a\n0/3.png,x,y\n", (r"the column 'a' twice", r"unique names")),
            ("without a name", "file,\n0/3.png,x\n", (r"a column without a name",)),
            ("with a short row", "file,a,b\n0/3.png,x\n", (r"wrong row at line 2", r"2 cells", r"3 cells")),
            ("called class", "file,class\n0/3.png,x\n", (r"a column 'class'", r"another name", r"--slice-by none")),
        )
    ),
    Case("slices are a folder", taking(), (*COMPARE, "--slices", "eval"), BAD, (r"eval is a folder", r"a file")),
    Case("task misspelt", taking(), (*COMPARE, "--task", "clasify"), USAGE, (r"no task 'clasify'", r"'classify'\?")),
    Case("task without truths", taking(), (*COMPARE, "--task", "regress"), USAGE, (r"needs truths", r"--labels")),
    Case("task option unknown", taking(), (*COMPARE, "--task-option", "a=1"), USAGE, (r"has no setting 'a'",)),
    Case("metric misspelt", taking(), (*COMPARE, "--metric", "no_such:f"), USAGE, (r"no Python module 'no_such'",)),
    Case(
        "samples in the way",
        taking(lambda b: (b / "out" / "samples.parquet").mkdir(parents=True)),
        (*COMPARE, "-o", "out"),
        USAGE,
        (r"cannot write out/samples\.parquet", r"a folder of that name", r"-o"),
    ),
    Case(
        "no data to compare", taking(lambda b: (b / "none").mkdir()), args("compare --data none"), BAD, (r"no images",)
    ),
    Case(
        "comparison missing",
        nothing,
        args("gate"),
        BAD,
        (r"comparison", r"does not exist", r"quantlab compare|check the path"),
    ),
    Case(
        "comparison folder empty",
        lambda b: (b / "comparison").mkdir(),
        args("gate"),
        USAGE,
        (r"folder comparison holds no comparison\.json", r"quantlab compare"),
    ),
    Case(
        "comparison damaged",
        replaced(COMPARISON, '{"schema": "quantlab.comparison/1", "variants"'),
        args("gate"),
        BAD,
        (r"comparison\.json is not valid JSON",),
    ),
    Case(
        "comparison of another schema",
        replaced(COMPARISON, '{"schema": "quantlab.comparison/9"}'),
        args("gate"),
        BAD,
        (r"another schema", r"'quantlab\.comparison/9'", r"'quantlab\.comparison/1'", r"make it again"),
    ),
    Case(
        "comparison lacks its reference",
        edited(COMPARISON, _set("reference", to="gone")),
        args("gate"),
        BAD,
        (r"comparison\.json is damaged", r"reference gone", r"quantlab compare again"),
    ),
    Case(
        "comparison contradicts itself",
        edited(COMPARISON, _set("variants", 1, "classification", "agreement", to=9999)),
        args("gate"),
        BAD,
        (),
        VERDICT,
    ),
    Case(
        "comparison with a string count",
        edited(COMPARISON, _set("n_samples", to="many")),
        args("gate"),
        BAD,
        (r"n_samples", r"'many'", r"whole number"),
    ),
    Case(
        "comparison with half a character",
        edited(COMPARISON, _set("model", to="a\ud800b")),
        args("gate"),
        BAD,
        (r"comparison\.json\.model has a wrong value", r"surrogate"),
    ),
    Case(
        "policy with a tiny alpha",
        policy(
            'schema = 1\n[gate]\nalpha = 1e-30\n[[check]]\nid = "a"\nmetric = "top1"\nmargin = { absolute_pp = 1.0 }'
        ),
        GATE,
        USAGE,
        (r"alpha", r"1e-30", r"at least 1e-12"),
    ),
    Case("comparison name too long", nothing, args(f"gate {'c' * 5000}"), BAD, (r"too long",)),
    Case("comparison in binary", replaced(COMPARISON, bytes(range(256))), args("gate"), BAD, (r"not valid JSON",)),
    Case("policy missing", taking(), GATE, USAGE, (r"policy policy\.toml does not exist", r"try")),
    Case(
        "policy misspelt",
        taking(),
        args("gate --policy quantlab:stric"),
        USAGE,
        (r"'quantlab:stric'", r"quantlab:default, quantlab:strict", r"did you mean 'quantlab:strict'"),
    ),
    Case(
        "policy without the prefix",
        taking(),
        args("gate --policy strict"),
        USAGE,
        (r"policy strict does not exist", r"did you mean 'quantlab:strict'"),
    ),
    Case("policy is a folder", taking(), args("gate --policy images"), USAGE, (r"images is a folder",)),
    Case("policy bad TOML", policy("[gate"), GATE, USAGE, (r"policy\.toml is not valid TOML", r"end of document")),
    Case("policy empty", policy(""), GATE, USAGE, (r"policy\.toml lacks the key 'schema'",)),
    Case("policy schema 2", policy("schema = 2"), GATE, USAGE, (r"another schema", r"got: +2", r"schema = 1")),
    Case("policy without a check", policy("schema = 1"), GATE, USAGE, (r"has no check", r"\[\[check\]\]")),
    Case("policy unknown key", check('metrc = "top1"'), GATE, USAGE, (r"'metrc'", r"did you mean 'metric'")),
    Case(
        "policy unknown metric",
        check('metric = "top2"'),
        GATE,
        USAGE,
        (r"check\[0\]\.metric", r"'top2'", r"expected: one of", r"did you mean 'top5'"),
    ),
    Case("policy without a limit", check('metric = "sqnr_db"'), GATE, USAGE, (r"check 'a'", r"neither", r"limit")),
    Case(
        "policy fraction for percent", check('metric = "agreement"\nlimit = 0.99'), GATE, USAGE, (r"0\.99", r"percent")
    ),
    Case(
        "policy unknown degradation",
        policy('schema = 1\n[gate]\nallow = ["lossy-decod"]\n[[check]]\nid = "a"\nmetric = "sqnr_db"\nlimit = 1.0'),
        GATE,
        USAGE,
        (r"'lossy-decod'", r"did you mean 'lossy-decode'"),
    ),
    Case(
        "policy alpha",
        policy('schema = 1\n[gate]\nalpha = 0.9\n[[check]]\nid = "a"\nmetric = "sqnr_db"\nlimit = 1.0'),
        GATE,
        USAGE,
        (r"alpha", r"0\.9", r"below 0\.5"),
    ),
    Case("policy extends itself", policy('schema = 1\nextends = "policy.toml"'), GATE, USAGE, (r"extends itself",)),
    Case(
        "policy waives nothing",
        policy(
            'schema = 1\n[[check]]\nid = "acc"\nmetric = "sqnr_db"\nlimit = 1.0\n[[waiver]]\n'
            'check = "ac"\nreason = "x"\nexpires = 2030-01-01'
        ),
        GATE,
        USAGE,
        (r"'ac'", r"did you mean 'acc'"),
    ),
    Case(
        "policy names a variant that is not there",
        check('metric = "sqnr_db"\nlimit = 1.0\ncandidate = "bf16"'),
        GATE,
        BAD,
        (),
        VERDICT,
    ),
    Case("report missing", nothing, args("report gone.json"), BAD, (r"gone\.json does not exist",)),
    Case("report without a result", nothing, args("report"), USAGE, (r"Missing argument 'RESULT'",)),
    Case("report folder", taking(), args("report comparison"), BAD, (r"comparison is a folder", r"expected: a file")),
    Case(
        "report unknown format",
        taking(),
        args(f"report {COMPARISON} --format mardown"),
        USAGE,
        (r"no report format 'mardown'", r"terminal, markdown", r"did you mean 'markdown'"),
    ),
    Case(
        "report unsupported format",
        taking(),
        args(f"report {COMPARISON} --format junit"),
        USAGE,
        (r"'junit' cannot show a comparison", r"expected: one of .*markdown"),
    ),
    Case("report of a table as JUnit", taking(), args(f"report {TABLE} --format junit"), USAGE, (r"cannot show",)),
    Case(
        "report unknown schema",
        lambda b: b.write("r.json", json.dumps({"schema": "quantlab.mystery/1"})),
        args("report r.json"),
        BAD,
        (r"unknown schema", r"mystery", r"expected"),
    ),
    Case(
        "report of text",
        lambda b: b.write("r.json", "hello"),
        args("report r.json"),
        BAD,
        (r"r\.json is not valid JSON",),
    ),
    Case(
        "report of a verdict that lies",
        both(lambda b: b.take("gate"), lambda b: b.edit_json("gate/gate.json", _set("outcome", to="FAIL"))),
        args("report gate/gate.json"),
        BAD,
        (r"contradicts its own checks", r"quantlab gate"),
    ),
)
