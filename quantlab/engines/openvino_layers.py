"""What OpenVINO says of a compiled model: its layers, in which precision each runs, and how long each takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.tensorrt.inspector import UNKNOWN, EngineLayer, LayerSummary
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.lineage import Lineage
from quantlab.graph.proof import Proof
from quantlab.precision import Precision

_WARMUP = 2

INTEGERS = frozenset({"int8", "uint8"})

_WEIGHTED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution", "MHA"})
_NOT_RUN = frozenset({"Input", "Parameter", "Output", "Result"})
_MOVES = frozenset({"Reorder", "Convert"})
_QUANTIZES = "FakeQuantize"
_PART = re.compile(r"/(?:WithoutBiases|DequantizationMultiply)$")
_TYPES = {
    "f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "I8": "uint8", "u8": "uint8", "f8e4m3": "fp8",
    "i32": "int32", "i64": "int64",
}  # fmt: skip
_WIDTHS = {"fp8": 1, "int8": 1, "uint8": 1, "bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class CompiledLayers:
    """Layers of a compiled model that run at every call, in order; what is computed of constants alone runs once.

    Attributes:
        summary: The layers.
        sources: Nodes of the ONNX graph that each computes; of what serves another layer, the node that it serves.
    """

    summary: LayerSummary
    sources: tuple[tuple[str, ...], ...]

    def stated(self, precision: Precision) -> Proof:
        """The layers' word for a 16-bit precision: it is stated if most of the weighted layers have it."""
        counts = self.summary.weighted_by_precision
        total = sum(counts.values())
        return Proof(precision if 2 * counts.get(precision.value, 0) > total else None, "", total, 0, ())

    def integer_nodes(self, graph: GraphProto, names: tuple[str, ...]) -> int:
        """How many of some nodes are computed by integer kernels.

        A node that no layer names is part of the one that computes its readers: of the two products of attention in
        one kernel, OpenVINO names the second alone.

        Args:
            graph: The ONNX graph.
            names: Weighted nodes of it.
        """
        lineage = Lineage(graph)
        kernels: dict[str, EngineLayer] = {}
        for layer, sources in zip(self.summary.layers, self.sources, strict=True):
            if not layer.reformat and not layer.quantizes:
                kernels.update({name: layer for name in sources if layer.weighted or name not in kernels})
        found = [_kernel(name, lineage, kernels) for name in names]
        return sum(layer is not None and layer.precision in INTEGERS for layer in found)


def compiled_layers(compiled: Any, graph: GraphProto) -> CompiledLayers:
    """Read the layers of a compiled model.

    Args:
        compiled: An ``openvino.CompiledModel``.
        graph: The ONNX graph that it was made from.
    """
    lineage = Lineage(graph)
    weighted = {name for node in lineage.nodes if node.op_type in WEIGHTED_OPS for name in lineage.layers([node.name])}
    entries = list(_entries(compiled.get_runtime_model(), lineage))
    layers = tuple(_layer(entry, weighted) for entry in entries)
    return CompiledLayers(LayerSummary(layers, True, {}), tuple(entry.sources for entry in entries))


def profiled_layers(compiled: Any, graph: GraphProto, run: Callable[[], Any], runs: int) -> tuple[LayerTime, ...]:
    """Times of the layers that OpenVINO's profiler saw run, in order.

    Its counters are means over all runs since the model was compiled, in whole microseconds, and the first run makes
    kernels. The time of the runs that count is the sum over all of them less that over those before.

    Args:
        compiled: An ``openvino.CompiledModel`` with the property ``PERF_COUNT``, not run yet.
        graph: The ONNX graph that it was made from.
        run: Runs one request, and gives it.
        runs: Runs to take the mean of, after two that do not count; at least 1.
    """
    if runs < 1:
        raise ValueError(f"{runs} runs")
    known = {entry.name: entry for entry in _entries(compiled.get_runtime_model(), Lineage(graph))}
    for _ in range(_WARMUP):
        request = run()
    before = _sums_ms(request, _WARMUP)
    for _ in range(runs):
        request = run()
    return tuple(
        LayerTime(name, known[name].sources, known[name].role, max(total - before.get(name, 0.0), 0.0) / runs,
                  known[name].kind, precision)
        for name, total in _sums_ms(request, _WARMUP + runs).items()
        if name in known
        for precision in ["" if known[name].precision == UNKNOWN else known[name].precision]
    )  # fmt: skip


