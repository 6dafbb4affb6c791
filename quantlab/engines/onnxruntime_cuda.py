"""The ONNX Runtime CUDA backend: an ONNX file of real types, run by the CUDA provider on an NVIDIA GPU.

Files are built without a GPU and are portable. Loading one needs a GPU, and never falls back to the CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from quantlab.engines.artifact import Made, vouch
from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.engines.confirmation import UNTYPED, confirm
from quantlab.engines.fingerprint import fingerprint
from quantlab.engines.kernels import session_config, session_options
from quantlab.engines.onnx_file import check_supported, written
from quantlab.engines.onnxruntime_provider import Placement, is_out_of_memory, open_cuda_session, out_of_memory
from quantlab.engines.probe import is_shorter, prepared_probe
from quantlab.engines.protocol import Arrays
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.typed_variant import typed_graph_of
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, MeasurementError, ModelError
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.model import load_model
from quantlab.graph.proof import prove
from quantlab.graph.qdq import Quantized
from quantlab.graph.session import first_line
from quantlab.precision import Execution, Precision
from quantlab.versions import build_environment

NAME = "onnxruntime-cuda"

_OPTION = "cuda."
"""Prefix of provider options among the options in the sidecar."""

_EMULATED = {
    Precision.INT8: "INT8 in Q/DQ pairs around floating-point kernels: accuracy is that of INT8, latency is not",
    Precision.INT8_FP16: "INT8 in Q/DQ pairs around FP16 kernels: accuracy is that of INT8, latency is not",
    Precision.FP8: "FP8 in Q/DQ pairs around floating-point kernels: accuracy is that of FP8, latency is not",
}
_LARGEST_COPY = 500_000_000

BFLOAT16_OPS = frozenset(
    {"Abs", "Add", "AveragePool", "Cast", "Concat", "Constant", "Conv", "Cos", "Div", "Erf", "Exp", "Expand", "Flatten"}
    | {"Gather", "Gelu", "Gemm", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization"}
    | {"MatMul", "Max", "Min", "Mul", "Neg", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Sign"}
    | {"Sin", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose"}
    | {"Unsqueeze", "Where"}
)
"""Operators that the CUDA provider of ONNX Runtime 1.31 has in bfloat16, or that move values of any type.

