"""The OpenVINO backend on the CPU: an ONNX file, an inference precision that is always set, and a proof of it.

Left to itself, OpenVINO computes FP32 models in BF16 on processors that have it, and on those that lack FP16 it takes
the hint ``f16`` for ``bf16``, without a word. So every file is opened with a hint, and what the layers then run in is
read from the compiled model and from its errors on a probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.artifact import Made, quantized_graph, vouch
from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.engines.confirmation import UNTYPED, confirm
from quantlab.engines.fingerprint import Fingerprint, fingerprint
from quantlab.engines.kernels import KernelCount
from quantlab.engines.layer_time import LayerTime
from quantlab.engines.onnx_file import check_supported, written
from quantlab.engines.openvino_layers import CompiledLayers, compiled_layers, profiled_layers
from quantlab.engines.openvino_runtime import OpenVino, has_instructions, load_openvino, numpy_type, words
from quantlab.engines.probe import prepared_probe
from quantlab.engines.protocol import Arrays
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.tensorrt.inspector import LayerSummary
from quantlab.engines.variant import Variant
from quantlab.errors import EngineBuildError, EngineMismatch, MeasurementError, ModelError
from quantlab.graph.half import FORMATS
from quantlab.graph.model import Model, load_model, model_inputs, model_outputs
from quantlab.graph.proof import Proof, prove
from quantlab.graph.qdq import Quantized
from quantlab.precision import Execution, Precision
from quantlab.versions import build_environment

NAME = "openvino"

HINT = "INFERENCE_PRECISION_HINT"

_HINTS = {
    Precision.FP32: "f32",
    Precision.BF16: "bf16",
    Precision.FP16: "f16",
    Precision.INT8: "f32",
    Precision.INT8_WEIGHTS: "f32",
}
"""Value of the hint for each precision; INT8 layers are those with Q/DQ pairs, the hint is for the others."""

_CAPABILITIES = {Precision.BF16: "BF16", Precision.FP16: "FP16"}
_REFUSED = {
    Precision.TF32: "CPUs have no TF32",
    Precision.FP8: "OpenVINO computes FP8 pairs in FP32 on CPUs",
    Precision.INT8_FP16: "it is for GPUs",
}
_ELSEWHERE = "build one of fp32, bf16, int8, int8-weights, or use another --backend"


class OpenVinoBuilder:
    """Builds ONNX files for OpenVINO's CPU plugin."""

    backend = NAME

    def supports(self, variant: Variant) -> str | None:
        """See `EngineBuilder.supports`.

        Raises:
            BackendUnavailable: If OpenVINO cannot be loaded.
        """
        precision = variant.precision
        if precision in _REFUSED:
            return f"{_REFUSED[precision]}: {_ELSEWHERE}"
        capability = _CAPABILITIES.get(precision)
        if capability is None:
            return None
        runtime = load_openvino()
        if capability in runtime.capabilities:
            return None
        return (
            f"OpenVINO has no {capability} on this CPU ({runtime.device}: {', '.join(runtime.capabilities)}); "
            "--backend onnxruntime emulates it"
        )

    def build(self, variant: Variant, folder: Path) -> Path:
        """See `EngineBuilder.build`."""
        check_supported(self, variant)
        runtime = load_openvino()
        source = variant.model
        graph = quantized_graph(variant) if variant.quantized else Quantized(source.proto, (), (), {}, ())
        with written(NAME, variant, graph, folder) as file:
            options = plugin_options(variant.precision)
            session = _Session(runtime, file.path, file.name, options, threads=1)
            proved, proof, execution = _judge(variant, source.with_proto(file.proto), session)
            made = Made(
                name=file.name,
                path=file.path,
                size_bytes=file.size_bytes,
                graph=graph,
                proved=proved,
                proof=proof,
                execution=execution,
                environment={
                    **build_environment(),
                    "openvino": runtime.version,
                    "openvino device": runtime.device,
                    "openvino capabilities": " ".join(runtime.capabilities),
                },
                session=options,
            )
            vouch(variant, made)
        return file.path

    def load(self, path: Path, threads: int) -> OpenVinoEngine:
        """See `EngineBuilder.load`.

        Raises:
            EngineMismatch: Also if OpenVINO runs the file in another precision here than was proved of it.
            BackendUnavailable: If OpenVINO cannot be loaded.
        """
        return OpenVinoEngine(path, threads)


