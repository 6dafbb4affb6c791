"""The ONNX graph that a variant becomes for TensorRT, and what the graph itself proves about its precision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from quantlab.calibrators.table import CalibrationTable
from quantlab.engines.artifact import quantized_graph
from quantlab.engines.variant import Variant
from quantlab.graph.proof import Proof, prove
from quantlab.graph.qdq import Quantized
from quantlab.graph.typed import to_typed
from quantlab.precision import Precision

UNTYPED = (Precision.FP32, Precision.TF32)
"""Precisions of the graph as it is: only running the engine tells them apart."""


@dataclass(frozen=True, slots=True)
class GraphProof:
    """What the types of a strongly typed graph say.

    Attributes:
        text: What it says, in words.
        proof: What was found in the graph; None where its types leave the precision open.
    """

    text: str
    proof: Proof | None = None

    @property
    def precision(self) -> Precision | None:
        """Precision that the layers must have; None where that is open."""
        return self.proof.precision if self.proof is not None else None


def typed_graph_of(variant: Variant) -> Quantized:
    """The graph whose types state the variant's precision.

    Raises:
        ConfigError: If a table is needed and missing.
        ModelError: If weights cannot be read or the graph cannot be converted.
    """
    source = variant.prepared.model
    precision = variant.precision
    if precision in UNTYPED:
        return Quantized(source.proto, (), (), {}, ())
    if precision in (Precision.FP16, Precision.BF16):
        typed = to_typed(source, precision, extremes=extremes(variant.table))
        return Quantized(typed.proto, (), (), {}, typed.degradations)
    if precision is Precision.INT8_FP16:
        quantized = quantized_graph(dataclasses.replace(variant, precision=Precision.INT8))
        typed = to_typed(source.with_proto(quantized.proto), Precision.FP16, extremes=extremes(variant.table))
        degradations = (*quantized.degradations, *typed.degradations)
        return dataclasses.replace(quantized, proto=typed.proto, degradations=degradations)
    return quantized_graph(variant)


def extremes(table: CalibrationTable | None) -> dict[str, float] | None:
    """Largest magnitude by tensor, as measured on calibration data; None without a table that holds values.

    Imported ranges are no measurement: a range may be narrower than the values.
    """
    if table is None:
        return None
    seen = {e.name: max(abs(e.minimum), abs(e.maximum)) for e in table.tensors if e.count > 0}
    return seen or None


def graph_proof(variant: Variant, graph: Quantized) -> GraphProof:
    """What the types prove, for TensorRT must obey those of a strongly typed network."""
    if variant.precision in UNTYPED:
        return GraphProof("32-bit floats; the graph does not say whether TensorRT computes in FP32 or TF32")
    proof = prove(variant.prepared.model.with_proto(graph.proto))
    return GraphProof(f"strongly typed graph: {proof.text}", proof)
