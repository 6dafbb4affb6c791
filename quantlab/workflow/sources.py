"""Finding and opening what a workflow starts from: the model and the data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.datasets import METADATA_KEY, Dataset, InputSpec, ResolvedPreprocess, open_dataset, resolve_preprocess
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.resolution import as_ready
from quantlab.engines.artifact import class_count
from quantlab.engines.sidecar import Sidecar
from quantlab.errors import ConfigError, EngineMismatch, ModelError
from quantlab.graph.model import Model, load_model, model_inputs, model_outputs
from quantlab.graph.prepare import Prepared, prepare
from quantlab.harness.environment import available_cpus
from quantlab.memory import release_memory
from quantlab.progress import Narrator
from quantlab.workflow.recipe import RECIPE_NAME, load_recipe

_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True)
class DataRequest:
    """Which samples to open.

    Attributes:
        source: What ``--data`` says.
        labels: Labels file.
        limit: Seeded class-balanced subset of so many samples.
        seed: Of the subset.
        threads: Decoders.
        preprocess: Preset name or TOML file from a flag.
        recipe_preprocess: Preprocessing table of a recipe.
    """

    source: str
    labels: Path | None = None
    limit: int | None = None
    seed: int = 0
    threads: int = 2
    preprocess: str | None = None
    recipe_preprocess: Mapping[str, Any] | None = None


def find_model(given: Path | None, folder: Path) -> Path:
    """The model to use: the given one, else the recipe's in ``folder``, else the only ``.onnx`` file there.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    if given is not None:
        return given
    recipe = folder / RECIPE_NAME
    if recipe.is_file():
        return folder / load_recipe(recipe).model.file
    models = sorted(folder.glob("*.onnx"))
    if len(models) == 1:
        return models[0]
    got = "none" if not models else ", ".join(path.name for path in models[:5]) + (", ..." if len(models) > 5 else "")
    raise ConfigError(
        "no model was named",
        got=f"{len(models)} .onnx files in this folder: {got}",
        expected=f"--model FILE, or a {RECIPE_NAME}, or one .onnx file here",
        hint="name one with --model FILE",
    )


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Parse ``NAME:1x3x224x224`` flags; the first number is the batch and stays dynamic where the model allows.

    Raises:
        ConfigError: If one is malformed or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, dims = text.rpartition(":")
        if not separator or not name or not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", dims):
            raise ConfigError(f"--shapes {text!r} is malformed", expected="NAME:1x3x224x224, positive numbers")
        if name in shapes:
            raise ConfigError(f"--shapes names input {name!r} twice")
        shapes[name] = tuple(int(dim) for dim in dims.split("x"))
    return shapes


def open_model(path: Path, shapes: Mapping[str, tuple[int, ...]], narrator: Narrator) -> Prepared:
    """Load, check and prepare a model, saying what was done to it.

    Raises:
        ModelError: If it cannot be used.
        ConfigError: If ``shapes`` names an input that it does not have.
    """
    model = load_model(path)
    prepared = prepare(model, input_shapes=shapes)
    release_memory()
    inputs = ", ".join(f"{spec.name} {_shape(spec.shape)} {spec.dtype}" for spec in model_inputs(prepared.model.proto))
    outputs = ", ".join(f"{spec.name} {_shape(spec.shape)}" for spec in model_outputs(prepared.model.proto))
    before, after = len(model.proto.graph.node), len(prepared.model.proto.graph.node)
    narrator.say(f"model  {path.name}: {inputs} -> {outputs}; {before} nodes, {after} after preparation")
    for note in prepared.notes:
        narrator.say(f"       {note}")
    for degradation in prepared.degradations:
        narrator.warn(degradation)
    return prepared


def _shape(shape: tuple[int | str | None, ...] | None) -> str:
    return "[?]" if shape is None else "[" + ",".join("?" if dim is None else str(dim) for dim in shape) + "]"


