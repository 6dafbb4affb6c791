"""The ONNX Runtime CPU backend: always available, runs every variant, and says what it only emulates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.degradation import Degradation
from quantlab.engines.artifact import Made, quantized_graph, vouch
from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.engines.kernels import KernelCount, integer_kernels, session_config, session_options
from quantlab.engines.layer_time import LayerTime
from quantlab.engines.onnx_file import check_supported, written
from quantlab.engines.onnxruntime_layers import profile_session
from quantlab.engines.protocol import Arrays
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import EngineBuildError, MeasurementError
from quantlab.graph.half import to_half
from quantlab.graph.model import load_model, open_session
from quantlab.graph.proof import Proof, prove
from quantlab.graph.qdq import Quantized
from quantlab.graph.tf32 import to_tf32
from quantlab.precision import Execution, Precision
from quantlab.versions import build_environment

NAME = "onnxruntime"

_SUPPORTED = tuple(precision for precision in Precision if precision is not Precision.INT8_FP16)
_LARGEST_PROBE = 500_000_000


class OnnxRuntimeBuilder:
    """Builds ONNX files for ONNX Runtime's CPU provider."""

    backend = NAME

    def supports(self, variant: Variant) -> str | None:
        """See `EngineBuilder.supports`."""
        if variant.precision not in _SUPPORTED:
            return (
                f"{variant.precision} is for GPUs; here FP16 would be FP32 with roundings in between: "
                f"build one of {', '.join(_SUPPORTED)}, or use another --backend"
            )
        return None

    def build(self, variant: Variant, folder: Path) -> Path:
        """See `EngineBuilder.build`."""
        check_supported(self, variant)
        graph = variant_graph(variant)
        with written(NAME, variant, graph, folder) as file:
            proof = prove(variant.model.with_proto(file.proto))
            execution, note = _execution(variant.precision, file.path, file.size_bytes, proof)
            made = Made(
                name=file.name,
                path=file.path,
                size_bytes=file.size_bytes,
                graph=graph,
                proved=proof.precision,
                proof="; ".join(part for part in (proof.text, note) if part),
                execution=execution,
                environment=build_environment(),
                session=session_options(file.proto, variant.precision),
            )
            vouch(variant, made)
        return file.path

    def load(self, path: Path, threads: int) -> OnnxRuntimeEngine:
        """See `EngineBuilder.load`."""
        return OnnxRuntimeEngine(path, threads)


class OnnxRuntimeEngine:
    """An engine file in an ONNX Runtime CPU session."""

    def __init__(self, path: Path, threads: int) -> None:
        self._sidecar = read_sidecar(path)
        self._path, self._threads = path, threads
        model = load_model(path)
        self._config = session_config(self._sidecar.session)
        self._session: Any = open_session(model, threads=threads, config=self._config, error=EngineBuildError)
        self._outputs = tuple(value.name for value in self._session.get_outputs())

    @property
    def sidecar(self) -> Sidecar:
        """See `Engine.sidecar`."""
        return self._sidecar

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Engine.outputs`."""
        return self._outputs

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See `Engine.run`."""
        feed, n = fill_batch(inputs, self._sidecar.fixed_batch)
        try:
            values = self._session.run(None, feed)
        except Exception as cause:  # onnxruntime's own exceptions have no common base
            raise MeasurementError(f"{self._sidecar.name} failed to run", got=str(cause).splitlines()[0]) from cause
        return cut_batch(dict(zip(self._outputs, values, strict=True)), n, self._sidecar.fixed_batch)

    def layer_times(self, inputs: Arrays, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `LayerTimed.layer_times`; the file is opened a second time, with ONNX Runtime's profiler on.

        Raises:
            EngineMismatch: If the file has changed since the engine was opened.
            MeasurementError: As `profile_session` raises it.
        """
        read_sidecar(self._path)
        feed, _ = fill_batch(inputs, self._sidecar.fixed_batch)
        model, name = load_model(self._path), self._sidecar.name
        return profile_session(model, name, feed, runs=runs, threads=self._threads, config=self._config)


def variant_graph(variant: Variant) -> Quantized:
    """The graph of a variant, emulated where ONNX Runtime's CPU kernels do not have the precision.

    One that is not quantized has no layers in its account.

    Raises:
        QuantlabError: As `quantized_graph`, `to_tf32` and `to_half` raise them.
    """
    if variant.quantized:
        return quantized_graph(variant)
    source = variant.prepared.model
    degradations: tuple[Degradation, ...] = ()
    match variant.precision:
        case Precision.TF32:
            proto = to_tf32(source)
        case Precision.FP16 | Precision.BF16:
            proto, degradations = to_half(source, variant.precision)
        case _:
            proto = source.proto
    return Quantized(proto, (), (), {}, degradations)


def _execution(precision: Precision, path: Path, size_bytes: int, proof: Proof) -> tuple[Execution, str]:
    """Whether ONNX Runtime's CPU kernels compute natively in a precision, by what they are.

    INT8 is native if most of the quantized layers run in integer kernels; the text says how many. INT8 weights alone
    are native: their arithmetic is that of FP32.
    """
    if precision is Precision.FP32:
        return Execution.NATIVE, ""
    if precision is Precision.INT8_WEIGHTS:
        return Execution.NATIVE, "FP32 kernels; weights are dequantized once, when the model is opened"
    if precision is not Precision.INT8:
        return Execution.EMULATED, "computed by FP32 kernels on this CPU"
    if size_bytes > _LARGEST_PROBE:
        return Execution.EMULATED, "too large to ask ONNX Runtime which kernels it takes"
    integer = integer_kernels(path)
    note = str(KernelCount("ONNX Runtime", integer, proof.quantized_layers))
    return (Execution.NATIVE if 2 * integer > proof.quantized_layers else Execution.EMULATED), note
