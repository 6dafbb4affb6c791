"""Small graphs for the tests of steps that rewrite the float graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


class Net:
    """A graph that grows node by node; every weight has a name of its own."""

    def __init__(self, *shape: int) -> None:
        self.rng = np.random.default_rng(5)
        self.shape = shape
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []

    def const(self, value: object, dtype: type = np.float32) -> str:
        name = f"const{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def normal(self, *shape: int) -> str:
        return self.const(self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) + 1))

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def model(self, *outputs: str) -> ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value("x", TensorProto.FLOAT, ["batch", *self.shape])],
            [value(name, TensorProto.FLOAT, None) for name in outputs],
            self.stored,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def feed(self, n: int = 8) -> dict[str, NDArray[np.float32]]:
        return {"x": np.random.default_rng(1).standard_normal((n, *self.shape), np.float32)}
