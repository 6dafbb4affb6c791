"""The whole chain with TensorRT-RTX where there is no GPU: engines are built, and comparing says where to go on."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path

import pytest
from gpu_here import gpu_is_here
from rtx_builder import PACKAGE, REASON

sys.path.append(str(Path(__file__).parents[1] / "workflow"))
from workflow_data import Recorder

from quantlab.cli.main import main
from quantlab.datasets import sample_data, sample_model
from quantlab.engines.sidecar import read_sidecar
from quantlab.errors import BackendUnavailable, ExitCode
from quantlab.workflow.run import run_recipe

pytest.importorskip(PACKAGE, reason=REASON)
pytestmark = [
    pytest.mark.tensorrt_rtx,
    pytest.mark.skipif(gpu_is_here(), reason="about builds without a GPU"),
]

RECIPE = """
schema = 1
[model]
file = "{model}"
[calibrate]
data = "{calibration}"
limit = 16
[build]
backend = "tensorrt-rtx"
precisions = ["fp16"]
shapes = ["{input}:1x1x28x28:2x1x28x28:{largest}x1x28x28"]
[build.tensorrt]
optimization-level = {level}
compute-capability = "sm89"
[compare]
data = "{evaluation}"
limit = 16
latency-seconds = 0
"""
MODEL = "fashion-resnet"


def write(folder: Path, *, level: int = 0, largest: int = 4) -> Path:
    path = folder / "quantlab.toml"
    path.write_text(
        RECIPE.format(
            model=sample_model(MODEL), calibration=sample_data("calibration"), evaluation=sample_data("evaluation"),
            input="image", level=level, largest=largest,
        )
    )  # fmt: skip
    return path


def run(recipe: Path) -> tuple[BackendUnavailable, list[str]]:
    """What it ends with, and the steps that were not run again."""
    recorder = Recorder()
    with pytest.raises(BackendUnavailable) as caught:
        run_recipe(recipe, None, recorder, force=False, today=dt.date(2026, 11, 21))
    return caught.value, [line.removeprefix("cached ") for line in recorder.said if line.startswith("cached ")]


def test_engines_are_built_and_the_error_says_how_to_go_on(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    error, cached = run(recipe)
    engines = tmp_path / "results" / "engines"
    assert error.exit_code == ExitCode.UNAVAILABLE
    assert error.what == f"the engines are built and lie in {engines}, but cannot be compared here"
    assert "quantlab compare engines" in str(error.hint)
    assert cached == []
    sidecars = [read_sidecar(path) for path in sorted(engines.glob("*.engine"))]
    assert [sidecar.name for sidecar in sidecars] == ["tensorrt-rtx-fp16", "tensorrt-rtx-fp32"]
    record = sidecars[0].engine
    assert record is not None
    assert (record.options["optimization-level"], record.options["compute-capability"]) == ("0", "sm89")
    assert record.profiles[0]["image"].maximum == (4, 1, 28, 28)

    built = ["calibrate", "build fp32", "build fp16"]
    assert run(recipe)[1] == built
    assert run(write(tmp_path, level=1))[1] == ["calibrate"], "another option is another engine"
    assert run(write(tmp_path, level=1, largest=8))[1] == ["calibrate"], "and so are other shapes"


def test_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(write(tmp_path)), "--json"])
    assert caught.value.code == ExitCode.UNAVAILABLE
    document = json.loads(capsys.readouterr().out)
    assert (document["error"], document["exit_code"]) == ("BackendUnavailable", 4)
