from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError, ModelError
from quantlab.graph import prepare as prepare_module
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, Optimization, load_model, model_inputs, model_outputs
from quantlab.graph.prepare import prepare


def _ops(prepared):
    return Counter(node.op_type for node in prepared.model.proto.graph.node)


def test_cnn_is_folded_named_and_inferred(build, run):
    proto = build.cnn()
    for node in proto.graph.node:
        node.name = ""
    prepared = prepare(Model.of(proto))
    assert not prepared.degradations
    assert prepared.fixed_batch is None
    assert "BatchNormalization" not in _ops(prepared)
    names = [node.name for node in prepared.model.proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    index = GraphIndex(prepared.model.proto.graph)
    assert all(index.shape(name)[0] == "batch" for node in prepared.model.proto.graph.node for name in node.output)
    x = build.rng.standard_normal((4, 3, 12, 12)).astype(np.float32)
    assert np.allclose(run(prepared.model, {"x": x})[0], run(proto, {"x": x})[0], atol=1e-5)


def test_fixed_batch_of_one_becomes_dynamic(build, run):
    prepared = prepare(Model.of(build.mlp(batch=1)))
    assert prepared.fixed_batch is None
    assert model_inputs(prepared.model.proto)[0].shape == ("batch", 8)
    assert model_outputs(prepared.model.proto)[0].shape == ("batch", 4)
    assert run(prepared.model, {"x": np.zeros((7, 8), np.float32)})[0].shape == (7, 4)


def _reshaper(build, target):
    return build.model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("Reshape", ["c", "shape"], ["f"], name="flat"),
            helper.make_node("MatMul", ["f", "w2"], ["y"], name="fc"),
        ],
        [build.value("x", [1, 3, 4, 4])],
        [build.value("y", None)],
        [build.weight("w", 2, 3, 1, 1), build.const("shape", target, np.int64), build.weight("w2", 32, 3)],
    )


def test_hard_coded_reshape_keeps_the_batch(build):
    prepared = prepare(Model.of(_reshaper(build, [1, 32])))
    assert prepared.fixed_batch == 1
    assert not prepared.degradations
    assert model_inputs(prepared.model.proto)[0].shape == (1, 3, 4, 4)
    assert any("fixed at 1" in note for note in prepared.notes)


def test_flexible_reshape_does_not(build):
    assert prepare(Model.of(_reshaper(build, [-1, 32]))).fixed_batch is None


def test_reshape_that_runs_but_mixes_samples_keeps_the_batch(build):
    """[1, -1] accepts any batch, but gives one row: not a batch axis."""
    proto = build.model(
        [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("Relu", ["f"], ["y"])],
        [build.value("x", ["n", 6])],
        [build.value("y", None)],
        [build.const("s", [1, -1], np.int64)],
    )
    assert prepare(Model.of(proto)).fixed_batch == 1


def test_normalizing_over_the_batch_keeps_the_batch(build):
    proto = build.model(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)], [build.value("x", ["n", 6])], [build.value("y", ["n", 6])]
    )
    prepared = prepare(Model.of(proto))
    assert prepared.fixed_batch == 1
    assert model_inputs(prepared.model.proto)[0].shape == (1, 6)


def test_batch_of_another_size_is_kept(build):
    prepared = prepare(Model.of(build.mlp(batch=4)))
    assert prepared.fixed_batch == 4
    assert model_inputs(prepared.model.proto)[0].shape == (4, 8)
    assert prepare(Model.of(build.mlp()), input_shapes={"x": (2, 8)}).fixed_batch == 2


def test_several_inputs_and_outputs_of_several_types(build, run):
    proto = build.model(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
            helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "axis"], ["m2"]),
            helper.make_node("Mul", ["e", "m2"], ["masked"]),
            helper.make_node("MatMul", ["masked", "w"], ["hidden"], name="mm"),
            helper.make_node("ReduceMean", ["hidden"], ["pooled"], axes=[1], keepdims=0),
            helper.make_node("ArgMax", ["hidden"], ["best"], axis=2, keepdims=0),
        ],
        [build.value("ids", ["b", "t"], TensorProto.INT64), build.value("mask", ["b", "t"], TensorProto.BOOL)],
        [build.value("pooled", ["b", 6]), build.value("best", ["b", "t"], TensorProto.INT64)],
        [build.weight("table", 50, 8), build.weight("w", 8, 6), build.const("axis", [2], np.int64)],
    )
    with pytest.raises(ModelError, match="'ids' is not known") as error:
        prepare(Model.of(proto))
    assert "--shapes ids:1xN" in str(error.value.hint)
    for given in ({"dims": {"t": 5}}, {"input_shapes": {"ids": (1, 5)}}):
        prepared = prepare(Model.of(proto), **given)
        assert prepared.fixed_batch is None
        assert not prepared.degradations
        assert [spec.shape for spec in model_inputs(prepared.model.proto)] == [("batch", 5), ("batch", 5)]
    feed = {"ids": build.rng.integers(0, 50, (3, 5)), "mask": np.ones((3, 5), bool)}
    for got, want in zip(run(prepared.model, feed), run(proto, feed), strict=True):
        assert np.allclose(got, want, atol=1e-5)


