"""An FP8 engine against a reference in NumPy, on a model whose convolutions ONNX Runtime's optimizer would ruin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from qdq_checks import noise, ranges, sqnr
from qdq_graphs import Sketch

from quantlab.calibrators.quantize import FP8_E4M3, fake_quantize, weight_scales
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.variant import Variant
from quantlab.graph.model import Model
from quantlab.graph.prepare import prepare
from quantlab.graph.targets import TENSORRT
from quantlab.precision import Precision


def convolutions() -> onnx.ModelProto:
    """Two convolutions of 1x1: a product over the channels at every pixel."""
    s = Sketch("n", 32, 4, 4)
    hidden = s.add("Relu", "relu", s.conv("first", "x", 32, 48, 1))
    return s.model(s.conv("second", hidden, 48, 32, 1))


def rounded(value: NDArray[np.float64], amax: float) -> NDArray[np.float64]:
    return fake_quantize(value.astype(np.float32), np.float32(amax / 448), 0, FP8_E4M3).astype(np.float64)


def test_equals_fake_quantized_operands(tmp_path: Path) -> None:
    """Every operand rounded to E4M3, products summed in float64; nothing else is rounded."""
    prepared = prepare(Model.of(convolutions()))
    proto = prepared.model.proto
    feed = noise(proto)
    table = ranges(prepared.model, feed)
    variant = Variant(prepared, "onnxruntime", Precision.FP8, TENSORRT, table)
    engine = OnnxRuntimeBuilder().load(OnnxRuntimeBuilder().build(variant, tmp_path), 1)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}

    def layer(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        node = next(node for node in proto.graph.node if node.name == name)
        weight = stored[node.input[1]]
        scales = weight_scales(weight, 0, FP8_E4M3).reshape(-1, 1, 1, 1)
        codes = fake_quantize(weight, scales, 0, FP8_E4M3).astype(np.float64)[:, :, 0, 0]
        entry = table.entries()[node.input[0]]
        amax = max(-entry.minimum, entry.maximum)
        bias = stored[node.input[2]][:, None, None] if len(node.input) > 2 else 0.0
        return np.einsum("oc,nchw->nohw", codes, rounded(x, amax)) + bias

    expected = layer("second", np.maximum(layer("first", feed["x"].astype(np.float64)), 0.0))
    got = engine.run(feed)[engine.outputs[0]]
    assert engine.sidecar.proof.startswith("2 of 2 weighted layers FP8")
    # A value at a rounding border may fall to the other side in float32: one step of one operand.
    assert np.median(np.abs(got - expected)) < 1e-5 * np.abs(expected).max()
    assert sqnr(expected.astype(np.float32), got) > 45
