from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantlab.graph.cleanup import name_nodes, remove_dead, remove_no_ops, strip_initializer_inputs
from quantlab.graph.folding import fold_constants

make = helper.make_node


def _values(proto):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_chains_of_constants_are_evaluated(build):
    proto = build.model(
        [
            make("Constant", [], ["two"], value_float=2.0),
            make("Mul", ["w", "two"], ["w2"]),
            make("Transpose", ["w2"], ["w3"], perm=[1, 0]),
            make("MatMul", ["x", "w3"], ["y"]),
        ],
        [build.value("x", ["n", 3])],
        [build.value("y", None)],
        [build.weight("w", 5, 3)],
    )
    before = _values(proto)["w"]
    assert fold_constants(proto, None) == 3
    remove_dead(proto)
    assert [node.op_type for node in proto.graph.node] == ["MatMul"]
    assert np.array_equal(_values(proto)["w3"], before.T * 2)
    assert list(_values(proto)) == ["w3"]


@pytest.mark.parametrize(("index", "folds"), [(1, True), (-1, True), (0, False), ([1, 2], True), ([0, 1], False)])
def test_known_dimensions_of_a_dynamic_shape(build, index, folds):
    proto = build.model(
        [make("Shape", ["x"], ["s"]), make("Gather", ["s", "i"], ["y"])],
        [build.value("x", ["n", 3, 7])],
        [build.value("y", None, TensorProto.INT64)],
        [build.const("i", index, np.int64)],
    )
    fold_constants(proto, None)
    assert ("y" in _values(proto)) is folds
    if folds:
        assert np.array_equal(_values(proto)["y"], np.array([0, 3, 7])[np.array(index)])


def test_part_of_a_shape(build):
    proto = build.model(
        [make("Shape", ["x"], ["y"], start=1, end=-1)],
        [build.value("x", ["n", 3, 7, "m"])],
        [build.value("y", None, TensorProto.INT64)],
    )
    assert fold_constants(proto, None) == 1
    assert list(_values(proto)["y"]) == [3, 7]


def test_quantized_weights_and_random_numbers_stay(build):
    proto = build.model(
        [
            make("DequantizeLinear", ["q", "s"], ["w"]),
            make("RandomNormal", [], ["r"], shape=[3]),
            make("Add", ["x", "w"], ["a"]),
            make("Add", ["a", "r"], ["y"]),
        ],
        [build.value("x", [3])],
        [build.value("y", [3])],
        [build.const("q", [1, 2, 3], np.int8), build.const("s", 0.1)],
    )
    assert fold_constants(proto, None) == 0


def test_constants_that_would_explode_stay(build, monkeypatch):
    monkeypatch.setattr("quantlab.graph.folding.MAX_FOLDED_BYTES", 1000)
    proto = build.model(
        [make("Expand", ["one", "shape"], ["big"]), make("Add", ["x", "big"], ["y"])],
        [build.value("x", [100, 100])],
        [build.value("y", [100, 100])],
        [build.const("one", 1.0), build.const("shape", [100, 100], np.int64)],
    )
    assert fold_constants(proto, None) == 0


def test_constant_output_is_folded(build, run):
    proto = build.model(
        [make("Relu", ["x"], ["y"]), make("Neg", ["w"], ["z"])],
        [build.value("x", [2])],
        [build.value("y", [2]), build.value("z", [2])],
        [build.const("w", [1.0, 2.0])],
    )
    assert fold_constants(proto, None) == 1
    assert np.array_equal(run(proto, {"x": np.ones(2, np.float32)})[1], [-1, -2])


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ([("Identity", "x", "a"), ("Relu", "a", "y")], ["Relu"]),
        ([("Relu", "x", "a"), ("Identity", "a", "b"), ("Identity", "b", "y")], ["Relu"]),
        ([("Relu", "x", "a"), ("Dropout", "a", "y")], ["Relu"]),
        ([("Identity", "x", "y")], ["Identity"]),
        ([("Identity", "x", "a"), ("Identity", "a", "y")], ["Identity"]),
        ([("Relu", "x", "a"), ("Identity", "a", "y"), ("Neg", "a", "z")], ["Relu", "Identity", "Neg"]),
    ],
)
def test_no_ops_go_and_borders_keep_their_names(build, run, nodes, left):
    outputs = [name for name in ("y", "z") if any(name == target for _, _, target in nodes)]
    proto = build.model(
        [make(op, [source], [target]) for op, source, target in nodes],
        [build.value("x", [3])],
        [build.value(name, [3]) for name in outputs],
    )
    x = {"x": np.array([-1, 0, 2], np.float32)}
    before = run(proto, x)
    remove_no_ops(proto)
    assert [node.op_type for node in proto.graph.node] == left
    assert [value.name for value in proto.graph.output] == outputs
    assert np.array_equal(run(proto, x), before)


def test_dropout_in_training_or_with_a_used_mask_stays(build):
    proto = build.model(
        [make("Dropout", ["x", "ratio", "training"], ["a"]), make("Dropout", ["a"], ["y", "mask"])],
        [build.value("x", [3])],
        [build.value("y", [3]), build.value("mask", [3], TensorProto.BOOL)],
        [build.const("ratio", 0.5), build.const("training", True, np.bool_)],
    )
    assert remove_no_ops(proto) == 0


def test_dead_nodes_and_weights_go(build):
    proto = build.mlp()
    proto.graph.node.append(make("MatMul", ["r", "w9"], ["unused"]))
    proto.graph.initializer.append(build.weight("w9", 64, 2))
    remove_dead(proto)
    assert len(proto.graph.node) == 3
    assert "w9" not in _values(proto)


def test_names_become_unique(build):
    proto = build.mlp()
    proto.graph.node[0].name = proto.graph.node[1].name = "same"
    proto.graph.node[2].name = ""
    name_nodes(proto)
    assert [node.name for node in proto.graph.node] == ["same", "Relu_r", "MatMul_y"]


def test_initializers_are_no_inputs(build):
    proto = build.mlp()
    proto.graph.input.append(build.value("w1", [8, 64]))
    strip_initializer_inputs(proto)
    assert [value.name for value in proto.graph.input] == ["x"]
