"""What a verb says: results to stdout, narration and progress to stderr."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import click

from quantlab.degradation import Degradation
from quantlab.errors import OutputError

if TYPE_CHECKING:
    from quantlab.reports import Style

T = TypeVar("T")


def echo(text: str, *, err: bool = False) -> None:
    """Write a line to stdout or stderr. A reader that went away (``| head``) ends the output, not the work.

    Raises:
        OutputError: If stdout cannot be written, as on a full disk.
    """
    try:
        click.echo(text, err=err, nl=not text.endswith("\n"))
    except OSError as error:
        # Nothing more can be written there; what is buffered would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())
        if not err and not isinstance(error, BrokenPipeError):
            hint = "check the free space of where it is redirected to"
            raise OutputError("cannot write to the standard output", got=error.strerror, hint=hint) from error


class _ToStderr(logging.Handler):
    """Lines of other libraries' logs, as this program's own.

    Errors end in an exception that holds them; they are shown here only if everything is.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR or self.level < logging.WARNING:
            echo(self.format(record), err=True)


_COUNTED = {"comparing": "batches"}


class Loudness(IntEnum):
    """How much narration is wanted."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


def _show_logs(level: int) -> None:
    """Send what runtimes log, such as TensorRT, to stderr from ``level`` on; once a process, the last call decides."""
    logger = logging.getLogger("quantlab")
    logger.handlers = [_ToStderr(level)]
    logger.setLevel(level)
    logger.propagate = False


class Console:
    """The `quantlab.progress.Narrator` of the command line."""

    def __init__(self, loudness: Loudness, as_json: bool, *, debug: bool = False) -> None:
        self.loudness = loudness
        self.as_json = as_json
        level = {Loudness.QUIET: logging.ERROR, Loudness.NORMAL: logging.WARNING}.get(loudness, logging.INFO)
        _show_logs(logging.DEBUG if debug else level)
        self._warned: set[Degradation] = set()

    @property
    def style(self) -> Style:
        """Width of the terminal (100 elsewhere), and colour on a terminal unless NO_COLOR is set."""
        from quantlab.reports import Style

        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size((100, 24)).columns if terminal else 100
        return Style(width, terminal and not os.environ.get("NO_COLOR"))

    def say(self, text: str) -> None:
        """Narration, to stderr."""
        if self.loudness >= Loudness.NORMAL:
            echo(text, err=True)

    def detail(self, text: str) -> None:
        """Narration that only ``--verbose`` shows."""
        if self.loudness >= Loudness.VERBOSE:
            echo(text, err=True)

    def warn(self, degradation: Degradation) -> None:
        """A degradation, to stderr even when quiet; each once."""
        if degradation not in self._warned:
            self._warned.add(degradation)
            echo(f"warning: {degradation}", err=True)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        """A progress bar on a terminal, one line of narration elsewhere."""
        if self.loudness == Loudness.QUIET or not sys.stderr.isatty():
            counted = "" if what.startswith("building") else f": {total:,} {_COUNTED.get(what, 'samples')}"
            self.say(f"{what}{counted}")
            return items
        from tqdm import tqdm

        return tqdm(items, total=total, desc=what, file=sys.stderr, dynamic_ncols=True, leave=False)

    def result(self, text: str, json_text: str) -> None:
        """The result: for people, or with ``--json`` one document; to stdout."""
        echo(json_text if self.as_json else text)
