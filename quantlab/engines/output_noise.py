"""Noise at a model's outputs: how far a quantized graph's results are from those of the FP32 graph, on some samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.protocol import Sample
from quantlab.errors import CalibrationError
from quantlab.graph.model import open_session
from quantlab.graph.prepare import Prepared

Arrays = Mapping[str, NDArray[np.generic]]
Run = Callable[[Arrays], Sequence[NDArray[np.generic]]]

_LARGEST_BATCH, _BATCH_BYTES = 16, 1 << 20
_TINY = float(np.finfo(np.float64).tiny)
EXACT = 1e-12
"""Noise below this share of the signal, 120 dB, is float32's own: an output that nothing quantized reaches."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Samples with the outputs that the FP32 graph gives for them.

    Attributes:
        feeds: Inputs by name of one batch of samples each.
        references: Values of the float outputs for each batch, float64.
        sizes: Samples of each batch.
        signal: Sum of the outputs' squares, by output, (O,).
        pool: Runs the batches.
    """

    feeds: tuple[Arrays, ...]
    references: tuple[tuple[NDArray[np.float64], ...], ...]
    sizes: tuple[int, ...]
    signal: NDArray[np.float64]
    pool: Executor

    @property
    def n(self) -> int:
        """Samples."""
        return sum(self.sizes)

    def noise(self, run: Run, start: int = 0, stop: int | None = None, *, pooled: bool = True) -> NDArray[np.float64]:
        """Sum of squared differences by sample and output for the batches ``start`` to ``stop``, (N, O).

        The pool runs them if ``pooled``; the pool's own workers, who must not wait for each other, run them themselves.
        """
        values = (self.pool.map if pooled else map)(run, self.feeds[start:stop])
        rows = zip(values, self.references[start:stop], self.sizes[start:stop], strict=True)
        found = [_noise(value, reference, size) for value, reference, size in rows]
        return np.concatenate(found) if found else np.zeros((0, len(self.signal)))

    def sqnr_db(self, noise: NDArray[np.float64]) -> float:
        """SQNR of some noise over all samples, in dB, the mean over the outputs."""
        total = np.maximum(noise.sum(axis=0), np.maximum(EXACT * self.signal, _TINY))
        return float(np.mean(10.0 * np.log10(self.signal / total)))


def _noise(
    values: Sequence[NDArray[np.generic]], references: Sequence[NDArray[np.float64]], size: int
) -> NDArray[np.float64]:
    """Squared error by sample and output; infinite where an output is not finite or has another shape."""
    result = np.full((size, len(references)), np.inf)
    for i, (value, expected) in enumerate(zip(values, references, strict=True)):
        if value.shape == expected.shape:
            result[:, i] = ((np.asarray(value, np.float64) - expected) ** 2).reshape(size, -1).sum(axis=1)
    return np.where(np.isfinite(result), result, np.inf)


def make_probe(prepared: Prepared, samples: Sequence[Sample], *, pool: Executor, what: str, hint: str) -> Probe:
    """Run the FP32 graph on samples and keep its outputs.

    Args:
        prepared: The graph.
        samples: At least one.
        pool: Runs the batches, then and later.
        what: Who measures, for messages.
        hint: What to do where nothing can be measured.

    Raises:
        CalibrationError: If the graph has no floating-point output, or one that is not finite or zero everywhere.
    """
    session = open_session(prepared.model, threads=1, error=CalibrationError)
    names = float_outputs(session)
    if not names:
        raise CalibrationError(f"{what} has no output to measure at", got="no float output", hint=hint)
    feeds, sizes = batches_of(samples, prepared.fixed_batch)
    references = tuple(
        tuple(np.asarray(value, np.float64) for value in values)
        for values in pool.map(lambda feed: session.run(names, dict(feed)), feeds)
    )
    squares = [[float(np.sum(value * value)) for value in values] for values in references]
    _check_outputs(names, np.sum(squares, axis=0), what, hint)
    return Probe(feeds, references, sizes, np.maximum(np.sum(squares, axis=0), _TINY), pool)


def _check_outputs(names: Sequence[str], signal: NDArray[np.float64], what: str, hint: str) -> None:
    """Refuse outputs that no error can be measured at.

    Raises:
        CalibrationError: If an output of the FP32 model is NaN or infinite somewhere, or zero everywhere.
    """
    for odd, fault in ((~np.isfinite(signal), "NaN or infinite for some samples"), (signal == 0.0, "zero everywhere")):
        if odd.any():
            raise CalibrationError(
                f"{what} cannot measure at output {names[int(np.argmax(odd))]!r}",
                got=f"{fault}, in the FP32 model",
                expected="finite values, and some other than zero",
                hint=hint,
            )


def batches_of(samples: Sequence[Sample], fixed_batch: int | None) -> tuple[tuple[Arrays, ...], tuple[int, ...]]:
    """Samples a call: several small ones together; one alone, repeated, where the model's batch is fixed."""
    if fixed_batch is not None:
        feeds = ({name: np.repeat(v[None], fixed_batch, axis=0) for name, v in s.inputs.items()} for s in samples)
        return tuple(feeds), (1,) * len(samples)
    groups: dict[tuple[object, ...], list[list[Sample]]] = {}
    for sample in samples:
        shapes = tuple(value.shape for value in sample.inputs.values())
        bytes_each = max(1, sum(value.nbytes for value in sample.inputs.values()))
        room = max(1, min(_LARGEST_BATCH, _BATCH_BYTES // bytes_each))
        batches = groups.setdefault(shapes, [[]])
        if len(batches[-1]) == room:
            batches.append([])
        batches[-1].append(sample)
    parts = [part for batches in groups.values() for part in batches]
    return (
        tuple({name: np.stack([s.inputs[name] for s in part]) for name in part[0].inputs} for part in parts),
        tuple(len(part) for part in parts),
    )


def float_outputs(session: Any) -> list[str]:
    """Names of a session's floating-point outputs."""
    return [value.name for value in session.get_outputs() if value.type in ("tensor(float)", "tensor(double)")]
