"""Gate: a comparison and a policy to a verdict, and its files."""

from __future__ import annotations

from pathlib import Path

from quantlab.errors import ConfigError
from quantlab.files import is_file, is_folder, write_text
from quantlab.gate import PRESETS, Policy, Verdict, load_policy
from quantlab.reports import render


def find_policy(name: str, folder: Path) -> Policy:
    """A built-in policy by name, or a policy file relative to ``folder``.

    Raises:
        ConfigError: If it is missing or wrong.
    """
    if name in PRESETS or name.startswith("quantlab:"):
        return load_policy(name)
    if f"quantlab:{name}" in PRESETS and not is_file(folder / name):
        raise ConfigError(f"policy {folder / name} does not exist", hint=f"did you mean 'quantlab:{name}'?")
    return load_policy(folder / name)


def write_verdict(folder: Path, verdict: Verdict) -> tuple[Path, ...]:
    """Write ``summary.md``, ``junit.xml`` and, last, ``gate.json``.

    Raises:
        OutputError: If a file cannot be written.
    """
    paths = (folder / "gate.json", folder / "junit.xml", folder / "summary.md")
    write_text(paths[2], render(verdict, "summary"))
    write_text(paths[1], render(verdict, "junit"))
    write_text(paths[0], verdict.to_json())
    return paths


def comparison_path(path: Path) -> Path:
    """The comparison file that a user means: the file, or ``comparison.json`` in a folder.

    Raises:
        ConfigError: If a folder holds none.
    """
    if not is_folder(path):
        return path
    inner = path / "comparison.json"
    if not inner.is_file():
        raise ConfigError(f"folder {path} holds no comparison.json", hint="run quantlab compare first")
    return inner
