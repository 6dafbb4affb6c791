"""Comparison of engines: every sample through every engine, then interleaved timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from quantlab.datasets import Batch, Dataset, batches
from quantlab.datasets.slices import SliceTable
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.protocol import Arrays, BlockTimed, DeviceTimed, Engine
from quantlab.errors import EngineMismatch, MeasurementError
from quantlab.harness.comparison import Comparison, Score, VariantResult, WorstSample
from quantlab.harness.device_timing import EngineDiedError, time_on_gpu
from quantlab.harness.drift_pass import DriftPass, drift_pass
from quantlab.harness.environment import environment
from quantlab.harness.latency import LatencySettings, Timings, time_engines
from quantlab.harness.measurement import Boundary
from quantlab.harness.samples import SampleWriter
from quantlab.harness.scoring import ScoringSettings, confusions, scores, worst_samples
from quantlab.harness.slicing import Slicing, slicing
from quantlab.harness.survivors import named_call, with_survivors
from quantlab.harness.tasks.protocol import CountChange, Degraded
from quantlab.harness.tasks.registry import TaskRequest
from quantlab.harness.timings import TimingWarning
from quantlab.harness.trtexec import DeviceFigures, device_figures
from quantlab.progress import Narrator
from quantlab.statistics.bootstrap import Resampling

_DEVICE_SECONDS = 3.0
"""Most that one engine is timed on the GPU; trtexec's own default."""


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """How to compare.

    Attributes:
        batch_size: Samples a call when measuring drift.
        latency_batch: Samples a call when timing.
        threads: Threads of each engine, recorded with the result.
        seed: Of the bootstrap, recorded with the result; the timing order has that of ``latency``.
        latency: Timing budget; None to skip timing.
        task: What the model is for; by default, what its outputs look like.
        slices: Columns by which figures are told slice by slice, besides the class.
        by_class: Whether figures of a classifier are told class by class.
        confidence: Coverage of the intervals of scores, two-sided.
        resamples: Of each bootstrap.
    """

    batch_size: int = 32
    latency_batch: int = 1
    threads: int = 2
    seed: int = 0
    latency: LatencySettings | None = field(default_factory=LatencySettings)
    task: TaskRequest = field(default_factory=TaskRequest)
    slices: SliceTable | None = None
    by_class: bool = True
    confidence: float = 0.95
    resamples: int = 2000


