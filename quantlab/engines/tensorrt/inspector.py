"""What TensorRT's engine inspector says of a finished engine, summed up: layers and time by precision, reformats, Q/DQ.

Reads the JSON of `IEngineInspector.get_engine_information` of TensorRT 8.4 to 10 (``Bindings``, ``Format/Datatype`` in
one text) and of TensorRT 11 and TensorRT-RTX (``I/O Tensors``, ``Datatype`` and ``Format`` apart). Engines that were
built without detailed profiling verbosity list names alone. TF32 layers are stated as FP32 by all of them: only names
of tactics may tell, or a fingerprint.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.tensorrt.fused_names import fused_nodes
from quantlab.errors import MeasurementError

UNKNOWN = "unknown"
"""Precision of a layer whose types are not stated."""

_TYPES = (
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|half", "fp16"),
    (r"fp32|(?<!b)float(?!8|4|16)|tf32", "fp32"),
    (r"fp8|float8|e4m3|e5m2", "fp8"),
    (r"fp4|float4|e2m1", "fp4"),
    (r"uint8", "uint8"),
    (r"(?<!u)int8", "int8"),
    (r"int4", "int4"),
    (r"int32", "int32"),
    (r"int64", "int64"),
    (r"bool", "bool"),
)
_WIDTHS = {name: i for i, name in enumerate(("fp4", "int4", "fp8", "int8", "uint8", "fp16", "bf16", "fp32"))}
"""Types of operands, the narrowest first; integers that hold positions and sizes are none."""

_WEIGHTED_KINDS = re.compile(
    r"conv|correlation|gemm|matrixmultiply|matmul|fullyconnected|einsum|^fc$|mha|attention", re.IGNORECASE
)
_WEIGHTED_NAMES = re.compile(r"^_gemm|__myl_(?:[A-Z][a-z]+)*Fc[A-Z_]|__myl_Fc")
_MYELIN_KERNEL = re.compile(r"^__myl_((?:[A-Z][a-z]+)+)(?:_|$)")
_MOVES = frozenset({"Move", "Tran", "Resh", "Copy", "Cast"})
_QUANTIZING = re.compile(r"^(?:de)?quantize(?:linear|v\d|)?$", re.IGNORECASE)
_QUANTIZING_NAME = re.compile(r"(?:de)?quantizelinear", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: Name, as a profiler reports it.
        kind: ``LayerType``; empty if only names are listed.
        precision: Type of its operands: the narrowest of its inputs, or of its outputs if it has none; ``unknown``
            if not stated.
        weighted: Whether it multiplies and accumulates, as its type or name says.
        reformat: Whether it only moves or casts values.
        quantizes: Whether it is a quantize or dequantize step by itself.
        tactic: Name of its kernel; empty if not stated.
        time_ms: Time of one run; None if not measured.
        nodes: Names of the ONNX nodes that it was fused of, as far as it says; see `fused_nodes`.
    """

    name: str
    kind: str
    precision: str
    weighted: bool
    reformat: bool
    quantizes: bool
    tactic: str
    time_ms: float | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """An engine's layers, counted.

    Attributes:
        layers: All of them, in order.
        detailed: Whether types are stated; else there are names alone.
        tensor_types: Types of all tensors that layers read, write or hold, counted.
        unmatched_times: Measured names that are no layer's.
    """

    layers: tuple[EngineLayer, ...]
    detailed: bool
    tensor_types: Mapping[str, int]
    unmatched_times: tuple[str, ...] = ()

    @property
    def by_precision(self) -> dict[str, int]:
        """Number of layers by precision, the most first."""
        return dict(Counter(layer.precision for layer in self.layers).most_common())

    @property
    def weighted_by_precision(self) -> dict[str, int]:
        """Number of weighted layers by precision, the most first."""
        return dict(Counter(layer.precision for layer in self.layers if layer.weighted).most_common())

    @property
    def by_kind(self) -> dict[str, int]:
        """Number of layers by type, the most first."""
        return dict(Counter(layer.kind for layer in self.layers if layer.kind).most_common())

    @property
    def reformats(self) -> tuple[str, ...]:
        """Names of layers that only move or cast values."""
        return tuple(layer.name for layer in self.layers if layer.reformat)

    @property
    def unfused(self) -> tuple[str, ...]:
        """Names of quantize and dequantize steps that were not fused into other layers."""
        return tuple(layer.name for layer in self.layers if layer.quantizes)

    @property
    def tf32_tactics(self) -> tuple[str, ...]:
        """Names of layers whose kernel's name says TF32."""
        return tuple(layer.name for layer in self.layers if "tf32" in layer.tactic.lower())

    @property
    def half_sum_tactics(self) -> tuple[str, ...]:
        """Names of layers whose kernel's name says that FP16 products are summed in FP16."""
        return tuple(layer.name for layer in self.layers if re.search(r"h16816|h884|h1688|f16f16_f16f16", layer.tactic))

    @property
    def total_ms(self) -> float | None:
        """Time of all layers; None if not measured. Events between layers make it longer than the engine's latency."""
        times = [layer.time_ms for layer in self.layers if layer.time_ms is not None]
        return sum(times) if times else None

    def time_share(self, layers: Iterable[EngineLayer]) -> float | None:
        """Share of the measured time that some layers take; None if nothing was measured."""
        total = self.total_ms
        return sum(layer.time_ms or 0.0 for layer in layers) / total if total else None

    @property
    def time_by_precision(self) -> dict[str, float]:
        """Share of the measured time by precision, the most first; empty if nothing was measured."""
        shares = {
            precision: self.time_share(layer for layer in self.layers if layer.precision == precision) or 0.0
            for precision in self.by_precision
        }
        return dict(sorted(shares.items(), key=lambda item: -item[1])) if self.total_ms else {}


