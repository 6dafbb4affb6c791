"""A clock that the test turns: time passes only in calls, so that every number is known."""

from __future__ import annotations

from collections.abc import Callable

from quantlab.harness.clocks import Clock

MS = 1_000_000


class FakeClock:
    """``now`` and ``boot`` in nanoseconds; ``boot`` runs ahead while the machine is suspended."""

    def __init__(self) -> None:
        self.time = 0
        self.suspended = 0
        self.log: list[str] = []
        self.clock = Clock(lambda: self.time, lambda: self.time + self.suspended, 1.0)

    def engine(self, name: str, cost: Callable[[], float]) -> Callable[[], None]:
        """A call that takes ``cost()`` milliseconds."""

        def call() -> None:
            self.log.append(name)
            self.time += round(cost() * MS)

        return call
