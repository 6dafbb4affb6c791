"""The doctor: survives whatever is broken, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

import quantlab.workflow.doctor as doctor
from quantlab.workflow.doctor import Diagnosis, Finding, diagnose

BROKEN = {
    "raises": "raise ImportError('a library is missing')",
    "exits": "import sys; print('bye', file=sys.stderr); sys.exit(3)",
    "crashes": "import os; os.abort()",
    "hangs": "import time; time.sleep(60)",
}


@pytest.fixture
def breaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a broken scipy before the installed one, for the processes that the doctor starts."""

    def install(code: str) -> None:
        (tmp_path / "scipy").mkdir()
        (tmp_path / "scipy" / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        monkeypatch.setattr(doctor, "_backend", lambda: Finding("backend", True, "works"))

    monkeypatch.setattr(doctor, "CORE", {"scipy": "scipy", "hypothesis": "hypothesis", "no-such-package": "nothing"})
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-extra": ("nothing", "torch")})
    return install


def named(diagnosis: Diagnosis, name: str) -> Finding:
    return next(finding for finding in diagnosis.findings if finding.name == name)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_package(breaking, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "hangs":
        monkeypatch.setattr(doctor, "_TIMEOUT_S", 2)
    breaking(BROKEN[how])
    diagnosis = diagnose()
    found = named(diagnosis, "package scipy")
    assert found.works is False
    assert "is installed but broken" in found.detail
    said = {"raises": "a library is missing", "exits": "bye", "crashes": "signal 6", "hangs": "no answer after 2 s"}
    assert said[how] in found.detail
    if how != "hangs":
        assert named(diagnosis, "package hypothesis").works is True
    assert diagnosis.usable


def test_what_is_not_installed(breaking) -> None:
    breaking("")
    diagnosis = diagnose()
    assert named(diagnosis, "package no-such-package").works is False
    extra = named(diagnosis, "package no-such-extra")
    assert extra.works is None
    assert extra.detail == "not installed: pip install 'quantlab[torch]'"


def test_a_broken_backend_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", {})
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    monkeypatch.setattr(doctor, "_ONE_NODE", "raise RuntimeError('no kernel')")
    diagnosis = diagnose()
    assert not diagnosis.usable
    assert diagnosis.findings[0].works is False
    assert "no kernel" in diagnosis.findings[0].detail


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", {"numpy": "numpy"})
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    diagnosis = diagnose()
    assert diagnosis.usable
    assert "one-node model ran" in diagnosis.findings[0].detail
    assert named(diagnosis, "package numpy").works is True
    assert "Python 3." in diagnosis.machine


def test_python_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/nonexistent/python")
    works, detail = doctor._python("pass")
    assert works is False
    assert detail


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", full)
    found = doctor._folder()
    assert found.works is False
    assert "No space left on device" in found.detail
