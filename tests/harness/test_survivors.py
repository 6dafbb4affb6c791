"""Timing goes on without an engine that fails, unless it is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import MeasurementError
from quantlab.harness.device_timing import EngineDiedError
from quantlab.harness.survivors import named_call, with_survivors


def engine(name: str, *, fails: bool = False) -> Any:
    def run(inputs: object) -> dict[str, object]:
        if fails:
            raise MeasurementError("out of memory", got="device lost")
        return {"y": inputs}

    return SimpleNamespace(sidecar=SimpleNamespace(name=name), run=run)


def names(engines: Sequence[Any]) -> list[str]:
    for one in engines:
        named_call(one, {})()
    return [one.sidecar.name for one in engines]


def test_the_others_are_measured_again() -> None:
    failures: list[Degradation] = []
    found, left = with_survivors([engine("a"), engine("b", fails=True), engine("c")], names, failures)
    assert found == ["a", "c"] == [one.sidecar.name for one in left]
    (failure,) = failures
    assert (failure.code, failure.subjects) == (DegradationCode.ENGINE_FAILED, ("b",))
    assert failure.message == "b failed while it was timed and has no latency: out of memory"


def test_without_the_reference_there_is_nothing_to_measure() -> None:
    with pytest.raises(EngineDiedError, match="out of memory") as caught:
        with_survivors([engine("a", fails=True), engine("b")], names, [])
    assert caught.value.name == "a"
