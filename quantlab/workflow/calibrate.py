"""Calibrate: images and an FP32 model in; table, histograms, TensorRT cache and Q/DQ model out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantlab.calibrators.cache_provenance import cache_provenance_path, write_cache
from quantlab.calibrators.extremes import Extremes
from quantlab.calibrators.histogram import Histogram, save_histograms
from quantlab.calibrators.measure import measure_extremes, measure_tensor, table_degradations
from quantlab.calibrators.methods import AUTO, DEFAULT_METHOD, IMPORTED, METHOD_NAMES, check_method, range_methods
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.quantize import INT8_SYMMETRIC
from quantlab.calibrators.table import CalibrationTable, Provenance, TensorEntry
from quantlab.calibrators.tensorrt_cache import CalibrationCache
from quantlab.datasets import Dataset, ResolvedPreprocess
from quantlab.datasets.resolution import ASSUMED
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.extremes import extreme_tensors, observe_extremes
from quantlab.engines.observation import Observation, observe, observed_tensors
from quantlab.engines.original import observe_original
from quantlab.engines.selection import choose_auto
from quantlab.errors import CalibrationError, ConfigError, OutputError
from quantlab.files import check_folder, remove_file, write_text
from quantlab.graph.checks import has_qdq
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.folded import plan_original
from quantlab.graph.metadata import with_preprocess
from quantlab.graph.model import load_model, save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import TENSORRT, QuantizationKind, TargetProfile
from quantlab.memory import release_memory
from quantlab.progress import Narrator
from quantlab.records import to_plain
from quantlab.recovery.artifact import RECOVERED, check_place, recovery_files, remove_recovery, save_recovery
from quantlab.recovery.result import Recovery
from quantlab.reports import Style, render
from quantlab.workflow.recovery import forget_steps, written_graph

if TYPE_CHECKING:
    from quantlab.recovery.recover import Recovered


class Observer(Protocol):
    """Counts activations: `quantlab.engines.observation.observe`, or something that gives the same counts."""

    def __call__(
        self,
        prepared: Prepared,
        dataset: Dataset,
        tensors: Sequence[str],
        threads: int,
        narrator: Narrator,
        *,
        channelwise: Collection[str] = (),
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
        histograms: ``histograms.npz``; not written if only minima and maxima were taken.
        cache: ``<model>.calib``; not written if method ``auto`` chose ranges for UINT8 only.
        provenance: ``<model>.calib.json``, beside the cache.
        qdq: ``<model>.qdq.onnx``.
        recovered: Folder of the recovered model; not there without recovery.
    """

    table: Path
    histograms: Path
    cache: Path
    provenance: Path
    qdq: Path
    recovered: Path

    def all(self) -> tuple[Path, ...]:
        """The paths of the files that are there, the table first."""
        paths = (self.table, self.qdq, self.cache, self.provenance, self.histograms)
        return (*(path for path in paths if path.exists()), *recovery_files(self.recovered))

    def recovery(self) -> Recovery | None:
        """What came of recovery; None without it.

        Raises:
            CalibrationError: If its file is damaged.
        """
        found = recovery_files(self.recovered)
        return Recovery.load(found[0]) if found else None

    @classmethod
    def of(cls, folder: Path, model: str) -> CalibrationFiles:
        """Names of the files for a model of that stem."""
        return cls(
            folder / "calibration.json",
            folder / "histograms.npz",
            folder / f"{model}.calib",
            cache_provenance_path(folder / f"{model}.calib"),
            folder / f"{model}.qdq.onnx",
            folder / RECOVERED,
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
    if settings.method == AUTO and has_qdq(prepared.model.proto):
        raise ConfigError(
            "method auto cannot choose ranges for a model that already holds QuantizeLinear or DequantizeLinear nodes",
            expected=", ".join(METHOD_NAMES),
            hint="name a method",
        )
    if settings.minmax_only:
        histograms: dict[str, Histogram] = {}
        tensors, odd = _extremes(prepared, dataset, settings, narrator)
    else:
        tensors, histograms, odd = _ranges(prepared, dataset, settings, narrator, observer)
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


def _ranges(
    prepared: Prepared, dataset: Dataset, settings: CalibrateSettings, narrator: Narrator, observer: Observer
) -> tuple[tuple[TensorEntry, ...], dict[str, Histogram], list[Degradation]]:
    """Entries and histograms of the prepared graph's tensors and of those that only the model file has.

    TensorRT 10 calibrates before it fuses, and must find every tensor of the file in the cache.
    """
    tensors = observed_tensors(prepared)
    path = prepared.model.path
    plan = plan_original(prepared, load_model(path), tensors) if path is not None else None
    channelwise = plan.channelwise if plan is not None else ()
    release_memory()
    observation = observer(prepared, dataset, tensors, settings.threads, narrator, channelwise=channelwise)
    release_memory()
    odd: list[Degradation] = []
    extremes: dict[str, Extremes] = {}
    if path is not None and plan is not None:
        original = load_model(path)  # again, so that its weights are not in memory while the activations are
        found = observe_original(prepared, original, plan, observation, dataset, settings.threads, narrator)
        observation.update(found.histograms)
        observation.note(found.histograms)
        extremes = {**found.extremes, **found.stored}
        release_memory()
    never = [name for name in sorted(observation) if observation[name].empty]
    odd += [absent_everywhere(never)] if never else []
    methods = range_methods(settings.percentile)

    def measure(name: str) -> TensorEntry:
        if name in extremes:
            return measure_extremes(name, extremes[name], METHOD_NAMES)
        return measure_tensor(
            name,
            observation[name],
            methods,
            non_finite_sample=observation.non_finite.get(name),
            absent_samples=observation.absent.get(name, 0),
        )

    with ThreadPoolExecutor(settings.threads) as pool:
        names = sorted({*observation, *(name for name in extremes if extremes[name].known)} - {*never})
        entries = tuple(pool.map(measure, names))
    return entries, {name: observation[name] for name in names if name not in extremes}, odd


def _extremes(
    prepared: Prepared, dataset: Dataset, settings: CalibrateSettings, narrator: Narrator
) -> tuple[tuple[TensorEntry, ...], list[Degradation]]:
    found, non_finite = observe_extremes(prepared, dataset, extreme_tensors(prepared), settings.threads, narrator)
    never = [name for name in sorted(found) if not found[name].known and found[name].non_finite == 0]
    tensors = tuple(
        measure_extremes(name, found[name], non_finite_sample=non_finite.get(name))
        for name in sorted(found)
        if name not in never
    )
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
    text = f"the last batch of {prepared.fixed_batch} was filled with {short} repeated samples, which are not counted"
    return [Degradation(DegradationCode.PADDED_BATCH, text, short)]


def write_calibration(
    folder: Path,
    prepared: Prepared,
    table: CalibrationTable,
    histograms: Mapping[str, Histogram],
    target: TargetProfile,
    *,
    kind: QuantizationKind = QuantizationKind.INT8,
    existing: ExistingPolicy = ExistingPolicy.REFUSE,
    recovered: Recovered | None = None,
) -> CalibrationFiles:
    """Write table, histograms, TensorRT cache and Q/DQ model; the table last, so that it vouches for the rest.

    The TensorRT cache is always that of the model as it was calibrated.

    Args:
        folder: Where to.
        prepared: The model.
        table: Its ranges.
        histograms: What they were made from; none if only minima and maxima were taken.
        target: Rules of the Q/DQ model.
        kind: Which operands of it become 8-bit numbers.
        existing: What to do with Q/DQ pairs that the model already holds.
        recovered: What recovery made of the model and the table, for INT8; the Q/DQ model is then made of that.

    Raises:
        OutputError: If a file cannot be written, or others lie where the recovered model is to.
        EngineBuildError: If no layer can be quantized.
        ConfigError: If the target does not have the kind, or recovery is not for it, for the target or the table.
        ModelError: If the model already holds Q/DQ nodes, and they are to be refused or the target cannot take them.
    """
    name = prepared.model.name
    files = CalibrationFiles.of(folder, name)
    if recovered is not None:
        check_place(files.recovered)
    proto, source = written_graph(prepared, table, target, kind, existing, recovered)
    has_cache = all(table.method in entry.ranges[INT8_SYMMETRIC.name] for entry in table.tensors)
    cache = CalibrationCache.from_table(table) if has_cache else None
    remove_file(files.table)
    remove_file(folder / "stability.json")  # of an earlier table
    if histograms:
        save_histograms(files.histograms, histograms)
    else:
        remove_file(files.histograms)
    remove_file(files.provenance)
    remove_file(files.cache)
    if cache is not None:
        write_cache(files.cache, cache, table)
    remove_recovery(files.recovered)
    if recovered is not None:
        save_recovery(files.recovered, recovered, prepared, table, target)
    save_model(with_preprocess(proto, table), files.qdq, source)
    write_text(files.table, table.to_json())
    forget_steps(folder)
    return files


def check_overwrite(folder: Path, prepared: Prepared, *, force: bool, recovering: bool = False) -> None:
    """Refuse a folder that cannot be written to, or holds a calibration of another model, before any work is done.

    Raises:
        OutputError: If ``folder`` cannot be written to, or others' files lie where a recovered model is to.
        ConfigError: If it holds another model's calibration and ``force`` is not set.
    """
    check_folder(folder)
    if recovering:
        check_place(folder / RECOVERED)
    path = folder / "calibration.json"
    if path.is_dir():
        got, expected = "a folder of that name", "a file name"
        raise OutputError(f"cannot write {path}", got=got, expected=expected, hint="use another folder, -o")
    if force or not path.is_file():
        return
    try:
        earlier = CalibrationTable.load(path).provenance
    except CalibrationError as error:
        raise ConfigError(
            f"{path} is there already and is no calibration table of this version",
            got=f"{error.what}: {error.got}" if error.got else error.what,
            expected="nothing of that name, or an earlier calibration of this model",
            hint="choose another folder with -o, or overwrite it with --force",
        ) from error
    if earlier.model_sha256 == prepared.model.sha256:
        return
    raise ConfigError(
        f"{path} is there already and belongs to another model",
        got=f"sha256 {earlier.model_sha256[:16]}... ({earlier.model})",
        expected=f"sha256 {prepared.model.sha256[:16]}... ({prepared.model.name})",
        hint="choose another folder with -o, or overwrite it with --force",
    )


def summary_document(table: CalibrationTable, files: CalibrationFiles) -> dict[str, Any]:
    """What ``calibrate --json`` prints."""
    recovery = files.recovery()
    return {
        "schema": "quantlab.calibrate/1",
        "method": table.method,
        "n_samples": table.n_samples,
        "n_tensors": len(table.tensors),
        "table_sha256": table.sha256,
        "degradations": to_plain((*table.degradations, *(recovery.degradations if recovery is not None else ()))),
        "files": [str(path) for path in files.all()],
    } | ({"recovery": to_plain(recovery)} if recovery is not None else {})


def summary_text(table: CalibrationTable, files: CalibrationFiles, style: Style) -> str:
    """What ``calibrate`` prints: the tensors that lose most, what recovery did, and the files."""
    recovery = files.recovery()
    shown = [render(result, "terminal", style) for result in (table, recovery) if result is not None]
    return "\n".join((*shown, *(f"wrote {path}" for path in files.all())))
