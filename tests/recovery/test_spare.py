"""Spare channels: the float graph stays what it is, and the noise of a copied channel falls with the copies squared."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from qdq_checks import UNLIMITED, sqnr
from rtx_builder import build_engine
from small_nets import Net
from small_observations import ArrayObservations, context_of, outputs_of, state_of

from quantlab.graph.model import Model
from quantlab.recovery.protocol import Context, Proposals, State
from quantlab.recovery.shift import Shift
from quantlab.recovery.spare import Spare, allocate

Feed = dict[str, NDArray[np.float32]]

CLOSED, SILENT = 2, 5
"""Dead channels: one whose bound cuts all, one whose weights are 0."""


def stem(net: Net, n: int = 8, silent: float = 0.7, pads: int = 0) -> str:
    """Clip(0, 6) of a convolution from 3 to ``n`` channels that no sample brings near 0 or 6, but for dead ones."""
    weight = net.rng.uniform(-0.04, 0.04, (n, 3, 3, 3))
    bias = np.linspace(2.0, 4.0, n)
    bias[CLOSED], weight[SILENT], bias[SILENT] = -50.0, 0.0, silent
    made = net.add("Conv", "x", net.const(weight), net.const(bias), pads=[pads] * 4)
    return net.add("Clip", made, net.const(0.0), net.const(6.0))


def positive(net: Net, *shape: int) -> str:
    return net.const(net.rng.uniform(0.1, 0.5, shape))


def depthwise_net(pads: int = 0, silent: float = 0.7, relu: bool = True) -> tuple[Net, str]:
    """Convolution, Clip, depthwise convolution, Relu, 1x1 convolution, as the stem of EfficientNet-Lite."""
    net = Net(3, 10, 10)
    hidden = net.add("Conv", stem(net, silent=silent), positive(net, 8, 1, 3, 3), group=8, pads=[pads] * 4)
    hidden = net.add("Relu", hidden) if relu else hidden
    return net, net.add("Conv", hidden, net.normal(6, 8, 1, 1), net.normal(6))


def context(feed: Feed, shares: Mapping[str, float] | None = None) -> Context:
    return dataclasses.replace(
        context_of(ArrayObservations(feed)), target=UNLIMITED, shares=shares or {}, batches=[feed]
    )


def propose(net: Net, *outputs: str, shares: Mapping[str, float] | None = None) -> tuple[State, Proposals, Feed]:
    feed = net.feed(192)
    state = state_of(net.model(*outputs), ArrayObservations(feed))
    return state, Spare().propose(state, context(feed, shares)), feed


def check_exact(state: State, proposals: Proposals, feed: Feed, tolerance: float = 1e-5) -> None:
    expected = outputs_of(state.model, feed)
    assert proposals.proposals
    for proposal in proposals.proposals:
        onnx.checker.check_model(proposal.state.model.proto, full_check=True)
        got = outputs_of(proposal.state.model, feed)
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def with_float_weights(state: State) -> ModelProto:
    """The quantized graph with the weights of the float one, so that activations alone make noise."""
    proto = state.quantized(UNLIMITED).proto
    stored = {tensor.name: tensor for tensor in state.model.proto.graph.initializer}
    layers = {node.name: node for node in state.model.proto.graph.node}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            name = layers[node.name].input[1]
            node.input[1] = name
            if name not in {tensor.name for tensor in proto.graph.initializer}:
                proto.graph.initializer.append(stored[name])
    return proto


def noise_db(state: State, feed: Feed, reference: Model) -> float:
    return sqnr(outputs_of(reference, feed), outputs_of(Model.of(with_float_weights(state)), feed))


def weights(state: State, layer: int) -> NDArray[np.float32]:
    """Weight of one of the model's layers."""
    proto = state.model.proto
    node = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")][layer]
    return next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == node.input[1])


