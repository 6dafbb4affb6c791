"""The trace that ONNX Runtime's profiler writes, read: times of the nodes of each run.

The file is a JSON list of events in the form of Chrome's tracing: ``cat`` is ``Session`` or ``Node``, ``ts`` and
``dur`` are whole microseconds. A ``model_run`` event of the session spans the node events of its run. Nodes inside the
branches of a control flow node have events of their own within that node's; they are left out, for its time holds
theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import MeasurementError

_SUFFIX = "_kernel_time"
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling"})
_EIGHT_BITS = ("int8", "uint8")
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One execution of a node.

    Attributes:
        name: Name of the node.
        operator: Its operator.
        us: Duration in whole microseconds.
        precision: Type of its operands, such as ``fp32`` or ``uint8``; empty if not stated.
    """

    name: str
    operator: str
    us: int
    precision: str


@dataclass(frozen=True, slots=True)
class _Span:
    """An event's place in time; ``thread`` is the process's and the thread's number."""

    start: int
    end: int
    order: int
    thread: tuple[object, object]
    event: Mapping[str, Any]


def read_trace(path: Path) -> tuple[tuple[NodeEvent, ...], ...]:
    """The node events of every run, in the order of execution.

    Memory: the whole file, about a kilobyte for each node and run.

    Raises:
        MeasurementError: If the file cannot be read, or is not such a trace.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as cause:
        raise MeasurementError("ONNX Runtime's profiler wrote no trace", got=cause.strerror) from cause
    except (ValueError, RecursionError) as cause:
        raise _malformed(str(cause) or type(cause).__name__) from cause
    return runs_of(document)


def runs_of(document: object) -> tuple[tuple[NodeEvent, ...], ...]:
    """The node events of every run of a parsed trace; see `read_trace`."""
    if not isinstance(document, list):
        raise _malformed(type(document).__name__)
    spans = [_span(event, order) for order, event in enumerate(document) if _is_timed(event)]
    runs = sorted((s for s in spans if s.event.get("name") == "model_run"), key=lambda s: s.start)
    # An event is written when it ends: of two with the same span, the later one is the outer one.
    nodes = sorted((s for s in spans if s.event["cat"] == "Node"), key=lambda s: (s.start, -s.end, -s.order))
    outer = _outermost(nodes)
    found: list[list[NodeEvent]] = [[] for _ in runs]
    number = 0
    for node in outer:
        while number < len(runs) and runs[number].end < node.end:
            number += 1
        if number < len(runs) and runs[number].start <= node.start:
            found[number].append(_node_event(node))
    return tuple(map(tuple, found))


def _is_timed(event: object) -> bool:
    if not isinstance(event, dict):
        raise _malformed(f"an event that is {type(event).__name__}")
    kind, name = event.get("cat"), event.get("name")
    return (kind == "Node" and str(name).endswith(_SUFFIX)) or (kind == "Session" and name == "model_run")


def _span(event: Mapping[str, Any], order: int) -> _Span:
    start, duration = event.get("ts"), event.get("dur")
    if not isinstance(start, int) or not isinstance(duration, int) or start < 0 or duration < 0:
        raise _malformed(f"event {event.get('name')!r} with ts {start!r}, dur {duration!r}")
    return _Span(start, start + duration, order, (event.get("pid"), event.get("tid")), event)


def _outermost(nodes: Sequence[_Span]) -> list[_Span]:
    """Events that lie in none of a control flow node of the same thread, in the order of execution.

    Args:
        nodes: Events in the order in which they started, of those that started together the outer one first.
    """
    ends: dict[tuple[object, object], int] = {}
    found = []
    for span in nodes:
        if span.start < ends.get(span.thread, 0):
            continue
        found.append(span)
        if str(_arguments(span).get("op_name")) in _CONTROL_FLOW:
            ends[span.thread] = span.end
    return sorted(found, key=lambda span: (span.start, span.order))


def _node_event(span: _Span) -> NodeEvent:
    arguments = _arguments(span)
    operator = str(arguments.get("op_name", ""))
    name = str(span.event["name"]).removesuffix(_SUFFIX)
    return NodeEvent(name, operator, span.end - span.start, _precision(operator, arguments.get("input_type_shape")))


def _arguments(span: _Span) -> Mapping[str, Any]:
    arguments = span.event.get("args")
    if not isinstance(arguments, dict):
        raise _malformed(f"event {span.event.get('name')!r} without args")
    return arguments


def _precision(operator: str, inputs: object) -> str:
    """Type of the first input; of quantized operators, that of the first of 8 bits, for some state a scale first."""
    if not isinstance(inputs, list):
        return ""
    types = [str(next(iter(entry))) for entry in inputs if isinstance(entry, dict) and entry]
    eight = [kind for kind in types if kind in _EIGHT_BITS] if operator.startswith("QLinear") else []
    chosen = next(iter(eight or types), "")
    return _PRECISIONS.get(chosen, chosen)


def _malformed(got: str) -> MeasurementError:
    return MeasurementError(
        "ONNX Runtime's trace has an unknown form",
        got=got,
        expected="a JSON list of events with cat, name, ts and dur, as ONNX Runtime 1.20 to 1.31 write it",
        hint="report it with the version of ONNX Runtime",
    )
