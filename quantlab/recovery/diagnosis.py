"""Where INT8 loses: in weights or in activations, and in which of them.

Noise at the outputs adds up over the parts of a graph, nearly, so each part's share is measured by quantizing it alone
in the floating-point graph, on a few samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from quantlab.datasets.lookahead import map_ahead
from quantlab.engines.output_noise import Probe
from quantlab.graph.cleanup import remove_dead
from quantlab.graph.targets import TargetProfile
from quantlab.progress import Narrator
from quantlab.recovery.judge import run_noise
from quantlab.recovery.protocol import State
from quantlab.recovery.record import Diagnosis, LayerShare
from quantlab.recovery.simulation import PLAIN_PAIRS, exact_weights, float_weights, with_values

_SAMPLES = 16
"""Samples that each part is measured on."""

_MEMORY_BYTES, _COPIES = 1 << 30, 4
"""Memory for measuring several parts at once, and how often each holds the model's weights."""


def diagnose(
    state: State, target: TargetProfile, exclude: Collection[str], probe: Probe, threads: int, narrator: Narrator
) -> Diagnosis:
    """Split the loss of a state.

    Args:
        state: The state, before any step.
        target: Rules.
        exclude: Layers that stay in floating point.
        probe: Samples, with the outputs of the FP32 graph.
        threads: Parts that are measured at once, fewer of large models.
        narrator: Told of progress.

    Raises:
        CalibrationError: If ONNX Runtime cannot run a graph.
    """
    made = state.quantized(target, exclude)
    quantized = float_weights(state.model, made.proto)
    values = exact_weights(state.model, quantized, {*made.layers, *made.kept})
    exact, exact_graph = list(values), with_values(quantized, values)
    del made, values  # as large as the model each
    pairs = _pairs(quantized)
    n = _batches(probe)

    def noise(proto: ModelProto, first: int | None = None) -> NDArray[np.float64]:
        model = state.model.with_proto(proto)
        return run_noise(model, probe, first=first, config=dict(PLAIN_PAIRS), pooled=first is None)

    whole = probe.sqnr_db(noise(quantized))
    activations = probe.sqnr_db(noise(exact_graph))
    weights = probe.sqnr_db(noise(_without_pairs(quantized, pairs)))
    parts = [("activation", tensor) for tensor in pairs] + [("weight", name) for name in exact]
    bare = _without_pairs(exact_graph, pairs)
    bare_index = {tensor.name for tensor in bare.graph.initializer}
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}

    def made_alone(part: tuple[str, str]) -> float:
        kind, name = part
        if kind == "activation":
            proto = _without_pairs(exact_graph, {tensor: ends for tensor, ends in pairs.items() if tensor != name})
        elif name in bare_index:
            proto = with_values(bare, {name: numpy_helper.to_array(stored[name])})
        else:
            return np.nan
        return float(np.mean(noise(proto, n).sum(axis=0) / probe.signal))

    workers = max(1, min(threads, _MEMORY_BYTES // (_COPIES * max(1, state.model.size_bytes))))
    with closing(map_ahead(lambda i: made_alone(parts[i]), range(len(parts)), workers, chunk=1)) as results:
        measured = narrator.track(results, len(parts), "diagnosing")
        found = {part: value for part, value in zip(parts, measured, strict=True) if np.isfinite(value)}
    layers = _layer_names(quantized, exact)
    shares = []
    for kind in ("activation", "weight"):
        total = sum(value for (of, _), value in found.items() if of == kind)
        shares += [
            LayerShare(name if kind == "activation" else layers.get(name, name), kind, value / total)
            for (of, name), value in found.items()
            if of == kind and total > 0.0
        ]
    shares.sort(key=lambda share: (-share.share, share.name))
    return Diagnosis(weights, activations, whole, tuple(shares))


def activation_shares(diagnosis: Diagnosis) -> dict[str, float]:
    """Share of the activations' noise that each of them makes, by tensor."""
    return {layer.name: layer.share for layer in diagnosis.layers if layer.kind == "activation"}


def _batches(probe: Probe) -> int:
    """Batches that hold `_SAMPLES` samples."""
    return int(np.searchsorted(np.cumsum(probe.sizes), min(_SAMPLES, probe.n))) + 1


def _pairs(proto: ModelProto) -> dict[str, tuple[str, ...]]:
    """Outputs of the pairs of each quantized activation, by its name."""
    quantizers = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    found: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantizers:
            found.setdefault(quantizers[node.input[0]], []).append(node.output[0])
    return {tensor: tuple(ends) for tensor, ends in found.items()}


def _without_pairs(proto: ModelProto, pairs: Mapping[str, Iterable[str]]) -> ModelProto:
    """A copy in which these pairs are passed by."""
    result = ModelProto()
    result.CopyFrom(proto)
    raw = {end: tensor for tensor, ends in pairs.items() for end in ends}
    for node in result.graph.node:
        for slot, name in enumerate(node.input):
            if name in raw:
                node.input[slot] = raw[name]
    outputs = {value.name for value in result.graph.output}
    if not outputs & raw.keys():
        remove_dead(result)
    return result


def _layer_names(proto: ModelProto, weights: Collection[str]) -> dict[str, str]:
    """Layer that reads each of these initializers."""
    readers: dict[str, str] = {}
    for node in proto.graph.node:
        readers.update({name: _name(node) for name in node.input if name in weights})
    return readers


def _name(node: NodeProto) -> str:
    return str(node.name or node.output[0])
