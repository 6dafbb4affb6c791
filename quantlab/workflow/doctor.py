"""Doctor: what works on this machine, found by trying it in processes of their own."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quantlab.harness.environment import available_cpus, processor_name
from quantlab.versions import clashing_onnxruntime_packages, installed_version, onnxruntime_packages
from quantlab.workflow.gpu_probes import MARK

_TIMEOUT_S = 60

CORE = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "pandas": "pandas",
    "pillow": "PIL",
    "scipy": "scipy",
}
OPTIONAL = {
    "torch": ("torch", "torch"),
    "torchvision": ("torchvision", "torch"),
    "matplotlib": ("matplotlib", "notebooks"),
}
GPU = {
    "driver": "update the NVIDIA driver, and see that nvidia-smi works",
    "pycuda": "build it again for the CUDA of this machine: pip install --force-reinstall --no-cache-dir pycuda",
    "tensorrt": "reinstall it for the CUDA of this driver: pip install --force-reinstall tensorrt",
    "tensorrt-rtx": "reinstall it for the CUDA of this driver: pip install --force-reinstall tensorrt-rtx-cu13",
    "onnxruntime-cuda": "CUDA, cuDNN and onnxruntime-gpu do not fit each other: reinstall onnxruntime-gpu[cuda,cudnn]",
}
"""What is tried by `quantlab.workflow.gpu_probes`, and what to do where that ends without an answer."""

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

    Cost: one Python process a package or probe, two at a time; some seconds.
    """
    checks: list[tuple[Callable[..., Sequence[Finding]], tuple[object, ...]]] = [
        (_backend, ()),
        (_openvino, ()),
        *((_probe, (what, advice)) for what, advice in GPU.items()),
        *((_package, (f"package {name}", name, module, None)) for name, module in CORE.items()),
        *((_package, (f"package {name}", name, module, extra)) for name, (module, extra) in OPTIONAL.items()),
    ]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in checks]
        backend, *others = [future.result() for future in futures]
    findings = [*backend, _folder(), *_clash(), *(finding for found in others for finding in found)]
    machine = f"{platform.platform()}, {processor_name()}, {available_cpus()} cpus, Python {platform.python_version()}"
    return Diagnosis(machine, tuple(findings), bool(findings[0].works))


@dataclass(frozen=True, slots=True)
class _Answer:
    """How a Python process ended.

    Attributes:
        failure: What went wrong; None if it ended well.
        output: What it wrote to stdout.
        last: The last line that it wrote, to stderr if it failed.
    """

    failure: str | None
    output: str
    last: str


def _run(arguments: Sequence[str]) -> _Answer:
    """Run a Python of its own."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return _Answer(f"no answer after {_TIMEOUT_S} s", output, "")
    except OSError as error:
        return _Answer(str(error), "", "")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else ""
    if done.returncode < 0:
        return _Answer(f"crashed with signal {-done.returncode}{_signal_name(-done.returncode)}", done.stdout, last)
    failure = (last or f"ended with code {done.returncode}") if done.returncode else None
    return _Answer(failure, done.stdout, last)


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""


def _package(title: str, name: str, module: str, extra: str | None) -> tuple[Finding, ...]:
    installed = installed_version(name)
    if installed is None and name == "onnxruntime":  # another package brings the module too
        for other, package in onnxruntime_packages().items():
            installed = f"{package.version} ({other})"
    if installed is None:
        if extra is None:
            return (Finding(title, False, "not installed; reinstall quantlab"),)
        return (Finding(title, None, f"not installed: pip install 'quantlab[{extra}]'"),)
    failure = _run(["-c", f"import {module}"]).failure
    detail = installed if failure is None else f"{installed} is installed but broken: {failure}"
    return (Finding(title, failure is None, detail),)


def _backend() -> tuple[Finding, ...]:
    answer = _run(["-c", _ONE_NODE])
    detail = f"one-node model ran; {answer.last}" if answer.failure is None else answer.failure
    return (Finding("backend onnxruntime (CPU)", answer.failure is None, detail),)


def _openvino() -> tuple[Finding, ...]:
    title = "backend openvino (CPU)"
    installed = installed_version("openvino")
    if installed is None:
        return (Finding(title, None, "not installed: pip install 'quantlab[openvino]'"),)
    answer = _run(["-m", "quantlab.workflow.openvino_probe"])
    if answer.failure is None:
        return (Finding(title, True, answer.last),)
    advice = "reinstall it: pip install --force-reinstall openvino"
    return (Finding(title, False, f"{installed} is installed but broken: {answer.failure}; {advice}"),)


def _probe(what: str, advice: str) -> tuple[Finding, ...]:
    """What a probe of `quantlab.workflow.gpu_probes` found, and what it was at when it ended too early."""
    answer = _run(["-m", "quantlab.workflow.gpu_probes", what])
    findings: list[Finding] = []
    current = what
    pending = True
    for line in answer.output.splitlines():
        if not line.startswith(MARK):
            continue
        try:
            entry = json.loads(line.removeprefix(MARK))
        except ValueError:  # cut off, or other output in the middle of it
            continue
        if "begin" in entry:
            current, pending = str(entry["begin"]), True
        else:
            findings.append(Finding(str(entry["name"]), entry["works"], str(entry["detail"])))
            pending = False
    if answer.failure is not None and pending:
        findings.append(Finding(current, False, f"{answer.failure}; {advice}"))
    elif answer.failure is not None:
        works = findings[-1].works
        at_exit = f"{findings[-1].detail}; afterwards its process failed: {answer.failure}"
        findings[-1] = Finding(findings[-1].name, works, at_exit)
    return tuple(findings)


def _clash() -> tuple[Finding, ...]:
    """A finding if several packages of ONNX Runtime overwrote each other's files."""
    names = clashing_onnxruntime_packages()
    if not names:
        return ()
    wanted = next((name for name in names if name != "onnxruntime"), names[0])
    detail = (
        f"{' and '.join(names)} are both installed and overwrite each other's module; "
        f"pip uninstall -y {' '.join(names)}, then pip install {wanted}"
    )
    return (Finding("packages of onnxruntime", False, detail),)


def _folder() -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        return Finding("writing in this folder", False, f"{error.strerror}; use -o to write elsewhere")
    return Finding("writing in this folder", True, "works")
