"""Times of an ONNX Runtime CPU engine's layers, by its profiler, with what each of them computes of the model."""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.onnxruntime_nodes import ExecutedNode, executed_nodes
from quantlab.engines.onnxruntime_trace import NodeEvent, read_trace
from quantlab.errors import MeasurementError
from quantlab.graph.model import Model
from quantlab.graph.session import first_line, open_proto

_Key = tuple[int | None, str, str]

_WARMUP = 2
_MOST_EVENTS = 200_000
"""Node executions of one profile: at about a kilobyte each, its trace stays below 200 MB."""

_EXTERNAL = "session.optimized_model_external_initializers_file_name"
_EXTERNAL_LEAST = "session.optimized_model_external_initializers_min_size_in_bytes"


def profile_session(
    model: Model, name: str, feed: Mapping[str, Any], *, runs: int, threads: int, config: Mapping[str, str]
) -> tuple[LayerTime, ...]:
    """Open a session of its own with the profiler on, run it, and time its nodes.

    Two runs that do not count come first. Trace and optimized graph are written to a temporary folder that is removed
    again; large weights are written there too.

    Args:
        model: The engine's model.
        name: What to call it in messages.
        feed: One batch by input name.
        runs: Runs to take medians of; at least 1.
        threads: Intra-op threads.
        config: Session config entries that the engine is run with.

    Raises:
        MeasurementError: If it cannot be opened or run, so many runs are asked for that the trace would be too large,
            or the trace cannot be read.
    """
    if runs < 1:
        raise ValueError(f"{runs} runs")
    with tempfile.TemporaryDirectory() as folder:
        optimized, prefix = Path(folder) / "optimized.onnx", Path(folder) / "trace"
        entries = {**config, _EXTERNAL: "optimized.data", _EXTERNAL_LEAST: "1024"}
        session = open_proto(
            model.proto, model.data_folder, threads=threads, config=entries, log_severity=4, name=name,
            error=MeasurementError, optimized=optimized, profile=prefix,
        )  # fmt: skip
        try:
            graph = onnx.load(optimized, load_external_data=False).graph
            _check_size(name, len(graph.node), runs)
            for _ in range(runs + _WARMUP):
                session.run(None, dict(feed))
        except MeasurementError:
            raise
        except Exception as cause:  # onnxruntime's own exceptions have no common base
            raise MeasurementError(f"{name} failed to run", got=first_line(cause)) from cause
        finally:
            trace = Path(session.end_profiling())
        traced = read_trace(trace)
    return layer_times(executed_nodes(graph, model.proto.graph), traced[_WARMUP:], name)


def layer_times(
    nodes: Sequence[ExecutedNode], traced: Sequence[Sequence[NodeEvent]], name: str
) -> tuple[LayerTime, ...]:
    """Put a trace's times to the nodes of the optimized graph.

    Args:
        nodes: The optimized graph's, in its order.
        traced: Node events of each run that counts.
        name: What to call the engine in messages.

    Returns:
        One entry for each node that ran in any run, in the order in which they first ran; a run in which it did not
        run counts as no time. Every event is in exactly one entry.

    Raises:
        MeasurementError: If there is no run, or a run has no events.
    """
    if not traced or not all(traced):
        raise MeasurementError(
            f"ONNX Runtime's profiler recorded no layers of {name}",
            got=f"{len(traced)} runs, {sum(map(len, traced))} nodes", expected="nodes in every run",
        )  # fmt: skip
    spent: dict[_Key, list[int]] = {}
    first: dict[_Key, NodeEvent] = {}
    for number, events in enumerate(traced):
        find = _finder(nodes)
        for event in events:
            position = find(event)
            key: _Key = (None, event.name, event.operator) if position is None else (position, "", "")
            spent.setdefault(key, [0] * len(traced))[number] += event.us
            first.setdefault(key, event)
    found = []
    for key, durations in spent.items():
        event = first[key]
        node = nodes[key[0]] if key[0] is not None else None
        ms = statistics.median(durations) / 1e3
        found.append(_layer(event, node, ms))
    return tuple(found)


def _layer(event: NodeEvent, node: ExecutedNode | None, ms: float) -> LayerTime:
    if node is None:
        return LayerTime(event.name, (), LayerKind.COMPUTE, ms, event.operator, event.precision)
    return LayerTime(event.name, node.sources, node.kind, ms, event.operator, event.precision)


def _finder(nodes: Sequence[ExecutedNode]) -> Callable[[NodeEvent], int | None]:
    """Finds the node of an event, each node once a run.

    By operator and name; an event of a node without a name has one that ONNX Runtime made up, so that it is the next
    such node of its operator.
    """
    waiting: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    for position, node in enumerate(nodes):
        waiting[node.operator, node.name].append(position)

    def find(event: NodeEvent) -> int | None:
        queue = waiting[event.operator, event.name] or waiting[event.operator, ""]
        return queue.popleft() if queue else None

    return find


def _check_size(name: str, n_nodes: int, runs: int) -> None:
    if n_nodes * (runs + _WARMUP) > _MOST_EVENTS:
        raise MeasurementError(
            f"the profile of {name} would be too large",
            got=f"{runs} runs of {n_nodes:,} nodes",
            expected=f"at most {max(_MOST_EVENTS // max(n_nodes, 1) - _WARMUP, 1)} runs",
            hint="profile fewer runs",
        )
