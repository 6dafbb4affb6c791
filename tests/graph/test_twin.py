"""Which parts of two graphs belong together, and what their twins compute."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from qdq_checks import UNLIMITED, noise, quantized, ranges
from qdq_graphs import GRAPHS, residual, transformer

from quantlab.calibrators.quantize import INT8_SYMMETRIC, fake_quantize
from quantlab.errors import EngineMismatch, ModelError
from quantlab.graph.model import Model, Optimization, open_session
from quantlab.graph.qdq import QuantizationKind
from quantlab.graph.targets import ONNXRUNTIME
from quantlab.graph.twin import PartKind, TwinGraph, twin_graph


def twins(proto: object, **values: object) -> TwinGraph:
    original = proto()  # type: ignore[operator]
    made, _ = quantized(original, UNLIMITED, **values)  # type: ignore[arg-type]
    return twin_graph(Model.of(original), Model.of(made.proto))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("target", [UNLIMITED, ONNXRUNTIME], ids=["tensorrt", "onnxruntime"])
def test_all_graphs_match_whole(name: str, target: object) -> None:
    """Every pair has its counterpart, and the graph with the twins still gives the exact outputs."""
    if target is ONNXRUNTIME and name in ("ConvTranspose", "ConvTranspose with groups", "weight first"):
        return  # which it does not quantize
    original = GRAPHS[name]()
    made, feed = quantized(original, target)  # type: ignore[arg-type]
    found = twin_graph(Model.of(original), Model.of(made.proto))
    assert found.unmatched == ()
    assert {part.tensor for part in found.parts if part.kind is PartKind.ACTIVATION} == set(made.tensors)
    names = [value.name for value in original.graph.output]
    left = open_session(Model.of(original), threads=1, optimize=Optimization.NONE).run(names, feed)
    session = open_session(
        found.model, threads=1, outputs=[p.twin for p in found.parts if p.twin], optimize=Optimization.NONE
    )
    for one, two in zip(left, session.run(names, feed), strict=True):
        np.testing.assert_array_equal(one, two)
    for part in found.parts:
        if part.twin is not None:
            session.run([part.twin], feed)


def test_what_is_found_in_a_residual_block() -> None:
    found = twins(residual)
    kinds = [(part.kind, part.layer) for part in found.parts if part.kind is not PartKind.ACTIVATION]
    assert [layer for kind, layer in kinds if kind is PartKind.LAYER] == ["stem", "first", "second", "sum", "last"]
    assert kinds[-1] == (PartKind.OUTPUT, "last")
    assert [part.layer for part in found.stored] == ["stem", "first", "second", "last"]
    by_tensor = {part.tensor: part for part in found.parts if part.kind is PartKind.ACTIVATION}
    assert by_tensor["stem.relu"].sources == ("x",)
    assert by_tensor["stem.relu"].via == "stem"
    assert set(by_tensor["out"].sources) == {"skip", "first.relu"}, "both branches"
    assert by_tensor["x"].sources == ()


def test_the_twin_of_a_tensor_is_its_own_quantization_alone() -> None:
    original = residual()
    made, feed = quantized(original, UNLIMITED)
    found = twin_graph(Model.of(original), Model.of(made.proto))
    part = next(part for part in found.parts if part.tensor == "first.relu" and part.kind is PartKind.ACTIVATION)
    assert part.twin is not None
    session = open_session(found.model, threads=1, outputs=[part.twin, part.tensor], optimize=Optimization.NONE)
    exact, twin = session.run([part.tensor, part.twin], feed)
    chosen = made.tensors["first.relu"]
    np.testing.assert_array_equal(twin, fake_quantize(exact, chosen.scale, chosen.zero_point, INT8_SYMMETRIC))


def test_fp8_raises_the_opset_of_the_exact_graph() -> None:
    found = twins(transformer, kind=QuantizationKind.FP8)
    assert found.unmatched == ()
    assert found.model.opset == found.quantized.opset == 19


def test_biases_in_integers_are_found() -> None:
    original = residual()
    made, _ = quantized(original, ONNXRUNTIME)
    found = twin_graph(Model.of(original), Model.of(made.proto))
    assert {part.kind for part in found.stored} == {PartKind.WEIGHT, PartKind.BIAS}


class TestRefusals:
    def test_no_pairs(self) -> None:
        with pytest.raises(ModelError, match="holds no QuantizeLinear"):
            twin_graph(Model.of(residual()), Model.of(residual()))

    def test_pairs_in_the_original(self) -> None:
        made, _ = quantized(residual(), UNLIMITED)
        with pytest.raises(ModelError, match="holds Q/DQ nodes itself"):
            twin_graph(Model.of(made.proto), Model.of(made.proto))

    def test_models_without_a_tensor_in_common(self) -> None:
        original = residual()
        made, _ = quantized(original, UNLIMITED)
        for node in original.graph.node:
            node.input[:] = [f"other.{name}" if "." not in name and name else name for name in node.input]
            node.output[:] = [f"other.{name}" for name in node.output]
        original.graph.input[0].name = "other.x"
        with pytest.raises(EngineMismatch, match="no quantized tensor of one model is in the other") as caught:
            twin_graph(Model.of(original), Model.of(made.proto))
        assert caught.value.hint is not None

    def test_a_later_operator_set(self) -> None:
        made, _ = quantized(residual(), UNLIMITED)
        later = residual()
        later.opset_import[0].version = 20
        with pytest.raises(ModelError, match="a later operator set") as caught:
            twin_graph(Model.of(later), Model.of(made.proto))
        assert (caught.value.got, caught.value.expected) == ("opset 20", "at most 17")


def test_a_tensor_that_only_one_has_is_told() -> None:
    """A model that was changed after quantization: one tensor has another name."""
    original = residual()
    made, _ = quantized(original, UNLIMITED)
    for node in original.graph.node:
        node.input[:] = ["renamed" if name == "skip" else name for name in node.input]
        node.output[:] = ["renamed" if name == "skip" else name for name in node.output]
    assert twin_graph(Model.of(original), Model.of(made.proto)).unmatched == ("skip",)


def test_outputs_renamed_for_their_pair() -> None:
    """ONNX Runtime's quantizer puts the pair of an output behind a renamed tensor: the output is the pair's."""
    original = residual()
    feed = noise(original)
    table = ranges(Model.of(original), feed)
    assert "last" in {entry.name for entry in table.tensors}
    made, _ = quantized(original, UNLIMITED)
    make = helper.make_node
    node = next(node for node in made.proto.graph.node if node.output[0] == "last")
    node.output[0] = "last_QuantizeLinear_Input"
    first = next(node for node in made.proto.graph.node if node.op_type == "QuantizeLinear")
    made.proto.graph.node.extend(
        [
            make("QuantizeLinear", ["last_QuantizeLinear_Input", *first.input[1:]], ["last_q"]),
            make("DequantizeLinear", ["last_q", *first.input[1:]], ["last"]),
        ]
    )
    found = twin_graph(Model.of(original), Model.of(made.proto))
    assert found.unmatched == ()
    ends = [part for part in found.parts if part.tensor == "last"]
    assert [(part.kind, part.raw) for part in ends] == [
        (PartKind.LAYER, "last_QuantizeLinear_Input"), (PartKind.ACTIVATION, "last_QuantizeLinear_Input"),
    ]  # fmt: skip
