"""Which kernels ONNX Runtime takes: read from the graph that its optimizers leave."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from quantlab.errors import EngineBuildError
from quantlab.graph.session import DISABLED_OPTIMIZERS, first_line

INTEGER_KERNELS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger"}
)
"""Operators that ONNX Runtime fuses a quantized weighted layer into when it computes in integers."""


def integer_kernels(path: Path) -> int:
    """Weighted layers of a Q/DQ model file that ONNX Runtime's CPU provider runs in integer arithmetic.

    Cost: opens the model once and writes its optimized form to a temporary file.

    Raises:
        EngineBuildError: If ONNX Runtime refuses the model.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it warns that an optimized model belongs to one machine, which is the point
        options.optimized_model_filepath = str(optimized)
        try:
            onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
            )
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise EngineBuildError(f"ONNX Runtime cannot run {path}", got=first_line(cause)) from cause
        graph = onnx.load(optimized, load_external_data=False).graph
    return sum(node.op_type in INTEGER_KERNELS for node in graph.node)
