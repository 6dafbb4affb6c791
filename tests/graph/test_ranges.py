"""Scales read back from Q/DQ models of several writers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantlab.errors import ModelError
from quantlab.graph.model import Model
from quantlab.graph.ranges import activation_scales


def stored(name: str, value: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def pair(
    tensor: str, scale: str = "s", zero: str | None = "z", output: str | None = None, **attributes: Any
) -> list[NodeProto]:
    inputs = [scale] if zero is None else [scale, zero]
    return [
        helper.make_node("QuantizeLinear", [tensor, *inputs], [f"{tensor}_q"], **attributes),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", *inputs], [output or f"{tensor}_dq"]),
    ]


def model(nodes: Sequence[NodeProto], weights: Sequence[TensorProto] = (), opset: int = 21) -> Model:
    values = [stored("s", 0.5), stored("s2", 0.25), stored("z", 0, np.int8), *weights]
    output = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 4])], values,
    )  # fmt: skip
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto)
    return Model.of(proto)


def test_activations_by_the_name_before_the_pair() -> None:
    nodes = [*pair("x"), helper.make_node("Relu", ["x_dq"], ["a: b"]), *pair("a: b", "s2")]
    assert activation_scales(model(nodes)) == {"x": 0.5, "a: b": 0.25}


def test_weights_are_left_out() -> None:
    """A pair around a stored weight, and one around a weight that is computed from stored ones."""
    nodes = [
        *pair("w"), helper.make_node("Identity", ["w_dq"], ["v"]), *pair("v"), *pair("x"),
        helper.make_node("MatMul", ["x_dq", "v_dq"], ["y"]),
    ]  # fmt: skip
    assert activation_scales(model(nodes, [stored("w", np.ones((4, 4)))])) == {"x": 0.5}


def test_a_pair_behind_a_pair_is_the_same_tensor() -> None:
    assert activation_scales(model([*pair("x"), *pair("x_dq")])) == {"x": 0.5}


def test_scales_in_constant_nodes() -> None:
    constants = [
        helper.make_node("Constant", [], ["cs"], value=stored("", 0.125)),
        helper.make_node("Constant", [], ["cz"], value=stored("", [0], np.int8)),
    ]
    assert activation_scales(model([*constants, *pair("x", "cs", "cz")])) == {"x": 0.125}


def test_the_type_may_be_an_attribute() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["x_q"], output_dtype=TensorProto.INT8)
    end = helper.make_node("DequantizeLinear", ["x_q", "s"], ["y"])
    assert activation_scales(model([node, end])) == {"x": 0.5}


@pytest.mark.parametrize(
    ("nodes", "weights", "got"),
    [
        (pair("x", zero="u"), [stored("u", 0, np.uint8)], "uint8"),
        (pair("x", zero=None), [], "uint8"),
        (pair("x", zero="u"), [stored("u", 3, np.int8)], "zero-point 3"),
        (pair("x", zero="u"), [stored("u", 0, np.int16)], "int16"),
        (pair("x", "n"), [stored("n", -0.5)], "scale -0.5"),
        (pair("x", "n"), [stored("n", np.nan)], "scale nan"),
        (pair("x", "n"), [stored("n", 0.0)], "scale 0.0"),
        (pair("x", "n", "u", axis=1), [stored("n", [1, 2, 3, 4]), stored("u", [0] * 4, np.int8)], "4 scales"),
    ],
    ids=["uint8", "default", "zero-point", "int16", "negative", "nan", "zero", "per-channel"],
)  # fmt: skip
def test_what_a_cache_cannot_hold_is_refused_by_name(
    nodes: list[NodeProto], weights: list[TensorProto], got: str
) -> None:
    with pytest.raises(ModelError, match="tensor 'x' is not quantized to symmetric INT8") as caught:
        activation_scales(model(nodes, weights))
    assert got in str(caught.value)


def test_a_computed_scale_is_refused() -> None:
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), *pair("x", "m")]
    with pytest.raises(ModelError, match="'x'") as caught:
        activation_scales(model(nodes))
    assert "computed" in str(caught.value)


def test_two_scales_of_one_tensor_are_refused() -> None:
    again = [
        helper.make_node("QuantizeLinear", ["x", "s2", "z"], ["x_q2"]),
        helper.make_node("DequantizeLinear", ["x_q2", "s2", "z"], ["y"]),
    ]
    with pytest.raises(ModelError, match="'x' is quantized with two scales"):
        activation_scales(model([*pair("x"), *again]))


def test_a_model_without_quantization() -> None:
    with pytest.raises(ModelError, match="quantizes no activation"):
        activation_scales(model([helper.make_node("Relu", ["x"], ["y"])]))


def test_models_of_onnxruntime(tmp_path: Path) -> None:
    """Its static quantization with the settings for TensorRT: symmetric activations, pairs around weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    weight = np.random.default_rng(3).standard_normal((4, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    onnx.save(model(nodes, [stored("w", weight)], opset=17).proto, tmp_path / "f.onnx")
    samples = [np.array([[1.0, -4.0, 2.0, 0.5]], np.float32), np.array([[3.0, 1.0, 0.0, 0.0]], np.float32)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter({"x": sample} for sample in samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    quantize_static(
        tmp_path / "f.onnx", tmp_path / "q.onnx", Reader(), activation_type=QuantType.QInt8, per_channel=True,
        extra_options={"ActivationSymmetric": True, "AddQDQPairToWeight": True},
    )  # fmt: skip
    scales = activation_scales(Model.of(onnx.load(tmp_path / "q.onnx")))
    assert set(scales) >= {"x"}
    assert "w" not in scales
    assert scales["x"] == pytest.approx(4.0 / 127, rel=0.01)
