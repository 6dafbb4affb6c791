"""The project's folder, for tests that look at files rather than at the installed package."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, Path] = {
    package: ROOT / folder for package, folder in PYPROJECT["tool"]["setuptools"]["package-dir"].items()
}


def packages() -> dict[str, Path]:
    """Every package in the tree by its import name, whether pyproject.toml lists it or not."""
    found = {}
    for top, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            found[".".join((top, *init.parent.relative_to(folder).parts))] = init.parent
    return found


def modules() -> list[str]:
    """Import names of all modules and packages."""
    found = []
    for package, folder in packages().items():
        found.append(package)
        found += [f"{package}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"]
    return sorted(found)
