"""The result of looking into a quantized graph tensor by tensor: plain records, saved as ``layers.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantlab.degradation import Degradation
from quantlab.documents import dump_json, read_json
from quantlab.errors import DataError
from quantlab.graph.twin import PartKind
from quantlab.records import from_plain, to_plain

LAYERS_SCHEMA = "quantlab.layers/1"


@dataclass(frozen=True, slots=True)
class PartDrift:
    """One quantized tensor, one layer that reads such, or one output.

    Figures are SQNR in dB over all samples: 10 log10(sum exact^2 / sum (exact - found)^2); inf without any error, -inf
    if values are not finite; None where there is no such figure.

    Attributes:
        kind: What it is.
        tensor: Name of the tensor; of a layer, its output's.
        layer: Node that makes it; of weights and biases, the node that reads it.
        op_type: Operator of that node; empty for inputs of the graph.
        local_db: Of its own quantization alone, on exact values; of a layer, of its output with nothing but its own
            operands quantized.
        arriving_db: Of the tensor in the quantized graph before its own pair: what comes from the layers before.
        accumulated_db: Of the tensor in the quantized graph, its own pair included.
        source: The quantized tensor that it is computed from; of several, the one with the most error.
        drop_db: By how much its accumulated figure is below that of the source; None without a source.
        via: The weighted layer between both, else the node that makes the tensor.
        non_finite: Values in the quantized graph, before the tensor's own pair or behind it, that are NaN or infinite
            where the exact ones are not.
    """

    kind: PartKind
    tensor: str
    layer: str
    op_type: str
    local_db: float | None
    arriving_db: float | None = None
    accumulated_db: float | None = None
    source: str | None = None
    drop_db: float | None = None
    via: str = ""
    non_finite: int = 0


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """Where a quantized graph loses accuracy.

    Attributes:
        variant: Name of the quantized graph.
        graph_sha256: Hash of it, or of the file it was read from.
        model: File name of the floating-point model.
        model_sha256: Hash of it.
        parts: Activations, layers and outputs in graph order.
        stored: Weights and biases in graph order.
        finding: Where most is lost, in one sentence.
        worst: Tensor where most error is added, or the first with values that are not finite; None if there is none.
        emulated: How the graph was run, in words.
        unmatched: Quantized tensors that the floating-point model lacks.
        n_samples: Samples.
        data: Provenance of the data.
        data_sha256: Digest of the manifest.
        environment: Versions, processor, threads.
        degradations: Of the data.
    """

    variant: str
    graph_sha256: str
    model: str
    model_sha256: str
    parts: tuple[PartDrift, ...]
    stored: tuple[PartDrift, ...]
    finding: str
    worst: str | None
    emulated: str
    unmatched: tuple[str, ...]
    n_samples: int
    data: Mapping[str, object]
    data_sha256: str
    environment: Mapping[str, object]
    degradations: tuple[Degradation, ...]

    def of_kind(self, kind: PartKind) -> tuple[PartDrift, ...]:
        """The parts of one kind, in graph order."""
        return tuple(part for part in (*self.parts, *self.stored) if part.kind is kind)

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": LAYERS_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> LayerDrift:
        """Read ``layers.json``.

        Raises:
            DataError: If the file is missing, damaged, or of another schema.
        """
        document = read_json(path, LAYERS_SCHEMA, DataError, "layer drift")
        document.pop("schema")
        return from_plain(cls, document, str(path), DataError)
