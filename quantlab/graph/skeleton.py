"""A model without its weights: small enough to check, infer and simplify whatever the weights' size."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import GraphProto, ModelProto

from quantlab.graph.external import is_external
from quantlab.graph.tensors import element_count

SMALL_ELEMENTS = 1024
"""Initializers up to this many elements stay: shapes, axes and scalars, which inference and folding need."""


def make_skeleton(proto: ModelProto, keep: Iterable[str] = ()) -> ModelProto:
    """Copy a model with its large initializers turned into inputs of the same name, type and shape.

    Args:
        proto: The model; not changed.
        keep: Initializers that stay, whatever their size, unless external.

    Returns:
        A model that needs no external data, with its initializers of at most `SMALL_ELEMENTS` elements. Tensors in
        subgraphs and attributes stay.
    """
    kept = set(keep)
    result = ModelProto()
    result.ir_version = proto.ir_version
    result.opset_import.extend(proto.opset_import)
    result.functions.extend(proto.functions)
    result.producer_name, result.domain = proto.producer_name, proto.domain
    result.model_version = proto.model_version
    graph = result.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    inputs = {value.name for value in proto.graph.input}
    for initializer in proto.graph.initializer:
        if not is_external(initializer) and (element_count(initializer) <= SMALL_ELEMENTS or initializer.name in kept):
            graph.initializer.append(initializer)
        elif initializer.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(initializer.name, initializer.data_type, list(initializer.dims))
            )
    return result


def restore_weights(skeleton: ModelProto, original: ModelProto) -> ModelProto:
    """Turn the inputs that `make_skeleton` made back into the original's initializers.

    Args:
        skeleton: A skeleton of ``original``, perhaps transformed; taken over and returned.
        original: Where the initializers and the list of real inputs come from.

    Returns:
        ``skeleton``, with the initializers that its nodes still use, and the original's metadata.
    """
    graph = skeleton.graph
    real = {value.name for value in original.graph.input}
    made = {value.name for value in graph.input} - real
    present = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in made]
    del graph.input[:]
    graph.input.extend(inputs)
    wanted = made | (real & {initializer.name for initializer in original.graph.initializer})
    for initializer in original.graph.initializer:
        if initializer.name in wanted and initializer.name not in present:
            graph.initializer.append(initializer)
    del skeleton.metadata_props[:]
    skeleton.metadata_props.extend(original.metadata_props)
    return skeleton


def typed_graph(proto: ModelProto) -> GraphProto:
    """A copy of the model's graph without large weights, with the type and shape of every tensor that inference finds.

    The graph itself comes back where inference fails.
    """
    skeleton = make_skeleton(proto)
    del skeleton.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(skeleton, check_type=False, strict_mode=False, data_prop=True).graph
    except Exception:  # inference is a help, not a need, and its C++ exceptions share no base class
        return proto.graph
