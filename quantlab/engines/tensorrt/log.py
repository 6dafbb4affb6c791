"""TensorRT's log: every line goes to Python's logging with its level, and errors are kept for the exception."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

LOGGER = logging.getLogger("quantlab.tensorrt")
LOGGER.addHandler(logging.NullHandler())

_MOST_KEPT = 50

_lock = threading.RLock()  # what the collector frees while it is held may log, too

_natives: list[tuple[Any, Any]] = []
"""Modules, each with its one ``ILogger``. TensorRT writes to the first one that it was given, also for builders and
runtimes that were given another, and its plugin registry never asks whether it is still there."""

_listeners: weakref.WeakSet[TensorRTLog] = weakref.WeakSet()


class TensorRTLog:
    """Keeps the messages of a module from now on: of its builders, parsers, runtimes and plugin registry alike.

    TensorRT cannot tell whose a message is. It calls from its own threads. An exception must not pass through: the
    binding would end the process.

    Attributes:
        native: The object to hand to TensorRT, an instance of the module's ``ILogger``; one for each module.
    """

    def __init__(self, module: Any) -> None:
        self._errors: list[str] = []
        self._warnings: list[str] = []
        self._module = module
        with _lock:
            native = next((native for known, native in _natives if known is module), None)
            if native is None:
                native = _make_native(module)
                _natives.append((module, native))
            _listeners.add(self)
        self.native = native

    def keep(self, module: Any, level: int, message: str) -> None:
        """Keep a message if it is an error or a warning of this log's module."""
        lines = {logging.ERROR: self._errors, logging.WARNING: self._warnings}.get(level)
        if module is self._module and lines is not None and len(lines) < _MOST_KEPT and message not in lines:
            lines.append(message)

    @property
    def errors(self) -> tuple[str, ...]:
        """Errors so far, oldest first, without repeats."""
        return tuple(self._errors)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings so far, oldest first, without repeats."""
        return tuple(self._warnings)

    def clear(self) -> None:
        """Forget the messages kept so far."""
        self._errors.clear()
        self._warnings.clear()


def _make_native(module: Any) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Native(module.ILogger):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            try:
                level = levels.get(severity, logging.INFO)
                LOGGER.log(level, "%s", message)
                with _lock:
                    listeners = tuple(_listeners)
                for listener in listeners:
                    listener.keep(module, level, message)
            except BaseException:  # nothing may pass through the binding; a line of the log is lost
                return

    return Native()
