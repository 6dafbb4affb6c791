"""A graph small enough to compute by hand: x [n, 3] -> Q/DQ (scale 1/2) -> product with a weight -> y [n, 2]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantlab.graph.model import Model

SCALE = np.float32(0.5)
WEIGHT = np.array([[1.0, -0.5], [0.25, 1.0], [-1.0, 0.75]], np.float32)
CODES, WEIGHT_SCALE = np.array([[10, -5], [2, 10], [-10, 8]], np.int8), np.float32(0.1)
ROWS = np.random.default_rng(4).standard_normal((10, 3)).astype(np.float32) * np.float32(4)


def exact(x: NDArray[np.generic]) -> NDArray[np.float64]:
    """The original in float64."""
    result: NDArray[np.float64] = x.astype(np.float64) @ WEIGHT.astype(np.float64)
    return result


def rounded(x: NDArray[np.generic]) -> NDArray[np.float64]:
    """x behind its pair: halves, within -64 and 63.5."""
    result: NDArray[np.float64] = np.clip(np.rint(x.astype(np.float64) / 0.5), -128, 127) * 0.5
    return result


def quantized(x: NDArray[np.generic]) -> NDArray[np.float64]:
    """The quantized graph in float64."""
    result: NDArray[np.float64] = rounded(x) @ (CODES.astype(np.float64) * np.float64(WEIGHT_SCALE))
    return result


def float_model(batch: int | str = "n", *, outputs: tuple[str, ...] = ("y",)) -> Model:
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], batch, outputs, w=WEIGHT)


def quantized_model(batch: int | str = "n") -> Model:
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["x_q"], name="quantize"),
        make("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"], name="dequantize"),
        make("DequantizeLinear", ["w_q", "ws"], ["w_dq"], name="weight"),
        make("MatMul", ["x_dq", "w_dq"], ["y"], name="product"),
    ]
    return _model(nodes, batch, ("y",), s=SCALE, z=np.int8(0), w_q=CODES, ws=WEIGHT_SCALE)


def _model(nodes: list[object], batch: int | str, outputs: tuple[str, ...], **stored: object) -> Model:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [batch, 3])],
        [value(name, TensorProto.FLOAT, [batch, 2]) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model.of(proto)
