"""Looking at activations of a graph that a step has changed."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.extremes import ChannelExtremes
from quantlab.calibrators.measure import measure_tensor
from quantlab.calibrators.methods import DEFAULT_METHOD, range_methods
from quantlab.calibrators.table import CalibrationTable, TensorEntry
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.engines.observation import observe, observed_tensors, run_all
from quantlab.progress import Silent
from quantlab.recovery.protocol import State


class Observed:
    """See `quantlab.recovery.protocol.Observations`."""

    def __init__(self, dataset: Dataset, threads: int) -> None:
        self.dataset, self.threads = dataset, threads

    def ranges(self, state: State, tensors: Collection[str]) -> CalibrationTable:
        """The table with some entries observed anew."""
        table = state.table
        if not tensors:
            return table
        ordered = [name for name in observed_tensors(state.prepared) if name in tensors]
        observation = observe(state.prepared, self.dataset, ordered, self.threads, Silent())
        methods = range_methods(table.provenance.percentile)
        entries = {entry.name: entry for entry in table.tensors}
        for name, histogram in observation.items():
            if histogram.empty:
                entries.pop(name, None)
                continue
            made = measure_tensor(name, histogram, methods, non_finite_sample=observation.non_finite.get(name))
            entries[name] = _as_picked(made, entries.get(name), table.method)
        return replace(table, tensors=tuple(entries[name] for name in sorted(entries)))

    def channels(self, state: State, axes: Mapping[str, int]) -> Mapping[str, ChannelExtremes]:
        """Minimum and maximum by channel."""
        found = {name: ChannelExtremes() for name in axes}
        lock = threading.Lock()

        def take(values: Mapping[str, NDArray[np.float32]], group: Sequence[Sample]) -> None:
            del group
            with lock:
                for name, value in values.items():
                    if value.ndim > 1:
                        found[name].add(np.moveaxis(value, axes[name], 1))

        if axes:
            run_all(state.prepared, self.dataset, sorted(axes), take, self.threads, Silent())
        return found


def _as_picked(entry: TensorEntry, earlier: TensorEntry | None, method: str) -> TensorEntry:
    """An entry that is observed anew, by the methods that were picked for its tensor before, if any were.

    What no method of its own gives, as ``auto`` and imported ranges, takes the pick of another scheme, or the default.
    """
    before = {} if earlier is None else {scheme: found.get(method) for scheme, found in earlier.ranges.items()}
    picks = {scheme: found.picked for scheme, found in before.items() if found is not None and found.picked}
    otherwise = next(iter(picks.values()), DEFAULT_METHOD)
    ranges = {}
    for scheme, by_method in entry.ranges.items():
        picked = picks.get(scheme) or (None if method in by_method else otherwise)
        ranges[scheme] = by_method if picked is None else {
            **by_method, method: replace(by_method[picked], picked=picked)
        }  # fmt: skip
    return replace(entry, ranges=ranges)