def _sums_ms(request: Any, runs: int) -> dict[str, float]:
    """Time of each executed layer over all runs of a request."""
    found: dict[str, float] = {}
    for one in request.get_profiling_info():
        if one.status.name == "EXECUTED":
            found[one.node_name] = found.get(one.node_name, 0.0) + runs * one.real_time.total_seconds() * 1e3
    return found


@dataclass(frozen=True, slots=True)
class _Entry:
    """A node of the runtime model.

    Attributes:
        name: Its name there.
        kind: ``layerType``.
        kernel: ``primitiveType``.
        precision: Type of its operands.
        role: What it is for.
        sources: See `CompiledLayers.sources`.
    """

    name: str
    kind: str
    kernel: str
    precision: str
    role: LayerKind
    sources: tuple[str, ...]


def _entries(model: Any, lineage: Lineage) -> Iterator[_Entry]:
    nodes = {str(node.get_friendly_name()): node for node in model.get_ordered_ops()}
    facts = {name: node_facts(node) for name, node in nodes.items()}
    inputs = {name: _before(node) for name, node in nodes.items()}
    readers: dict[str, list[str]] = {}
    for name, sources in inputs.items():
        for source in sources:
            readers.setdefault(source, []).append(name)
    constant: set[str] = set()
    for name, fact in facts.items():
        kind = fact.get("layerType", "")
        if kind.startswith("Const") or (inputs[name] and constant.issuperset(inputs[name])):
            constant.add(name)
            continue
        if kind in _NOT_RUN:
            continue
        own = lineage.layers(_originals(fact))
        role = LayerKind.QUANTIZE if kind == _QUANTIZES else LayerKind.COMPUTE
        if kind in _MOVES and not own:
            role = LayerKind.REFORMAT
        if not own:
            around = inputs[name] + readers.get(name, [])
            around = around if role is LayerKind.QUANTIZE else around[::-1]
            served = [lineage.around(original) for original in _originals(fact)]
            served += [lineage.layers(_originals(facts[other])) for other in around]
            own = next(filter(None, served), ())[:1]
        kernel = fact.get("primitiveType", "")
        yield _Entry(name, kind, kernel, operands(kernel, fact.get("runtimePrecision", "")), role, own)


def _before(node: Any) -> list[str]:
    return [str(port.get_source_output().get_node().get_friendly_name()) for port in node.inputs()]


def _originals(fact: Mapping[str, str]) -> list[str]:
    """Names of nodes or tensors of the ONNX graph, without what OpenVINO adds where it parts a node in two."""
    names = fact.get("originalLayersNames", "").split(",")
    return [_PART.sub("", name) for name in names if name]


def _layer(entry: _Entry, weighted: set[str]) -> EngineLayer:
    """Named after what it computes: OpenVINO numbers its own names otherwise each time."""
    multiplies = entry.kind in _WEIGHTED or (entry.kind == "Subgraph" and not weighted.isdisjoint(entry.sources))
    return EngineLayer(
        ", ".join(entry.sources) or entry.kind, entry.kind, entry.precision, multiplies,
        entry.role is LayerKind.REFORMAT, entry.role is LayerKind.QUANTIZE, entry.kernel,
    )  # fmt: skip


def _kernel(name: str, lineage: Lineage, kernels: Mapping[str, EngineLayer]) -> EngineLayer | None:
    """The layer that computes a node: the one that names it, else the one of its nearest reader."""
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop(0)
        if current in kernels:
            return kernels[current]
        position = lineage.position(current)
        if position is None:
            return None
        outputs = lineage.nodes[position].output
        behind = lineage.named({reader for tensor in outputs for reader in lineage.readers(tensor)})
        waiting += [reader for reader in behind if reader not in seen]
        seen.update(behind)
    return None


def node_facts(node: Any) -> dict[str, str]:
    """What a node of the runtime model states of itself, such as ``layerType`` and ``primitiveType``."""
    facts = node.get_rt_info()
    return {str(key): str(getattr(facts[key], "value", facts[key])) for key in facts}


def operands(kernel: str, precision: str = "") -> str:
    """Type of a layer's operands.

    A kernel's name ends in the type of its activations (``I8`` for unsigned ones). The runtime precision is that of the
    wider operand, except that layers with compressed weights state these. So the wider one of both is the truth.

    Args:
        kernel: ``primitiveType``, such as ``brgconv_avx512_1x1_I8``.
        precision: ``runtimePrecision``, such as ``u8``.
    """
    activations = _TYPES.get(kernel.rpartition("_")[2], UNKNOWN)
    stated = _TYPES.get(precision, UNKNOWN)
    return max((activations, stated), key=lambda name: _WIDTHS.get(name, 0))
