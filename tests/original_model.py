"""A model as exporters write them, with all that preparation folds away."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

make = helper.make_node


def exported(opset: int = 17) -> ModelProto:
    """As exporters write: x -> Conv -> BatchNormalization -> Relu -> copies -> two equal Adds -> moves, shapes."""
    rng = np.random.default_rng(5)

    def stored(name: str, value: object, dtype: object = np.float32) -> TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype), name)  # type: ignore[arg-type]

    nodes = [
        make("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["conv", "g", "b", "m", "v"], ["norm"]),
        make("Relu", ["norm"], ["act"]),
        make("Identity", ["act"], ["same"]),
        make("Dropout", ["same"], ["dropped"]),
        make("Add", ["dropped", "bias"], ["sum1"]),
        make("Add", ["act", "bias"], ["sum2"]),
        make("Concat", ["sum1", "sum2"], ["both"], axis=1),
        make("Transpose", ["both"], ["turned"], perm=[0, 2, 3, 1]),
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "zero"], ["n"]),
        make("Cast", ["n"], ["n_float"], to=TensorProto.FLOAT),
        make("Flatten", ["turned"], ["flat"]),
        make("Gemm", ["flat", "fc"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "exported", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [
            stored("w", rng.standard_normal((8, 3, 3, 3))), stored("g", rng.uniform(0.5, 2, 8)),
            stored("b", rng.standard_normal(8)), stored("m", rng.standard_normal(8)),
            stored("v", rng.uniform(0.5, 2, 8)),
            stored("bias", [[[[-3.5]]]]), stored("zero", 0, np.int64), stored("fc", rng.standard_normal((256, 16))),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
