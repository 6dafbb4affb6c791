"""The tensors that only the user's file has get ranges of their own, so that TensorRT 10 finds all in the cache."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_data import MemoryData
from onnx import ModelProto, helper, numpy_helper
from original_model import exported

import quantlab.engines.original as module
from quantlab.calibrators import Histogram
from quantlab.datasets import Sample
from quantlab.degradation import DegradationCode
from quantlab.engines.observation import Observation, observe, observed_tensors
from quantlab.engines.original import OriginalObservation, observe_original
from quantlab.errors import CalibrationError
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


def observed(proto: ModelProto) -> tuple[Model, Prepared, Observation, OriginalObservation]:
    original = Model.of(proto)
    prepared = prepare(original)
    histograms = observe(prepared, data(), observed_tensors(prepared), 1, Silent())
    return original, prepared, histograms, observe_original(prepared, original, histograms, data(), 1, Silent())


def test_the_whole_file_is_covered() -> None:
    original, _, histograms, found = observed(exported())
    assert {*histograms, *found.histograms} >= {*float_activations(original.proto), "bias"}
    assert not set(histograms) & set(found.histograms)
    assert set(found.histograms) == {*found.aliases, *found.observed, *found.constants}
    assert found.degradations == ()
    assert found.constants == ("bias",)
    assert (found.histograms["bias"].minimum, found.histograms["bias"].total) == (-3.5, 1)


@pytest.mark.parametrize("proto", [exported(), fixed_batch(3)], ids=["dynamic batch", "batches of three"])
def test_counts_are_those_of_the_original_graph(proto: ModelProto) -> None:
    """Against a plain session on the user's file with every tensor as an output."""
    original, _, histograms, found = observed(proto)
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
    assert "conv" in found.observed
    for name in found.aliases:
        assert found.histograms[name].maximum == pytest.approx(expected[name].maximum, rel=1e-5)
        assert found.histograms[name].total == expected[name].total
    assert {*histograms, *found.histograms} >= set(names)


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
    histograms = observe(prepared, data(), observed_tensors(prepared), 1, Silent())
    monkeypatch.setattr(module, "observe", None)  # calling it would fail
    found = observe_original(prepared, original, histograms, data(), 1, Silent())
    assert {*histograms, *found.aliases} >= {"x", "same", "flat", "dropped", "y"}
    assert found.histograms["same"] is histograms["x"]
    assert (found.observed, found.constants) == ((), ())


def test_a_tensor_of_other_values_is_reported() -> None:
    """As if a rewrite had kept a name for something else."""
    original, prepared, histograms, _ = observed(exported())
    changed = ModelProto()
    changed.CopyFrom(prepared.model.proto)
    for tensor in changed.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, "w"))
    other = dataclasses.replace(prepared, model=prepared.model.with_proto(changed))
    found = observe_original(other, original, histograms, data(), 1, Silent())
    (degradation,) = found.degradations
    assert degradation.code is DegradationCode.UNMATCHED_RANGES
    assert "norm" in degradation.subjects
    assert not set(found.histograms) & set(histograms)


def test_a_failing_model_is_an_error() -> None:
    original, prepared, histograms, _ = observed(exported())
    broken = MemoryData([Sample("s", {"x": np.zeros((3, 5, 5), np.float32)}, None, "s")])
    with pytest.raises(CalibrationError, match="failed on the first sample"):
        observe_original(prepared, original, histograms, broken, 1, Silent())


def test_what_was_odd_is_passed_on() -> None:
    """Names of samples with infinite values, of aliases and of tensors that the second pass counted."""
    original = Model.of(exported())
    prepared = prepare(original)
    odd = data()
    odd.samples[2].inputs["x"][0, 0, 0] = np.inf
    histograms = observe(prepared, odd, observed_tensors(prepared), 1, Silent())
    found = observe_original(prepared, original, histograms, odd, 1, Silent())
    assert found.histograms.non_finite["conv"] == "2"
    assert all(found.histograms.non_finite.get(a) == histograms.non_finite.get(s) for a, s in found.aliases.items())
