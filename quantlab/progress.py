"""How long-running library functions tell what they do, without printing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from quantlab.degradation import Degradation

T = TypeVar("T")


class Narrator(Protocol):
    """Receives narration; the command line prints it to stderr."""

    def say(self, text: str) -> None:
        """One or more lines of narration."""
        ...

    def warn(self, degradation: Degradation) -> None:
        """A degradation, the moment it is known."""
        ...

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """Pass ``items`` through, showing progress towards ``total``."""
        ...


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """See `Narrator.say`."""

    def warn(self, degradation: Degradation) -> None:
        """See `Narrator.warn`."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """See `Narrator.track`."""
        return items