def test_channels_come_from_the_weights(build):
    proto = build.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        [build.value("x", ["n", "c", 5, 5])],
        [build.value("y", None)],
        [build.weight("w", 4, 3, 1, 1)],
    )
    prepared = prepare(Model.of(proto))
    assert model_inputs(prepared.model.proto)[0].shape == ("batch", 6, 5, 5)
    assert any("dimension 1 is 6" in note for note in prepared.notes)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dims": {"heigth": 4}}, "no dynamic dimension 'heigth'"),
        ({"input_shapes": {"X": (1, 8)}}, "no input 'X'"),
        ({"input_shapes": {"x": (1, 9)}}, "contradicts"),
        ({"input_shapes": {"x": (1, 8, 1)}}, "contradicts"),
        ({"input_shapes": {"x": (0, 8)}}, "below 1"),
    ],
)
def test_overrides_that_do_not_fit(build, options, what):
    with pytest.raises(ConfigError, match=what):
        prepare(Model.of(build.mlp()), **options)


def test_shape_arithmetic_of_an_exporter_disappears(build, run):
    """What tracing exporters write for ``x.view(x.size(0), -1)`` and for 'same' padding."""
    make = helper.make_node
    proto = build.model(
        [
            make("Constant", [], ["pads"], value=build.const("", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)),
            make("Pad", ["x", "pads"], ["p"]),
            make("Conv", ["p", "w"], ["c"], name="conv"),
            make("Identity", ["c"], ["i"]),
            make("Dropout", ["i"], ["d"]),
            make("Shape", ["d"], ["s"]),
            make("Constant", [], ["zero"], value=build.const("", 0, np.int64)),
            make("Gather", ["s", "zero"], ["n"]),
            make("Unsqueeze", ["n", "axes"], ["n1"]),
            make("Constant", [], ["minus"], value=build.const("", [-1], np.int64)),
            make("Concat", ["n1", "minus"], ["target"], axis=0),
            make("Reshape", ["d", "target"], ["f"]),
            make("MatMul", ["f", "w2"], ["m"], name="fc"),
            make("Identity", ["m"], ["y"]),
        ],
        [build.value("x", [1, 3, 4, 4])],
        [build.value("y", [1, 5])],
        [build.weight("w", 2, 3, 3, 3), build.weight("w2", 32, 5), build.const("axes", [0], np.int64)],
    )
    prepared = prepare(Model.of(proto))
    assert prepared.fixed_batch is None
    assert set(_ops(prepared)) <= {"Pad", "Conv", "Reshape", "Flatten", "MatMul"}
    x = build.rng.standard_normal((3, 3, 4, 4)).astype(np.float32)
    rows = [run(proto, {"x": x[i : i + 1]})[0] for i in range(3)]
    assert np.allclose(run(prepared.model, {"x": x})[0], np.concatenate(rows), atol=1e-5)


def test_old_opset_is_converted(build, run):
    proto = build.mlp(opset=9)
    proto.ir_version = 4
    prepared = prepare(Model.of(proto))
    assert prepared.model.opset >= 13
    assert not prepared.degradations
    assert prepared.model.metadata == {}
    x = build.rng.standard_normal((2, 8)).astype(np.float32)
    assert np.allclose(run(prepared.model, {"x": x})[0], run(proto, {"x": x})[0], atol=1e-5)


def test_initializers_listed_as_inputs(build, save):
    proto = build.mlp(opset=9)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    prepared = prepare(load_model(save(proto)))
    assert [value.name for value in prepared.model.proto.graph.input] == ["x"]
    assert not prepared.degradations


def test_metadata_and_hash_survive(build):
    proto = build.mlp(opset=11)
    helper.set_model_props(proto, {"a": "b"})
    model = Model.of(proto)
    prepared = prepare(model).model
    assert prepared.metadata == {"a": "b"}
    assert prepared.sha256 == model.sha256


