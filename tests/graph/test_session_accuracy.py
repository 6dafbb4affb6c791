"""The optimizer that ruins partly quantized models, and that no session which evaluates lets it run.

ONNX Runtime's WeightBiasQuantization puts INT8 weights, with one scale for all channels, in place of the FP32 weights
of a convolution or product whose input and output are quantized. It runs at every level from BASIC on. Seen alike with
1.21.1, 1.22.1, 1.24.1 and 1.31.1, where `disabled_optimizers` turns it off.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from project_tree import ROOT
from qdq_checks import sqnr

from quantlab.engines.emulation import open_plain
from quantlab.engines.kernels import integer_kernels
from quantlab.graph.double import open_double
from quantlab.graph.model import Model, Optimization, open_session
from quantlab.graph.session import DISABLED_OPTIMIZERS

LEVELS = onnxruntime.GraphOptimizationLevel
CHANNELS = 8


def partly_quantized() -> ModelProto:
    """Two convolutions, of which activations alone are quantized; channels of the first differ a thousandfold."""
    rng = np.random.default_rng(0)
    sizes = np.logspace(0, -3, CHANNELS).astype(np.float32)
    first = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) * sizes[:, None, None, None]
    second = rng.standard_normal((4, CHANNELS, 1, 1)).astype(np.float32) / sizes[None, :, None, None]
    make, value = helper.make_node, helper.make_tensor_value_info
    stored: dict[str, object] = {
        "w1": first, "b1": rng.standard_normal(CHANNELS).astype(np.float32) * sizes, "w2": second,
        "sx": np.float32(4 / 127), "sy": np.float32(0.0005), "z": np.int8(0), "z16": np.int16(0),
    }  # fmt: skip
    nodes = [
        make("QuantizeLinear", ["x", "sx", "z"], ["x_q"]),
        make("DequantizeLinear", ["x_q", "sx", "z"], ["x_dq"]),
        make("Conv", ["x_dq", "w1", "b1"], ["y"], name="first", pads=[1] * 4),
        make("QuantizeLinear", ["y", "sy", "z16"], ["y_q"]),
        make("DequantizeLinear", ["y_q", "sy", "z16"], ["y_dq"]),
        make("Conv", ["y_dq", "w2"], ["out"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", CHANNELS, 6, 6])],
        [value("out", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


FEED = {"x": np.random.default_rng(1).standard_normal((4, CHANNELS, 6, 6)).astype(np.float32)}


@pytest.fixture(scope="module")
def truth() -> NDArray[np.float64]:
    """The graph in float64."""
    result: NDArray[np.float64] = np.asarray(open_double(Model.of(partly_quantized())).run(FEED)["out"], np.float64)
    return result


def as_anybody_would(level: object, disabled: list[str]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        partly_quantized().SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=disabled,
    )  # fmt: skip
    result: NDArray[np.float32] = session.run(None, FEED)[0]
    return result


@pytest.mark.parametrize(
    "level", [LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL], ids=lambda level: level.name
)
def test_it_ruins_the_result(level: object, truth: NDArray[np.float64]) -> None:
    wrong, right = as_anybody_would(level, []), as_anybody_would(level, ["WeightBiasQuantization"])
    assert sqnr(truth, wrong) < 10, "ONNX Runtime's default"
    assert sqnr(truth, right) > 50, "the same session without it"


@pytest.mark.parametrize("optimize", Optimization)
def test_our_sessions_do_not_let_it_run(optimize: Optimization, truth: NDArray[np.float64]) -> None:
    model = Model.of(partly_quantized())
    (session,) = open_session(model, threads=1, optimize=optimize).run(None, FEED)
    assert sqnr(truth, session) > 50
    assert sqnr(truth, np.asarray(open_plain(model, 1, optimize)(FEED)["out"])) > 50


def test_kernels_are_counted_without_it(tmp_path: Path) -> None:
    """With it, ONNX Runtime would take an integer kernel for a layer whose weight is FP32."""
    file = tmp_path / "m.onnx"
    file.write_bytes(partly_quantized().SerializeToString())
    assert integer_kernels(file) == 0


def test_every_session_of_the_package_turns_it_off() -> None:
    """All calls of InferenceSession in the source, but for the one that asks a graph of one Identity for versions."""
    probes = {"quantlab/graph/checks.py"}
    found: dict[str, list[bool]] = {}
    for folder in ("quantlab", "calibrators", "datasets", "reports"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "InferenceSession":
                    disabled = any(word.arg == "disabled_optimizers" for word in node.keywords)
                    found.setdefault(str(path.relative_to(ROOT)), []).append(disabled)
    assert "quantlab/graph/session.py" in found
    open_doors = {name for name, calls in found.items() if not all(calls)}
    assert open_doors <= probes, "a session that evaluates must pass DISABLED_OPTIMIZERS"
    assert "WeightBiasQuantization" in DISABLED_OPTIMIZERS
