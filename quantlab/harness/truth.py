"""One quantized graph in several runtimes: whose error is it that the results differ from the original's?

Every sample goes through each runtime alone, in a batch and in the same batch again, and through references: float64
by ONNX's evaluator, and float32 by ONNX Runtime with its optimizer off, which runs every node as it is written. A
runtime's own error is its distance from the float64 of the very graph that it was given; what quantization loses is the
distance of that from the original's float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from quantlab.datasets import Batch, Dataset, batches
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.engines.emulation import open_plain
from quantlab.engines.protocol import Arrays, Engine
from quantlab.errors import DataError, MeasurementError, ModelError
from quantlab.graph.double import open_double
from quantlab.graph.model import Model, Optimization, model_inputs
from quantlab.harness.environment import environment
from quantlab.harness.truth_figures import CONFIDENCE, METHOD, NEAR_DB, Distances, truth_figures
from quantlab.harness.truth_meters import Outputs, RowMeters
from quantlab.harness.truth_record import Intervals, Judgement, OutputTruth, Role, Truth, TruthRow
from quantlab.harness.truth_verdict import Yardstick, decibels, is_rounding, judge
from quantlab.progress import Narrator
from quantlab.statistics.bootstrap import Resampling

GRAPH_DOUBLE, GRAPH_FLOAT = "float64 of the graph", "float32 of the graph, as written"
EXACT, FP32, FP32_OPTIMIZED = "float64 of the original", "FP32 of the original", "FP32 of the original, optimized"

_Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime under test.

    Attributes:
        name: Of the backend, or of the engine where two have the same backend.
        engine: The graph, loaded; None if that was not possible.
        reason: Why not.
        judgement: What that says of it: `Judgement.UNAVAILABLE` or `Judgement.FAILED`.
    """

    name: str
    engine: Engine | None
    reason: str = ""
    judgement: Judgement = Judgement.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class TruthSettings:
    """How to compare.

    Attributes:
        batch_size: Samples of the batches that are compared with single samples.
        threads: Threads of ONNX Runtime's reference sessions; recorded.
        resampling: Of the samples, for intervals.
    """

    batch_size: int = 8
    threads: int = 2
    resampling: Resampling = field(default_factory=Resampling)


class _Reference:
    """A reference execution, one sample a call; unavailable once it fails on the first sample."""

    def __init__(self, name: str, model: Model, opened: Callable[[], _Run]) -> None:
        self.name, self.reason = name, ""
        self._fixed = fixed_batch(model)
        self._run: _Run | None = None
        try:
            self._run = opened()
        except ModelError as error:
            self.reason = f"{error.what}: {error.got}"

    @property
    def available(self) -> bool:
        return self._run is not None

    def try_out(self, sample: Arrays) -> None:
        """Run one sample, to find out early whether it can."""
        if self._run is not None:
            try:
                self.run(sample)
            except ModelError as error:
                self._run, self.reason = None, f"{error.what}: {error.got}"

    def run(self, sample: Arrays) -> Outputs:
        assert self._run is not None
        feed, n = fill_batch(sample, self._fixed)
        return cut_batch(dict(self._run(feed)), n, self._fixed)


def fixed_batch(model: Model) -> int | None:
    """First axis of the first input, if it is a number."""
    shape = next((spec.shape for spec in model_inputs(model.proto)), None)
    return shape[0] if shape and isinstance(shape[0], int) else None


def measure_truth(
    graph: Model,
    original: Model | None,
    runtimes: Sequence[Runtime],
    dataset: Dataset,
    settings: TruthSettings,
    narrator: Narrator,
) -> Truth:
    """Run the samples through references and runtimes, one batch in memory at a time.

    Cost: float64 takes seconds a sample for models of a billion multiplications; a few dozen samples are enough.

    Args:
        graph: The quantized graph, as the runtimes were given it.
        original: The floating-point model it was made from; without one, only the runtimes' own errors are told.
        runtimes: What to test; those that could not be opened become rows with the reason.
        dataset: Samples.
        settings: Batch size and threads.
        narrator: Told of progress.

    Raises:
        DataError: If there are no samples, or they do not fit.
        ModelError: If ONNX Runtime itself cannot run the graph or the original as written.
    """
    return _Measurement(graph, original, runtimes, settings).measure(dataset, narrator)


