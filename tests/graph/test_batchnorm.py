from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from quantlab.graph.batchnorm import fold_batchnorm
from quantlab.graph.model import Optimization


def _check(build, run, proto, shape, n_folded=1):
    x = build.rng.standard_normal(shape).astype(np.float32)
    expected = run(proto, {"x": x}, Optimization.NONE)
    folded = onnx.ModelProto()
    folded.CopyFrom(proto)
    assert fold_batchnorm(folded, None) == n_folded
    assert len(folded.graph.node) == len(proto.graph.node) - n_folded
    for got, want in zip(run(folded, {"x": x}, Optimization.NONE), expected, strict=True):
        assert np.abs(got - want).max() <= 2e-6 * max(1.0, np.abs(want).max())
    return folded


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_conv(build, run, groups, bias):
    inputs = ["x", "w"] + ["b"] * bias
    proto = build.model(
        [helper.make_node("Conv", inputs, ["c"], name="conv", group=groups), build.norm_node("bn", "c", "y")],
        [build.value("x", ["n", 4, 6, 6])],
        [build.value("y", None)],
        [build.weight("w", 8, 4 // groups, 3, 3), *build.norm("bn", 8), *([build.weight("b", 8)] if bias else [])],
    )
    folded = _check(build, run, proto, (2, 4, 6, 6))
    assert folded.graph.node[0].output[0] == "y"


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose(build, run, groups, bias):
    inputs = ["x", "w"] + ["b"] * bias
    proto = build.model(
        [
            helper.make_node("ConvTranspose", inputs, ["c"], group=groups, strides=[2, 2]),
            build.norm_node("bn", "c", "y"),
        ],
        [build.value("x", ["n", 4, 5, 5])],
        [build.value("y", None)],
        [build.weight("w", 4, 8 // groups, 3, 3), *build.norm("bn", 8), *([build.weight("b", 8)] if bias else [])],
    )
    _check(build, run, proto, (2, 4, 5, 5))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
def test_gemm(build, run, transposed, bias):
    inputs = ["x", "w"] + ["b"] * (bias is not None)
    proto = build.model(
        [
            helper.make_node("Gemm", inputs, ["c"], transB=transposed, alpha=0.5, beta=2.0),
            build.norm_node("bn", "c", "y"),
        ],
        [build.value("x", ["n", 5])],
        [build.value("y", None)],
        [
            build.weight("w", *((6, 5) if transposed else (5, 6))),
            *build.norm("bn", 6),
            *([build.weight("b", *bias)] if bias is not None else []),
        ],
    )
    _check(build, run, proto, (3, 5))


def test_shared_weights_are_folded_apart(build, run):
    proto = build.model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c1"]),
            build.norm_node("bn1", "c1", "y1"),
            helper.make_node("Conv", ["x", "w", "b"], ["c2"]),
            build.norm_node("bn2", "c2", "y2"),
        ],
        [build.value("x", ["n", 3, 4, 4])],
        [build.value("y1", None), build.value("y2", None)],
        [build.weight("w", 5, 3, 1, 1), build.weight("b", 5), *build.norm("bn1", 5), *build.norm("bn2", 5)],
    )
    _check(build, run, proto, (2, 3, 4, 4), n_folded=2)


def test_stays_where_the_layer_is_used_elsewhere(build, run):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), build.norm_node("bn", "c", "y")]
    weights = [build.weight("w", 5, 3, 1, 1), *build.norm("bn", 5)]
    inputs = [build.value("x", ["n", 3, 4, 4])]
    as_output = build.model(nodes, inputs, [build.value("y", None), build.value("c", None)], weights)
    _check(build, run, as_output, (2, 3, 4, 4), n_folded=0)
    used = [*nodes, helper.make_node("Add", ["c", "y"], ["z"])]
    _check(build, run, build.model(used, inputs, [build.value("z", None)], weights), (2, 3, 4, 4), n_folded=0)


def test_standalone_stays(build, run):
    proto = build.model(
        [build.norm_node("bn", "x", "y")],
        [build.value("x", ["n", 3, 4, 4])],
        [build.value("y", None)],
        build.norm("bn", 3),
    )
    _check(build, run, proto, (2, 3, 4, 4), n_folded=0)
