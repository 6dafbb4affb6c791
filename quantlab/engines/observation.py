"""Observation: run the FP32 graph over a data set and count the values of its activations.

One sample is run at a time, on one thread each, by several workers. So every sample's activations are the same bits
whatever samples lie beside it, and since histograms only add, neither order, nor batch size, nor the number of
threads changes the result. Memory holds the activations of one sample a worker, in buffers that are used again.

Outputs of Relu and Clip are never fetched: their histograms follow exactly from those of their inputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantlab.calibrators.counting import kernel_for
from quantlab.calibrators.extremes import ChannelExtremes
from quantlab.calibrators.histogram import Histogram
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.errors import CalibrationError
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import open_session, tensor_array
from quantlab.graph.prepare import Prepared
from quantlab.graph.session import first_line
from quantlab.progress import Narrator

Arrays = Mapping[str, NDArray[np.generic]]
FloatArray = NDArray[np.float32]


def observed_tensors(prepared: Prepared) -> tuple[str, ...]:
    """Names of all float32 activations of a graph: inputs and outputs of nodes, constants excepted, in graph order."""
    graph = prepared.model.proto.graph
    index = GraphIndex(graph)
    constant = set(index.initializers)
    names = [name for name in index.inputs if index.elem_type(name) == onnx.TensorProto.FLOAT]
    for node in graph.node:
        if all(name in constant or not name for name in node.input):
            constant.update(node.output)
            continue
        names += [name for name in node.output if name and index.elem_type(name) == onnx.TensorProto.FLOAT]
    return tuple(names)


@dataclass(frozen=True, slots=True)
class Clipping:
    """A tensor that is another one, clipped.

    Attributes:
        source: The other tensor.
        low: Lower bound; minus infinity for none.
        high: Upper bound; infinity for none.
    """

    source: str
    low: float
    high: float


def derived_tensors(prepared: Prepared, tensors: Sequence[str]) -> dict[str, Clipping]:
    """The outputs of Relu, and of Clip with constant bounds, among ``tensors`` whose inputs are there too."""
    index = GraphIndex(prepared.model.proto.graph)
    wanted = set(tensors)
    derived = {}
    for name in tensors:
        node = index.producer.get(name)
        if node is None or node.op_type not in ("Relu", "Clip") or node.domain or node.input[0] not in wanted:
            continue
        low, high = (0.0 if node.op_type == "Relu" else -math.inf), math.inf
        bounds = list(node.input[1:]) if node.op_type == "Clip" else []
        if any(bound and bound not in index.initializers for bound in bounds):
            continue
        values = [float(tensor_array(prepared.model, index.initializers[b])) if b else None for b in bounds]
        low = values[0] if len(values) > 0 and values[0] is not None else low
        high = values[1] if len(values) > 1 and values[1] is not None else high
        if low <= high:
            derived[name] = Clipping(node.input[0], low, high)
    return derived


class Observation(dict[str, Histogram]):
    """Histograms by tensor name, and what was odd on the way.

    Attributes:
        non_finite: Of tensors with NaN or infinite values, the id of the first sample, by name, that made them.
        absent: Of tensors that were empty or not given in some samples, in how many.
        channels: Extremes by channel, of the tensors that they were asked of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.non_finite: dict[str, str] = {}
        self.absent: dict[str, int] = {}
        self.channels: dict[str, ChannelExtremes] = {}

    def note(self, other: Observation) -> None:
        """Take over what was odd in another observation, of other samples or other tensors, and its channels."""
        for name, sample in other.non_finite.items():
            self.non_finite[name] = min(sample, self.non_finite.get(name, sample))
        for name, samples in other.absent.items():
            self.absent[name] = self.absent.get(name, 0) + samples
        for name, channels in other.channels.items():
            self.channels.setdefault(name, ChannelExtremes()).merge(channels)


