"""A small project to run, and a narrator that remembers what it was told."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from quantlab.datasets import sample_data, sample_model
from quantlab.degradation import Degradation
from quantlab.progress import Silent
from quantlab.workflow.run import RunResult, run_recipe

RECIPE = """
schema = 1
[model]
file = "fashion-resnet.onnx"
[calibrate]
data = "calibration.npz"
method = "{method}"
limit = 24
[build]
precisions = [{precisions}]
target = "onnxruntime"
[compare]
data = "evaluation.npz"
limit = 60
latency-seconds = 0
{compare}
[gate]
policy = "policy.toml"
[run]
out = "results"
threads = 2
"""

POLICY = """
schema = 1
[[check]]
id = "numerics.fp16"
metric = "sqnr_db"
candidate = "fp16"
limit = 30.0
"""


@dataclass
class Recorder(Silent):
    """A narrator that remembers."""

    said: list[str] = field(default_factory=list)
    warned: list[Degradation] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, degradation: Degradation) -> None:
        self.warned.append(degradation)

    @property
    def cached(self) -> list[str]:
        return [line.removeprefix("cached ") for line in self.said if line.startswith("cached ")]


@dataclass
class Project:
    """A folder with a recipe."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "results"

    def write(self, method: str = "minmax", precisions: tuple[str, ...] = ("fp16", "int8"), compare: str = "") -> None:
        text = RECIPE.format(method=method, precisions=", ".join(f'"{name}"' for name in precisions), compare=compare)
        (self.folder / "quantlab.toml").write_text(text)

    def run(self, narrator: Recorder | None = None, *, force: bool = False) -> RunResult:
        with contextlib.chdir(self.folder):  # names of data are recorded as given
            recipe = Path("quantlab.toml")
            return run_recipe(recipe, None, narrator or Recorder(), force=force, today=dt.date(2026, 1, 1))


def make_project(folder: Path) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(sample_model(), folder / "fashion-resnet.onnx")
    for name in ("calibration", "evaluation"):
        shutil.copy(sample_data(name), folder / f"{name}.npz")  # type: ignore[arg-type]
    (folder / "policy.toml").write_text(POLICY)
    project = Project(folder)
    project.write()
    return project
