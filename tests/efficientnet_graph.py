"""EfficientNet-Lite0 as PyTorch exports it, with seeded weights: the architecture without PyTorch."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000


def efficientnet_lite0() -> ModelProto:
    """image [batch, 3, 224, 224] -> logits [batch, 1000]; batch normalization is in the convolutions already."""
    return _Network().model()


class _Network:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.stored = [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))]

    def model(self) -> ModelProto:
        hidden, channels = self.clipped(self.conv("image", 3, STEM, 3, stride=2)), STEM
        for repeats, kernel, first_stride, expansion, n_out in STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                hidden = self.block(hidden, channels, n_out, kernel, stride, expansion)
                channels = n_out
        hidden = self.clipped(self.conv(hidden, channels, HEAD, 1))
        hidden = self.add("Flatten", self.add("GlobalAveragePool", hidden))
        weight, bias = self.weight(CLASSES, HEAD), self.weight(CLASSES)
        self.nodes.append(helper.make_node("Gemm", [hidden, weight, bias], ["logits"], name="classifier", transB=1))
        value = helper.make_tensor_value_info
        image = value("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
        logits = value("logits", TensorProto.FLOAT, ["batch", CLASSES])
        graph = helper.make_graph(self.nodes, "efficientnet-lite0", [image], [logits], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def block(self, source: str, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> str:
        """Inverted residual: expand, filter each channel, project."""
        wide = n_in * expansion
        hidden = self.clipped(self.conv(source, n_in, wide, 1)) if expansion > 1 else source
        hidden = self.clipped(self.conv(hidden, wide, wide, kernel, stride=stride, group=wide))
        projected = self.conv(hidden, wide, n_out, 1)
        return self.add("Add", projected, source) if (stride, n_in) == (1, n_out) else projected

    def conv(self, source: str, n_in: int, n_out: int, kernel: int, *, stride: int = 1, group: int = 1) -> str:
        weight, bias = self.weight(n_out, n_in // group, kernel, kernel), self.weight(n_out)
        pads = [kernel // 2] * 4
        return self.add("Conv", source, weight, bias, group=group, strides=[stride, stride], pads=pads)

    def clipped(self, source: str) -> str:
        return self.add("Clip", source, "zero", "six")

    def weight(self, *shape: int) -> str:
        """Normal values of a variance that keeps that of the activations."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1000
        value = self.rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        name = f"weight{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(value, name))
        return name

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name
