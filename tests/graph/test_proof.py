from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from quantlab.graph.half import to_half
from quantlab.graph.model import Model, load_model
from quantlab.graph.prepare import prepare
from quantlab.graph.proof import prove
from quantlab.graph.tf32 import to_tf32
from quantlab.precision import Precision


def _qdq(build, *, both=True, kind=np.int8):
    """Two MatMuls; the first one quantized, the second only if ``both``."""
    make = helper.make_node
    onnx_kind = TensorProto.INT8 if kind is np.int8 else TensorProto.UINT8
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        make("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        make("DequantizeLinear", ["w1q", "s"], ["w1"]),
        make("MatMul", ["xd", "w1"], ["h"], name="first"),
        make("QuantizeLinear", ["h", "s", "z"], ["hq"]),
        make("DequantizeLinear", ["hq", "s", "z"], ["hd"]),
        make("DequantizeLinear", ["w2q", "s"], ["w2d"]),
        make("MatMul", ["hd" if both else "h", "w2d" if both else "w2"], ["y"], name="second"),
    ]
    rng = build.rng
    weights = [
        build.const("s", 0.05),
        build.const("z", 0, kind),
        build.const("w1q", rng.integers(-127, 128, (4, 4)), np.int8),
        build.const("w2q", rng.integers(-127, 128, (4, 4)), np.int8),
        build.weight("w2", 4, 4),
    ]
    assert onnx_kind
    return build.model(nodes, [build.value("x", ["n", 4])], [build.value("y", ["n", 4])], weights)


def test_fp32(build):
    proof = prove(Model.of(build.cnn()))
    assert proof.precision is Precision.FP32
    assert (proof.weighted_layers, proof.quantized_layers) == (3, 0)
    assert proof.text == "3 of 3 weighted layers FP32"


@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP16, Precision.BF16])
def test_emulations_are_recognized(build, precision):
    model = prepare(Model.of(build.cnn())).model
    proto = to_tf32(model) if precision is Precision.TF32 else to_half(model, precision)[0]
    proof = prove(model.with_proto(proto))
    assert proof.precision is precision
    assert {found for _, found in proof.layers} == {precision}


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_int8(build, kind):
    proof = prove(_qdq(build, kind=kind))
    assert proof.precision is Precision.INT8
    assert (proof.weighted_layers, proof.quantized_layers) == (2, 2)


def test_partly_int8_names_the_rest(build):
    proof = prove(_qdq(build, both=False))
    assert proof.precision is Precision.INT8
    assert proof.text == "1 of 2 weighted layers INT8; fp32: second"
    assert proof.named(Precision.FP32) == ("second",)


def _without_pairs(proto, *positions):
    """Nodes read the floating-point activation in front of the pair."""
    sources = {"xd": "x", "hd": "h"}
    for position in positions:
        node = proto.graph.node[position]
        node.input[0] = sources[node.input[0]]
    return proto


def test_weight_only_quantization_is_not_int8(build):
    proof = prove(_without_pairs(_qdq(build), 3, 7))
    assert proof.precision is Precision.INT8_WEIGHTS
    assert proof.text == "2 of 2 weighted layers with INT8 weights, activations float"
    assert proof.quantized_layers == 0


def test_weight_only_quantization_of_some_layers(build):
    """The second layer's weight is float, and so is what it reads."""
    proof = prove(_without_pairs(_qdq(build, both=False), 3))
    assert proof.precision is Precision.INT8_WEIGHTS
    assert proof.text == "1 of 2 weighted layers with INT8 weights, activations float; fp32: second"


def test_int8_with_a_weight_only_layer_names_it(build):
    proof = prove(_without_pairs(_qdq(build), 3))
    assert proof.precision is Precision.INT8
    assert proof.text == "1 of 2 weighted layers INT8; int8-weights: first"


