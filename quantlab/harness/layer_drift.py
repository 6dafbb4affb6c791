"""Layer-by-layer drift: how much error each quantized tensor makes, and how much has gathered up to it.

Both graphs run on the CPU in ONNX Runtime with its optimizer off, which computes every node as it is written; so the
figures are those of the graph and not of a backend's kernels. Tensors are looked at in groups that fit into memory, and
the samples are read once a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch, Dataset, batches
from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.errors import DataError, MeasurementError
from quantlab.graph.model import Model, Optimization, open_session, tensor_array
from quantlab.graph.session import first_line
from quantlab.graph.twin import Part, PartKind, TwinGraph, stored_model, twin_graph
from quantlab.harness.environment import environment
from quantlab.harness.gap import GapMeter
from quantlab.harness.layer_record import LayerDrift, PartDrift
from quantlab.harness.truth import fixed_batch
from quantlab.progress import Narrator

GROUP_VALUES = 32_000_000
"""Most elements of one sample's tensors that are looked at together; there are up to five arrays of each, in float32
and float64."""

EMULATED = "run on the CPU by ONNX Runtime as the graph is written; kernels of other runtimes round in other places"

Outputs = Mapping[str, NDArray[np.generic]]


def layer_drift(
    original: Model,
    quantized: Model,
    variant: str,
    dataset: Dataset,
    threads: int,
    narrator: Narrator,
    *,
    group_values: int = GROUP_VALUES,
) -> LayerDrift:
    """Measure every quantized tensor, every layer that reads one, and the outputs.

    Cost: two unoptimized runs of the model for each sample and group of tensors; a handful of samples is enough.

    Args:
        original: The floating-point graph, whose tensors have the names of the quantized one's.
        quantized: The Q/DQ graph.
        variant: What to call it.
        dataset: Samples, read once a group.
        threads: Of each session.
        narrator: Told of progress.
        group_values: Most elements that are looked at together.

    Raises:
        ModelError: If a graph cannot be used: see `twin_graph`.
        EngineMismatch: If the graphs have no quantized tensors in common, or one has another shape.
        DataError: If there are no samples, or they do not fit.
        MeasurementError: If a graph fails on a sample, which is named.
    """
    twins = twin_graph(original, quantized)
    meters: dict[tuple[Part, str], GapMeter] = {}
    groups = list(_groups(twins.parts, group_values))
    n_samples = 0
    for number, group in enumerate(groups, start=1):
        what = f"tensors {number} of {len(groups)}" if len(groups) > 1 else "tensors"
        n_samples = _measure(twins, group, dataset, threads, meters, narrator, what)
    if n_samples == 0:
        raise DataError(f"data set {dataset.name} has no samples to compare on")
    parts = _linked(twins.parts, meters)
    worst, finding = find_worst(parts)
    return LayerDrift(
        variant=variant,
        graph_sha256=quantized.sha256,
        model=original.path.name if original.path is not None else original.name,
        model_sha256=original.sha256,
        parts=parts,
        stored=tuple(stored_drift(twins, part) for part in twins.stored),
        finding=finding,
        worst=worst,
        emulated=EMULATED,
        unmatched=twins.unmatched,
        n_samples=n_samples,
        data=dataset.describe(),
        data_sha256=dataset.manifest.sha256,
        environment=environment(threads),
        degradations=dataset.degradations,
    )


def _groups(parts: Sequence[Part], most: int) -> Iterator[list[Part]]:
    """Parts in order, as many at a time as have at most so many elements, and at least one."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + part.n_values > most:
            yield group
            group, size = [], 0
        group.append(part)
        size += part.n_values
    if group:
        yield group


class _Session:
    """A graph that gives some of its tensors, for one sample."""

    def __init__(self, model: Model, names: Sequence[str], threads: int) -> None:
        inputs = {value.name for value in model.proto.graph.input}
        self.names = tuple(dict.fromkeys(name for name in names if name not in inputs))
        self.fed = tuple(dict.fromkeys(name for name in names if name in inputs))
        self.fixed = fixed_batch(model)
        self.session: Any = open_session(
            model, threads=threads, outputs=self.names, optimize=Optimization.NONE, log_severity=4, arena=False,
            error=MeasurementError,
        )  # fmt: skip

    def run(self, batch: Batch) -> Outputs:
        feed, n = fill_batch(batch.inputs, self.fixed)
        try:
            values = self.session.run(list(self.names), dict(feed)) if self.names else []
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise MeasurementError(f"the graph failed on sample {batch.ids[0]!r}", got=first_line(cause)) from cause
        found = dict(zip(self.names, values, strict=True)) | {name: feed[name] for name in self.fed}
        return cut_batch(found, n, self.fixed)


def _measure(
    twins: TwinGraph,
    group: Sequence[Part],
    dataset: Dataset,
    threads: int,
    meters: dict[tuple[Part, str], GapMeter],
    narrator: Narrator,
    what: str,
) -> int:
    """Run all samples through both graphs for one group; how many there were."""
    exact = _Session(twins.model, [name for p in group for name in (p.tensor, p.twin) if name], threads)
    drifted = _Session(twins.quantized, [name for p in group for name in (p.raw, p.dequantized)], threads)
    n = 0
    for batch in narrator.track(batches(dataset, 1), len(dataset), what):
        n += 1
        left, right = exact.run(batch), drifted.run(batch)
        for part in group:
            expected = left[part.tensor]
            _add(meters, part, "accumulated", expected, right[part.dequantized])
            if part.twin is not None:
                _add(meters, part, "local", expected, left[part.twin])
            if part.kind is PartKind.ACTIVATION:
                _add(meters, part, "arriving", expected, right[part.raw])
    return n