def input_specs(model: Model) -> tuple[InputSpec, ...]:
    """Inputs of a model without the batch axis.

    Raises:
        ModelError: If an input has no batch axis.
    """
    specs = []
    for spec in model_inputs(model.proto):
        if not spec.shape:
            raise ModelError(
                f"input {spec.name!r} has no batch axis", got=_shape(spec.shape), expected="a first axis for samples"
            )
        shape = tuple(dim if isinstance(dim, int) else None for dim in spec.shape[1:])
        specs.append(InputSpec(spec.name, shape, spec.dtype))
    return tuple(specs)


@dataclass(frozen=True, slots=True)
class DataNeeds:
    """What a data set is fitted to.

    Attributes:
        inputs: Inputs without the batch axis.
        metadata: ``metadata_props`` of the model, which may state its preprocessing.
        classes: Number of classes, where known.
    """

    inputs: tuple[InputSpec, ...]
    metadata: Mapping[str, str]
    classes: int | None

    @classmethod
    def of_model(cls, model: Model) -> DataNeeds:
        """Of a model.

        Raises:
            ModelError: If an input has no batch axis.
        """
        return cls(input_specs(model), model.metadata, class_count(model))

    @classmethod
    def of_sidecar(cls, sidecar: Sidecar) -> DataNeeds:
        """Of an engine, whose own file may be compiled.

        Raises:
            EngineMismatch: If the sidecar does not state the inputs.
        """
        if not sidecar.inputs:
            raise EngineMismatch(
                f"the sidecar of {sidecar.name} does not state the model's inputs",
                expected="inputs with a batch axis, as quantlab build writes them",
                hint="build it again",
            )
        stated = {METADATA_KEY: sidecar.preprocess} if sidecar.preprocess is not None else {}
        return cls(sidecar.inputs, stated, sidecar.classes)


def open_data(needs: Model | DataNeeds, request: DataRequest, narrator: Narrator) -> tuple[Dataset, ResolvedPreprocess]:
    """Open a data set for a model, or for an engine of one, and say what it will see of it.

    Raises:
        DataError: If the data cannot be read or do not fit the model.
        ConfigError: If the preprocessing is wrong.
    """
    if isinstance(needs, Model):
        needs = DataNeeds.of_model(needs)
    resolved = resolve_preprocess(request.preprocess, request.recipe_preprocess, needs.metadata, needs.inputs)
    dataset = open_dataset(
        request.source,
        needs.inputs,
        resolved,
        labels=request.labels,
        limit=request.limit,
        seed=request.seed,
        threads=request.threads,
        num_classes=needs.classes,
    )
    applied = dataset.preprocess if isinstance(dataset, SourceDataset) else as_ready(resolved)
    statistics = dataset.statistics()
    classes = f", {len(dataset.class_names)} classes" if dataset.class_names else ""
    narrator.say(f"data   {request.source}: {len(dataset):,} samples{classes}")
    narrator.say(f"       preprocessing: {applied.describe()}")
    for row in statistics:
        values = "; ".join(
            f"{label} {_numbers(numbers)}"
            for label, numbers in (("min", row.minimum), ("max", row.maximum), ("mean", row.mean), ("std", row.std))
        )
        narrator.say(f"       {row.name} {_shape(row.shape)} {row.dtype}, first {row.n}, per channel: {values}")
    for degradation in dataset.degradations:
        narrator.warn(degradation)
    return dataset, applied


def _numbers(values: tuple[float, ...]) -> str:
    shown = " ".join(f"{value:.4g}" for value in values[:4])
    return shown + (" ..." if len(values) > 4 else "")


def thread_count(requested: int) -> int:
    """Threads to use: the requested number, or all processors for 0.

    Raises:
        ConfigError: If negative, or absurdly many.
    """
    if not 0 <= requested <= _MOST_THREADS:
        expected = f"1 or more, at most {_MOST_THREADS}, or 0 for all processors"
        raise ConfigError("the number of threads is out of range", got=requested, expected=expected)
    return requested or available_cpus()