def test_quantized_activations_with_float_weights_are_fp32(build):
    """No arithmetic and no storage is in 8 bits."""
    proto = _qdq(build)
    proto.graph.node[7].input[1] = "w2"
    assert prove(proto).named(Precision.FP32) == ("second",)


def test_a_product_of_a_pair_and_a_float_activation_is_fp32(build):
    """A dequantized activation is no stored weight."""
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        make("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        make("MatMul", ["x", "xd"], ["y"], name="product"),
    ]
    constants = [build.const("s", 0.05), build.const("z", 0, np.int8)]
    proof = prove(build.model(nodes, [build.value("x", [4, 4])], [build.value("y", [4, 4])], constants))
    assert proof.layers == (("product", Precision.FP32),)


@pytest.mark.parametrize("moved", [False, True])
def test_weights_behind_a_pair_and_a_transpose(build, moved):
    """Float weights with Q and DQ behind them, as PyTorch writes them, are stored weights too."""
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["w", "s", "z"], ["wq"]),
        make("DequantizeLinear", ["wq", "s", "z"], ["wd"]),
        *([make("Transpose", ["wd"], ["wt"], perm=[1, 0])] if moved else []),
        make("MatMul", ["x", "wt" if moved else "wd"], ["y"], name="product"),
    ]
    constants = [build.const("s", 0.05), build.const("z", 0, np.int8), build.weight("w", 4, 4)]
    proof = prove(build.model(nodes, [build.value("x", [4, 4])], [build.value("y", [4, 4])], constants))
    assert proof.precision is Precision.INT8_WEIGHTS


def test_int8_with_fp16_rest(build):
    model = Model.of(_qdq(build, both=False))
    proto, _ = to_half(prepare(model).model, Precision.FP16)
    proof = prove(proto)
    assert proof.precision is Precision.INT8_FP16
    assert "1 of 2 weighted layers INT8; fp16: second" in proof.text


def test_one_tampered_weight_breaks_the_proof(build):
    model = prepare(Model.of(build.cnn())).model
    for proto in (to_tf32(model), to_half(model, Precision.FP16)[0]):
        tensor = next(t for t in proto.graph.initializer if t.name == "w2")
        value = np.frombuffer(tensor.raw_data, np.float32).copy()
        value[0] = np.nextafter(value[0], np.float32(9))
        tensor.raw_data = value.tobytes()
        proof = prove(proto)
        assert proof.precision is None
        assert proof.text.startswith("mixed: 2 of 3")
        assert proof.named(Precision.FP32) == ("conv2",)


def test_one_missing_rounding_breaks_the_proof(build):
    model = prepare(Model.of(build.cnn())).model
    proto = to_tf32(model)
    conv = next(node for node in proto.graph.node if node.name == "conv2")
    conv.input[0] = conv.input[0].removesuffix("_tf32")
    assert prove(proto).named(Precision.FP32) == ("conv2",)


def test_splitting_with_another_constant_is_not_tf32(build):
    proto = to_tf32(Model.of(build.mlp()))
    constant = next(t for t in proto.graph.initializer if t.name == "tf32_splitter")
    constant.raw_data = np.float32(4097).tobytes()
    assert prove(proto).precision is Precision.FP32


def test_layers_in_subgraphs_are_counted(build):
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="inner")], "g", [], [build.value("t", None)]
    )
    proto = build.model(
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        [build.value("c", [], TensorProto.BOOL), build.value("x", [2, 4])],
        [build.value("y", None)],
        [build.weight("w", 4, 4)],
    )
    proof = prove(proto)
    assert proof.layers == (("inner", Precision.FP32), ("inner", Precision.FP32))


def test_external_weights_are_read(build, save_external):
    assert prove(load_model(save_external(build.mlp()))).precision is Precision.FP32


def test_no_weighted_layers(build):
    proto = build.model([helper.make_node("Relu", ["x"], ["y"])], [build.value("x", [2])], [build.value("y", [2])])
    proof = prove(proto)
    assert (proof.precision, proof.text) == (None, "no weighted layers")
