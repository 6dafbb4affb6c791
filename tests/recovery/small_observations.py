"""Contexts and observations of small models on arrays, for the tests of steps that change the float graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from quantlab.calibrators.extremes import ChannelExtremes, Extremes
from quantlab.calibrators.measure import measure_extremes
from quantlab.calibrators.table import CalibrationTable, Provenance
from quantlab.engines.observation import observed_tensors
from quantlab.graph.model import Model, open_session
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.targets import TARGETS
from quantlab.progress import Silent
from quantlab.recovery.protocol import Context, State

_MADE = Provenance("", "observed", "", "", "", {}, None, "", (), 99.99)


class ArrayObservations:
    """Minima and maxima of one batch, which is run in parts."""

    def __init__(self, feed: Mapping[str, NDArray[np.float32]], part: int = 32) -> None:
        self.feed, self.part = feed, part

    def _run(self, model: Model, tensors: Collection[str]) -> Any:
        names = list(tensors)
        session = open_session(model, threads=1, outputs=names)
        n = len(next(iter(self.feed.values())))
        for start in range(0, n, self.part):
            part = {name: value[start : start + self.part] for name, value in self.feed.items()}
            yield dict(zip(names, session.run(names, part), strict=True)) | part

    def ranges(self, state: State, tensors: Collection[str]) -> CalibrationTable:
        inputs = set(self.feed) & set(tensors)
        counted = {name: Extremes() for name in tensors}
        for values in self._run(state.model, [name for name in tensors if name not in inputs]):
            for name, extremes in counted.items():
                extremes.add(values[name])
        entries = state.table.entries()
        entries.update({name: measure_extremes(name, extremes) for name, extremes in counted.items()})
        return replace(state.table, tensors=tuple(entries[name] for name in sorted(entries)))

    def channels(self, state: State, axes: Mapping[str, int]) -> Mapping[str, ChannelExtremes]:
        found = {name: ChannelExtremes() for name in axes}
        for values in self._run(state.model, axes):
            for name, axis in axes.items():
                found[name].add(np.ascontiguousarray(np.moveaxis(values[name], axis, 1)))
        return found


def state_of(proto: ModelProto | Prepared, observations: ArrayObservations) -> State:
    """A prepared model with ranges of all its activations."""
    prepared = proto if isinstance(proto, Prepared) else prepare(Model.of(proto))
    state = State(prepared, CalibrationTable("minmax", len(next(iter(observations.feed.values()))), (), _MADE, ()))
    return replace(state, table=observations.ranges(state, observed_tensors(prepared)))


def context_of(observations: ArrayObservations, target: str = "tensorrt", exclude: tuple[str, ...] = ()) -> Context:
    """A context for steps that learn from the observations alone."""
    return Context(
        target=TARGETS[target], exclude=exclude, fit=cast("Any", None), batches=[observations.feed],
        search=cast("Any", None), observations=observations, shares={}, moving=True, threads=1, narrator=Silent(),
    )  # fmt: skip


def outputs_of(model: Model, feed: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """First output of a model."""
    return np.asarray(open_session(model, threads=1).run(None, dict(feed))[0])
