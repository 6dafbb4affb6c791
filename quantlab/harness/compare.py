"""Comparison of engines: every sample through every engine, then interleaved timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch, Dataset, batches
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.protocol import Arrays, DeviceTimed, Engine
from quantlab.errors import DataError, EngineMismatch, MeasurementError
from quantlab.harness.comparison import Classification, Comparison, OutputDrift, VariantResult
from quantlab.harness.drift import ClassificationMeter, OutputMeter, classification_output
from quantlab.harness.environment import environment
from quantlab.harness.latency import LatencySettings, Timings, time_engines
from quantlab.harness.trtexec import DeviceFigures, device_figures
from quantlab.progress import Narrator

_DEVICE_SECONDS = 3.0
"""Most that one engine is timed on the GPU; trtexec's own default."""


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """How to compare.

    Attributes:
        batch_size: Samples a call when measuring drift.
        latency_batch: Samples a call when timing.
        threads: Threads of each engine, recorded with the result.
        seed: Of the timing order and the bootstrap.
        latency: Timing budget; None to skip timing.
    """

    batch_size: int = 32
    latency_batch: int = 1
    threads: int = 2
    seed: int = 0
    latency: LatencySettings | None = field(default_factory=LatencySettings)


def compare(
    engines: Sequence[Engine], reference: str, dataset: Dataset, settings: CompareSettings, narrator: Narrator
) -> Comparison:
    """Compare engines with the reference among them.

    Raises:
        EngineMismatch: If the engines were not made from one model, or give different outputs.
        DataError: If the data set is empty or does not fit, or a label is outside the model's classes.
        MeasurementError: If an engine fails.
    """
    ordered = _reference_first(engines, reference)
    meters = [_Meters() for _ in ordered]
    fixed = ordered[0].sidecar.fixed_batch
    size = fixed or settings.batch_size
    first: Batch | None = None
    n = 0
    total = -(-len(dataset) // size)
    for batch in narrator.track(batches(dataset, size), total, "comparing"):
        first = first or batch
        n += len(batch.ids)
        expected = ordered[0].run(batch.inputs)
        for engine, meter in zip(ordered, meters, strict=True):
            meter.add(engine, expected, expected if engine is ordered[0] else engine.run(batch.inputs), batch)
    if first is None:
        raise DataError(f"data set {dataset.name} has no samples to compare on")
    timings = _time(ordered, first, settings, narrator)
    device = _time_device(ordered, first, settings, narrator)
    results = tuple(
        _result(engine, meter, n, timings, device.get(engine.sidecar.name))
        for engine, meter in zip(ordered, meters, strict=True)
    )
    degradations = [*dataset.degradations, *_overlap(ordered, dataset)]
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
        environment=environment(settings.threads),
        degradations=merge_degradations(degradations),
    )


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


class _Meters:
    """The meters of one engine."""

    def __init__(self) -> None:
        self.outputs: dict[str, OutputMeter] = {}
        self.classification: ClassificationMeter | None = None
        self.scores: str | None = None

    def add(
        self,
        engine: Engine,
        expected: Mapping[str, NDArray[np.generic]],
        got: Mapping[str, NDArray[np.generic]],
        batch: Batch,
    ) -> None:
        if not self.outputs:
            self.scores = classification_output(expected)
            self.outputs = {name: OutputMeter(name, name == self.scores) for name in engine.outputs}
            if self.scores is not None:
                self.classification = ClassificationMeter()
        for name, meter in self.outputs.items():
            if expected[name].shape[:1] != (len(batch.ids),):
                raise MeasurementError(
                    f"output {name!r} has no batch axis, so drift cannot be told by sample",
                    got=f"shape {expected[name].shape} for {len(batch.ids)} samples",
                    expected=f"({len(batch.ids)}, ...)",
                    hint="use --batch-size 1 if the model takes one sample at a time, or export it with a batch axis",
                )
            if got[name].shape != expected[name].shape:
                raise MeasurementError(
                    f"output {name!r} of {engine.sidecar.name} has another shape than the reference's",
                    got=got[name].shape,
                    expected=expected[name].shape,
                )
            meter.add(expected[name], got[name])
        if self.scores is not None and self.classification is not None:
            classes = expected[self.scores].shape[1]
            for identity, label in zip(batch.ids, batch.labels, strict=True):
                if label is not None and not 0 <= label < classes:
                    raise DataError(
                        f"sample {identity!r} has a label outside the model's classes",
                        got=label,
                        expected=f"0 to {classes - 1}",
                        hint="check the labels, or the order of the class folders",
                    )
            self.classification.add(expected[self.scores], got[self.scores], batch.labels)

    def drift(self, samples: int) -> tuple[tuple[OutputDrift, ...], Classification | None]:
        outputs = tuple(meter.result(samples) for meter in self.outputs.values())
        return outputs, self.classification.result() if self.classification else None


