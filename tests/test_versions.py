"""Which package brought ONNX Runtime's module."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest

import quantlab.versions as versions


def install(folder: Path, name: str, version: str) -> None:
    """Metadata of a package, as pip leaves them."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders on the path, and nothing else there."""
    found = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(sys, "path", [str(folder) for folder in found])
    return found


def test_the_version_is_that_of_the_module() -> None:
    assert versions.onnxruntime_version() == onnxruntime.__version__
    assert versions.build_environment()["onnxruntime"] == onnxruntime.__version__
    assert list(versions.build_environment()) == ["onnxruntime", "onnx", "numpy"]


def test_what_is_not_installed(folders: tuple[Path, Path]) -> None:
    assert versions.installed_version("onnxruntime") is None
    assert versions.onnxruntime_packages() == {}
    assert versions.clashing_onnxruntime_packages() == ()


def test_the_gpu_package_alone(folders: tuple[Path, Path]) -> None:
    install(folders[0], "onnxruntime-gpu", "1.31.1")
    assert {name: found.version for name, found in versions.onnxruntime_packages().items()} == {
        "onnxruntime-gpu": "1.31.1"
    }
    assert versions.clashing_onnxruntime_packages() == ()
    assert versions.installed_version("onnxruntime-gpu") == "1.31.1"


def test_two_in_one_folder_clash(folders: tuple[Path, Path]) -> None:
    install(folders[0], "onnxruntime", "1.30.0")
    install(folders[0], "onnxruntime-gpu", "1.31.1")
    assert versions.clashing_onnxruntime_packages() == ("onnxruntime", "onnxruntime-gpu")


def test_two_in_two_folders_do_not(folders: tuple[Path, Path]) -> None:
    """The first on the path is imported, whole."""
    install(folders[0], "onnxruntime-gpu", "1.31.1")
    install(folders[1], "onnxruntime", "1.30.0")
    assert list(versions.onnxruntime_packages()) == ["onnxruntime", "onnxruntime-gpu"]
    assert versions.clashing_onnxruntime_packages() == ()
