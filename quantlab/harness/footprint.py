"""What an engine costs besides time: memory, loading, and the file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

BOUNDARY = (
    "each in a fresh process: load is the check of the file's hash and the making of the session; memory is the peak "
    "of the process above what it held after its imports; whether the file was in the system's cache is not controlled"
)
"""What the figures are, in words."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one engine costs, measured in processes that did nothing else.

    Attributes:
        name: Variant name.
        size_bytes: Engine file with its external data.
        batch_size: Samples of the batch that was run.
        threads: Of the engine on the CPU.
        load_ms: Time to open it, of each process.
        first_run_ms: Time of the first run, likewise.
        peak_bytes: Largest resident memory above that after the imports, after opening and two runs, likewise; empty
            where the system does not tell.
        device_bytes: Memory of the GPU that opening and running took, likewise; empty where there is no GPU's engine.
    """

    name: str
    size_bytes: int
    batch_size: int
    threads: int
    load_ms: tuple[float, ...]
    first_run_ms: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    device_bytes: tuple[int, ...] = ()

    @property
    def processes(self) -> int:
        """How many processes measured it."""
        return len(self.load_ms)

    @property
    def median_load_ms(self) -> float:
        """Median over the processes."""
        return statistics.median(self.load_ms)

    @property
    def median_first_run_ms(self) -> float:
        """Median over the processes."""
        return statistics.median(self.first_run_ms)

    @property
    def median_peak_bytes(self) -> int | None:
        """Median over the processes; None if not known."""
        return int(statistics.median(self.peak_bytes)) if self.peak_bytes else None

    @property
    def median_device_bytes(self) -> int | None:
        """Median over the processes; None if not known."""
        return int(statistics.median(self.device_bytes)) if self.device_bytes else None
