"""Batches for models of fixed batch size: filled before a run, cut after it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.protocol import Arrays
from quantlab.errors import MeasurementError


def fill_batch(inputs: Arrays, fixed_batch: int | None) -> tuple[Arrays, int | None]:
    """Repeat the last sample until a fixed batch is full.

    Args:
        inputs: Arrays by input name, batch first.
        fixed_batch: Batch size that the model takes; None if any.

    Returns:
        The arrays, and the count of real samples if any were added.

    Raises:
        MeasurementError: If there are more samples than the model takes.
    """
    if fixed_batch is None or not inputs:
        return inputs, None
    n = len(next(iter(inputs.values())))
    if n == fixed_batch:
        return inputs, None
    if n > fixed_batch:
        raise MeasurementError("the batch is larger than the model takes", got=n, expected=f"at most {fixed_batch}")
    filled = {name: np.concatenate([x, np.repeat(x[-1:], fixed_batch - n, axis=0)]) for name, x in inputs.items()}
    return filled, n


def cut_batch(
    outputs: dict[str, NDArray[np.generic]], n: int | None, fixed_batch: int | None
) -> dict[str, NDArray[np.generic]]:
    """Outputs of the real samples: the first ``n`` of every output that has the fixed batch as its first axis."""
    if n is None:
        return outputs
    return {name: value[:n] if value.shape[:1] == (fixed_batch,) else value for name, value in outputs.items()}
