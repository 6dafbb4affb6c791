"""OpenVINO's import: what it leaves undone, and what happens where it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from engine_data import prepared_cnn, variant

import quantlab.engines.openvino_runtime as openvino_runtime
from quantlab.errors import BackendUnavailable
from quantlab.precision import Precision
from quantlab.versions import installed_version
from quantlab.workflow.build import builder_for, check_backend

needs_openvino = pytest.mark.skipif(installed_version("openvino") is None, reason="needs the package openvino")

IMPORT = """
import socket, sys
def refuse(*_): raise SystemExit("the network was used")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from quantlab.engines.openvino_runtime import load_openvino
print(load_openvino().version)
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")], "telemetry was loaded"
"""


class TestLoading:
    @pytest.fixture(autouse=True)
    def _afresh(self) -> Iterator[None]:
        openvino_runtime._load.cache_clear()
        yield
        openvino_runtime._load.cache_clear()

    @needs_openvino
    def test_no_telemetry(self, tmp_path: Path) -> None:
        """Its import would write an identity to the home folder and send an event."""
        environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
        environment["HOME"] = str(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == installed_version("openvino")
        assert list(tmp_path.iterdir()) == []

    @needs_openvino
    def test_telemetry_that_was_loaded_before_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = ModuleType("openvino_telemetry")
        monkeypatch.setitem(sys.modules, "openvino_telemetry", loaded)
        openvino_runtime.load_openvino()
        assert sys.modules["openvino_telemetry"] is loaded

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(BackendUnavailable, match="OpenVINO is not installed") as caught:
            check_backend("openvino")
        assert "pip install 'quantlab[openvino]'" in str(caught.value.hint)
        assert "openvino_telemetry" not in sys.modules or sys.modules["openvino_telemetry"] is not None

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            (SimpleNamespace(), "has no attribute 'Core'"),
            (SimpleNamespace(Core=lambda: 1 / 0), "division by zero"),
        ],
    )
    def test_installed_but_broken(self, monkeypatch: pytest.MonkeyPatch, broken: object, said: str) -> None:
        monkeypatch.setitem(sys.modules, "openvino", broken)  # type: ignore[arg-type]
        with pytest.raises(BackendUnavailable, match="installed but cannot be loaded") as caught:
            builder_for("openvino").build(variant(prepared_cnn(), Precision.BF16), Path())
        assert said in str(caught.value.got)
        assert "quantlab doctor" in str(caught.value.hint)

    def test_a_library_that_it_needs_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: str) -> None:
            raise ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core")

        monkeypatch.setattr(openvino_runtime.importlib, "import_module", fail)
        with pytest.raises(BackendUnavailable, match="installed but cannot be loaded"):
            openvino_runtime.load_openvino()

    @pytest.mark.parametrize(
        ("text", "found"),
        [("flags : fpu avx512_bf16", True), ("Features : fp asimd bf16", True), ("flags : fpu avx512f", False)],
    )
    def test_instructions_of_the_processor(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool
    ) -> None:
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor : 0\n{text}\n")
        monkeypatch.setattr(openvino_runtime, "_CPU_INFO", info)
        assert openvino_runtime.has_instructions("BF16") is found
        monkeypatch.setattr(openvino_runtime, "_CPU_INFO", tmp_path / "none")
        assert not openvino_runtime.has_instructions("BF16")
