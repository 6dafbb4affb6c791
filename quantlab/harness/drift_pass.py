"""One pass of all samples through all engines: what every figure of drift and every score comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch, Dataset
from quantlab.datasets.slices import SliceTable
from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.protocol import Arrays, Engine
from quantlab.errors import DataError, MeasurementError
from quantlab.harness.comparison import Classification, OutputDrift
from quantlab.harness.drift import ClassificationMeter, OutputMeter, classification_output
from quantlab.harness.samples import SampleWriter
from quantlab.harness.tasks.classify import check_labels
from quantlab.harness.tasks.protocol import AnyMeter, Pair, PairedMeter, Task
from quantlab.harness.tasks.registry import OWN_TRUTHS, Beginning, TaskRequest, task_for

Array = NDArray[np.generic]


class VariantMeters:
    """Everything that is measured of one engine's outputs."""

    def __init__(self, engine: Engine, task: Task, scores: str | None) -> None:
        self.engine = engine
        self.outputs = {name: OutputMeter(name, name == scores) for name in engine.outputs}
        self.classification = ClassificationMeter() if scores is not None else None
        self.scores = scores
        self.task: AnyMeter = task.meter()

    def add(self, expected: Arrays, got: Arrays, batch: Batch) -> dict[str, Array]:
        """Add a batch; columns of the file of samples.

        Raises:
            MeasurementError: If the outputs are not of the reference's shapes, or have no batch axis.
            DataError: If a label does not fit.
        """
        _check_shapes(self.engine.sidecar.name, expected, got, batch)
        rows = {name: meter.add(expected[name], got[name]) for name, meter in self.outputs.items()}
        if self.scores is not None and self.classification is not None:
            check_labels(batch, expected[self.scores].shape[1])
            self.classification.add(expected[self.scores], got[self.scores], batch.labels)
        if isinstance(self.task, PairedMeter):
            columns = dict(self.task.add_pair(batch, Pair(expected, got, rows)))
        else:
            columns = dict(self.task.add(batch, got))
        for name, found in rows.items():
            of_output = found.columns(name)
            twice = columns.keys() & of_output.keys()
            if twice:
                raise MeasurementError(
                    f"two columns of the file of samples are named {min(twice)!r}",
                    got=f"a column of the task and one of the output {name!r}",
                    hint="rename the column of the truths or the figure of the metric",
                )
            columns |= of_output
        return columns

    def drift(self, samples: int) -> tuple[tuple[OutputDrift, ...], Classification | None]:
        """Numerical drift by output, and the paired decisions."""
        outputs = tuple(meter.result(samples) for meter in self.outputs.values())
        return outputs, self.classification.result() if self.classification else None


@dataclass(frozen=True, slots=True, eq=False)
class DriftPass:
    """What a pass found.

    Attributes:
        task: What the model is for.
        meters: By variant, the reference first; of engines that did not fail.
        first: The first batch.
        ids: Of all samples.
        labels: Of all samples.
        failures: One for each engine that failed.
    """

    task: Task
    meters: Mapping[str, VariantMeters]
    first: Batch
    ids: Sequence[str]
    labels: Sequence[int | None]
    failures: tuple[Degradation, ...]


def drift_pass(
    engines: Sequence[Engine],
    dataset: Dataset,
    stream: Iterable[Batch],
    request: TaskRequest,
    slices: SliceTable | None,
    writer: SampleWriter | None,
) -> DriftPass:
    """Run every batch through every engine, the reference first.

    An engine that fails is left out from there on, and the others' results are kept.

    Args:
        engines: The reference first.
        dataset: The samples.
        stream: Batches of them.
        request: The task.
        slices: Columns to write beside each sample.
        writer: Takes the rows of samples; None for none.

    Raises:
        MeasurementError: If the reference fails, or all the others do, or outputs lack the shapes they must have.
        DataError: If there are no samples, or a label does not fit.
        ConfigError: If the task cannot be made.
        OutputError: If the file of samples cannot be written.
    """
    meters: dict[str, VariantMeters] = {}
    failures: dict[str, tuple[Degradation, MeasurementError]] = {}
    task: Task | None = None
    first: Batch | None = None
    ids: list[str] = []
    labels: list[int | None] = []
    for batch in stream:
        try:
            expected = engines[0].run(batch.inputs)
        except MeasurementError as error:
            what = f"{error.what}, at {_which(batch)}; it is the reference, without which there is nothing to compare"
            raise MeasurementError(what, got=error.got, expected=error.expected, hint=error.hint) from error
        if task is None or first is None:
            first = batch
            _check_outputs(engines[0], expected)
            task = task_for(request, Beginning(dataset, batch, expected))
            scores = None if task.name in OWN_TRUTHS else classification_output(expected)
            meters = {engine.sidecar.name: VariantMeters(engine, task, scores) for engine in engines}
        ids += batch.ids
        labels += batch.labels
        of_slices = _slice_columns(slices, batch)
        for name, meter in list(meters.items()):
            try:
                got = expected if meter.engine is engines[0] else meter.engine.run(batch.inputs)
            except MeasurementError as error:
                failures[name] = _failure(name, batch, len(ids) - len(batch.ids), error), error
                del meters[name]
                continue
            _check_outputs(meter.engine, got)
            columns = meter.add(expected, got, batch)
            if writer is not None:
                writer.add(batch, name, {**of_slices, **columns})
        if failures and len(meters) == 1:
            raise next(error for _, error in failures.values())
    if task is None or first is None:
        raise DataError(f"data set {dataset.name} has no samples to compare on")
    return DriftPass(task, meters, first, ids, labels, tuple(failure for failure, _ in failures.values()))


def _failure(name: str, batch: Batch, before: int, error: MeasurementError) -> Degradation:
    message = f"{name} failed at {_which(batch)}, after {before:,} samples, and is left out: {error.what}"
    return Degradation.of(DegradationCode.ENGINE_FAILED, message, [name])


def _which(batch: Batch) -> str:
    return f"one of the samples {batch.ids[0]!r} to {batch.ids[-1]!r}" if len(batch.ids) > 1 else repr(batch.ids[0])


def _slice_columns(slices: SliceTable | None, batch: Batch) -> dict[str, Array]:
    if slices is None:
        return {}
    return {f"slice.{column}": np.array(slices.of(batch.ids, column), object) for column in slices.columns}


def _check_outputs(engine: Engine, got: Arrays) -> None:
    """Refuse outputs that are not those the engine says it has.

    Raises:
        MeasurementError: Naming what is missing or too many.
    """
    if set(got) != set(engine.outputs):
        raise MeasurementError(
            f"{engine.sidecar.name} does not give the outputs that it says",
            got=", ".join(got) or "none",
            expected=", ".join(engine.outputs),
        )


def _check_shapes(name: str, expected: Arrays, got: Arrays, batch: Batch) -> None:
    for output, reference in expected.items():
        if reference.shape[:1] != (len(batch.ids),):
            raise MeasurementError(
                f"output {output!r} has no batch axis, so drift cannot be told by sample",
                got=f"shape {reference.shape} for {len(batch.ids)} samples",
                expected=f"({len(batch.ids)}, ...)",
                hint="use --batch-size 1 if the model takes one sample at a time, or export it with a batch axis",
            )
        if got[output].shape != reference.shape:
            raise MeasurementError(
                f"output {output!r} of {name} has another shape than the reference's",
                got=got[output].shape,
                expected=reference.shape,
            )
