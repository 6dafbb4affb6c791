"""The doctor: survives whatever is broken, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_driver import compile_driver, compiler

import quantlab.workflow.doctor as doctor
from quantlab.versions import installed_version
from quantlab.workflow.doctor import Diagnosis, Finding, diagnose
from quantlab.workflow.gpu_probes import MARK, GpuFacts

BROKEN = {
    "raises": "raise ImportError('a library is missing')",
    "exits": "import sys; print('bye', file=sys.stderr); sys.exit(3)",
    "crashes": "import os; os.abort()",
    "hangs": "import time; time.sleep(60)",
}
SAID = {
    "raises": "a library is missing",
    "exits": "bye",
    "crashes": "signal 6 (SIGABRT)",
    "hangs": "no answer after 2 s",
}

Install = Callable[[str, str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put modules before the installed ones, for the processes that the doctor starts."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    def install(name: str, code: str) -> Path:
        file = folder / f"{name.replace('.', '/')}.py"
        if "." not in name:
            file = folder / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
        return folder

    return install


@pytest.fixture
def driver(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver with one GPU, for the processes that the doctor starts."""
    if compiler() is None:
        pytest.skip("needs a C compiler")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_driver(tmp_path_factory.mktemp("driver"))))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few packages, no GPU, and a backend that works."""
    monkeypatch.setattr(doctor, "_backend", lambda: (Finding("backend", True, "works"),))
    monkeypatch.setattr(doctor, "_openvino", lambda: ())
    monkeypatch.setattr(doctor, "CORE", {"scipy": "scipy", "hypothesis": "hypothesis", "no-such-package": "nothing"})
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": ("nothing", "torch")})
    monkeypatch.setattr(doctor, "GPU", {})


def named(diagnosis: Diagnosis, name: str) -> Finding:
    return next(finding for finding in diagnosis.findings if finding.name == name)


def probe(what: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor._probe(what, "do this")}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_package(few: None, fake: Install, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "hangs":
        monkeypatch.setattr(doctor, "_TIMEOUT_S", 2)
    fake("scipy", BROKEN[how])
    diagnosis = diagnose()
    found = named(diagnosis, "package scipy")
    assert found.works is False
    assert "is installed but broken" in found.detail
    assert SAID[how] in found.detail
    if how != "hangs":
        assert named(diagnosis, "package hypothesis").works is True
    assert diagnosis.usable


def test_what_is_not_installed(few: None) -> None:
    diagnosis = diagnose()
    assert named(diagnosis, "package no-such-package").works is False
    extra = named(diagnosis, "package no-such-extra")
    assert extra.works is None
    assert extra.detail == "not installed: pip install 'quantlab[torch]'"


def test_a_broken_backend_is_not_usable(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "CORE", {})
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    monkeypatch.setattr(doctor, "GPU", {})
    monkeypatch.setattr(doctor, "_ONE_NODE", "raise RuntimeError('no kernel')")
    diagnosis = diagnose()
    assert not diagnosis.usable
    assert diagnosis.findings[0].works is False
    assert "no kernel" in diagnosis.findings[0].detail


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is really tried."""
    monkeypatch.setattr(doctor, "CORE", {"numpy": "numpy"})
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    diagnosis = diagnose()
    assert diagnosis.usable
    assert "one-node model ran" in diagnosis.findings[0].detail
    assert named(diagnosis, "package numpy").works is True
    assert "Python 3." in diagnosis.machine
    tried = [named(diagnosis, name) for name in ("pycuda", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda")]
    if named(diagnosis, "NVIDIA driver").works is None:
        assert [finding for finding in tried if finding.works is False] == [], "without a GPU, nothing is broken"


@pytest.mark.skipif(installed_version("openvino") is None, reason="needs the package openvino")
def test_openvino_is_tried() -> None:
    (finding,) = doctor._openvino()
    assert (finding.name, finding.works) == ("backend openvino (CPU)", True)
    assert f"one-node model ran; {installed_version('openvino')} on " in finding.detail
    assert "FP32" in finding.detail


@pytest.mark.skipif(installed_version("openvino") is None, reason="needs the package openvino")
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_openvino(fake: Install, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "hangs":
        monkeypatch.setattr(doctor, "_TIMEOUT_S", 6)
    fake("openvino", BROKEN[how])
    (finding,) = doctor._openvino()
    assert finding.works is False
    assert "is installed but broken" in finding.detail
    assert SAID[how].replace("2 s", "6 s") in finding.detail
    assert "pip install --force-reinstall openvino" in finding.detail


def test_openvino_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda _: None)
    (finding,) = doctor._openvino()
    assert (finding.works, finding.detail) == (None, "not installed: pip install 'quantlab[openvino]'")


def test_python_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/nonexistent/python")
    assert doctor._run(["-c", "pass"]).failure
    (finding,) = doctor._probe("driver", "do this")
    assert (finding.name, finding.works) == ("driver", False)


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", full)
    found = doctor._folder()
    assert found.works is False
    assert "No space left on device" in found.detail


def test_another_package_may_bring_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        version = "1.31.1"

    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    monkeypatch.setattr(doctor, "onnxruntime_packages", lambda: {"onnxruntime-gpu": Package()})
    (finding,) = doctor._package("package onnxruntime", "onnxruntime", "onnxruntime", None)
    assert (finding.works, finding.detail) == (True, "1.31.1 (onnxruntime-gpu)")


def test_packages_that_overwrite_each_other(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "clashing_onnxruntime_packages", lambda: ("onnxruntime", "onnxruntime-gpu"))
    diagnosis = diagnose()
    found = named(diagnosis, "packages of onnxruntime")
    assert found.works is False
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu" in found.detail
    assert diagnosis.usable, "what is to be mended is no verdict on the backend"


# The driver and GPUs


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (found,) = doctor._probe("driver", "do this")
    assert found.works is None
    assert "no NVIDIA driver" in found.detail


def test_a_driver_and_its_gpu(driver: None) -> None:
    found = probe("driver")
    assert found["NVIDIA driver"].works is True
    assert "CUDA up to 13.1" in found["NVIDIA driver"].detail
    assert found["GPU 0"].detail == (
        "Fake GPU, compute capability 8.6, 24,576 MiB; can: fp32, tf32, fp16, bf16, int8, int8-fp16"
    )


@pytest.mark.parametrize(
    ("code", "advice"), [(35, "too old"), (100, "sees no GPU"), (803, "restart the machine"), (77, "see nvidia-smi")]
)
def test_a_driver_that_does_not_start(driver: None, code: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_ERROR", str(code))
    found = probe("driver")
    assert found["NVIDIA driver"].works is False
    assert f"CUDA error {code}" in found["NVIDIA driver"].detail
    assert advice in found["NVIDIA driver"].detail
    assert probe("pycuda")["pycuda"].works is None, "it is not to blame"


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [
        ((7, 5), "fp32, fp16, int8, int8-fp16"),
        ((8, 0), "fp32, tf32, fp16, bf16, int8, int8-fp16"),
        ((8, 9), "fp32, tf32, fp16, bf16, int8, int8-fp16, fp8"),
        ((12, 0), "fp32, tf32, fp16, bf16, int8, int8-fp16, fp8"),
        ((5, 2), "fp32"),
    ],
)
def test_precisions_of_a_gpu(capability: tuple[int, int], precisions: str) -> None:
    assert str(GpuFacts("G", capability, 1 << 30)).endswith(f"1,024 MiB; can: {precisions}")


# pycuda


@pytest.mark.parametrize("how", ["raises", "exits", "crashes"])
def test_a_broken_pycuda(driver: None, fake: Install, how: str) -> None:
    fake("pycuda", "")
    fake("pycuda.driver", BROKEN[how])
    found = probe("pycuda")["pycuda"]
    assert found.works is False
    assert SAID[how] in found.detail
    if how != "raises":
        assert found.detail.endswith("; do this")


def test_pycuda_whose_driver_library_is_missing(driver: None, fake: Install) -> None:
    fake("pycuda", "")
    fake("pycuda.driver", "raise ImportError('libcuda.so.1: cannot open shared object file')")
    found = probe("pycuda")["pycuda"]
    assert found.works is False
    assert "the NVIDIA driver is not installed: libcuda.so.1" in found.detail


def test_pycuda_without_a_gpu(fake: Install) -> None:
    fake("pycuda", "")
    fake("pycuda.driver", BROKEN["crashes"])
    found = probe("pycuda")["pycuda"]
    assert (found.works, found.detail) == (None, "pycuda is installed; not tried: no GPU can be used here")


# TensorRT

_TENSORRT = """
import os, signal, time
from enum import IntEnum
__version__ = "10.99.0"
class IInt8Calibrator: pass
class BuilderFlag(IntEnum):
    FP16 = 1
    TF32 = 2
class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1
class IBuilderConfig:
    int8_calibrator = None
class Runtime: pass
class ILogger:
    Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
class Builder:
    def __init__(self, log):
        CODE
"""


@pytest.mark.parametrize(
    ("backend", "how"),
    [*(("tensorrt", how) for how in (*BROKEN, "segfaults")), *(("tensorrt-rtx", how) for how in ("raises", "crashes"))],
)
def test_a_tensorrt_that_does_not_load(backend: str, how: str, fake: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "hangs":
        monkeypatch.setattr(doctor, "_TIMEOUT_S", 2)
    code = {**BROKEN, "segfaults": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"}[how]
    fake(backend.replace("-", "_"), code)
    findings = doctor._probe(backend, "do this")
    (found,) = findings
    assert (found.name, found.works) == (backend, False)
    assert {**SAID, "segfaults": "signal 11 (SIGSEGV)"}[how] in found.detail


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        ("", "has no Builder"),
        ("import no_such_dependency", "no_such_dependency"),
        ("print('{\"begin\": 1}'); raise RuntimeError('CUDA initialization failure with error: 35')", "error: 35"),
    ],
)
def test_a_tensorrt_that_is_incomplete(code: str, said: str, fake: Install) -> None:
    fake("tensorrt", code)
    (found,) = doctor._probe("tensorrt", "do this")
    assert found.works is False
    assert said in found.detail


def test_tensorrt_builds_on_a_gpu_only(fake: Install) -> None:
    fake("tensorrt", _TENSORRT.replace("CODE", "os.abort()"))
    found = probe("tensorrt")
    assert found["tensorrt"].detail == "10.99.0; calibrators: yes, weak typing: yes, builds without a GPU: no"
    assert found["tensorrt builder"].works is None
    assert "tensorrt engine" not in found


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed with signal 11 (SIGSEGV); do this"),
        ("raise TypeError('pybind11::init(): factory function returned nullptr')", "factory function returned nullptr"),
    ],
)
def test_a_builder_that_breaks(code: str, said: str, driver: None, fake: Install) -> None:
    """What was found before it broke is kept."""
    fake("tensorrt", _TENSORRT.replace("CODE", code))
    found = probe("tensorrt")
    assert found["tensorrt"].works is True
    assert found["tensorrt builder"].works is False
    assert said in found["tensorrt builder"].detail
    assert "tensorrt engine" not in found


