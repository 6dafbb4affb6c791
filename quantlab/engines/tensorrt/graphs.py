"""What the graph given to TensorRT itself proves about the precision of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.engines.confirmation import UNTYPED
from quantlab.engines.variant import Variant
from quantlab.graph.proof import Proof, prove
from quantlab.graph.qdq import Quantized
from quantlab.precision import Precision


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


def graph_proof(variant: Variant, graph: Quantized) -> GraphProof:
    """What the types prove, for TensorRT must obey those of a strongly typed network."""
    if variant.precision in UNTYPED:
        return GraphProof("32-bit floats; the graph does not say whether TensorRT computes in FP32 or TF32")
    proof = prove(variant.model.with_proto(graph.proto))
    return GraphProof(f"strongly typed graph: {proof.text}", proof)
