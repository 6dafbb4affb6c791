"""Layers of TensorRT engines: which ONNX nodes they were fused of, and their times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_cuda import FakeCuda
from fake_engines import feed, write_engine
from fake_tensorrt import State

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.protocol import LayerTimed
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.fused_names import fused_nodes
from quantlab.engines.tensorrt.inspector import parse_inspection, timed_layers

COMPUTE, REFORMAT, QUANTIZE = LayerKind.COMPUTE, LayerKind.REFORMAT, LayerKind.QUANTIZE


@pytest.mark.parametrize(
    ("name", "metadata", "nodes"),
    [
        ("__myl_x", "[ONNX Layer: /mlp/MatMul]\x1f[ONNX Layer: /mlp/Add]", ("/mlp/MatMul", "/mlp/Add")),
        ("Conv_0 + Relu_1", "[ONNX Layer: Conv_0]\x1e[ONNX Layer: Relu_1]", ("Conv_0", "Relu_1")),
        ("x", "[ONNX Layer: a] [ONNX Layer: b]", ("a", "b")),
        ("x", "[ONNX Layer: a][ONNX Layer: a]", ("a",)),
        ("x", "[ONNX Layer: w[0]]\x1f[ONNX Layer: b]", ("w[0]", "b")),
        ("x", "[ONNX Layer: conv]\x1f[ONNX Layer: r_QuantizeLinear]\x1f[ONNX Layer: w_int8_dq]", ("conv",)),
        ("Conv_0 + Relu_1", "", ("Conv_0", "Relu_1")),
        ("Conv_0", {"not": "text"}, ("Conv_0",)),
        ("Conv_0", "words", ("Conv_0",)),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_24 + Relu_25", None, ("Conv_24", "Relu_25")),
        ("Reformatting CopyNode for Output Tensor 0 to Conv_26", None, ("Conv_26",)),
        ("Reformatting CopyNode for Network Input image", None, ("image",)),
        ("PWN(Sigmoid_1, Mul_2)", None, ("Sigmoid_1", "Mul_2")),
        ("Conv_0 + PWN(PWN(a, b(1)), PWN(c))", None, ("Conv_0", "a", "b(1)", "c")),
        ("PWN(a + b)", None, ("a", "b")),
        ("a, b", None, ("a, b",)),  # no list: a name with a comma
        ("{ForeignNode[/a/Add.../z/Mul]}", None, ("/a/Add", "/z/Mul")),
        ("{ForeignNode[/a/Add]}", None, ("/a/Add",)),
        ("__mye58255+__mye58243_myl0_4", None, ()),
        ("__myl_AddMul_myl0_5", None, ()),
        ("/patches/Conv_myl0_2", None, ("/patches/Conv",)),
        ("image_quantized_q", None, ()),
        ("", None, ()),
    ],
)
def test_nodes(name: str, metadata: object, nodes: tuple[str, ...]) -> None:
    assert fused_nodes(name, metadata) == nodes


def test_hostile_names_take_no_time() -> None:
    for name in ("[ONNX Layer: " * 5000, "PWN(" * 900 + "a" + ")" * 900, "{ForeignNode[" * 5000, " + " * 5000):
        assert isinstance(fused_nodes(name, name), tuple)


def test_layers_keep_the_profilers_order() -> None:
    document = {
        "Layers": [
            {"Name": "a + b", "LayerType": "CaskConvolution", "Inputs": [{"Format": "Int8"}], "Outputs": []},
            {"Name": "q", "LayerType": "Quantize", "Inputs": [], "Outputs": [], "Metadata": "[ONNX Layer: b]"},
            {"Name": "copy", "LayerType": "Reformat", "Inputs": [{"Format": "FP32"}], "Outputs": []},
            {"Name": "not run", "LayerType": "NoOp", "Inputs": [], "Outputs": []},
        ]
    }
    times = {"copy": 0.5, "a + b": 2.0, "Conv_9 + Relu": 1.0, "q": 0.25}
    assert timed_layers(parse_inspection(json.dumps(document)), times) == (
        LayerTime("copy", ("copy",), REFORMAT, 0.5, "Reformat", "fp32"),
        LayerTime("a + b", ("a", "b"), COMPUTE, 2.0, "CaskConvolution", "int8"),
        LayerTime("Conv_9 + Relu", ("Conv_9", "Relu"), COMPUTE, 1.0, "", ""),
        LayerTime("q", ("b",), QUANTIZE, 0.25, "Quantize", ""),
    )


class TestEngine:
    def test_medians_of_runs(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            assert isinstance(engine, LayerTimed)
            spent = gpu.spent()
            layers = engine.layer_times(feed(), runs=3)
            assert layers == (
                LayerTime("conv", ("conv",), COMPUTE, 1.0),  # two layers of one name: 0.75 and 0.25
                LayerTime("relu", ("relu",), COMPUTE, 0.125),
            )
            assert gpu.spent() == spent

    def test_runs(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine, pytest.raises(ValueError, match="0 runs"):
            engine.layer_times(feed(), runs=0)
