"""Observation: run the FP32 graph over a data set and count the values of its activations.

One sample is run at a time, on one thread each, by several workers. So every sample's activations are the same bits
whatever samples lie beside it, and since histograms only add, neither order, nor batch size, nor the number of
threads changes the result. Memory holds the activations of one sample a worker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np
import onnx
from numpy.typing import NDArray

from quantlab.calibrators.histogram import Histogram
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.errors import CalibrationError, QuantlabError
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import open_session
from quantlab.graph.prepare import Prepared
from quantlab.progress import Narrator


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


def observe(
    prepared: Prepared, dataset: Dataset, tensors: Sequence[str], threads: int, narrator: Narrator
) -> dict[str, Histogram]:
    """Histograms of ``tensors`` over the whole data set.

    Args:
        prepared: The graph to run.
        dataset: Samples.
        tensors: Activations to count.
        threads: Workers, at least 1.
        narrator: Told of progress.

    Raises:
        CalibrationError: If ONNX Runtime fails on a sample, which is named.
        DataError: From the data set.
    """
    observer = _Observer(prepared, tensors)
    groups = _groups(dataset, prepared.fixed_batch or 1)
    tracked = iter(narrator.track(groups, -(-len(dataset) // (prepared.fixed_batch or 1)), "calibrating"))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="observe")
    pending: set[Future[None]] = set()
    try:
        for group in tracked:
            pending.add(pool.submit(observer.add, group))
            if len(pending) > threads:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in pending:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return observer.histograms


def _groups(dataset: Dataset, size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in dataset:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class _Observer:
    """A session that gives the observed tensors, and a locked histogram for each."""

    def __init__(self, prepared: Prepared, tensors: Sequence[str]) -> None:
        self.fixed_batch = prepared.fixed_batch
        self.session = open_session(prepared.model, threads=1, outputs=tensors, error=CalibrationError)
        inputs = {value.name for value in self.session.get_inputs()}
        self.fed = [name for name in tensors if name in inputs]
        self.fetched = [name for name in tensors if name not in inputs]
        self.histograms = {name: Histogram() for name in tensors}
        self.locks = {name: threading.Lock() for name in tensors}

    def add(self, group: Sequence[Sample]) -> None:
        """Run one group of samples (a single one unless the model's batch is fixed) and count."""
        padding = (self.fixed_batch or 1) - len(group)
        rows = [*group, *[group[-1]] * padding]
        feed = {name: np.stack([sample.inputs[name] for sample in rows]) for name in group[0].inputs}
        try:
            values = self.session.run(self.fetched, feed)
        except QuantlabError:
            raise
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise CalibrationError(
                f"the model failed on sample {group[0].id!r}", got=str(cause).splitlines()[0]
            ) from cause
        for name, value in zip(self.fetched, values, strict=True):
            self._count(name, value, len(group), padding)
        for name in self.fed:
            self._count(name, feed[name], len(group), padding)

    def _count(self, name: str, value: NDArray[np.generic], n: int, padding: int) -> None:
        real = value[:n] if padding and value.ndim and value.shape[0] == n + padding else value
        with self.locks[name]:
            self.histograms[name].add(np.asarray(real, np.float32))
