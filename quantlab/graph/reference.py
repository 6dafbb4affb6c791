"""Running a model on seeded random samples, to tell whether a rewritten graph still computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from quantlab.errors import ModelError
from quantlab.graph.checks import has_qdq
from quantlab.graph.model import Model, Optimization, TensorSpec, model_outputs, open_session
from quantlab.graph.session import first_line

TOLERANCE = 1e-4
"""Largest difference of a float output, relative to the output's largest magnitude."""

HALF_TOLERANCE = 2e-2
"""The same for models that hold 16-bit floats."""

Arrays = Mapping[str, NDArray[np.generic]]


class RunFailedError(ModelError):
    """ONNX Runtime took the model but stopped while running it."""


def random_feed(specs: Sequence[TensorSpec], rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Random values for inputs whose shapes are all numbers.

    Floats are standard normal, ``uint8`` covers its range, other integers and booleans are 0 or 1 (token, type and
    mask inputs accept these).

    Raises:
        ModelError: If an input is of strings.
    """
    feed: dict[str, NDArray[np.generic]] = {}
    for spec in specs:
        shape = tuple(int(dim) for dim in spec.shape or () if isinstance(dim, int))
        if spec.dtype == "str":
            raise ModelError(f"input {spec.name!r} takes strings", expected="numbers", hint="cut the text part off")
        if spec.dtype == "uint8":
            feed[spec.name] = rng.integers(0, 256, shape, np.uint8)
        elif "float" in spec.dtype:
            feed[spec.name] = rng.standard_normal(shape).astype(_dtype(spec.dtype))
        else:
            feed[spec.name] = rng.integers(0, 2, shape).astype(_dtype(spec.dtype))
    return feed


def _dtype(name: str) -> np.dtype[np.generic]:
    if name.startswith(("bfloat", "float8", "float4e", "float6e")):  # not float64
        import ml_dtypes

        kind: type[np.generic] = getattr(ml_dtypes, name)
        return np.dtype(kind)
    result: np.dtype[np.generic] = np.dtype(name)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the original model gives for a few samples.

    Attributes:
        feeds: Inputs of each call.
        outputs: The original's outputs of each call, by name.
        tolerance: Largest relative difference that counts as equal.
    """

    feeds: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    tolerance: float

    @classmethod
    def take(cls, model: Model, specs: Sequence[TensorSpec], n: int, seed: int = 0) -> Reference:
        """Run ``n`` random samples one after the other, with every graph rewrite of ONNX Runtime switched off.

        Args:
            model: The original.
            specs: Its inputs with shapes that are all numbers.
            n: Number of calls.
            seed: Seed of the samples.

        Raises:
            ModelError: If ONNX Runtime cannot take the model.
            RunFailedError: If it stops while running it.
        """
        rng = np.random.default_rng(seed)
        feeds = tuple(random_feed(specs, rng) for _ in range(n))
        session = open_session(model, threads=0, optimize=Optimization.NONE, log_severity=4)
        outputs = tuple(_run(session, feed) for feed in feeds)
        half = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
        is_half = any(tensor.data_type in half for tensor in model.proto.graph.initializer)
        return cls(feeds, outputs, HALF_TOLERANCE if is_half else TOLERANCE)

    def joined(self) -> Reference:
        """All samples as one batch; outputs of no axis cannot be joined and make every comparison fail."""
        feed = {name: np.concatenate([feed[name] for feed in self.feeds]) for name in self.feeds[0]}
        joined: dict[str, NDArray[np.generic]] = {}
        for name, first in self.outputs[0].items():
            parts = [outputs[name] for outputs in self.outputs]
            joined[name] = np.concatenate(parts) if first.ndim else np.stack(parts)
        return Reference((feed,), (joined,), self.tolerance)

    def difference(self, model: Model) -> str | None:
        """Compare a rewritten model, as ONNX Runtime runs it by default, with the original.

        A model that holds Q/DQ pairs runs as it is written: the integer kernels that ONNX Runtime puts in their place
        round otherwise, which is no fault of the rewriting.

        Returns:
            None if equal within the tolerance; otherwise one line that says what differs.
        """
        names = [spec.name for spec in model_outputs(model.proto)]
        if names != list(self.outputs[0]):
            return f"outputs are {', '.join(names)} instead of {', '.join(self.outputs[0])}"
        try:
            optimize = Optimization.NONE if has_qdq(model.proto) else Optimization.ALL
            session = open_session(model, threads=0, optimize=optimize, log_severity=4)
            results = [_run(session, feed) for feed in self.feeds]
        except ModelError as error:
            return f"it does not run: {error.got}"
        for result, expected in zip(results, self.outputs, strict=True):
            for name in names:
                reason = _compare(result[name], expected[name], self.tolerance)
                if reason:
                    return f"output {name!r} {reason}"
        return None


def _run(session: object, feed: Arrays) -> dict[str, NDArray[np.generic]]:
    try:
        values = session.run(None, dict(feed))  # type: ignore[attr-defined]
    except Exception as cause:  # onnxruntime's exceptions share no base class
        raise RunFailedError(
            "ONNX Runtime stopped while running the model on random samples",
            got=first_line(cause),
            hint="give the input shapes that the model was made for with --shapes",
        ) from cause
    names = [output.name for output in session.get_outputs()]  # type: ignore[attr-defined]
    if not all(isinstance(value, np.ndarray) for value in values):
        raise ModelError("an output of the model is not a tensor", expected="tensors only")
    return dict(zip(names, values, strict=True))


def _compare(got: NDArray[np.generic], expected: NDArray[np.generic], tolerance: float) -> str | None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"is {got.dtype}{list(got.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind not in "fV":
        return None if np.array_equal(got, expected) else "has other values"
    left, right = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(left[finite]).all():
        return "has NaN or infinite values elsewhere"
    largest = float(np.abs(right[finite]).max(initial=0.0))
    error = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
    if error > tolerance * largest:
        return f"differs by {error:.3g} at a magnitude of {largest:.3g}"
    return None
