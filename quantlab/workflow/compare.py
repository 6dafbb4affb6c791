"""Compare: engine files against the FP32 one, on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from quantlab.datasets import Dataset, ResolvedPreprocess
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.slices import SliceTable, read_slices
from quantlab.documents import near_match
from quantlab.engines.protocol import Engine
from quantlab.engines.sidecar import SIDECAR_SUFFIX, Sidecar, read_sidecar
from quantlab.engines.tensorrt.flavour import FLAVOURS
from quantlab.engines.tensorrt.options import BuildOptions
from quantlab.errors import ConfigError, DataError, EngineMismatch
from quantlab.files import is_file, is_folder, write_text
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison
from quantlab.harness.latency import LatencySettings
from quantlab.harness.slicing import CLASS
from quantlab.harness.tasks.registry import OWN_TRUTHS, TaskRequest, task_name
from quantlab.precision import Precision
from quantlab.progress import Narrator
from quantlab.reports import render
from quantlab.workflow.build import builder_for
from quantlab.workflow.sources import DataNeeds, DataRequest, open_data

_LONGEST_TIMING_S = 86400


def find_engines(paths: Sequence[Path]) -> list[Path]:
    """Engine files named directly or by their sidecars, or all with sidecars in the named folders, sorted by name.

    Raises:
        ConfigError: If there are none.
    """
    found: list[Path] = []
    for named in paths:
        path = named.with_name(named.name.removesuffix(SIDECAR_SUFFIX)) if named.name != SIDECAR_SUFFIX else named
        if is_folder(path):
            engines = sorted(p.with_name(p.name.removesuffix(SIDECAR_SUFFIX)) for p in path.glob(f"*{SIDECAR_SUFFIX}"))
            if not engines:
                raise ConfigError(f"folder {path} holds no engines", hint="run quantlab build first")
            found += engines
        elif is_file(path):
            found.append(path)
        else:
            raise ConfigError(f"engine {path} does not exist", hint="run quantlab build first")
    if not found:
        raise ConfigError("no engines were named", expected="engine files or a folder that quantlab build wrote")
    return list(dict.fromkeys(found))


@contextmanager
def open_engines(
    paths: Sequence[Path], threads: int, narrator: Narrator | None = None, plugins: tuple[Path, ...] = ()
) -> Iterator[list[Engine]]:
    """Open engines with the backend that their sidecars name; those that hold a GPU's memory are closed at the end.

    Args:
        paths: Engine files.
        threads: Of each engine on the CPU.
        narrator: Told what a first run proved.
        plugins: Libraries with operators that engines of TensorRT use.

    Raises:
        EngineMismatch: If a file is not what its sidecar says, or two have the same name.
        BackendUnavailable: If a backend cannot be used here.
        ConfigError: If there are plugins, and no engine that could use them.
    """
    sidecars = [read_sidecar(path) for path in paths]
    names = [sidecar.name for sidecar in sidecars]
    for name in names:
        if names.count(name) > 1:
            raise EngineMismatch(f"two engines are named {name}", hint="compare them in two runs")
    backends = [sidecar.backend for sidecar in sidecars]
    if plugins and not set(backends) & set(FLAVOURS):
        got = ", ".join(dict.fromkeys(backends))
        raise ConfigError("--plugin is for engines of TensorRT", got=f"engines of {got}", hint="leave --plugin out")
    with ExitStack() as stack:
        engines = []
        for path, backend in zip(paths, backends, strict=True):
            options = BuildOptions(plugins=plugins) if backend in FLAVOURS else None
            engine = builder_for(backend, options, narrator).load(path, threads)
            if isinstance(engine, AbstractContextManager):
                stack.enter_context(engine)
            engines.append(engine)
        yield engines


def reference_name(sidecars: Sequence[Sidecar], wanted: str | None) -> str:
    """The reference variant: the wanted one, else the FP32 one.

    Raises:
        ConfigError: If it is not there or not unique.
    """
    names = [sidecar.name for sidecar in sidecars]
    if wanted is not None:
        if wanted not in names:
            near = near_match(wanted, names)
            hint = f"did you mean {near!r}?" if near else None
            raise ConfigError(f"no engine is named {wanted!r}", expected=", ".join(names), hint=hint)
        return wanted
    floats = [sidecar.name for sidecar in sidecars if sidecar.requested is Precision.FP32]
    if len(floats) != 1:
        raise ConfigError(
            "cannot tell which engine is the reference",
            got=f"{len(floats)} fp32 engines",
            expected="one fp32 engine",
            hint="build fp32 too, or name one with --reference",
        )
    return floats[0]


def check_preprocess(sidecars: Sequence[Sidecar], resolved: ResolvedPreprocess) -> None:
    """Refuse engines that were calibrated with another preprocessing than the evaluation uses.

    Raises:
        EngineMismatch: With both hashes.
    """
    for sidecar in sidecars:
        if sidecar.preprocess_sha256 is not None:
            check_same_preprocess(sidecar.name, sidecar.preprocess_sha256, resolved)


def check_same_preprocess(name: str, sha256: str, resolved: ResolvedPreprocess) -> None:
    """Refuse what was calibrated with another preprocessing than the data have here.

    Args:
        name: What was calibrated.
        sha256: Hash of its preprocessing; empty for ready tensors.
        resolved: The preprocessing here.

    Raises:
        EngineMismatch: With both hashes.
    """
    mine = resolved.preprocess.sha256 if resolved.preprocess else ""
    if sha256 != mine:
        raise EngineMismatch(
            f"{name} was calibrated with another preprocessing than this comparison uses",
            got=f"sha256 {mine[:16]}... here" if mine else "ready tensors here",
            expected=f"sha256 {sha256[:16]}..." if sha256 else "ready tensors",
            hint="use the same --preprocess for calibrate and compare",
        )


def latency_settings(seconds: float, seed: int) -> LatencySettings | None:
    """Settings for a timing budget in seconds; None for a budget of 0.

    Raises:
        ConfigError: If the budget is negative, longer than a day, or no number.
    """
    if not 0.0 <= seconds <= _LONGEST_TIMING_S:
        expected = f"seconds from 0 to {_LONGEST_TIMING_S}"
        raise ConfigError("the timing budget latency-seconds is out of range", got=seconds, expected=expected)
    return LatencySettings(seconds=seconds, seed=seed) if seconds > 0.0 else None


def write_comparison(folder: Path, comparison: Comparison) -> tuple[Path, ...]:
    """Write ``comparison.csv``, ``.md`` and, last, ``.json``.

    Raises:
        OutputError: If a file cannot be written.
    """
    paths = (folder / "comparison.json", folder / "comparison.csv", folder / "comparison.md")
    write_text(paths[1], render(comparison, "csv"))
    write_text(paths[2], render(comparison, "markdown"))
    write_text(paths[0], comparison.to_json())
    return paths


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Parse ``KEY=VALUE`` flags.

    Raises:
        ConfigError: If one is malformed, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise ConfigError(f"--task-option {text!r} is malformed", expected="KEY=VALUE, such as decoder=yolov8")
        if key in found:
            raise ConfigError(f"--task-option {key} is given twice", got=f"{found[key]!r} and {value!r}")
        found[key] = value
    return found


def truths_of(task: TaskRequest, labels: Path | None) -> tuple[TaskRequest, Path | None]:
    """Give the labels file to the one that reads it: to the task where truths are no class numbers, else to the data.

    Returns:
        The task, and the labels that are left for the data.

    Raises:
        ConfigError: If there is no such task.
    """
    if task_name(task) not in OWN_TRUTHS:
        return task, labels
    return replace(task, truths=labels), None


def open_slices(path: Path | None, dataset: Dataset, *, by_class: bool) -> SliceTable | None:
    """Read the file of slices of a data set; a subset of the data does not make rows wrong.

    Args:
        path: The file; None for none.
        dataset: The samples.
        by_class: Whether there are slices of the labels too, whose name no column may have.

    Raises:
        DataError: If it cannot be read, or does not fit.
    """
    if path is None:
        return None
    ids = dataset.listed_ids if isinstance(dataset, SourceDataset) else [e.id for e in dataset.manifest.entries]
    table = read_slices(path, ids, dataset.name)
    if by_class and CLASS in table.columns:
        raise DataError(
            f"slices file {path} has a column {CLASS!r}, which is what the slices of the labels are called",
            expected="another name",
            hint="rename it, or leave out the slices of the labels: --slice-by none, or by-class = false in a recipe",
        )
    return table


def compare_files(
    engines: Sequence[Path],
    reference: str | None,
    request: DataRequest,
    settings: CompareSettings,
    narrator: Narrator,
    plugins: tuple[Path, ...] = (),
    slices: Path | None = None,
    samples: Path | None = None,
) -> Comparison:
    """Open engine files and data, check that they belong together, and compare.

    The data are fitted to the inputs that the reference engine's sidecar states; it carries the preprocessing too. An
    engine of TensorRT that was never run is run on its probe first: the comparison then says what that proved.

    Args:
        engines: Files, or folders of them.
        reference: Name of the reference; None for the FP32 one.
        request: The data.
        settings: How to compare.
        narrator: Told of progress.
        plugins: Libraries with operators that engines of TensorRT use.
        slices: CSV file whose columns the figures are told by.
        samples: Parquet file to write the results of each sample to.

    Raises:
        ConfigError: If there is no engine, no reference, or no such task.
        EngineMismatch: If engines or preprocessing do not belong together.
        DataError: If the data cannot be read or do not fit.
        MeasurementError: If an engine fails.
    """
    task, labels = truths_of(settings.task, request.labels)
    request = replace(request, labels=labels)
    with open_engines(find_engines(engines), settings.threads, narrator, plugins) as loaded:
        sidecars = [engine.sidecar for engine in loaded]
        chosen = reference_name(sidecars, reference)
        needs = DataNeeds.of_sidecar(next(sidecar for sidecar in sidecars if sidecar.name == chosen))
        dataset, resolved = open_data(needs, request, narrator)
        check_preprocess(sidecars, resolved)
        chosen_settings = replace(settings, task=task, slices=open_slices(slices, dataset, by_class=settings.by_class))
        return compare(loaded, chosen, dataset, chosen_settings, narrator, samples)
