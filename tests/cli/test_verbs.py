"""The good paths of every verb: files, streams, formats and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_bench import PASSING, Bench, Cli, tiny_cnn

from quantlab.cli.main import VERBS
from quantlab.errors import ExitCode

PYTHON = [sys.executable, "-m", "quantlab"]
COMMON = ("--preprocess", "unit.toml", "--threads", "1")
CALIBRATION = {"calibration.json", "net.qdq.onnx", "net.calib", "net.calib.json", "histograms.npz"}
ENGINES = {"onnxruntime-fp32.onnx", "onnxruntime-int8-mse.onnx"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_calibrate(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "images", "unit.toml")
    answer = cli("calibrate", "--data", "images", *COMMON, "-o", "out")  # the only .onnx file in the folder
    assert answer.code == 0
    assert names(bench / "out") == CALIBRATION
    assert all(f"wrote out/{name}" in answer.out for name in CALIBRATION)
    assert "model  net.onnx" in answer.err and "12 samples" in answer.err


def test_calibrate_finds_the_recipes_model(bench: Bench, cli: Cli) -> None:
    bench.take("images", "unit.toml")
    bench.recipe(model='file = "nets/a.onnx"')
    bench.model(tiny_cnn(), "nets/a.onnx")
    bench.model(tiny_cnn(classes=3), "other.onnx")
    answer = cli("calibrate", "--data", "images", *COMMON)
    assert answer.code == 0
    assert "model  a.onnx" in answer.err


def test_calibrate_again_replaces_its_own_files(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "images", "unit.toml", "calibration")
    before = (bench / "calibration/calibration.json").read_text()
    assert cli("calibrate", "--data", "images", *COMMON).code == 0
    assert (bench / "calibration/calibration.json").read_text() == before
    bench.model(tiny_cnn(classes=5))
    assert cli("calibrate", "--data", "images", *COMMON, "--force").code == 0
    assert (bench / "calibration/calibration.json").read_text() != before


def test_build(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "calibration")
    answer = cli(
        "build",
        "--table",
        "calibration/calibration.json",
        "--precisions",
        "fp32,int8",
        "--exclude",
        "head",
        "-o",
        "out",
    )
    assert answer.code == 0
    engines = {"onnxruntime-fp32.onnx", "onnxruntime-int8-mse+1excl.onnx"}
    assert names(bench / "out") == engines | {f"{name}.engine.json" for name in engines}


def test_compare_takes_engines_as_a_shell_lists_them(bench: Bench, cli: Cli) -> None:
    bench.take("engines", "eval", "unit.toml")
    listed = sorted(str(path) for path in Path("engines").iterdir())
    answer = cli("compare", *listed, "--data", "eval", *COMMON, "--latency-seconds", "0.05", "-o", "out")
    assert answer.code == 0
    assert names(bench / "out") == {"comparison.json", "comparison.csv", "comparison.md", "samples.parquet"}
    variants = json.loads((bench / "out/comparison.json").read_text())["variants"]
    assert [v["requested"] for v in variants] == ["fp32", "fp16", "int8"]
    assert all(v["latency"]["n_calls"] > 0 for v in variants)


POLICIES = {
    "pass": (PASSING, ExitCode.OK, "PASS"),
    "fail": (PASSING.replace("limit = 1.0", "limit = 99.0"), ExitCode.GATE_FAILED, "FAIL"),
    "inconclusive": (
        PASSING.replace('metric = "sqnr_db"', 'metric = "top1"').replace(
            "limit = 1.0", "margin = { absolute_pp = 0.5 }"
        ),
        ExitCode.INCONCLUSIVE,
        "INCONCLUSIVE",
    ),
    "error": (PASSING.replace('"int8"', '"bf16"'), ExitCode.BAD_INPUT, "ERROR"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_gate_exit_codes(name: str, bench: Bench, cli: Cli) -> None:
    text, code, outcome = POLICIES[name]
    bench.take("comparison")
    bench.write("policy.toml", text)
    answer = cli("gate", "--policy", "policy.toml", "-o", "out")
    assert answer.code == code
    assert answer.out.startswith(f"Gate: {outcome}")
    assert names(bench / "out") == {"gate.json", "junit.xml", "summary.md"}
    assert json.loads((bench / "out/gate.json").read_text())["outcome"] == outcome
    document = cli("gate", "comparison/comparison.json", "--policy", "policy.toml", "--json")
    assert (document.code, document.document()["outcome"]) == (code, outcome)


def test_gate_error_names_the_missing_variant(bench: Bench, cli: Cli) -> None:
    bench.take("comparison")
    bench.write("policy.toml", POLICIES["error"][0])
    answer = cli("gate", "--policy", "policy.toml")
    assert "bf16" in answer.out
    assert "onnxruntime-fp16" in answer.out


def test_gate_plan(cli: Cli) -> None:
    answer = cli("gate", "plan", "--margin", "0.5pp", "--discordance", "2%")
    assert answer.code == 0
    assert "4,947 images for 80 % power" in answer.out  # (1.6449 + 0.8416)^2 * 0.02 / 0.005^2
    assert cli("gate", "plan", "--margin", "0.5", "--json").document()["images"][0] == 4947
    assert cli("gate", "plan", "--margin", "0.5", "--alpha", "1e-300").code == 0


def test_run_and_run_again(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "images", "eval")
    bench.recipe()
    answer = cli("run")
    assert answer.code == 0, answer
    assert "Gate: PASS" in answer.out
    results = bench / "results"
    assert names(results) == {
        "calibration", "engines", "comparison.json", "comparison.csv", "comparison.md", "samples.parquet", "gate.json",
        "junit.xml", "summary.md", "state.json",
    }  # fmt: skip
    assert names(results / "engines") == ENGINES | {f"{name}.engine.json" for name in ENGINES}
    again = cli("run", "--json")
    assert again.code == 0
    assert [line for line in again.err.splitlines() if line.startswith("cached")] == [
        "cached calibrate", "cached build fp32", "cached build int8", "cached compare",
    ]  # fmt: skip
    assert again.document()["schema"] == "quantlab.run/1"
    (results / "engines" / "onnxruntime-fp32.onnx").write_bytes(b"")
    healed = cli("run")
    assert healed.code == 0
    assert "cached build fp32" not in healed.err and "cached build int8" in healed.err


def test_run_gives_the_verdicts_exit_code(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "images", "eval")
    bench.recipe()
    bench.write("policy.toml", POLICIES["fail"][0])
    assert cli("run", "-o", "elsewhere").code == ExitCode.GATE_FAILED
    assert (bench / "elsewhere" / "gate.json").is_file()
    assert not (bench / "results").exists()


REPORTS = {
    "comparison/comparison.json": ("terminal", "markdown", "csv", "json"),
    "gate/gate.json": ("terminal", "markdown", "csv", "json", "junit", "summary"),
    "calibration/calibration.json": ("terminal", "csv", "json"),
}


@pytest.mark.parametrize(("result", "name"), [(file, name) for file, all_ in REPORTS.items() for name in all_])
def test_report(result: str, name: str, bench: Bench, cli: Cli) -> None:
    bench.take(result.split("/")[0])
    answer = cli("report", result, "--format", name)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.endswith("\n") and not answer.out.endswith("\n\n")
    if name == "json":
        assert answer.document() == json.loads((bench / result).read_text())
    elif name == "junit":
        assert ET.fromstring(answer.out).tag == "testsuites"
    elif name == "csv":
        assert len({len(row) for row in csv.reader(io.StringIO(answer.out))}) == 1
    written = cli("report", result, "--format", name, "-o", "reports/it")
    assert (written.code, written.out) == (0, "")
    assert (bench / "reports/it").read_text() == answer.out


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("net.onnx", "ONNX model net.onnx"),
        ("engines/onnxruntime-int8-mse.onnx", "engine onnxruntime-int8-mse"),
        ("engines/onnxruntime-int8-mse.onnx.engine.json", "engine onnxruntime-int8-mse"),
        ("calibration/calibration.json", "calibration of net.onnx"),
        ("calibration/net.calib", "TensorRT calibration cache"),
        ("calibration/net.qdq.onnx", "ONNX model net.qdq.onnx"),
        ("comparison/comparison.json", "onnxruntime-int8-mse"),
        ("gate/gate.json", "Gate: PASS"),
    ],
)
def test_inspect(file: str, said: str, bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "engines", "calibration", "comparison", "gate")
    answer = cli("inspect", file)
    assert (answer.code, answer.err) == (0, "")
    assert said in answer.out
    assert cli("inspect", file, "--json").document()["schema"].startswith("quantlab.")


def test_lint_of_a_model(bench: Bench, cli: Cli) -> None:
    """Warnings exit 0, errors 5; the terminal groups, JSON holds every place, and a saved report renders again."""
    bench.take("net.onnx", "calibration")
    own = cli("inspect", "--lint", "calibration/net.qdq.onnx")
    assert (own.code, own.err) == (0, "")
    assert own.out.startswith("net.qdq.onnx: 1 info; ") and "layer-not-quantized\n" in own.out
    assert "head: Gemm" in own.out, "the classifier is too small for TensorRT"
    assert cli("inspect", "net.onnx", "--lint").out.startswith("net.onnx: no findings; ")
    proto = onnx.load("calibration/net.qdq.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("_zero"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), 7, np.int8), tensor.name))
    bench.model(proto, "shifted.onnx")
    shifted = ("inspect", "--lint", "shifted.onnx")
    answer = cli(*shifted)
    assert (answer.code, answer.err) == (ExitCode.BAD_INPUT, "")
    assert re.search(r"^error +zero-point-not-zero, \d+ places$", answer.out, re.MULTILINE)
    assert "zero-point 7" in answer.out and "fix: quantize symmetrically" in answer.out
    found = cli(*shifted, "--json")
    assert found.code == ExitCode.BAD_INPUT
    document = found.document()
    assert (document["schema"], document["target"], document["file"]) == ("quantlab.lint/1", "tensorrt", "shifted.onnx")
    zeros = [entry for entry in document["findings"] if entry["rule"] == "zero-point-not-zero"]
    assert len(zeros) == sum("Linear" in node.op_type and len(node.input) > 2 for node in proto.graph.node)
    bench.write("lint.json", found.out)
    assert cli("report", "lint.json").out == answer.out
    assert "## error: zero-point-not-zero" in cli("report", "lint.json", "--format", "markdown").out
    assert cli("inspect", "lint.json").out == answer.out
    assert cli(*shifted, "--target", "onnxruntime").code == 0


def test_lint_of_a_cache(bench: Bench, cli: Cli) -> None:
    bench.take("net.onnx", "calibration")
    cache = ("inspect", "--lint", "calibration/net.calib", "--model", "net.onnx")
    answer = cli(*cache, "--json")
    assert answer.code == 0
    assert (answer.document()["kind"], answer.document()["target"]) == ("calibration-cache", None)
    late = cli(*cache, "--tensorrt", "11.0.0")
    assert late.code == ExitCode.BAD_INPUT
    assert "no-calibrators" in late.out
    bench.write("bad.calib", "TRT-100300-EntropyCalibration2\nx: 7fc00000\n")
    damaged = cli("inspect", "bad.calib", "--lint")
    assert damaged.code == ExitCode.BAD_INPUT
    assert re.search(r"^error +unusable-scale$", damaged.out, re.MULTILINE)


def test_demo(bench: Bench, cli: Cli) -> None:
    answer = cli("demo", "here", "--json")
    assert answer.code == 0
    made = answer.document()["files"]
    assert made == [str(Path("here") / name) for name in (
        "calibration", "evaluation", "fashion-resnet.onnx", "quantlab.toml", "fashion-mobilenet.onnx",
        "mobilenet.toml", "policy.toml",
    )]  # fmt: skip
    assert len(list((bench / "here/calibration").rglob("*.png"))) == 512
    assert len(list((bench / "here/evaluation").rglob("*.png"))) == 2000


def test_doctor(cli: Cli) -> None:
    answer = cli("doctor", "--json")
    assert answer.code == 0
    assert answer.document()["usable"] is True


JSON_CALLS = {
    "calibrate": ("calibrate", "--model", "net.onnx", "--data", "images", *COMMON, "-o", "out"),
    "build": ("build", "--model", "net.onnx", "--precisions", "fp32", "-o", "out"),
    "compare": ("compare", "--data", "eval", *COMMON, "--latency-seconds", "0", "-o", "out"),
    "gate": ("gate", "--policy", "quantlab:numerics", "-o", "out"),
    "run": ("run",),
    "report": ("report", "comparison/comparison.json"),
    "inspect": ("inspect", "net.onnx"),
}


@pytest.fixture
def full(bench: Bench) -> Bench:
    bench.take("net.onnx", "images", "eval", "calibration", "engines", "comparison", "unit.toml")
    bench.recipe()
    return bench


@pytest.mark.parametrize("verb", JSON_CALLS)
def test_json_is_one_document_on_stdout(verb: str, full: Bench, cli: Cli) -> None:
    answer = cli(*JSON_CALLS[verb], "--json")
    assert answer.code == 0, answer
    assert answer.document()["schema"].startswith("quantlab.")
    assert "\x1b" not in answer.out + answer.err
    assert "\r" not in answer.err  # no bars where there is no terminal


@pytest.mark.parametrize("verb", JSON_CALLS)
def test_quiet(verb: str, full: Bench, cli: Cli) -> None:
    answer = cli(*JSON_CALLS[verb], "--quiet")
    assert answer.code == 0
    assert answer.out
    assert [line for line in answer.err.splitlines() if not line.startswith("warning: ")] == []


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("inspect", "gone.onnx", "--json"), 5, "ModelError"),
        (("calibrate", "--json"), 2, "UsageError"),
        (("calibrat", "--json"), 2, "UsageError"),
        (("search", "--json"), 2, "UsageError"),
        (("inspect", "x", "--josn", "--json"), 2, "UsageError"),
        (("build", "--model", "x", "--backend", "tensorrt", "--json"), 4, "BackendUnavailable"),
        (("gate", "--json", "gone"), 5, "DataError"),
    ],
)
def test_json_errors(arguments: tuple[str, ...], code: int, kind: str, bench: Bench, cli: Cli) -> None:
    answer = cli(*arguments)
    document = answer.document()
    assert (answer.code, document["exit_code"], document["error"]) == (code, code, kind)
    assert document["schema"] == "quantlab.error/1"
    assert document["message"].splitlines()[0] in answer.err


def test_debug_shows_the_traceback(bench: Bench, cli: Cli) -> None:
    assert "Traceback" not in cli("inspect", "gone.onnx").err
    assert "Traceback" in cli("inspect", "gone.onnx", "--debug").err


def test_internal_errors_show_a_traceback_and_exit_70(bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("on purpose")

    monkeypatch.setattr("quantlab.workflow.inspect.inspect_file", broken)
    answer = cli("inspect", "x", "--json")
    assert answer.code == answer.document()["exit_code"] == 70
    assert "on purpose" in answer.err and "internal error" in answer.err


def test_a_full_disk_leaves_earlier_files_alone(full: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC when the data is to reach the disk."""

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = {path: path.read_bytes() for path in (full / "comparison").iterdir()}
    monkeypatch.setattr(os, "fsync", full_disk)
    answer = cli("compare", "--data", "eval", *COMMON, "--latency-seconds", "0")
    assert answer.code == ExitCode.USAGE
    assert "cannot write comparison/samples.parquet" in answer.err
    assert "No space left on device" in answer.err and "free space" in answer.err
    assert {path: path.read_bytes() for path in (full / "comparison").iterdir()} == before


