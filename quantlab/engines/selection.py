"""Method ``auto``: for each tensor the range method that serves the model's outputs best.

The expected error of a tensor alone does not tell: rounding errors average out over a layer's many inputs, clipping
errors all point one way and do not. So the error is measured where it counts. The quantized graph is run on calibration
samples with its scales as inputs, which makes trying another range a matter of feeding another number.

1. Every single method is run on `SEARCH` samples; the search starts from the best one.
2. A sweep in graph order: for each quantized tensor every other method's range is tried, and kept if the error at the
   outputs falls: in sum, and sample by sample by more than `LIKELY` standard errors. A candidate that is already worse
   on the first few samples is not run on the others. A sweep that gained much is followed by another.
3. On `CHECK` other samples, models written by the real writer are compared: the sweep's choice is taken only if its
   error is less than the best single method's by `CERTAIN` standard errors, else that method is used for all tensors.

Samples are chosen by their content's hash, so that neither their order nor their names matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from quantlab.calibrators.methods import AUTO, METHOD_NAMES
from quantlab.calibrators.quantize import Parameters, parameters
from quantlab.calibrators.table import AutoChoice, CalibrationTable, TensorEntry
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.engines.output_noise import Probe, Run, float_outputs, make_probe
from quantlab.errors import CalibrationError
from quantlab.graph.model import open_session
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import BiasType, TargetProfile
from quantlab.progress import Narrator

SEARCH, CHECK = 96, 192
"""Samples at most, if their inputs fit into `_MOST_BYTES`; of fewer, a third searches and the others check."""

LEAST = 8
"""Samples below which nothing can be told."""

LIKELY, CERTAIN = 1.0, 2.0
"""Standard errors over the samples by which the noise must fall: for one tensor's range, and for the whole sweep."""

SWEEPS, WORTH_ANOTHER_DB = 3, 0.5
"""Sweeps at most, and the gain of one from which on another may gain too."""

_FIRST = 8
_SAME = 0.01  # scales that differ by less are not told apart
_MOST_BYTES = 64 << 20
_TINY = float(np.finfo(np.float64).tiny)


