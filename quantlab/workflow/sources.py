"""Finding and opening what a workflow starts from: the model and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.datasets import METADATA_KEY, Dataset, InputSpec, ResolvedPreprocess, open_dataset, resolve_preprocess
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.resolution import as_ready
from quantlab.engines.artifact import class_count
from quantlab.engines.sidecar import Sidecar
from quantlab.engines.tensorrt.profiles import ShapeFlags, parse_shape_flags
from quantlab.errors import ConfigError, EngineMismatch, ModelError
from quantlab.graph.model import Model, load_model, model_inputs, model_outputs
from quantlab.graph.prepare import Prepared, foreign_operators, prepare, prepare_partially
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
        ConfigError: If one is malformed or a range, or a name comes twice.
    """
    flags = parse_shape_flags(texts)
    if flags.profiles:
        name, shapes = next(iter(flags.profiles[0].items()))
        raise ConfigError(
            f"--shapes gives input {name!r} a range", got=str(shapes), expected="one shape, NAME:1x3x224x224",
            hint="ranges are for quantlab build with a TensorRT backend",
        )  # fmt: skip
    return dict(flags.imposed)


def open_for_engine(path: Path, flags: ShapeFlags, narrator: Narrator) -> Prepared:
    """Load a model for a backend that takes ranges of shapes and operators of the user's own, and prepare it.

    A range in which only the batch varies leaves preparation as it is. Where another size varies, or an operator is
    none of ONNX Runtime's, the model can be neither simplified nor verified; that is a degradation.

    Raises:
        ModelError: If it cannot be used.
        ConfigError: If ``flags`` do not fit its inputs.
    """
    imposed = dict(flags.imposed)
    model = load_model(path)
    foreign = foreign_operators(model.proto)
    if foreign:
        reason = f"ONNX Runtime does not know {', '.join(foreign)}"
    else:
        varying = _varying_inputs(model, flags)
        if not varying:
            return _prepare(model, imposed | _fixed_sizes(flags), narrator)
        reason = f"--shapes leaves more than the batch open ({', '.join(varying)})"
    sizes = {name: (None if shape[0] == 1 else shape[0], *shape[1:]) for name, shape in imposed.items()}
    prepared = prepare_partially(model, reason, sizes)
    _describe(model, prepared, narrator)
    return prepared


def _varying_inputs(model: Model, flags: ShapeFlags) -> list[str]:
    """Inputs of which a range is not one of batches alone: other sizes vary, or it bounds the contents."""
    ranks = {spec.name: len(spec.shape) for spec in model_inputs(model.proto) if spec.shape is not None}
    found: dict[str, set[tuple[int, ...]]] = {}
    for profile in flags.profiles:
        for name, given in profile.items():
            for shape in (given.minimum, given.optimum, given.maximum):
                found.setdefault(name, set()).add(shape[1:])
                if ranks.get(name) == 0 or (ranks.get(name) == 1 and len(shape) > 1):
                    found[name] |= {(), (0,)}  # contents, not sizes
    return [name for name, rest in found.items() if len(rest) > 1]


def _fixed_sizes(flags: ShapeFlags) -> dict[str, tuple[int, ...]]:
    """Shapes that ranges of the batch leave to preparation: a batch of 1, which may become dynamic, or the only one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in flags.profiles[0] if flags.profiles else ():
        given = [profile[name] for profile in flags.profiles if name in profile]
        batches = {size for one in given for size in (one.minimum[0], one.maximum[0])}
        shapes[name] = (batches.pop() if len(batches) == 1 else 1, *given[0].optimum[1:])
    return shapes


def open_model(path: Path, shapes: Mapping[str, tuple[int, ...]], narrator: Narrator) -> Prepared:
    """Load, check and prepare a model, saying what was done to it.

    Raises:
        ModelError: If it cannot be used.
        ConfigError: If ``shapes`` names an input that it does not have.
    """
    return _prepare(load_model(path), shapes, narrator)


def _prepare(model: Model, shapes: Mapping[str, tuple[int, ...]], narrator: Narrator) -> Prepared:
    prepared = prepare(model, input_shapes=shapes)
    release_memory()
    _describe(model, prepared, narrator)
    return prepared


def _describe(model: Model, prepared: Prepared, narrator: Narrator) -> None:
    inputs = ", ".join(f"{spec.name} {_shape(spec.shape)} {spec.dtype}" for spec in model_inputs(prepared.model.proto))
    outputs = ", ".join(f"{spec.name} {_shape(spec.shape)}" for spec in model_outputs(prepared.model.proto))
    before, after = len(model.proto.graph.node), len(prepared.model.proto.graph.node)
    name = model.path.name if model.path else model.name
    narrator.say(f"model  {name}: {inputs} -> {outputs}; {before} nodes, {after} after preparation")
    for note in prepared.notes:
        narrator.say(f"       {note}")
    for degradation in prepared.degradations:
        narrator.warn(degradation)


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
