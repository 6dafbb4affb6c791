"""Report formats: results in, text out. Nothing is computed here, and nothing is read or written."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping

from quantlab.documents import near_match
from quantlab.errors import ConfigError
from quantlab.reports.format import Format, Renderer, Style

__all__ = ["FORMATS", "Format", "Renderer", "Style", "render"]

_MODULES = {
    "terminal": "quantlab.reports.terminal",
    "markdown": "quantlab.reports.markdown",
    "csv": "quantlab.reports.csv_table",
    "json": "quantlab.reports.json_document",
    "junit": "quantlab.reports.junit",
    "summary": "quantlab.reports.summary",
}


class _Formats(Mapping[str, Format]):
    """The formats by name; a module is imported when its format is first asked for, its name costs nothing."""

    def __getitem__(self, name: str) -> Format:
        module = importlib.import_module(_MODULES[name])
        found: Format = module.FORMAT
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


FORMATS: Mapping[str, Format] = _Formats()
"""Every format by its name on the command line."""


def render(result: object, name: str, style: Style | None = None) -> str:
    """Render a result.

    Args:
        result: A `Comparison` or a `Verdict`.
        name: Name of the format.
        style: Width and colour, for the terminal.

    Raises:
        ConfigError: If there is no such format, or it cannot show this kind of result.
    """
    if name not in FORMATS:
        near = near_match(name, list(FORMATS))
        raise ConfigError(
            f"there is no report format {name!r}",
            expected="one of " + ", ".join(FORMATS),
            hint=f"did you mean {near!r}?" if near else None,
        )
    renderer = FORMATS[name].renderers.get(type(result))
    if renderer is None:
        able = [other for other in FORMATS if type(result) in FORMATS[other].renderers]
        raise ConfigError(
            f"the format {name!r} cannot show a {_noun(type(result))}",
            expected="one of " + ", ".join(able) if able else None,
        )
    return renderer(result, style or Style())


def _noun(kind: type) -> str:
    """The words of a class name: ``calibration table``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
