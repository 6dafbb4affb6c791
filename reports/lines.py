"""Lines of text for a terminal: wrapping and colour."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from types import MappingProxyType

from quantlab.reports.cells import plain
from quantlab.reports.format import Style

MIN_WIDTH = 40
"""Narrower terminals are treated as if they had so many columns."""

_ANSI: Mapping[str, str] = MappingProxyType(
    {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35"}
)
_UNIT = re.compile(r"(?<=\d) (%|pp|dB)(?!\w)")


def wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """``text`` in lines of at most ``width`` columns; words longer than that are not cut."""
    together = _UNIT.sub("\u00a0\\1", plain(text))  # a number and its unit stay on one line
    lines = textwrap.wrap(
        together, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\u00a0", " ") for line in lines]


def paint(text: str, style: Style, *names: str) -> str:
    """``text`` in these colours, where the style has any."""
    if not style.colour:
        return text
    return f"\x1b[{';'.join(_ANSI[name] for name in names)}m{text}\x1b[0m"
