"""Functions of the user's own code: ``package.module:function``."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quantlab.documents import near_match
from quantlab.errors import QuantlabError

FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
"""Form of a function's name."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Let a user's code print, to stderr, for stdout is for the result; and not end the process.

    Raises:
        RuntimeError: If it calls ``sys.exit``.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as cause:
        raise RuntimeError(f"it ended the process: SystemExit({cause.code!r})") from cause


def import_function(spec: str, purpose: str, error: type[QuantlabError], expected: str) -> Callable[..., Any]:
    """Import the module of ``package.module:function`` and give its function.

    Args:
        spec: Of the form `FUNCTION`.
        purpose: What it is for, in messages: ``data``, ``metric``.
        error: What is raised.
        expected: What the user could have given instead.

    Raises:
        QuantlabError: Of type ``error``, if the module or the function does not exist, or importing it raises.
    """
    module_name, attribute = spec.split(":")
    try:
        with contained():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{module_name}.".startswith(f"{cause.name}."):
            raise error(f"importing {module_name!r} for the {purpose} failed", got=str(cause)) from cause
        local = Path(module_name.split(".")[0])
        here = local.is_dir() or local.with_suffix(".py").is_file()
        raise error(
            f"there is no Python module {module_name!r} for the {purpose} {spec!r}",
            got=str(cause),
            expected=expected,
            hint="it lies in this folder: set PYTHONPATH=." if here else None,
        ) from cause
    except Exception as cause:  # the user's module may raise anything
        raise error(
            f"importing {module_name!r} for the {purpose} failed", got=f"{type(cause).__name__}: {cause}"
        ) from cause
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [name for name, found in vars(module).items() if callable(found) and not name.startswith("_")]
        near = near_match(attribute, known)
        raise error(
            f"module {module_name!r} has no function {attribute!r}",
            got=f"{attribute} is of type {type(function).__name__}" if attribute in vars(module) else None,
            hint=f"did you mean {near!r}?" if near else None,
        )
    found: Callable[..., Any] = function
    return found
