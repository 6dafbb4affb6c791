"""ONNX Runtime's CUDA execution provider: opened for certain, and asked which nodes it really runs.

ONNX Runtime does not fail where it cannot load the provider: it writes a line to stderr and runs everything on the CPU.
It also puts single nodes on the CPU for which the provider has no kernel. Both are found here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from quantlab.errors import BackendUnavailable, EngineBuildError, MeasurementError
from quantlab.graph.model import Model
from quantlab.graph.session import first_line, open_proto
from quantlab.versions import onnxruntime_packages

PROVIDER = "CUDAExecutionProvider"
INSTALL_HINT = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu: both fill one module"

_CPU = "CPUExecutionProvider"
_RECORD = "session.record_ep_graph_assignment_info"
_WEIGHTED = re.compile(r"Conv|Gemm|MatMul|Attention|LSTM|GRU|RNN|Einsum")
_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|Available memory of \d+ is smaller|STATUS_ALLOC_FAILED|CUDA failure 2\b"
    r"|CUBLAS failure 3\b"
)
_CUDA = re.compile(r"CUDA failure \d+|CUDA error|cudaError|CUDNN failure|CUBLAS failure|no kernel image")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where ONNX Runtime runs the nodes of a model.

    Attributes:
        cuda: Nodes that the CUDA provider runs.
        cpu: Nodes that the CPU runs, counted by operator.
        copies: Copies between the two that each call makes, besides inputs and outputs; None if not looked at.
    """

    cuda: int
    cpu: Mapping[str, int]
    copies: int | None = None

    def __str__(self) -> str:
        text = f"{self.cuda} nodes on CUDA"
        if self.cpu:
            kinds = ", ".join(f"{op} x{count}" for op, count in sorted(self.cpu.items(), key=lambda e: (-e[1], e[0])))
            text += f", {sum(self.cpu.values())} on the CPU ({kinds})"
        if self.copies is not None:
            text += f", {self.copies or 'no'} Memcpy nodes between them"
        return text


def require_provider() -> None:
    """Load what the CUDA provider needs.

    Raises:
        BackendUnavailable: If this ONNX Runtime has no CUDA provider, or a library or the driver is missing.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if PROVIDER not in available:
        packages = ", ".join(f"{name} {package.version}" for name, package in onnxruntime_packages().items())
        raise BackendUnavailable(
            "this ONNX Runtime has no CUDA provider",
            got=f"{', '.join(available)} of {packages or 'an ONNX Runtime that no package installed'}",
            expected=PROVIDER,
            hint=INSTALL_HINT,
        )
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        raise BackendUnavailable(
            "this ONNX Runtime cannot say on which device a node runs", got=f"onnxruntime {onnxruntime.__version__}",
            expected="1.24 or later", hint="pip install --upgrade onnxruntime-gpu",
        )  # fmt: skip
    missing = _missing_library(onnxruntime)
    if missing is not None:
        driver = "libcuda.so" in missing
        raise BackendUnavailable(
            "the NVIDIA driver is not installed" if driver else "a library of the CUDA provider is missing",
            got=missing,
            expected=None if driver else f"CUDA {onnxruntime.cuda_version or 'runtime'} and cuDNN 9",
            hint="install the NVIDIA driver; in a container, start it with access to the GPUs" if driver else
            "pip install 'onnxruntime-gpu[cuda,cudnn]', or a PyTorch for the same CUDA",
        )  # fmt: skip


def open_cuda_session(
    model: Model, options: Mapping[str, str], config: Mapping[str, str], threads: int, optimized: Path | None = None
) -> tuple[Any, Placement]:
    """Open a session whose weighted layers all run on the GPU.

    Args:
        model: What to run.
        options: Options of the CUDA provider.
        config: Config entries of the session.
        threads: Threads for nodes that stay on the CPU.
        optimized: File to write the graph to as it is run, and to count copies in; None to do neither.

    Returns:
        The session, and where its nodes run.

    Raises:
        BackendUnavailable: If the provider or the GPU cannot be used.
        EngineBuildError: If ONNX Runtime refuses the model, or puts a weighted layer on the CPU.
        MeasurementError: If the GPU's memory is full.
    """
    require_provider()
    name = f"model {model.path or model.name}"
    try:
        session = open_proto(
            model.proto, model.data_folder, threads=threads, config={**config, _RECORD: "1"}, error=EngineBuildError,
            name=name, providers=((PROVIDER, options), _CPU), optimized=optimized,
        )  # fmt: skip
    except EngineBuildError as error:
        cause = error.__cause__
        if cause is None:
            raise
        if is_out_of_memory(cause):
            raise out_of_memory(name, cause) from cause
        if _CUDA.search(str(cause)):
            raise BackendUnavailable(
                "the CUDA provider cannot use this GPU", got=first_line(cause),
                hint="run quantlab doctor; check the driver with nvidia-smi",
            ) from cause  # fmt: skip
        raise
    if PROVIDER not in session.get_providers():
        raise BackendUnavailable(
            "ONNX Runtime fell back to the CPU", got=", ".join(session.get_providers()), expected=PROVIDER,
            hint="run quantlab doctor; ONNX Runtime may have said on stderr which library it could not load",
        )  # fmt: skip
    return session, _placement(session, name, optimized)


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether an error of ONNX Runtime says that the GPU's memory is full."""
    return _MEMORY.search(str(cause)) is not None


