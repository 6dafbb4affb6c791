"""Q/DQ: write a calibration table into a graph as QuantizeLinear/DequantizeLinear pairs.

Weights become 8-bit initializers behind a per-channel DequantizeLinear; every quantized activation gets one
QuantizeLinear -> DequantizeLinear pair that all its quantized consumers share, so no tensor is quantized twice. Where
the pairs go is decided in `placement`, what is in them in `scales` and `weights`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from quantlab.calibrators.quantize import Parameters
from quantlab.calibrators.table import CalibrationTable
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import ConfigError, EngineBuildError
from quantlab.graph.existing import ExistingPairs, ExistingPolicy, check_existing, read_pairs
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.layers import excluded_layers
from quantlab.graph.model import Model
from quantlab.graph.opset import raise_opset
from quantlab.graph.placement import Placement, place_pairs, place_weights
from quantlab.graph.proof import prove
from quantlab.graph.scales import Scales
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.targets import BiasType, QuantizationKind, TargetProfile, weight_scheme
from quantlab.graph.weights import RoundedWeight, WeightWriter, store_constant
from quantlab.precision import Precision

_FP8_OPSET, _FP8_IR_VERSION = 19, 9
_OBSERVED = "observed"


@dataclass(frozen=True, slots=True)
class Quantized:
    """A Q/DQ model and what was done.

    Attributes:
        proto: The quantized model.
        layers: Names of the layers that were quantized.
        excluded: Names of the layers that the caller kept in floating point.
        tensors: Parameters of every activation that got a pair, by tensor name.
        degradations: Layers that stayed in floating point though neither the caller nor a rule wanted that.
        skipped: Names of the layers that a size limit of the target keeps in floating point, with the reason.
        kept: Names of the layers that were quantized already.
        float32: Names of the nodes of a 16-bit graph that stay FP32 though nobody excluded them, with the reason.
    """

    proto: ModelProto
    layers: tuple[str, ...]
    excluded: tuple[str, ...]
    tensors: Mapping[str, Parameters]
    degradations: tuple[Degradation, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    float32: Mapping[str, str] = field(default_factory=dict)


def quantize_model(
    model: Model,
    table: CalibrationTable | None,
    target: TargetProfile,
    exclude: Collection[str] = (),
    *,
    kind: QuantizationKind = QuantizationKind.INT8,
    existing: ExistingPolicy = ExistingPolicy.REFUSE,
    rounded: Mapping[str, RoundedWeight] = MappingProxyType({}),
) -> Quantized:
    """Write the ranges of ``table``'s method into ``model`` by the rules of ``target``.

    Args:
        model: The prepared model whose tensors the table names.
        table: Ranges; only weights are quantized without, and nothing if the model is to be kept as it is.
        target: Rules.
        exclude: Names or glob patterns of layers to keep in floating point.
        kind: Which operands become 8-bit numbers. FP8 raises the opset to 19.
        existing: What to do with Q/DQ pairs that the model already holds.
        rounded: Codes and scales of weights, by initializer, in place of each number's nearest code; used for INT8.

    Raises:
        ModelError: If the model already holds Q/DQ nodes and they are to be refused or the target cannot take them, if
            there are none and they are to be kept, or if its opset cannot be raised.
        ConfigError: If an exclusion matches no layer, a table is needed and missing, FP8 is asked of imported ranges,
            or the target does not have the kind.
        EngineBuildError: If no layer could be quantized.
    """
    if existing is ExistingPolicy.KEEP:
        check_existing(model, existing)
        return Quantized(model.proto, (), (), {}, (), kept=_quantized_already(model))
    limits = target.limits(kind)
    source = model.proto
    if kind is QuantizationKind.FP8:
        source = raise_opset(source, _FP8_OPSET, _FP8_IR_VERSION)
    proto = ModelProto()
    proto.CopyFrom(source)
    index = GraphIndex(proto.graph, typed_graph(proto))
    excluded = excluded_layers(proto.graph, target, exclude)
    pairs = read_pairs(model, index, target, kind, existing)
    if kind is QuantizationKind.INT8_WEIGHTS:
        placement = place_weights(index, target, excluded, pairs)
    elif table is None:
        raise ConfigError(
            f"{kind} needs a calibration table", expected="ranges of the activations", hint="run quantlab calibrate"
        )
    else:
        _check_extremes(table, kind)
        placement = place_pairs(index, target, limits, Scales(table, index, target, kind), excluded, pairs)
    if not placement.layers and not placement.kept:
        raise _nothing_quantized(placement, target, excluded)
    bias = BiasType.FLOAT if kind is QuantizationKind.INT8_WEIGHTS else target.bias
    weights = WeightWriter(model, index, weight_scheme(kind), bias, rounded)
    weights.write(placement.layers, {**pairs.parameters, **placement.parameters})
    tensors = _rewrite(index, placement, pairs, weights, target.activation_scheme(kind).code_type)
    return Quantized(
        proto,
        tuple(layer.name for layer in placement.layers),
        tuple(sorted(excluded)),
        tensors,
        tuple(_left_out(placement, target)),
        dict(placement.skipped),
        tuple(placement.kept),
    )


def _quantized_already(model: Model) -> tuple[str, ...]:
    """Names of the weighted layers whose weight, or both operands, are in 8 bits."""
    eight = (Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS)
    return tuple(name for name, precision in prove(model).layers if precision in eight)


def _check_extremes(table: CalibrationTable, kind: QuantizationKind) -> None:
    if kind is QuantizationKind.FP8 and table.provenance.source != _OBSERVED:
        raise ConfigError(
            f"{kind} needs the largest magnitudes themselves, not ranges chosen from them",
            got=f"ranges imported from {table.provenance.source}",
            expected="a table that quantlab calibrate made from data",
        )


def _nothing_quantized(placement: Placement, target: TargetProfile, excluded: Collection[str]) -> EngineBuildError:
    n_unranged, n_skipped = len(placement.unranged), len(placement.skipped)
    example = next((f"; {name}: {reason}" for name, reason in placement.skipped.items()), "")
    return EngineBuildError(
        "no layer could be quantized",
        got=f"{n_unranged} layers without a range, {len(excluded)} excluded, {n_skipped} too small or large{example}",
        expected=f"at least one {' / '.join(sorted(target.weighted_ops))} with a constant weight",
    )


def _left_out(placement: Placement, target: TargetProfile) -> Iterator[Degradation]:
    """Layers that nobody asked to keep in floating point, and that stayed there."""
    if placement.unranged:
        message = "layers stayed in floating point: their input had no range"
        yield Degradation.of(DegradationCode.NOT_QUANTIZED, message, placement.unranged)
    if placement.unsupported:
        form = "a constant weight" if target.free_products else "a constant weight as second input"
        message = f"layers stayed in floating point: target {target.name} quantizes " + (
            "/".join(sorted(target.weighted_ops)) + f" with {form}"
        )
        yield Degradation.of(DegradationCode.NOT_QUANTIZED, message, placement.unsupported)


def _rewrite(
    index: GraphIndex, placement: Placement, pairs: ExistingPairs, weights: WeightWriter, dtype: np.dtype[np.generic]
) -> dict[str, Parameters]:
    """Insert the pairs right after each tensor's producer and point the quantized inputs at them.

    Returns:
        Parameters of the tensors that got a pair.
    """
    graph = index.graph
    wanted = {graph.node[position].input[slot] for position, slot in placement.edges} | placement.outputs
    made = {
        tensor: _pair(index, tensor, placement.parameters[tensor], dtype)
        for tensor in sorted(wanted)
        if tensor not in pairs.behind
    }
    behind = dict(pairs.behind) | {tensor: pair[-1].output[0] for tensor, pair in made.items()}
    for position, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if (position, slot) in placement.edges or name in placement.outputs:
                node.input[slot] = behind[name]
    _insert(graph, made, weights.before)
    if pairs.behind:
        _sort(graph)
    _drop_unused(graph)
    return {tensor: placement.parameters[tensor] for tensor in made}


def _pair(index: GraphIndex, tensor: str, chosen: Parameters, dtype: np.dtype[np.generic]) -> list[NodeProto]:
    base = index.fresh(f"{tensor}_quantized")
    scale = store_constant(index, f"{base}_scale", np.array(chosen.scale, np.float32))
    zero = store_constant(index, f"{base}_zero", np.array(chosen.zero_point, dtype))
    output = index.fresh(f"{base}_dq")
    quantize = helper.make_node("QuantizeLinear", [tensor, scale, zero], [base], name=index.fresh(f"{base}_q"))
    return [quantize, helper.make_node("DequantizeLinear", [base, scale, zero], [output], name=output)]


def _insert(graph: GraphProto, made: Mapping[str, list[NodeProto]], before: Mapping[int, list[NodeProto]]) -> None:
    """Put the pairs behind their tensors' producers, and dequantized weights before their readers."""
    pairs = dict(made)
    nodes: list[NodeProto] = []
    for value in graph.input:
        nodes += pairs.pop(value.name, [])
    for position, node in enumerate(graph.node):
        nodes += [*before.get(position, []), node]
        for name in node.output:
            nodes += pairs.pop(name, [])
    if pairs:
        raise AssertionError(f"no producer of {sorted(pairs)}")
    del graph.node[:]
    graph.node.extend(nodes)


def _sort(graph: GraphProto) -> None:
    """Restore topological order: a pair that was there already may stand behind a node which reads it now."""
    nodes = []
    for node in GraphIndex(graph).topological():
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_unused(graph: GraphProto) -> None:
    """Forget initializers that nothing reads any more, and what was known of tensors' types."""
    used = {name for node in graph.node for name in (*node.input, *implicit_inputs(node))}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]


def check_quantized(proto: ModelProto) -> None:
    """Check a written model.

    Raises:
        EngineBuildError: If onnx refuses it: a fault of the writer, never of the user's.
    """
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as cause:
        raise EngineBuildError("the Q/DQ writer made an invalid model", got=str(cause)) from cause


__all__ = [
    "ExistingPolicy",
    "QuantizationKind",
    "Quantized",
    "check_quantized",
    "excluded_layers",
    "quantize_model",
]
