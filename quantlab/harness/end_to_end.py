"""Engines timed from files to outputs: every call reads, decodes, preprocesses and batches its samples anew.

All engines get the same samples in the same order, and all blocks of a round the same ones, so that an image that is
slow to decode is slow for every engine. What is read in a call and what runs are timed in one: reading the clock once
more between the two tells their shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Sample
from quantlab.datasets.batches import stack
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.protocol import Dataset
from quantlab.engines.protocol import Arrays, Engine
from quantlab.errors import ConfigError, DataError
from quantlab.harness.clocks import SYSTEM_CLOCK, Clock, resolution_ns
from quantlab.harness.latency import RESOLUTION_FACTOR, LatencySettings, Timings, calls_per_timing, time_boundaries
from quantlab.harness.measurement import Boundary

Floats = NDArray[np.float64]

_IN_MEMORY = ("arrays", "idx")
"""Kinds of data whose file is read whole, or mapped, when it is opened."""


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """All engines timed against each other from files to outputs, in one setting.

    Attributes:
        threads: Of each engine on the CPU.
        batch_size: Samples a call.
        readers: Threads that decode and preprocess; 1 is the calling thread.
        samples: How many different samples are taken in turn.
        in_memory: Whether the data are one file of arrays that is in memory already: a call then copies, preprocesses
            and batches, and reads no file.
        timings: From files to outputs.
        reading: The part of the same calls before the engine runs; its ratios say whether all engines were fed alike.
    """

    threads: int
    batch_size: int
    readers: int
    samples: int
    in_memory: bool
    timings: Timings
    reading: Timings

    def share(self, name: str) -> float:
        """Share of reading in the time of an engine, median of median."""
        return self.reading.latencies[name].median_ms / self.timings.latencies[name].median_ms


class Feed:
    """Batches of a data set's samples in turn, made anew each time; a context manager that ends its threads.

    Attributes:
        samples: How many samples there are.
        readers: Threads that decode; with 1 the calling thread does.
        in_memory: See `EndToEnd`.
    """

    def __init__(self, dataset: Dataset, batch_size: int, threads: int) -> None:
        """Read every sample once: a timed call then neither hashes contents nor finds the file cache cold.

        Args:
            dataset: Made of files; its samples are taken in its order.
            batch_size: Samples in a batch; the first follow the last.
            threads: Most threads that decode; no more are used than there are samples in a batch.

        Raises:
            ConfigError: If the samples are random numbers.
            DataError: If a sample cannot be read, or the data set cannot give single ones.
        """
        if not isinstance(dataset, SourceDataset):
            raise DataError(
                f"data set {dataset.name} cannot give single samples, so reading it cannot be timed",
                got="a complete data set of the user's own",
                hint="return a sequence of samples from the factory, or leave --end-to-end out",
            )
        kind = dataset.describe()["kind"]
        if kind == "random":
            raise ConfigError(
                "--end-to-end times reading and preprocessing, and random numbers have none",
                got=f"--data {dataset.name}",
                expected="--data with files",
            )
        self._dataset = dataset
        self.samples = len(dataset)
        readable = {entry.id for entry in dataset.manifest.entries}
        for position, name in enumerate(dataset.sample_ids):
            if name not in readable:
                dataset.load(position)  # raises the error that names it
        self._batch_size = batch_size
        self._at = 0
        self.in_memory = kind in _IN_MEMORY
        self.readers = min(threads, batch_size)
        self._pool = ThreadPoolExecutor(self.readers, "quantlab-feed") if self.readers > 1 else None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def seek(self, call: int) -> None:
        """Go on with the batch of this call, counted from 0."""
        self._at = call * self._batch_size % self.samples

    def next(self) -> Arrays:
        """Read the next samples and stack them.

        Raises:
            DataError: If one cannot be read any more, or samples of a batch differ in shape.
        """
        positions = [(self._at + offset) % self.samples for offset in range(self._batch_size)]
        self._at = (self._at + self._batch_size) % self.samples
        if self._pool is None:
            return stack(self._load(positions)).inputs
        parts = [part.tolist() for part in np.array_split(positions, self.readers)]
        return stack([sample for group in self._pool.map(self._load, parts) for sample in group]).inputs

    def _load(self, positions: Sequence[int]) -> list[Sample]:
        return [self._dataset.load(position) for position in positions]


class _Timer:
    """Times a call from file to output, and the part of it before the run."""

    def __init__(self, run: Callable[[Arrays], object], feed: Feed, clock: Clock, loops: int) -> None:
        self._run = run
        self._feed = feed
        self._clock = clock
        self.calls_per_timing = loops

    def time(self, timings: int) -> Floats:
        """See `Timer`; shape (2, timings): the whole, and reading."""
        now, following, run = self._clock.now, self._feed.next, self._run
        durations = np.empty((2, timings), np.float64)
        loop = range(self.calls_per_timing)
        for number in range(timings):
            whole = reading = 0
            for _ in loop:
                start = now()
                inputs = following()
                read = now()
                run(inputs)
                whole += now() - start
                reading += read - start
            durations[:, number] = whole, reading
        return durations / self.calls_per_timing


def time_end_to_end(
    engines: Mapping[str, Engine],
    reference: str,
    dataset: Dataset,
    batch_size: int,
    threads: int,
    settings: LatencySettings,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> EndToEnd:
    """Interleaved rounds of all engines, each call with the next samples of the data.

    Args:
        engines: By label.
        reference: Label of the engine that ratios are taken to.
        dataset: Samples, in files.
        batch_size: Samples a call.
        threads: Of each engine on the CPU, and most that decode.
        settings: Budget and seed.
        clock: The host's, or a test's.

    Raises:
        MeasurementError: If an engine fails, or the clock cannot be believed.
        ConfigError: If the samples are random numbers.
        DataError: If a sample cannot be read.
    """
    with Feed(dataset, batch_size, threads) as feed:
        resolution = resolution_ns(clock)
        least_ns = RESOLUTION_FACTOR * resolution

        def call_of(engine: Engine) -> Callable[[], object]:
            return lambda: engine.run(feed.next())

        loops = max(calls_per_timing(call_of(engine), clock, least_ns) for engine in engines.values())
        timed = time_boundaries(
            {name: _Timer(engine.run, feed, clock, loops) for name, engine in engines.items()},
            reference,
            batch_size,
            settings,
            (Boundary.END_TO_END, Boundary.READING),
            clock=clock,
            resolution=resolution,
            seek=feed.seek,
        )
    return EndToEnd(
        threads=threads,
        batch_size=batch_size,
        readers=feed.readers,
        samples=feed.samples,
        in_memory=feed.in_memory,
        timings=timed[Boundary.END_TO_END],
        reading=timed[Boundary.READING],
    )
