"""Run: the whole chain from a recipe: calibrate, build, compare, gate."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets import Dataset, ResolvedPreprocess
from quantlab.datasets.slices import SliceTable
from quantlab.documents import canonical_sha256
from quantlab.engines.onnxruntime import NAME
from quantlab.engines.probe import probe_path
from quantlab.engines.protocol import Engine
from quantlab.engines.sidecar import read_sidecar, sidecar_path
from quantlab.engines.tensorrt.flavour import FLAVOURS, load_flavour
from quantlab.engines.tensorrt.profiles import ShapeFlags
from quantlab.engines.variant import RECOVERABLE, Variant
from quantlab.errors import BackendUnavailable, ConfigError, DataError
from quantlab.files import is_file, is_folder, sha256_file
from quantlab.gate import Verdict, evaluate
from quantlab.graph.existing import check_existing
from quantlab.graph.metadata import stated_preprocess
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import QuantizationKind
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison
from quantlab.harness.environment import processor_name
from quantlab.harness.gpus import nvidia_gpus
from quantlab.harness.samples import SAMPLES_NAME
from quantlab.harness.tasks.custom import find_metric
from quantlab.harness.tasks.registry import TaskRequest
from quantlab.precision import Precision
from quantlab.progress import Narrator
from quantlab.records import to_plain
from quantlab.recovery.artifact import check_place
from quantlab.versions import onnxruntime_version
from quantlab.workflow.build import OPENVINO, build_variants, check_backend, target_for
from quantlab.workflow.calibrate import CalibrateSettings, CalibrationFiles, calibrate, write_calibration
from quantlab.workflow.compare import (
    check_preprocess,
    latency_settings,
    open_engines,
    open_slices,
    reference_name,
    truths_of,
    write_comparison,
)
from quantlab.workflow.gate import find_policy, write_verdict
from quantlab.workflow.recipe import CalibrateSection, CompareSection, Recipe, load_recipe
from quantlab.workflow.recovery import check_recoverable, find_recovery, recover_calibrated, recovery_steps
from quantlab.workflow.sources import DataRequest, open_data, open_for_engine, open_model, thread_count
from quantlab.workflow.steps import Steps


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run ended with.

    Attributes:
        comparison: The table.
        verdict: The gate's.
        files: Everything in the output folder that a person may want to open.
    """

    comparison: Comparison
    verdict: Verdict
    files: tuple[Path, ...]


def run_recipe(path: Path, out: Path | None, narrator: Narrator, *, force: bool, today: dt.date) -> RunResult:
    """Carry out a recipe; finished steps whose inputs are unchanged are taken from the output folder.

    Args:
        path: The recipe.
        out: Output folder in place of the recipe's.
        narrator: Told of progress.
        force: Run every step again.
        today: Date by which waivers are judged.

    Raises:
        QuantlabError: Whatever the verbs of the chain raise.
    """
    recipe = load_recipe(path)
    if recipe.calibrate is None or recipe.compare is None:
        missing = "calibrate" if recipe.calibrate is None else "compare"
        raise ConfigError(f"recipe {path} has no [{missing}] section", expected=f"[{missing}] with data = ...")
    folder = path.parent
    target = out if out is not None else folder / recipe.run.out
    chain = _Chain(recipe, recipe.calibrate, recipe.compare, folder, target, narrator, force=force)
    return chain.run(today)