def out_of_memory(what: str, cause: BaseException) -> MeasurementError:
    """The error for a full GPU."""
    return MeasurementError(
        f"{what}: the memory of the GPU is full",
        got=first_line(cause),
        hint="use a smaller --batch-size, or end other programs on the GPU",
    )


def _placement(session: Any, name: str, optimized: Path | None) -> Placement:
    """Read the record of the session; an error if a weighted layer is not on the GPU."""
    cuda = 0
    cpu: Counter[str] = Counter()
    lost = []
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        if part.ep_name == PROVIDER:
            cuda += len(nodes)
            continue
        cpu.update(node.op_type for node in nodes)
        lost += [f"{node.name} ({node.op_type})" for node in nodes if _WEIGHTED.search(node.op_type)]
    if lost or not cuda:
        more = f", ... ({len(lost)})" if len(lost) > 5 else ""
        raise EngineBuildError(
            f"{name} would not run on the GPU",
            got=f"on the CPU: {', '.join(lost[:5])}{more}" if lost else "no node on the GPU",
            expected="every weighted layer on the GPU",
            hint="the CUDA provider has no kernel for their types: choose another precision",
        )
    copies = None
    if optimized is not None and optimized.exists():
        graph = onnx.load(optimized, load_external_data=False).graph
        copies = sum(node.op_type.startswith("Memcpy") for node in graph.node)
    return Placement(cuda, dict(cpu), copies)


def _missing_library(runtime: Any) -> str | None:
    """What the loader says of the provider's library, after what it needs was looked for; None if nothing is missing.

    CUDA and cuDNN often lie in packages named ``nvidia-...`` that came with PyTorch, where the loader does not look.
    """
    library = Path(runtime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    preload = getattr(runtime, "preload_dlls", None)
    if preload is not None:
        spec = importlib.util.find_spec("nvidia")
        roots = [Path(root) for root in spec.submodule_search_locations or ()] if spec is not None else []
        folders = sorted({file.parent for root in roots for file in root.glob("*/lib/lib*.so*")})
        for folder in (None, *folders):
            if _loader_says(library) is None:
                break
            # It prints what it cannot load, which is no failure if the next folder has it.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
                preload(directory=folder and str(folder))
    return _loader_says(library)


def _loader_says(library: Path) -> str | None:
    """The missing library in the loader's words; None if all are there, or there is nothing to load."""
    if not library.exists():  # built into the module, or another system: the session will tell
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        text = str(error)
        return text if "cannot open shared object file" in text else None  # else symbols that ONNX Runtime provides
    return None
