from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quantlab.errors import ModelError
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.prepare import prepare


def test_producers_consumers_and_types(build):
    from quantlab.graph.model import Model

    graph = prepare(Model.of(build.mlp())).model.proto.graph
    index = GraphIndex(graph)
    assert index.inputs == ("x",)
    assert index.outputs == ("y",)
    assert index.producer["r"].op_type == "Relu"
    assert [node.name for node in index.consumers["h"]] == ["relu"]
    assert index.uses("y") == 1
    assert index.elem_type("w1") == TensorProto.FLOAT
    assert index.shape("w1") == (8, 64)
    assert index.shape("r") == ("batch", 64)
    assert index.is_float("h")
    assert index.shape("nothing") is None
    assert index.elem_type("nothing") == TensorProto.UNDEFINED


def test_fresh_names(build):
    index = GraphIndex(build.mlp().graph)
    assert index.fresh("new") == "new"
    assert index.fresh("new") == "new_1"
    assert index.fresh("r") == "r_1"
    assert index.fresh("relu") == "relu_1"


@given(st.integers(0, 10_000))
def test_topological_order_of_a_shuffled_chain_with_branches(seed):
    generator = random.Random(seed)
    nodes = []
    for i in range(12):
        sources = [f"t{generator.randrange(i)}" if i else "x", f"t{generator.randrange(i)}" if i else "x"]
        nodes.append(helper.make_node("Add", sources, [f"t{i}"], name=f"n{i}"))
    generator.shuffle(nodes)
    value = helper.make_tensor_value_info("x", 1, [1])
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_value_info("t11", 1, [1])])
    done = {"x"}
    order = GraphIndex(graph).topological()
    assert len(order) == 12
    for node in order:
        assert set(node.input) <= done
        done.update(node.output)


def test_cycle(build):
    nodes = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["a"])]
    graph = helper.make_graph(nodes, "g", [], [build.value("a", [1])])
    with pytest.raises(ModelError, match="cycle"):
        GraphIndex(graph).topological()


def test_subgraphs_use_outer_tensors(build):
    inner = helper.make_graph([helper.make_node("Neg", ["outer"], ["t"])], "g", [], [build.value("t", None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    assert implicit_inputs(node) == ("outer",)
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["outer"]), node], "g", [build.value("x", [1])], [build.value("y", None)]
    )
    assert GraphIndex(graph).consumers["outer"] == [node]