class OpenVinoEngine:
    """An engine file, compiled for the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        self._sidecar = read_sidecar(path)
        self._session = _Session(load_openvino(), path, self._sidecar.name, self._sidecar.session, threads)
        self._path = path
        self._threads = threads
        _check_precision(self._sidecar, self._session.layers().summary)

    @property
    def sidecar(self) -> Sidecar:
        """See `Engine.sidecar`."""
        return self._sidecar

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Engine.outputs`."""
        return self._session.outputs

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See `Engine.run`."""
        feed, n = fill_batch(inputs, self._sidecar.fixed_batch)
        return cut_batch(self._session.run(feed), n, self._sidecar.fixed_batch)

    def layer_times(self, inputs: Arrays, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `LayerTimed.layer_times`; a model of its own is compiled for it, for profiling slows each run."""
        options = {**self._sidecar.session, "PERF_COUNT": "YES"}
        session = _Session(load_openvino(), self._path, self._sidecar.name, options, self._threads)
        feed, _ = fill_batch(inputs, self._sidecar.fixed_batch)
        return session.layer_times(feed, runs)


class _Session:
    """A compiled model with requests for as many threads as call it at once."""

    def __init__(self, runtime: OpenVino, path: Path, name: str, options: Mapping[str, str], threads: int) -> None:
        self._runtime = runtime
        self._name = name
        proto = load_model(path).proto
        self._graph = proto.graph
        self._compiled = runtime.compile(path, options, threads)
        self.outputs = tuple(spec.name for spec in model_outputs(proto))
        ports = self._compiled.inputs
        positions = {str(alias): i for i, port in enumerate(ports) for alias in port.names}
        names = [spec.name for spec in model_inputs(proto)]
        self._inputs = {tensor: positions[tensor] for tensor in names if tensor in positions}
        if len(self._inputs) != len(names) or len(self.outputs) != len(self._compiled.outputs):
            raise EngineBuildError(
                f"OpenVINO {runtime.version} gives {path.name} other inputs or outputs",
                got=f"inputs {', '.join(positions) or 'none'}, {len(self._compiled.outputs)} outputs",
                expected=f"inputs {', '.join(names) or 'none'}, outputs {', '.join(self.outputs)}",
            )
        self._kinds = {tensor: ports[i].element_type for tensor, i in self._inputs.items()}
        self._input_types = {tensor: numpy_type(kind) for tensor, kind in self._kinds.items()}
        self._output_types = [numpy_type(port.element_type) for port in self._compiled.outputs]
        self._idle: deque[Any] = deque()  # appending and popping are atomic

    def layers(self) -> CompiledLayers:
        """What OpenVINO says of the layers."""
        return compiled_layers(self._compiled, self._graph)

    def layer_times(self, feed: Arrays, runs: int) -> tuple[LayerTime, ...]:
        """Times of the layers, if the model was compiled with ``PERF_COUNT``."""

        def run() -> Any:
            self.run(feed)
            return self._idle[-1]

        return profiled_layers(self._compiled, self._graph, run, runs)

    def run(self, feed: Arrays) -> dict[str, NDArray[np.generic]]:
        """See `Engine.run`. Inputs are checked here: a request takes those of an earlier call for missing ones."""
        self._check(feed)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            given = {self._inputs[name]: self._tensor(name, value) for name, value in feed.items()}
            results = request.infer(given, share_inputs=True)
            values = [results[index] for index in range(len(self.outputs))]
        except Exception as cause:  # openvino raises bare RuntimeErrors
            raise MeasurementError(f"{self._name} failed to run", got=words(cause)) from cause
        self._idle.append(request)
        typed = (
            value.view(kind) if value.dtype != kind else value
            for value, kind in zip(values, self._output_types, strict=True)
        )
        return dict(zip(self.outputs, typed, strict=True))

    def _tensor(self, name: str, value: NDArray[np.generic]) -> Any:
        whole = np.ascontiguousarray(value)
        if whole.dtype.name != "bfloat16":
            return whole
        return self._runtime.module.Tensor(whole.view(np.uint16), list(whole.shape), self._kinds[name])

    def _check(self, feed: Arrays) -> None:
        if feed.keys() != self._inputs.keys():
            raise MeasurementError(
                f"{self._name} failed to run",
                got=f"inputs {', '.join(feed) or 'none'}",
                expected=", ".join(self._inputs),
            )
        for name, value in feed.items():
            if value.dtype != self._input_types[name]:
                raise MeasurementError(
                    f"{self._name} failed to run",
                    got=f"{name!r} of type {value.dtype}",
                    expected=str(self._input_types[name]),
                )