def test_no_memory_is_no_internal_error(bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("quantlab.workflow.inspect.inspect_file", hungry)
    answer = cli("inspect", "x")
    assert answer.code == ExitCode.BAD_INPUT
    assert "not enough memory" in answer.err and "9 TiB" in answer.err and "Traceback" not in answer.err


# Real processes from here on.


def test_module_entry(bench: Bench) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "quantlab", "")


@pytest.mark.parametrize("code", ["pass", "fail"])
def test_a_reader_that_goes_away_does_not_change_the_verdict(code: str, bench: Bench) -> None:
    """``quantlab gate | head -0``: stdout and stderr are pipes that nobody reads."""
    bench.take("comparison")
    bench.write("policy.toml", POLICIES[code][0])
    for closed in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writing}
        done = subprocess.run(
            [*PYTHON, "gate", "--policy", "policy.toml"], **streams, text=True, timeout=60, check=False
        )  # type: ignore[call-overload]
        os.close(writing)
        assert done.returncode == POLICIES[code][1]
        assert not done.stderr
        assert (bench / "gate/gate.json").is_file()


def test_a_closed_pipe_does_not_stop_the_work(bench: Bench) -> None:
    """``quantlab run 2>&1 | head -1``: the run goes on, and its exit code is the verdict's."""
    bench.take("net.onnx", "images", "eval")
    bench.recipe()
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PYTHON, "run"], stdout=writing, stderr=writing, timeout=60, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert (bench / "results/gate.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(bench: Bench) -> None:
    bench.take("net.onnx")
    with Path("/dev/full").open("w") as full_disk:
        done = subprocess.run(
            [*PYTHON, "inspect", "net.onnx"], stdout=full_disk, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == ExitCode.USAGE
    assert "cannot write to the standard output" in done.stderr and "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_hostile_names(bench: Bench) -> None:
    """Spaces, line breaks, other scripts, format strings; on a terminal that knows only ASCII."""
    bench.take("images", "unit.toml")
    name = "ein Netz\n%s {0} 画像 é"
    bench.model(tiny_cnn(), f"{name}.onnx")
    done = run(
        "calibrate", "--data", "images", *COMMON, "-o", "-out 像", env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert names(bench / "-out 像") == {
        f"{name}.qdq.onnx",
        f"{name}.calib",
        f"{name}.calib.json",
        "calibration.json",
        "histograms.npz",
    }
    shown = run("inspect", "--json", "--", f"{name}.onnx")
    assert (shown.returncode, json.loads(shown.stdout)["file"]) == (0, f"{name}.onnx")


def _on_terminal(arguments: list[str], environment: dict[str, str]) -> bytes:
    """What a process writes to a terminal."""
    main, side = pty.openpty()
    process = subprocess.Popen([*PYTHON, *arguments], stdout=side, stderr=side, stdin=side, env=environment)
    os.close(side)
    output = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not block:
            break
        output += block
    process.wait(60)
    os.close(main)
    return output


def test_colour_only_on_a_terminal_without_no_color(bench: Bench) -> None:
    bench.take("comparison")
    arguments = ["gate", "--policy", "quantlab:default"]
    plain = {key: text for key, text in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
    assert b"\x1b[" in _on_terminal(arguments, plain)
    assert b"\x1b[" not in _on_terminal(arguments, plain | {"NO_COLOR": "1"})
    assert "\x1b[" not in run(*arguments, env=plain).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, cli: Cli) -> None:
    answer = cli("completion", shell)
    assert (answer.code, answer.err) == (0, "")
    assert "_QUANTLAB_COMPLETE" in answer.out


def test_completion_answers_in_bash(bench: Bench, cli: Cli) -> None:
    """The script, sourced by bash, completes a verb and a flag by asking the installed command."""
    bench.write("complete.bash", cli("completion", "bash").out)
    bench.write("bin/quantlab", f'#!/bin/sh\nexec "{sys.executable}" -m quantlab "$@"\n').chmod(0o755)
    script = """
    source complete.bash
    ask() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _quantlab_completion quantlab
        echo "${COMPREPLY[@]}"
    }
    ask quantlab cal
    ask quantlab compare --laten
    """
    environment = os.environ | {"PATH": f"{bench / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    if "requires Bash 4.4" in done.stderr + done.stdout:
        pytest.skip("bash is too old")
    assert done.stdout.split() == ["calibrate", "--latency-batch", "--latency-seconds"], done


def test_convert_cache(bench: Bench, cli: Cli) -> None:
    bench.take("calibration")
    answer = cli("convert-cache", "calibration/net.calib", "-o", "new.calib", "--tensorrt", "8.6.1")
    assert (answer.code, answer.err) == (0, "")
    old, new = ((bench / name).read_text().splitlines() for name in ("calibration/net.calib", "new.calib"))
    assert new[0].startswith("TRT-8601-")
    assert new[1:] == old[1:]
    assert (bench / "new.calib.json").exists(), "a cache has its provenance beside it"


def test_every_verb_has_a_good_path_here() -> None:
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*verb*.py"))
    assert all(f'"{verb}"' in here for verb in VERBS)