class TestExactness:
    @pytest.mark.parametrize("relu", [True, False])
    def test_through_a_depthwise_convolution(self, relu: bool) -> None:
        net, output = depthwise_net(relu=relu)
        state, proposals, feed = propose(net, output)
        assert proposals.notes[0].endswith("2 of 2 dead channels take a copy")
        check_exact(state, proposals, feed)

    def test_border_is_off_by_parts_of_a_step(self) -> None:
        """Away from the border nothing changes, at it less than half a step; both copies average it out here."""
        net, output = depthwise_net(pads=1, silent=0.0)
        state, proposals, feed = propose(net, output)
        check_exact(state, proposals, feed)

    @pytest.mark.parametrize("kind", ["conv", "padded conv", "gemm", "transposed gemm", "matmul"])
    def test_read_by_layers_that_mix_channels(self, kind: str) -> None:
        net = Net(3, 10, 10)
        if kind.endswith("conv"):
            pads = int(kind.startswith("padded"))
            hidden = stem(net, silent=0.0 if pads else 0.7)
            output = net.add("Conv", hidden, net.normal(6, 8, 3, 3), pads=[pads] * 4)
        else:
            net = Net(12)
            weight, bias = net.rng.uniform(-0.04, 0.04, (12, 8)), np.linspace(2.0, 4.0, 8)
            bias[CLOSED], weight[:, SILENT] = -50.0, 0.0
            made = net.add("Gemm", "x", net.const(weight), net.const(bias[None]), alpha=2.0, beta=0.5)
            hidden = net.add("Relu", made)
            if kind == "matmul":
                output = net.add("MatMul", hidden, net.normal(8, 5))
            elif kind == "gemm":
                output = net.add("Gemm", hidden, net.normal(8, 5), net.normal(5), alpha=0.5, beta=3.0)
            else:
                output = net.add("Gemm", hidden, net.normal(5, 8), transB=1)
        state, proposals, feed = propose(net, output)
        assert proposals.notes[0].endswith("2 of 2 dead channels take a copy")
        check_exact(state, proposals, feed)

    def test_two_readers(self) -> None:
        net = Net(3, 10, 10)
        hidden = stem(net)
        output = net.add("Add", *(net.add("Conv", hidden, net.normal(6, 8, 3, 3)) for _ in range(2)))
        state, proposals, feed = propose(net, output)
        check_exact(state, proposals, feed)

    @pytest.mark.parametrize("pads", [0, 1])
    def test_behind_shift(self, pads: int) -> None:
        """A dead channel is -c then, and so is the border: it takes a copy all the same."""
        net, output = depthwise_net(pads=pads, silent=0.0)
        feed = net.feed(192)
        observations = ArrayObservations(feed)
        state = state_of(net.model(output), observations)
        (*_, shifted) = Shift().propose(state, context(feed)).proposals
        proposals = Spare().propose(shifted.state, context(feed))
        assert proposals.notes[0].endswith("2 of 2 dead channels take a copy")
        check_exact(state, proposals, feed)
        unshifted = Spare().propose(state, context(feed)).proposals[0].state
        gain = noise_db(proposals.proposals[0].state, feed, state.model) - noise_db(unshifted, feed, state.model)
        assert gain > 2.0


class TestNoise:
    def test_falls_with_the_square_of_the_copies(self) -> None:
        """Five of six channels have no weight behind: both dead ones copy the other; 1/9 of the noise is 9.5 dB."""
        net = Net(3, 10, 10)
        weight = np.zeros((6, 8, 1, 1))
        weight[:, 1] = net.rng.uniform(0.5, 1.0, (6, 1, 1))
        output = net.add("Conv", stem(net), net.const(weight))
        state, proposals, feed = propose(net, output)
        (proposal,) = proposals.proposals
        copied = weights(proposal.state, 1)
        assert np.flatnonzero(copied[0, :, 0, 0]).tolist() == [1, CLOSED, SILENT]
        gain = noise_db(proposal.state, feed, state.model) - noise_db(state, feed, state.model)
        assert gain == pytest.approx(20 * np.log10(3), abs=0.8)

    def test_depthwise_outputs_apart_gain_too(self) -> None:
        net, output = depthwise_net()
        state, proposals, feed = propose(net, output)
        assert [proposal.label for proposal in proposals.proposals] == ["first tensor", "both tensors"]
        before, first, both = (
            noise_db(s, feed, state.model) for s in (state, *(proposal.state for proposal in proposals.proposals))
        )
        assert before < first < both

    @given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=4), st.integers(1, 4))
    def test_allocation_is_the_best_there_is(self, errors: list[float], n_spare: int) -> None:
        every = np.array([*errors, *[0.0] * n_spare])
        spare = range(len(errors), len(every))
        groups = allocate(every, spare)
        given_away = [channel for group in groups.values() for channel in group[1:]]
        assert len(set(given_away)) == len(given_away) <= n_spare
        assert set(given_away) <= set(spare)
        left = sum(error / len(groups.get(channel, (channel,))) ** 2 for channel, error in enumerate(errors))
        best = min(
            sum(error / (1 + ways.count(channel)) ** 2 for channel, error in enumerate(errors))
            for ways in itertools.product(range(len(errors)), repeat=n_spare)
        )
        assert left == pytest.approx(best, rel=1e-9, abs=1e-12)


