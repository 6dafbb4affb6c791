"""Calibrate: images and an FP32 model in; table, histograms, TensorRT cache and Q/DQ model out."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantlab.calibrators.histogram import Histogram, save_histograms
from quantlab.calibrators.methods import check_method, range_methods
from quantlab.calibrators.table import CalibrationTable, Provenance, measure_tensor, table_degradations
from quantlab.calibrators.tensorrt_cache import CalibrationCache
from quantlab.datasets import Dataset, ResolvedPreprocess
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.observation import observe, observed_tensors
from quantlab.errors import CalibrationError, ConfigError, OutputError
from quantlab.files import check_folder, remove_file, write_text
from quantlab.graph.metadata import with_preprocess
from quantlab.graph.model import save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import check_quantized, quantize_model
from quantlab.graph.targets import TargetProfile
from quantlab.progress import Narrator
from quantlab.records import to_plain
from quantlab.reports import Style, render


@dataclass(frozen=True, slots=True)
class CalibrateSettings:
    """How to calibrate.

    Attributes:
        method: Range method written into the cache and the Q/DQ model; the table holds them all.
        percentile: Share kept by the percentile method, in per cent.
        threads: Workers.

    Raises:
        ConfigError: If the method or the percentile is wrong.
    """

    method: str
    percentile: float
    threads: int

    def __post_init__(self) -> None:
        check_method(self.method)
        range_methods(self.percentile)  # making them is the check


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
) -> tuple[CalibrationTable, dict[str, Histogram]]:
    """Run the data through the model once and compute every method's ranges.

    Raises:
        CalibrationError: If the model fails on a sample, or a tensor has no finite value.
        DataError: If no sample can be read.
    """
    method, methods = settings.method, range_methods(settings.percentile)
    histograms = observe(prepared, dataset, observed_tensors(prepared), settings.threads, narrator)
    with ThreadPoolExecutor(settings.threads) as pool:
        tensors = tuple(pool.map(lambda name: measure_tensor(name, histograms[name], methods), sorted(histograms)))
    manifest = dataset.manifest
    source = prepared.model
    provenance = Provenance(
        quantlab=version("quantlab"),
        model=source.path.name if source.path else source.name,
        model_sha256=source.sha256,
        graph_sha256=prepared.graph_sha256,
        shapes=prepared.shapes,
        data=dataset.describe(),
        data_sha256=manifest.sha256,
        preprocess_sha256=preprocess.preprocess.sha256 if preprocess.preprocess else "",
        samples=tuple(sorted(entry.sha256 for entry in manifest.entries)),
        percentile=settings.percentile,
    )
    degradations = [*prepared.degradations, *dataset.degradations, *table_degradations(tensors, method)]
    n = len(manifest.entries)
    if prepared.fixed_batch and n % prepared.fixed_batch:
        short = prepared.fixed_batch - n % prepared.fixed_batch
        message = (
            f"the last batch of {prepared.fixed_batch} was filled with {short} repeated samples, which are not counted"
        )
        degradations.append(Degradation(DegradationCode.PADDED_BATCH, message, short))
    table = CalibrationTable(method, n, tensors, provenance, merge_degradations(degradations))
    return table, histograms


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
    save_histograms(files.histograms, histograms)
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