def choose_auto(
    prepared: Prepared,
    dataset: Dataset,
    table: CalibrationTable,
    target: TargetProfile,
    threads: int,
    narrator: Narrator,
) -> CalibrationTable:
    """The table with a range ``auto`` for every tensor and the target's scheme, and ``auto`` as its method.

    Args:
        prepared: The graph that the table belongs to.
        dataset: Samples to measure on, those of the calibration.
        table: Ranges of every method.
        target: Rules of the quantized graph.
        threads: Workers, at least 1.
        narrator: Told of progress.

    Raises:
        CalibrationError: If there are too few samples, or the graph has no float output to measure at.
        EngineBuildError: If no layer can be quantized.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="auto") as pool:
        search, check = _probes(prepared, dataset, pool)
        singles = [table.with_method(name) for name in METHOD_NAMES]
        searched = {made.method: _written_noise(prepared, made, target, search) for made in singles}
        start = max(METHOD_NAMES, key=lambda name: search.sqnr_db(searched[name]))
        picks = _Sweep(prepared, table, target, search).improve(start, narrator)
        chosen = _with_picks(table, target.activation.name, picks, start)
        checked = {made.method: _written_noise(prepared, made, target, check) for made in (*singles, chosen)}
    sqnr = {name: check.sqnr_db(noise) for name, noise in checked.items()}
    both = {name: np.concatenate([searched[name], checked[name]]).sum(axis=0) for name in METHOD_NAMES}
    best = min(METHOD_NAMES, key=lambda name: float(np.log(np.maximum(both[name], _TINY)).sum()))
    taken = sqnr[AUTO] > sqnr[best] and _falls(checked[best], checked[AUTO]) > CERTAIN
    if not taken:
        chosen = _with_picks(table, target.activation.name, {}, best)
    used = [entry.ranges[target.activation.name][AUTO].picked for entry in chosen.tensors]
    evidence = AutoChoice(
        target=target.name,
        n_search=search.n,
        n_check=check.n,
        sqnr_db={name: sqnr[name] for name in METHOD_NAMES},
        swept_sqnr_db=sqnr[AUTO],
        taken="sweep" if taken else best,
        picked={name: used.count(name) for name in METHOD_NAMES},
    )
    found = ", ".join(f"{name} {value:.1f}" for name, value in evidence.sqnr_db.items())
    narrator.say(f"auto   SQNR at the outputs, {check.n} samples: {found}; per tensor {sqnr[AUTO]:.1f} dB")
    if not taken:
        narrator.say(f"       per tensor is not surely better, so {best} is used for all")
    return replace(chosen, auto=evidence)


def _with_picks(table: CalibrationTable, scheme: str, picks: Mapping[str, str], default: str) -> CalibrationTable:
    def extended(entry: TensorEntry) -> TensorEntry:
        method = picks.get(entry.name, default)
        by_method = entry.ranges[scheme]
        ranges = {**entry.ranges, scheme: {**by_method, AUTO: replace(by_method[method], picked=method)}}
        return replace(entry, ranges=ranges)

    return replace(table, method=AUTO, tensors=tuple(extended(entry) for entry in table.tensors))


def _probes(prepared: Prepared, dataset: Dataset, pool: Executor) -> tuple[Probe, Probe]:
    """Samples to search with and others to check with, by content hash, within a memory limit."""
    entries = sorted({entry.sha256: entry.id for entry in dataset.manifest.entries}.items())
    if len(entries) < LEAST:
        raise CalibrationError(
            "method auto has too few samples to measure on",
            got=f"{len(entries)} different samples",
            expected=f"at least {LEAST}",
            hint="give more data, or name a method",
        )
    wanted = {sample_id: position for position, (_, sample_id) in enumerate(entries[: SEARCH + CHECK])}
    source = dataset.part(wanted) if isinstance(dataset, SourceDataset) else dataset
    found: dict[int, Sample] = {}
    fitting = len(wanted)
    for sample in source:
        if sample.id in wanted and wanted[sample.id] < fitting:
            found[wanted[sample.id]] = sample
            size = sum(value.nbytes for value in sample.inputs.values())
            fitting = min(fitting, max(LEAST, _MOST_BYTES // max(size, 1)))
    samples = [found[position] for position in sorted(found) if position < fitting]
    n_search = min(SEARCH, len(samples) // 3) if len(samples) >= 3 * LEAST else len(samples) // 2
    probe = partial(make_probe, prepared, pool=pool, what="method auto", hint="name a method instead")
    return probe(samples[:n_search]), probe(samples[n_search:])


def _written_noise(
    prepared: Prepared, table: CalibrationTable, target: TargetProfile, probe: Probe
) -> NDArray[np.float64]:
    """Noise of the graph that the writer makes of a table, by sample and output."""
    proto = quantize_model(prepared.model, table, target).proto
    session = open_session(prepared.model.with_proto(proto), threads=1, error=CalibrationError)
    names = float_outputs(session)
    return probe.noise(lambda feed: session.run(names, dict(feed)))


class _Sweep:
    """The quantized graph with its scales as inputs."""

    def __init__(self, prepared: Prepared, table: CalibrationTable, target: TargetProfile, probe: Probe) -> None:
        self.probe, self.scheme = probe, target.activation
        self.entries = table.entries()
        # A bias in INT32 has the input's scale in it, so it could not follow; its own rounding is negligible.
        rules = replace(target, bias=BiasType.FLOAT)
        proto = quantize_model(prepared.model, table.with_method(METHOD_NAMES[0]), rules).proto
        self.groups = _promote_scales(proto)
        self.session = open_session(prepared.model.with_proto(proto), threads=1, error=CalibrationError)
        self.outputs = float_outputs(self.session)
        sizes = np.cumsum(probe.sizes)
        self.first = int(np.searchsorted(sizes, min(_FIRST, probe.n))) + 1  # batches, and the samples in them
        self.n_first = int(sizes[self.first - 1])

    def range_of(self, group: _Group, method: str) -> Parameters:
        """Parameters of a group by a method: those of the widest range, where tensors share a scale."""
        ranges = [self.entries[name].ranges[self.scheme.name][method] for name in group.tensors]
        return parameters(min(r.low for r in ranges), max(r.high for r in ranges), self.scheme)

    def run(self, chosen: Mapping[str, Parameters]) -> Run:
        """Runs the graph with some scales and zero-points."""
        extra: dict[str, NDArray[np.generic]] = {}
        for group in self.groups:
            extra[group.scale] = np.array(chosen[group.scale].scale, np.float32)
            extra[group.zero] = np.array(chosen[group.scale].zero_point, self.scheme.dtype)
        return lambda feed: self.session.run(self.outputs, {**feed, **extra})

    def improve(self, start: str, narrator: Narrator) -> dict[str, str]:
        """Sweep over the tensors while it pays; the method of each, by tensor name."""
        picks = dict.fromkeys((group.scale for group in self.groups), start)
        chosen = {group.scale: self.range_of(group, start) for group in self.groups}
        noise = self.probe.noise(self.run(chosen))
        for _ in range(SWEEPS):
            before = self.probe.sqnr_db(noise)
            for group in narrator.track(self.groups, len(self.groups), "choosing"):
                noise = self._improve_one(group, picks, chosen, noise)
            if self.probe.sqnr_db(noise) < before + WORTH_ANOTHER_DB:
                break
        return {name: picks[group.scale] for group in self.groups for name in group.tensors}

    def _improve_one(
        self, group: _Group, picks: dict[str, str], chosen: dict[str, Parameters], noise: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Try every other method for one tensor; what is better goes into ``picks`` and ``chosen``."""
        tried = [chosen[group.scale]]
        for method in METHOD_NAMES:
            candidate = self.range_of(group, method)
            if any(_alike(candidate, other) for other in tried):
                continue
            tried.append(candidate)
            found = self._better(noise, self.run({**chosen, group.scale: candidate}))
            if found is not None:
                noise, chosen[group.scale], picks[group.scale] = found, candidate, method
        return noise

    def _better(self, noise: NDArray[np.float64], run: Run) -> NDArray[np.float64] | None:
        """The noise of a candidate, if it is surely less; None if it is not."""
        first = self.probe.noise(run, 0, self.first)
        if not _falls(noise[: self.n_first], first) > 0.0:
            return None
        found = np.concatenate([first, self.probe.noise(run, self.first)])
        better = self.probe.sqnr_db(found) > self.probe.sqnr_db(noise) and _falls(noise, found) > LIKELY
        return found if better else None


