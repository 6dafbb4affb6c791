"""What a backend provides: a builder that turns a variant into a file, and an engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.layer_time import LayerTime
from quantlab.engines.sidecar import Sidecar
from quantlab.engines.variant import Variant

if TYPE_CHECKING:
    from quantlab.engines.tensorrt.timing import BlockTimes, DeviceTimes

Arrays = Mapping[str, NDArray[np.generic]]


class EngineBuilder(Protocol):
    """Builds engine files for one backend."""

    @property
    def backend(self) -> str:
        """Name on the command line."""
        ...

    def supports(self, variant: Variant) -> str | None:
        """Why the variant cannot be built here, or None if it can."""
        ...

    def build(self, variant: Variant, folder: Path) -> Path:
        """Write ``<name>.<suffix>`` and its sidecar into ``folder``; whole or not at all.

        Returns:
            Path of the engine file.

        Raises:
            EngineBuildError: If the backend refuses the graph.
            BackendUnavailable: If the backend or the precision is not available here.
        """
        ...

    def load(self, path: Path, threads: int) -> Engine:
        """Open an engine file whose sidecar vouches for it.

        Raises:
            EngineMismatch: If file and sidecar do not belong together.
        """
        ...


class Engine(Protocol):
    """A loaded engine; safe to call from several threads."""

    @property
    def sidecar(self) -> Sidecar:
        """What made it."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        ...

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run one batch.

        Args:
            inputs: Arrays by input name, batch first, of the model's dtypes.

        Returns:
            Arrays by output name, batch first.

        Raises:
            MeasurementError: If the backend fails.
        """
        ...


@runtime_checkable
class DeviceTimed(Protocol):
    """An engine that times itself on its GPU."""

    @property
    def sidecar(self) -> Sidecar:
        """What made it."""
        ...

    def time_device(
        self,
        inputs: Arrays,
        *,
        seconds: float = 3.0,
        use_graph: bool = False,
        transfers: bool = True,
        spin: bool = False,
    ) -> DeviceTimes:
        """Times of one batch by CUDA events, after a warm-up.

        Args:
            inputs: Arrays by input name, batch first.
            seconds: Least time, warm-up excluded.
            use_graph: Whether compute is launched as a CUDA graph.
            transfers: Whether inputs and outputs are copied in every query.
            spin: Whether the host spins while it waits, instead of sleeping.

        Raises:
            MeasurementError: If the backend fails, or a graph is wanted and cannot be captured.
        """
        ...


class BlockTimer(Protocol):
    """Times blocks of queries on a GPU; for the thread that opened it, and nothing else may run on its engine's GPU."""

    def time(self, queries: int) -> BlockTimes:
        """Make so many queries, at least one, and wait for them.

        Raises:
            MeasurementError: If the backend fails.
        """
        ...


@runtime_checkable
class BlockTimed(Protocol):
    """An engine that times itself on its GPU block by block, so that engines can be timed in turn."""

    @property
    def sidecar(self) -> Sidecar:
        """What made it."""
        ...

    def block_timer(
        self, inputs: Arrays, *, use_graph: bool = False, transfers: bool = True, spin: bool = False
    ) -> AbstractContextManager[BlockTimer]:
        """Run once and make ready for blocks; timers that are open together are left in reverse order.

        Args:
            inputs: One batch by input name, batch first; it is brought into page-locked memory once.
            use_graph: Whether compute is launched as a CUDA graph, which is captured once.
            transfers: Whether inputs and outputs are copied in every query.
            spin: Whether the host spins while it waits, instead of sleeping.

        Raises:
            MeasurementError: If the backend fails, or a graph is wanted and cannot be captured.
        """
        ...


@runtime_checkable
class LayerTimed(Protocol):
    """An engine whose runtime times its layers one by one."""

    @property
    def sidecar(self) -> Sidecar:
        """What made it."""
        ...

    def layer_times(self, inputs: Arrays, runs: int = 10) -> tuple[LayerTime, ...]:
        """Times of the layers of one run, in the order of execution; the engine is opened or run apart for it.

        Their sum is not the time of a run: the profiler adds to each of them.

        Args:
            inputs: One batch by input name, batch first.
            runs: Runs to take the median (or mean) of, after one or more that do not count; at least 1.

        Raises:
            MeasurementError: If the backend fails, or its profiler says nothing that can be read.
        """
        ...