def parse_inspection(text: str, times_ms: Mapping[str, float] | None = None) -> LayerSummary:
    """Read the inspector's JSON.

    Unknown fields are passed over, and what is not stated is counted as unknown.

    Args:
        text: What ``get_engine_information(LayerInformationFormat.JSON)`` gave.
        times_ms: Time of each layer in one run, by name, from an ``IProfiler``.

    Raises:
        MeasurementError: If it is not JSON, or not of the inspector's form.
    """
    try:
        document = json.loads(text, strict=False)  # names may hold control characters: 11 and RTX part metadata by 0x1f
    except (ValueError, RecursionError) as cause:
        raise _malformed("not JSON", f"{text[:60]!r}: {cause}") from cause
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        keys = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise _malformed("no list of layers", keys or "nothing")
    times = dict(times_ms or {})
    counts: Counter[str] = Counter()
    layers = []
    for i, entry in enumerate(document["Layers"]):
        if isinstance(entry, dict):
            layers.append(_detailed_layer(entry, i, times, counts))
        elif isinstance(entry, str):
            layers.append(_named_layer(entry, times))
        else:
            raise _malformed(f"layer {i} is neither a name nor an object", type(entry).__name__)
    detailed = any(isinstance(entry, dict) for entry in document["Layers"])
    return LayerSummary(tuple(layers), detailed, dict(counts.most_common()), tuple(times))


def timed_layers(summary: LayerSummary, times_ms: Mapping[str, float]) -> tuple[LayerTime, ...]:
    """The layers that a profiler reported, with what the inspector says of each; the profiler's order.

    Args:
        summary: The inspector's layers.
        times_ms: Time by name. A name that the inspector does not know is kept with what it says itself.
    """
    known: dict[str, EngineLayer] = {}
    for layer in summary.layers:
        known.setdefault(layer.name, layer)
    return tuple(_timed(known.get(name) or _named_layer(name, {}), ms) for name, ms in times_ms.items())


def _timed(layer: EngineLayer, ms: float) -> LayerTime:
    kind = LayerKind.QUANTIZE if layer.quantizes else LayerKind.REFORMAT if layer.reformat else LayerKind.COMPUTE
    precision = "" if layer.precision == UNKNOWN else layer.precision
    return LayerTime(layer.name, layer.nodes, kind, ms, layer.kind, precision)


def describe(summary: LayerSummary) -> tuple[str, ...]:
    """Short lines for people: what the inspector says, and what it does not."""
    return tuple(_lines(summary))


