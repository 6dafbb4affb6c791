"""Doctor: what works on this machine, found by trying it in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantlab.harness.environment import available_cpus, processor_name

_TIMEOUT_S = 120

CORE = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "pandas": "pandas",
    "pillow": "PIL",
    "scipy": "scipy",
}
OPTIONAL = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx-cu13": ("tensorrt_rtx", "tensorrt-rtx"),
    "pycuda": ("pycuda.driver", "tensorrt"),
    "onnxruntime-gpu": ("onnxruntime", "cuda"),
    "torch": ("torch", "torch"),
    "torchvision": ("torchvision", "torch"),
    "matplotlib": ("matplotlib", "notebooks"),
}

_ONE_NODE = """
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper
info = helper.make_tensor_value_info
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "one",
    [info("x", TensorProto.FLOAT, [2])], [info("y", TensorProto.FLOAT, [2])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
result = session.run(None, {"x": numpy.array([1, 2], numpy.float32)})[0]
assert result.tolist() == [2.0, 4.0], result
print(onnxruntime.__version__, "providers:", ", ".join(onnxruntime.get_available_providers()))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What.
        works: Whether it can be used; None if it is optional and not installed.
        detail: Version, or what went wrong and what to do.
    """

    name: str
    works: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings.

    Attributes:
        machine: System, processor, Python.
        findings: One a package, backend and facility.
        usable: Whether at least one backend works.
    """

    machine: str
    findings: tuple[Finding, ...]
    usable: bool


def diagnose() -> Diagnosis:
    """Try everything; never raises for something that is broken.

    Cost: one Python process a package, two at a time; some seconds.
    """
    checks = [
        *((f"package {name}", _package, (name, module, None)) for name, module in CORE.items()),
        *((f"package {name}", _package, (name, module, extra)) for name, (module, extra) in OPTIONAL.items()),
    ]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(function, title, *arguments) for title, function, arguments in checks]
        backend = pool.submit(_backend)
        gpu = pool.submit(_gpu)
        findings = [backend.result(), gpu.result(), _folder(), *(future.result() for future in futures)]
    machine = f"{platform.platform()}, {processor_name()}, {available_cpus()} cpus, Python {platform.python_version()}"
    return Diagnosis(machine, tuple(findings), bool(findings[0].works))


def _python(code: str) -> tuple[bool, str]:
    """Run code in a Python of its own; whether it ended well, and its last line."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer after {_TIMEOUT_S} s"
    except OSError as error:
        return False, str(error)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode < 0:
        return False, f"crashed with signal {-done.returncode}"
    return done.returncode == 0, lines[-1] if lines else ""


def _package(title: str, name: str, module: str, extra: str | None) -> Finding:
    try:
        installed = version(name)
    except PackageNotFoundError:
        if extra is None:
            return Finding(title, False, "not installed; reinstall quantlab")
        return Finding(title, None, f"not installed: pip install 'quantlab[{extra}]'")
    works, last = _python(f"import {module}")
    return Finding(title, works, installed if works else f"{installed} is installed but broken: {last}")


def _backend() -> Finding:
    works, last = _python(_ONE_NODE)
    return Finding("backend onnxruntime (CPU)", works, f"one-node model ran; {last}" if works else last)


def _gpu() -> Finding:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Finding("NVIDIA GPU", None, "none found; TensorRT engines need one, everything else works without")
    text = "; ".join(done.stdout.strip().splitlines())
    return Finding("NVIDIA GPU", done.returncode == 0, text or done.stderr.strip())


def _folder() -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        return Finding("writing in this folder", False, f"{error.strerror}; use -o to write elsewhere")
    return Finding("writing in this folder", True, "works")