def plugin_options(precision: Precision) -> Mapping[str, str]:
    """Properties that OpenVINO's plugin must be given for a precision.

    Threads are not pinned to cores: other engines run beside it in one process, and a pinned thread waits for whoever
    has its core. Products of float activations and INT8 weights are else computed with activations that OpenVINO
    quantizes itself, in groups of 32.
    """
    return MappingProxyType(
        {
            HINT: _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
    )


def _judge(variant: Variant, model: Model, session: _Session) -> tuple[Precision | None, str, Execution]:
    """What graph, layers and a run prove: precision, how in words, and whether the processor computes in it."""
    precision = variant.precision
    layers = session.layers()
    graph = _stated(precision, model, layers)
    found, note = _run(variant, model, session)
    proved, text = confirm(precision, graph, found, layers.summary, inspector="OpenVINO")
    execution = Execution.NATIVE
    notes = [note]
    if precision is Precision.INT8 and graph is not None:
        n_integer = layers.integer_nodes(model.proto.graph, graph.named(Precision.INT8))
        notes.append(str(KernelCount("OpenVINO", n_integer, graph.quantized_layers)))
        execution = Execution.NATIVE if 2 * n_integer > graph.quantized_layers else Execution.EMULATED
    elif precision is Precision.INT8_WEIGHTS:
        notes.append("FP32 kernels; weights are dequantized where they are multiplied")
    elif precision in FORMATS and not has_instructions(_CAPABILITIES[precision]):
        notes.append(f"computed by FP32 instructions: this CPU states none for {precision.upper()}")
        execution = Execution.EMULATED
    return proved, "; ".join(part for part in (text, *notes) if part), execution


def _stated(precision: Precision, model: Model, layers: CompiledLayers) -> Proof | None:
    if precision in UNTYPED:
        return None
    return layers.stated(precision) if precision in FORMATS else prove(model)


def _run(variant: Variant, model: Model, session: _Session) -> tuple[Fingerprint | None, str]:
    """What a run on a probe shows, and why there was none."""
    try:
        probe = prepared_probe(variant.prepared, model.proto, threads=1, source=model)
    except ModelError as error:  # such as one without outputs of floats
        return None, f"no probe: {error.what}"
    return fingerprint(probe, probe.run(session.run)), ""


def _check_precision(sidecar: Sidecar, layers: LayerSummary) -> None:
    """Refuse to run a file in another precision than was proved of it, as OpenVINO would on another processor."""
    counts = layers.weighted_by_precision
    if sidecar.proved not in (Precision.FP32, *FORMATS) or not counts:
        return
    most = next(iter(counts))
    if most != sidecar.proved.value:
        raise EngineMismatch(
            f"{sidecar.name} was proved to compute in {sidecar.proved.upper()}, not on this processor",
            got=f"most layers run in {most}",
            expected=sidecar.environment.get("openvino device", "the processor that it was built on"),
            hint="build it again here",
        )
