"""Layers as matrix products: rows times the weight's matrix equal what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlab.graph.layers import find_layers
from quantlab.graph.model import Model
from quantlab.graph.session import open_proto
from quantlab.graph.targets import TENSORRT
from quantlab.recovery.layout import Layout, layout_of
from quantlab.recovery.spots import find_spots

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any], bool]] = {
    "conv": ("Conv", (2, 3, 7, 6), (4, 3, 3, 2), {"pads": [1, 0, 2, 1]}, False),
    "strided": ("Conv", (2, 3, 9, 8), (4, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}, False),
    "dilated": ("Conv", (1, 2, 9, 9), (3, 2, 3, 3), {"dilations": [2, 3]}, False),
    "grouped": ("Conv", (2, 6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}, False),
    "depthwise": ("Conv", (2, 5, 6, 6), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}, False),
    "pointwise": ("Conv", (2, 5, 4, 4), (7, 5, 1, 1), {}, False),
    "one axis": ("Conv", (2, 3, 11), (4, 3, 5), {"strides": [2], "pads": [2, 2]}, False),
    "three axes": ("Conv", (1, 2, 5, 4, 4), (3, 2, 2, 3, 2), {"pads": [0, 1, 0, 1, 1, 0]}, False),
    "transposed": ("ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 3), {}, False),
    "transposed, strided": (
        "ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 2), {"strides": [2, 2], "pads": [1, 0, 1, 0]}, False,
    ),
    "transposed, grouped": (
        "ConvTranspose", (1, 4, 4, 4), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "output_padding": [1, 1]}, False,
    ),
    "transposed, dilated": (
        "ConvTranspose", (1, 2, 4, 4), (2, 3, 3, 3), {"dilations": [2, 1], "pads": [3, 1, 3, 1]}, False,
    ),
    "gemm": ("Gemm", (5, 4), (4, 3), {}, False),
    "gemm, transposed weight": ("Gemm", (5, 4), (3, 4), {"transB": 1}, False),
    "gemm, transposed input": ("Gemm", (4, 5), (4, 3), {"transA": 1}, False),
    "gemm, weight first": ("Gemm", (4, 5), (3, 4), {}, True),
    "gemm, weight first, transposed": ("Gemm", (5, 4), (4, 3), {"transA": 1, "transB": 1}, True),
    "matmul": ("MatMul", (2, 5, 4), (4, 3), {}, False),
    "matmul, weight first": ("MatMul", (2, 4, 5), (3, 4), {}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rows_times_matrix_is_the_layer(name: str) -> None:
    op_type, x_shape, w_shape, attributes, first = CASES[name]
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
    proto = _model(op_type, x, w, attributes, first)
    (layer,) = list(find_layers(proto.graph, TENSORRT))
    layout = layout_of(layer, w_shape)
    assert layout is not None
    (y,) = open_proto(proto, None, threads=1).run(None, {"x": x})
    rows = layout.n_rows(y.shape)
    positions = np.sort(rng.choice(rows, min(rows, 17), replace=False))
    found = layout.rows(x, positions).astype(np.float64) @ np.swapaxes(layout.matrix(w), 1, 2)
    np.testing.assert_allclose(found, layout.outputs(y, positions), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layout.restore(layout.matrix(w)), w)


def test_outputs_name_every_element_once() -> None:
    layout = Layout("Conv", (4, 2, 1, 1), 0, 1, 2, (1, 1), (1, 1), (0, 0, 0, 0))
    y = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3, 1)
    seen = layout.outputs(y, np.arange(layout.n_rows(y.shape)))
    assert sorted(seen.reshape(-1)) == list(range(24))


def test_unknown_forms_are_left_alone() -> None:
    x = np.zeros((1, 2, 4, 4), np.float32)
    w = np.ones((2, 2, 3, 3), np.float32)
    automatic = Model.of(_model("Conv", x, w, {"auto_pad": "SAME_UPPER"}, first=False))
    scaled = Model.of(_model("Gemm", np.zeros((2, 4), np.float32), np.ones((4, 3), np.float32), {"alpha": 2.0}, False))
    for model in (automatic, scaled):
        (spot,) = find_spots(model, TENSORRT, ("layer",))
        assert spot.layout is None


def _model(op_type: str, x: Any, w: Any, attributes: dict[str, Any], first: bool) -> Any:
    node = helper.make_node(op_type, ["w", "x"] if first else ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
