"""Scale and zero-point of every quantized activation: from the table, and shared where values only move."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from onnx import NodeProto

from quantlab.calibrators.quantize import Parameters, Scheme, parameters
from quantlab.calibrators.table import CalibrationTable
from quantlab.graph.index import GraphIndex
from quantlab.graph.targets import QuantizationKind, TargetProfile


class Scales:
    """Parameters that the table gives a graph's activations.

    INT8 takes the range of the table's method. FP8 takes the exact largest magnitude: its steps grow with the value, so
    clipping buys no precision. A Softmax without a range takes [0, 1], which no sample leaves.
    """

    def __init__(
        self, table: CalibrationTable, index: GraphIndex, target: TargetProfile, kind: QuantizationKind
    ) -> None:
        self.table, self.index = table, index
        self.scheme: Scheme = target.activation_scheme(kind)
        self._entries = table.entries()

    def of(self, tensor: str) -> Parameters | None:
        """Parameters of an activation, or None if the table has no usable range for it.

        Raises:
            ConfigError: If the table lacks the range of its method and this target.
        """
        entry = self._entries.get(tensor)
        if entry is None or (entry.minimum == 0.0 and entry.maximum == 0.0):
            producer = self.index.producer.get(tensor)
            known = producer is not None and producer.op_type == "Softmax"
            return parameters(0.0, 1.0, self.scheme) if known else None
        if self.scheme.floating:
            return parameters(entry.minimum, entry.maximum, self.scheme)
        chosen = self.table.range_of(entry, self.scheme.name)
        return parameters(chosen.low, chosen.high, self.scheme)


def moved_from(node: NodeProto) -> tuple[str, ...]:
    """Inputs whose values a moving operator puts out: all of a Concat, the first of the others."""
    return tuple(node.input) if node.op_type == "Concat" else tuple(node.input[:1])


def share_scales(
    chosen: Mapping[str, Parameters],
    index: GraphIndex,
    moving_ops: Collection[str],
    fixed: Mapping[str, Parameters],
) -> dict[str, Parameters]:
    """Give the same parameters to quantized tensors of which one holds values of the other.

    TensorRT moves a QuantizeLinear backward and a DequantizeLinear forward across operators that only move values, and
    joins a Concat's inputs as INT8, but only where both sides have one scale; else it converts between them. The widest
    range is taken, so that nothing is clipped. Tensors that only have their source in common, as the query, key and
    value of one projection, keep their own.

    Args:
        chosen: Parameters of the quantized tensors.
        index: Their graph.
        moving_ops: Operators that only move values.
        fixed: Parameters of pairs that are there already and stay; where a group has one, all take it.

    Returns:
        Parameters of the tensors in ``chosen``.
    """
    groups = sharing_groups(chosen.keys() | fixed.keys(), index, moving_ops)
    result = {}
    for tensor in chosen:
        settled = sorted(groups[tensor] & fixed.keys())
        candidates = [fixed[name] for name in settled] or [chosen[name] for name in groups[tensor]]
        result[tensor] = max(candidates, key=lambda found: found.scale)
    return result


def sharing_groups(quantized: Collection[str], index: GraphIndex, moving_ops: Collection[str]) -> dict[str, set[str]]:
    """The tensors that `share_scales` gives the same parameters, by each of them; alone if there are no others."""
    groups: dict[str, set[str]] = {tensor: {tensor} for tensor in quantized}
    for tensor in quantized:
        for source in _sources(tensor, quantized, index, moving_ops):
            if groups[source] is not groups[tensor]:
                joined = groups[source] | groups[tensor]
                groups.update(dict.fromkeys(joined, joined))
    return groups


def _sources(tensor: str, quantized: Collection[str], index: GraphIndex, moving_ops: Collection[str]) -> Iterator[str]:
    """The nearest quantized tensors whose values a tensor holds."""
    seen: set[str] = set()
    waiting = [tensor]
    while waiting:
        producer = index.producer.get(waiting.pop())
        if producer is None or producer.op_type not in moving_ops:
            continue
        for source in moved_from(producer):
            if source in quantized:
                yield source
            elif source not in seen:
                seen.add(source)
                waiting.append(source)