Read from the names of the kernel classes in its library. Max pooling, Clip, ConvTranspose, BatchNormalization and
QuantizeLinear are among those that it lacks; ReduceMean it had long without registering it (onnxruntime#32326).
GlobalAveragePool has a class too, but 1.31.1 found no kernel for it inside a squeeze-and-excitation block on an H100.
"""


class OnnxRuntimeCudaBuilder:
    """Builds ONNX files for ONNX Runtime's CUDA provider; needs no GPU."""

    backend = NAME

    def supports(self, variant: Variant) -> str | None:
        """See `EngineBuilder.supports`."""
        if variant.precision is Precision.BF16 and not _in_bfloat16(variant.prepared.model.proto):
            return "ONNX Runtime's CUDA provider has bfloat16 kernels for none of the model's weighted layers"
        return None

    def build(self, variant: Variant, folder: Path) -> Path:
        """See `EngineBuilder.build`."""
        check_supported(self, variant)
        graph = _graph(variant)
        with written(NAME, variant, graph, folder) as file:
            options = cuda_options(file.proto, variant.precision)
            proved, text = _judge(variant, file.proto, file.path, options, file.size_bytes)
            made = Made(
                name=file.name,
                path=file.path,
                size_bytes=file.size_bytes,
                graph=graph,
                proved=proved,
                proof="; ".join(part for part in (text, _EMULATED.get(variant.precision)) if part),
                execution=Execution.EMULATED if variant.precision in _EMULATED else Execution.NATIVE,
                environment=build_environment(),
                session=options,
            )
            vouch(variant, made)
        return file.path

    def load(self, path: Path, threads: int) -> OnnxRuntimeCudaEngine:
        """See `EngineBuilder.load`; also raises what `open_cuda_session` raises."""
        return OnnxRuntimeCudaEngine(path, threads)


class OnnxRuntimeCudaEngine:
    """An engine file in an ONNX Runtime session on a GPU."""

    def __init__(self, path: Path, threads: int) -> None:
        self._sidecar = read_sidecar(path)
        session = self._sidecar.session
        self._session, self._placement = open_cuda_session(
            load_model(path), provider_options(session), session_config(_of_session(session)), threads
        )
        self._outputs = tuple(value.name for value in self._session.get_outputs())
        self._run = _runs(self._session, self._sidecar.name)

    @property
    def sidecar(self) -> Sidecar:
        """See `Engine.sidecar`."""
        return self._sidecar

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Engine.outputs`."""
        return self._outputs

    @property
    def placement(self) -> Placement:
        """Which nodes run on the GPU."""
        return self._placement

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See `Engine.run`; copies to the GPU and back are part of it."""
        feed, n = fill_batch(inputs, self._sidecar.fixed_batch)
        return cut_batch(self._run(feed), n, self._sidecar.fixed_batch)

    def device_call(self, inputs: Arrays) -> Callable[[], None]:
        """A call on inputs that are on the GPU already and whose outputs stay there, for timing.

        Each call returns when the GPU is done.

        Raises:
            MeasurementError: If the inputs do not fit, or the GPU's memory is full; the call raises it too.
        """
        import onnxruntime

        feed, _ = fill_batch(inputs, self._sidecar.fixed_batch)
        session, name = self._session, self._sidecar.name
        try:
            binding = session.io_binding()
            for tensor, value in feed.items():
                on_gpu = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda", 0)
                binding.bind_ortvalue_input(tensor, on_gpu)
            for output in self._outputs:
                binding.bind_output(output, "cuda", 0)
        except Exception as cause:  # onnxruntime's own exceptions have no common base
            raise _failed(name, cause) from cause

        def call() -> None:
            try:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as cause:  # as above
                raise _failed(name, cause) from cause

        return call


def cuda_options(proto: ModelProto, precision: Precision) -> Mapping[str, str]:
    """Options that ONNX Runtime must be given for a precision: of the session, and ``cuda.`` ones of the provider.

    The provider computes in TF32 unless told otherwise; only TF32 variants may.

    Args:
        proto: The finished graph.
        precision: Requested.
    """
    use_tf32 = "1" if precision is Precision.TF32 else "0"
    return MappingProxyType({**session_options(proto, precision), f"{_OPTION}use_tf32": use_tf32})


def provider_options(options: Mapping[str, str]) -> dict[str, str]:
    """Those of the options that are the provider's."""
    return {key.removeprefix(_OPTION): value for key, value in options.items() if key.startswith(_OPTION)}


def _of_session(options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if not key.startswith(_OPTION)}


def _in_bfloat16(proto: ModelProto) -> bool:
    """Whether a weighted layer can run in bfloat16."""
    weighted = {node.op_type for node in proto.graph.node} & WEIGHTED_OPS
    return not weighted or bool(weighted & BFLOAT16_OPS)


def _graph(variant: Variant) -> Quantized:
    """The graph whose types state the variant's precision, with only such types as the provider has kernels for."""
    if variant.precision is not Precision.BF16:
        return typed_graph_of(variant)
    nodes = variant.prepared.model.proto.graph.node
    lacking = [node for node in nodes if node.name and (node.domain or node.op_type not in BFLOAT16_OPS)]
    return typed_graph_of(variant, {node.name: f"no bfloat16 kernel of {node.op_type} in {NAME}" for node in lacking})


def _judge(
    variant: Variant, proto: ModelProto, path: Path, options: Mapping[str, str], size_bytes: int
) -> tuple[Precision | None, str]:
    """What the types prove, and what a run shows if a GPU is here: proved precision, and how, in words."""
    model = variant.model
    is_untyped = variant.precision in UNTYPED
    proof = None if is_untyped else prove(model.with_proto(proto))
    found = None
    try:
        session, placement = _open_here(path, options, size_bytes)
    except BackendUnavailable as error:
        seen = f"not run: {error.what}"
    else:
        seen = str(placement)
        try:
            probe = prepared_probe(variant.prepared, proto, threads=1, source=model)
            found = fingerprint(probe, probe.run(_runs(session, path.stem)))
        except ModelError as error:  # such as one without outputs of floats
            seen += f"; no probe: {error.what}"
    float32 = is_untyped and not is_shorter(proto)
    proved, text = confirm(variant.precision, proof, found, None, is_float32=float32)
    return proved, f"{text}; {seen}"


def _runs(session: Any, name: str) -> Callable[[Arrays], dict[str, NDArray[np.generic]]]:
    """A call of a session by names."""
    outputs = [value.name for value in session.get_outputs()]

    def run(feed: Arrays) -> dict[str, NDArray[np.generic]]:
        try:
            return dict(zip(outputs, session.run(None, dict(feed)), strict=True))
        except Exception as cause:  # onnxruntime's own exceptions have no common base
            raise _failed(name, cause) from cause

    return run


def _open_here(path: Path, options: Mapping[str, str], size_bytes: int) -> tuple[Any, Placement]:
    """Open a file that has no sidecar yet, and count the copies unless it is large."""
    model = load_model(path)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx" if size_bytes <= _LARGEST_COPY else None
        config = session_config(_of_session(options))
        return open_cuda_session(model, provider_options(options), config, 0, optimized)


def _failed(name: str, cause: Exception) -> MeasurementError:
    if is_out_of_memory(cause):
        return out_of_memory(name, cause)
    return MeasurementError(f"{name} failed to run", got=first_line(cause))
