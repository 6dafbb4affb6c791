"""Tensors of the user's file that preparation folds away: which there are, and which have a range already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from original_model import exported

from quantlab.engines.observation import observed_tensors
from quantlab.graph.model import Model, load_model
from quantlab.graph.network import network_tensors
from quantlab.graph.original import constant_operands, float_activations, original_only_tensors, value_classes
from quantlab.graph.prepare import prepare

make = helper.make_node


def test_float_activations() -> None:
    """Shapes are integers and are not among them; a float made from one is."""
    assert float_activations(exported()) == (
        "x", "conv", "norm", "act", "same", "dropped", "sum1", "sum2", "both", "turned", "n_float", "flat", "y",
    )  # fmt: skip


def test_value_classes() -> None:
    classes = value_classes(exported())
    assert classes["same"] == classes["dropped"] == classes["act"] == "act"
    assert classes["sum2"] == classes["sum1"] == "sum1"
    assert classes["turned"] == classes["flat"] == classes["both"] == "both"
    assert len({classes[name] for name in ("x", "conv", "norm", "act", "sum1", "both", "y")}) == 7


def test_moved_values_are_not_the_same_operand() -> None:
    """Equal as a set of values, but an operator on them gives others."""
    proto = exported()
    proto.graph.node.extend([make("Softmax", ["both"], ["p"], axis=1), make("Softmax", ["turned"], ["q"], axis=1)])
    classes = value_classes(proto)
    assert classes["p"] != classes["q"]


def test_attributes_and_training_tell_tensors_apart() -> None:
    nodes = [
        make("Softmax", ["x"], ["a"], axis=1), make("Softmax", ["x"], ["b"], axis=2),
        make("Softmax", ["x"], ["c"], axis=1),
        make("Dropout", ["x", "ratio", "training"], ["d"]), make("RandomNormalLike", ["x"], ["e"]),
        make("RandomNormalLike", ["x"], ["f"]), make("Split", ["x"], ["g", "h"], axis=1),
    ]  # fmt: skip
    proto = exported()
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    classes = value_classes(proto)
    assert classes["c"] == "a"
    assert {classes[name] for name in "xabdefgh"} == set("xabdefgh")


def test_original_only_tensors() -> None:
    original = Model.of(exported())
    prepared = prepare(original)
    known = set(observed_tensors(prepared))
    found = original_only_tensors(original, known)
    assert "conv" in found.missing
    assert {"act", "same", "dropped"} <= {*known, *found.aliases}
    assert {*known, *found.aliases, *found.missing} >= set(float_activations(original.proto))
    assert not {*known} & {*found.aliases, *found.missing}
    assert set(found.aliases.values()) <= known


def test_constant_operands() -> None:
    found = constant_operands(Model.of(exported()))
    assert {name: value.tolist() for name, value in found.items()} == {"bias": [[[[-3.5]]]]}


@pytest.mark.parametrize("name", ["fashion-resnet", "fashion-mobilenet"])
def test_bundled_models_lose_only_outputs_before_batch_normalization(name: str) -> None:
    original = load_model(Path(__file__).parents[2] / "datasets/samples" / f"{name}.onnx")
    prepared = prepare(original)
    found = original_only_tensors(original, observed_tensors(prepared))
    norms = [node.input[0] for node in original.proto.graph.node if node.op_type == "BatchNormalization"]
    assert found.missing == tuple(norms)
    assert found.aliases == {}


LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "missing", "aliases"),
    [("light_resnet50", 53, 0), ("light_densenet121", 59, 0), ("light_squeezenet", 0, 1), ("light_bvlc_alexnet", 0, 2)],
)
def test_published_models(name: str, missing: int, aliases: int) -> None:
    original = load_model(LIGHT / f"{name}.onnx")
    found = original_only_tensors(original, observed_tensors(prepare(original)))
    assert (len(found.missing), len(found.aliases)) == (missing, aliases)


def test_network_tensors() -> None:
    proto = exported()
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(v), n) for n, v in (("lo", -1), ("hi", 6), ("one", 1))]
    )
    proto.graph.node.extend(
        [
            make("Clip", ["both", "lo", "hi"], ["clip"]), make("Clip", ["both", "", "hi"], ["below"]),
            make("Clip", ["both", "one", "hi"], ["away"]), make("Sigmoid", ["both"], ["sigmoid"]),
        ]
    )  # fmt: skip
    found = network_tensors(Model.of(proto))
    assert dict(found.limits) == {"clip": 6.0, "away": 6.0, "sigmoid": 1.0}
    assert found.within["act"] == "norm"
    assert found.within["clip"] == found.within["below"] == "both"
    assert "away" not in found.within, "it lifts small values to 1"
    assert "bias" in found.constants
