"""Models that ONNX Runtime cannot run, or whose shapes stay open: names and shapes, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, helper

from quantlab.degradation import DegradationCode
from quantlab.engines.tensorrt.profiles import ShapeFlags, parse_shape_flags
from quantlab.errors import ConfigError, ModelError
from quantlab.graph.model import Model, load_model, model_inputs, model_outputs
from quantlab.graph.prepare import Prepared, foreign_operators, prepare, prepare_partially
from quantlab.graph.typed import to_typed
from quantlab.precision import Precision
from quantlab.progress import Silent
from quantlab.workflow.sources import open_for_engine, parse_shapes

sys.path.append(str(Path(__file__).parents[1] / "engines"))
from engine_data import cnn


def with_own_operator() -> ModelProto:
    proto = cnn()
    proto.graph.node[3].op_type, proto.graph.node[3].domain = "MyRelu", "my.ops"
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    return proto


def open_sizes() -> ModelProto:
    proto = cnn()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    return proto


def shapes(prepared: Prepared) -> dict[str, tuple[int | str | None, ...] | None]:
    return {spec.name: spec.shape for spec in model_inputs(prepared.model.proto)}


class TestForeignOperators:
    def test_named_with_their_domain(self) -> None:
        assert foreign_operators(with_own_operator()) == ("my.ops:MyRelu",)
        assert foreign_operators(cnn()) == ()

    def test_in_subgraphs(self) -> None:
        inner = with_own_operator().graph
        condition = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=cnn().graph)
        proto = helper.make_model(helper.make_graph([condition], "g", [], []))
        assert foreign_operators(proto) == ("my.ops:MyRelu",)

    def test_functions_of_the_model_are_its_own(self) -> None:
        proto = with_own_operator()
        body = [helper.make_node("Relu", ["x"], ["y"])]
        made = helper.make_function("my.ops", "MyRelu", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
        proto.functions.append(made)
        assert foreign_operators(proto) == ()


class TestPartialPreparation:
    def test_says_why_and_names_nodes(self) -> None:
        proto = with_own_operator()
        for node in proto.graph.node:
            node.ClearField("name")
        model = Model.of(proto)
        with pytest.raises(ModelError):
            prepare(model)
        prepared = prepare_partially(model, "of a reason")
        (degradation,) = prepared.degradations
        assert degradation.code is DegradationCode.NOT_SIMPLIFIED
        assert "neither simplified nor verified: of a reason" in degradation.message
        names = [node.name for node in prepared.model.proto.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)
        assert prepared.fixed_batch is None
        assert not any(node.name for node in proto.graph.node), "the given model is not changed"

    def test_shapes_are_imposed_and_known_further_on(self) -> None:
        prepared = prepare_partially(Model.of(open_sizes()), "x", {"image": (4, 3, 8, None), "side": (4, 4)})
        assert shapes(prepared) == {"image": (4, 3, 8, "size3"), "side": (4, 4)}
        assert model_outputs(prepared.model.proto)[0].shape == (4, 6)
        assert prepared.fixed_batch == 4

    @pytest.mark.parametrize("wrong", [{"imag": (1,)}, {"image": (1, 4, 8, 8)}, {"image": (1, 3, 8)}])
    def test_shapes_that_do_not_fit(self, wrong: dict[str, tuple[int, ...]]) -> None:
        with pytest.raises(ConfigError):
            prepare_partially(Model.of(cnn()), "x", wrong)

    def test_half_precision_keeps_the_operator_in_fp32(self) -> None:
        prepared = prepare_partially(Model.of(with_own_operator()), "x")
        typed = to_typed(prepared.model, Precision.FP16, extremes=None)
        assert "relu" in typed.kept
        onnx.checker.check_model(typed.proto)


class TestOpening:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        onnx.save(cnn(), tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    @pytest.mark.parametrize(
        ("texts", "fixed"),
        [
            ([], None),
            (["image:1x3x8x8:4x3x8x8:8x3x8x8", "side:1x4:4x4:8x4"], None),
            (["image:4x3x8x8:4x3x8x8:4x3x8x8", "side:4x4:4x4:4x4"], 4),
            (["image:4x3x8x8", "side:4x4"], 4),
        ],
    )
    def test_ranges_of_the_batch_leave_preparation_as_it_is(
        self, texts: list[str], fixed: int | None, path: Path
    ) -> None:
        prepared = open_for_engine(path, parse_shape_flags(texts), Silent())
        assert prepared.degradations == ()
        assert prepared.fixed_batch == fixed
        if fixed is None:
            assert prepared.graph_sha256 == prepare(load_model(path)).graph_sha256, "as in calibration"

    def test_other_ranges_do_not(self, tmp_path: Path) -> None:
        onnx.save(open_sizes(), tmp_path / "net.onnx")
        flags = parse_shape_flags(["image:1x3x8x8:1x3x8x8:1x3x16x16", "side:1x4:1x4:1x4"])
        prepared = open_for_engine(tmp_path / "net.onnx", flags, Silent())
        (degradation,) = prepared.degradations
        assert "leaves more than the batch open (image)" in degradation.message
        assert shapes(prepared)["image"] == ("n", 3, "size2", "size3")

    def test_two_profiles_of_other_sizes(self, tmp_path: Path) -> None:
        onnx.save(open_sizes(), tmp_path / "net.onnx")
        flags = parse_shape_flags([f"image:{s}:{s}:{s}" for s in ("1x3x8x8", "1x3x9x9")] + ["side:1x4:1x4:1x4"])
        assert open_for_engine(tmp_path / "net.onnx", flags, Silent()).degradations != ()

    def test_own_operators(self, tmp_path: Path) -> None:
        onnx.save(with_own_operator(), tmp_path / "net.onnx")
        prepared = open_for_engine(tmp_path / "net.onnx", ShapeFlags({"image": (2, 3, 8, 8)}), Silent())
        assert "ONNX Runtime does not know my.ops:MyRelu" in prepared.degradations[0].message
        assert shapes(prepared) == {"image": (2, 3, 8, 8), "side": ("n", 4)}

    def test_verbs_that_take_one_shape(self) -> None:
        with pytest.raises(ConfigError, match="gives input 'x' a range") as caught:
            parse_shapes(("x:1x3:2x3:4x3",))
        assert "quantlab build with a TensorRT backend" in str(caught.value.hint)
