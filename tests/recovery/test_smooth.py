from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper
from small_observations import ArrayObservations, context_of, outputs_of, state_of

from quantlab import DataRequest, Silent, open_data, open_model
from quantlab.datasets import batches, sample_data, sample_model
from quantlab.graph.weights import RoundedWeight
from quantlab.recovery.smooth import Smooth

N_CHANNELS = 32
OUTLIERS = np.where(np.arange(N_CHANNELS) % 8 == 3, 60.0, 1.0)

node = helper.make_node


def _norm(kind):
    """Nodes from x to "n"."""
    if kind == "operator":
        return [node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm")]
    return [
        node("ReduceMean", ["x"], ["mean"], axes=[-1], name="mean"),
        node("Sub", ["x", "mean"], ["centred"], name="centre"),
        node("Mul", ["centred", "centred"], ["square"], name="square"),
        node("ReduceMean", ["square"], ["variance"], axes=[-1], name="variance"),
        node("Add", ["variance", "epsilon"], ["safe"], name="epsilon"),
        node("Sqrt", ["safe"], ["deviation"], name="deviation"),
        node("Div", ["centred", "deviation"], ["normal"], name="divide"),
        node("Mul", ["normal", "gamma"], ["scaled"], name="scale"),
        node("Add", ["scaled", "beta"], ["n"], name="shift"),
    ]


def _net(kind="operator", *, gamma=OUTLIERS, more=(), outputs=("y", "z")):
    """A normalization with outliers that a MatMul with offset and, for the first token, a Gemm read: x [n, 5, 32]."""
    rng = np.random.default_rng(11)
    stored = {
        "gamma": gamma,
        "beta": 0.1 * rng.standard_normal(N_CHANNELS),
        "w1": rng.standard_normal((N_CHANNELS, 24)) / np.asarray(gamma).clip(1)[:, None],
        "b1": rng.standard_normal(24),
        "w2": rng.standard_normal((16, N_CHANNELS)),
        "epsilon": np.float64(1e-5),
    }
    nodes = [
        *_norm(kind),
        node("MatMul", ["n", "w1"], ["m"], name="up"),
        node("Add", ["m", "b1"], ["y"], name="offset"),
        node("Gather", ["n", "zero"], ["first"], axis=1, name="first"),
        node("Gemm", ["first", "w2"], ["z"], transB=1, name="head"),
        *more,
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, ["n", 5, N_CHANNELS])],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [*(numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()),
         numpy_helper.from_array(np.array(0, np.int64), "zero")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def observations():
    return ArrayObservations({"x": np.random.default_rng(5).standard_normal((32, 5, N_CHANNELS)).astype(np.float32)})


def _stored(state, name):
    return next(numpy_helper.to_array(t) for t in state.model.proto.graph.initializer if t.name == name).astype(float)


def _sqnr_db(reference, got):
    return 10 * np.log10((reference.astype(np.float64) ** 2).sum() / ((reference - got.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize("kind", ["operator", "written out"])
def test_factors_are_the_papers(observations, kind):
    state, context = state_of(_net(kind), observations), context_of(observations)
    result = Smooth().propose(state, context)
    assert [proposal.label for proposal in result.proposals] == ["strength 0.5", "strength 0.75"]
    found = observations.channels(state, {"n": 2})["n"]
    peaks = np.maximum(np.abs(found.minima), np.abs(found.maxima)).astype(float)
    weights = np.maximum(np.abs(_stored(state, "w1")).max(axis=1), np.abs(_stored(state, "w2")).max(axis=0))
    for proposal, strength in zip(result.proposals, (0.5, 0.75), strict=True):
        smoothing = peaks**strength / weights ** (1 - strength)
        smoothing /= np.exp(np.log(smoothing).mean())
        for name, wanted in [
            ("gamma", 1 / smoothing), ("beta", 1 / smoothing), ("w1", smoothing[:, None]), ("w2", smoothing[None]),
        ]:  # fmt: skip
            assert np.allclose(_stored(proposal.state, name), _stored(state, name) * wanted, rtol=1e-5)
        assert np.array_equal(_stored(proposal.state, "b1"), _stored(state, "b1"))
        before, after = (outputs_of(s.model, observations.feed) for s in (state, proposal.state))
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
        norm = ["norm"] if kind == "operator" else ["scale", "shift"]
        assert proposal.changed == (*norm, "up", "head")
        entries = proposal.state.table.entries()
        assert entries["n"].maximum < 0.5 * state.table.entries()["n"].maximum
        assert entries["y"] == state.table.entries()["y"]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_model_gains(observations, target):
    state, context = state_of(_net(outputs=("y",)), observations), context_of(observations, target)
    reference = outputs_of(state.model, observations.feed)

    def figure(one):
        quantized = one.model.with_proto(one.quantized(context.target).proto)
        return _sqnr_db(reference, outputs_of(quantized, observations.feed))

    before = figure(state)
    assert all(figure(proposal.state) > before + 3 for proposal in Smooth().propose(state, context).proposals)


def test_dead_channels_divide_nothing_by_zero(observations):
    gamma = OUTLIERS.copy()
    gamma[[0, 3]] = 0.0
    proto = _net(gamma=gamma)
    for tensor in proto.graph.initializer:
        if tensor.name in ("beta", "w1", "w2"):
            values = numpy_helper.to_array(tensor).copy()
            if tensor.name == "beta":
                values[[0, 3]] = 0.0  # nothing comes through
            else:
                values[(slice(None), 7) if tensor.name == "w2" else 7] = 0.0  # nothing is read
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    state, context = state_of(proto, observations), context_of(observations)
    for proposal in Smooth().propose(state, context).proposals:
        for name in ("gamma", "beta", "w1", "w2"):
            assert np.isfinite(_stored(proposal.state, name)).all()
        before, after = (outputs_of(s.model, observations.feed) for s in (state, proposal.state))
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize(
    "reader",
    [node("Relu", ["n"], ["r"], name="other"), node("MatMul", ["n", "turned"], ["r"], name="other")],
    ids=["relu", "product of activations"],
)
def test_other_readers_stop_it(observations, reader):
    turned = [node("Transpose", ["n"], ["turned"], perm=[0, 2, 1], name="turn")] if "turned" in reader.input else []
    proto = _net(more=[*turned, reader], outputs=("y", "z", "r"))
    result = Smooth().propose(state_of(proto, observations), context_of(observations))
    assert not result.proposals
    assert result.notes == ("no quantized matrix product reads a layer normalization",)


def test_layers_in_floating_point_have_no_say(observations):
    context = context_of(observations, exclude=("up", "head"))
    proto = _net(more=[node("MatMul", ["y", "w3"], ["v"], name="last")], outputs=("v", "z"))
    rng = np.random.default_rng(1)
    proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((24, 16)).astype(np.float32), "w3"))
    assert not Smooth().propose(state_of(proto, observations), context).proposals


def test_balanced_channels_are_left_alone(observations):
    state, context = state_of(_net(), observations), context_of(observations)
    smoothed = Smooth().propose(state, context).proposals[0].state
    labels = [proposal.label for proposal in Smooth().propose(smoothed, context).proposals]
    assert labels == ["strength 0.75"]  # with 0.5 again nothing moves


def test_rounded_weights_are_not_touched(observations):
    rounded = RoundedWeight(np.zeros((1, 1), np.int8), np.ones(1, np.float32), 0)
    state = replace(state_of(_net(), observations), rounded={"w1": rounded})
    result = Smooth().propose(state, context_of(observations))
    assert (result.proposals, result.notes) == ((), ("the weights are rounded already",))


def test_a_transformer_computes_the_same_on_real_images():
    """All nine normalizations of the bundled one, the last read behind a Gather."""
    prepared = open_model(sample_model("fashion-vit"), {}, Silent())
    images, _ = open_data(prepared.model, DataRequest(str(sample_data("calibration")), limit=32), Silent())
    (batch,) = batches(images, 32)
    real = ArrayObservations({name: np.asarray(value, np.float32) for name, value in batch.inputs.items()})
    state = state_of(prepared, real)
    reference = outputs_of(state.model, real.feed)
    for target, n_groups in (("tensorrt", 8), ("onnxruntime", 9)):  # TensorRT's rules leave the head's 10 columns alone
        proposals = Smooth().propose(state, context_of(real, target)).proposals
        assert len(proposals) == 2
        for proposal in proposals:
            assert len(proposal.changed) == 2 * n_groups
            got = outputs_of(proposal.state.model, real.feed)
            assert np.abs(got - reference).max() <= 1e-5 * np.abs(reference).max()
