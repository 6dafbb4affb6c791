"""What a bench measures with: engines opened and timed doing so, their inputs, and files of trtexec."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantlab.datasets import Dataset, InputSpec, batches
from quantlab.datasets.random_source import RandomTensors
from quantlab.engines.protocol import Arrays, Engine
from quantlab.engines.sidecar import SIDECAR_SUFFIX, Sidecar, read_sidecar
from quantlab.engines.tensorrt.flavour import FLAVOURS
from quantlab.engines.tensorrt.options import BuildOptions
from quantlab.errors import ConfigError, DataError, EngineMismatch
from quantlab.harness.bench import Opening
from quantlab.progress import Narrator
from quantlab.workflow.build import builder_for
from quantlab.workflow.compare import check_preprocess
from quantlab.workflow.sources import DataNeeds, DataRequest, open_data


def split_paths(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Engines, and files of trtexec: JSON that is no sidecar."""
    files = [path for path in paths if path.suffix == ".json" and not path.name.endswith(SIDECAR_SUFFIX)]
    return [path for path in paths if path not in files], files


def check_together(sidecars: Sequence[Sidecar]) -> None:
    """Refuse engines that cannot be told apart or fed with the same inputs.

    Raises:
        EngineMismatch: With what differs.
    """
    names = [sidecar.name for sidecar in sidecars]
    for name in names:
        if names.count(name) > 1:
            raise EngineMismatch(f"two engines are named {name}", hint="measure them in two runs")
    first = sidecars[0]
    for sidecar in sidecars[1:]:
        if sidecar.inputs != first.inputs:
            raise EngineMismatch(
                f"{sidecar.name} takes other inputs than {first.name}",
                got="; ".join(f"{spec.name} {spec}" for spec in sidecar.inputs) or "none that its sidecar states",
                expected="; ".join(f"{spec.name} {spec}" for spec in first.inputs) or "none that its sidecar states",
                hint="measure engines of one model together",
            )


