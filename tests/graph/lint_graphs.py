"""One small graph for each lint rule: quantized by the rules of its target but for the one thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from lint_net import CHANNELS, SIZE, Net
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True, slots=True)
class Example:
    """A graph that breaks one rule.

    Attributes:
        rule: The rule.
        make: Makes the model.
        where: First name that the finding must give.
        says: Words of its message.
        target: Target to lint for.
        others: Rules that the same fault breaks as well.
    """

    rule: str
    make: Callable[[], ModelProto]
    where: str
    says: str
    target: str = "tensorrt"
    others: tuple[str, ...] = ()


def clean(target: str) -> ModelProto:
    """Two convolutions with a residual addition, quantized as the target wants."""
    net = Net(target)
    first = net.node("Relu", [net.conv(net.pair("x", "in"), "one")], "act")
    shared = net.pair(first, "mid")
    second = net.conv(shared, "two")
    if target == "tensorrt":
        total = net.node("Add", [second, shared], "add")
        return net.model(net.conv(net.pair(total, "end"), "three"))
    total = net.node("Add", [net.pair(second, "branch"), shared], "add")
    return net.model(net.pair(total, "end"))


def one_pair(**arguments: object) -> ModelProto:
    """A convolution whose input pair has these parameters."""
    net = Net()
    return net.model(net.conv(net.pair("x", "in", **arguments), "conv"))  # type: ignore[arg-type]


def one_weight(values: NDArray[np.float32] | None = None, axis: int | None = 0, zero: int = 0) -> ModelProto:
    net = Net()
    values = net.values(CHANNELS, CHANNELS, 3, 3) if values is None else values
    data = net.pair("x", "in")
    return net.model(net.conv(data, "conv", net.weight("w", values, axis, zero)))


def codes_and_zero(zero_type: str) -> ModelProto:
    net = Net()
    data = net.quantizer("QuantizeLinear", "x", "q", 0.1, 0, "int8")
    return net.model(net.conv(net.quantizer("DequantizeLinear", data, "dq", 0.1, 0, zero_type), "conv"))


def no_zero_point() -> ModelProto:
    return one_pair(zero=None)


def computed_scale() -> ModelProto:
    net = Net()
    scale = net.node("ReduceMax", ["x"], "range", keepdims=0)
    zero = net.store("zero", 0, "int8")
    codes = net.node("QuantizeLinear", ["x", scale, zero], "q")
    return net.model(net.conv(net.node("DequantizeLinear", [codes, scale, zero], "dq"), "conv"))


def placeholders() -> ModelProto:
    net = Net()
    tensor = "x"
    for number in range(4):
        tensor = net.conv(net.pair(tensor, f"in{number}", scale=1.0), f"conv{number}")
    return net.model(tensor)


def uneven() -> NDArray[np.float32]:
    """A weight whose first channel is a hundred times smaller than the others."""
    values = Net().values(CHANNELS, CHANNELS, 3, 3)
    values[0] /= 100
    return values


def float_weight() -> ModelProto:
    net = Net()
    weight = net.store("w", net.values(CHANNELS, CHANNELS, 3, 3))
    return net.model(net.conv(net.pair("x", "in"), "conv", weight))


def float_data() -> ModelProto:
    net = Net()
    return net.model(net.conv("x", "conv"))


def float_conv(name: str = "conv", source: str = "x", values: NDArray[np.float32] | None = None) -> Net:
    net = Net()
    values = net.values(CHANNELS, CHANNELS, 3, 3) if values is None else values
    net.conv(source, name, net.store(f"{name}_w", values))
    return net


def half_quantized() -> ModelProto:
    net = float_conv("plain")
    return net.model(net.layer("plain_out", "conv"))


def quantized_nothing() -> ModelProto:
    net = float_conv("plain")
    return net.model(net.node("Relu", [net.pair("plain_out", "out")], "act2"))


def fed_weight() -> ModelProto:
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [CHANNELS, CHANNELS, 3, 3]))
    return net.model(net.conv("x", "conv", "w"))


def int32_bias() -> ModelProto:
    net = Net()
    codes = net.store("codes", np.arange(CHANNELS), "int32")
    data = net.pair("x", "in")
    bias = net.quantizer("DequantizeLinear", codes, "bias_dq", np.full(CHANNELS, 0.01), None, "int32", 0)
    return net.model(net.conv(data, "conv", bias=bias))


def wrong_bias_scale() -> ModelProto:
    net = Net("onnxruntime")
    codes = net.store("codes", np.arange(CHANNELS), "int32")
    data = net.pair("x", "in")
    bias = net.quantizer("DequantizeLinear", codes, "bias_dq", np.full(CHANNELS, 0.01), None, "int32", 0)
    return net.model(net.conv(data, "conv", bias=bias))


def float_bias() -> ModelProto:
    net = Net("onnxruntime")
    return net.model(net.conv(net.pair("x", "in"), "conv", bias=net.store("b", net.values(CHANNELS))))


def minus_128() -> ModelProto:
    proto = one_weight()
    (codes,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w_codes")
    values = numpy_helper.to_array(codes).copy()
    values[0, 0, 0, :2] = -128
    codes.CopyFrom(numpy_helper.from_array(values, codes.name))
    return proto


def dead() -> ModelProto:
    values = Net().values(CHANNELS, CHANNELS, 3, 3)
    values[[3, 5]] = 0
    return one_weight(values)


def outliers() -> ModelProto:
    values = Net().values(CHANNELS, CHANNELS, 3, 3)
    values[7] *= 1e-3
    values[7, 0, 0, 0] = 9.0
    return float_conv(values=values).model("conv_out")


def small_gemm() -> ModelProto:
    net = Net()
    net.inputs[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    data = net.pair("x", "in")
    return net.model(net.node("Gemm", [data, net.weight("w", net.values(64, 10), 1)], "fc"))


def different_pair() -> ModelProto:
    net = Net()
    codes = net.quantizer("QuantizeLinear", "x", "q", 0.1, 0, "int8")
    return net.model(net.conv(net.quantizer("DequantizeLinear", codes, "dq", 0.2, 0, "int8"), "conv"))


def twice() -> ModelProto:
    net = Net()
    return net.model(net.conv(net.pair(net.pair("x", "one"), "two"), "conv"))


def codes_at_large() -> ModelProto:
    net = Net()
    codes = net.quantizer("QuantizeLinear", "x", "q", 0.1, 0, "int8")
    data = net.quantizer("DequantizeLinear", codes, "dq", 0.1, 0, "int8")
    floats = net.node("Cast", [codes], "cast", to=TensorProto.FLOAT)
    return net.model(net.conv(data, "conv"), floats)


def codes_fed() -> ModelProto:
    net = Net()
    net.inputs[0] = helper.make_tensor_value_info("x", TensorProto.INT8, ["n", CHANNELS, SIZE, SIZE])
    return net.model(net.conv(net.quantizer("DequantizeLinear", "x", "dq", 0.1, 0, "int8"), "conv"))


def two_scales(second: float) -> ModelProto:
    net = Net()
    one = net.conv(net.pair("x", "in1", scale=0.1), "one")
    two = net.conv(net.pair("x", "in2", scale=second), "two")
    return net.model(one, two)


def unused_pair() -> ModelProto:
    net = Net()
    output = net.layer("x", "conv")
    net.pair(output, "rest")
    return net.model(output)


def float_output() -> ModelProto:
    net = Net("onnxruntime")
    return net.model(net.node("Sigmoid", [net.conv(net.pair("x", "in"), "conv")], "act"))


def residual(quantize_branch: bool, quantize_skip: bool) -> ModelProto:
    """Conv, then Conv and a skip connection into an Add that is quantized behind."""
    net = Net()
    first = net.node("Sigmoid", [net.layer("x", "one")], "act")
    shared = net.pair(first, "mid")
    branch = net.conv(shared, "two")
    branch = net.pair(branch, "branch") if quantize_branch else branch
    total = net.node("Add", [branch, shared if quantize_skip else first], "add")
    return net.model(net.layer(net.node("Relu", [total], "act2"), "three"))


def inside(kind: str) -> ModelProto:
    net = Net()
    pair = net.pair(net.layer("x", "one"), "between")
    return net.model(net.node(kind, [pair], "act"))


def concat() -> ModelProto:
    net = Net()
    parts = [net.pair(net.node("Sigmoid", ["x"], f"act{i}"), f"part{i}", scale=0.1 * (i + 1)) for i in range(2)]
    joined = net.node("Concat", parts, "concat", axis=1)
    weight = net.weight("w", net.values(CHANNELS, 2 * CHANNELS, 3, 3))
    return net.model(net.conv(net.pair(joined, "joined", scale=0.2), "conv", weight))


def pool() -> ModelProto:
    net = Net()
    pooled = net.node("MaxPool", [net.pair("x", "in")], "pool", kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.layer(pooled, "conv"))


def softmax() -> ModelProto:
    net = Net()
    output = net.node("Sigmoid", [net.layer("x", "conv")], "act")
    return net.model(net.node("Softmax", [net.pair(output, "out")], "soft", axis=1))


def fp8_at_opset_17() -> ModelProto:
    net = Net(opset=17, ir_version=9)
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    net.stored.append(zero)
    scale = net.store("scale", np.float32(0.1))
    codes = net.node("QuantizeLinear", ["x", scale, "zero"], "q")
    data = net.node("DequantizeLinear", [codes, scale, "zero"], "dq")
    return net.model(net.node("Sigmoid", [data], "act"))


def fp8_at_ir_8() -> ModelProto:
    proto = fp8_at_opset_17()
    proto.opset_import[0].version = 19
    proto.ir_version = 8
    return proto


def integer() -> ModelProto:
    net = Net()
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"], name="dynamic"))
    return net.model(net.node("DequantizeLinear", ["codes", "scale", "zero"], "dq"))


def microsoft() -> ModelProto:
    net = Net()
    return net.model(net.node("Gelu", ["x"], "gelu", domain="com.microsoft"))


def custom() -> ModelProto:
    net = Net()
    return net.model(net.node("Magic", ["x"], "magic", domain="example.plugins"))


def norm(**attributes: object) -> Net:
    net = float_conv()
    parts = [net.store(f"bn_{part}", np.ones(CHANNELS, np.float32)) for part in ("scale", "shift", "mean", "var")]
    net.node("BatchNormalization", ["conv_out", *parts], "bn", **attributes)
    return net


def training() -> ModelProto:
    net = Net()
    parts = [net.store(f"bn_{part}", np.ones(CHANNELS, np.float32)) for part in ("scale", "shift", "mean", "var")]
    net.nodes.append(helper.make_node("BatchNormalization", ["x", *parts], ["y", "m", "v"], name="bn", training_mode=1))
    return net.model("y")


def clip() -> ModelProto:
    net = Net()
    bound = net.node("ReduceMin", ["x"], "bound", keepdims=0)
    return net.model(net.node("Clip", ["x", bound], "clip"))


def free_size() -> ModelProto:
    net = Net()
    net.inputs[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, "height", "width"])
    return net.model(net.node("Relu", ["x"], "act"))


def listed_weight() -> ModelProto:
    net = float_conv()
    net.inputs.append(helper.make_tensor_value_info("conv_w", TensorProto.FLOAT, [CHANNELS, CHANNELS, 3, 3]))
    return net.model("conv_out")


def control_flow() -> ModelProto:
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    weight = net.store("w", net.values(CHANNELS, CHANNELS, 3, 3))
    branches = []
    for name, nodes in (
        ("then", [helper.make_node("Conv", ["x", weight], ["then_out"], name="inner", pads=[1, 1, 1, 1])]),
        ("else", [helper.make_node("Relu", ["x"], ["else_out"], name="other")]),
    ):
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, name, [], [output]))
    return net.model(net.node("If", ["flag"], "if", then_branch=branches[0], else_branch=branches[1]))


def idle_node() -> ModelProto:
    net = float_conv()
    net.node("Sigmoid", ["conv_out"], "idle")
    return net.model("conv_out")


def idle_weight() -> ModelProto:
    net = float_conv()
    net.store("rest", np.zeros(3, np.float32))
    return net.model("conv_out")


EXAMPLES = (
    Example("zero-point-not-zero", lambda: one_pair(zero=3), "in_q", "zero-point 3, int8"),
    Example("zero-point-not-zero", lambda: one_weight(zero=1), "w_dq", "zero-point 1 (16 of 16 are not 0)"),
    Example("quantized-type", lambda: one_pair(dtype="uint8"), "in_q", "uint8"),
    Example("zero-point-missing", no_zero_point, "in_q", "the type is uint8"),
    Example("zero-point-mismatch", lambda: codes_and_zero("uint8"), "dq", "zero-point uint8, quantized tensor int8"),
    Example(
        "zero-point-mismatch",
        lambda: one_pair(zero=np.zeros(2)),
        "in_q",
        "scale of shape (), zero-point of shape (2,)",
    ),
    Example("scale-not-usable", lambda: one_pair(scale=0.0), "in_q", "of 1 scales: 1 zero"),
    Example("scale-not-usable", lambda: one_pair(scale=-0.5), "in_q", "1 negative"),
    Example("scale-not-usable", lambda: one_pair(scale=np.nan), "in_q", "1 NaN"),
    Example("scale-not-usable", lambda: one_pair(scale=np.inf), "in_q", "1 infinite"),
    Example("scale-subnormal", lambda: one_pair(scale=1e-40), "in_q", "1 of 1 scales, the smallest 1e-40"),
    Example("scale-not-constant", computed_scale, "q", "'range_out' is made by ReduceMax 'range'"),
    Example(
        "scale-shape",
        lambda: one_pair(scale=np.full(5, 0.1), zero=np.zeros(5)),
        "in_q",
        "5 scales for 16 elements of axis 1",
        others=("activation-per-channel",),
    ),
    Example(
        "activation-per-channel",
        lambda: one_pair(scale=np.linspace(0.1, 0.2, CHANNELS), zero=np.zeros(CHANNELS)),
        "in_q",
        "16 scales along axis 1",
    ),
    Example("scale-placeholder", placeholders, "in0_q", "4 activations have the scale 1"),
    Example("activation-signed", lambda: one_pair(), "in_q", "int8", "onnxruntime", ("bias-float",)),
    Example("opset-too-old", fp8_at_opset_17, "q", "needs opset 19, the model has 17"),
    Example("opset-too-old", fp8_at_ir_8, "q", "needs IR version 9, the model has 8"),
    Example("weight-axis", lambda: one_weight(axis=1), "conv", "along axis 1, its channels are axis 0"),
    Example(
        "weight-per-tensor", lambda: one_weight(uneven(), None), "conv", "one scale for 16 channels of a Conv; 1 use"
    ),
    Example("operand-not-quantized", float_weight, "conv", "weight 'w' is float"),
    Example("weight-only", float_data, "conv", "weight quantized, data float"),
    Example("layer-not-quantized", half_quantized, "plain", "Conv in floating point"),
    Example("no-layer-quantized", quantized_nothing, "", "2 Q/DQ nodes, none at the 1 weighted layers"),
    Example("weight-not-constant", fed_weight, "conv", "weight 'w' is a graph input"),
    Example("bias-int32", int32_bias, "bias_dq", "bias 'codes' is int32"),
    Example("bias-scale", wrong_bias_scale, "conv", "16 of 16 bias scales", "onnxruntime"),
    Example("bias-float", float_bias, "conv", "bias 'b' of a quantized Conv is float", "onnxruntime"),
    Example("weight-code-minus-128", minus_128, "conv", "2 of 2304 weights are -128"),
    Example("dead-channels", dead, "conv", "2 of 16 output channels"),
    Example("weight-outliers", outliers, "conv", "1 of 16 channels; channel 7: the largest weight is 9, 143 of 144"),
    Example("small-layer", small_gemm, "fc", "64 features to 10"),
    Example("pair-differs", different_pair, "q", "scale 0.1, zero-point 0; read with int8, scale 0.2"),
    Example("double-quantization", twice, "one_dq", "'one_dq_out' is quantized again: int8, scale 0.03"),
    Example("quantize-alone", codes_at_large, "q", "its codes go to Cast 'cast'"),
    Example("dequantize-alone", codes_fed, "dq", "it reads the graph input 'x'"),
    Example("several-scales", lambda: two_scales(0.3), "in1_q", "'x' is quantized 2 times"),
    Example("repeated-pair", lambda: two_scales(0.1), "in1_q", "'x' is quantized 2 times alike"),
    Example("unused-quantization", unused_pair, "rest_dq", "nobody uses 'rest_dq_out'"),
    Example("output-float", float_output, "conv", "output 'conv_out' of a quantized Conv is float", "onnxruntime"),
    Example("skip-not-quantized", lambda: residual(False, False), "add", "skip input 'act_out' is float"),
    Example("branch-quantized", lambda: residual(True, True), "add", "1 convolution branches"),
    Example("pair-inside-fusion", lambda: inside("Relu"), "between_dq", "between a weighted layer and Relu"),
    Example("concat-scales-differ", concat, "concat", "scales 0.1 to 0.2 at 2 of 2 inputs"),
    Example("move-scales-differ", pool, "pool", "MaxPool: int8, scale 0.03"),
    Example("sensitive-input-quantized", softmax, "soft", "the input of Softmax is quantized"),
    Example("integer-operator", integer, "dynamic", "DynamicQuantizeLinear", others=("quantized-type",)),
    Example("onnxruntime-operator", microsoft, "gelu", "com.microsoft.Gelu"),
    Example("custom-operator", custom, "magic", "example.plugins.Magic"),
    Example("batchnorm-not-folded", lambda: norm().model("bn_out"), "bn", "behind a weighted layer"),
    Example("batchnorm-training", training, "bn", "training_mode is 1"),
    Example("clip-bounds-not-constant", clip, "clip", "computed bounds: bound_out"),
    Example("dynamic-dimension", free_size, "x", "axes 2, 3 of 4 are not fixed"),
    Example("weight-is-input", listed_weight, "conv_w", "the initializer is also a graph input"),
    Example("layer-in-subgraph", control_flow, "inner", "Conv in the graph 'then'"),
    Example("unused-node", idle_node, "idle", "nobody uses the output of Sigmoid"),
    Example("unused-weight", idle_weight, "rest", "nobody uses the initializer of shape (3,)"),
)
