"""What the doctor tries of OpenVINO, in a process of its own: ``python -m quantlab.workflow.openvino_probe``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from quantlab.engines.openvino_runtime import DEVICE, load_openvino
from quantlab.errors import QuantlabError


def probe() -> str:
    """Version, device, what it computes in, and that a one-node model ran, on one line.

    Raises:
        QuantlabError: If OpenVINO cannot be loaded or refuses the model.
        RuntimeError: If it fails in another way.
    """
    runtime = load_openvino()
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    graph = helper.make_graph(nodes, "one", [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        compiled = runtime.compile(path, {"INFERENCE_PRECISION_HINT": "f32"}, 1)
        result = compiled.create_infer_request().infer([np.array([1, 2], np.float32)])[0]
    if result.tolist() != [2.0, 4.0]:
        raise RuntimeError(f"1 + 1 and 2 + 2 gave {result.tolist()}")
    own = runtime.core.get_property(DEVICE, "INFERENCE_PRECISION_HINT").get_type_name()
    note = "" if own == "f32" else f"; left to itself it computes FP32 models in {own}, so quantlab sets the precision"
    return f"one-node model ran; {runtime.version} on {runtime.device}: {', '.join(runtime.capabilities)}{note}"


def main() -> int:
    """Print what was found; what failed goes to stderr."""
    import sys

    try:
        print(probe())  # noqa: T201 - the doctor reads it
    except QuantlabError as error:
        print(f"{error.what}: {error.got}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
