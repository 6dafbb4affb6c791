"""Variants of a recovered model: when they are, what they are called, and what they are built from."""

from __future__ import annotations

import dataclasses

import pytest
from engine_data import calibrated, prepared_cnn

from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.artifact import quantized_graph
from quantlab.engines.tensorrt.weak import weak_recovery
from quantlab.engines.variant import RecoveredModel, Variant, variant_name
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.layers import find_layers
from quantlab.graph.metadata import moves_tensors, stated_recovery, with_recovery
from quantlab.graph.model import Model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.precision import Precision
from quantlab.recovery.recover import STEP_NAMES


def variant(precision: Precision, **changes: object) -> Variant:
    prepared = prepared_cnn()
    table = calibrated(prepared)
    model = dataclasses.replace(prepared.model)
    own = dataclasses.replace(table, recovered=("round",))
    found = RecoveredModel(model, own, {}, TENSORRT.name, table.method, ("round",), "a" * 64)
    made = Variant(prepared, "onnxruntime", precision, TENSORRT, table, recovery=found)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", Precision)
def test_int8_alone_is_built_from_it(precision: Precision) -> None:
    made = variant(precision)
    is_int8 = precision in (Precision.INT8, Precision.INT8_FP16)
    assert (made.recovered is made.recovery) == is_int8
    assert (made.model is made.prepared.model) == (not is_int8)
    assert (made.ranges is made.table) == (not is_int8)
    assert made.degradations == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": ONNXRUNTIME}, "made for the target tensorrt, this is onnxruntime"),
        ({"existing": ExistingPolicy.KEEP}, "the pairs that the model holds are kept"),
    ],
)
def test_what_does_not_fit_is_counted(changes: dict[str, object], reason: str) -> None:
    made = variant(Precision.INT8, **changes)
    assert made.recovered is None and made.ranges is made.table
    (degradation,) = made.degradations
    assert degradation.code is DegradationCode.RECOVERY_UNUSED and reason in degradation.message
    assert variant(Precision.FP16, **changes).degradations == ()


def test_another_method() -> None:
    made = variant(Precision.INT8)
    assert made.table is not None
    other = dataclasses.replace(made, table=made.table.with_method("mse"))
    assert other.recovered is None
    assert "made with minmax ranges, these are mse" in other.degradations[0].message


def test_a_missing_table_is_another_error() -> None:
    made = variant(Precision.INT8, table=None)
    assert (made.recovered, made.degradations) == (None, ())


def test_the_graph_says_so() -> None:
    made = quantized_graph(variant(Precision.INT8))
    assert stated_recovery(Model.of(made.proto).metadata) == ("round",)
    plain = quantized_graph(variant(Precision.INT8, recovery=None))
    assert stated_recovery(Model.of(plain.proto).metadata) == ()
    assert made.proto.graph == plain.proto.graph  # nothing was changed but that
    assert with_recovery(made.proto, ("round",)) is made.proto


def test_layers_that_the_recovery_excluded_stay_so() -> None:
    made = variant(Precision.INT8, target=ONNXRUNTIME)
    assert made.recovery is not None
    made = dataclasses.replace(made, recovery=dataclasses.replace(made.recovery, target=ONNXRUNTIME.name))
    first, second, _ = sorted(layer.node.name for layer in find_layers(made.prepared.model.proto.graph, ONNXRUNTIME))
    assert made.recovery is not None
    left = dataclasses.replace(made, recovery=dataclasses.replace(made.recovery, exclude=(first,)))
    assert quantized_graph(made).excluded == ()
    assert quantized_graph(left).excluded == (first,)
    assert quantized_graph(dataclasses.replace(left, exclude=(second,))).excluded == (first, second)


def test_names() -> None:
    found = variant(Precision.INT8).recovery
    assert variant_name("b", Precision.INT8, "mse", 2, found) == "b-int8-mse-recovered+2excl"
    assert variant_name("b", Precision.INT8, "mse", 0, found) == "b-int8-mse-recovered"
    assert variant_name("b", Precision.INT8, "mse", 0) == "b-int8-mse"


def test_weakly_typed_engines_have_nothing_of_it() -> None:
    """TensorRT rounds their weights by itself."""
    (degradation,) = weak_recovery(variant(Precision.INT8))
    assert degradation.code is DegradationCode.RECOVERY_UNUSED and "by itself" in degradation.message
    assert weak_recovery(variant(Precision.FP16)) == weak_recovery(variant(Precision.INT8, recovery=None)) == ()


def test_weakly_typed_engines_where_no_step_was_kept() -> None:
    """There is nothing that they could have had; why is what they tell."""
    reason = Degradation(DegradationCode.RECOVERY_NOT_RUN, "too few samples")
    made = variant(Precision.INT8)
    assert made.recovery is not None
    nothing = dataclasses.replace(made.recovery, steps=(), degradations=(reason,))
    assert weak_recovery(dataclasses.replace(made, recovery=nothing)) == (reason,)
    assert weak_recovery(dataclasses.replace(made, recovery=nothing, precision=Precision.FP16)) == ()


@pytest.mark.parametrize("step", STEP_NAMES)
def test_steps_that_move_tensors(step: str) -> None:
    assert moves_tensors((step,)) == (step not in ("ranges", "round", "bias"))
    assert not moves_tensors(())
