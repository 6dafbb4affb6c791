"""Variants whose graphs state their precision: what is excluded and what must stay FP32, from graph to sidecar."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from qdq_checks import ranges
from qdq_graphs import Sketch, residual
from typed_checks import feed

from quantlab.engines.sidecar import by_reason, read_sidecar
from quantlab.engines.typed_variant import typed_graph_of
from quantlab.engines.variant import Variant
from quantlab.errors import ConfigError, EngineMismatch
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.prepare import prepare
from quantlab.graph.proof import prove
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.targets import TENSORRT
from quantlab.precision import Precision
from quantlab.progress import Silent
from quantlab.reports import Style
from quantlab.workflow.build import build_variants, describe_float32
from quantlab.workflow.inspect import inspect_file

T = TypeVar("T")
CUDA = "onnxruntime-cuda"


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        return items


def variant(proto: ModelProto, precision: Precision, exclude: tuple[str, ...] = (), backend: str = CUDA) -> Variant:
    prepared = prepare(Model.of(proto))
    inputs: dict[str, Any] = feed(proto)
    table = ranges(prepared.model, inputs)
    made_of = dataclasses.replace(
        table.provenance, model_sha256=prepared.model.sha256, graph_sha256=prepared.graph_sha256
    )
    table = dataclasses.replace(table, provenance=made_of)
    return Variant(prepared, backend, precision, TENSORRT, table, exclude)


def loud() -> ModelProto:
    """A product of values near 300 with themselves, between two products."""
    s = Sketch("n", 16)
    hidden = s.add("MatMul", "hidden", "x", s.const("w", np.eye(16) * 300))
    square = s.add("Mul", "square", hidden, hidden)
    return s.model(s.add("MatMul", "y", square, s.const("w2", np.eye(16) / 3e4)))


def operand_types(proto: ModelProto) -> dict[str, int]:
    index = GraphIndex(proto.graph, typed_graph(proto))
    return {
        node.name: index.elem_type(node.input[0]) for node in proto.graph.node if node.op_type in ("Conv", "MatMul")
    }


def test_beside_int8_excluded_layers_are_float16() -> None:
    made = typed_graph_of(variant(residual(), Precision.INT8_FP16, ("s*",)))
    assert made.excluded == ("second", "stem")
    assert set(prove(made.proto).named(Precision.FP16)) >= {"second", "stem"}
    assert made.float32 == {}


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_excluded_layers_are_float32(precision: Precision) -> None:
    made = typed_graph_of(variant(residual(), precision, ("s*",)))
    assert made.excluded == ("second", "stem")
    kinds = operand_types(made.proto)
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {"second", "stem"}
    assert made.float32 == {}, "what was asked for is no news"
    assert set(prove(made.proto).named(Precision.FP32)) == {"second", "stem"}


def test_names_are_no_patterns() -> None:
    """A layer of the name ``a[1]`` is not all layers that the pattern ``a[1]`` matches."""
    s = Sketch("n", 16)
    hidden = s.add("MatMul", "a1", "x", s.weight("w1", 16, 16))
    made = typed_graph_of(
        variant(s.model(s.add("MatMul", "a[1]", hidden, s.weight("w2", 16, 16))), Precision.FP16, ("a[[]1]",))
    )
    assert made.excluded == ("a[1]",)
    assert [name for name, kind in operand_types(made.proto).items() if kind == TensorProto.FLOAT] == ["a[1]"]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8_FP16])
def test_an_exclusion_that_matches_nothing(precision: Precision, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no quantizable layer is named 'secund'") as caught:
        build_variants([variant(residual(), precision, ("secund",))], tmp_path, Silent())
    assert caught.value.hint == "did you mean 'second'?"
    assert list(tmp_path.iterdir()) == []


def test_further_nodes_have_their_own_reasons() -> None:
    made = typed_graph_of(variant(residual(), Precision.BF16, ("last",)), {"skip": "no kernel", "last": "no kernel"})
    assert made.float32 == {"skip": "no kernel"}


def test_fp32_is_the_graph_as_it_is() -> None:
    given = variant(residual(), Precision.FP32, ("second",))
    made = typed_graph_of(given)
    assert made.proto is given.prepared.model.proto and made.excluded == ()


def test_from_the_rules_to_what_people_see(tmp_path: Path) -> None:
    listener = Listener()
    (sidecar,) = build_variants([variant(loud(), Precision.FP16)], tmp_path, listener)
    assert set(sidecar.float32) == {"square", "y"}
    assert read_sidecar(tmp_path / sidecar.file) == sidecar
    assert listener.said[-1] == "       2 nodes stay in FP32: 2 x (values beyond 1/4 of FP16's largest)"
    inspection = inspect_file(tmp_path / sidecar.file, Style(100))
    assert "  in FP32       2 x (values beyond 1/4 of FP16's largest): square, y" in inspection.text.splitlines()
    document = json.loads(json.dumps(inspection.document, allow_nan=False))
    assert document["sidecar"]["float32"]["square"].startswith("values beyond 1/4 of FP16's largest (square reaches")


def test_a_name_says_how_many_are_excluded(tmp_path: Path) -> None:
    (sidecar,) = build_variants([variant(residual(), Precision.FP16, ("second",))], tmp_path, Silent())
    assert (sidecar.name, sidecar.excluded) == (f"{CUDA}-fp16+1excl", ("second",))
    assert operand_types(onnx.load(tmp_path / sidecar.file))["second"] == TensorProto.FLOAT


def test_the_table_of_another_model(tmp_path: Path) -> None:
    """What it measured would be looked for by names that mean something else here."""
    given = dataclasses.replace(variant(residual(), Precision.FP16), table=variant(loud(), Precision.FP16).table)
    with pytest.raises(EngineMismatch, match="another model"):
        build_variants([given], tmp_path, Silent())


def test_names_by_reason() -> None:
    reasons = {"a": "small (1)", "b": "large (2)", "c": "large (3)", "d": "odd"}
    assert by_reason(reasons) == {"large": ["b", "c"], "small": ["a"], "odd": ["d"]}
    assert describe_float32({"a": "small (1)"}) == "1 node stays in FP32: 1 x (small)"
