"""A build on a thread of its own: with progress on the caller's thread, and an end when the caller is interrupted."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from quantlab.progress import Narrator

T = TypeVar("T")

WHOLE = 100
"""Steps of a progress bar: per cent."""

_POLL_S = 0.1


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    child: float = 0.0

    @property
    def share(self) -> float:
        return min((self.done + min(self.child, 1.0)) / self.steps, 1.0) if self.steps > 0 else 0.0


class BuildProgress:
    """How far a build is, from the phases that TensorRT reports; and the request to end it.

    Phases nest; one that ends counts as one step of its parent only when the parent says so.

    Attributes:
        stop: Set to end the build.
        failed: Whether going on is of no use, for another reason.
        percents: Per cents that were reached.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.failed: Callable[[], bool] = lambda: False
        self.percents: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._phases: dict[str, _Phase] = {}
        self._shown = 0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._phases[name] = _Phase(parent, steps)

    def step(self, name: str, step: int) -> bool:
        """A step of a phase, counted from 0, is done; whether the build is to go on."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done, phase.child = step + 1, 0.0
            self._rise(phase)
        return not (self.stop.is_set() or self.failed())

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._phases.pop(name, None)

    def _rise(self, phase: _Phase) -> None:
        share = phase.share
        while phase.parent is not None and (parent := self._phases.get(phase.parent)) is not None:
            parent.child = share
            phase, share = parent, parent.share
        for percent in range(self._shown + 1, int(share * WHOLE) + 1):
            self.percents.put(percent)
            self._shown = percent


def native_monitor(module: Any, progress: BuildProgress) -> Any:
    """An instance of the module's ``IProgressMonitor`` that tells ``progress``; it lets no exception through."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                progress.start(phase_name, parent_phase, num_steps)
            except BaseException:  # must not pass through the binding
                progress.stop.set()

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return progress.step(phase_name, step)
            except BaseException:  # as above
                progress.stop.set()
                return False

        def phase_finish(self, phase_name: str) -> None:
            try:
                progress.finish(phase_name)
            except BaseException:  # as above
                progress.stop.set()

    return Monitor()


def run_interruptible(work: Callable[[], T], progress: BuildProgress, narrator: Narrator, what: str) -> T:
    """Run ``work`` on another thread and wait for it, showing progress.

    Python raises an interruption on the main thread only. With TensorRT on another, none can be raised within its
    callbacks, where it would end the process. Here it sets ``progress.stop``, and is raised again when the work has
    come to its end.

    Returns:
        What ``work`` returns.

    Raises:
        BaseException: What ``work`` raises, or the interruption.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed over to the caller's thread
            traceback.clear_frames(error.__traceback__)  # they hold TensorRT's objects beyond the build
            failures.append(error)

    thread = threading.Thread(target=target, name="quantlab-build")
    thread.start()
    try:
        for _ in narrator.track(_percents(thread, progress), WHOLE, what):
            pass
    except BaseException:
        progress.stop.set()
        narrator.say("stopping: TensorRT ends its current step first")
        raise
    finally:
        _join(thread)
    if failures:
        raise failures.pop()  # in the list, error, frame and list would wait for the collector
    return results[0]


def _percents(thread: threading.Thread, progress: BuildProgress) -> Iterator[int]:
    """Every per cent from 1 to 100 once: those that were never reported, when the work is over."""
    last = 0
    while thread.is_alive():
        try:
            last = progress.percents.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        yield last
    yield from range(last + 1, WHOLE + 1)


def _join(thread: threading.Thread) -> None:
    """Wait for the end, through further interruptions: the files of a build belong to its thread until then."""
    while thread.is_alive():
        try:
            thread.join(_POLL_S)
        except KeyboardInterrupt:
            continue
