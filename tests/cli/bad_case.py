"""The form of the table of bad inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cli_bench import Bench

from quantlab.errors import ExitCode

Prepare = Callable[[Bench], object]
"""Fills the current folder of a test."""


def nothing(_bench: Bench) -> None:
    """Leave the folder empty."""


def both(first: Prepare, second: Prepare) -> Prepare:
    """One after the other."""

    def prepare(bench: Bench) -> None:
        first(bench)
        second(bench)

    return prepare


@dataclass(frozen=True, slots=True)
class Case:
    """One bad input.

    Attributes:
        name: Of the test.
        prepare: Fills the current folder.
        arguments: Of the command line.
        code: Expected exit code.
        says: Regular expressions that stderr must match: what, got, expected, next step.
        new: Files and folders that may appear (glob patterns); everything else must be as before.
    """

    name: str
    prepare: Prepare
    arguments: tuple[str, ...]
    code: ExitCode
    says: tuple[str, ...]
    new: tuple[str, ...] = ()


def args(text: str) -> tuple[str, ...]:
    """Arguments separated by spaces."""
    return tuple(text.split())
