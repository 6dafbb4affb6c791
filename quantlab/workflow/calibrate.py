"""Calibrate: images and an FP32 model in; table, histograms, TensorRT cache and Q/DQ model out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from quantlab.calibrators.histogram import Histogram, save_histograms
from quantlab.calibrators.measure import measure_extremes, measure_tensor, table_degradations
from quantlab.calibrators.methods import AUTO, DEFAULT_METHOD, IMPORTED, METHOD_NAMES, check_method, range_methods
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.table import CalibrationTable, Provenance, TensorEntry
from quantlab.calibrators.tensorrt_cache import CalibrationCache
from quantlab.datasets import Dataset, ResolvedPreprocess
from quantlab.datasets.resolution import ASSUMED
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.extremes import extreme_tensors, observe_extremes
from quantlab.engines.observation import Observation, observe, observed_tensors
from quantlab.engines.selection import choose_auto
from quantlab.errors import CalibrationError, ConfigError, OutputError
from quantlab.files import check_folder, remove_file, write_text
from quantlab.graph.metadata import with_preprocess
from quantlab.graph.model import save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import check_quantized, quantize_model
from quantlab.graph.targets import TENSORRT, TargetProfile
from quantlab.memory import release_memory
from quantlab.progress import Narrator
from quantlab.records import to_plain
from quantlab.reports import Style, render


class Observer(Protocol):
    """Counts activations: `quantlab.engines.observation.observe`, or something that gives the same counts."""

    def __call__(
        self, prepared: Prepared, dataset: Dataset, tensors: Sequence[str], threads: int, narrator: Narrator
    ) -> Observation:
        """See `quantlab.engines.observation.observe`."""
        ...


@dataclass(frozen=True, slots=True)
class CalibrateSettings:
    """How to calibrate.

    Attributes:
        method: Range method written into the cache and the Q/DQ model; the table holds them all.
        percentile: Share kept by the percentile method, in per cent.
        threads: Workers.
        target: Rules of the quantized model; method ``auto`` chooses for them.
        minmax_only: Take minimum and maximum alone, of the tensors that a quantized graph reads; counts nothing.

    Raises:
        ConfigError: If the method or the percentile is wrong, or the method needs counts that are not taken.
    """

    method: str
    percentile: float
    threads: int
    target: TargetProfile = TENSORRT
    minmax_only: bool = False

    def __post_init__(self) -> None:
        if self.method == IMPORTED:
            raise ConfigError(f"method {IMPORTED} is not for calibrating", expected=", ".join((*METHOD_NAMES, AUTO)))
        check_method(self.method)
        range_methods(self.percentile)  # making them is the check
        if self.minmax_only and self.method != MinMax.name:
            raise ConfigError(
                f"method {self.method} needs more than minima and maxima",
                expected=f"method {MinMax.name} where nothing else is taken",
                hint="use --method minmax with --minmax-only",
            )


@dataclass(frozen=True, slots=True)
class CalibrationFiles:
    """What calibration wrote.

    Attributes:
        table: ``calibration.json``.
        histograms: ``histograms.npz``.
        cache: ``<model>.calib``.
        qdq: ``<model>.qdq.onnx``.
    """

    table: Path
    histograms: Path
    cache: Path
    qdq: Path

    def all(self) -> tuple[Path, ...]:
        """The paths, the table first."""
        return (self.table, self.qdq, self.cache, self.histograms)

    @classmethod
    def of(cls, folder: Path, model: str) -> CalibrationFiles:
        """Names of the files for a model of that stem."""
        return cls(
            folder / "calibration.json",
            folder / "histograms.npz",
            folder / f"{model}.calib",
            folder / f"{model}.qdq.onnx",
        )


def calibrate(
    prepared: Prepared,
    dataset: Dataset,
    preprocess: ResolvedPreprocess,
    settings: CalibrateSettings,
    narrator: Narrator,
    observer: Observer = observe,
) -> tuple[CalibrationTable, dict[str, Histogram]]:
    """Run the data through the model once and compute every method's ranges.

    Args:
        prepared: The model.
        dataset: Images.
        preprocess: What the images were preprocessed with.
        settings: How.
        narrator: Told of progress.
        observer: What counts the activations, `observe` or something that gives the same.

    Returns:
        The table, and the histograms by tensor; none if only minima and maxima were taken.

    Raises:
        CalibrationError: If the model fails on a sample, a tensor has no finite value, or method ``auto`` cannot tell.
        DataError: If no sample can be read.
    """
    if settings.minmax_only:
        histograms: dict[str, Histogram] = {}
        tensors, odd = _extremes(prepared, dataset, settings, narrator)
    else:
        observation = observer(prepared, dataset, observed_tensors(prepared), settings.threads, narrator)
        release_memory()
        tensors, odd = _ranges(observation, settings)
        histograms = {entry.name: observation[entry.name] for entry in tensors}
    made = provenance(prepared, dataset, preprocess, settings.percentile)
    n = len(made.samples)
    method = DEFAULT_METHOD if settings.method == AUTO else settings.method
    table = CalibrationTable(method, n, tensors, made, ())
    if settings.method == AUTO:
        table = choose_auto(prepared, dataset, table, settings.target, settings.threads, narrator)
        release_memory()
    degradations = [
        *prepared.degradations,
        *dataset.degradations,
        *table_degradations(table.tensors, table.method),
        *odd,
        *_padding(prepared, n),
    ]
    return replace(table, degradations=merge_degradations(degradations)), histograms


def _ranges(observation: Observation, settings: CalibrateSettings) -> tuple[tuple[TensorEntry, ...], list[Degradation]]:
    """Entries of the tensors that had values, and a note about those that never had."""
    methods = range_methods(settings.percentile)

    def measure(name: str) -> TensorEntry:
        return measure_tensor(
            name,
            observation[name],
            methods,
            non_finite_sample=observation.non_finite.get(name),
            absent_samples=observation.absent.get(name, 0),
        )

    def is_empty(name: str) -> bool:
        return observation[name].total == 0 and observation[name].non_finite == 0

    never = [name for name in sorted(observation) if is_empty(name)]
    with ThreadPoolExecutor(settings.threads) as pool:
        tensors = tuple(pool.map(measure, (name for name in sorted(observation) if name not in never)))
    return tensors, [absent_everywhere(never)] if never else []


def _extremes(
    prepared: Prepared, dataset: Dataset, settings: CalibrateSettings, narrator: Narrator
) -> tuple[tuple[TensorEntry, ...], list[Degradation]]:
    found = observe_extremes(prepared, dataset, extreme_tensors(prepared), settings.threads, narrator)
    never = [name for name in sorted(found) if found[name].total == 0 and found[name].non_finite == 0]
    tensors = tuple(measure_extremes(name, found[name]) for name in sorted(found) if name not in never)
    return tensors, [absent_everywhere(never)] if never else []


def absent_everywhere(names: list[str]) -> Degradation:
    """Tensors that no sample gave a value of."""
    return Degradation.of(
        DegradationCode.ABSENT_TENSORS, "tensors had no values in any sample and have no range", names
    )


def provenance(prepared: Prepared, dataset: Dataset, preprocess: ResolvedPreprocess, percentile: float) -> Provenance:
    """What a table is made from."""
    source, stated = prepared.model, preprocess.preprocess
    return Provenance(
        quantlab=version("quantlab"),
        source="observed",
        model=source.path.name if source.path else source.name,
        model_sha256=source.sha256,
        graph_sha256=prepared.graph_sha256,
        shapes=prepared.shapes,
        preprocess=stated.to_plain() if stated is not None and preprocess.origin != ASSUMED else None,
        preprocess_sha256=stated.sha256 if stated else "",
        samples=tuple(sorted(entry.sha256 for entry in dataset.manifest.entries)),
        percentile=percentile,
    )


def _padding(prepared: Prepared, n: int) -> list[Degradation]:
    if not prepared.fixed_batch or n % prepared.fixed_batch == 0:
        return []
    short = prepared.fixed_batch - n % prepared.fixed_batch
    message = (
        f"the last batch of {prepared.fixed_batch} was filled with {short} repeated samples, which are not counted"
    )
    return [Degradation(DegradationCode.PADDED_BATCH, message, short)]


def write_calibration(
    folder: Path,
    prepared: Prepared,
    table: CalibrationTable,
    histograms: Mapping[str, Histogram],
    target: TargetProfile,
) -> CalibrationFiles:
    """Write table, histograms, TensorRT cache and Q/DQ model; the table last, so that it vouches for the rest.

    Raises:
        OutputError: If a file cannot be written.
        EngineBuildError: If no layer can be quantized.
        ModelError: If the model already holds Q/DQ nodes.
    """
    name = prepared.model.name
    files = CalibrationFiles.of(folder, name)
    quantized = quantize_model(prepared.model, table, target)
    check_quantized(quantized.proto)
    cache = CalibrationCache.from_table(table).render()
    remove_file(files.table)
    remove_file(folder / "stability.json")  # of an earlier table
    if histograms:
        save_histograms(files.histograms, histograms)
    else:
        remove_file(files.histograms)
    write_text(files.cache, cache)
    save_model(with_preprocess(quantized.proto, table), files.qdq, prepared.model)
    write_text(files.table, table.to_json())
    return files


def check_overwrite(folder: Path, prepared: Prepared, *, force: bool) -> None:
    """Refuse a folder that cannot be written to, or holds a calibration of another model, before any work is done.

    Raises:
        OutputError: If ``folder`` cannot be written to.
        ConfigError: If it holds another model's calibration and ``force`` is not set.
    """
    check_folder(folder)
    path = folder / "calibration.json"
    if path.is_dir():
        raise OutputError(
            f"cannot write {path}", got="a folder of that name", expected="a file name", hint="use another folder, -o"
        )
    if force or not path.is_file():
        return
    try:
        earlier = CalibrationTable.load(path).provenance
    except CalibrationError as error:
        got, old = "a file that is no calibration table", error.what
    else:
        got, old = f"sha256 {earlier.model_sha256[:16]}... ({earlier.model})", ""
        if earlier.model_sha256 == prepared.model.sha256:
            return
    raise ConfigError(
        f"{path} is there already and belongs to another model" + (f": {old}" if old else ""),
        got=got,
        expected=f"sha256 {prepared.model.sha256[:16]}... ({prepared.model.name})",
        hint="choose another folder with -o, or overwrite it with --force",
    )


def summary_document(table: CalibrationTable, files: CalibrationFiles) -> dict[str, Any]:
    """What ``calibrate --json`` prints."""
    return {
        "schema": "quantlab.calibrate/1",
        "method": table.method,
        "n_samples": table.n_samples,
        "n_tensors": len(table.tensors),
        "table_sha256": table.sha256,
        "degradations": to_plain(table.degradations),
        "files": [str(path) for path in files.all()],
    }


def summary_text(table: CalibrationTable, files: CalibrationFiles, style: Style) -> str:
    """What ``calibrate`` prints: the tensors that lose most, and the files."""
    return render(table, "terminal", style) + "\n" + "\n".join(f"wrote {path}" for path in files.all())
