"""The recipe, ``quantlab.toml``: what the whole chain is to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab.calibrators.methods import DEFAULT_METHOD
from quantlab.documents import read_toml
from quantlab.engines.tensorrt.options import BuildFlags, BuildOptions
from quantlab.engines.tensorrt.profiles import ShapeFlags, parse_shape_flags
from quantlab.errors import ConfigError
from quantlab.graph.existing import ExistingPolicy
from quantlab.precision import Precision
from quantlab.records import from_plain

RECIPE_NAME = "quantlab.toml"
RECIPE_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelSection:
    """``[model]``.

    Attributes:
        file: ONNX file, relative to the recipe.
        shapes: Shapes to impose on inputs, by name.
    """

    file: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CalibrateSection:
    """``[calibrate]``.

    Attributes:
        data: Source of calibration samples, relative to the recipe where it is a path.
        method: Range method.
        percentile: Share kept by the percentile method, in per cent.
        limit: Seeded class-balanced subset of so many samples.
        recover: Steps of accuracy recovery, as after ``--recover``.
    """

    data: str
    method: str = DEFAULT_METHOD
    percentile: float = 99.99
    limit: int | None = None
    recover: str = "none"


@dataclass(frozen=True, slots=True)
class BuildSection:
    """``[build]``.

    Attributes:
        precisions: Variants to build; fp32 is the reference and always built.
        backend: Backend.
        target: Q/DQ rules of quantized variants.
        exclude: Names or patterns of layers to keep in floating point.
        existing: What to do with Q/DQ pairs that the model already holds, in calibration too.
        shapes: Ranges of input shapes for TensorRT, ``NAME:MIN:OPT:MAX`` each, as after ``--shapes``.
        tensorrt: ``[build.tensorrt]``: options of TensorRT's builders, by the names of the flags.
    """

    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8)
    backend: str = "onnxruntime"
    target: str = "tensorrt"
    exclude: tuple[str, ...] = ()
    existing: ExistingPolicy = ExistingPolicy.REFUSE
    shapes: tuple[str, ...] = ()
    tensorrt: BuildFlags = field(default_factory=BuildFlags)

    def shape_flags(self) -> ShapeFlags:
        """The ranges of `shapes`.

        Raises:
            ConfigError: If one is malformed, or is one shape.
        """
        flags = parse_shape_flags(self.shapes)
        if flags.imposed:
            name, shape = next(iter(flags.imposed.items()))
            raise ConfigError(
                f"build.shapes gives input {name!r} one shape", got="x".join(map(str, shape)),
                expected="a range, NAME:MIN:OPT:MAX", hint="one shape stands under [model.shapes]",
            )  # fmt: skip
        return flags

    def options(self, folder: Path) -> BuildOptions:
        """Options of the builder.

        Args:
            folder: Of the recipe, to which its files are relative.

        Raises:
            ConfigError: If a value is wrong.
        """
        return self.tensorrt.options(self.shape_flags().profiles, folder)


@dataclass(frozen=True, slots=True)
class CompareSection:
    """``[compare]``.

    Attributes:
        data: Source of evaluation samples.
        labels: Labels file, or truths of another kind for tasks that need them.
        task: What the model is for; None to choose by its outputs.
        task_options: Settings of the task.
        metric: ``package.module:function`` of your own figures.
        slices: CSV file whose columns the figures are told by.
        by_class: Whether a classifier's figures are told class by class.
        limit: Seeded class-balanced subset of so many samples.
        batch_size: Samples a call when measuring drift.
        latency_batch: Samples a call when timing.
        latency_seconds: Timing budget for all variants; 0 to skip timing.
    """

    data: str
    labels: str | None = None
    task: str | None = None
    task_options: Mapping[str, str] = field(default_factory=dict)
    metric: str | None = None
    slices: str | None = None
    by_class: bool = True
    limit: int | None = None
    batch_size: int = 32
    latency_batch: int = 1
    latency_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class GateSection:
    """``[gate]``.

    Attributes:
        policy: Policy file, or the name of a built-in policy.
    """

    policy: str = "quantlab:default"


@dataclass(frozen=True, slots=True)
class RunSection:
    """``[run]``.

    Attributes:
        out: Output folder, relative to the recipe.
        threads: Threads of engines and decoders; 0 for all there are.
        seed: Of subsets, timing order and bootstrap.
    """

    out: str = "results"
    threads: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes:
        schema: Version of the form, 1.
        model: What to quantize.
        calibrate: On what.
        build: Into what.
        compare: Judged on what.
        gate: By what.
        run: Where and how.
        preprocess: Preprocessing, as `quantlab.datasets.Preprocess` or ``{preset = "name"}``; None to take the model's.
    """

    schema: int
    model: ModelSection
    calibrate: CalibrateSection | None = None
    build: BuildSection = field(default_factory=BuildSection)
    compare: CompareSection | None = None
    gate: GateSection = field(default_factory=GateSection)
    run: RunSection = field(default_factory=RunSection)
    preprocess: Mapping[str, Any] | None = None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: If it is missing, not TOML, of another version, or holds unknown keys or wrong values.
    """
    document = read_toml(path, "recipe")
    if document.get("schema") != RECIPE_VERSION:
        raise ConfigError(
            f"recipe {path} has another schema version",
            got=document.get("schema", "none"),
            expected=f"schema = {RECIPE_VERSION} as its first line",
        )
    recipe = from_plain(Recipe, document, str(path), ConfigError)
    try:
        recipe.build.options(path.parent)
    except ConfigError as error:
        what = f"{path}, under [build]: {error.what}"
        raise ConfigError(what, got=error.got, expected=error.expected, hint=error.hint) from error
    _check_numbers(recipe, path)
    _check_names(recipe, path)
    return recipe


def _check_numbers(recipe: Recipe, path: Path) -> None:
    """Refuse numbers that would fail, or mean nothing, only after hours of work."""
    wanted = [("run.seed", recipe.run.seed, 0, 2**32 - 1)]
    if recipe.compare is not None:
        wanted += [
            ("compare.batch-size", recipe.compare.batch_size, 1, 65536),
            ("compare.latency-batch", recipe.compare.latency_batch, 1, 65536),
        ]
    for key, value, low, high in wanted:
        if not low <= value <= high:
            raise ConfigError(f"{path}.{key} has a wrong value", got=value, expected=f"{low} to {high}")


def _check_names(recipe: Recipe, path: Path) -> None:
    """Refuse what TOML can write and no file can be called."""
    names: dict[str, str | None] = {
        "model.file": recipe.model.file,
        "gate.policy": recipe.gate.policy,
        "run.out": recipe.run.out,
    }
    if recipe.calibrate is not None:
        names["calibrate.data"] = recipe.calibrate.data
    if recipe.compare is not None:
        compared = recipe.compare
        names |= {"compare.data": compared.data, "compare.labels": compared.labels, "compare.slices": compared.slices}
    names |= {"build.tensorrt.timing-cache": recipe.build.tensorrt.timing_cache}
    names |= {f"build.tensorrt.plugin[{i}]": file for i, file in enumerate(recipe.build.tensorrt.plugin)}
    for key, name in names.items():
        if name is not None and "\0" in name:
            raise ConfigError(f"{path}.{key} has a wrong value", got=repr(name), expected="a name without NUL")
