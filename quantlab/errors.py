"""The errors that quantlab raises: one root, one branch per stage, each with its exit code.

A message says four things: what was wrong, what was got, what was expected, and what to do next.
Third-party exceptions are mapped to these at the edge where they occur, with the cause chained.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line; stable."""

    OK = 0
    GATE_FAILED = 1
    USAGE = 2
    INCONCLUSIVE = 3
    UNAVAILABLE = 4
    BAD_INPUT = 5
    INTERNAL = 70
    INTERRUPTED = 130


class QuantlabError(Exception):
    """Root of all errors that a user can cause or mend.

    Args:
        what: What was wrong, with the file, tensor, node or sample by name.
        got: The value found.
        expected: The value or form that would have been right.
        hint: The next step.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, what: str, *, got: object = None, expected: object = None, hint: str | None = None) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.got is not None:
            lines.append(f"  got:      {self.got}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.hint is not None:
            lines.append(f"  try:      {self.hint}")
        return "\n".join(lines)


class ConfigError(QuantlabError):
    """A flag, recipe, policy or preprocessing description is wrong."""

    exit_code = ExitCode.USAGE


class OutputError(QuantlabError):
    """An output could not be written: no permission, no space, or something is in the way."""

    exit_code = ExitCode.USAGE


class DataError(QuantlabError):
    """A data set cannot be read, or does not fit the model."""


class ModelError(QuantlabError):
    """A model cannot be read, is invalid, or uses something that is not supported."""


class CalibrationError(QuantlabError):
    """Ranges could not be computed from what the model produced."""


class BackendUnavailable(QuantlabError):  # noqa: N818 - a noun of docs/design.md
    """A backend or an optional package is not installed or does not work here."""

    exit_code = ExitCode.UNAVAILABLE


class EngineBuildError(QuantlabError):
    """A variant could not be built."""


class EngineMismatch(QuantlabError):  # noqa: N818 - a noun of docs/design.md
    """An artifact does not belong to the other inputs (hashes differ)."""


class MeasurementError(QuantlabError):
    """A latency or drift measurement could not be taken."""


class GateError(QuantlabError):
    """The gate cannot judge: a required metric is missing or unusable."""
