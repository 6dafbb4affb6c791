"""The ONNX graph whose types state a variant's precision: what backends get that obey the types of a graph."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping
from types import MappingProxyType

from quantlab.engines.artifact import quantized_graph
from quantlab.engines.confirmation import UNTYPED
from quantlab.engines.variant import Variant
from quantlab.graph.half import FORMATS
from quantlab.graph.layers import excluded_layers
from quantlab.graph.qdq import Quantized
from quantlab.graph.typed import extremes_of, to_typed
from quantlab.precision import Precision

_NOTHING: Mapping[str, str] = MappingProxyType({})


def typed_graph_of(variant: Variant, keep: Mapping[str, str] = _NOTHING) -> Quantized:
    """The graph whose types state the variant's precision.

    An excluded layer has the next wider precision: FP16 in INT8 with FP16 elsewhere, else FP32.

    Args:
        variant: What is to be built.
        keep: Names of further nodes that 16-bit graphs keep in FP32, with the reason.

    Raises:
        ConfigError: If a table is needed and missing, or an exclusion matches no layer.
        ModelError: If weights cannot be read or the graph cannot be converted.
    """
    if variant.precision in UNTYPED:
        return Quantized(variant.prepared.model.proto, (), (), {}, ())
    if variant.precision in FORMATS:
        source = variant.prepared.model.proto
        excluded = excluded_layers(source.graph, variant.target, variant.exclude)
        return _typed(variant, Quantized(source, (), tuple(sorted(excluded)), {}, ()), variant.precision, keep)
    made = quantized_graph(variant)
    return _typed(variant, made, Precision.FP16, keep) if variant.precision is Precision.INT8_FP16 else made


def _typed(variant: Variant, made: Quantized, precision: Precision, keep: Mapping[str, str]) -> Quantized:
    """A graph with 16 bits where it was float32, and the account of both."""
    excluded = () if variant.precision is Precision.INT8_FP16 else made.excluded
    patterns = [glob.escape(name) for name in (*excluded, *keep)]
    extremes = extremes_of(variant.ranges) if variant.ranges is not None else None
    typed = to_typed(variant.model.with_proto(made.proto), precision, extremes=extremes, keep=patterns)
    float32 = {name: keep.get(name, reason) for name, reason in typed.kept.items() if name not in excluded}
    degradations = (*made.degradations, *typed.degradations)
    return dataclasses.replace(made, proto=typed.proto, degradations=degradations, float32=float32)
