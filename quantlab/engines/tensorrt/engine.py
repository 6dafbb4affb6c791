"""An engine file of TensorRT or TensorRT-RTX on a GPU."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.batching import cut_batch, fill_batch
from quantlab.engines.cuda import open_device
from quantlab.engines.layer_time import LayerTime
from quantlab.engines.protocol import Arrays
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.tensorrt.compatibility import Difference, check_record, check_validity
from quantlab.engines.tensorrt.config import Session, load_plugins
from quantlab.engines.tensorrt.flavour import TENSORRT_RTX, Flavour, load_flavour
from quantlab.engines.tensorrt.inspector import parse_inspection, timed_layers
from quantlab.engines.tensorrt.interface import Interface, read_interface
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.engines.tensorrt.native import Native, configure, deserialize, new_context, save_cache
from quantlab.engines.tensorrt.slot import GraphMode, Shared, Slot
from quantlab.engines.tensorrt.stdout import stdout_to_stderr
from quantlab.engines.tensorrt.timing import DeviceTimes, SlotTimer, TimingSettings, device_times, time_slot
from quantlab.errors import EngineMismatch, MeasurementError
from quantlab.files import sha256_bytes


class TensorRTEngine:
    """A loaded engine; safe to call from several threads, of which as many run at once as there are contexts.

    Attributes:
        device: The GPU it is on.
        interface: Inputs, outputs and ranges of shapes.
        differences: What its sidecar recorded otherwise than it is here; nothing of it keeps the engine from running.
        load_ms: Time that opening took: deserializing, contexts and memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        contexts: int = 1,
        device: int = 0,
        graphs: GraphMode = GraphMode.OFF,
        runtime_cache: Path | None = None,
        plugins: Sequence[Path] = (),
        specialize: bool = True,
        trust: bool = False,
        backend: str = TENSORRT_RTX,
    ) -> None:
        """Open an engine file.

        Args:
            path: The file, with its sidecar beside it.
            contexts: How many threads can run it at once; each context has its own memory.
            device: Number of the GPU.
            graphs: Whether runs are launched as CUDA graphs.
            runtime_cache: File for kernels compiled at run time (TensorRT-RTX): read if it is there, written by
                `close`.
            plugins: Shared libraries with operators that the engine uses.
            specialize: Compile kernels for each set of shapes that is run (TensorRT-RTX); without, one set runs all.
            trust: Open a file that no sidecar vouches for. It is code that runs in this process and on the GPU.
            backend: Flavour of a file without a sidecar.

        Raises:
            EngineMismatch: If nothing vouches for the file, it was built for another place, or it is damaged.
            BackendUnavailable: If TensorRT, pycuda, the driver or a GPU is missing or broken.
            ConfigError: If there is no such GPU, or a plugin library cannot be used.
            MeasurementError: If memory is short.
        """
        self._sidecar = _vouched(path, trust)
        self._name = self._sidecar.name if self._sidecar else path.stem
        if self._sidecar is None:
            flavour = load_flavour(backend)
            data = _read(path)
        else:
            if self._sidecar.engine is None:
                hint = "open it with the backend that it was built for"
                raise EngineMismatch(f"{path} is not a TensorRT engine", got=self._sidecar.backend, hint=hint)
            flavour = load_flavour(self._sidecar.backend)
            data = _read(path)
            if sha256_bytes(data) != self._sidecar.sha256:  # the very bytes that are opened, not those checked before
                raise EngineMismatch(f"engine {path} changed while it was read", hint="build it again")
        self.device = open_device(device)
        self.differences: tuple[Difference, ...] = ()
        self._first_run_ms: float | None = None
        self._cache_path = runtime_cache
        self._lock = threading.Lock()
        self._free: SimpleQueue[Slot | None] = SimpleQueue()  # None once it is closed
        started = time.perf_counter_ns()
        log = TensorRTLog(flavour.module)
        self._native = Native(self.device, log)
        self._release = weakref.finalize(self, self._native.release)
        with self.device.active(), stdout_to_stderr():
            try:
                load_plugins(Session(flavour, log, None), tuple(plugins))
                self._open(flavour, data, graphs, contexts, specialize)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # they hold TensorRT's objects beyond this context
                self._release()
                raise
        self.load_ms = (time.perf_counter_ns() - started) / 1e6

    def _open(self, flavour: Flavour, data: bytes, graphs: GraphMode, contexts: int, specialize: bool) -> None:
        native, record = self._native, self._sidecar.engine if self._sidecar else None
        native.runtime = flavour.module.Runtime(native.log.native)
        if native.runtime is None:
            raise MeasurementError(f"{flavour.product} makes no runtime", got="; ".join(native.log.errors) or None)
        if record is not None:
            self.differences = check_record(record, flavour, self.device.facts, self._name)
            if "version-compatible" in record.options:
                native.runtime.engine_host_code_allowed = True  # such an engine brings its own runtime library
        check_validity(flavour, native.runtime, data, self.differences, self._name, native.log)
        deserialize(native, flavour, data, self._name)
        self.interface: Interface = read_interface(flavour.module, native.engine, self._name)
        configure(native, flavour, graphs, self._cache_path, specialize=specialize)
        self._shared = Shared(flavour.module, self.device, self.interface, native.log, graphs is GraphMode.CAPTURED)
        for _ in range(max(contexts, 1)):
            slot = Slot(self._shared, new_context(native, self._name))
            native.slots.append(slot)
            slot.reserve_largest()
            self._free.put(slot)

    @property
    def sidecar(self) -> Sidecar:
        """See `Engine.sidecar`.

        Raises:
            EngineMismatch: If the file was opened on trust and has none.
        """
        if self._sidecar is None:
            raise EngineMismatch(f"engine {self._name} has no sidecar", hint="it was opened on trust")
        return self._sidecar

    def state(self, sidecar: Sidecar) -> None:
        """Let `sidecar` say from now on what a run has shown since the file was written; the file stays as it is."""
        self._sidecar = sidecar

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Engine.outputs`."""
        return tuple(spec.name for spec in self.interface.outputs)

    @property
    def specializes(self) -> bool:
        """Whether the library compiles kernels for each set of shapes that is run (TensorRT-RTX)."""
        return self._native.specializes

    @property
    def first_run_ms(self) -> float | None:
        """Time of the first run, in which a library that compiles at run time compiles; None before it."""
        return self._first_run_ms

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See `Engine.run`; the arrays are the caller's own."""
        feed, n = self._feed(inputs)
        with self._slot() as slot:
            outputs = self._run(slot, feed)
        return cut_batch(outputs, n, self._fixed_batch)

    def time_device(
        self,
        inputs: Arrays,
        *,
        seconds: float = 3.0,
        warmup_ms: float = 200.0,
        iterations: int = 10,
        use_graph: bool = False,
        transfers: bool = True,
        spin: bool = False,
    ) -> DeviceTimes:
        """Times of one batch by CUDA events, by trtexec's definitions; see `TimingSettings` for the arguments.

        It runs once before, so that compilation is not part of the times. Runs in other threads would be.

        Raises:
            MeasurementError: As for `run`, and if a graph is wanted and the engine cannot be captured.
        """
        settings = TimingSettings(seconds, warmup_ms, iterations, use_graph, transfers, spin)
        feed, _ = self._feed(inputs)
        with self._slot() as slot:
            self._run(slot, feed)
            traces = time_slot(self.device, slot, settings)
        return device_times(
            traces,
            settings,
            batch_size=len(next(iter(feed.values()))) if feed else 0,
            load_ms=self.load_ms,
            first_run_ms=self._first_run_ms or 0.0,
        )

    @contextlib.contextmanager
    def block_timer(
        self, inputs: Arrays, *, use_graph: bool = False, transfers: bool = True, spin: bool = False
    ) -> Iterator[SlotTimer]:
        """See `BlockTimed.block_timer`; it holds one of the engine's contexts until it is left."""
        feed, _ = self._feed(inputs)
        with self._slot() as slot:
            self._run(slot, feed)
            settings = TimingSettings(use_graph=use_graph, transfers=transfers, spin=spin)
            timer = SlotTimer(self.device, slot, settings)
            try:
                yield timer
            finally:
                timer.close()

    def profile(self, inputs: Arrays, runs: int = 10) -> dict[str, float]:
        """Mean time of each layer, measured one by one: their sum is above the time of the whole.

        Args:
            inputs: One batch.
            runs: Runs to average over, after one that does not count.

        Returns:
            Milliseconds by layer name, in the order of execution; layers of one name are added up.

        Raises:
            MeasurementError: As for `run`.
        """
        return {name: sum(times) / runs for name, times in self._profiled(inputs, runs).items()}

    def layer_times(self, inputs: Arrays, runs: int = 10) -> tuple[LayerTime, ...]:
        """See `LayerTimed.layer_times`; layers of one name are one entry, as the profiler cannot tell them apart."""
        times = {name: statistics.median(found) for name, found in self._profiled(inputs, runs).items()}
        return timed_layers(parse_inspection(self.inspect(), times), times)

    def _profiled(self, inputs: Arrays, runs: int) -> dict[str, list[float]]:
        """Milliseconds of each layer in each run, by name, in the order of execution."""
        if runs < 1:
            raise ValueError(f"{runs} runs")
        feed, _ = self._feed(inputs)
        totals: dict[str, float] = {}
        found: dict[str, list[float]] = {}
        with self._slot(), self.device.active():  # a context of its own: a profiler cannot be taken off again
            slot = None
            try:
                slot = Slot(self._shared_without_graphs(), new_context(self._native, self._name))
                profiler = _profiler(self._shared.module, totals)
                slot.context.profiler = profiler
                slot.run(feed)
                for number in range(runs):
                    totals.clear()
                    slot.run(feed)
                    for name, ms in totals.items():
                        found.setdefault(name, [0.0] * runs)[number] = ms
            finally:
                if slot is not None:
                    slot.drop_context()
                    slot.free()
        return found

    def inspect(self) -> str:
        """The engine inspector's JSON, which says most of engines built with detailed profiling verbosity.

        Raises:
            MeasurementError: If TensorRT gives none.
        """
        with self._slot() as slot:
            inspector = self._native.engine.create_engine_inspector()
            inspector.execution_context = slot.context
            text = inspector.get_engine_information(self._shared.module.LayerInformationFormat.JSON)
            inspector = None
        if not text:
            raise MeasurementError(f"{self._name}: the engine inspector says nothing")
        return str(text)

    def save_runtime_cache(self) -> None:
        """Write the kernels compiled so far to the file named when the engine was opened.

        Raises:
            MeasurementError: If none was named.
            OutputError: If it cannot be written.
        """
        if self._cache_path is None:
            raise MeasurementError("there is no runtime cache to save", hint="open the engine with runtime_cache")
        save_cache(self._native, self._cache_path)

    def close(self) -> None:
        """Wait for runs in other threads, write the runtime cache if one was named, and free everything.

        Raises:
            OutputError: If the runtime cache cannot be written; everything is freed then, too.
        """
        with self._lock:
            if not self._release.alive:
                return
            for _ in self._native.slots:
                self._free.get()
            try:
                if self._cache_path is not None:
                    self.save_runtime_cache()
            finally:
                self._release()
                self._free.put(None)

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _fixed_batch(self) -> int | None:
        return self._sidecar.fixed_batch if self._sidecar else None

    def _feed(self, inputs: Arrays) -> tuple[Arrays, int | None]:
        feed, n = fill_batch(inputs, self._fixed_batch)
        self.interface.check(feed)
        return feed, n

    @contextlib.contextmanager
    def _slot(self) -> Iterator[Slot]:
        """A slot for this thread alone, with the GPU's context active; waits for one."""
        slot = self._free.get()
        if slot is None:
            self._free.put(None)  # for the next who waits
            raise MeasurementError(f"{self._name} is closed", hint="open it again")
        try:
            with self.device.active():
                yield slot
        finally:
            self._free.put(slot)

    def _run(self, slot: Slot, feed: Arrays) -> dict[str, NDArray[np.generic]]:
        started = time.perf_counter_ns()
        outputs = slot.run(feed)
        if self._first_run_ms is None:
            self._first_run_ms = (time.perf_counter_ns() - started) / 1e6
        return outputs

    def _shared_without_graphs(self) -> Shared:
        shared = self._shared
        return Shared(shared.module, shared.device, shared.interface, shared.log)


def _vouched(path: Path, trust: bool) -> Sidecar | None:
    """The sidecar; None if there is none that vouches for the file, and that is accepted."""
    try:
        return read_sidecar(path)
    except EngineMismatch:
        if not trust:
            raise
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise EngineMismatch(f"cannot read engine {path}", got=cause.strerror, hint="build it again") from cause


def _profiler(module: Any, totals: dict[str, float]) -> Any:
    """An ``IProfiler`` that adds up times by layer."""

    class Profiler(module.IProfiler):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    return Profiler()
