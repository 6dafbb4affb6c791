from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper

from quantlab.degradation import DegradationCode
from quantlab.graph.half import FORMATS, to_half
from quantlab.graph.model import Model, Optimization
from quantlab.graph.prepare import prepare
from quantlab.graph.proof import prove
from quantlab.precision import Precision

BOTH = pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
LEVELS = pytest.mark.parametrize("optimize", [Optimization.NONE, Optimization.ALL])


def _kind(precision):
    return np.dtype(np.float16) if precision is Precision.FP16 else np.dtype(ml_dtypes.bfloat16)


def _round(values, precision):
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(_kind(precision)).astype(np.float64)


def _conv(x, weight, bias):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64)) + bias[:, None, None]


def _reference(proto, x, precision):
    """Every stored tensor rounded, everything between in float64."""

    def rounded(values):
        return _round(values, precision)

    weights = {t.name: rounded(onnx.numpy_helper.to_array(t)) for t in proto.graph.initializer}
    bias1 = next(name for name in weights if name.endswith("_folded") or name == "bn.shift")
    n1 = rounded(_conv(rounded(x), weights["w1"], weights[bias1]))
    m1 = rounded(n1 * rounded(1 / (1 + np.exp(-n1))))
    c2 = rounded(_conv(m1, weights["w2"], weights["b2"]))
    r1 = np.maximum(rounded(m1 + c2), 0)
    return rounded(rounded(r1.mean((2, 3))) @ weights["w3"] + weights["b3"])


@BOTH
@LEVELS
def test_network_equals_its_reference_within_an_ulp(build, run, precision, optimize):
    model = prepare(Model.of(build.cnn())).model
    x = build.rng.standard_normal((6, 3, 12, 12)).astype(np.float32)
    expected = _reference(model.proto, x, precision)
    proto, degradations = to_half(model, precision)
    assert degradations == ()
    got = run(proto, {"x": x}, optimize)[0]
    bits = 11 if precision is Precision.FP16 else 8
    # A rounding that tips the other way (float32 against float64 sums) may move an output by one unit.
    ulp = np.exp2(np.floor(np.log2(np.abs(expected))) + 1 - bits)
    assert (np.abs(got - expected) <= ulp).all()
    assert (got == expected).mean() > 0.95
    exact = run(model, {"x": x})[0]
    assert np.abs(exact - expected).max() > 4 * np.abs(got - expected).max()
    assert np.array_equal(got, _round(got, precision))


@BOTH
@LEVELS
def test_rounding_of_single_values(build, run, precision, optimize):
    """Subnormals, ties, signs, overflow to infinity."""
    proto = build.model(
        [helper.make_node("Mul", ["x", "one"], ["y"])],
        [build.value("x", ["n"])],
        [build.value("y", ["n"])],
        [build.const("one", 1.0)],
    )
    rng = build.rng
    values = np.array([0, -0.0, 1e-8, 5.9e-8, 6.1e-5, 65504, 65519, 65520, -7e4, 1 + 2**-11, 1 + 3 * 2**-11, 3.3e38])
    spread = rng.standard_normal(3000) * np.exp(rng.uniform(-40, 20, 3000))
    x = np.concatenate([values, spread]).astype(np.float32)
    half, _ = to_half(Model.of(proto), precision)
    assert np.array_equal(run(half, {"x": x}, optimize)[0], _round(x, precision))


def test_saturated_weights_are_clipped_and_counted(build, run):
    proto = build.model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        [build.value("x", ["n", 2])],
        [build.value("y", ["n", 2])],
        [build.const("w", [[1e5, 1], [2, -1e6]]), build.const("b", [0.0, 65504.0])],
    )
    half, (degradation,) = to_half(Model.of(proto), Precision.FP16)
    assert degradation.code is DegradationCode.SATURATED_WEIGHTS
    assert (degradation.count, degradation.subjects) == (1, ("w",))
    assert np.array_equal(onnx.numpy_helper.to_array(half.graph.initializer[0]), [[65504, 1], [2, -65504]])
    assert to_half(Model.of(proto), Precision.BF16)[1] == ()


def test_infinite_masks_stay_infinite(build):
    proto = build.model(
        [helper.make_node("Add", ["x", "mask"], ["s"]), helper.make_node("Softmax", ["s"], ["y"])],
        [build.value("x", ["n", 2])],
        [build.value("y", ["n", 2])],
        [build.const("mask", [0, -np.inf])],
    )
    half, degradations = to_half(Model.of(proto), Precision.FP16)
    assert degradations == ()
    assert np.isneginf(onnx.numpy_helper.to_array(half.graph.initializer[0])[1])


def test_parameters_of_operators_are_not_rounded(build, run):
    proto = build.model(
        [helper.make_node("Resize", ["x", "", "scales"], ["r"]), helper.make_node("Mul", ["r", "scales"], ["y"])],
        [build.value("x", [1, 1, 3, 4])],
        [build.value("y", None)],
        [build.const("scales", [1, 1, 1 + 1 / 3, 1])],
    )
    half, _ = to_half(Model.of(proto), Precision.FP16)
    resize = next(node for node in half.graph.node if node.op_type == "Resize")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in half.graph.initializer}
    assert values[resize.input[2]][2] == np.float32(1 + 1 / 3)
    multiply = next(node for node in half.graph.node if node.op_type == "Mul")
    assert values[multiply.input[1]][2] == np.float16(1 + 1 / 3)


def test_integers_pass_and_borders_stay_float(build, run):
    proto = build.model(
        [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])],
        [build.value("ids", ["n", 3], TensorProto.INT64)],
        [build.value("y", ["n", 3, 4])],
        [build.weight("table", 10, 8), build.weight("w", 8, 4)],
    )
    half, _ = to_half(prepare(Model.of(proto)).model, Precision.FP16)
    onnx.checker.check_model(half)
    assert run(half, {"ids": np.zeros((2, 3), np.int64)})[0].dtype == np.float32
    assert prove(half).precision is Precision.FP16


def test_typed_half_graphs_lose_their_rounding_in_onnxruntime(build, run):
    """Why the emulation has cast pairs: if this ever fails, ONNX Runtime got half kernels: revise ADR 003."""
    x = build.rng.standard_normal((4, 8)).astype(np.float32)
    proto = build.mlp()
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    for tensor in typed.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    typed.graph.node.insert(0, helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16))
    typed.graph.node[1].input[0] = "xh"
    typed.graph.node[3].output[0] = "yh"
    typed.graph.node.append(helper.make_node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT))
    assert prove(typed).layers[0][1] is not Precision.FP32
    got = run(typed, {"x": x})[0]
    assert not np.array_equal(got, _round(got, Precision.FP16))


def test_other_precisions_are_refused(build):
    with pytest.raises(ValueError, match="16-bit"):
        to_half(Model.of(build.mlp()), Precision.INT8)
    assert set(FORMATS) == {Precision.FP16, Precision.BF16}
