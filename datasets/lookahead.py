"""Ordered work ahead of a consumer, in threads, within a fixed bound."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
CHUNK = 8
"""Indices a task takes if not told else: amortises the hand-over of small images, bounds the memory of large ones."""


def map_ahead(
    work: Callable[[int], T], indices: Sequence[int], threads: int, *, chunk: int = CHUNK, ahead: int = 2
) -> Generator[T, None, None]:
    """Results of ``work`` for each index, in order.

    At most ``threads * ahead`` chunks are in flight or waiting, whatever the number of indices. When the consumer stops
    early or is interrupted, waiting work is cancelled and the threads have ended before this returns. An exception
    in ``work`` is raised when the results before its chunk have been given.
    """
    chunks = (indices[start : start + chunk] for start in range(0, len(indices), chunk))
    executor = ThreadPoolExecutor(threads, thread_name_prefix="quantlab-data")
    pending: deque[Future[list[T]]] = deque()
    stop = threading.Event()

    def run(part: Sequence[int]) -> list[T]:
        return [work(index) for index in part if not stop.is_set()]

    try:
        for part in islice(chunks, threads * ahead):
            pending.append(executor.submit(run, part))
        while pending:
            results = pending.popleft().result()
            pending.extend(executor.submit(run, part) for part in islice(chunks, 1))
            yield from results
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
