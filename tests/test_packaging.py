"""What is built and installed: one import package, with its data, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from project_tree import PYPROJECT, ROOT, packages

pytest.importorskip("build", reason="needs the dev extra")

_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "quantlab", "calibrators", "datasets", "reports")
_MAX_SAMPLES_BYTES = 6_000_000


@dataclass(frozen=True, slots=True)
class Built:
    """A copy of the sources, and what was built from it: the wheel by way of the sdist, as `python -m build` does."""

    source: Path
    sdist: Path
    wheel: Path

    def names(self) -> list[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]


def _run(*command: str | Path, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = tmp_path_factory.mktemp("source") / "quantlab"
    source.mkdir()
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", out, source)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(source, sdist, wheel)


def test_pyproject_lists_every_package() -> None:
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(packages())


def test_nothing_but_quantlab_at_the_top(built: Built) -> None:
    tops = {name.split("/")[0] for name in built.names()}
    assert tops == {"quantlab", f"quantlab-{PYPROJECT['project']['version']}.dist-info"}


def test_wheel_has_every_module_and_data_file(built: Built) -> None:
    expected = set()
    for package, folder in packages().items():
        files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc"]
        expected |= {f"{package.replace('.', '/')}/{path.name}" for path in files}
    assert {name for name in built.names() if name.startswith("quantlab/")} == expected
    assert "quantlab/py.typed" in expected


def test_sample_data_are_there_and_small(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if "/datasets/samples/" in info.filename}
    suffixes = [Path(name).suffix for name in sizes]
    assert suffixes.count(".onnx") == 3
    assert suffixes.count(".npz") == 2
    assert "quantlab/datasets/samples/NOTICE" in sizes
    assert sum(sizes.values()) <= _MAX_SAMPLES_BYTES
    assert built.wheel.stat().st_size <= _MAX_SAMPLES_BYTES


@pytest.mark.parametrize("part", ["tests", "notebooks", "benchmarks", "docs", "__pycache__", "egg-info"])
def test_no_strays(built: Built, part: str) -> None:
    assert [name for name in built.names() if part in name] == []


def test_licences_travel(built: Built) -> None:
    licences = {name.partition(".dist-info/licenses/")[2] for name in built.names() if "/licenses/" in name}
    assert licences == {"LICENSE", "datasets/samples/NOTICE"}
    with tarfile.open(built.sdist) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.getnames())


def test_regular_install(built: Built, tmp_path: Path) -> None:
    target = tmp_path / "target"
    _run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, built.wheel)
    code = (
        "import quantlab.calibrators, quantlab.datasets, quantlab.reports, quantlab.cli\n"
        "for module in (quantlab, quantlab.calibrators, quantlab.datasets, quantlab.reports): print(module.__file__)\n"
        "print(quantlab.datasets.sample_model())"
    )
    for line in _run(sys.executable, "-P", "-c", code, PYTHONPATH=str(target)).splitlines():
        assert Path(line).is_relative_to(target)


def test_editable_install(built: Built, tmp_path: Path) -> None:
    """In an environment of its own, where nothing else is called quantlab; NumPy is lent to it afterwards."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    site_packages = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    pip = (sys.executable, "-P", "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation")
    _run(*pip, "--target", site_packages, "--editable", built.source)
    code = (
        "import sys, quantlab\n"
        f"sys.path.append({sysconfig.get_path('purelib')!r})\n"
        "import quantlab.calibrators, quantlab.datasets, quantlab.reports\n"
        "for module in (quantlab, quantlab.calibrators, quantlab.datasets, quantlab.reports): print(module.__file__)"
    )
    printed = [Path(line) for line in _run(python, "-P", "-c", code).splitlines()]
    assert printed == [
        built.source / folder / "__init__.py" for folder in ("quantlab", "calibrators", "datasets", "reports")
    ]