def _add(
    meters: dict[tuple[Part, str], GapMeter], part: Part, kind: str, expected: NDArray[Any], got: NDArray[Any]
) -> None:
    if expected.shape != got.shape:
        raise MeasurementError(
            f"tensor {part.tensor!r} has another shape in the quantized graph",
            got=got.shape,
            expected=expected.shape,
            hint="name the model that was quantized",
        )
    meters.setdefault((part, kind), GapMeter()).add(expected, got)


def _linked(parts: Sequence[Part], meters: Mapping[tuple[Part, str], GapMeter]) -> tuple[PartDrift, ...]:
    """The figures, and for each part the source that had lost most already."""
    accumulated: dict[str, float] = {}
    found = []
    for part in parts:
        figures = {}
        for kind in ("local", "arriving", "accumulated"):
            meter = meters.get((part, kind))
            figures[kind] = meter.result().sqnr_db if meter is not None else None
        own = figures["accumulated"]
        known = {name: accumulated[name] for name in part.sources if name in accumulated}
        source = min(known, key=lambda name: known[name], default=None)
        drop = _drop(known[source], own) if source is not None else None
        if part.kind is PartKind.ACTIVATION and own is not None:
            accumulated[part.tensor] = own
        found.append(
            PartDrift(
                part.kind, part.tensor, part.layer, part.op_type, figures["local"], figures["arriving"], own,
                source, drop, part.via, _non_finite(part, meters),
            )
        )  # fmt: skip
    return tuple(found)


def _non_finite(part: Part, meters: Mapping[tuple[Part, str], GapMeter]) -> int:
    """Of the tensor before its pair or behind it: codes of integers hide what is not finite."""
    found = (meters.get((part, kind)) for kind in ("arriving", "accumulated"))
    return max(meter.non_finite for meter in found if meter is not None)


def _drop(before: float, after: float | None) -> float | None:
    if after is None:
        return None
    return 0.0 if before == after else before - after


def stored_drift(twins: TwinGraph, part: Part) -> PartDrift:
    """A weight or bias: the error of its stored values; None where the original's has another shape."""
    initializers = {tensor.name: tensor for tensor in twins.model.proto.graph.initializer}
    exact = np.asarray(tensor_array(twins.model, initializers[part.tensor]))
    model = twins.model.with_proto(stored_model(twins, part))
    session = open_session(model, threads=1, optimize=Optimization.NONE, log_severity=4, error=MeasurementError)
    (value,) = session.run(None, {})
    if value.shape != exact.shape:
        return PartDrift(part.kind, part.tensor, part.layer, part.op_type, None, via=part.via)
    meter = GapMeter()
    meter.add(exact, value)
    gap = meter.result()
    return PartDrift(
        part.kind, part.tensor, part.layer, part.op_type, gap.sqnr_db, via=part.via, non_finite=gap.non_finite
    )


def find_worst(parts: Sequence[PartDrift]) -> tuple[str | None, str]:
    """The tensor where most error is added to that of the worst tensor which it is computed from, and a sentence.

    Error counts as its share of the signal, 10^(-SQNR / 10): from 20 to 15 dB is eleven times as much as from 50 to 27.
    Layers are not looked at: their outputs are part of the way to the next quantized tensor or output. If values stop
    being finite, that is what is said.
    """
    ends = [part for part in parts if part.kind is not PartKind.LAYER]
    broken = next((part for part in parts if part.non_finite), None)
    if broken is not None:
        return broken.tensor, (
            f"values stop being finite at {broken.via or broken.layer}: {broken.non_finite:,} of tensor "
            f"{broken.tensor!r}, and what follows means nothing"
        )
    if not any(part.kind is PartKind.ACTIVATION for part in parts):
        return _worst_layer([part for part in parts if part.kind is PartKind.LAYER])
    worst = max(ends, key=_added, default=None)
    if worst is None or not _added(worst) > _noticeable(ends):
        return None, "no tensor adds noticeably to the error that reaches it"
    own = f"; its own rounding alone has {worst.local_db:.1f} dB" if worst.local_db is not None else ""
    place = worst.via or worst.layer
    if worst.source is None or worst.drop_db is None or worst.accumulated_db is None:
        return worst.tensor, f"most is lost at {place}: exact -> {worst.accumulated_db:.1f} dB in {worst.tensor!r}{own}"
    before = worst.accumulated_db + worst.drop_db
    return worst.tensor, (
        f"most is lost at {place}: {before:.1f} -> {worst.accumulated_db:.1f} dB, "
        f"from {worst.source!r} to {worst.tensor!r}{own}"
    )


def _worst_layer(layers: Sequence[PartDrift]) -> tuple[str | None, str]:
    """Where weights alone are quantized, there are no tensors to go along: the layer whose own weights do most."""
    worst = max(layers, key=lambda part: _share(part.local_db), default=None)
    if worst is None or _share(worst.local_db) == 0.0:
        return None, "no layer loses anything by its own weights"
    return worst.tensor, f"most is lost at {worst.layer}: its own weights leave {worst.local_db:.1f} dB of exact inputs"


def _added(part: PartDrift) -> float:
    """Share of the signal that becomes error between the source and the tensor; negative where error averages out."""
    before = 0.0 if part.drop_db is None else _share((part.accumulated_db or 0.0) + part.drop_db)
    return _share(part.accumulated_db) - before


def _noticeable(parts: Sequence[PartDrift]) -> float:
    """A tenth of the largest error anywhere, so that ripples are not called a loss."""
    return 0.1 * max((_share(part.accumulated_db) for part in parts), default=0.0)


def _share(sqnr: float | None) -> float:
    return 0.0 if sqnr is None or math.isnan(sqnr) else 10.0 ** (-max(sqnr, -300.0) / 10.0)
