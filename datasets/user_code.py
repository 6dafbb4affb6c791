"""Functions of the user's own code: ``package.module:function``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantlab.documents import near_match
from quantlab.errors import QuantlabError

FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
"""Form of a function's name."""


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
        near = near_match(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise error(
            f"module {module_name!r} has no function {attribute!r}",
            hint=f"did you mean {near!r}?" if near else None,
        )
    found: Callable[..., Any] = function
    return found