def observe(
    prepared: Prepared,
    dataset: Dataset,
    tensors: Sequence[str],
    threads: int,
    narrator: Narrator,
    *,
    channelwise: Collection[str] = (),
    expected_samples: int | None = None,
) -> Observation:
    """Histograms of ``tensors`` over the whole data set.

    Args:
        prepared: The graph to run.
        dataset: Samples.
        tensors: Activations to count.
        threads: Workers, at least 1.
        narrator: Told of progress.
        channelwise: Those of which the extremes of each channel are wanted too; axis 1 is the channels.
        expected_samples: Samples of all data sets that are observed one after the other; those of this one if None.

    Raises:
        CalibrationError: If ONNX Runtime fails on a sample, which is named.
        DataError: From the data set.
    """
    derived = {name: rule for name, rule in derived_tensors(prepared, tensors).items() if name not in channelwise}
    fetched = [name for name in tensors if name not in derived]
    counter = _Counter(fetched, expected_samples or len(dataset), channelwise)
    run_all(prepared, dataset, counter.tensors, counter.add, threads, narrator)
    result = Observation()
    result.update(counter.histograms)
    result.non_finite.update(counter.non_finite)
    result.absent.update(counter.absent)
    result.channels.update(counter.channels)
    for name in tensors:  # in graph order, so that a Relu behind a Clip finds its input
        if name in derived and derived[name].source in result:
            rule = derived[name]
            result[name] = result[rule.source].clipped(rule.low, rule.high)
            if rule.source in result.absent:
                result.absent[name] = result.absent[rule.source]
            if result[name].non_finite:
                result.non_finite[name] = result.non_finite[rule.source]
    return result


