"""Flavours of TensorRT: which module is loaded, and what it has, asked of its attributes and never of its version."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from quantlab.errors import BackendUnavailable

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"

_MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
_PRODUCTS = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}

FLAVOURS = tuple(_MODULES)
"""Backends that are flavours of TensorRT, by their names on the command line."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """A loaded TensorRT module.

    Attributes:
        backend: Name of the backend, ``tensorrt`` or ``tensorrt-rtx``.
        module: The imported module; every call goes through it.
    """

    backend: str
    module: Any

    @property
    def version(self) -> str:
        """Version of the module, such as ``10.16.1.11``."""
        return str(self.module.__version__)

    @property
    def product(self) -> str:
        """Name and version for people."""
        return f"{_PRODUCTS[self.backend]} {self.version}"

    @property
    def has_calibrators(self) -> bool:
        """Whether INT8 ranges can be calibrated by TensorRT itself: up to TensorRT 10."""
        return hasattr(self.module, "IInt8Calibrator") and hasattr(self.module.IBuilderConfig, "int8_calibrator")

    @property
    def has_weak_types(self) -> bool:
        """Whether precisions are flags that the builder may follow: up to TensorRT 10. Else the graph's types rule."""
        return hasattr(self.module.BuilderFlag, "FP16")

    @property
    def builds_without_gpu(self) -> bool:
        """Whether engines are built ahead of time for a compute capability that is named: TensorRT-RTX."""
        return hasattr(self.module, "ComputeCapability")

    @property
    def has_validity(self) -> bool:
        """Whether the runtime can say of a serialized engine if it would run here: TensorRT-RTX."""
        return hasattr(self.module.Runtime, "get_engine_validity")


def load_flavour(backend: str) -> Flavour:
    """Import the module of a flavour.

    Raises:
        BackendUnavailable: If it is not installed, or is installed but cannot be loaded; with the loader's own words.
    """
    name = _MODULES[backend]
    hint = f"pip install 'quantlab[{backend}]', or use another --backend"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name == name:
            raise BackendUnavailable(f"{_PRODUCTS[backend]} is not installed", got=str(cause), hint=hint) from cause
        raise _broken(backend, cause) from cause
    except Exception as cause:  # a missing shared library, a wrong driver, a placeholder package: anything
        raise _broken(backend, cause) from cause
    if not hasattr(module, "Builder"):
        got = f"the module {name!r} has no Builder"
        raise BackendUnavailable(
            f"{_PRODUCTS[backend]} is installed but incomplete", got=got, expected="the full library", hint=hint
        )
    return Flavour(backend, module)


def is_installed(backend: str) -> bool:
    """Whether the module of a flavour can be found; it is not imported."""
    return importlib.util.find_spec(_MODULES[backend]) is not None


def _broken(backend: str, cause: Exception) -> BackendUnavailable:
    lines = str(cause).splitlines() or [type(cause).__name__]
    return BackendUnavailable(
        f"{_PRODUCTS[backend]} is installed but cannot be loaded",
        got=lines[0],
        hint="run quantlab doctor; reinstall it with the libraries for this CUDA version",
    )