class _Measurement:
    """References, runtimes and their meters."""

    def __init__(
        self, graph: Model, original: Model | None, runtimes: Sequence[Runtime], settings: TruthSettings
    ) -> None:
        self.graph, self.original, self.runtimes, self.settings = graph, original, runtimes, settings
        threads = settings.threads
        self.names = tuple(value.name for value in graph.proto.graph.output)
        self.references = {
            GRAPH_DOUBLE: _Reference(GRAPH_DOUBLE, graph, lambda: open_double(graph).run),
            GRAPH_FLOAT: _Reference(GRAPH_FLOAT, graph, lambda: open_plain(graph, threads, Optimization.NONE)),
        }
        if original is not None:
            model = original
            self.references |= {
                EXACT: _Reference(EXACT, model, lambda: open_double(model).run),
                FP32: _Reference(FP32, model, lambda: open_plain(model, threads, Optimization.NONE)),
                FP32_OPTIMIZED: _Reference(FP32_OPTIMIZED, model, lambda: open_plain(model, threads)),
            }
        self.rows = {name: RowMeters(self.names) for name in (*self.references, *(r.name for r in runtimes))}
        self.n_samples = self.n_different = 0

    def measure(self, dataset: Dataset, narrator: Narrator) -> Truth:
        size = self.settings.batch_size
        for batch in narrator.track(batches(dataset, size), -(-len(dataset) // size), "comparing"):
            if self.n_samples == 0:
                self._try_out(_rows(batch)[0])
            self.n_samples += len(batch.ids)
            self._add(batch)
        if self.n_samples == 0:
            raise DataError(f"data set {dataset.name} has no samples to compare on")
        self.n_different = len({entry.sha256 for entry in dataset.manifest.entries})
        return self._result(dataset)

    def _try_out(self, sample: Arrays) -> None:
        for reference in self.references.values():
            reference.try_out(sample)
        for name in (GRAPH_FLOAT, FP32):
            needed = self.references.get(name)
            if needed is not None and not needed.available:
                raise ModelError(f"{name}: ONNX Runtime cannot run it", got=needed.reason)

    @property
    def _batch_size(self) -> int:
        return min(self.settings.batch_size, self.n_samples)

    @property
    def truth(self) -> str:
        """The reference that a runtime's own error is told from."""
        return GRAPH_DOUBLE if self.references[GRAPH_DOUBLE].available else GRAPH_FLOAT

    @property
    def exact(self) -> str | None:
        """The reference that stands for the original."""
        if self.original is None:
            return None
        return EXACT if self.references[EXACT].available else FP32

    def _add(self, batch: Batch) -> None:
        samples = _rows(batch)
        truths: list[dict[str, Outputs]] = []
        for sample in samples:
            found = {name: one.run(sample) for name, one in self.references.items() if one.available}
            for name, outputs in found.items():
                self._compare(name, found, outputs)
            truths.append(found)
        for runtime in self.runtimes:
            row = self.rows[runtime.name]
            if runtime.engine is not None and not row.failed:
                try:
                    self._add_runtime(runtime.engine, row, batch, samples, truths)
                except MeasurementError as error:
                    row.failed = f"{error.what}: {error.got}" if error.got is not None else error.what

    def _compare(self, name: str, found: Mapping[str, Outputs], outputs: Outputs) -> None:
        """Add one sample's outputs against every reference that it is not itself."""
        is_original = name in (EXACT, FP32, FP32_OPTIMIZED)
        if name != self.truth and not is_original:
            self.rows[name].add("graph", found[self.truth], outputs)
        if self.exact is not None:
            if name != self.exact:
                self.rows[name].add("exact", found[self.exact], outputs)
            if name != FP32:
                self.rows[name].add("fp32", found[FP32], outputs)

    def _add_runtime(
        self,
        engine: Engine,
        row: RowMeters,
        batch: Batch,
        samples: Sequence[Arrays],
        truths: Sequence[Mapping[str, Outputs]],
    ) -> None:
        singles = [engine.run(sample) for sample in samples]
        for single, found in zip(singles, truths, strict=True):
            row.add("graph", found[self.truth], single)
            if self.exact is not None:
                row.add("exact", found[self.exact], single)
                row.add("fp32", found[FP32], single)
        row.add("repeat", singles[0], engine.run(samples[0]))
        fixed = engine.sidecar.fixed_batch
        if row.batch_failed or (fixed is not None and fixed == 1) or len(samples) == 1:
            return
        try:
            _add_batch(engine, row, batch, singles, fixed or len(samples))
        except MeasurementError as error:  # one by one it runs, and that counts
            row.batch_failed = f"{error.what}: {error.got}" if error.got is not None else error.what

    def _result(self, dataset: Dataset) -> Truth:
        yardsticks = {name: self._yardstick(name) for name in self.names}
        rows = [self._reference_row(reference) for reference in self.references.values()]
        degradations, how = [*dataset.degradations], self.settings.resampling
        for runtime in self.runtimes:
            row = self._runtime_row(runtime, yardsticks)
            rows.append(row)
            if runtime.engine is not None:
                degradations += runtime.engine.sidecar.degradations
            degradations += [
                Degradation(DegradationCode.BATCH_DISAGREES, f"{row.name}: {note}")
                for note in row.notes
                if note.startswith("batches of")
            ]
        return Truth(
            graph=_file(self.graph),
            graph_sha256=self.graph.sha256,
            model=_file(self.original) if self.original is not None else None,
            model_sha256=self.original.sha256 if self.original is not None else None,
            truth=self.truth.partition(" ")[0],
            rows=tuple(rows),
            n_samples=self.n_samples,
            intervals=Intervals(CONFIDENCE, METHOD, how.resamples, how.seed),
            batch_size=self._batch_size,
            data=dataset.describe(),
            data_sha256=dataset.manifest.sha256,
            environment=environment(self.settings.threads),
            notes=tuple(self._notes()),
            degradations=merge_degradations(degradations),
        )

    def _yardstick(self, output: str) -> Yardstick:
        """What the graph itself gives for an output."""
        return Yardstick(self.rows[GRAPH_FLOAT].gap(output, "graph"), self.rows[self.truth].gap(output, "exact"))

    def _with_figures(self, row: RowMeters, output: OutputTruth) -> OutputTruth:
        floats, name = self.rows[GRAPH_FLOAT], output.output
        distances = Distances(
            own=row.terms(name, "graph"),
            rounding=floats.terms(name, "graph"),
            total=row.terms(name, "exact"),
            quantization=self.rows[self.truth].terms(name, "exact"),
            rounded=floats.terms(name, "exact"),
        )
        is_float = output.graph is not None and output.graph.sqnr_db is not None
        return replace(output, figures=truth_figures(distances, is_float, self.n_different, self.settings.resampling))

    def _reference_row(self, reference: _Reference) -> TruthRow:
        role = Role.GRAPH if reference.name in (GRAPH_DOUBLE, GRAPH_FLOAT) else Role.ORIGINAL
        if not reference.available:
            return TruthRow(reference.name, role, Judgement.UNAVAILABLE, reference.reason)
        used = {self.truth: "the truth of the graph", self.exact: "the truth of the original"}
        row = self.rows[reference.name]
        return TruthRow(reference.name, role, Judgement.REFERENCE, used.get(reference.name, ""), row.outputs())

    def _runtime_row(self, runtime: Runtime, yardsticks: Mapping[str, Yardstick]) -> TruthRow:
        row = self.rows[runtime.name]
        if runtime.engine is None:
            return TruthRow(runtime.name, Role.RUNTIME, runtime.judgement, runtime.reason)
        sidecar = runtime.engine.sidecar
        if row.failed:
            verdict = f"{runtime.name} stopped while running the graph: {row.failed}"
            return TruthRow(runtime.name, Role.RUNTIME, Judgement.FAILED, verdict, (), sidecar.proved, sidecar.proof)
        outputs = tuple(self._with_figures(row, output) for output in row.outputs())
        found = judge(runtime.name, self.truth.partition(" ")[0], self.n_samples, outputs, yardsticks)
        size = min(sidecar.fixed_batch or self._batch_size, self._batch_size)
        notes = tuple(self._runtime_notes(row, outputs, yardsticks, size))
        return TruthRow(
            runtime.name, Role.RUNTIME, found.judgement, found.verdict, outputs, sidecar.proved, sidecar.proof, notes
        )

    def _runtime_notes(
        self, row: RowMeters, outputs: Sequence[OutputTruth], yardsticks: Mapping[str, Yardstick], size: int
    ) -> Sequence[str]:
        notes = []
        if row.batch_failed:
            notes.append(f"a batch failed, single samples did not: {row.batch_failed}")
        for output in outputs:
            if output.batch is not None and not is_rounding(output.batch, yardsticks[output.output].rounding):
                figure = decibels(output.batch.sqnr_db)
                notes.append(f"batches of {size} give other results than one by one: {figure}")
            if output.repeat is not None and not output.repeat.is_equal:
                share = f"{output.repeat.differing:,} of {output.repeat.values:,} values"
                notes.append(f"the same call gives other results the second time, in {share}")
        return list(dict.fromkeys(notes))

    def _notes(self) -> Sequence[str]:
        """What limits the table."""
        notes = [f"{one.name} could not be had: {one.reason}" for one in self.references.values() if not one.available]
        for output in self.names:
            named = f" (output {output})" if len(self.names) > 1 else ""
            for name in (FP32, FP32_OPTIMIZED):
                gap = self.rows[name].gap(output, "exact") if name in self.rows else None
                if gap is not None and gap.sqnr_db is not None and not gap.sqnr_db >= NEAR_DB:
                    notes.append(
                        f"{name} is {decibels(gap.sqnr_db)} from {self.exact}{named}: they cannot both be right, and "
                        "neither is a reference without a look at why"
                    )
        return notes


def _add_batch(engine: Engine, row: RowMeters, batch: Batch, singles: Sequence[Outputs], size: int) -> None:
    """Run the samples in batches, each twice, and compare with one by one and with itself."""
    for start in range(0, len(singles), size):
        inputs = {name: value[start : start + size] for name, value in batch.inputs.items()}
        alone = singles[start : start + size]
        together = engine.run(inputs)
        row.add("repeat", together, engine.run(inputs))
        joined = {}
        for name, first in alone[0].items():
            if first.shape[:1] != (1,):
                raise MeasurementError(f"output {name!r} has no batch axis", got=f"shape {first.shape} for one sample")
            joined[name] = np.concatenate([single[name] for single in alone])
        row.add("batch", joined, together)


def _rows(batch: Batch) -> list[Arrays]:
    """The samples of a batch, each as a batch of one."""
    return [{name: value[i : i + 1] for name, value in batch.inputs.items()} for i in range(len(batch.ids))]


def _file(model: Model) -> str:
    return model.path.name if model.path is not None else model.name
