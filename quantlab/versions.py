"""Versions of installed packages; ONNX Runtime's are several packages that install one module."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

ONNXRUNTIME_PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-migraphx", "onnxruntime-openvino",
    "onnxruntime-qnn", "onnxruntime-rocm",
)  # fmt: skip
"""Packages that install the module ``onnxruntime``, the plain one first."""


def installed_version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed. Nothing is imported."""
    found = _find(package)
    return found.version if found else None


def onnxruntime_version() -> str:
    """Version of the module ``onnxruntime``, whichever package installed it. Imports it."""
    import onnxruntime

    return str(onnxruntime.__version__)


def build_environment() -> dict[str, str]:
    """Versions of what every ONNX file is built with, by package."""
    others = {name: installed_version(name) or "not installed" for name in ("onnx", "numpy")}
    return {"onnxruntime": onnxruntime_version(), **others}


def onnxruntime_packages() -> dict[str, Distribution]:
    """The installed packages that claim the module ``onnxruntime``, by name; more than one is usually a mistake."""
    found = {name: _find(name) for name in ONNXRUNTIME_PACKAGES}
    return {name: package for name, package in found.items() if package is not None}


def clashing_onnxruntime_packages() -> tuple[str, ...]:
    """Names of those that were installed into one folder, where the last one overwrote files of the others."""
    folders = {name: str(package.locate_file("onnxruntime")) for name, package in onnxruntime_packages().items()}
    places = list(folders.values())
    return tuple(name for name, folder in folders.items() if places.count(folder) > 1)


def _find(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        return None
