"""Timing that goes on without an engine that fails in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.protocol import Arrays, Engine
from quantlab.errors import MeasurementError
from quantlab.harness.device_timing import EngineDiedError

Result = TypeVar("Result")


def named_call(engine: Engine, inputs: Arrays) -> Callable[[], object]:
    """A call of an engine whose failure says which engine it was: an `EngineDiedError`."""

    def call() -> object:
        try:
            return engine.run(inputs)
        except MeasurementError as error:
            raise EngineDiedError(engine.sidecar.name, error) from error

    return call


def with_survivors(
    engines: Sequence[Engine],
    measure: Callable[[Sequence[Engine]], Result],
    failures: list[Degradation],
    without: str = "has no latency",
) -> tuple[Result, list[Engine]]:
    """Measure engines; one that fails is named in ``failures``, and the others start again.

    Args:
        engines: The reference first.
        measure: Measures those that are left; raises `EngineDiedError`.
        failures: Takes a degradation for each that fails.
        without: What such an engine is left without, in words.

    Returns:
        What was measured, and the engines that are left.

    Raises:
        EngineDiedError: If the reference fails.
    """
    left = list(engines)
    while True:
        try:
            return measure(left), left
        except EngineDiedError as error:
            if error.name == left[0].sidecar.name:
                raise
            message = f"{error.name} failed while it was timed and {without}: {error.what}"
            failures.append(Degradation.of(DegradationCode.ENGINE_FAILED, message, [error.name]))
            left = [engine for engine in left if engine.sidecar.name != error.name]
