"""Small graphs, one for each rule of Q/DQ placement; large enough that no size limit leaves their layers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


class Sketch:
    """A graph in the making: nodes are added in order, tensors are called as their nodes."""

    def __init__(self, *shape: int | str, opset: int = 17) -> None:
        self.shape, self.opset = shape, opset
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []
        self.rng = np.random.default_rng(len(shape) + 5)

    def const(self, name: str, value: object, dtype: type = np.float32) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.const(name, self.rng.standard_normal(shape) / np.sqrt(fan_in))

    def add(self, op_type: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, name: str, source: str, n_in: int, n_out: int, kernel: int = 3, **attributes: object) -> str:
        group = int(str(attributes.get("group", 1)))
        weight = self.weight(f"{name}.w", n_out, n_in // group, kernel, kernel)
        bias = self.weight(f"{name}.b", n_out)
        return self.add("Conv", name, source, weight, bias, pads=[kernel // 2] * 4, **attributes)

    def dense(self, name: str, source: str, n_in: int, n_out: int) -> str:
        """MatMul and Add, as PyTorch exports a linear layer of three axes."""
        product = self.add("MatMul", name, source, self.weight(f"{name}.w", n_in, n_out))
        return self.add("Add", f"{name}.bias", self.weight(f"{name}.b", n_out), product)

    def norm(self, name: str, source: str, n: int) -> str:
        scale, shift = self.const(f"{name}.s", np.ones(n)), self.const(f"{name}.b", np.zeros(n))
        return self.add("LayerNormalization", name, source, scale, shift, axis=-1)

    def model(self, *outputs: str) -> ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "sketch",
            [value("x", TensorProto.FLOAT, self.shape)],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.stored,
        )
        for output in graph.output:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)
        return _with_output_shapes(proto)


def _with_output_shapes(proto: ModelProto) -> ModelProto:
    """onnx's checker wants the rank of outputs."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(proto)
    for output, known in zip(proto.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(known)
    return proto


def residual() -> ModelProto:
    """The skip branch of a residual addition is read by nothing else."""
    s = Sketch("n", 16, 8, 8)
    stem = s.add("Relu", "stem.relu", s.conv("stem", "x", 16, 16))
    skip = s.add("Sigmoid", "skip", stem)
    body = s.conv("second", s.add("Relu", "first.relu", s.conv("first", stem, 16, 16)), 16, 16)
    return s.model(s.conv("last", s.add("Relu", "out", s.add("Add", "sum", body, skip)), 16, 16))


def residual_downsample(*, swapped: bool = False) -> ModelProto:
    """Both branches end in a convolution; the one of two layers fuses with the addition."""
    s = Sketch("n", 16, 8, 8)
    stem = s.add("Relu", "stem.relu", s.conv("stem", "x", 16, 16))
    short = s.conv("shortcut", stem, 16, 32, 1, strides=[2, 2])
    body = s.conv("second", s.add("Relu", "first.relu", s.conv("first", stem, 16, 32, strides=[2, 2])), 32, 32)
    branches = (short, body) if swapped else (body, short)
    return s.model(s.conv("last", s.add("Relu", "out", s.add("Add", "sum", *branches)), 32, 16))


def residual_sum_scaled() -> ModelProto:
    """A Sum of two in place of the Add, behind a convolution with a scale and a shift that were not folded."""
    s = Sketch("n", 16, 8, 8)
    stem = s.add("Tanh", "stem.tanh", s.conv("stem", "x", 16, 16))
    skip = s.add("Sigmoid", "skip", stem)
    scaled = s.add("Mul", "scaled", s.conv("body", stem, 16, 16), s.const("scale", np.full((16, 1, 1), 0.5)))
    shifted = s.add("Add", "shifted", scaled, s.const("shift", np.full((16, 1, 1), 0.1)))
    return s.model(s.conv("last", s.add("Sum", "sum", shifted, skip), 16, 16))


def concat() -> ModelProto:
    """Branches of different ranges; one of them feeds a convolution of its own besides the Concat."""
    s = Sketch("n", 16, 8, 8)
    narrow = s.add("Sigmoid", "narrow", s.conv("left", "x", 16, 16))
    wide = s.add("Mul", "wide", s.conv("right", "x", 16, 16), s.const("eight", 8.0))
    own = s.conv("own", narrow, 16, 16)
    joined = s.add("Concat", "joined", narrow, wide, axis=1)
    return s.model(s.add("Add", "y", s.conv("after", joined, 32, 16), s.add("Tanh", "tanh", own)))


def concat_plain() -> ModelProto:
    """Branches that nothing but the Concat reads: one pair, behind it."""
    s = Sketch("n", 16, 8, 8)
    left = s.add("Relu", "left.relu", s.conv("left", "x", 16, 16))
    right = s.add("Relu", "right.relu", s.conv("right", "x", 16, 16, 1))
    joined = s.add("Concat", "joined", left, right, axis=1)
    return s.model(s.conv("after", s.add("MaxPool", "pool", joined, kernel_shape=[2, 2], strides=[2, 2]), 32, 16))


def pooled() -> ModelProto:
    """Layers before and behind a MaxPool whose output has a smaller range than its input."""
    s = Sketch("n", 16, 8, 8)
    factors = s.const("factors", np.repeat([0.1, 0.5], 8).reshape(16, 1, 1))
    source = s.add("Tanh", "source", s.add("Mul", "scaled", s.conv("first", "x", 16, 16), factors))
    before = s.conv("before", source, 16, 16)
    pool = s.add("MaxPool", "pool", source, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    behind = s.conv("behind", s.add("Slice", "half", pool, *_slice(s)), 8, 16)
    return s.model(s.add("Sigmoid", "y1", before), s.add("Sigmoid", "y2", behind))


def _slice(s: Sketch) -> Sequence[str]:
    """The first 8 channels."""
    parts = {"starts": [0], "ends": [8], "axes": [1]}
    return [s.const(f"half.{name}", value, np.int64) for name, value in parts.items()]


def moved() -> ModelProto:
    """A tensor that a layer reads, and that another reads reshaped and transposed."""
    s = Sketch("n", 32, 16)
    hidden = s.add("Tanh", "hidden", s.dense("first", "x", 16, 32))
    straight = s.dense("straight", hidden, 32, 16)
    turned = s.add("Transpose", "turned", hidden, perm=[0, 2, 1])
    shaped = s.add("Reshape", "shaped", turned, s.const("shape", [0, 16, 64], np.int64))
    return s.model(straight, s.dense("behind", shaped, 64, 16))


def depthwise() -> ModelProto:
    s = Sketch("n", 16, 8, 8)
    wide = s.add("Clip", "clip", s.conv("expand", "x", 16, 32, 1), s.const("low", 0.0), s.const("high", 6.0))
    return s.model(s.conv("project", s.add("Relu", "relu", s.conv("depth", wide, 32, 32, group=32)), 32, 16, 1))


def grouped() -> ModelProto:
    s = Sketch("n", 32, 8, 8)
    return s.model(s.conv("grouped", "x", 32, 64, group=2))


def one_axis() -> ModelProto:
    s = Sketch("n", 16, 40)
    weight, bias = s.weight("w", 24, 16, 5), s.weight("b", 24)
    return s.model(s.add("Conv", "conv1d", "x", weight, bias, pads=[2, 2]))


def upsampling(*, group: int = 1) -> ModelProto:
    """ConvTranspose, whose weight is [in, out / group, h, w]: a scale for each channel on axis 1."""
    s = Sketch("n", 32, 4, 4)
    weight = s.weight("up.w", 32, 48 // group, 2, 2)
    bias = s.weight("up.b", 48)
    return s.model(s.add("ConvTranspose", "up", "x", weight, bias, strides=[2, 2], group=group))


def transposed_gemm() -> ModelProto:
    """The same weight as [N, K] and as [K, N]: channels on axis 0 and on axis 1."""
    s = Sketch("n", 32)
    hidden = s.add("Gemm", "first", "x", s.weight("w", 32, 32), s.weight("b", 32), transB=1)
    return s.model(s.add("Gemm", "second", s.add("Tanh", "tanh", hidden), "w"))


def weight_first() -> ModelProto:
    """Products whose constant is the first operand: channels are its rows."""
    s = Sketch(32, 24)
    hidden = s.add("MatMul", "first", s.weight("w1", 40, 32), "x")
    turned = s.add("Gemm", "second", s.weight("w2", 40, 16), s.add("Tanh", "tanh", hidden), transA=1)
    return s.model(turned)


def shared_weight() -> ModelProto:
    s = Sketch("n", 16, 8, 8)
    weight = s.weight("w", 16, 16, 3, 3)
    first = s.add("Relu", "relu", s.add("Conv", "first", "x", weight, pads=[1, 1, 1, 1]))
    return s.model(s.add("Conv", "second", first, weight, pads=[1, 1, 1, 1]))


def dead_channels() -> ModelProto:
    s = Sketch("n", 16, 8, 8)
    values = s.rng.standard_normal((16, 16, 3, 3)) * 0.1
    values[[0, 7]] = 0.0
    return s.model(s.add("Conv", "conv", "x", s.const("w", values), s.weight("b", 16), pads=[1, 1, 1, 1]))


def transformer(*, opset: int = 17, tokens: int = 20) -> ModelProto:
    """A block of a vision transformer as PyTorch exports it: one product for query, key and value; erf Gelu."""
    s = Sketch("n", tokens, 64, opset=opset)
    qkv = s.dense("qkv", s.norm("norm1", "x", 64), 64, 192)
    split = s.const("split", [64, 64, 64], np.int64)
    s.nodes.append(helper.make_node("Split", [qkv, split], ["q", "k", "v"], name="parts", axis=2))
    shape = s.const("heads", [0, 0, 2, 32], np.int64)
    q, k, v = (s.add("Reshape", f"{part}.heads", part, shape) for part in "qkv")
    q, v = (s.add("Transpose", f"{part}.t", part, perm=[0, 2, 1, 3]) for part in (q, v))
    k = s.add("Transpose", "k.t", k, perm=[0, 2, 3, 1])
    scaled = s.add("Mul", "scaled", q, s.const("root", 32**-0.5))
    attention = s.add("Softmax", "attention", s.add("MatMul", "scores", scaled, k), axis=-1)
    mixed = s.add("Transpose", "mixed.t", s.add("MatMul", "mixed", attention, v), perm=[0, 2, 1, 3])
    flat = s.add("Reshape", "flat", mixed, s.const("flat.shape", [0, 0, 64], np.int64))
    stream = s.add("Add", "stream1", "x", s.dense("out", flat, 64, 64))
    hidden = s.dense("up", s.norm("norm2", stream, 64), 64, 128)
    erf = s.add("Erf", "erf", s.add("Div", "div", hidden, s.const("root2", 2**0.5)))
    gelu = s.add(
        "Mul", "gelu", s.add("Mul", "half", hidden, s.const("0.5", 0.5)), s.add("Add", "1+", erf, s.const("1", 1.0))
    )
    return s.model(s.add("Add", "stream2", stream, s.dense("down", gelu, 128, 64)))


GRAPHS: dict[str, Callable[[], ModelProto]] = {
    "residual": residual,
    "residual downsample": residual_downsample,
    "residual Sum": residual_sum_scaled,
    "Concat": concat,
    "Concat alone": concat_plain,
    "pooling and slicing": pooled,
    "transposing and reshaping": moved,
    "depthwise": depthwise,
    "groups": grouped,
    "Conv of one axis": one_axis,
    "ConvTranspose": upsampling,
    "ConvTranspose with groups": lambda: upsampling(group=4),
    "Gemm transposed": transposed_gemm,
    "weight first": weight_first,
    "shared weight": shared_weight,
    "dead channels": dead_channels,
    "transformer": transformer,
}
