"""The machine and the versions that a measurement depends on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path

from quantlab.harness.gpus import nvidia_gpus
from quantlab.versions import installed_version, onnxruntime_packages, onnxruntime_version

_PACKAGES = ("quantlab", "numpy", "onnx", "pillow")
_FOR_GPUS = (
    "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "pycuda"
)  # fmt: skip


def processor_name() -> str:
    """Marketing name of the processor, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int) -> dict[str, object]:
    """What a comparison records of where it ran.

    Always the same keys, and a version for each package that is there only for GPUs, if it is installed.
    """
    versions = {package: installed_version(package) or "not installed" for package in _PACKAGES}
    versions["onnxruntime"] = onnxruntime_version()
    for package in _FOR_GPUS:
        installed = installed_version(package)
        if installed is not None:
            versions[package] = installed
    others = {name: package.version for name, package in onnxruntime_packages().items() if name != "onnxruntime"}
    return {
        "processor": processor_name(),
        "cpus": available_cpus(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": [asdict(gpu) for gpu in nvidia_gpus()],
        **versions,
        **others,
    }
