"""The tensors that only the user's file has get ranges of their own, so that TensorRT 10 finds all in the cache."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_data import MemoryData
from onnx import ModelProto, NodeProto, helper, numpy_helper
from original_model import exported

import quantlab.engines.original as module
from quantlab.calibrators import Histogram
from quantlab.calibrators.extremes import ChannelExtremes, Extremes
from quantlab.datasets import Sample
from quantlab.engines.observation import Observation, observe, observed_tensors
from quantlab.engines.original import OriginalObservation, observe_original
from quantlab.errors import CalibrationError
from quantlab.graph.folded import OriginalPlan, plan_original
from quantlab.graph.model import Model, open_session
from quantlab.graph.original import float_activations
from quantlab.graph.prepare import Prepared, prepare
from quantlab.progress import Silent


def data(n: int = 7) -> MemoryData:
    rng = np.random.default_rng(2)
    return MemoryData(
        [
            Sample(str(i), {"x": rng.standard_normal((3, 4, 4)).astype(np.float32) * (i + 1)}, None, str(i))
            for i in range(n)
        ]
    )


def fixed_batch(size: int) -> ModelProto:
    proto = exported()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = size
    return proto


def observed(proto: ModelProto) -> tuple[Model, Prepared, Observation, OriginalPlan]:
    original = Model.of(proto)
    prepared = prepare(original)
    names = observed_tensors(prepared)
    plan = plan_original(prepared, original, names)
    observation = observe(prepared, data(), names, 1, Silent(), channelwise=plan.channelwise)
    return original, prepared, observation, plan


def found_in(proto: ModelProto) -> tuple[Model, Observation, OriginalPlan, OriginalObservation]:
    original, prepared, observation, plan = observed(proto)
    found = observe_original(prepared, original, plan, observation, data(), 1, Silent())
    return original, observation, plan, found


def test_the_whole_file_is_covered() -> None:
    original, observation, plan, found = found_in(exported())
    covered = {*observation, *found.histograms, *found.extremes, *found.stored}
    assert covered >= {*float_activations(original.proto), "bias"}
    assert not set(observation) & {*found.histograms, *found.extremes}
    assert set(found.histograms) == {*plan.aliases, *plan.pads, *found.observed}
    assert found.stored == {"bias": Extremes(-3.5, -3.5)}


@pytest.mark.parametrize("proto", [exported(), fixed_batch(3)], ids=["dynamic batch", "batches of three"])
def test_values_are_those_of_the_original_graph(proto: ModelProto) -> None:
    """Against a plain session on the user's file with every tensor as an output."""
    original, observation, plan, found = found_in(proto)
    names = [name for name in float_activations(original.proto) if name != "x"]
    session = open_session(original, threads=1, outputs=names)
    size = original.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    rows = [sample.inputs["x"] for sample in data()]
    expected = {name: Histogram() for name in names}
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        padded = np.stack([*group, *[group[-1]] * (size - len(group))])
        for name, value in zip(names, session.run(names, {"x": padded}), strict=True):
            expected[name].add(value[: len(group)] if value.ndim else value)
    for name in found.observed:
        if expected[name].total != found.histograms[name].total:
            continue  # a scalar: once a call
        np.testing.assert_array_equal(found.histograms[name].counts, expected[name].counts, err_msg=name)
    assert "conv" in found.extremes
    for name, extremes in found.extremes.items():
        assert extremes.minimum == pytest.approx(expected[name].minimum, rel=1e-4), name
        assert extremes.maximum == pytest.approx(expected[name].maximum, rel=1e-4), name
        assert extremes.total == expected[name].total, name
    for name in plan.aliases:
        assert found.histograms[name].maximum == pytest.approx(expected[name].maximum, rel=1e-5)
        assert found.histograms[name].total == expected[name].total
    assert {*observation, *found.histograms, *found.extremes} >= set(names)


def padded_net(value: float = 0.0, mode: str = "constant") -> ModelProto:
    """Pad -> Conv, which the simplifier joins if zeros are added; -> Relu."""
    rng = np.random.default_rng(5)
    stored = [
        numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 1, 2], np.int64), "pads"),
        numpy_helper.from_array(np.float32(value), "value"),
        numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
    ]
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["wide"], mode=mode),
        helper.make_node("Conv", ["wide", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "padded", [info("x", 1, ["n", 3, 4, 4])], [info("y", 1, ["n", 4, 4, 4])], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_folded_padding_is_its_input_with_zeros() -> None:
    _, observation, plan, found = found_in(padded_net())
    assert plan.pads == {"wide": "x"}
    assert found.observed == ()
    expected = Histogram()
    for sample in data().samples:
        expected.add(np.pad(sample.inputs["x"], ((0, 0), (1, 1), (0, 2))))
    np.testing.assert_array_equal(found.histograms["wide"].counts, expected.counts)
    assert found.histograms["wide"].total == expected.total == observation["x"].total * 36 // 16


def test_paddings_with_other_values_are_observed() -> None:
    for proto in (padded_net(1.0), padded_net(mode="reflect")):
        _, observation, _, found = found_in(proto)
        if "wide" not in observation:  # folded, though it adds no zeros
            assert "wide" in found.observed


def test_a_channel_that_normalization_switches_off_tells_nothing() -> None:
    proto = exported()
    scale = next(t for t in proto.graph.initializer if t.name == _norm(proto).input[1])
    values = numpy_helper.to_array(scale).copy()
    values[0] = 0.0
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))
    original, _, plan, found = found_in(proto)
    name = _norm(proto).input[0]
    assert plan.norms[name].factor[0] == 0.0
    session = open_session(original, threads=1, outputs=[name])
    values = np.concatenate([session.run([name], {"x": s.inputs["x"][None]})[0][:, 1:] for s in data().samples])
    assert found.extremes[name].maximum == pytest.approx(float(values.max()), rel=1e-4)
    assert found.extremes[name].minimum == pytest.approx(float(values.min()), rel=1e-4)


