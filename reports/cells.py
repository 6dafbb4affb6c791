"""How values look in tables for people."""

from __future__ import annotations

import math
import re
import unicodedata

from quantlab.statistics.interval import Interval

MISSING = "-"
EMULATED = "emulated"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """One line of text with every control character, direction mark and lone surrogate replaced by a space.

    Names come from files and may hold terminal escapes; what is shown must not do anything.
    """
    return _CONTROL.sub(" ", text)


def display_width(text: str) -> int:
    """Columns that ``text`` takes in a terminal: wide East Asian characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def shorten(text: str, width: int) -> str:
    """``text`` cut in the middle to at most ``width`` columns: names differ most in their beginnings and ends."""
    if display_width(text) <= width:
        return text
    budget = max(width, 1) - 1
    head = _beginning(text, budget - budget // 2)
    tail = _beginning(text[::-1], budget - display_width(head))[::-1]
    return f"{head}…{tail}"


def _beginning(text: str, width: int) -> str:
    used = 0
    for number, char in enumerate(text):
        used += display_width(char)
        if used > width:
            return text[:number]
    return text


def fixed(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with fixed decimals; ``-`` if there is none."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:{'+' if sign else ''}z,.{decimals}f}"  # z: no -0.0


def capped(value: float | None, decimals: int, top: float) -> str:
    """As `fixed`, but a value below ``top`` is never rounded up to it: ``>99.99`` instead of a false ``100.00``."""
    if value is not None and value < top and round(value, decimals) >= top:
        return f">{top - 10.0**-decimals:.{decimals}f}"
    return fixed(value, decimals)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; ``-`` if there is none."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}g}"


def interval(value: Interval | None, decimals: int) -> str:
    """``[low, high]``."""
    return MISSING if value is None else f"[{value.low:.{decimals}f}, {value.high:.{decimals}f}]"


def counted(number: int, noun: str) -> str:
    """A number of things, such as ``1 sample`` or ``2,000 samples``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def mebibytes(size_bytes: int) -> str:
    """Bytes as MiB with two decimals, without a unit."""
    return f"{size_bytes / 2**20:,.2f}"


def digest(sha256: str) -> str:
    """The first 12 digits of a hash, enough to recognise it."""
    return sha256[:12]
