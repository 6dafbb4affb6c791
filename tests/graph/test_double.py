from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import pytest
import threadpoolctl
from conftest import Build
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from quantlab.datasets.samples import SAMPLE_MODELS, sample_model
from quantlab.errors import ModelError
from quantlab.graph import double
from quantlab.graph.double import Rounding, TooLargeError, check_cost, multiplications, open_double, truncate_tf32
from quantlab.graph.model import Model, Optimization, load_model, open_session
from quantlab.graph.prepare import prepare
from quantlab.graph.tf32 import round_tf32, to_tf32


def run(
    proto: ModelProto, feed: dict[str, NDArray[np.generic]], rounding: Rounding = Rounding.NONE
) -> NDArray[np.float64]:
    (result,) = open_double(Model.of(proto), rounding).run(feed).values()
    assert result.dtype == np.float64
    return np.asarray(result, np.float64)


def weights(proto: ModelProto) -> dict[str, NDArray[np.float64]]:
    return {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}


def test_matrix_products_equal_an_exact_computation(build: Build) -> None:
    """Against products and sums of Python's fractions-free `math.fsum`, which rounds once."""
    proto = build.mlp(batch=1)
    x = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    w = weights(proto)
    hidden = [max(0.0, math.fsum([*(x[0] * w["w1"][:, j]).tolist(), w["b1"][j]])) for j in range(64)]
    expected = [math.fsum((np.array(hidden) * w["w2"][:, k]).tolist()) for k in range(4)]
    np.testing.assert_allclose(run(proto, {"x": x})[0], expected, rtol=1e-13)


def convolved(x: NDArray[np.float64], w: NDArray[np.float64], stride: int, groups: int) -> NDArray[np.float64]:
    """A grouped convolution of 3x3 with padding 1, window by window."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    per_group = x.shape[1] // groups
    parts = []
    for group in range(groups):
        taken = windows[:, group * per_group : (group + 1) * per_group]
        filters = np.split(w, groups)[group]
        parts.append(np.einsum("nchwij,ocij->nohw", taken, filters))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1), (4, 2)])
def test_convolutions_equal_windows_summed_in_float64(build: Build, groups: int, stride: int) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", pads=[1, 1, 1, 1], strides=[stride] * 2, group=groups)
    weight = build.weight("w", 8, 4 // groups, 3, 3)
    proto = build.model([node], [build.value("x", [2, 4, 9, 9])], [build.value("y", None)], [weight])
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 9)).astype(np.float32)
    expected = convolved(x.astype(np.float64), weights(proto)["w"], stride, groups)
    np.testing.assert_allclose(run(proto, {"x": x}), expected, rtol=1e-12, atol=1e-14)


def test_functions_are_exact_to_float64_not_float32(build: Build) -> None:
    """The evaluator's own Erf is float32; a constant without type, LayerNormalization and Softmax are checked too."""
    nodes = [
        helper.make_node("Erf", ["x"], ["e"]),
        helper.make_node("Constant", [], ["third"], value_float=0.25),
        helper.make_node("Mul", ["e", "third"], ["m"]),
        helper.make_node("LayerNormalization", ["m", "scale"], ["n"], axis=-1, epsilon=1e-3),
        helper.make_node("Softmax", ["n"], ["y"], axis=-1),
    ]
    scale = build.const("scale", np.linspace(0.5, 2, 16))
    proto = build.model(nodes, [build.value("x", [3, 16])], [build.value("y", None)], [scale])
    x = np.random.default_rng(2).standard_normal((3, 16)).astype(np.float32)
    m = np.array([[math.erf(v) for v in row] for row in x.tolist()]) * 0.25
    epsilon = float(np.float32(1e-3))
    normal = (m - m.mean(1, keepdims=True)) / np.sqrt(m.var(1, keepdims=True) + epsilon) * weights(proto)["scale"]
    expected = np.exp(normal) / np.exp(normal).sum(1, keepdims=True)
    np.testing.assert_allclose(run(proto, {"x": x}), expected, rtol=1e-13)


@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_bundled_models_differ_from_float32_by_its_rounding(name: str) -> None:
    model = prepare(load_model(sample_model(name))).model
    x = np.random.default_rng(3).standard_normal((2, 1, 28, 28)).astype(np.float32)
    (truth,) = open_double(model).run({"image": x}).values()
    single = open_session(model, threads=1, optimize=Optimization.NONE).run(None, {"image": x})[0]
    error = np.linalg.norm(single - truth) / np.linalg.norm(truth)
    assert 1e-8 < error < 2e-6


def test_rounding_to_tf32_agrees_with_the_float32_emulation(build: Build) -> None:
    proto = build.mlp(batch=2)
    x = np.random.default_rng(4).standard_normal((2, 8)).astype(np.float32)
    emulated = open_session(Model.of(to_tf32(Model.of(proto))), threads=1).run(None, {"x": x})[0]
    exact, rounded = run(proto, {"x": x}), run(proto, {"x": x}, Rounding.TF32)
    assert np.linalg.norm(rounded - emulated) < 0.01 * np.linalg.norm(rounded - exact)


