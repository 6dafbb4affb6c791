"""What the doctor tries of GPUs and their libraries; each in a process of its own.

``python -m quantlab.workflow.gpu_probes pycuda`` writes each result as a line of JSON with a mark in front, and so the
name of each thing before it is tried. So what a library prints does no harm, and after a crash the doctor knows what
was being tried.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlab.errors import QuantlabError

MARK = "quantlab-probe "

_SIZE = 256
_FP32_ERROR = 5e-6
_TF32_ERROR = 5e-3
_LEAST_CAPABILITY = {
    "fp32": (0, 0), "tf32": (8, 0), "fp16": (5, 3), "bf16": (8, 0), "int8": (6, 1), "int8-fp16": (6, 1), "fp8": (8, 9),
}  # fmt: skip
"""Compute capability from which GPUs have fast arithmetic of a precision; INT8's is that of the dp4a instruction."""

_DRIVER_ERRORS = {
    3: "the driver is not initialized",
    34: "this is the driver's stub library: remove the folder named stubs from LD_LIBRARY_PATH",
    35: "the driver is too old for this CUDA: update it",
    100: "the driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, and in a container its access to GPUs",
    101: "CUDA_VISIBLE_DEVICES names a GPU that is not there",
    802: "the GPUs' fabric manager is not running",
    803: "library and kernel module of the driver are of different versions: restart the machine",
    804: "the driver's forward-compatibility package does not support this GPU: remove cuda-compat",
    999: "the driver is in an unknown state: restart the machine, or reload its kernel modules",
}


class NotHereError(Exception):
    """What is probed is not installed or needs a GPU; that is nothing broken."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A GPU as the driver states it.

    Attributes:
        name: Marketing name.
        capability: Compute capability.
        memory_bytes: Of the whole GPU.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        possible = ", ".join(name for name, least in _LEAST_CAPABILITY.items() if self.capability >= least)
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}, {self.memory_bytes >> 20:,} MiB; can: {possible}"


class CudaDriver:
    """The driver's own library, called without pycuda.

    Raises:
        NotHereError: If it is not installed.
        RuntimeError: If it does not start; with what to do.
    """

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as cause:
            raise NotHereError("no NVIDIA driver (libcuda.so.1); only TensorRT engines and CUDA need one") from cause
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library."""
        code = int(getattr(self.library, name)(*arguments))
        if code:
            raise RuntimeError(f"{name} failed with CUDA error {code}: {_DRIVER_ERRORS.get(code, 'see nvidia-smi')}")

    def number(self, name: str, *arguments: Any) -> int:
        """Call a function that writes a number to its first argument."""
        found = ctypes.c_int()
        self.call(name, ctypes.byref(found), *arguments)
        return found.value

    def gpus(self) -> list[GpuFacts]:
        """All that are visible."""
        return [self._gpu(index) for index in range(self.number("cuDeviceGetCount"))]

    def _gpu(self, index: int) -> GpuFacts:
        device = self.number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, 256, device)
        size = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
        major, minor = (self.number("cuDeviceGetAttribute", attribute, device) for attribute in (75, 76))
        return GpuFacts(name.value.decode("utf-8", "replace"), (major, minor), size.value)


class Report:
    """Writes findings as they are made."""

    def begin(self, name: str) -> None:
        """State what is tried next."""
        self._write({"begin": name})

    def found(self, name: str, works: bool | None, detail: str) -> None:
        """State what came of it."""
        self._write({"name": name, "works": works, "detail": detail})

    def attempt(self, name: str, probe: Callable[[], str]) -> bool:
        """Try one thing; its text is the detail, and so is what it raises. Whether it works."""
        self.begin(name)
        try:
            self.found(name, True, probe())
        except NotHereError as error:
            self.found(name, None, str(error))
        except Exception as error:  # whatever a broken library raises
            self.found(name, False, in_one_line(error))
        else:
            return True
        return False

    def _write(self, line: Mapping[str, object]) -> None:
        sys.stdout.write(f"\n{MARK}{json.dumps(line)}\n")
        sys.stdout.flush()


def in_one_line(error: BaseException) -> str:
    """An error with its reason and what to do."""
    if isinstance(error, QuantlabError):
        text = error.what if error.got is None else f"{error.what}: {error.got}"
        return " ".join((text if error.hint is None else f"{text}; {error.hint}").split())
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if isinstance(error, RuntimeError) else f"{type(error).__name__}: {text}"


def probe_driver(report: Report) -> None:
    """The NVIDIA driver and every GPU."""
    from quantlab.engines.cuda_driver import driver_version

    gpus: list[GpuFacts] = []

    def versions() -> str:
        driver = CudaDriver()
        cuda = driver.number("cuDriverGetVersion")
        gpus.extend(driver.gpus())
        return f"{driver_version() or 'unknown version'}, CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"

    if report.attempt("NVIDIA driver", versions):
        for index, gpu in enumerate(gpus):
            report.found(f"GPU {index}", True, str(gpu))


