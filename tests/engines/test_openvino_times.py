"""OpenVINO's counters are means over all runs since a model was compiled: what they say of the runs that count."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import GraphProto

import quantlab.engines.openvino_layers as layers_module
from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.openvino_layers import profiled_layers


class Request:
    """A request whose layers take given times, run by run, and whose counters are whole microseconds."""

    def __init__(self, **times: list[int]) -> None:
        self.times, self.runs = times, 0

    def run(self) -> Request:
        self.runs += 1
        return self

    def get_profiling_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                node_name=name,
                status=SimpleNamespace(name="NOT_RUN" if not times else "EXECUTED"),
                real_time=timedelta(microseconds=sum(times[: self.runs]) // self.runs),
            )
            for name, times in self.times.items()
        ]


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = layers_module._Entry
    made = [entry(name, "Convolution", "jit", "fp32", LayerKind.COMPUTE, (name,)) for name in ("a", "b")]
    monkeypatch.setattr(layers_module, "_entries", lambda model, lineage: made)


def profile(request: Request, runs: int) -> tuple[LayerTime, ...]:
    compiled = SimpleNamespace(get_runtime_model=lambda: None)
    return profiled_layers(compiled, GraphProto(), request.run, runs)


def test_the_first_runs_do_not_count() -> None:
    """A kernel made in the first run took 2.7 ms: it must not be in the mean of those behind it."""
    (layer,) = profile(Request(a=[2700, 10, *[8, 12] * 4]), 8)
    assert layer.ms == pytest.approx(0.010, abs=2 * 0.001)  # means are cut to whole microseconds
    assert (layer.name, layer.sources, layer.operator) == ("a", ("a",), "Convolution")


def test_layers_that_did_not_run_or_are_not_known() -> None:
    request = Request(a=[5] * 6, b=[], other=[5] * 6)
    assert [layer.name for layer in profile(request, 4)] == ["a"]


def test_times_are_never_negative() -> None:
    (layer,) = profile(Request(a=[3, 0, *[0] * 10]), 10)
    assert layer.ms == 0.0


def test_runs() -> None:
    with pytest.raises(ValueError, match="0 runs"):
        profile(Request(a=[1]), 0)