class _Counter:
    """A locked histogram for each tensor."""

    def __init__(self, tensors: Sequence[str], samples: int, channelwise: Collection[str]) -> None:
        self.tensors = tuple(tensors)
        self.samples = samples
        self.channels = {name: ChannelExtremes() for name in tensors if name in channelwise}
        self.histograms: dict[str, Histogram] = {}
        self.non_finite: dict[str, str] = {}
        self.absent: dict[str, int] = {}
        self.opening = threading.Lock()
        self.locks = {name: threading.Lock() for name in tensors}

    def add(self, values: Mapping[str, FloatArray], group: Sequence[Sample]) -> None:
        """Count the values that one group of samples gave."""
        self._open_histograms(sum(value.size for value in values.values()) // len(group))
        for name, value in values.items():
            with self.locks[name]:
                histogram = self.histograms[name]
                before = histogram.non_finite
                channels = self.channels.get(name)
                if channels is None or not value.size:
                    histogram.add(value)
                else:  # a row is a channel, so that its extremes come with counting
                    row = value.size // (value.shape[0] * value.shape[1])
                    channels.add_rows(*histogram.add_rows(value, row), value.shape)
                if histogram.non_finite > before:
                    self._note_non_finite(name, value, group)
                if value.size == 0:
                    self.absent[name] = self.absent.get(name, 0) + len(group)

    def _note_non_finite(self, name: str, value: FloatArray, group: Sequence[Sample]) -> None:
        """Remember the sample that comes first by name, so that neither order nor threads matter."""
        ids = broken_samples(value, group)
        self.non_finite[name] = min([*ids, *([self.non_finite[name]] if name in self.non_finite else [])])

    def _open_histograms(self, values_a_sample: int) -> None:
        """With the first sample it is known how much there is to count, and so which kernel is fastest."""
        with self.opening:
            if not self.histograms:
                kernel = kernel_for(values_a_sample * self.samples)
                self.histograms = {name: Histogram(kernel) for name in self.tensors}


def broken_samples(value: FloatArray, group: Sequence[Sample]) -> list[str]:
    """Ids of the samples of a group whose part of a value that is not finite everywhere is not."""
    ids = [sample.id for sample in group]
    if len(group) > 1 and value.ndim and value.shape[0] == len(group):
        rows = zip(ids, value.reshape(len(group), -1), strict=True)
        ids = [sample_id for sample_id, row in rows if not np.isfinite(row).all()]
    return ids


def run_all(
    prepared: Prepared,
    dataset: Dataset,
    tensors: Sequence[str],
    take: Callable[[Mapping[str, FloatArray], Sequence[Sample]], None],
    threads: int,
    narrator: Narrator,
) -> None:
    """Run every sample once and hand on the values of ``tensors``.

    Args:
        prepared: The graph to run.
        dataset: Samples.
        tensors: Activations and inputs.
        take: Called from several threads with the values of one group of samples (a single one unless the model's
            batch is fixed; padding removed), valid until it returns, and the samples.
        threads: Workers, at least 1.
        narrator: Told of progress.

    Raises:
        CalibrationError: If ONNX Runtime fails on a sample, which is named.
        DataError: From the data set.
    """
    runner = _Runner(prepared, tensors)
    size = prepared.fixed_batch or 1
    tracked = narrator.track(_groups(dataset, size), -(-len(dataset) // size), "calibrating")
    pool = ThreadPoolExecutor(threads, thread_name_prefix="observe")
    pending: set[Future[None]] = set()

    def work(group: Sequence[Sample]) -> None:
        take(runner.values(group), group)

    try:
        for group in tracked:
            pending.add(pool.submit(work, group))
            if len(pending) > threads:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in pending:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _groups(dataset: Dataset, size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in dataset:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class _Runner:
    """A session that gives the values of some tensors, sample by sample."""

    def __init__(self, prepared: Prepared, tensors: Sequence[str]) -> None:
        self.fixed_batch = prepared.fixed_batch
        self.session = open_session(prepared.model, threads=1, outputs=tensors, log_severity=4, error=CalibrationError)
        inputs = {value.name for value in self.session.get_inputs()}
        self.fed = [name for name in tensors if name in inputs]
        self.fetched = [name for name in tensors if name not in inputs]
        self.local = threading.local()

    def values(self, group: Sequence[Sample]) -> dict[str, FloatArray]:
        """Values of one group of samples; valid until this thread's next call."""
        padding = (self.fixed_batch or 1) - len(group)
        rows = [*group, *[group[-1]] * padding]
        feed = {name: np.stack([sample.inputs[name] for sample in rows]) for name in group[0].inputs}
        try:
            fetched = self._run(feed)
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise CalibrationError(f"the model failed on sample {group[0].id!r}", got=first_line(cause)) from cause
        found = dict(zip(self.fetched, fetched, strict=True)) | {name: feed[name] for name in self.fed}
        return {name: _real(value, len(group), padding) for name, value in found.items()}

    def _run(self, feed: Arrays) -> Sequence[NDArray[np.generic] | None]:
        """Values of the fetched tensors.

        Letting ONNX Runtime allocate tens of megabytes of outputs anew for each sample costs several times the
        inference itself in page faults, so each worker binds its own buffers and keeps them while shapes stay.
        """
        if not self.fetched:  # an empty list would mean all outputs to ONNX Runtime
            return []
        shapes = {name: value.shape for name, value in feed.items()}
        bound: _Bound | None = getattr(self.local, "bound", None)
        if bound is not None and bound.shapes == shapes:
            try:
                return bound.run(feed)
            except Exception:  # an output whose shape depends on the values; the plain call decides what is wrong
                self.local.bound = None
        values: list[NDArray[np.generic] | None] = self.session.run(self.fetched, feed)
        given = {name: value for name, value in zip(self.fetched, values, strict=True) if value is not None}
        self.local.bound = _Bound(self.session, feed, given) if len(given) == len(values) else None
        return values


def _real(value: NDArray[np.generic] | None, n: int, padding: int) -> FloatArray:
    """Values without those of the padding; none where an optional output was not given."""
    if value is None:
        return np.zeros(0, np.float32)
    real = value[:n] if padding and value.ndim and value.shape[0] == n + padding else value
    return np.asarray(real, np.float32)


class _Bound:
    """Input and output buffers of one worker, bound to the session; the first outputs become the buffers."""

    def __init__(self, session: Any, feed: Arrays, outputs: Arrays) -> None:
        self.session = session
        self.shapes = {name: value.shape for name, value in feed.items()}
        self.inputs = {name: np.array(value, order="C") for name, value in feed.items()}
        self.outputs = {name: np.require(value, requirements=("C", "W")) for name, value in outputs.items()}
        self.binding = session.io_binding()
        for name, value in self.inputs.items():
            self.binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for name, value in self.outputs.items():
            self.binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self, feed: Arrays) -> Sequence[NDArray[np.generic]]:
        """Copy the inputs in, run, and give the output buffers."""
        for name, value in feed.items():
            np.copyto(self.inputs[name], value)
        self.session.run_with_iobinding(self.binding)
        return list(self.outputs.values())
