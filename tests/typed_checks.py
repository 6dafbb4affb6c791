"""The promises that every strongly typed graph keeps, and graphs that make them hard to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference
from qdq_graphs import Sketch

from quantlab.graph.half import FORMATS
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.model import Model, Optimization, open_session
from quantlab.graph.typed import Typed
from quantlab.precision import Precision

Feed = dict[str, NDArray[np.generic]]

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def check_typed(original: ModelProto, typed: Typed, precision: Precision) -> None:
    """A valid graph with the original's borders, and no cast that could be saved."""
    proto = typed.proto
    onnx.checker.check_model(proto, full_check=True)
    for before, after in ((original.graph.input, proto.graph.input), (original.graph.output, proto.graph.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in before] == [
            (v.name, v.type.tensor_type.elem_type) for v in after
        ]
    graph = proto.graph
    index = GraphIndex(graph, shape_inference.infer_shapes(proto, strict_mode=True).graph)
    assert len({node.name for node in graph.node}) == len(graph.node)
    for node in graph.node:
        if node.name in typed.kept:
            assert not any(index.elem_type(name) in HALVES for name in node.output if name), node.name
    casts = [node for node in graph.node if node.op_type == "Cast"]
    floats = (TensorProto.FLOAT, FORMATS[precision].onnx_type)
    made: Counter[tuple[str, int]] = Counter()
    for node in casts:
        source, target = index.elem_type(node.input[0]), index.elem_type(node.output[0])
        assert source != target, f"{node.name} changes nothing"
        assert index.uses(node.output[0]) > 0, f"nothing reads {node.output[0]}"
        made[node.input[0], target] += 1
        before = index.producer.get(node.input[0])
        if before is not None and before.op_type == "Cast" and {source, target} == set(floats):
            assert index.elem_type(before.input[0]) != target, f"{before.name} and {node.name} undo each other"
    assert set(made.values()) <= {1}, "one cast serves all readers"
    used = {name for node in graph.node for name in (*node.input, *implicit_inputs(node))}
    used |= {value.name for value in graph.output}
    assert {tensor.name for tensor in graph.initializer} <= used, "nothing is stored for nobody"
    assert set(typed.kept) <= {node.name for node in graph.node}


def extremes(proto: ModelProto, inputs: Feed) -> dict[str, float]:
    """Largest finite magnitude of every float32 tensor over one feed."""
    names = [name for node in proto.graph.node for name in node.output if name]
    session = open_session(Model.of(proto), threads=1, outputs=names)
    present = [entry.name for entry in session.get_outputs()]
    values = dict(zip(present, session.run(present, inputs), strict=True)) | inputs
    return {
        name: float(np.max(np.abs(array[np.isfinite(array)]), initial=0))
        for name, array in values.items()
        if array.dtype == np.float32
    }


def run(proto: ModelProto, inputs: Feed, optimize: Optimization = Optimization.ALL) -> list[NDArray[np.generic]]:
    return list(open_session(Model.of(proto), threads=1, optimize=optimize).run(None, inputs))


def value(name: str, shape: list[int | str] | None, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def layer_norm(*, epsilon: float = 1e-5, power: bool = True, tokens: int = 6) -> ModelProto:
    """Layer normalization written out, as exporters below opset 17 write it, between two products."""
    s = Sketch("n", tokens, 32)
    hidden = s.add("MatMul", "first", "x", s.weight("w1", 32, 32))
    mean = s.add("ReduceMean", "mean", hidden, axes=[-1])
    centred = s.add("Sub", "centred", hidden, mean)
    square = s.add("Pow", "square", centred, s.const("two", 2.0)) if power else s.add("Mul", "square", centred, centred)
    variance = s.add("ReduceMean", "variance", square, axes=[-1])
    root = s.add("Sqrt", "root", s.add("Add", "guarded", variance, s.const("epsilon", epsilon)))
    scaled = s.add("Mul", "scaled", s.add("Div", "normal", centred, root), s.const("gamma", np.linspace(0.5, 2, 32)))
    return s.model(s.add("MatMul", "second", scaled, s.weight("w2", 32, 8)))


def rms_norm() -> ModelProto:
    s = Sketch("n", 6, 32)
    hidden = s.add("MatMul", "first", "x", s.weight("w1", 32, 32))
    mean = s.add("ReduceMean", "mean", s.add("Pow", "square", hidden, s.const("two", 2.0)), axes=[-1])
    root = s.add("Sqrt", "root", s.add("Add", "guarded", mean, s.const("epsilon", 1e-6)))
    normal = s.add("Mul", "normal", hidden, s.add("Reciprocal", "inverse", root))
    return s.model(s.add("MatMul", "second", normal, s.weight("w2", 32, 8)))


def unit_vectors() -> ModelProto:
    """Embeddings divided by their length, which a bound of 1e-12 keeps from zero."""
    s = Sketch("n", 32)
    hidden = s.add("Gemm", "fc", "x", s.weight("w", 32, 16), s.weight("b", 16))
    length = s.add("ReduceL2", "length", hidden, axes=[-1])
    return s.model(s.add("Div", "y", hidden, s.add("Clip", "bound", length, s.const("epsilon", 1e-12))))


def shared_weight() -> ModelProto:
    """One weight for two products, one of which is to stay float32, and as an addend."""
    s = Sketch("n", 16, 16)
    weight = s.weight("w", 16, 16)
    left, right = s.add("MatMul", "left", "x", weight), s.add("MatMul", "right", "x", weight)
    return s.model(s.add("Add", "sum", s.add("Mul", "product", left, right), weight))


def branches() -> ModelProto:
    """``If``, whose branches read a tensor and a weight of the outer graph."""
    s = Sketch("n", 8)
    hidden = s.add("MatMul", "hidden", "x", s.weight("w", 8, 8))

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        inner = helper.make_node(op_type, [hidden, "w"], [f"{name}.t"], name=f"{name}.node")
        return helper.make_graph([inner], name, [], [value(f"{name}.t", None)])

    total = s.add("ReduceSum", "total", hidden, keepdims=0)
    s.add("Greater", "positive", total, s.const("zero", 0.0))
    branches = {"then_branch": branch("then", "MatMul"), "else_branch": branch("else", "Gemm")}
    chosen = s.add("If", "chosen", "positive", **branches)
    return s.model(s.add("Add", "y", chosen, hidden))


def loop() -> ModelProto:
    """``Loop`` that carries a float tensor and reads another."""
    s = Sketch(4, 8)
    hidden = s.add("MatMul", "hidden", "x", s.weight("w", 8, 8))
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", hidden], ["state.next"], name="body.add"),
            helper.make_node("Identity", ["go"], ["go.next"], name="body.go"),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", [4, 8])],
        [value("go.next", [], TensorProto.BOOL), value("state.next", [4, 8])],
    )
    count, go = s.const("count", 3, np.int64), s.const("go.first", True, np.bool_)
    carried = s.add("Loop", "carried", count, go, s.add("Relu", "start", hidden), body=body)
    s.add("MatMul", "y", carried, s.weight("w2", 8, 4))
    graph = helper.make_graph(s.nodes, "loop", [value("x", [4, 8])], [value("y", [4, 4])], s.stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def resized() -> ModelProto:
    """Scales that are also factors."""
    s = Sketch(1, 4, 6, 6)
    scales = s.const("scales", [1, 1, 4 / 3, 4 / 3])
    hidden = s.add("Resize", "resized", s.conv("conv", "x", 4, 4), "", scales, mode="linear")
    factor = s.add("Reshape", "factor", scales, s.const("shape", [1, 4, 1, 1], np.int64))
    return s.model(s.add("Mul", "y", hidden, factor))


def shapes() -> ModelProto:
    """A shape that is computed, a table that is looked up, numbers that are cast, and comparisons."""
    s = Sketch("n", 4, 8)
    hidden = s.add("MatMul", "hidden", "x", s.weight("w", 8, 8))
    first = s.add("Gather", "batch", s.add("Shape", "shape", hidden), s.const("zero", 0, np.int64))
    rest = s.const("rest", [32], np.int64)
    size = s.add("Concat", "size", s.add("Unsqueeze", "one", first, s.const("axis", [0], np.int64)), rest, axis=0)
    flat = s.add("Reshape", "flat", hidden, size)
    best = s.add("ArgMax", "best", flat, axis=1, keepdims=1)
    number = s.add("Cast", "number", best, to=TensorProto.FLOAT)
    looked = s.add("Squeeze", "looked", s.add("Gather", "row", s.weight("table", 32, 32), best), "axes1")
    s.const("axes1", [1], np.int64)
    mask = s.add("Greater", "mask", flat, s.const("limit", 0.1))
    return s.model(s.add("Where", "y", mask, s.add("Mul", "scaled", looked, number), flat))


def half_already() -> ModelProto:
    """An input and a part that are FP16, behind and in front of float32."""
    s = Sketch("n", 8)
    s.const("wh", s.rng.standard_normal((8, 8)), np.float16)
    wide = s.add("Cast", "wide", "h", to=TensorProto.FLOAT)
    hidden = s.add("Add", "hidden", s.add("MatMul", "product", "x", s.weight("w", 8, 8)), wide)
    part = s.add("MatMul", "part", s.add("Cast", "narrow", hidden, to=TensorProto.FLOAT16), "wh")
    s.model(s.add("Mul", "y", s.add("Cast", "again", part, to=TensorProto.FLOAT), hidden))
    graph = helper.make_graph(
        s.nodes, "half", [value("x", ["n", 8]), value("h", ["n", 8], TensorProto.FLOAT16)], [value("y", None)], s.stored
    )
    return _inferred(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def detector() -> ModelProto:
    """Boxes and scores to NonMaxSuppression, and the best of them by TopK."""
    s = Sketch(1, 16, 8)
    boxes = s.add("MatMul", "boxes", "x", s.weight("w1", 8, 4))
    scores = s.add("Sigmoid", "scores", s.add("MatMul", "logits", "x", s.weight("w2", 8, 3)))
    turned = s.add("Transpose", "turned", scores, perm=[0, 2, 1])
    count = s.const("count", [3], np.int64)
    limits = [s.const("iou", [0.5]), s.const("score", [0.1])]
    s.add("NonMaxSuppression", "kept", boxes, turned, count, *limits)
    s.nodes.append(helper.make_node("TopK", [scores, "three"], ["top", "where"], name="topk", axis=1))
    s.const("three", [3], np.int64)
    graph = helper.make_graph(
        s.nodes,
        "detector",
        [value("x", [1, 16, 8])],
        [value("kept", ["k", 3], TensorProto.INT64), value("top", [1, 3, 3]), value("boxes", [1, 16, 4])],
        s.stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def output_inside() -> ModelProto:
    """Outputs that other nodes read too, one that is an input, and one that is a weight."""
    s = Sketch("n", 8)
    hidden = s.add("MatMul", "hidden", "x", s.weight("w", 8, 8))
    s.add("Relu", "relu", hidden)
    s.add("MatMul", "y", "relu", "w")
    outputs = [value(name, ["n", 8]) for name in ("hidden", "relu", "y", "x")] + [value("w", [8, 8])]
    graph = helper.make_graph(s.nodes, "outputs", [value("x", ["n", 8])], outputs, s.stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def attention_mask(lowest: float = -3.4028235e38) -> ModelProto:
    """A mask of the lowest number, added to scores."""
    s = Sketch(1, 4, 4)
    mask = s.const("mask", np.triu(np.full((4, 4), lowest), 1))
    scores = s.add("MatMul", "scores", "x", s.weight("w", 4, 4))
    attention = s.add("Softmax", "attention", s.add("Add", "masked", scores, mask), axis=-1)
    return s.model(s.add("MatMul", "y", attention, s.weight("v", 4, 4)))


def endless_clip() -> ModelProto:
    """Bounds that bound nothing."""
    s = Sketch("n", 8)
    hidden = s.add("MatMul", "hidden", "x", s.weight("w", 8, 8))
    clipped = s.add("Clip", "clipped", hidden, s.const("low", 0.0), s.const("high", 3.4028235e38))
    return s.model(s.add("MatMul", "y", clipped, s.weight("w2", 8, 8)))


def recurrent() -> ModelProto:
    """LSTM with inputs left out."""
    s = Sketch(5, 1, 8)
    s.nodes.append(
        helper.make_node(
            "LSTM", ["x", s.weight("w", 1, 32, 8), s.weight("r", 1, 32, 8), "", "", s.const("h", np.zeros((1, 1, 8)))],
            ["", "last"], name="lstm", hidden_size=8,
        )
    )  # fmt: skip
    return s.model(s.add("Squeeze", "y", "last", s.const("axes", [0], np.int64)))


def pooled_image(size: int = 64) -> ModelProto:
    """A mean over many pixels."""
    s = Sketch("n", 3, size, size)
    hidden = s.add("Relu", "relu", s.conv("conv", "x", 3, 8))
    return s.model(s.add("Conv", "head", s.add("GlobalAveragePool", "pool", hidden), s.weight("w", 4, 8, 1, 1)))


def probabilities() -> ModelProto:
    """Logarithms of probabilities, and a sum of exponentials."""
    s = Sketch("n", 8)
    logits = s.add("MatMul", "logits", "x", s.weight("w", 8, 8))
    log = s.add("Log", "log", s.add("Softmax", "softmax", logits, axis=-1))
    other = s.add("LogSoftmax", "logsoftmax", logits, axis=-1)
    return s.model(s.add("Sub", "y", s.add("Mul", "both", log, other), s.add("Exp", "exp", logits)))


def moved_in_float() -> ModelProto:
    """Operators that only move, between nodes that stay float32."""
    s = Sketch("n", 4, 8)
    total = s.add("CumSum", "total", s.add("MatMul", "hidden", "x", s.weight("w", 8, 8)), s.const("axis", 1, np.int64))
    turned = s.add("Transpose", "turned", s.add("Relu", "relu", total), perm=[0, 2, 1])
    again = s.add("CumSum", "again", turned, "axis")
    return s.model(s.add("MatMul", "y", again, s.weight("w2", 4, 4)))


def _inferred(proto: ModelProto) -> ModelProto:
    inferred = shape_inference.infer_shapes(proto)
    for output, known in zip(proto.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(known)
    return proto


ODD_GRAPHS: dict[str, Callable[[], ModelProto]] = {
    "LayerNorm written out": layer_norm,
    "LayerNorm with Mul": lambda: layer_norm(power=False),
    "RMSNorm written out": rms_norm,
    "unit vectors": unit_vectors,
    "shared weight": shared_weight,
    "If": branches,
    "Loop": loop,
    "Resize": resized,
    "shapes and integers": shapes,
    "FP16 already": half_already,
    "detector": detector,
    "outputs inside": output_inside,
    "attention mask": attention_mask,
    "infinite attention mask": lambda: attention_mask(-np.inf),
    "endless Clip": endless_clip,
    "LSTM": recurrent,
    "mean of many": pooled_image,
    "probabilities": probabilities,
    "moves in float32": moved_in_float,
}


def feed(proto: ModelProto, n: int = 3, scale: float = 1.0) -> Feed:
    rng = np.random.default_rng(3)
    result: Feed = {}
    for entry in proto.graph.input:
        shape = [dim.dim_value or n for dim in entry.type.tensor_type.shape.dim]
        kind = np.float16 if entry.type.tensor_type.elem_type == TensorProto.FLOAT16 else np.float32
        result[entry.name] = (rng.standard_normal(shape) * scale).astype(kind)
    return result


def stored(proto: ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
