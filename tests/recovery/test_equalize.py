from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper
from small_observations import ArrayObservations, context_of, outputs_of, state_of

from quantlab.graph.index import GraphIndex
from quantlab.graph.weights import RoundedWeight
from quantlab.recovery.equalize import HEADROOM, Equalize
from quantlab.recovery.scaling import LARGEST_FACTOR

N_CHANNELS = 16
SPREAD = np.geomspace(1.0, 1 / 256, N_CHANNELS)


def _weight(rng, *shape):
    return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))


def _net(*, activation="Relu", high=None, spread=SPREAD, bias=0.1):
    """Conv, Relu or Clip, Conv, whose middle channels have widths in the ratio of ``spread``: x [n, 16, 6, 6]."""
    rng = np.random.default_rng(3)
    along = np.asarray(spread).reshape(-1, 1, 1, 1)
    with np.errstate(divide="ignore"):
        back = np.where(along > 0, 1 / along, 1.0)
    stored = {
        "w1": _weight(rng, N_CHANNELS, 16, 1, 1) * along,
        "b1": bias * np.asarray(spread),
        "w2": _weight(rng, 16, N_CHANNELS, 3, 3) * back.reshape(1, -1, 1, 1),
        "b2": rng.standard_normal(16),
    }
    inputs = ["a"]
    if high is not None:
        stored |= {"lo": np.float64(0.0), "hi": np.float64(high)}
        inputs += ["lo", "hi"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first"),
            helper.make_node(activation, inputs, ["r"], name="between"),
            helper.make_node("Conv", ["r", "w2", "b2"], ["y"], name="last", pads=[1, 1, 1, 1]),
        ],
        "net",
        [helper.make_tensor_value_info("x", 1, ["n", 16, 6, 6])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def observations():
    return ArrayObservations({"x": np.random.default_rng(5).standard_normal((32, 16, 6, 6)).astype(np.float32)})


def _sqnr_db(reference, got):
    reference = reference.astype(np.float64)
    return 10 * np.log10((reference**2).sum() / ((reference - got) ** 2).sum())


def _quantized_sqnr_db(state, context, feed):
    quantized = state.model.with_proto(state.quantized(context.target).proto)
    return _sqnr_db(outputs_of(state.model, feed), outputs_of(quantized, feed))


def _widths(state, observations, tensor, *, symmetric=True):
    found = observations.channels(state, {tensor: 1})[tensor]
    if symmetric:
        return np.maximum(np.abs(found.minima), np.abs(found.maxima))
    return np.maximum(found.maxima, 0) - np.minimum(found.minima, 0)


def _assert_same_function(state, proposal, feed):
    before, after = outputs_of(state.model, feed), outputs_of(proposal.state.model, feed)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_channels_become_equally_wide(observations):
    state, context = state_of(_net(), observations), context_of(observations)
    before = _widths(state, observations, "r")
    result = Equalize().propose(state, context)
    assert [proposal.label for proposal in result.proposals] == ["strength 0.5", "strength 1"]
    half, whole = (_widths(proposal.state, observations, "r") for proposal in result.proposals)
    assert np.allclose(whole, before.max(), rtol=1e-5)
    assert np.allclose(half, np.sqrt(before * before.max()), rtol=1e-5)
    for proposal in result.proposals:
        assert proposal.changed == ("first", "last")
        _assert_same_function(state, proposal, observations.feed)


def test_the_model_gains(observations):
    """Weights of which each channel is scaled alone, and 8 bits of spread between channels: bits come back."""
    state, context = state_of(_net(), observations), context_of(observations)
    before = _quantized_sqnr_db(state, context, observations.feed)
    for proposal in Equalize().propose(state, context).proposals:
        assert _quantized_sqnr_db(proposal.state, context, observations.feed) > before + 6


def test_ranges_are_observed_anew(observations):
    state, context = state_of(_net(), observations), context_of(observations)
    proposal = Equalize().propose(state, context).proposals[1]
    old, new = state.table.entries(), proposal.state.table.entries()
    assert old.keys() == new.keys()
    assert new["x"] == old["x"]
    assert new["y"] == old["y"]
    found = _widths(proposal.state, observations, "a")
    assert max(-new["a"].minimum, new["a"].maximum) == pytest.approx(found.max(), rel=1e-6)
    assert new["a"].minimum < 1.1 * old["a"].minimum  # narrow channels reach as low as the widest now


def test_several_tensors_share_the_mean_of_their_wishes(observations):
    """A depthwise layer's input and output each have a group; a sum ties three tensors into one."""
    proto = _net()
    proto.graph.node[2].input[0] = "s"
    proto.graph.node.insert(2, helper.make_node("Conv", ["r", "wd"], ["d"], name="inner"))
    proto.graph.node.insert(3, helper.make_node("Add", ["r", "d"], ["s"], name="sum"))
    rng = np.random.default_rng(9)
    inner = _weight(rng, N_CHANNELS, N_CHANNELS, 1, 1) * np.linspace(1, 9, N_CHANNELS).reshape(-1, 1, 1, 1)
    proto.graph.initializer.append(numpy_helper.from_array(inner.astype(np.float32), "wd"))
    state, context = state_of(proto, observations), context_of(observations)
    quantized = state.quantized(context.target).tensors
    assert {"r", "s"} <= set(quantized) - {"d"}
    proposal = Equalize().propose(state, context).proposals[1]
    widths = [_widths(state, observations, tensor) for tensor in ("r", "s")]
    wanted = np.sqrt(np.prod([width.max() / width for width in widths], axis=0))
    for tensor, before in zip(("r", "s"), widths, strict=True):
        assert np.allclose(_widths(proposal.state, observations, tensor), before * wanted, rtol=1e-4)
    _assert_same_function(state, proposal, observations.feed)


def test_a_grid_with_zero_points_counts_whole_ranges(observations):
    """What lies on both sides of zero is wider than its largest magnitude; both tensors are quantized."""
    state, context = state_of(_net(activation="LeakyRelu"), observations), context_of(observations, "onnxruntime")
    assert {"a", "r"} <= set(state.quantized(context.target).tensors)
    before = [_widths(state, observations, tensor, symmetric=False) for tensor in ("a", "r")]
    wanted = np.sqrt(np.prod([width.max() / width for width in before], axis=0))
    proposal = Equalize().propose(state, context).proposals[1]
    assert np.allclose(_widths(proposal.state, observations, "r", symmetric=False), before[1] * wanted, rtol=1e-5)


def test_dead_and_faint_channels(observations):
    spread = SPREAD.copy()
    spread[3], spread[5] = 0.0, 1e-9
    state, context = state_of(_net(spread=spread), observations), context_of(observations)
    for proposal in Equalize().propose(state, context).proposals:
        weights = GraphIndex(proposal.state.model.proto.graph).initializers
        old = GraphIndex(state.model.proto.graph).initializers
        ratio = _ratio(weights, old, "w1")
        assert np.isfinite(ratio[np.arange(N_CHANNELS) != 3]).all()
        assert np.array_equal(numpy_helper.to_array(weights["w2"])[:, 3], numpy_helper.to_array(old["w2"])[:, 3])
        assert ratio[5] == pytest.approx(LARGEST_FACTOR, rel=1e-5)
        _assert_same_function(state, proposal, observations.feed)


def _ratio(new, old, name):
    a, b = (numpy_helper.to_array(stored[name]).reshape(N_CHANNELS, -1)[:, 0] for stored in (new, old))
    with np.errstate(invalid="ignore"):
        return a / b


def test_through_clip_only_below_its_bound(observations):
    """The widest channels reach the bound and keep their factor; the others stop with headroom."""
    plain = state_of(_net(), observations)
    high = float(np.sort(_widths(plain, observations, "r"))[-3]) * 0.999  # three channels reach it
    state, context = state_of(_net(activation="Clip", high=high), observations), context_of(observations)
    before = _widths(state, observations, "r")
    result = Equalize().propose(state, context)
    assert [proposal.label for proposal in result.proposals] == [
        "strength 0.5, also through Clip", "strength 1, also through Clip",
    ]  # fmt: skip
    for proposal in result.proposals:
        factors = _ratio(*(GraphIndex(s.model.proto.graph).initializers for s in (proposal.state, state)), "w1")
        reached = before >= high * (1 - 1e-6)
        assert reached.sum() == 3
        assert np.array_equal(factors[reached], np.ones(3))
        after = before * factors
        assert (after[~reached] <= np.maximum(high / HEADROOM, before[~reached]) * (1 + 1e-5)).all()
        assert factors.min() == 1.0
        assert factors.max() > 2.0
        _assert_same_function(state, proposal, observations.feed)


def test_groups_without_clip_come_alone_first(observations):
    proto = _net(activation="Clip", high=50.0)
    proto.graph.node[2].output[0] = "z"
    rng = np.random.default_rng(2)
    proto.graph.node.append(helper.make_node("Relu", ["z"], ["q"], name="relu"))
    proto.graph.node.append(helper.make_node("Conv", ["q", "w3"], ["y"], name="third"))
    proto.graph.initializer.append(numpy_helper.from_array(_weight(rng, 16, 16, 1, 1).astype(np.float32), "w3"))
    state, context = state_of(proto, observations), context_of(observations)
    result = Equalize().propose(state, context)
    assert [(proposal.label, proposal.changed) for proposal in result.proposals] == [
        ("strength 0.5", ("last", "third")),
        ("strength 1", ("last", "third")),
        ("strength 0.5, also through Clip", ("first", "last", "third")),
        ("strength 1, also through Clip", ("first", "last", "third")),
    ]
    for proposal in result.proposals:
        _assert_same_function(state, proposal, observations.feed)


def test_nothing_to_do_is_said(observations):
    state, context = state_of(_net(activation="Sigmoid"), observations), context_of(observations)
    result = Equalize().propose(state, context)
    assert not result.proposals
    assert result.notes == ("no quantized tensor lies between layers that can take up factors",)


def test_layers_in_floating_point_have_no_say(observations):
    """The first layer alone is quantized: its input is the model's, and nothing else has a scale."""
    state, context = state_of(_net(), observations), context_of(observations, exclude=("last",))
    assert not Equalize().propose(state, context).proposals


def test_equal_channels_are_left_alone(observations):
    state, context = state_of(_net(), observations), context_of(observations)
    equal = Equalize().propose(state, context).proposals[1].state
    result = Equalize().propose(equal, context)
    assert not result.proposals
    assert result.notes == ("the channels' ranges are equally wide already",)


def test_rounded_weights_are_not_touched(observations):
    state, context = state_of(_net(), observations), context_of(observations)
    rounded = RoundedWeight(np.zeros((1, 1), np.int8), np.ones(1, np.float32), 0)
    result = Equalize().propose(replace(state, rounded={"w1": rounded}), context)
    assert not result.proposals
    assert result.notes == ("the weights are rounded already",)


def test_groups_without_noise_are_left_alone(observations):
    state, context = state_of(_net(), observations), context_of(observations)
    loud = Equalize().propose(state, replace(context, shares={"x": 0.9, "r": 0.1}))
    assert len(loud.proposals) == 2
    assert not loud.notes
    quiet = Equalize().propose(state, replace(context, shares={"x": 0.999, "r": 0.001}))
    assert not quiet.proposals
    assert quiet.notes == ("1 of 1 groups make less than 0.5% of the noise each and stay as they are",)
