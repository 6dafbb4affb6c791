"""The machine and the versions that a measurement depends on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict

from quantlab.harness.gpus import nvidia_gpus
from quantlab.harness.machine import available_cpus, processor_name
from quantlab.versions import installed_version, onnxruntime_packages, onnxruntime_version

__all__ = ["available_cpus", "environment", "package_versions", "processor_name"]

_PACKAGES = ("quantlab", "numpy", "onnx", "pillow")
_WHERE_INSTALLED = (
    "openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13",
    "pycuda",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of what runs engines and of what they are fed with; optional packages only where they are installed."""
    versions = {package: installed_version(package) or "not installed" for package in _PACKAGES}
    versions["onnxruntime"] = onnxruntime_version()
    for package in _WHERE_INSTALLED:
        installed = installed_version(package)
        if installed is not None:
            versions[package] = installed
    others = {name: package.version for name, package in onnxruntime_packages().items() if name != "onnxruntime"}
    return {**versions, **others}


def environment(threads: int) -> dict[str, object]:
    """What a comparison records of where it ran.

    Always the same keys, and a version for each optional package that is installed.
    """
    return {
        "processor": processor_name(),
        "cpus": available_cpus(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": [asdict(gpu) for gpu in nvidia_gpus()],
        **package_versions(),
    }
