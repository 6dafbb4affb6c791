from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from conftest import Build
from numpy.typing import NDArray
from onnx import ModelProto, helper

from quantlab.graph.double import Rounding, open_double, truncate_tf32
from quantlab.graph.double_operands import is_aligned, is_narrow, weighted_nodes
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.tf32 import round_tf32

Cut = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def convolution(build: Build, channels_in: int, channels_out: int, group: int = 1) -> ModelProto:
    weight = build.rng.standard_normal((channels_out, channels_in // group, 3, 3)).astype(np.float32)
    return build.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=group)],
        [build.value("x", [1, channels_in, 6, 6])], [build.value("y", [1, channels_out, 4, 4])],
        [build.const("w", weight)],
    )  # fmt: skip


def product(build: Build, rows: int, columns: int) -> ModelProto:
    weight = build.rng.standard_normal((rows, columns)).astype(np.float32)
    return build.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        [build.value("x", [1, rows])], [build.value("y", [1, columns])], [build.const("w", weight)],
    )  # fmt: skip


def rounded(proto: ModelProto, rounding: Rounding, x: NDArray[np.float32]) -> NDArray[np.float64]:
    (result,) = open_double(Model.of(proto), rounding).run({"x": x}).values()
    return np.asarray(result, np.float64)


def by_hand(proto: ModelProto, cut: Cut, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The exact result of operands that were cut beforehand."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    (weight,) = copy.graph.initializer
    weight.CopyFrom(onnx.numpy_helper.from_array(cut(onnx.numpy_helper.to_array(weight)), "w"))
    return rounded(copy, Rounding.NONE, cut(x))


def nothing(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values


def towards_zero(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return truncate_tf32(values.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "group", "aligned", "narrow"),
    [
        (32, 8, 1, round_tf32, round_tf32),
        (20, 8, 1, round_tf32, round_tf32),
        (16, 8, 1, round_tf32, towards_zero),
        (1, 8, 1, nothing, nothing),
        (8, 10, 1, nothing, nothing),
        (8, 8, 8, nothing, nothing),
        (16, 16, 2, nothing, nothing),
    ],
)
def test_shapes_of_convolutions_decide(
    build: Build, channels_in: int, channels_out: int, group: int, aligned: Cut, narrow: Cut
) -> None:
    proto = convolution(build, channels_in, channels_out, group)
    x = build.rng.standard_normal((1, channels_in, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(rounded(proto, Rounding.TF32_ALIGNED, x), by_hand(proto, aligned, x))
    np.testing.assert_array_equal(rounded(proto, Rounding.TF32_NARROW_CUT, x), by_hand(proto, narrow, x))
    np.testing.assert_array_equal(rounded(proto, Rounding.TF32, x), by_hand(proto, round_tf32, x))
    np.testing.assert_array_equal(rounded(proto, Rounding.TF32_TRUNCATED, x), by_hand(proto, towards_zero, x))


@pytest.mark.parametrize(
    ("rows", "columns", "cut"), [(8, 4, round_tf32), (64, 32, round_tf32), (8, 10, nothing), (7, 8, nothing)]
)
def test_shapes_of_products_decide(build: Build, rows: int, columns: int, cut: Cut) -> None:
    """Few rows do not make them narrow: that is seen in convolutions alone."""
    proto = product(build, rows, columns)
    x = build.rng.standard_normal((1, rows)).astype(np.float32)
    for rounding in (Rounding.TF32_ALIGNED, Rounding.TF32_NARROW_CUT):
        np.testing.assert_array_equal(rounded(proto, rounding, x), by_hand(proto, cut, x))


def test_one_tensor_may_be_rounded_in_two_ways(build: Build) -> None:
    """Read by a narrow convolution and by one of a shape that no kernel takes."""
    weights = [build.rng.standard_normal((n, 16, 1, 1)).astype(np.float32) for n in (8, 6)]
    proto = build.model(
        [helper.make_node("Conv", ["x", f"w{i}"], [f"y{i}"], name=f"c{i}") for i in (0, 1)],
        [build.value("x", [1, 16, 2, 2])],
        [build.value("y0", [1, 8, 2, 2]), build.value("y1", [1, 6, 2, 2])],
        [build.const(f"w{i}", weight) for i, weight in enumerate(weights)],
    )
    x = build.rng.standard_normal((1, 16, 2, 2)).astype(np.float32)
    exact = open_double(Model.of(proto)).run({"x": x})
    cut = open_double(Model.of(proto), Rounding.TF32_NARROW_CUT).run({"x": x})
    assert not np.array_equal(cut["y0"], exact["y0"])
    np.testing.assert_array_equal(cut["y1"], exact["y1"])


def test_products_of_activations_always_count(build: Build) -> None:
    proto = build.model(
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="m")],
        [build.value("a", [3, 5]), build.value("b", [5, 7])], [build.value("y", [3, 7])], [],
    )  # fmt: skip
    index = GraphIndex(proto.graph)
    (node,) = weighted_nodes(proto.graph)
    assert is_aligned(index, node)
    assert not is_narrow(index, node)
