"""Ctrl-C in the middle of a run: a message, exit code 130, nothing half-written, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from cli_bench import Bench, tree

from quantlab.cli.main import group, main
from quantlab.errors import CalibrationError, ExitCode

SLOW_DATA = '''
import time
import numpy as np

class Slow:
    """Images that take their time, as those on a network drive."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(0.03)
        image = np.random.default_rng(self.first + index).integers(0, 256, (8, 8, 3))
        return image.astype(np.uint8), index % 4

def calibration():
    return Slow(0)

def evaluation():
    return Slow(100)
'''


@pytest.fixture
def slow(bench: Bench) -> Bench:
    bench.take("net.onnx")
    bench.write("slow_data.py", SLOW_DATA)
    bench.recipe(
        calibrate='data = "slow_data:calibration"',
        compare='data = "slow_data:evaluation"\nlatency-seconds = 0.2',
    )
    return bench


def start(bench: Bench, *flags: str, verb: str = "run") -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(bench.folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "quantlab", verb, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def interrupt_at(
    process: subprocess.Popen[str], beginning: str, number: signal.Signals = signal.SIGINT
) -> tuple[str, str]:
    """Send a signal when stderr says a line that begins so; the rest of stdout and all of stderr."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(beginning):
            process.send_signal(number)
            break
    else:
        pytest.fail(f"{beginning!r} was never said:\n{''.join(lines)}")
    out, err = process.communicate(timeout=60)
    return out, "".join(lines) + err


def no_temporary_files(bench: Bench) -> bool:
    return not [name for name in tree(bench.folder) if name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("moment", "finished"),
    [
        ("calibrating", []),
        ("built  onnxruntime-fp32", ["calibrate"]),
        ("comparing", ["calibrate", "build fp32", "build int8"]),
        ("timing", ["calibrate", "build fp32", "build int8"]),
    ],
)
def test_interrupted_run_goes_on(moment: str, finished: list[str], slow: Bench) -> None:
    process = start(slow)
    out, err = interrupt_at(process, moment)
    assert process.returncode == 130, err
    assert "interrupted: finished steps and whole files are kept" in err
    assert "Traceback" not in err and "Exception" not in err
    assert out == ""
    assert no_temporary_files(slow)
    assert not (slow / "results/gate.json").exists()
    state = slow / "results/state.json"
    steps = list(json.loads(state.read_text())["steps"]) if state.exists() else []
    assert steps[: len(finished)] == finished

    again = start(slow)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "Gate: PASS" in out
    cached = [line.removeprefix("cached ") for line in err.splitlines() if line.startswith("cached ")]
    assert cached == steps
    assert no_temporary_files(slow)


def test_a_cancelled_job_is_an_interrupted_one(slow: Bench) -> None:
    process = start(slow)
    _, err = interrupt_at(process, "calibrating", signal.SIGTERM)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert no_temporary_files(slow)


@pytest.mark.parametrize(
    ("mode", "moment"), [(("--across", "onnxruntime"), "comparing"), (("--layers", "8"), "tensors")]
)
def test_interrupted_looks_at_runtimes_and_layers_leave_nothing(
    mode: tuple[str, str], moment: str, slow: Bench
) -> None:
    slow.take("calibration", "unit.toml")
    process = start(
        slow, "calibration/net.qdq.onnx", *mode, "--model", "net.onnx", "--data", "slow_data:evaluation",
        "--preprocess", "unit.toml", "-o", "out", verb="compare",
    )  # fmt: skip
    out, err = interrupt_at(process, moment)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert (out, (slow / "out").exists(), no_temporary_files(slow)) == ("", False, True)


def test_interrupted_json_says_so(slow: Bench) -> None:
    process = start(slow, "--json")
    out, _ = interrupt_at(process, "calibrating")
    document = json.loads(out)
    assert (process.returncode, document["exit_code"]) == (130, 130)


def test_interrupted_demo_leaves_no_half_set(bench: Bench) -> None:
    """Images are unpacked beside their place; an interruption leaves none or all of a set."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quantlab", "demo", "here"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(bench.folder.glob("here/.*.tmp/*/*.png")):
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert no_temporary_files(bench)
    assert {folder.name: len(list(folder.rglob("*.png"))) for folder in (bench / "here").iterdir()} in (
        {},
        {"calibration": 512},
    )


@pytest.mark.parametrize("kind", [RuntimeError, CalibrationError])
def test_an_interruption_that_ends_in_another_error(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the signal hits a lock of the standard library, whose cleaning up then fails."""

    def interrupted(**_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise kind("cannot release un-acquired lock")

    monkeypatch.setattr(group, "main", lambda *_, **__: interrupted())
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == ExitCode.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
