"""``random:N``: numbers in place of data, to try a model out; whatever comes of it is marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.content import TensorContent
from quantlab.datasets.inputs import InputSpec, format_shape
from quantlab.datasets.source import Listing
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import ConfigError, DataError

PREFIX = "random:"
_MOST_SAMPLES = 1_000_000


def random_message(total: int) -> str:
    """What the degradation `random-data` says."""
    return f"{total} samples of random numbers stood in for data; ranges and accuracy mean nothing"


class RandomTensors:
    """A `Source` of tensors of the model's shapes.

    Floats are standard normal, uint8 and int8 cover their range, other integers and booleans are 0 or 1. Each sample
    depends on the seed and its index alone.
    """

    def __init__(self, total: int, inputs: Sequence[InputSpec], seed: int) -> None:
        for spec in inputs:
            if None in spec.shape:
                raise DataError(
                    f"random data for input {spec.name!r} needs a fixed shape",
                    got=format_shape(spec.shape),
                    hint=f"state it, as in --shapes {spec.name}:1x3x224x224",
                )
        self._inputs = tuple(inputs)
        self._seed = seed
        self.listing = Listing(
            kind="random",
            name=f"{PREFIX}{total}",
            ids=tuple(f"random#{index}" for index in range(total)),
            labels=(None,) * total,
            images=False,
            degradations=(Degradation(DegradationCode.RANDOM_DATA, random_message(total), total),),
        )

    def load(self, index: int) -> TensorContent:
        """Make one sample."""
        rng = np.random.default_rng((self._seed, index))
        return TensorContent({spec.name: _draw(rng, spec) for spec in self._inputs})


def open_random(spec: str, inputs: Sequence[InputSpec], seed: int) -> RandomTensors:
    """Parse ``random:N``.

    Raises:
        ConfigError: If N is not a positive whole number.
        DataError: If an input has a dynamic dimension.
    """
    text = spec.removeprefix(PREFIX)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= _MOST_SAMPLES):
        expected = f"random:N with N from 1 to {_MOST_SAMPLES:,}"
        raise ConfigError(f"the data {spec[:60]!r} is wrong", got=repr(text[:40]), expected=expected)
    return RandomTensors(int(text), inputs, seed)


def _draw(rng: np.random.Generator, spec: InputSpec) -> NDArray[np.generic]:
    shape = tuple(size or 0 for size in spec.shape)
    dtype = spec.numpy_dtype
    if dtype.kind in "iub":
        low, high = (
            (np.iinfo(dtype.name).min, np.iinfo(dtype.name).max + 1)
            if dtype.itemsize == 1 and dtype.kind in "iu"
            else (0, 2)
        )
        return rng.integers(low, high, shape).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)