@pytest.mark.tensorrt_rtx
def test_the_real_builder() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")
    found = probe("tensorrt-rtx")
    assert found["tensorrt-rtx"].works is True
    assert "calibrators: no, weak typing: no, builds without a GPU: yes" in found["tensorrt-rtx"].detail
    assert found["tensorrt-rtx builder"].works is True
    assert "built an engine of one layer" in found["tensorrt-rtx builder"].detail


# What a process says


def _saying(monkeypatch: pytest.MonkeyPatch, output: str, failure: str | None) -> None:
    monkeypatch.setattr(doctor, "_run", lambda arguments: doctor._Answer(failure, output, ""))


def test_other_output_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = json.dumps({"name": "a", "works": True, "detail": "fine"})
    _saying(monkeypatch, f"noise\n{MARK}cut o\n{MARK}{entry}\nmore noise", None)
    assert doctor._probe("x", "do this") == (Finding("a", True, "fine"),)


def test_output_before_a_hang_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 2)
    answer = doctor._run(["-c", "import time; print('first', flush=True); time.sleep(60)"])
    assert (answer.failure, answer.output) == ("no answer after 2 s", "first\n")


def test_a_crash_after_the_last_finding_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that crashes when the process ends has done its work: the finding stands."""
    begin, entry = json.dumps({"begin": "a"}), json.dumps({"name": "a", "works": True, "detail": "fine"})
    _saying(monkeypatch, f"{MARK}{begin}\n{MARK}{entry}\n", "crashed with signal 11 (SIGSEGV)")
    (found,) = doctor._probe("x", "do this")
    assert found == Finding("a", True, "fine; afterwards its process failed: crashed with signal 11 (SIGSEGV)")


def test_a_crash_before_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    _saying(monkeypatch, "", "crashed with signal 4 (SIGILL)")
    assert doctor._probe("x", "do this") == (Finding("x", False, "crashed with signal 4 (SIGILL); do this"),)