def _norm(proto: ModelProto) -> NodeProto:
    return next(node for node in proto.graph.node if node.op_type == "BatchNormalization")


def test_no_second_pass_where_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity and Dropout share the range of their input."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Flatten", ["same"], ["flat"]),
        helper.make_node("Dropout", ["flat"], ["dropped"]), helper.make_node("MatMul", ["dropped", "fc"], ["y"]),
    ]  # fmt: skip
    proto = exported()
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    weight = numpy_helper.from_array(np.ones((48, 16), np.float32), "fc")
    del proto.graph.initializer[:]
    proto.graph.initializer.append(weight)
    original = Model.of(proto)
    prepared = prepare(original)
    names = observed_tensors(prepared)
    plan = plan_original(prepared, original, names)
    observation = observe(prepared, data(), names, 1, Silent())
    monkeypatch.setattr(module, "observe", None)  # calling it would fail
    found = observe_original(prepared, original, plan, observation, data(), 1, Silent())
    assert {*observation, *plan.aliases} >= {"x", "same", "flat", "dropped", "y"}
    assert found.histograms["same"] is observation["x"]
    assert (found.observed, found.extremes, found.stored) == ((), {}, {})


def test_a_tensor_of_other_values_is_observed() -> None:
    """As if a rewrite had kept a name for something else: what cannot be derived is counted in the file's own graph."""
    original, prepared, observation, plan = observed(exported())
    changed = ModelProto()
    changed.CopyFrom(prepared.model.proto)
    for tensor in changed.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, "w"))
    other = dataclasses.replace(prepared, model=prepared.model.with_proto(changed))
    found = observe_original(other, original, plan, observation, data(), 1, Silent())
    assert "conv" in found.observed
    assert "conv" not in found.extremes
    assert found.histograms["conv"].total > 0


def test_a_failing_model_is_an_error() -> None:
    original, prepared, observation, plan = observed(exported())
    broken = MemoryData([Sample("s", {"x": np.zeros((3, 5, 5), np.float32)}, None, "s")])
    with pytest.raises(CalibrationError, match="failed on the first sample"):
        observe_original(prepared, original, plan, observation, broken, 1, Silent())


def test_what_was_odd_is_passed_on() -> None:
    """Names of samples with infinite values, of aliases and paddings."""
    original = Model.of(padded_net())
    prepared = prepare(original)
    odd = data()
    odd.samples[2].inputs["x"][0, 0, 0] = np.inf
    names = observed_tensors(prepared)
    plan = plan_original(prepared, original, names)
    observation = observe(prepared, odd, names, 1, Silent(), channelwise=plan.channelwise)
    found = observe_original(prepared, original, plan, observation, odd, 1, Silent())
    assert found.histograms.non_finite["wide"] == "2"
    assert all(found.histograms.non_finite.get(a) == observation.non_finite.get(s) for a, s in plan.aliases.items())


class TestChannelExtremes:
    def test_non_finite_values_are_left_out(self) -> None:
        channels = ChannelExtremes()
        channels.add(np.array([[[1.0, np.nan], [-2.0, 3.0]]], np.float32))
        channels.add(np.array([[[np.inf, 0.5], [7.0, -np.inf]]], np.float32))
        assert channels.minima.tolist() == [0.5, -2.0]
        assert channels.maxima.tolist() == [1.0, 7.0]
        channels.add(np.zeros((0, 2, 3), np.float32))
        assert channels.total == 8

    def test_parts_merge_to_the_whole(self) -> None:
        values = np.random.default_rng(0).standard_normal((9, 4, 5)).astype(np.float32)
        whole, merged = ChannelExtremes(), ChannelExtremes()
        whole.add(values)
        for part in (values[:2], values[2:3], values[3:]):
            one = ChannelExtremes()
            one.add(part)
            merged.merge(one)
        merged.merge(ChannelExtremes())
        np.testing.assert_array_equal(merged.minima, whole.minima)
        np.testing.assert_array_equal(merged.maxima, values.max(axis=(0, 2)))
        assert merged.total == whole.total

    def test_a_negative_factor_turns_the_range_round(self) -> None:
        channels = ChannelExtremes()
        channels.add(np.array([[[-1.0, 3.0], [5.0, 5.0]]], np.float32))
        found = channels.before(np.array([-2.0, 0.0]), np.array([1.0, 5.0]))
        assert (found.minimum, found.maximum) == (-1.0, 1.0)
        assert not channels.before(np.zeros(2), np.zeros(2)).known
