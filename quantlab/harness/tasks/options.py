"""Settings of tasks from what ``--task-option KEY=VALUE`` gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from quantlab.documents import check_keys
from quantlab.errors import ConfigError

S = TypeVar("S")


def settings_from(kind: type[S], options: Mapping[str, str], task: str) -> S:
    """Make a dataclass of settings from texts, by the types of its fields: ``str``, ``int`` or ``float``, or None.

    Raises:
        ConfigError: If a setting is not known or no number where one is needed.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = {key.replace("-", "_"): value for key, value in options.items()}
    check_keys(given, names, f"the settings of the task {task}")
    values: dict[str, Any] = {}
    for name, text in given.items():
        wanted = next(one for one in (*get_args(hints[name]), hints[name]) if one is not type(None))
        values[name] = text if wanted is str else _number(wanted, text, f"the setting {name} of the task {task}")
    return kind(**values)


def _number(kind: type[int] | type[float], text: str, where: str) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where} is wrong", got=repr(text), expected="a whole number" if kind is int else "a number")
    return value


def required_truths(path: Path | None, task: str, forms: str) -> Path:
    """The file that ``--labels`` names.

    Raises:
        ConfigError: If none was named.
    """
    if path is None:
        raise ConfigError(f"the task {task} needs truths", expected=f"--labels: {forms}")
    return path


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a setting outside ``low`` to ``high``.

    Raises:
        ConfigError: Naming it.
    """
    if not low <= value <= high:
        raise ConfigError(f"the setting {name} is out of range", got=f"{value:g}", expected=f"{low:g} to {high:g}")