def _falls(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """By how many standard errors over the samples the noise falls.

    Its logarithm is compared, sample by sample, so that neither a few hard samples nor a loud output decide alone.

    Args:
        before: Noise by sample and output, (N, O).
        after: The same samples' noise with other ranges, (N, O).
    """
    falls = np.log(np.maximum(before, _TINY) / np.maximum(after, _TINY)).mean(axis=1)
    fall = float(falls.sum())
    error = float(np.std(falls, ddof=1)) * math.sqrt(len(falls)) if len(falls) > 1 else 0.0
    if error > 0.0:
        return fall / error
    return math.copysign(math.inf, fall) if fall else 0.0


def _alike(a: Parameters, b: Parameters) -> bool:
    return abs(a.scale - b.scale) <= _SAME * max(a.scale, b.scale) and a.zero_point == b.zero_point


@dataclass(frozen=True, slots=True)
class _Group:
    """Activations that share one scale.

    Attributes:
        scale: Name of the scale, an input of the graph.
        zero: Name of the zero-point, an input of the graph.
        tensors: Names of the activations.
    """

    scale: str
    zero: str
    tensors: tuple[str, ...]


def _promote_scales(proto: ModelProto) -> tuple[_Group, ...]:
    """Make scales and zero-points of the activations' quantizers graph inputs, in place; in graph order."""
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    tensors: dict[tuple[str, str], list[str]] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored and not stored[node.input[1]].dims:
            tensors.setdefault((node.input[1], node.input[2]), []).append(node.input[0])
    promoted = {name for pair in tensors for name in pair}
    kept = [tensor for tensor in graph.initializer if tensor.name not in promoted]
    for scale, zero in tensors:
        graph.input.append(helper.make_tensor_value_info(scale, TensorProto.FLOAT, []))
        graph.input.append(helper.make_tensor_value_info(zero, stored[zero].data_type, []))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return tuple(_Group(scale, zero, tuple(names)) for (scale, zero), names in tensors.items())
