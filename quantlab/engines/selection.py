"""Method ``auto``: for each tensor the range method that serves the model's outputs best.

The expected error of a tensor alone does not tell: rounding errors average out over a layer's many inputs, clipping
errors all point one way and do not. So the error is measured where it counts. The quantized graph is run on calibration
samples with its scales as inputs, which makes trying another range a matter of feeding another number.

1. Every single method is run on `SEARCH` samples; the search starts from the best one.
2. A sweep in graph order: for each quantized tensor every other method's range is tried, and kept if the error at the
   outputs falls (`quantlab.engines.range_search`).
3. On `CHECK` other samples, models written by the real writer are compared: the sweep's choice is taken only if its
   error is less than the best single method's by `CERTAIN` standard errors, else that method is used for all tensors.

Samples are chosen by their content's hash, so that neither their order nor their names matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.methods import AUTO, METHOD_NAMES
from quantlab.calibrators.quantize import Parameters, Scheme, parameters
from quantlab.calibrators.table import AutoChoice, CalibrationTable, TensorEntry
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.engines.output_noise import Probe, float_outputs, make_probe
from quantlab.engines.range_search import Candidate, Group, RangeSearch, log_falls
from quantlab.errors import CalibrationError
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import open_session
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import quantize_model
from quantlab.graph.scales import sharing_groups
from quantlab.graph.targets import BiasType, TargetProfile
from quantlab.progress import Narrator

SEARCH, CHECK = 96, 192
"""Samples at most, if their inputs fit into `_MOST_BYTES`; of fewer, a third searches and the others check."""

LEAST = 8
"""Samples below which nothing can be told."""

CERTAIN = 2.0
"""Standard errors over the samples by which the noise must fall for the whole search to be taken."""

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
        picks = _search(prepared, table, target, search, start, narrator)
        chosen = _with_picks(table, target.activation.name, picks, start)
        checked = {made.method: _written_noise(prepared, made, target, check) for made in (*singles, chosen)}
    sqnr = {name: check.sqnr_db(noise) for name, noise in checked.items()}
    both = {name: np.concatenate([searched[name], checked[name]]).sum(axis=0) for name in METHOD_NAMES}
    best = min(METHOD_NAMES, key=lambda name: float(np.log(np.maximum(both[name], _TINY)).sum()))
    taken = sqnr[AUTO] > sqnr[best] and log_falls(checked[best], checked[AUTO]) > CERTAIN
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


def _search(
    prepared: Prepared, table: CalibrationTable, target: TargetProfile, probe: Probe, start: str, narrator: Narrator
) -> dict[str, str]:
    """Sweep over the tensors from a single method; the method of each, by tensor name."""
    # A bias in INT32 has the input's scale in it, so it could not follow; its own rounding is negligible.
    rules = replace(target, bias=BiasType.FLOAT)
    made = quantize_model(prepared.model, table.with_method(start), rules)
    sharing = sharing_groups(made.tensors, GraphIndex(prepared.model.proto.graph), target.shared_scale_ops)
    search = RangeSearch(prepared.model, made.proto, target.activation, probe, log_falls, sharing)
    entries = table.entries()
    candidates = {
        group.name: [Candidate(name, _grid(group, entries, name, target.activation)) for name in METHOD_NAMES]
        for group in search.groups
    }
    first = {name: found[METHOD_NAMES.index(start)] for name, found in candidates.items()}
    chosen = search.choose(first, candidates, narrator)
    return {name: chosen[group.name].label for group in search.groups for name in group.tensors}


def _grid(group: Group, entries: Mapping[str, TensorEntry], method: str, scheme: Scheme) -> Parameters:
    """Parameters of a group by a method: those of the widest range, where tensors share a scale."""
    ranges = [entries[name].ranges[scheme.name][method] for name in group.tensors]
    return parameters(min(r.low for r in ranges), max(r.high for r in ranges), scheme)
