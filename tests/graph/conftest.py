"""Small ONNX models for the tests of the graph package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from quantlab.graph.model import Model, Optimization, open_session


class Build:
    """Shorthands of onnx.helper, with a generator for weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)

    def weight(self, name: str, *shape: int, scale: float = 0.3) -> TensorProto:
        return numpy_helper.from_array((self.rng.standard_normal(shape) * scale).astype(np.float32), name)

    def const(self, name: str, value: object, dtype: type = np.float32) -> TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype), name)

    def norm(self, name: str, channels: int) -> list[TensorProto]:
        rng = self.rng
        return [
            self.const(f"{name}.scale", rng.uniform(0.5, 2, channels)),
            self.const(f"{name}.shift", rng.standard_normal(channels)),
            self.const(f"{name}.mean", rng.standard_normal(channels)),
            self.const(f"{name}.var", rng.uniform(0.2, 3, channels)),
        ]

    def norm_node(self, name: str, source: str, target: str) -> NodeProto:
        return helper.make_node(
            "BatchNormalization",
            [source, *(f"{name}.{part}" for part in ("scale", "shift", "mean", "var"))],
            [target],
            name=name,
            epsilon=1e-3,
        )

    def value(
        self, name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT
    ) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def model(
        self,
        nodes: Sequence[NodeProto],
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        initializers: Sequence[TensorProto] = (),
        opset: int = 17,
        ir_version: int = 8,
    ) -> ModelProto:
        graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)

    def mlp(self, batch: int | str = "n", opset: int = 17) -> ModelProto:
        """Gemm, Relu, MatMul: x [batch, 8] -> y [batch, 4]."""
        return self.model(
            [
                helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1"),
                helper.make_node("Relu", ["h"], ["r"], name="relu"),
                helper.make_node("MatMul", ["r", "w2"], ["y"], name="fc2"),
            ],
            [self.value("x", [batch, 8])],
            [self.value("y", [batch, 4])],
            [self.weight("w1", 8, 64), self.weight("b1", 64), self.weight("w2", 64, 4)],
            opset,
        )

    def cnn(self) -> ModelProto:
        """Conv, batch norm, Sigmoid gate, residual Add, pool, Gemm: x [n, 3, 12, 12] -> y [n, 5]."""
        return self.model(
            [
                helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
                self.norm_node("bn", "c1", "n1"),
                helper.make_node("Sigmoid", ["n1"], ["s1"], name="gate"),
                helper.make_node("Mul", ["n1", "s1"], ["m1"], name="swish"),
                helper.make_node("Conv", ["m1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
                helper.make_node("Add", ["m1", "c2"], ["a1"], name="add"),
                helper.make_node("Relu", ["a1"], ["r1"], name="relu"),
                helper.make_node("GlobalAveragePool", ["r1"], ["g1"], name="pool"),
                helper.make_node("Flatten", ["g1"], ["f1"], name="flatten"),
                helper.make_node("Gemm", ["f1", "w3", "b3"], ["y"], name="fc"),
            ],
            [self.value("x", ["n", 3, 12, 12])],
            [self.value("y", ["n", 5])],
            [
                self.weight("w1", 8, 3, 3, 3),
                *self.norm("bn", 8),
                self.weight("w2", 8, 8, 3, 3),
                self.weight("b2", 8),
                self.weight("w3", 8, 5),
                self.weight("b3", 5),
            ],
        )


@pytest.fixture
def build() -> Build:
    return Build()


Runner = Callable[..., list[NDArray[np.generic]]]


@pytest.fixture
def run() -> Runner:
    """Run a model: run(model_or_proto, {name: array}, optimize=...)."""

    def runner(
        model: Model | ModelProto, feed: dict[str, NDArray[np.generic]], optimize: Optimization = Optimization.ALL
    ) -> list[NDArray[np.generic]]:
        wrapped = model if isinstance(model, Model) else Model.of(model)
        return list(open_session(wrapped, threads=1, optimize=optimize).run(None, feed))

    return runner


@pytest.fixture
def save(tmp_path: Path) -> Callable[[ModelProto, str], Path]:
    def saver(proto: ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        onnx.save(proto, path)
        return path

    return saver


@pytest.fixture
def save_external(tmp_path: Path) -> Callable[[ModelProto], Path]:
    def saver(proto: ModelProto) -> Path:
        path = tmp_path / "external.onnx"
        copy = ModelProto()
        copy.CopyFrom(proto)
        onnx.save(copy, path, save_as_external_data=True, location="external.data", size_threshold=0)
        return path

    return saver