def test_truncation_cuts_towards_zero() -> None:
    x = np.array([1 + 2**-10, 1 + 2**-11, -(1 + 2**-11 + 2**-20), 1 - 2**-13, 0.0, -0.0, np.inf, -np.inf, 3e-45])
    expected = [1 + 2**-10, 1.0, -1.0, 1 - 2**-11, 0.0, -0.0, np.inf, -np.inf, 0.0]
    np.testing.assert_array_equal(truncate_tf32(x), expected)
    assert np.isnan(truncate_tf32(np.array([np.nan]))).all()
    values = np.random.default_rng(5).standard_normal(1000)
    cut = truncate_tf32(values)
    assert (np.abs(cut) <= np.abs(values.astype(np.float32))).all()
    np.testing.assert_array_equal(round_tf32(cut.astype(np.float32)), cut)  # what is cut needs no rounding


def test_truncated_operands_shrink_products(build: Build) -> None:
    """Both operands of a product of positive numbers become smaller: the result is too, by at most two cuts."""
    proto = build.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        [build.value("x", [1, 64])], [build.value("y", [1, 1])], [build.const("w", np.linspace(1, 2, 64)[:, None])],
    )  # fmt: skip
    x = np.linspace(1, 2, 64, dtype=np.float32)[None]
    ratio = run(proto, {"x": x}, Rounding.TF32_TRUNCATED) / run(proto, {"x": x})
    assert 1 - 2**-9 < ratio.item() < 1 - 2**-12


def test_runs_on_one_thread_and_gives_the_others_back(build: Build) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    class Asked:
        def run(self, names: list[str], feed: dict[str, NDArray[np.float64]]) -> list[NDArray[np.int64]]:
            return [np.array(sorted(threads()))]

    with threadpoolctl.threadpool_limits(2, "blas"):
        session = open_double(Model.of(build.mlp(batch=1)))
        (inside,) = dataclasses.replace(session, _evaluator=Asked()).run({}).values()
        assert inside.tolist() == [1]
        assert threads() == {2}


def typed_half(build: Build) -> ModelProto:
    """x -> Cast to FP16 -> MatMul in FP16 -> Cast to FP32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"], name="m"),
        helper.make_node("Cast", ["p"], ["y"], name="up", to=TensorProto.FLOAT),
    ]
    weight = build.const("w", build.rng.standard_normal((16, 4)), np.float16)
    return build.model(nodes, [build.value("x", [2, 16])], [build.value("y", [2, 4])], [weight])


def test_types_of_a_graph_are_obeyed_where_it_stores(build: Build) -> None:
    proto = typed_half(build)
    x = np.random.default_rng(6).standard_normal((2, 16)).astype(np.float32)
    product = x.astype(np.float16).astype(np.float64) @ weights(proto)["w"]
    np.testing.assert_array_equal(run(proto, {"x": x}, Rounding.AS_TYPED), product.astype(np.float16))
    np.testing.assert_allclose(run(proto, {"x": x}), x.astype(np.float64) @ weights(proto)["w"], rtol=1e-12)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_quantization_is_that_of_the_operators(build: Build, kind: type[np.generic]) -> None:
    """Of opset 13, which the evaluator lacks, one scale a channel and one for all, against ONNX Runtime."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
        helper.make_node("QuantizeLinear", ["d", "one"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "one"], ["y"]),
    ]
    stored = [
        build.const("s", [0.01, 0.02, 0.05]), build.const("z", [0, 0, 0] if kind is np.int8 else [128, 3, 0], kind),
        build.const("one", 0.015625),
    ]  # fmt: skip
    proto = build.model(nodes, [build.value("x", [4, 3])], [build.value("y", [4, 3])], stored, opset=13)
    x = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)
    expected = open_session(Model.of(proto), threads=1, optimize=Optimization.NONE).run(None, {"x": x})[0]
    np.testing.assert_allclose(run(proto, {"x": x}), expected, rtol=1e-6)


def test_fp8_quantization_saturates(build: Build) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    proto = build.model(nodes, [build.value("x", [4])], [build.value("y", [4])], [build.const("s", 0.5), zero], 19, 9)
    x = np.array([1.03, -0.3, 300.0, -1e6], np.float32)
    np.testing.assert_array_equal(run(proto, {"x": x}), [1.0, -0.3125, 224.0, -224.0])


def test_refuses_operators_whose_float64_is_not_to_be_had(build: Build) -> None:
    node = helper.make_node("RandomNormalLike", ["x"], ["y"], name="noise")
    proto = build.model([node], [build.value("x", [4])], [build.value("y", [4])])
    with pytest.raises(ModelError, match="float64") as caught:
        open_double(Model.of(proto))
    assert "RandomNormalLike (noise)" in str(caught.value)


def test_refuses_unknown_operators_by_name(build: Build) -> None:
    node = helper.make_node("Flux", ["x"], ["y"], domain="custom")
    proto = build.model([node], [build.value("x", [4])], [build.value("y", [4])])
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    with pytest.raises(ModelError, match="does not run in float64") as caught:
        open_double(Model.of(proto))
    assert "Flux" in str(caught.value)


def test_an_operator_that_fails_is_a_model_error(build: Build) -> None:
    with pytest.raises(ModelError, match="does not run in float64"):
        run(build.mlp(batch=1), {"x": np.zeros((1, 7), np.float32)})


def test_cost_is_counted_and_limited(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(Model.of(build.cnn())).model
    expected = 12 * 12 * 8 * (3 * 9 + 8 * 9) + 8 * 5
    assert multiplications(model.proto) == expected
    monkeypatch.setattr(double, "MAX_MULTIPLICATIONS", expected - 1)
    with pytest.raises(TooLargeError, match="too large"):
        open_double(model)
    monkeypatch.undo()
    monkeypatch.setattr(double, "MAX_BYTES", 1000)
    with pytest.raises(TooLargeError):
        check_cost(model.proto)