def batch_sizes(sidecars: Sequence[Sidecar], wanted: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes to measure: the wanted ones, else the one that an engine is limited to, else 1.

    Raises:
        ConfigError: If an engine does not take one of them. A batch that has to be filled up would be timed as another.
    """
    fixed = {sidecar.name: sidecar.fixed_batch for sidecar in sidecars if sidecar.fixed_batch is not None}
    sizes = tuple(dict.fromkeys(wanted)) or (next(iter(fixed.values()), 1),)
    for name, size in fixed.items():
        for batch in sizes:
            if batch != size:
                raise ConfigError(
                    f"{name} takes batches of {size} alone",
                    got=f"--batch {batch}",
                    expected=f"--batch {size}",
                    hint="build it with a batch axis that is free, or measure it apart",
                )
    return sizes


@contextmanager
def open_timed(
    paths: Sequence[Path], threads: int, contexts: int, plugins: tuple[Path, ...], narrator: Narrator
) -> Iterator[tuple[list[Engine], list[float]]]:
    """Open engines and tell how many milliseconds each took; those that hold a GPU's memory are closed at the end.

    Args:
        paths: Engine files with sidecars.
        threads: Of each engine on the CPU.
        contexts: How many callers a TensorRT engine serves at once, each with its own memory.
        plugins: Libraries with operators that engines of TensorRT use.
        narrator: Told what a first run proved.

    Raises:
        EngineMismatch: If a file is not what its sidecar says.
        BackendUnavailable: If a backend cannot be used here.
        ConfigError: If there are plugins, and no engine that could use them.
    """
    backends = [read_sidecar(path).backend for path in paths]
    if plugins and not set(backends) & set(FLAVOURS):
        got = ", ".join(dict.fromkeys(backends))
        raise ConfigError("--plugin is for engines of TensorRT", got=f"engines of {got}", hint="leave --plugin out")
    with ExitStack() as stack:
        engines, spent = [], []
        for path, backend in zip(paths, backends, strict=True):
            start = time.perf_counter_ns()
            engine = _open(path, backend, threads, contexts, plugins, narrator)
            spent.append((time.perf_counter_ns() - start) / 1e6)
            if isinstance(engine, AbstractContextManager):
                stack.enter_context(engine)
            engines.append(engine)
        yield engines, spent


def _open(
    path: Path, backend: str, threads: int, contexts: int, plugins: tuple[Path, ...], narrator: Narrator
) -> Engine:
    if backend not in FLAVOURS:
        return builder_for(backend, None, narrator).load(path, threads)
    from quantlab.engines.tensorrt.builder import TensorRTBuilder

    return TensorRTBuilder(backend, BuildOptions(plugins=plugins), narrator).open(path, contexts)


def first_runs(engines: Sequence[Engine], spent_ms: Sequence[float], inputs: Arrays, threads: int) -> list[Opening]:
    """Run each engine once and tell what opening and running it first took.

    Raises:
        MeasurementError: If an engine fails.
    """
    openings = []
    for engine, load_ms in zip(engines, spent_ms, strict=True):
        start = time.perf_counter_ns()
        engine.run(inputs)
        first_ms = (time.perf_counter_ns() - start) / 1e6
        openings.append(Opening(engine.sidecar.name, threads, load_ms, first_ms))
    return openings


class BenchInputs:
    """Batches of any size to time engines on.

    Attributes:
        description: What they are, in words.
        sha256: Digest of the data; None for random numbers.
        random: Whether they are random numbers.
        dataset: Where they come from; None for random numbers.
    """

    def __init__(self, samples: Arrays, description: str, sha256: str | None, dataset: Dataset | None = None) -> None:
        self._samples = samples
        self.description = description
        self.sha256 = sha256
        self.random = sha256 is None
        self.dataset = dataset

    def batch(self, size: int) -> Arrays:
        """So many samples, repeated if there are fewer."""
        rows = np.arange(size)
        return {name: np.ascontiguousarray(value[rows % len(value)]) for name, value in self._samples.items()}


def random_inputs(sidecar: Sidecar, size: int, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> BenchInputs:
    """Seeded random numbers of an engine's inputs.

    Args:
        sidecar: States the inputs.
        size: Samples.
        seed: Of the numbers.
        shapes: Shapes for inputs with free axes, batch first.

    Raises:
        EngineMismatch: If the sidecar does not state them.
        ConfigError: If ``shapes`` names no input, or does not fit it.
        DataError: If a free axis is given no size.
    """
    specs = tuple(_imposed(spec, shapes) for spec in DataNeeds.of_sidecar(sidecar).inputs)
    for name in shapes:
        if name not in {spec.name for spec in specs}:
            expected = ", ".join(spec.name for spec in specs)
            raise ConfigError(f"--shapes names no input: {name!r}", expected=expected)
    source = RandomTensors(size, specs, seed)
    loaded = [source.load(index).arrays for index in range(size)]
    samples = {spec.name: np.stack([one[spec.name] for one in loaded]) for spec in specs}
    return BenchInputs(samples, f"random numbers, seed {seed}", None)


def _imposed(spec: InputSpec, shapes: Mapping[str, tuple[int, ...]]) -> InputSpec:
    given = shapes.get(spec.name)
    if given is None:
        return spec
    if not spec.accepts(given[1:]):
        expected = f"a batch axis, then {spec}"
        raise ConfigError(
            f"--shapes does not fit input {spec.name!r}", got="x".join(map(str, given)), expected=expected
        )
    return replace(spec, shape=given[1:])


def data_inputs(sidecars: Sequence[Sidecar], request: DataRequest, size: int, narrator: Narrator) -> BenchInputs:
    """The first samples of a data set.

    Raises:
        DataError: If it cannot be read or does not fit.
        EngineMismatch: If an engine was calibrated with another preprocessing.
    """
    dataset, resolved = open_data(DataNeeds.of_sidecar(sidecars[0]), request, narrator)
    check_preprocess(sidecars, resolved)
    first = next(iter(batches(dataset, size)), None)
    if first is None:
        raise DataError(f"data set {dataset.name} has no samples to time on")
    description = f"the first {len(first.ids)} samples of {request.source}"
    return BenchInputs(first.inputs, description, dataset.manifest.sha256, dataset)