def _lines(summary: LayerSummary) -> Iterator[str]:
    layers = _many(len(summary.layers), "layer")
    if not summary.detailed:
        yield f"{layers}, of which the inspector gives names alone: build with detailed profiling verbosity"
    elif summary.weighted_by_precision:
        counts = summary.weighted_by_precision
        yield f"{layers}; operands of the {sum(counts.values())} weighted ones: {_counted(counts)}"
        narrow = min(summary.weighted_by_precision, key=lambda name: _WIDTHS.get(name, len(_WIDTHS)))
        if _WIDTHS.get(narrow, len(_WIDTHS)) < _WIDTHS["fp16"]:
            wide = [x.name for x in summary.layers if x.weighted and x.precision in ("fp32", "fp16", "bf16")]
            if wide:
                yield f"weighted layers that stayed in floating point: {_named(wide)}"
    else:
        yield f"{layers}: {_counted(summary.by_precision)}"
    if summary.reformats:
        share = summary.time_share(layer for layer in summary.layers if layer.reformat)
        yield f"{_many(len(summary.reformats), 'reformat')}{'' if share is None else f', {share:.0%} of the time'}"
    if summary.unfused:
        yield f"{_many(len(summary.unfused), 'Q/DQ step')} not fused: {_named(summary.unfused)}"
    if summary.tf32_tactics:
        yield f"{_many(len(summary.tf32_tactics), 'layer')} with a TF32 kernel: {_named(summary.tf32_tactics)}"
    if summary.half_sum_tactics:
        names = summary.half_sum_tactics
        yield f"{_many(len(names), 'layer')} that may sum in FP16: {_named(names)}"
    if summary.total_ms is not None and summary.detailed:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in summary.time_by_precision.items() if share >= 0.005)
        yield f"time of {summary.total_ms:.3f} ms by precision: {shares}"


def _detailed_layer(entry: Mapping[str, Any], i: int, times: dict[str, float], counts: Counter[str]) -> EngineLayer:
    name = entry.get("Name")
    if not isinstance(name, str):
        raise _malformed(f"layer {i} has no name", ", ".join(map(str, entry)))
    kind, tactic = (value if isinstance(value := entry.get(key), str) else "" for key in ("LayerType", "TacticName"))
    inputs, outputs, constants = (_types(entry, key, name) for key in ("Inputs", "Outputs", "Constants"))
    counts.update((*inputs, *outputs, *constants))
    by_itself = bool(_QUANTIZING.match(kind)) or entry.get("Origin") == "QDQ"
    return EngineLayer(
        name=name,
        kind=kind,
        precision=_operand_type(inputs) or _operand_type(outputs) or UNKNOWN,
        weighted=bool(_WEIGHTED_KINDS.search(kind) or _WEIGHTED_NAMES.match(name)),
        reformat=not by_itself and (kind == "Reformat" or _only_moves(name)),
        quantizes=by_itself,
        tactic=tactic,
        time_ms=times.pop(name, None),
        nodes=fused_nodes(name, entry.get("Metadata")),
    )


def _named_layer(name: str, times: dict[str, float]) -> EngineLayer:
    fused = " + " in name
    return EngineLayer(
        name=name,
        kind="",
        precision=UNKNOWN,
        weighted=False,
        reformat=name.startswith("Reformatting CopyNode") or _only_moves(name),
        quantizes=not fused and bool(_QUANTIZING_NAME.search(name)),
        tactic="",
        time_ms=times.pop(name, None),
        nodes=fused_nodes(name),
    )


def _only_moves(name: str) -> bool:
    """Whether a generated kernel, whose name lists its steps in four letters each, only moves or casts values."""
    kernel = _MYELIN_KERNEL.match(name)
    return kernel is not None and _MOVES.issuperset(re.findall(r"[A-Z][a-z]+", kernel.group(1)))


def _types(entry: Mapping[str, Any], key: str, name: str) -> list[str]:
    tensors = entry.get(key, [])
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise _malformed(f"{key} of layer {name!r} are no list of tensors", type(tensors).__name__)
    return [_type_of(tensor) for tensor in tensors]


def _type_of(tensor: Mapping[str, Any]) -> str:
    """The element type that a tensor's fields state; unknown if none or several."""
    stated = [value for key, value in tensor.items() if key.replace(" ", "").lower() in ("datatype", "format/datatype")]
    if not stated:
        stated = [tensor.get("Format", "")]
    text = str(stated[0])
    found = {name for pattern, name in _TYPES if re.search(pattern, text, re.IGNORECASE)}
    return found.pop() if len(found) == 1 else UNKNOWN


def _operand_type(types: Iterable[str]) -> str | None:
    """The narrowest type of values; of nothing but sizes and flags, theirs; None if nothing is stated."""
    known = [name for name in types if name != UNKNOWN]
    values = [name for name in known if name in _WIDTHS]
    return min(values, key=_WIDTHS.__getitem__) if values else next(iter(known), None)


def _malformed(what: str, got: str) -> MeasurementError:
    return MeasurementError(
        f"the engine inspector's answer has an unknown form: {what}", got=got,
        expected='an object with "Layers", as TensorRT 8.4 to 11 and TensorRT-RTX give it',
        hint="report it with the version of TensorRT",
    )  # fmt: skip


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f", ... ({len(listed)})" if len(listed) > 3 else "")
