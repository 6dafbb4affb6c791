"""What a report format is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Style:
    """How a text for a terminal is laid out; other formats ignore it.

    Attributes:
        width: Columns to fit into.
        colour: Whether to use ANSI colours. The caller knows the terminal and ``NO_COLOR``; the renderer does not.
    """

    width: int = 100
    colour: bool = False


class Renderer(Protocol):
    """Turns one kind of result into text; computes nothing, reads nothing, writes nothing."""

    def __call__(self, result: Any, style: Style, /) -> str:
        """The text of ``result``, ending with a newline."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One report format.

    Attributes:
        name: Name on the command line.
        suffix: Ending of file names, with the dot.
        renderers: Renderer by class of the result.
    """

    name: str
    suffix: str
    renderers: Mapping[type, Renderer]
