"""A small quantized graph in the making, for the tests of the linter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantlab.calibrators import quantize, weight_scales
from quantlab.calibrators.quantize import INT8_WEIGHT

Array = NDArray[np.generic]
CHANNELS = 16
SIZE = 8


class Net:
    """A graph in the making; every method gives the name of the tensor it made."""

    def __init__(self, target: str = "tensorrt", opset: int = 21, ir_version: int = 10) -> None:
        self.target, self.opset, self.ir_version = target, opset, ir_version
        self.rng = np.random.default_rng(5)
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []
        self.scale = 0.02  # each pair gets another one: equal scales would be a placeholder
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, SIZE, SIZE])]

    def store(self, name: str, values: Array | float | int, dtype: str | None = None) -> str:
        array = np.asarray(values) if dtype is None else np.asarray(values, dtype)
        self.stored.append(
            numpy_helper.from_array(np.asarray(array, np.float32 if array.dtype == float else None), name)
        )
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantizer(
        self,
        kind: str,
        source: str,
        name: str,
        scale: Array | float,
        zero: Array | int | None,
        dtype: str,
        axis: int = 1,
    ) -> str:
        inputs = [source, self.store(f"{name}_scale", np.asarray(scale, np.float32))]
        inputs += [] if zero is None else [self.store(f"{name}_zero", zero, dtype)]
        axes = {"axis": axis} if np.size(scale) > 1 else {}
        return self.node(kind, inputs, name, **axes)

    def pair(
        self,
        source: str,
        name: str,
        scale: Array | float | None = None,
        zero: Array | int | None = 0,
        dtype: str | None = None,
        axis: int = 1,
    ) -> str:
        self.scale += 0.01
        scale = self.scale if scale is None else scale
        dtype = dtype or ("int8" if self.target == "tensorrt" else "uint8")
        codes = self.quantizer("QuantizeLinear", source, f"{name}_q", scale, zero, dtype, axis)
        return self.quantizer("DequantizeLinear", codes, f"{name}_dq", scale, zero, dtype, axis)

    def values(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape).astype(np.float32)

    def weight(self, name: str, values: NDArray[np.float32], axis: int | None = 0, zero: int = 0) -> str:
        scales = weight_scales(values, axis)
        shape = [1] * values.ndim
        if axis is not None:
            shape[axis] = -1
        codes = self.store(f"{name}_codes", quantize(values, scales.reshape(shape), 0, INT8_WEIGHT))
        zeros = np.full(scales.shape, zero, np.int8)
        return self.quantizer("DequantizeLinear", codes, f"{name}_dq", scales, zeros, "int8", axis or 0)

    def conv(
        self, source: str, name: str, weight: str | None = None, bias: str | None = "", **attributes: object
    ) -> str:
        """A quantized convolution, with a bias of the target's kind; ``bias=None`` for none."""
        scale = self.scale
        weight = weight or self.weight(f"{name}_w", self.values(CHANNELS, CHANNELS, 3, 3))
        inputs = [source, weight]
        if bias == "" and self.target == "tensorrt":
            bias = self.store(f"{name}_b", self.values(CHANNELS))
        elif bias == "":
            scales = next(numpy_helper.to_array(t) for t in self.stored if t.name == f"{name}_w_dq_scale")
            codes = self.store(f"{name}_b_codes", np.arange(CHANNELS), "int32")
            bias = self.quantizer(
                "DequantizeLinear", codes, f"{name}_b_dq", scales * np.float32(scale), None, "int32", 0
            )
        return self.node("Conv", inputs + ([bias] if bias else []), name, pads=[1, 1, 1, 1], **attributes)

    def layer(self, source: str, name: str) -> str:
        """A pair, a quantized convolution, and for ONNX Runtime a pair behind it."""
        output = self.conv(self.pair(source, f"{name}_in"), name)
        return output if self.target == "tensorrt" else self.pair(output, f"{name}_end")

    def model(self, *outputs: str) -> ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "lint", self.inputs, values, self.stored)
        imports = [helper.make_opsetid("", self.opset)]
        domains = sorted({node.domain for node in self.nodes if node.domain})
        imports += [helper.make_opsetid(domain, 1) for domain in domains]
        return helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
