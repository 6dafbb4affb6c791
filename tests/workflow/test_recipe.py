from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import click
import pytest

from quantlab.cli.main import group
from quantlab.engines.record import Profile
from quantlab.engines.tensorrt.options import BuildFlags, BuildOptions, Typing
from quantlab.errors import ConfigError
from quantlab.graph.existing import ExistingPolicy
from quantlab.precision import Precision
from quantlab.records import from_plain
from quantlab.workflow.recipe import CompareSection, load_recipe

LEAST = 'schema = 1\n[model]\nfile = "m.onnx"\n'


def load(folder: Path, text: str | bytes):
    path = folder / "quantlab.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path)


def test_least_recipe_and_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEAST)
    assert recipe.model.file == "m.onnx"
    assert (recipe.calibrate, recipe.compare, recipe.preprocess) == (None, None, None)
    assert recipe.build.precisions == (Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8)
    assert (recipe.build.backend, recipe.build.target) == ("onnxruntime", "tensorrt")
    assert recipe.build.existing is ExistingPolicy.REFUSE
    assert (recipe.gate.policy, recipe.run.out) == ("quantlab:default", "results")


def test_everything(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        LEAST
        + """shapes = { image = [1, 3, 8, 8] }
[calibrate]
data = "imgs"
method = "entropy"
percentile = 99
limit = 5
[build]
precisions = ["fp16"]
exclude = ["conv*"]
existing = "complete"
[compare]
data = "val"
labels = "labels.csv"
batch-size = 4
latency_batch = 2
latency-seconds = 0
[preprocess]
preset = "imagenet"
[run]
seed = 3
""",
    )
    assert recipe.model.shapes == {"image": (1, 3, 8, 8)}
    assert recipe.calibrate is not None
    assert (recipe.calibrate.method, recipe.calibrate.percentile, recipe.calibrate.limit) == ("entropy", 99.0, 5)
    assert recipe.compare is not None
    assert (recipe.compare.batch_size, recipe.compare.latency_batch, recipe.compare.latency_seconds) == (4, 2, 0.0)
    assert recipe.build.exclude == ("conv*",)
    assert recipe.build.existing is ExistingPolicy.COMPLETE
    assert recipe.preprocess == {"preset": "imagenet"}
    assert recipe.run.seed == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEAST + '[calibrat]\ndata = "x"\n', ["unknown key 'calibrat'", "did you mean 'calibrate'"]),
        (LEAST + '[compare]\ndata = "x"\nbatchsize = 3\n', ["unknown key 'batchsize'", "did you mean 'batch_size'"]),
        (LEAST + "[calibrate]\n", ["calibrate lacks the key 'data'"]),
        (LEAST + '[build]\nprecisions = ["int9"]\n', ["precisions[0] has a wrong value", "did you mean 'int8'"]),
        (LEAST + '[build]\nprecisions = "int8"\n', ["precisions has a wrong value", "a list"]),
        (LEAST + '[calibrate]\ndata = "x"\nlimit = 1.5\n', ["limit has a wrong value", "a whole number"]),
        (LEAST + '[calibrate]\ndata = "x"\nlimit = true\n', ["limit has a wrong value", "a whole number"]),
        (LEAST + "[calibrate]\ndata = 3\n", ["data has a wrong value", "a string"]),
        (LEAST + '[calibrate]\ndata = "x"\npercentile = "high"\n', ["percentile has a wrong value", "a number"]),
        (LEAST + "run = 3\n", ["run"]),
        (LEAST + "[run]\nseed = -1\n", ["run.seed has a wrong value"]),
        (LEAST + '[compare]\ndata = "x"\nbatch-size = 0\n', ["batch-size has a wrong value"]),
        ('schema = 2\n[model]\nfile = "m"\n', ["another schema version", "2", "schema = 1"]),
        ('[model]\nfile = "m"\n', ["another schema version", "none"]),
        ("schema = 1\n", ["lacks the key 'model'"]),
        ("schema = 1\nmodel = [\n", ["not valid TOML"]),
        (b"\xff\xfe", ["not UTF-8"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "quantlab.toml" in message
    for word in words:
        assert word in message


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "quantlab.toml").write_text(LEAST)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_recipe(tmp_path / "quantlab.tml")
    assert "quantlab.toml" in str(caught.value.hint)


def test_options_of_tensorrt(tmp_path: Path) -> None:
    """By the names of the flags; files are relative to the recipe."""
    recipe = load(
        tmp_path,
        LEAST
        + """
[build]
backend = "tensorrt"
shapes = ["image:1x3x8x8:2x3x8x8:4x3x8x8"]
[build.tensorrt]
workspace = "2GiB"
memory-pool = ["tactic-dram:1GiB"]
timing-cache = "timings"
optimization-level = 4
version-compatible = true
hardware-compatibility = "ampere-plus"
compute-capability = "sm89,sm120"
dla-core = 0
plugin = ["lib/own.so"]
refit = true
strip = true
sparse-weights = true
typing = "weak"
max-aux-streams = 2
""",
    )
    profile = Profile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    assert recipe.build.options(tmp_path) == BuildOptions(
        profiles=({"image": profile},),
        memory_pools=(("workspace", 2 << 30), ("tactic-dram", 1 << 30)),
        timing_cache=tmp_path / "timings",
        optimization_level=4,
        version_compatible=True,
        hardware_compatibility="ampere-plus",
        compute_capabilities=("sm89", "sm120"),
        dla_core=0,
        plugins=(tmp_path / "lib/own.so",),
        refit=True,
        strip_plan=True,
        sparse_weights=True,
        typing=Typing.WEAK,
        max_aux_streams=2,
    )


def test_none_of_them(tmp_path: Path) -> None:
    assert load(tmp_path, LEAST).build.options(tmp_path) == BuildOptions()


def test_the_recipe_has_every_flag_of_the_command_line() -> None:
    context = click.Context(group)
    build = group.get_command(context, "build")
    assert build is not None
    flags = {option for one in build.params for option in one.opts}
    assert {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(BuildFlags)} <= flags


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[build]\nshapes = ['image:1x3x8x8']", "under [build]: build.shapes gives input 'image' one shape"),
        ("[build]\nshapes = ['image']", "under [build]: --shapes 'image' is malformed"),
        ("[build.tensorrt]\noptimization-level = 9", "under [build]: --optimization-level is out of range"),
        ("[build.tensorrt]\nworkspace = 'much'", "under [build]: --workspace 'much' is malformed"),
        ("[build.tensorrt]\ntyping = 'strng'", "under [build]: there is no typing 'strng'"),
        ("[build.tensorrt]\nrefit = 1", "build.tensorrt.refit has a wrong value"),
        ("[build.tensorrt]\nworkspce = '2GiB'", "workspce"),
        ('[build.tensorrt]\ntiming-cache = "a\\u0000"', "build.tensorrt.timing-cache has a wrong value"),
    ],
)
def test_wrong_options(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, LEAST + text)
    assert what in caught.value.what


def test_the_documented_section_of_comparing_is_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")
    (example,) = [part.split("```")[0] for part in text.split("```toml\n")[1:]]
    section = from_plain(CompareSection, tomllib.loads(example)["compare"], "docs/comparison.md")
    defaults = CompareSection("")
    changed = [
        field.name
        for field in dataclasses.fields(section)
        if getattr(defaults, field.name) != getattr(section, field.name)
    ]
    assert changed == ["data", "labels", "task", "task_options", "metric", "slices", "by_class", "limit"]


def test_messages_name_keys_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "quantlab.toml"
    for key in ("by-class", "by_class"):
        path.write_text(f'schema = 1\n[model]\nfile = "m"\n[compare]\ndata = "x"\n{key} = 3\n')
        with pytest.raises(ConfigError, match=rf"quantlab\.toml\.compare\.{key} has a wrong value"):
            load_recipe(path)
