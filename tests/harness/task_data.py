"""What tasks are made from, without engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from quantlab.datasets import Batch, Color, InputSpec, Preprocess, Resize, batches, open_dataset
from quantlab.harness.tasks.protocol import AnyMeter
from quantlab.harness.tasks.registry import Beginning, TaskRequest

Outputs = Mapping[str, np.ndarray]


def image_data(folder: Path, size: tuple[int, int], resize: Resize = Resize.STRETCH) -> Iterator[tuple[object, Batch]]:
    """The images of a folder as one batch, with their data set."""
    spec = InputSpec("x", (3, *size))
    preprocess = Preprocess(resize, size, color=Color.RGB, scale=255.0)
    dataset = open_dataset(str(folder), [spec], preprocess)
    for batch in batches(dataset, 1000):
        yield dataset, batch


def memory_batch(ids: Sequence[str], size: tuple[int, int] = (8, 8), labels: Sequence[int | None] = ()) -> Batch:
    n = len(ids)
    inputs = {"x": np.zeros((n, 3, *size), np.float32)}
    return Batch(tuple(ids), inputs, tuple(labels) or (None,) * n, tuple(f"{i:064x}" for i in range(n)))


class NoData:
    """A data set of which nothing is known before it is read."""

    name = "memory"


def beginning(batch: Batch, outputs: Outputs | None = None) -> Beginning:
    return Beginning(NoData(), batch, outputs or {})  # type: ignore[arg-type]


def request(truths: Path | None, **options: str) -> TaskRequest:
    return TaskRequest(truths=truths, options=options)


def values(meter: AnyMeter, weights: np.ndarray | None = None) -> dict[str, float]:
    """The figures of a meter."""
    found = {}
    for name, estimator in meter.estimators().items():
        rows = np.ones((1, len(meter.counted(name)))) if weights is None else weights[None].astype(float)  # type: ignore[union-attr]
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name] = float(estimator(rows)[0])
    return found
