"""Opening ONNX Runtime sessions: one place for the options that every result depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, ValueInfoProto

from quantlab.errors import ModelError, QuantlabError
from quantlab.graph.external import is_external
from quantlab.graph.tensors import model_tensors

Providers = Sequence[str | tuple[str, Mapping[str, str]]]
"""Execution providers of ONNX Runtime by name, the preferred one first, with options where they are given."""

DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
"""Optimizers that never run: this one requantizes biases and weights of partly quantized models and ruins accuracy."""

FLOAT_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""Session option without which products of float activations and INT8 weights are computed with INT8 activations."""

_FP8_TYPES = frozenset(
    {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ}
)
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_TYPES = ("to", "output_dtype")
_CPU: Providers = ("CPUExecutionProvider",)
_SESSION_BYTES = 2**31 - 2**20


class Optimization(Enum):
    """How far ONNX Runtime rewrites the graph before it runs."""

    NONE = "none"
    """Every node runs as written."""
    BASIC = "basic"
    """Rewrites that keep to ONNX operators."""
    ALL = "all"
    """Fusions and layouts of the CPU too; the default for results and timing."""


def open_proto(
    proto: ModelProto,
    folder: Path | None,
    *,
    threads: int,
    outputs: Sequence[str] | None = None,
    optimize: Optimization = Optimization.ALL,
    config: Mapping[str, str] | None = None,
    log_severity: int = 3,
    arena: bool = True,
    error: type[QuantlabError] = ModelError,
    name: str = "the model",
    providers: Providers = _CPU,
    optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """Open a session for a model whose external weights, if any, stay in their files; on the CPU if not told else.

    Args:
        proto: The model; its external tensors refer to files in ``folder``.
        folder: Folder of external data; None if there is none.
        threads: Intra-op threads; 0 for all cores. Inter-op is always 1.
        outputs: Tensors to give besides the graph's own outputs, in this order after them.
        optimize: How far ONNX Runtime may rewrite the graph; never if it holds FP8 (see `holds_fp8`).
        config: Further session config entries of ONNX Runtime.
        log_severity: Least severe message that ONNX Runtime may write to stderr; 3 is errors, 4 fatal ones.
        arena: Whether ONNX Runtime keeps freed memory for the next run: faster, and at times twice the memory.
        error: Class of the error to raise.
        name: What to call the model in messages.
        providers: Execution providers. ONNX Runtime leaves out those that cannot be loaded and says so to stderr only.
        optimized: File to write the graph to as it is run; None to write none.
        profile: Beginning of the name of the file that ONNX Runtime's profiler writes; None to leave the profiler off.

    Returns:
        An ``onnxruntime.InferenceSession``, which never takes other providers because a run failed.

    Raises:
        QuantlabError: Of type ``error``, if ONNX Runtime cannot take the model; its message is the cause.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.graph_optimization_level = {
        Optimization.NONE: levels.ORT_DISABLE_ALL,
        Optimization.BASIC: levels.ORT_ENABLE_BASIC,
        Optimization.ALL: levels.ORT_ENABLE_ALL,
    }[Optimization.NONE if holds_fp8(proto) else optimize]
    for key, value in {FLOAT_PRODUCTS[0]: FLOAT_PRODUCTS[1], **(config or {})}.items():
        options.add_session_config_entry(key, value)
    if folder is not None and any(is_external(tensor) for _, tensor in model_tensors(proto)):
        options.add_session_config_entry(_FOLDER_KEY, str(folder.resolve()))
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    data = serialized(proto, error, name)
    if outputs:
        data += _further_outputs(proto, outputs)
    chosen = [provider if isinstance(provider, str) else (provider[0], dict(provider[1])) for provider in providers]
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=chosen, disabled_optimizers=list(DISABLED_OPTIMIZERS), enable_fallback=0
        )
    except Exception as cause:  # onnxruntime's exceptions share no base class
        raise error(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {name}",
            got=first_line(cause),
            hint="check with quantlab inspect; operators of other runtimes are not supported",
        ) from cause


def holds_fp8(proto: ModelProto) -> bool:
    """Whether a model has FP8 numbers in it, which ONNX Runtime gets right only with its optimizer off.

    Its fusions, at the levels EXTENDED and ALL, take FP8 pairs for INT8 and put integer operators in their place: the
    session is refused (``INVALID_GRAPH``), or opens and gives wrong results. Seen with ONNX Runtime 1.31.
    """
    if any(tensor.data_type in _FP8_TYPES for _, tensor in model_tensors(proto)):
        return True
    stated = (attribute.i for node in proto.graph.node for attribute in node.attribute if attribute.name in _TYPES)
    return any(kind in _FP8_TYPES for kind in stated)


def serialized(proto: ModelProto, error: type[QuantlabError], name: str) -> bytes:
    """Serialize a model, refusing what protobuf cannot hold.

    Raises:
        QuantlabError: Of type ``error``, if the model with its inline weights reaches 2 GiB.
    """
    try:
        data = bytes(proto.SerializeToString())
    except EncodeError:  # past 2 GiB; asking for the size beforehand takes eight times as long as writing
        data = None
    if data is None or len(data) > _SESSION_BYTES:
        raise error(
            f"{name} is too large for one protobuf message",
            got=f"{len(data):,} bytes" if data is not None else "more than 2 GiB",
            expected=f"at most {_SESSION_BYTES:,}",
            hint="save it with external data first",
        )
    return data


def _further_outputs(proto: ModelProto, outputs: Sequence[str]) -> bytes:
    """A serialized ModelProto that adds outputs when appended: protobuf merges messages that follow each other."""
    present = {value.name for value in proto.graph.output}
    addition = ModelProto()
    for output in dict.fromkeys(outputs):
        if output not in present:
            addition.graph.output.append(ValueInfoProto(name=output))
    return bytes(addition.SerializeToString())


def first_line(cause: BaseException) -> str:
    """The first line of a runtime's message, shortened."""
    text = str(cause).strip() or type(cause).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 400 else line[:397] + "..."