def test_subgraphs_are_left_alone(build, run):
    def branch(op, name):
        node = helper.make_node(op, ["h"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, ["n", 4])])

    proto = build.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h0"], name="mm"),
            helper.make_node("Identity", ["h0"], ["h"]),
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If", ["positive"], ["y"], then_branch=branch("Relu", "t"), else_branch=branch("Neg", "e"), name="if"
            ),
        ],
        [build.value("x", [1, 8])],
        [build.value("y", ["n", 4])],
        [build.weight("w", 8, 4), build.const("zero", 0.0)],
    )
    prepared = prepare(Model.of(proto))
    assert "If" in _ops(prepared)
    for sign in (1, -1):
        x = np.full((1, 8), sign, np.float32)
        assert np.allclose(run(prepared.model, {"x": x})[0], run(proto, {"x": x})[0], atol=1e-6)


@pytest.mark.parametrize("failure", ["raises", "wrong", "noise"])
def test_simplifier_that_fails_is_left_out(build, monkeypatch, failure, capfd, run):
    def bad(skeleton, **_options):
        if failure == "raises":
            raise RuntimeError("boom")
        if failure == "noise":
            print("hello")  # swallowed
            return skeleton
        result = onnx.ModelProto()
        result.CopyFrom(skeleton)
        result.graph.node[1].op_type = "Neg"
        return result

    monkeypatch.setattr("onnxslim.slim", bad)
    proto = build.mlp()
    prepared = prepare(Model.of(proto))
    codes = [degradation.code for degradation in prepared.degradations]
    assert codes == ([] if failure == "noise" else [DegradationCode.NOT_SIMPLIFIED])
    x = build.rng.standard_normal((2, 8)).astype(np.float32)
    assert np.allclose(run(prepared.model, {"x": x})[0], run(proto, {"x": x})[0], atol=1e-6)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_random_models_are_not_rewritten(build):
    proto = build.model(
        [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])],
        [build.value("x", ["n", 4])],
        [build.value("y", ["n", 4])],
    )
    prepared = prepare(Model.of(proto))
    assert {degradation.code for degradation in prepared.degradations} <= {DegradationCode.NOT_SIMPLIFIED}
    assert len(prepared.model.proto.graph.node) == 2


def test_model_that_cannot_run_on_random_samples_is_kept(build):
    proto = build.model(
        [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("Relu", ["f"], ["y"])],
        [build.value("x", [1, 6])],
        [build.value("y", None)],
        [build.const("s", [5, 5], np.int64)],
    )
    prepared = prepare(Model.of(proto))
    assert prepared.fixed_batch == 1
    assert [d.code for d in prepared.degradations] == [DegradationCode.NOT_SIMPLIFIED]


def test_large_weights_do_not_meet_the_simplifier(build, monkeypatch):
    import onnxslim

    seen = []
    original = onnxslim.slim

    def spy(skeleton, **options):
        seen.append(max((int(np.prod(t.dims)) for t in skeleton.graph.initializer), default=0))
        return original(skeleton, **options)

    monkeypatch.setattr(onnxslim, "slim", spy)
    proto = build.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [build.value("x", [1, 64])],
        [build.value("y", [1, 64])],
        [build.weight("w", 64, 64)],
    )
    prepare(Model.of(proto))
    assert seen == [0]


def test_source_model_is_not_changed(build):
    model = Model.of(build.cnn())
    before = model.proto.SerializeToString(deterministic=True)
    prepare(model)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_preparing_twice_changes_nothing(build):
    once = prepare(Model.of(build.cnn())).model
    twice = prepare(once).model
    assert [n.op_type for n in once.proto.graph.node] == [n.op_type for n in twice.proto.graph.node]


def test_importing_is_light():
    code = (
        "import sys, quantlab.graph.prepare; "
        "print([m for m in ('onnxslim', 'sympy', 'onnxruntime', 'torch', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_steps_are_verified_without_graph_rewrites_in_the_original(build, monkeypatch):
    levels = []
    original = prepare_module.Reference.take.__func__.__globals__["open_session"]

    def spy(model, **options):
        levels.append(options.get("optimize", Optimization.ALL))
        return original(model, **options)

    monkeypatch.setattr("quantlab.graph.reference.open_session", spy)
    prepare(Model.of(build.mlp()))
    assert levels[0] is Optimization.NONE
    assert set(levels[1:]) == {Optimization.ALL}
