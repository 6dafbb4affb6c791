"""OpenVINO itself: loaded without its telemetry, with its errors and types turned into ours."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from quantlab.errors import BackendUnavailable, EngineBuildError
from quantlab.graph.session import first_line

MODULE = "openvino"
DEVICE = "CPU"
INSTALL_HINT = "pip install 'quantlab[openvino]', or use another --backend"

_TELEMETRY = "openvino_telemetry"
_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = {
    "BF16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "FP16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""Features of processors, as Linux names them, that have instructions for products of a type: of x86 and of ARM."""

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class OpenVino:
    """The loaded library and its CPU device.

    Attributes:
        module: The imported module.
        core: Its ``Core``, which compiles models.
        version: Such as ``2026.4.1``.
        device: Name of the processor, as the plugin states it.
        capabilities: What the plugin says that it computes in on this processor: ``FP32``, ``BF16``, ``INT8``, ...
    """

    module: Any
    core: Any
    version: str
    device: str
    capabilities: tuple[str, ...]

    def compile(self, path: Path, options: Mapping[str, str], threads: int) -> Any:
        """Compile an ONNX file for the CPU.

        Args:
            path: The file; its external data is found beside it.
            options: Properties of the plugin.
            threads: Threads of a run; 0 for all cores.

        Returns:
            An ``openvino.CompiledModel``.

        Raises:
            EngineBuildError: If OpenVINO refuses the model or an option.
        """
        properties = {**options, "INFERENCE_NUM_THREADS": str(threads)} if threads else dict(options)
        try:
            return self.core.compile_model(self.core.read_model(str(path)), DEVICE, properties)
        except Exception as cause:  # openvino raises bare RuntimeErrors
            raise EngineBuildError(
                f"OpenVINO {self.version} cannot compile {path.name}",
                got=words(cause),
                hint="use another --backend for this model",
            ) from cause


def load_openvino() -> OpenVino:
    """Import OpenVINO and open its CPU device, once a process.

    Raises:
        BackendUnavailable: If it is not installed, or is installed but cannot be loaded; with the loader's own words.
    """
    with _lock:
        return _load()


@lru_cache(maxsize=1)
def _load() -> OpenVino:
    try:
        with _without_telemetry():
            module: Any = importlib.import_module(MODULE)
        core = module.Core()
        device, capabilities = (
            core.get_property(DEVICE, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
        )
        version = str(module.get_version()).partition("-")[0]
    except ModuleNotFoundError as cause:
        if cause.name == MODULE:
            raise BackendUnavailable("OpenVINO is not installed", got=str(cause), hint=INSTALL_HINT) from cause
        raise _broken(cause) from cause
    except Exception as cause:  # a missing shared library, a placeholder package, a processor that it does not know
        raise _broken(cause) from cause
    return OpenVino(module, core, version, " ".join(str(device).split()), tuple(str(name) for name in capabilities))


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's import from counting it: it would write to the home folder and send an event.

    Its documented opt-out is a file in the home folder, for all programs of the user. OpenVINO takes a stub instead if
    the telemetry package cannot be imported, so that is what it is told, for as long as its own import takes.
    """
    hidden = {
        name: module for name, module in sys.modules.items() if name == _TELEMETRY or name.startswith(_TELEMETRY + ".")
    }
    for name in hidden:
        del sys.modules[name]
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(hidden)


def _broken(cause: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        "OpenVINO is installed but cannot be loaded",
        got=words(cause),
        hint="run quantlab doctor; reinstall it: pip install --force-reinstall openvino",
    )


def has_instructions(capability: str) -> bool:
    """Whether the processor multiplies in a type by itself; False where that cannot be read.

    OpenVINO states ``BF16`` for every processor with AVX-512 and converts to FP32 where the instructions are lacking.

    Args:
        capability: ``BF16`` or ``FP16``.
    """
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    stated = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return not _FLAGS[capability].isdisjoint(next(stated, []))


def words(cause: BaseException) -> str:
    """What an exception of OpenVINO says, without the places in its source that come first."""
    lines = [line.strip() for line in str(cause).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '", "FrontEnd API"))]
    return first_line(RuntimeError("; ".join(told))) if told else first_line(cause)


def numpy_type(element_type: Any) -> np.dtype[np.generic]:
    """The NumPy type of an ``openvino.Type``, which itself takes bfloat16 for float16."""
    if element_type.get_type_name() == "bf16":
        brain: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
        return brain
    kind: np.dtype[np.generic] = element_type.to_dtype()
    return kind
