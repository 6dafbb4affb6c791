"""Names of runtimes, found in a graph again."""

from __future__ import annotations

import pytest
from onnx import GraphProto, TensorProto, helper

from quantlab.graph.lineage import Lineage


def graph() -> GraphProto:
    """image -> Q -> DQ -> conv -> relu -> Q -> DQ -> pool -> Cast -> out; the weight is dequantized."""
    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("QuantizeLinear", ["image", "s"], ["image_q"], name="q0"),
        make("DequantizeLinear", ["image_q", "s"], ["image_dq"], name="dq0"),
        make("DequantizeLinear", ["w8", "s"], ["w"], name="w_dq"),
        make("Conv", ["image_dq", "w"], ["c"], name="conv"),
        make("Relu", ["c"], ["r"], name="relu"),
        make("QuantizeLinear", ["r", "s"], ["r_q"], name="q1"),
        make("DequantizeLinear", ["r_q", "s"], ["r_dq"], name="dq1"),
        make("GlobalAveragePool", ["r_dq"], ["p"]),
        make("Cast", ["p"], ["out"], name="cast", to=TensorProto.FLOAT16),
    ]
    stored = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("w8", TensorProto.INT8, [1, 1, 1, 1], [3]),
    ]
    image = value("image", TensorProto.FLOAT, [1, 1, 4, 4])
    return helper.make_graph(nodes, "g", [image], [value("out", TensorProto.FLOAT16, None)], stored)


@pytest.fixture
def lineage() -> Lineage:
    return Lineage(graph())


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["conv"], ("conv",)),
        (["conv_token_12"], ("conv",)),
        (["conv_token_12_token_3"], ("conv",)),
        (["relu", "conv"], ("conv", "relu")),  # graph order
        (["r_nchwc"], ("relu",)),  # named after its output
        (["r_dq"], ("relu",)),  # a tensor behind a pair holds what was computed before it
        (["out"], ("p",)),  # a node without a name goes by its output
        (["q1", "dq1", "w_dq", "cast"], ()),
        (["nobody", "", "_token_1", "image", "s"], ()),
    ],
)
def test_names_become_layers(lineage: Lineage, names: list[str], layers: tuple[str, ...]) -> None:
    assert lineage.layers(names) == layers


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("q0", ("conv",)),  # nothing computes its input
        ("dq0", ("conv",)),
        ("w_dq", ("conv",)),
        ("q1", ("relu",)),
        ("dq1", ("p",)),
        ("cast", ("p",)),  # nobody reads its output
        ("nobody", ()),
    ],
)
def test_conversions_serve_a_layer(lineage: Lineage, name: str, served: tuple[str, ...]) -> None:
    assert lineage.around(name) == served


def test_a_name_that_only_looks_like_an_ending_is_kept() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="a_token_1"),
        helper.make_node("Relu", ["y"], ["z"], name="a"),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [1])], [value("z", TensorProto.FLOAT, [1])])
    assert Lineage(made).layers(["a_token_1"]) == ("a_token_1",)
    assert Lineage(made).layers(["a_token_2"]) == ("a",)
