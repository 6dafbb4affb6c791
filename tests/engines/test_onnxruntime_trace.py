"""ONNX Runtime's trace, from events made by hand in the form of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.onnxruntime_layers import layer_times
from quantlab.engines.onnxruntime_nodes import ExecutedNode
from quantlab.engines.onnxruntime_trace import NodeEvent, read_trace, runs_of
from quantlab.errors import MeasurementError

Event = dict[str, Any]


def node(name: str, ts: int, dur: int, operator: str = "Conv", tid: int = 1, **arguments: object) -> Event:
    return {
        "cat": "Node", "pid": 9, "tid": tid, "ts": ts, "dur": dur, "ph": "X", "name": f"{name}_kernel_time",
        "args": {"op_name": operator, "provider": "CPUExecutionProvider", **arguments},
    }  # fmt: skip


def run(ts: int, dur: int) -> Event:
    return {"cat": "Session", "pid": 9, "tid": 1, "ts": ts, "dur": dur, "ph": "X", "name": "model_run", "args": {}}


def session(name: str, ts: int, dur: int) -> Event:
    return {"cat": "Session", "pid": 9, "tid": 1, "ts": ts, "dur": dur, "ph": "X", "name": name, "args": {}}


def names(document: list[Event]) -> list[list[tuple[str, int]]]:
    return [[(event.name, event.us) for event in events] for events in runs_of(document)]


def test_events_are_cut_into_runs() -> None:
    """Events stand in the file when they end: a run after its nodes, in between what is no node's kernel."""
    document = [
        session("model_loading_uri", 0, 50),
        session("session_initialization", 50, 50),
        node("a", 100, 3),
        node("b", 104, 5),
        session("SequentialExecutor::Execute", 100, 10),
        run(99, 12),
        node("a", 200, 4),
        {**node("b", 205, 9), "name": "b_fence_before"},
        node("b", 205, 6),
        run(199, 15),
    ]
    assert names(document) == [[("a", 3), ("b", 5)], [("a", 4), ("b", 6)]]


def test_times_are_whole_microseconds_that_may_touch() -> None:
    document = [node("a", 10, 0), node("b", 10, 0), node("c", 10, 2), node("d", 12, 1), run(10, 3)]
    assert names(document) == [[("a", 0), ("b", 0), ("c", 2), ("d", 1)]]


def test_nodes_in_branches_belong_to_their_node() -> None:
    inner = [node("then/a", 11, 2), node("then/b", 14, 3)]
    document = [*inner, node("if", 10, 9, "If"), node("after", 19, 1), run(9, 12)]
    assert names(document) == [[("if", 9), ("after", 1)]]


def test_an_inner_event_with_the_span_of_its_outer_one() -> None:
    assert names([node("inner", 10, 5), node("if", 10, 5, "If"), run(10, 5)]) == [[("if", 5)]]


def test_nodes_outside_of_runs_do_not_count() -> None:
    assert names([node("early", 1, 2), node("a", 10, 2), run(9, 4), node("late", 20, 1)]) == [[("a", 2)]]


def test_nothing_in_it() -> None:
    assert runs_of([]) == ()
    assert runs_of([run(1, 2)]) == ((),)


@pytest.mark.parametrize(
    ("operator", "inputs", "precision"),
    [
        ("Conv", [{"float": [1, 3]}, {"float": [2]}], "fp32"),
        ("QLinearConv", [{"uint8": [1]}, {"float": []}], "uint8"),
        ("QLinearConcat", [{"float": []}, {"int8": []}, {"int8": [2]}], "int8"),
        ("MatMulNBits", [{"float": [1]}, {"uint8": [4]}], "fp32"),
        ("Add", [{"bfloat16": [1]}], "bf16"),
        ("Gather", [{"int64": [1]}], "int64"),
        ("Constant", [], ""),
        ("Conv", [{}], ""),
        ("Conv", None, ""),
        ("Conv", "float", ""),
    ],
)
def test_precision(operator: str, inputs: object, precision: str) -> None:
    (events,) = runs_of([node("a", 1, 1, operator, input_type_shape=inputs), run(0, 3)])
    assert events == (NodeEvent("a", operator, 1, precision),)