def _result(
    engine: Engine, meters: _Meters, samples: int, timings: Timings | None, device: DeviceFigures | None
) -> VariantResult:
    sidecar = engine.sidecar
    outputs, classification = meters.drift(samples)
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
        latency=timings.latencies[sidecar.name] if timings else None,
        device=device,
    )


def _time(engines: Sequence[Engine], first: Batch, settings: CompareSettings, narrator: Narrator) -> Timings | None:
    if settings.latency is None:
        return None
    inputs, size = _timed_batch(engines, first, settings)
    narrator.say(f"timing {len(engines)} variants at batch {size} for about {settings.latency.seconds:g} s")

    def call_of(engine: Engine) -> object:
        return engine.run(inputs)

    calls = {engine.sidecar.name: (lambda engine=engine: call_of(engine)) for engine in engines}
    return time_engines(calls, engines[0].sidecar.name, size, settings.latency)


def _timed_batch(engines: Sequence[Engine], first: Batch, settings: CompareSettings) -> tuple[Arrays, int]:
    """The batch that is timed, of repeated samples if there are too few, and its size."""
    size = engines[0].sidecar.fixed_batch or settings.latency_batch
    rows = np.arange(size) % len(first.ids)
    return {name: np.ascontiguousarray(value[rows]) for name, value in first.inputs.items()}, size


def _time_device(
    engines: Sequence[Engine], first: Batch, settings: CompareSettings, narrator: Narrator
) -> dict[str, DeviceFigures]:
    """Figures of the engines that can time themselves on a GPU, one after the other, all in one mode.

    Compute is launched as a CUDA graph, so that a small model's figure is the GPU's and not that of the launches; if
    one of the engines cannot be captured, none is.
    """
    timed = [engine for engine in engines if isinstance(engine, DeviceTimed)]
    if settings.latency is None or not timed:
        return {}
    inputs, size = _timed_batch(engines, first, settings)
    seconds = min(_DEVICE_SECONDS, settings.latency.seconds / len(timed))
    narrator.say(f"timing {len(timed)} engines on the GPU at batch {size} for {seconds:.2g} s each")

    def figures(*, use_graph: bool) -> dict[str, DeviceFigures]:
        return {
            engine.sidecar.name: device_figures(engine.time_device(inputs, seconds=seconds, use_graph=use_graph))
            for engine in timed
        }

    try:
        return figures(use_graph=True)
    except MeasurementError as error:
        narrator.say(f"       without CUDA graphs: {error.what}")
        return figures(use_graph=False)


def _overlap(engines: Sequence[Engine], dataset: Dataset) -> list[Degradation]:
    """Evaluation samples that some engine was calibrated on, by content."""
    calibrated = {sha256 for engine in engines for sha256 in engine.sidecar.calibration_samples}
    shared = [entry.id for entry in dataset.manifest.entries if entry.sha256 in calibrated]
    if not shared:
        return []
    message = f"{len(shared)} of {len(dataset.manifest.entries)} evaluation samples were also used for calibration"
    return [Degradation.of(DegradationCode.OVERLAP, message, shared)]