def probe_pycuda(report: Report) -> None:
    """Whether pycuda gets a context and 1 KB to the GPU and back."""

    def round_trip() -> str:
        _require("pycuda", "pycuda is not installed: pip install 'quantlab[tensorrt]' or 'quantlab[tensorrt-rtx]'")
        _require_gpu("pycuda is installed")
        import numpy as np

        from quantlab.engines.cuda import open_device

        device = open_device()
        sent = np.arange(256, dtype=np.float32)
        back = np.zeros_like(sent)
        with device.active():
            memory = device.driver.mem_alloc(sent.nbytes)
            device.driver.memcpy_htod(memory, sent)
            device.driver.memcpy_dtoh(back, memory)
            memory.free()
        if not np.array_equal(sent, back):
            raise RuntimeError("1 KB came back from the GPU changed")
        from pycuda import VERSION_TEXT

        return f"{VERSION_TEXT}, built for CUDA {device.facts.pycuda}; 1 KB went to the GPU and back"

    report.attempt("pycuda", round_trip)


def probe_tensorrt(report: Report, backend: str) -> None:
    """A flavour of TensorRT: what it has, whether it builds, and whether what it built runs."""
    from quantlab.engines.tensorrt.flavour import Flavour, is_installed, load_flavour

    loaded: list[Flavour] = []

    def module() -> str:
        if not is_installed(backend):
            raise NotHereError(f"not installed: pip install 'quantlab[{backend}]'")
        flavour = load_flavour(backend)
        loaded.append(flavour)
        return (
            f"{flavour.version}; calibrators: {_yes(flavour.has_calibrators)}, "
            f"weak typing: {_yes(flavour.has_weak_types)}, builds without a GPU: {_yes(flavour.builds_without_gpu)}"
        )

    def builder() -> str:
        from quantlab.workflow.gpu_trials import build_product

        if not loaded[0].builds_without_gpu and not _has_gpu():
            raise NotHereError("not tried: it builds on a GPU only, and none can be used here")
        return f"built an engine of one layer, {len(build_product(loaded[0], _SIZE)):,} bytes"

    def engine() -> str:
        from quantlab.workflow.gpu_trials import build_product, run_product

        _require_gpu("an engine was built")
        plan = build_product(loaded[0], _SIZE, current_gpu=True)
        return f"ran; {_arithmetic(run_product(loaded[0], plan, _SIZE), 'with the TF32 flag cleared it')}"

    if report.attempt(backend, module) and report.attempt(f"{backend} builder", builder):
        report.attempt(f"{backend} engine", engine)


def probe_onnxruntime_cuda(report: Report) -> None:
    """Whether ONNX Runtime's CUDA provider runs a node, and obeys the TF32 option."""

    def provider() -> str:
        import onnxruntime

        from quantlab.engines.onnxruntime_provider import INSTALL_HINT, PROVIDER
        from quantlab.workflow.gpu_trials import run_on_cuda

        if PROVIDER not in onnxruntime.get_available_providers():
            raise NotHereError(f"not installed: {INSTALL_HINT}")
        _require_gpu(f"{onnxruntime.__version__} has the provider")
        errors = [run_on_cuda(_SIZE, use_tf32=use_tf32) for use_tf32 in (False, True)]
        without, with_ = (_arithmetic(error, f"with use_tf32={i} it") for i, error in enumerate(errors))
        return (
            f"{onnxruntime.__version__}, CUDA {onnxruntime.cuda_version}; a product ran on the GPU; {without}; {with_}"
        )

    report.attempt("onnxruntime-cuda", provider)


PROBES: Mapping[str, Callable[[Report], None]] = {
    "driver": probe_driver,
    "pycuda": probe_pycuda,
    "tensorrt": lambda report: probe_tensorrt(report, "tensorrt"),
    "tensorrt-rtx": lambda report: probe_tensorrt(report, "tensorrt-rtx"),
    "onnxruntime-cuda": probe_onnxruntime_cuda,
}
"""What can be tried, by the word on the command line."""


def _require(module: str, otherwise: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise NotHereError(otherwise)


def _require_gpu(what: str) -> None:
    """Stop, as with something that is not installed, where no GPU can be used; the driver's line says why."""
    if not _has_gpu():
        raise NotHereError(f"{what}; not tried: no GPU can be used here")


def _has_gpu() -> bool:
    try:
        return bool(CudaDriver().gpus())
    except (NotHereError, RuntimeError, AttributeError):
        return False


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _arithmetic(error: float, what: str) -> str:
    """The arithmetic of a product of float32 matrices, by its relative error.

    Raises:
        RuntimeError: If it is of neither: the result is wrong.
    """
    if error < _FP32_ERROR:
        return f"{what} computes in FP32 (error {error:.1e})"
    if error < _TF32_ERROR:
        return f"{what} computes in TF32 (error {error:.1e})"
    raise RuntimeError(f"{what} gave wrong results: error {error:.1e}")


def main(arguments: Sequence[str]) -> None:
    """Try one thing."""
    PROBES[arguments[0]](Report())


if __name__ == "__main__":
    main(sys.argv[1:])