@pytest.mark.parametrize(
    "document",
    [
        {"traceEvents": []},
        None,
        ["event"],
        [{**node("a", 1, 1), "ts": "1"}],
        [{**node("a", 1, 1), "dur": -1}],
        [{**node("a", 1, 1), "dur": 1.5}],
        [{**node("a", 1, 1), "dur": None}],
        [{**node("a", 1, 1), "ts": -1}],
        [run(0, 9), {**node("a", 1, 1), "args": None}],
    ],
)
def test_other_forms_are_refused(document: object) -> None:
    with pytest.raises(MeasurementError, match="unknown form"):
        runs_of(document)


@pytest.mark.parametrize("data", [b"", b"[{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(MeasurementError, match="unknown form"):
        read_trace(tmp_path / "t.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="wrote no trace"):
        read_trace(tmp_path / "t.json")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([node("é\x1b", 1, 2), run(0, 9)]), encoding="utf-8")
    ((event,),) = read_trace(tmp_path / "t.json")
    assert event.name == "é\x1b"


COMPUTE = LayerKind.COMPUTE
NODES = (
    ExecutedNode("conv", "Conv", COMPUTE, ("conv", "relu")),
    ExecutedNode("", "HardSigmoid", COMPUTE, ("swish1",)),
    ExecutedNode("", "HardSigmoid", COMPUTE, ("swish2",)),
    ExecutedNode("twin", "Add", COMPUTE, ("add1",)),
    ExecutedNode("twin", "Add", COMPUTE, ("add2",)),
    ExecutedNode("q", "QuantizeLinear", LayerKind.QUANTIZE, ("conv",)),
)


def event(name: str, operator: str, us: int) -> NodeEvent:
    return NodeEvent(name, operator, us, "fp32")


class TestLayerTimes:
    def test_events_find_their_nodes(self) -> None:
        """Nodes without a name have one in the trace that nobody knows; names that occur twice go in order."""
        one = [event("q", "QuantizeLinear", 1), event("conv", "Conv", 5), event("HardSigmoid_9", "HardSigmoid", 2)]
        two = [event("HardSigmoid_8", "HardSigmoid", 3), event("twin", "Add", 7), event("twin", "Add", 9)]
        found = layer_times(NODES, [[*one, *two]], "e")
        assert found == (
            LayerTime("q", ("conv",), LayerKind.QUANTIZE, 0.001, "QuantizeLinear", "fp32"),
            LayerTime("conv", ("conv", "relu"), COMPUTE, 0.005, "Conv", "fp32"),
            LayerTime("HardSigmoid_9", ("swish1",), COMPUTE, 0.002, "HardSigmoid", "fp32"),
            LayerTime("HardSigmoid_8", ("swish2",), COMPUTE, 0.003, "HardSigmoid", "fp32"),
            LayerTime("twin", ("add1",), COMPUTE, 0.007, "Add", "fp32"),
            LayerTime("twin", ("add2",), COMPUTE, 0.009, "Add", "fp32"),
        )

    def test_medians(self) -> None:
        runs = [[event("conv", "Conv", us)] for us in (9, 1, 5, 100)]
        (found,) = layer_times(NODES, runs, "e")
        assert found.ms == 0.007

    def test_events_of_no_node_are_kept(self) -> None:
        found = layer_times(NODES, [[event("new", "Conv", 4), event("conv", "Relu", 2), event("new", "Conv", 3)]], "e")
        assert [(one.name, one.operator, one.sources, one.ms) for one in found] == [
            ("new", "Conv", (), 0.007),
            ("conv", "Relu", (), 0.002),
        ]

    def test_a_node_that_does_not_always_run(self) -> None:
        runs = [[event("conv", "Conv", 4)], [event("conv", "Conv", 4), event("q", "QuantizeLinear", 8)]]
        assert [one.ms for one in layer_times(NODES, runs, "e")] == [0.004, 0.004]

    @pytest.mark.parametrize("runs", [[], [[]], [[event("conv", "Conv", 1)], []]])
    def test_an_empty_trace(self, runs: list[list[NodeEvent]]) -> None:
        with pytest.raises(MeasurementError, match="recorded no layers of e"):
            layer_times(NODES, runs, "e")
