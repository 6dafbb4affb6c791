"""What one layer of an engine takes: one record, whatever the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LayerKind(Enum):
    """What an executed layer is for."""

    COMPUTE = "compute"
    """It computes nodes of the model."""
    REFORMAT = "reformat"
    """It moves, reorders or casts values for another layer, and is none of the model's nodes."""
    QUANTIZE = "quantize"
    """A quantize or dequantize step that was fused into no other layer."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One executed layer of an engine, timed by the runtime's profiler.

    Attributes:
        name: The runtime's name of it; not necessarily unique, and anything that a file may hold.
        sources: Names of the nodes of the engine's ONNX graph that it computes, Q/DQ nodes left out. Of a reformat, or
            of a quantize or dequantize step: the node that it serves. Empty if not known.
        kind: What it is for.
        ms: Median over runs, in milliseconds, or their mean where the runtime gives no more. The profiler's own cost is
            part of it.
        operator: The runtime's name of its kind, such as ``QLinearConv``; empty if not known.
        precision: Type of its operands, such as ``fp32`` or ``uint8``; empty if not known.
    """

    name: str
    sources: tuple[str, ...]
    kind: LayerKind
    ms: float
    operator: str = ""
    precision: str = ""
