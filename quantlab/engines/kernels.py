"""Which kernels ONNX Runtime takes: read from the graph that its optimizers leave, and the options that decide it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
from onnx import ModelProto

from quantlab.errors import EngineBuildError
from quantlab.graph.session import DISABLED_OPTIMIZERS, first_line, holds_fp8
from quantlab.precision import Precision

INTEGER_KERNELS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger"}
)
"""Operators that ONNX Runtime fuses a quantized weighted layer into when it computes in integers."""

_OPTIMIZER = "graph_optimization_level"
_FLOAT_WEIGHTS = "session.disable_quant_qdq"


_NOTE = re.compile(r"(?:^|; )([^;]+) runs (\d+) of (\d+) with integer kernels")


@dataclass(frozen=True, slots=True)
class KernelCount:
    """How many of the quantized layers of an engine a runtime computes in integers.

    Attributes:
        runtime: Name for people.
        integer: Layers in integer kernels; the others are computed in floating point, between Q/DQ steps.
        quantized: Layers that the graph quantizes.
    """

    runtime: str
    integer: int
    quantized: int

    def __str__(self) -> str:
        """As it stands in the proof of an engine."""
        return f"{self.runtime} runs {self.integer} of {self.quantized} with integer kernels"

    @classmethod
    def stated(cls, proof: str) -> KernelCount | None:
        """The count that a proof states; None if it states none."""
        found = _NOTE.search(proof)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))


def session_options(proto: ModelProto, precision: Precision) -> Mapping[str, str]:
    """Options that ONNX Runtime must be given to run a model in a precision, besides those that every session has.

    FP8 needs the optimizer off (see `holds_fp8`). For INT8 weights alone, ONNX Runtime is told to leave the
    DequantizeLinear nodes to constant folding: by default they run in every call, and products are computed with
    activations that it quantizes itself.

    Args:
        proto: The finished graph.
        precision: Requested.
    """
    options = {}
    if holds_fp8(proto):
        options[_OPTIMIZER] = "ORT_DISABLE_ALL"
    if precision is Precision.INT8_WEIGHTS:
        options[_FLOAT_WEIGHTS] = "1"
    return MappingProxyType(options)


def session_config(options: Mapping[str, str]) -> dict[str, str]:
    """Those of the options that are config entries of a session."""
    return {key: value for key, value in options.items() if key != _OPTIMIZER}


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
