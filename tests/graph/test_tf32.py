from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper

from quantlab.graph.model import Model, Optimization
from quantlab.graph.prepare import prepare
from quantlab.graph.proof import prove
from quantlab.graph.tf32 import round_tf32, to_tf32
from quantlab.precision import Precision

floats = arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=True))


@given(floats)
def test_rounding_is_to_the_nearest_of_ten_bits(values):
    got = round_tf32(values)
    assert np.array_equal(got, round_tf32(got), equal_nan=True)
    finite = np.isfinite(values)
    assert np.array_equal(got[~finite], values[~finite], equal_nan=True)
    assert not (got[finite].view(np.uint32) & np.uint32(0x1FFF)).any()
    normal = finite & (np.abs(values) >= np.finfo(np.float32).tiny) & np.isfinite(got)
    error = np.abs(got[normal].astype(np.float64) - values[normal])
    assert (error <= np.abs(values[normal]).astype(np.float64) * 2.0**-11).all()


def test_ties_go_to_even():
    ulp = np.float32(2.0**-10)
    assert list(round_tf32(np.array([1 + ulp / 2, 1 + 3 * ulp / 2, -1 - ulp / 2], np.float32))) == [1, 1 + 2 * ulp, -1]


def _identity_matmul(build, build_values):
    n = len(build_values)
    return build.model(
        [helper.make_node("MatMul", ["x", "eye"], ["y"], name="mm")],
        [build.value("x", ["n", n])],
        [build.value("y", ["n", n])],
        [build.const("eye", np.eye(n))],
    )


@pytest.mark.parametrize("optimize", [Optimization.NONE, Optimization.ALL])
def test_splitting_in_the_graph_equals_the_bit_trick(build, run, optimize):
    """Zero, both signs, ties, 2^-113 to 2^114: through a product with the identity, one value a row."""
    rng = build.rng
    mantissa = rng.uniform(1, 2, 4000).astype(np.float32)
    ties = ((mantissa.view(np.uint32) & np.uint32(0xFFFFE000)) | np.uint32(0x1000)).view(np.float32)
    exponent = rng.integers(-113, 114, 4000)
    sign = rng.choice([-1, 1], 4000)
    values = np.concatenate([np.ldexp(m, exponent) * sign for m in (mantissa, ties)]).astype(np.float32)
    values = np.concatenate([[0.0, -0.0, 1.0, 65504.0], values]).astype(np.float32).reshape(-1, 1)
    proto = to_tf32(Model.of(_identity_matmul(build, [0])))
    assert np.array_equal(run(proto, {"x": values}, optimize)[0], round_tf32(values))


def test_subnormals_keep_more_bits_and_stay_close(build, run):
    values = np.array([[1e-40], [-3e-39], [1e-45]], np.float32)
    got = run(to_tf32(Model.of(_identity_matmul(build, [0]))), {"x": values})[0]
    assert np.abs(got - values).max() <= np.abs(values).max() * 2.0**-10


def test_network_equals_its_numpy_reference(build, run):
    proto = build.mlp()
    model = Model.of(proto)
    x = build.rng.standard_normal((5, 8)).astype(np.float32)
    w1, b1, w2 = (np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in proto.graph.initializer)
    tf32 = to_tf32(model)
    hidden = np.maximum(round_tf32(x).astype(np.float64) @ round_tf32(w1) + b1, 0).astype(np.float32)
    expected = round_tf32(hidden).astype(np.float64) @ round_tf32(w2)
    got = run(tf32, {"x": x})[0]
    exact = run(proto, {"x": x})[0]
    assert np.abs(got - expected).max() < 0.1 * np.abs(exact - expected).max()
    assert np.array_equal(np.frombuffer(proto.graph.initializer[0].raw_data, np.float32), w1.reshape(-1))


def test_each_activation_is_rounded_once(build):
    proto = build.model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], name="a"),
            helper.make_node("Conv", ["x", "w"], ["b"], name="b"),
            helper.make_node("MatMul", ["a", "b"], ["y"], name="mm"),
        ],
        [build.value("x", ["n", 3, 4, 4])],
        [build.value("y", None)],
        [build.weight("w", 3, 3, 1, 1)],
    )
    result = to_tf32(prepare(Model.of(proto)).model)
    assert sum(node.op_type == "Mul" for node in result.graph.node) <= 3
    proof = prove(result)
    assert proof.precision is Precision.TF32
    assert proof.weighted_layers >= 2


def test_weight_that_is_also_something_else_keeps_its_value_there(build, run):
    proto = build.model(
        [helper.make_node("MatMul", ["x", "w"], ["m"], name="mm"), helper.make_node("Add", ["m", "w"], ["y"])],
        [build.value("x", [4, 4])],
        [build.value("y", [4, 4])],
        [build.weight("w", 4, 4)],
    )
    x = np.zeros((4, 4), np.float32)
    assert np.array_equal(run(to_tf32(Model.of(proto)), {"x": x})[0], run(proto, {"x": x})[0])