class TestLeftAlone:
    def test_dead_channels_that_end_at_a_border(self) -> None:
        """The silent channel is 0.7 within and 0 around: a depthwise convolution makes edges of it."""
        net, output = depthwise_net(pads=1)
        _, proposals, _ = propose(net, output)
        assert proposals.notes[0].endswith("1 of 1 dead channels take a copy")

    def test_dead_channels_that_end_at_the_border_of_the_next_layer(self) -> None:
        net = Net(3, 10, 10)
        output = net.add("Conv", stem(net), net.normal(6, 8, 3, 3), pads=[1] * 4)
        state, proposals, feed = propose(net, output)
        assert proposals.notes[0].endswith("1 of 1 dead channels take a copy")
        check_exact(state, proposals, feed)

    def test_channels_that_bounds_cut(self) -> None:
        net = Net(3, 10, 10)
        weight, bias = net.rng.standard_normal((8, 3, 3, 3)), np.zeros(8)
        bias[CLOSED] = -500.0
        hidden = net.add("Relu", net.add("Conv", "x", net.const(weight), net.const(bias)))
        _, proposals, _ = propose(net, net.add("Conv", hidden, net.normal(6, 8, 1, 1)))
        assert not proposals.proposals
        assert proposals.notes[0].endswith("1 dead channels, but none that a copy would help")

    def test_no_dead_channel(self) -> None:
        net = Net(3, 10, 10)
        hidden = net.add("Clip", net.add("Conv", "x", net.normal(8, 3, 3, 3)), net.const(-9.0), net.const(9.0))
        _, proposals, _ = propose(net, net.add("Conv", hidden, net.normal(6, 8, 1, 1)))
        assert not proposals.proposals
        assert proposals.notes[0].endswith("no dead channel")

    @pytest.mark.parametrize("share", [0.01, 0.03])
    def test_small_shares(self, share: float) -> None:
        net, output = depthwise_net()
        _, proposals, _ = propose(net, output, shares={net.nodes[1].output[0]: share})
        assert bool(proposals.proposals) == (share > 0.02)

    def test_other_readers(self) -> None:
        net = Net(3, 10, 10)
        hidden = stem(net)
        output = net.add("Add", net.add("Conv", hidden, net.normal(8, 8, 1, 1)), hidden)
        assert not propose(net, output)[1].proposals
        net = Net(3, 10, 10)
        hidden = stem(net)
        assert not propose(net, net.add("Conv", hidden, net.normal(8, 8, 1, 1)), hidden)[1].proposals

    def test_convolutions_in_groups(self) -> None:
        net = Net(3, 10, 10)
        assert not propose(net, net.add("Conv", stem(net), net.normal(8, 2, 1, 1), group=4))[1].proposals


@pytest.mark.tensorrt_rtx
def test_tensorrt_builds_shifted_copies() -> None:
    net, output = depthwise_net(pads=1, silent=0.0)
    feed = net.feed(192)
    state = state_of(net.model(output), ArrayObservations(feed))
    (*_, shifted) = Shift().propose(state, context(feed)).proposals
    for proposal in Spare().propose(shifted.state, context(feed)).proposals:
        assert build_engine(proposal.state.quantized(UNLIMITED).proto).size_bytes > 0


def test_too_few_samples_to_call_a_channel_dead() -> None:
    net, output = depthwise_net()
    feed = net.feed(63)
    state = state_of(net.model(output), ArrayObservations(feed))
    found = Spare().propose(state, context(feed))
    assert not found.proposals
    assert "63 samples" in found.notes[0]


def test_errors_that_are_no_numbers_win_nothing() -> None:
    assert allocate(np.array([np.nan, 0.0, 0.0]), [1, 2]) == {}