class _Chain:
    def __init__(
        self,
        recipe: Recipe,
        calibrate_section: CalibrateSection,
        compare_section: CompareSection,
        folder: Path,
        out: Path,
        narrator: Narrator,
        *,
        force: bool,
    ) -> None:
        self.recipe, self.folder, self.out, self.narrator = recipe, folder, out, narrator
        self.calibrate_section, self.compare_section = calibrate_section, compare_section
        self.threads = thread_count(recipe.run.threads)
        self.target = target_for(recipe.build.target)
        self.options = recipe.build.options(folder)
        check_backend(recipe.build.backend, self.options)
        self.calibration = CalibrateSettings(
            calibrate_section.method, calibrate_section.percentile, self.threads, self.target
        )
        self.recover = recovery_steps(calibrate_section.recover, QuantizationKind.INT8, recipe.build.existing)
        self.latency = latency_settings(compare_section.latency_seconds, recipe.run.seed)
        labels = folder / compare_section.labels if compare_section.labels else None
        asked = TaskRequest(compare_section.task, compare_section.metric, options=compare_section.task_options)
        self.task, self.labels = truths_of(asked, labels)
        self.slices_path = folder / compare_section.slices if compare_section.slices else None
        self.metric_file: Path | None = None
        self.steps = Steps(out, narrator, force=force)

    def run(self, today: dt.date) -> RunResult:
        # Policy, data and all that comparing needs are opened first, so that a mistake in them does not cost a run.
        policy = find_policy(self.recipe.gate.policy, self.folder)
        prepared = self._open_model()
        if self.recover:
            check_recoverable(prepared)
            check_place(self._calibration_files(prepared).recovered)
        check_existing(prepared.model, self.recipe.build.existing)
        calibration = self._data(prepared, self.calibrate_section.data, None, self.calibrate_section.limit)
        section = self.compare_section
        evaluation = self._data(prepared, section.data, self.labels, section.limit)
        slices = self._slices(evaluation[0])
        self._check_task()
        table, files = self._calibrate(prepared, *calibration)
        engines = self._build(prepared, table, files)
        comparison, compared = self._compare(engines, slices, *evaluation)
        verdict = evaluate(comparison, policy, today)
        judged = write_verdict(self.out, verdict)
        return RunResult(comparison, verdict, (*compared, *judged, *files.all(), self.out / "engines"))

    def _open_model(self) -> Prepared:
        recipe = self.recipe
        path = self.folder / recipe.model.file
        if recipe.build.backend not in FLAVOURS:
            return open_model(path, recipe.model.shapes, self.narrator)
        return open_for_engine(path, ShapeFlags(recipe.model.shapes, self.options.profiles), self.narrator)

    def _data(
        self, prepared: Prepared, source: str, labels: Path | None, limit: int | None
    ) -> tuple[Dataset, ResolvedPreprocess]:
        local = self.folder / source
        known = local.exists() or any(character in source for character in "*?[")
        request = DataRequest(
            str(local) if known or not _is_reference(source) else source,
            labels,
            limit,
            self.recipe.run.seed,
            self.threads,
            None,
            self.recipe.preprocess,
        )
        return open_data(prepared.model, request, self.narrator)

    def _calibrate(
        self, prepared: Prepared, dataset: Dataset, resolved: ResolvedPreprocess
    ) -> tuple[CalibrationTable, CalibrationFiles]:
        settings = self.calibration
        files = self._calibration_files(prepared)

        def action() -> Iterable[Path]:
            table, histograms = calibrate(prepared, dataset, resolved, settings, self.narrator)
            folder = files.table.parent
            recovered = recover_calibrated(
                prepared, dataset, table, self.recover, self.target, self.threads, folder, self.narrator
            )
            return write_calibration(
                folder, prepared, table, histograms, self.target,
                existing=self.recipe.build.existing, recovered=recovered,
            ).all()  # fmt: skip

        inputs = {
            "model": prepared.model.sha256,  # provenance names the file, and files may differ that prepare alike
            "graph": prepared.graph_sha256,
            "data": dataset.manifest.sha256,
            "preprocess": resolved.preprocess.sha256 if resolved.preprocess else None,
            "method": settings.method,
            "percentile": settings.percentile,
            "target": self.target.name,
            "existing": self.recipe.build.existing.value,
            "recover": list(self.recover),
            "onnxruntime": onnxruntime_version(),
        }
        self.steps.run("calibrate", inputs, action)
        table, recovery = CalibrationTable.load(files.table), files.recovery() if self.recover else None
        for degradation in (*table.degradations, *(recovery.degradations if recovery is not None else ())):
            self.narrator.warn(degradation)
        return table, files

    def _calibration_files(self, prepared: Prepared) -> CalibrationFiles:
        return CalibrationFiles.of(self.out / "calibration", prepared.model.name)

    def _build(self, prepared: Prepared, table: CalibrationTable, files: CalibrationFiles) -> list[Path]:
        section = self.recipe.build
        precisions = tuple(dict.fromkeys((Precision.FP32, *section.precisions)))
        wanted = bool(self.recover) and not RECOVERABLE.isdisjoint(precisions)
        found = find_recovery(files.table, table, prepared, self.narrator) if wanted else None
        place = self._place()
        engines: list[Path] = []
        for precision in precisions:
            variant = Variant(
                prepared, section.backend, precision, self.target, table, section.exclude, section.existing, found
            )
            inputs = {
                "model": prepared.model.sha256,
                "graph": prepared.graph_sha256,
                "backend": section.backend,
                "precision": precision.value,
                "table": table.sha256 if variant.calibrated or place else None,  # GPUs' FP16 depends on its extremes
                "preprocess": stated_preprocess(table),
                "target": self.target.name if variant.quantized else None,
                "exclude": list(section.exclude) if variant.quantized or place else [],
                "existing": section.existing.value if variant.quantized else None,
                "recovered": found.sha256 if found is not None and precision in RECOVERABLE else None,
                "onnxruntime": onnxruntime_version(),
                **place,
            }
            name = f"build {precision}"
            self.steps.run(name, inputs, self._build_one(variant))
            suffixes = self.steps.records[name].files
            engines.append(next(self.out / file for file in suffixes if not file.endswith((".json", ".data", ".npz"))))
        return engines

    def _place(self) -> dict[str, object]:
        """What engines depend on besides the graph: options, library and processor; nothing for ONNX Runtime's CPU."""
        backend = self.recipe.build.backend
        if backend == NAME:
            return {}
        if backend == OPENVINO:
            from quantlab.engines.openvino_runtime import load_openvino

            runtime = load_openvino()  # what it proves of a precision, it proves of one processor
            return {"openvino": [runtime.version, runtime.device, list(runtime.capabilities)]}
        found: dict[str, object] = {"gpus": [[gpu.name, gpu.compute_capability, gpu.driver] for gpu in nvidia_gpus()]}
        if backend in FLAVOURS:
            options = self.options
            found["tensorrt"] = load_flavour(backend).version
            found["options"] = {**options.described(), "profiles": to_plain(options.profiles)}
            found["plugins"] = [sha256_file(path) for path in options.plugins if is_file(path)]
        return found

    def _build_one(self, variant: Variant) -> Callable[[], Iterable[Path]]:
        def action() -> Iterable[Path]:
            folder = self.out / "engines"
            (sidecar,) = build_variants([variant], folder, self.narrator, self.options)
            for degradation in sidecar.degradations:
                self.narrator.warn(degradation)
            engine = folder / sidecar.file
            beside = (engine.with_name(engine.name + ".data"), probe_path(engine))
            return (engine, sidecar_path(engine), *(file for file in beside if file.exists()))

        return action

    def _compare(
        self, paths: list[Path], slices: SliceTable | None, dataset: Dataset, resolved: ResolvedPreprocess
    ) -> tuple[Comparison, tuple[Path, ...]]:
        section = self.compare_section
        sidecars = [read_sidecar(path) for path in paths]
        check_preprocess(sidecars, resolved)
        seed = self.recipe.run.seed
        settings = CompareSettings(
            section.batch_size,
            section.latency_batch,
            self.threads,
            seed,
            self.latency,
            self.task,
            slices,
            section.by_class,
        )
        samples = self.out / SAMPLES_NAME
        written = (*(self.out / f"comparison.{suffix}" for suffix in ("json", "csv", "md")), samples)

        def action() -> Iterable[Path]:
            with self._engines(paths) as engines:
                comparison = compare(engines, reference_name(sidecars, None), dataset, settings, self.narrator, samples)
            return (*write_comparison(self.out, comparison), samples)

        inputs = {
            "engines": [sha256_file(sidecar_path(path)) for path in paths],  # they vouch for the files and their origin
            "data": dataset.manifest.sha256,
            "preprocess": resolved.preprocess.sha256 if resolved.preprocess else None,
            "task": {**to_plain(self.task), "truths": self._contents(self.task.truths)},
            "metric": self._contents(self.metric_file),
            "slices": [self._contents(self.slices_path), section.by_class],
            "samples": SAMPLES_NAME,
            "batch": [section.batch_size, section.latency_batch],
            "latency_seconds": section.latency_seconds,
            "threads": self.threads,
            "seed": seed,
            "processor": processor_name(),
            "onnxruntime": onnxruntime_version(),
            **self._place(),
        }
        self.steps.run("compare", inputs, action)
        comparison = Comparison.load(written[0])
        for degradation in comparison.degradations:
            self.narrator.warn(degradation)
        return comparison, written

    def _slices(self, dataset: Dataset) -> SliceTable | None:
        return open_slices(self.slices_path, dataset, by_class=self.compare_section.by_class)

    def _check_task(self) -> None:
        """Find what the task needs besides the data.

        Raises:
            DataError: If the truths are not there.
            ConfigError: If the metric cannot be imported.
        """
        if self.task.truths is not None and not self.task.truths.exists():
            raise DataError(f"truths {self.task.truths} do not exist", hint="check compare.labels in the recipe")
        if self.task.metric is not None:
            file = sys.modules[find_metric(self.task.metric).__module__].__file__
            self.metric_file = Path(file) if file is not None else None

    @staticmethod
    def _contents(path: Path | None) -> str | None:
        """What a file or a folder of truths holds, as a hash; None without one."""
        if path is None:
            return None
        if is_folder(path):
            files = sorted(file for file in path.rglob("*") if is_file(file))
            return canonical_sha256({str(file.relative_to(path)): sha256_file(file) for file in files})
        return sha256_file(path) if is_file(path) else None

    @contextmanager
    def _engines(self, paths: list[Path]) -> Iterator[list[Engine]]:
        """The engines, opened.

        Raises:
            BackendUnavailable: If they were built without the GPU that they need, saying how to go on.
        """
        with ExitStack() as stack:
            try:
                engines = stack.enter_context(open_engines(paths, self.threads, self.narrator, self.options.plugins))
            except BackendUnavailable as cause:
                raise BackendUnavailable(
                    f"the engines are built and lie in {paths[0].parent}, but cannot be compared here",
                    got=f"{cause.what}: {cause.got}" if cause.got else cause.what,
                    expected=f"what {self.recipe.build.backend} needs to run them",
                    hint="copy that folder and the data to the machine with the GPU, and run there: "
                    "quantlab compare engines --data DATA",
                ) from cause
            yield engines


def _is_reference(source: str) -> bool:
    """Whether a data source is a Python or torchvision reference rather than a path."""
    head, separator, _ = source.partition(":")
    return bool(separator) and "/" not in head