def compare(
    engines: Sequence[Engine],
    reference: str,
    dataset: Dataset,
    settings: CompareSettings,
    narrator: Narrator,
    samples: Path | None = None,
) -> Comparison:
    """Compare engines with the reference among them.

    An engine that fails on the way is left out, and a degradation says so.

    Args:
        engines: Made from one model.
        reference: Name of the one that the others are compared with.
        dataset: Samples.
        settings: How to compare.
        narrator: Told of progress.
        samples: Parquet file to write the results of each sample to; None for none.

    Raises:
        EngineMismatch: If the engines were not made from one model, or give different outputs.
        DataError: If the data set is empty or does not fit, or a label is outside the model's classes.
        ConfigError: If the task does not fit the model.
        MeasurementError: If the reference fails, or all others.
        OutputError: If ``samples`` cannot be written.
    """
    ordered = _reference_first(engines, reference)
    fixed = ordered[0].sidecar.fixed_batch
    size = fixed or settings.batch_size
    stream = narrator.track(batches(dataset, size), -(-len(dataset) // size), "comparing")
    with ExitStack() as stack:
        writer = stack.enter_context(SampleWriter(samples)) if samples is not None else None
        found = drift_pass(ordered, dataset, stream, settings.task, settings.slices, writer)
    n = len(found.ids)
    running = [engine for engine in ordered if engine.sidecar.name in found.meters]
    findings = _Findings(found, dataset, settings, narrator)
    failures = list(found.failures)
    timings = _time(running, found.first, settings, narrator, failures)
    device = _time_device(running, found.first, settings, narrator, failures)
    on_gpu = _interleave_on_gpu(running, device, found.first, settings, narrator, failures)
    results = tuple(
        _result(engine, found, findings, timings, device.get(engine.sidecar.name), on_gpu) for engine in running
    )
    degradations = [*dataset.degradations, *failures, *_overlap(ordered, dataset)]
    degradations += found.task.degradations if isinstance(found.task, Degraded) else ()
    degradations += _nothing_to_lose(results[0])
    for engine in ordered:
        degradations += engine.sidecar.degradations
    if fixed and n % fixed:
        message = (
            f"the last batch of {fixed} was filled with {fixed - n % fixed} repeated samples, which are not counted"
        )
        degradations.append(Degradation(DegradationCode.PADDED_BATCH, message, fixed - n % fixed))
    sidecar = ordered[0].sidecar
    return Comparison(
        reference=sidecar.name,
        variants=results,
        model=sidecar.model,
        model_sha256=sidecar.model_sha256,
        data=dataset.describe(),
        data_sha256=dataset.manifest.sha256,
        n_samples=n,
        seed=settings.seed,
        noise_floor=timings.noise_floor if timings else None,
        timing_warnings=_timing_warnings(timings, on_gpu),
        environment=environment(settings.threads),
        degradations=merge_degradations(degradations),
        task=found.task.name,
        slices_left_out=findings.slicing.left_out,
        device_noise_floor=on_gpu.noise_floor if on_gpu else None,
    )


def _nothing_to_lose(reference: VariantResult) -> list[Degradation]:
    """A reference that is never right by the task's first figure: every variant would be as good."""
    first = next(iter(reference.scores), None)
    if (
        first is None
        or first.unit != "%"
        or not first.higher_is_better
        or first.against_reference
        or first.value != 0.0
    ):
        return []
    message = f"{reference.name}, the reference, has {first.figure} 0 % of {first.n:,} samples: nothing can be lost"
    return [Degradation(DegradationCode.REFERENCE_SCORES_NOTHING, message, first.n)]


def _reference_first(engines: Sequence[Engine], reference: str) -> list[Engine]:
    names = [engine.sidecar.name for engine in engines]
    if reference not in names:
        raise EngineMismatch(f"the reference {reference!r} is not among the engines", got=", ".join(names) or "none")
    chosen = engines[names.index(reference)]
    for engine in engines:
        for what, got, expected in (
            ("model", engine.sidecar.model_sha256, chosen.sidecar.model_sha256),
            ("prepared graph", engine.sidecar.graph_sha256, chosen.sidecar.graph_sha256),
        ):
            if got != expected:
                raise EngineMismatch(
                    f"engine {engine.sidecar.name} was made from another {what} than {reference}",
                    got=f"sha256 {got[:16]}...",
                    expected=f"sha256 {expected[:16]}...",
                    hint="build all variants from one model into one folder",
                )
        if engine.outputs != chosen.outputs:
            raise EngineMismatch(
                f"engine {engine.sidecar.name} has other outputs", got=engine.outputs, expected=chosen.outputs
            )
    return [chosen, *(engine for engine in engines if engine is not chosen)]


class _Findings:
    """What the pass amounts to, by variant."""

    def __init__(self, found: DriftPass, dataset: Dataset, settings: CompareSettings, narrator: Narrator) -> None:
        by_class = settings.by_class and found.task.name == "classify"
        names = dataset.class_names
        words = [_class_words(label, names) for label in found.labels]
        self.slicing: Slicing = slicing(found.ids, words if by_class else None, settings.slices)
        meters = {name: meter.task for name, meter in found.meters.items()}
        how = ScoringSettings(settings.confidence, Resampling(settings.resamples, settings.seed))
        narrator.say(f"scoring {len(meters)} variants on {len(found.ids):,} samples, task {found.task.name}")
        self.scores: dict[str, tuple[Score, ...]] = scores(
            found.task, meters, len(found.ids), self.slicing.members, how
        )
        self.worst: dict[str, tuple[WorstSample, ...]] = worst_samples(meters, found.ids)
        self.confusions: dict[str, tuple[CountChange, ...]] = confusions(meters)


def _class_words(label: int | None, names: tuple[str, ...] | None) -> str | None:
    if label is None:
        return None
    return names[label] if names is not None and label < len(names) else str(label)


def _result(
    engine: Engine,
    found: DriftPass,
    findings: _Findings,
    timings: Timings | None,
    device: DeviceFigures | None,
    on_gpu: Timings | None,
) -> VariantResult:
    sidecar = engine.sidecar
    outputs, classification = found.meters[sidecar.name].drift(len(found.ids))
    return VariantResult(
        name=sidecar.name,
        backend=sidecar.backend,
        requested=sidecar.requested,
        proved=sidecar.proved,
        proof=sidecar.proof,
        execution=sidecar.execution,
        size_bytes=sidecar.size_bytes,
        sha256=sidecar.sha256,
        table_sha256=sidecar.table_sha256,
        outputs=outputs,
        classification=classification,
        latency=timings.latencies.get(sidecar.name) if timings else None,
        device=device,
        scores=findings.scores[sidecar.name],
        worst=findings.worst[sidecar.name],
        confusions=findings.confusions[sidecar.name],
        device_latency=on_gpu.latencies.get(sidecar.name) if on_gpu else None,
    )


def _timing_warnings(timings: Timings | None, on_gpu: Timings | None) -> tuple[TimingWarning, ...]:
    found = on_gpu.warnings if on_gpu else ()
    return (
        *(timings.warnings if timings else ()),
        *(replace(warning, message=f"on the GPU: {warning.message}") for warning in found),
    )


def _time(
    engines: Sequence[Engine],
    first: Batch,
    settings: CompareSettings,
    narrator: Narrator,
    failures: list[Degradation],
) -> Timings | None:
    """Times of the engines that can be timed; one that fails is named in ``failures``, and the others start again."""
    if settings.latency is None:
        return None
    inputs, size = _timed_batch(engines, first, settings)
    latency, reference = settings.latency, engines[0].sidecar.name

    def measure(left: Sequence[Engine]) -> Timings:
        narrator.say(f"timing {len(left)} variants at batch {size} for about {latency.seconds:g} s")
        calls = {engine.sidecar.name: named_call(engine, inputs) for engine in left}
        return time_engines(calls, reference, size, latency)

    return with_survivors(engines, measure, failures)[0]


def _untimed(name: str, without: str, error: MeasurementError) -> Degradation:
    message = f"{name} failed while it was timed and {without}: {error.what}"
    return Degradation.of(DegradationCode.ENGINE_FAILED, message, [name])


def _timed_batch(engines: Sequence[Engine], first: Batch, settings: CompareSettings) -> tuple[Arrays, int]:
    """The batch that is timed, of repeated samples if there are too few, and its size."""
    size = engines[0].sidecar.fixed_batch or settings.latency_batch
    rows = np.arange(size) % len(first.ids)
    return {name: np.ascontiguousarray(value[rows]) for name, value in first.inputs.items()}, size


def _time_device(
    engines: Sequence[Engine],
    first: Batch,
    settings: CompareSettings,
    narrator: Narrator,
    failures: list[Degradation],
) -> dict[str, DeviceFigures]:
    """Figures of the engines that can time themselves on a GPU, one after the other, all in one mode.

    Compute is launched as a CUDA graph, so that a small model's figure is the GPU's and not that of the launches; if
    one of the engines cannot be captured, none is. One that fails without a graph as well is named in ``failures``.
    """
    timed = [engine for engine in engines if isinstance(engine, DeviceTimed)]
    if settings.latency is None or not timed:
        return {}
    inputs, size = _timed_batch(engines, first, settings)
    seconds = min(_DEVICE_SECONDS, settings.latency.seconds / len(timed))
    narrator.say(f"timing {len(timed)} engines on the GPU at batch {size} for {seconds:.2g} s each")

    def figures(engine: DeviceTimed, *, use_graph: bool) -> DeviceFigures:
        return device_figures(engine.time_device(inputs, seconds=seconds, use_graph=use_graph))

    try:
        return {engine.sidecar.name: figures(engine, use_graph=True) for engine in timed}
    except MeasurementError as error:
        narrator.say(f"       without CUDA graphs: {error.what}")
    found = {}
    for engine in timed:
        name = engine.sidecar.name
        try:
            found[name] = figures(engine, use_graph=False)
        except MeasurementError as error:
            failures.append(_untimed(name, "has no times on the GPU", error))
    return found


def _interleave_on_gpu(
    engines: Sequence[Engine],
    device: Mapping[str, DeviceFigures],
    first: Batch,
    settings: CompareSettings,
    narrator: Narrator,
    failures: list[Degradation],
) -> Timings | None:
    """Execution on the GPU of the engines that have figures there, against each other and in the mode of the figures.

    None without the reference among them, as there is nothing then to take ratios to. One that fails is named in
    ``failures``, and the others start again.
    """
    reference = engines[0].sidecar.name
    left = {
        engine.sidecar.name: engine
        for engine in engines
        if isinstance(engine, BlockTimed) and engine.sidecar.name in device
    }
    if settings.latency is None or not left:
        return None
    if reference not in left:
        narrator.say(f"       no ratios on the GPU: the reference {reference} is not timed there")
        return None
    inputs, size = _timed_batch(engines, first, settings)
    while len(left) > 1:
        narrator.say(
            f"timing {len(left)} engines against each other on the GPU at batch {size} for at most "
            f"{settings.latency.seconds:g} s"
        )
        try:
            found = time_on_gpu(left, reference, inputs, size, settings.latency, use_graph=device[reference].graph)
            return found[Boundary.DEVICE]
        except EngineDiedError as error:
            failures.append(_untimed(error.name, "has no ratio on the GPU", error))
            if error.name == reference:
                return None
            del left[error.name]
    return None


def _overlap(engines: Sequence[Engine], dataset: Dataset) -> list[Degradation]:
    """Evaluation samples that some engine was calibrated on, by content."""
    calibrated = {sha256 for engine in engines for sha256 in engine.sidecar.calibration_samples}
    shared = [entry.id for entry in dataset.manifest.entries if entry.sha256 in calibrated]
    if not shared:
        return []
    message = f"{len(shared)} of {len(dataset.manifest.entries)} evaluation samples were also used for calibration"
    return [Degradation.of(DegradationCode.OVERLAP, message, shared)]
