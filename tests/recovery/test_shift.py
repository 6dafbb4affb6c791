"""Asymmetry without zero-points: the float graph stays exact, and the symmetric grid becomes the unsigned one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from qdq_checks import UNLIMITED
from rtx_builder import build_engine
from small_nets import Net
from small_observations import ArrayObservations, context_of, outputs_of, state_of

from quantlab.calibrators.quantize import INT8_SYMMETRIC, UINT8_AFFINE, parameters, quantize
from quantlab.graph.model import Model, open_session
from quantlab.graph.offsets import GraphEdit, convolution_pads
from quantlab.graph.prepare import prepare
from quantlab.recovery.protocol import Context, Proposals, State
from quantlab.recovery.shift import Shift

Feed = Mapping[str, NDArray[np.float32]]


def context(observations: ArrayObservations, shares: Mapping[str, float] | None = None) -> Context:
    return dataclasses.replace(context_of(observations), target=UNLIMITED, shares=shares or {})


def propose(
    net: Net, *outputs: str, shares: Mapping[str, float] | None = None
) -> tuple[State, Proposals, dict[str, NDArray[np.float32]]]:
    feed = net.feed()
    observations = ArrayObservations(feed)
    state = state_of(net.model(*outputs), observations)
    return state, Shift().propose(state, context(observations, shares)), feed


def check_exact(state: State, proposals: Proposals, feed: Feed) -> None:
    expected = outputs_of(state.model, feed)
    for proposal in proposals.proposals:
        onnx.checker.check_model(proposal.state.model.proto, full_check=True)
        got = outputs_of(proposal.state.model, feed)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def changed(proposals: Proposals) -> set[str]:
    return set(proposals.proposals[-1].changed) if proposals.proposals else set()


def two_convolutions(
    rank: int, second: Mapping[str, object], kernel: Sequence[int], clip: tuple[float, float] | None
) -> Net:
    net = Net(3, *(9,) * rank)
    group = int(second.get("group", 1))  # type: ignore[call-overload]
    hidden = net.add("Conv", "x", net.normal(8, 3, *(3,) * rank), net.normal(8))
    if clip is None:
        hidden = net.add("Relu", hidden)
    else:
        hidden = net.add("Clip", hidden, net.const(clip[0]), net.const(clip[1]))
    net.add("Conv", hidden, net.normal(8, 8 // group, *kernel), **second)
    return net


class TestExactness:
    @settings(max_examples=25)
    @given(st.data())
    def test_any_convolution(self, data: st.DataObject) -> None:
        """Kernel, stride, dilation, groups, paddings of any size at each border, one or two spatial axes."""
        rank = data.draw(st.integers(1, 2))
        axes = [rank] * 2

        def sizes(low: int, high: int, n: int = rank) -> list[int]:
            return data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

        kernel = sizes(1, 3)
        second: dict[str, object] = {
            "strides": sizes(1, 3),
            "dilations": sizes(1, 2),
            "group": data.draw(st.sampled_from([1, 2, 8])),
        }
        if data.draw(st.booleans()):
            second["pads"] = sizes(0, 2, sum(axes))
        else:
            second["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        clip = data.draw(st.sampled_from([None, (0.0, 1.5), (-0.2, 2.0)]))
        net = two_convolutions(rank, second, kernel, clip)
        # Some sizes make ONNX Runtime's results depend on the batch.
        assume(prepare(Model.of(net.model(net.nodes[-1].output[0]))).fixed_batch is None)
        state, proposals, feed = propose(net, net.nodes[-1].output[0])
        assert len(proposals.proposals) == 1
        check_exact(state, proposals, feed)

    @pytest.mark.parametrize("form", ["gemm", "scaled gemm", "transposed gemm", "matmul", "matmul and add"])
    def test_products(self, form: str) -> None:
        net = Net(12)
        hidden = net.add("Relu", net.add("Gemm", "x", net.normal(12, 16), net.normal(1, 16), alpha=0.5, beta=2.0))
        if form == "gemm":
            output = net.add("Gemm", hidden, net.normal(16, 5))
        elif form == "scaled gemm":
            output = net.add("Gemm", hidden, net.normal(16, 5), net.const(0.7), alpha=3.0, beta=0.25)
        elif form == "transposed gemm":
            output = net.add("Gemm", hidden, net.normal(5, 16), net.normal(5), transB=1)
        else:
            output = net.add("MatMul", hidden, net.normal(16, 5))
            output = net.add("Add", net.normal(5), output) if form.endswith("add") else net.add("Tanh", output)
        state, proposals, feed = propose(net, output)
        assert changed(proposals) == {hidden}
        check_exact(state, proposals, feed)

    def test_products_of_three_axes_behind_an_add(self) -> None:
        net = Net(4, 12)
        hidden = net.add("Relu", net.add("Add", net.add("MatMul", "x", net.normal(12, 16)), net.normal(16)))
        state, proposals, feed = propose(net, net.add("MatMul", hidden, net.normal(16, 5)))
        assert changed(proposals) == {hidden}
        check_exact(state, proposals, feed)

    @pytest.mark.parametrize("bias", [True, False])
    def test_layer_normalization_before(self, bias: bool) -> None:
        net = Net(4, 12)
        scale = net.const(np.abs(net.rng.standard_normal(12)) + 0.1)
        biases = [net.const(net.rng.uniform(0, 3, 12))] if bias else []
        hidden = net.add("LayerNormalization", net.add("Exp", "x"), scale, *biases)
        state, proposals, feed = propose(net, net.add("MatMul", hidden, net.normal(12, 5)))
        assert changed(proposals) == {hidden}
        assert proposals.proposals[0].label == "readers that do not pad"
        check_exact(state, proposals, feed)

    @pytest.mark.parametrize("bias", [True, False])
    def test_transposed_convolution_in_groups_before(self, bias: bool) -> None:
        net = Net(4, 5, 5)
        biases = [net.normal(6)] if bias else []
        hidden = net.add("ConvTranspose", "x", net.normal(4, 3, 3, 3), *biases, group=2, strides=[2, 2])
        hidden = net.add("Relu", hidden)
        state, proposals, feed = propose(net, net.add("Conv", hidden, net.normal(4, 6, 3, 3), pads=[1] * 4))
        assert changed(proposals) == {hidden}
        check_exact(state, proposals, feed)

    def test_other_readers_of_shared_constants_keep_them(self) -> None:
        net = Net(4, 6, 6)
        weight, bias = net.normal(4, 4, 3, 3), net.normal(4)
        hidden = "x"
        for activation in ("Relu", "Sigmoid", "Relu", "Tanh"):
            hidden = net.add(activation, net.add("Conv", hidden, weight, bias, pads=[1] * 4))
        state, proposals, feed = propose(net, hidden)
        assert [len(proposal.changed) for proposal in proposals.proposals] == [2, 3]
        check_exact(state, proposals, feed)

    def test_only_the_reader_that_pads_gets_a_pad(self) -> None:
        net = Net(3, 8, 8)
        hidden = net.add("Relu", net.add("Conv", "x", net.normal(8, 3, 3, 3), net.normal(8)))
        padded = [net.add("Conv", hidden, net.normal(8, 8, 3, 3), pads=[1] * 4) for _ in range(2)]
        free = net.add("Conv", hidden, net.normal(8, 8, 1, 1))
        total = net.add("Add", net.add("Add", *padded), free)
        state, proposals, feed = propose(net, total)
        check_exact(state, proposals, feed)
        (proposal,) = proposals.proposals
        (pad,) = [node for node in proposal.state.model.proto.graph.node if node.op_type == "Pad"]
        readers = [node.input[0] for node in proposal.state.model.proto.graph.node if node.op_type == "Conv"]
        assert readers.count(pad.output[0]) == 2
        assert readers.count(hidden) == 1
        assert proposals.notes == ("with 1 padded: Pads write 512 elements a sample once more",)


class TestBehind:
    """Tensors that no bias moves take an Add."""

    @pytest.mark.parametrize("pads", [0, 1])
    def test_hard_swish(self, pads: int) -> None:
        net = Net(4, 6, 6)
        hidden = net.add("HardSwish", net.add("Conv", "x", net.normal(8, 4, 3, 3), net.normal(8), pads=[1] * 4))
        output = net.add("Conv", hidden, net.normal(8, 1, 3, 3), net.normal(8), pads=[pads] * 4, group=8)
        state, proposals, feed = propose(net, output)
        (proposal,) = proposals.proposals
        assert proposal.label == "with 0 padded, 1 by an Add"
        padding = "Pads write 512 elements a sample once more, " if pads else ""
        assert proposals.notes == (f"{proposal.label}: {padding}1 tensors take an Add",)
        check_exact(state, proposals, feed)
        before, after = state.quantized(UNLIMITED), proposal.state.quantized(UNLIMITED)
        assert after.layers == before.layers
        read = f"{hidden}_shifted" + ("_padded" if pads else "")
        assert after.tensors.keys() == {"x", read}
        assert after.tensors[read].scale < 0.6 * before.tensors[hidden].scale

    def test_readers_that_are_no_layers_keep_the_tensor(self) -> None:
        """A gate as in squeeze and excitation: the pool reads the tensor as it was."""
        net = Net(4, 6, 6)
        hidden = net.add("HardSwish", net.add("Conv", "x", net.normal(8, 4, 3, 3), net.normal(8)))
        gate = net.add("Sigmoid", net.add("GlobalAveragePool", hidden))
        output = net.add("Mul", net.add("Conv", hidden, net.normal(8, 8, 1, 1)), gate)
        state, proposals, feed = propose(net, output)
        assert changed(proposals) == {hidden}
        check_exact(state, proposals, feed)

    def test_layer_output_with_another_reader(self) -> None:
        net = Net(4, 6, 6)
        convolved = net.add("Conv", "x", net.normal(4, 4, 3, 3), net.normal(4), pads=[1] * 4)
        hidden = net.add("Relu", convolved)
        state, proposals, feed = propose(
            net, net.add("Add", net.add("Conv", hidden, net.normal(4, 4, 1, 1)), convolved)
        )
        assert proposals.proposals[0].label == "with 0 padded, 1 by an Add"
        check_exact(state, proposals, feed)

    def test_subgraph_reader(self) -> None:
        net = Net(4, 6, 6)
        hidden = net.add("Relu", net.add("Conv", "x", net.normal(4, 4, 3, 3), net.normal(4)))
        value = helper.make_tensor_value_info
        branches = {}
        for name in ("then_branch", "else_branch"):
            node = helper.make_node("Abs", [hidden], [f"{name}_out"], name=f"{name}_abs")
            branches[name] = helper.make_graph([node], name, [], [value(f"{name}_out", TensorProto.FLOAT, None)])
        condition = net.add("Greater", net.add("ReduceMax", "x", keepdims=0), net.const(0.0))
        inner = net.add("If", condition, **branches)
        output = net.add("Add", net.add("Conv", hidden, net.normal(4, 4, 1, 1)), inner)
        state, proposals, feed = propose(net, output)
        assert proposals.proposals[0].label == "with 0 padded, 1 by an Add"
        check_exact(state, proposals, feed)

    def test_graph_output(self) -> None:
        net = Net(4, 6, 6)
        hidden = net.add("Relu", net.add("Conv", "x", net.normal(4, 4, 3, 3), net.normal(4)))
        state, proposals, feed = propose(net, hidden, net.add("Conv", hidden, net.normal(4, 4, 1, 1)))
        assert proposals.proposals[0].label == "with 0 padded, 1 by an Add"
        check_exact(state, proposals, feed)

    def test_product_whose_input_and_output_both_move(self) -> None:
        net = Net(12)
        hidden = net.add("Relu", net.add("Gemm", "x", net.normal(12, 16), net.normal(16)))
        product = net.add("MatMul", hidden, net.const(net.rng.uniform(0, 1, (16, 16))))
        shares = {hidden: 0.3, product: 0.7}
        state, proposals, feed = propose(net, net.add("MatMul", product, net.normal(16, 5)), shares=shares)
        assert changed(proposals) == {hidden, product}
        check_exact(state, proposals, feed)

    @pytest.mark.parametrize("share", [0.01, 0.03])
    def test_only_where_it_matters(self, share: float) -> None:
        net = Net(4, 6, 6)
        hidden = net.add("HardSwish", net.add("Conv", "x", net.normal(8, 4, 3, 3)))
        _, proposals, _ = propose(net, net.add("Conv", hidden, net.normal(8, 8, 1, 1)), shares={hidden: share})
        assert bool(proposals.proposals) == (share > 0.02)

    @pytest.mark.tensorrt_rtx
    def test_tensorrt_builds(self) -> None:
        net, hidden = Net(16, 12, 12), "x"
        for n_in in (16, 32, 32):
            hidden = net.add("HardSwish", net.add("Conv", hidden, net.normal(32, n_in, 3, 3), pads=[1] * 4))
        state, proposals, _ = propose(net, hidden)
        (proposal,) = proposals.proposals
        assert len(proposal.changed) == 2
        whole = build_engine(state.model.proto, batch=1).weights_bytes
        assert build_engine(proposal.state.quantized(UNLIMITED).proto, batch=1).weights_bytes < 0.5 * whole


class TestGrid:
    @pytest.mark.parametrize("clip", [None, (0.0, 1.5), (-0.25, 1.0)])
    def test_codes_are_the_unsigned_ones_less_128(self, clip: tuple[float, float] | None) -> None:
        net = two_convolutions(2, {"pads": [1] * 4}, (3, 3), clip)
        state, proposals, feed = propose(net, net.nodes[-1].output[0])
        (proposal,) = proposals.proposals
        tensor = proposal.changed[0]
        before, after = (
            np.asarray(open_session(s.model, threads=1, outputs=[tensor]).run([tensor], dict(feed))[0])
            for s in (state, proposal.state)
        )
        found = state.table.range_of(state.table.entries()[tensor], "uint8-affine")
        unsigned = parameters(found.low, found.high, UINT8_AFFINE)
        expected = quantize(before, unsigned.scale, unsigned.zero_point, UINT8_AFFINE).astype(int) - 128
        tensors = proposal.state.quantized(UNLIMITED).tensors
        assert len(tensors) == len(state.quantized(UNLIMITED).tensors)
        grid = tensors[f"{tensor}_padded"]
        assert grid.scale == pytest.approx(unsigned.scale, rel=1e-6)
        codes = quantize(after, grid.scale, grid.zero_point, INT8_SYMMETRIC).astype(int)
        assert np.mean(codes != expected) < 1e-3  # ties, where float32 rounds to either side
        assert np.abs(codes - expected).max() <= 1

    def test_zero_is_a_code(self) -> None:
        net = two_convolutions(2, {"pads": [1] * 4}, (3, 3), None)
        _, proposals, _ = propose(net, net.nodes[-1].output[0])
        (proposal,) = proposals.proposals
        proto = proposal.state.model.proto
        (pad,) = [node for node in proto.graph.node if node.op_type == "Pad"]
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        border = float(stored[pad.input[2]])
        scale = proposal.state.quantized(UNLIMITED).tensors[pad.output[0]].scale
        assert border / scale == pytest.approx(-128, abs=1e-4)

    def test_entries_follow_their_tensors(self) -> None:
        net = two_convolutions(2, {"pads": [1] * 4}, (3, 3), (0.0, 1.5))
        _, proposals, feed = propose(net, net.nodes[-1].output[0])
        (proposal,) = proposals.proposals
        seen = ArrayObservations(feed).ranges(proposal.state, [n for n in proposal.state.table.entries() if n != "x"])
        for entry in proposal.state.table.tensors:
            again = seen.entries()[entry.name]
            assert (entry.minimum, entry.maximum) == pytest.approx((again.minimum, again.maximum), abs=1e-5)


class TestProposals:
    def net(self) -> tuple[Net, list[str], str]:
        """Three tensors whose readers pad, one whose reader does not."""
        net, hidden, tensors = Net(4, 6, 6), "x", []
        for _ in range(4):
            hidden = net.add("Relu", net.add("Conv", hidden, net.normal(4, 4, 3, 3), net.normal(4), pads=[1] * 4))
            tensors.append(hidden)
        net.nodes[-1].input[0] = net.nodes[-2].output[0]
        return net, tensors, net.add("Conv", hidden, net.normal(4, 4, 1, 1))

    def test_cautious_first_and_by_share(self) -> None:
        net, tensors, output = self.net()
        shares = dict(zip(tensors, (0.01, 0.5, 0.001, 0.0), strict=True))
        state, proposals, feed = propose(net, output, shares=shares)
        assert [set(proposal.changed) for proposal in proposals.proposals] == [
            {tensors[3]},
            {tensors[3], tensors[1]},
            {tensors[3], tensors[1], tensors[0]},
        ]
        assert len(proposals.notes) == 2
        check_exact(state, proposals, feed)

    def test_no_proposal_without_gain_in_noise(self) -> None:
        net, tensors, output = self.net()
        shares = dict(zip(tensors, (0.001, 0.001, 0.001, 0.0), strict=True))
        _, proposals, _ = propose(net, output, shares=shares)
        assert [set(proposal.changed) for proposal in proposals.proposals] == [{tensors[3]}]

    def test_target_with_zero_points(self) -> None:
        net, _, output = self.net()
        observations = ArrayObservations(net.feed())
        state = state_of(net.model(output), observations)
        proposals = Shift().propose(state, context_of(observations, "onnxruntime"))
        assert not proposals.proposals
        assert proposals.notes == ("target onnxruntime has zero-points",)


class TestLeftAlone:
    def relu(self, net: Net) -> str:
        return net.add("Relu", net.add("Conv", "x", net.normal(4, 4, 3, 3), net.normal(4), pads=[1] * 4))

    def test_residual_reader(self) -> None:
        net = Net(4, 6, 6)
        hidden = self.relu(net)
        output = net.add("Add", hidden, net.add("Conv", hidden, net.normal(4, 4, 1, 1)))
        assert not changed(propose(net, output)[1])

    def test_values_on_both_sides_of_zero(self) -> None:
        net = two_convolutions(2, {}, (1, 1), (-1.0, 1.0))
        assert not changed(propose(net, net.nodes[-1].output[0])[1])

    def test_reader_that_stays_in_floating_point(self) -> None:
        net = Net(4, 6, 6)
        output = net.add("Conv", self.relu(net), net.normal(4, 4, 1, 1))
        observations = ArrayObservations(net.feed())
        state = state_of(net.model(output), observations)
        excluded = dataclasses.replace(context(observations), exclude=(net.nodes[-1].name,))
        assert not Shift().propose(state, excluded).proposals

    def test_size_that_is_not_known(self) -> None:
        net = two_convolutions(1, {"auto_pad": "SAME_UPPER", "strides": [2]}, (3,), None)
        proto = net.model(net.nodes[-1].output[0])
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
        edit = GraphEdit(Model.of(proto))
        assert convolution_pads(edit, edit.index.producer[net.nodes[-1].output[0]]) is None


@pytest.mark.tensorrt_rtx
@pytest.mark.parametrize("clip", [None, (0.0, 1.5)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_tensorrt_builds_int8_layers(clip: tuple[float, float] | None, depthwise: bool) -> None:
    """Weights of a byte each: the layers behind the Pad and the shifted Clip are INT8 still.

    A Pad is among the weights: TensorRT-RTX keeps one padded INT8 tensor for each sample of the batch.
    """
    net, hidden = Net(16, 12, 12), "x"
    for pads, group in (([0] * 4, 1), ([1] * 4, 32 if depthwise else 1), ([0] * 4, 1), ([0] * 4, 1)):
        n_in = 16 if hidden == "x" else 32
        hidden = net.add("Conv", hidden, net.normal(32, n_in // group, 3, 3), net.normal(32), pads=pads, group=group)
        hidden = net.add("Relu", hidden) if clip is None else net.add("Clip", hidden, *(net.const(b) for b in clip))
    state, proposals, _ = propose(net, hidden)
    (*_, proposal) = proposals.proposals
    assert len(proposal.changed) == 3
    whole = build_engine(state.model.proto, batch=1).weights_bytes
    for made in proposals.proposals:
        assert build_engine(made.state.quantized(UNLIMITED).proto, batch=1).weights_bytes < 0.5 * whole
