# ruff: noqa: N802, N815
"""A CUDA driver in memory, with pycuda's surface: contexts a thread, streams that run when they are waited for.

It refuses what a real one would get wrong in silence: memory and streams without a current context, use after free,
and copies beyond a buffer. Time is counted, not measured: every operation takes a known number of milliseconds.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from quantlab.engines import cuda, cuda_graph

COPY_MS = 0.25


class Error(Exception):
    pass


class OutOfMemoryError(Error, MemoryError):
    pass


class LogicError(Error):
    pass


class FakeCuda:
    """The state of one GPU.

    Attributes:
        live: Device buffers by address.
        log: What was taken and given back, in order.
        clock_ms: The GPU's clock.
        memory_bytes: Size of the GPU.
    """

    def __init__(self) -> None:
        self.live: dict[int, np.ndarray[Any, Any]] = {}
        self.pinned = 0
        self.streams: dict[int, Stream] = {}
        self.log: list[str] = []
        self.clock_ms = 0.0
        self.memory_bytes = 1 << 30
        self.pushes = self.pops = 0
        self.allocations = 0
        self.numbers = itertools.count(1)
        self.stacks = threading.local()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.refuse_capture = False
        self.lock = threading.RLock()
        self.library = FakeGraphs(self)

    @property
    def stack(self) -> list[object]:
        if not hasattr(self.stacks, "value"):
            self.stacks.value = []
        found: list[object] = self.stacks.value
        return found

    def need_context(self, what: str) -> None:
        if not self.stack:
            raise LogicError(f"{what} failed: invalid device context")

    def memory(self, address: int, size: int) -> np.ndarray[Any, Any]:
        """The bytes at an address that was handed out and is not freed."""
        if address not in self.live:
            raise LogicError(f"illegal memory access at {address}")
        if size > len(self.live[address]):
            raise LogicError(f"{size} bytes in a buffer of {len(self.live[address])}")
        return self.live[address][:size]

    def spent(self) -> int:
        return sum(len(memory) for memory in self.live.values())


class Allocation:
    def __init__(self, gpu: FakeCuda, size: int) -> None:
        gpu.need_context("cuMemAlloc")
        if gpu.spent() + size > gpu.memory_bytes:
            raise OutOfMemoryError("cuMemAlloc failed: out of memory")
        self.gpu, self.address = gpu, 1 << 20 | next(gpu.numbers) << 8
        gpu.live[self.address] = np.full(size, 0xCD, np.uint8)
        gpu.allocations += 1

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.need_context("cuMemFree")
        del self.gpu.live[self.address]
        self.gpu.log.append("memory")


class Pinned:
    def __init__(self, gpu: FakeCuda, size: int) -> None:
        gpu.need_context("cuMemHostAlloc")
        self.gpu, self.data = gpu, np.full(size, 0xCD, np.uint8)
        self.freed = False
        gpu.pinned += 1

    @property
    def __array_interface__(self) -> Any:
        return self.data.__array_interface__

    def free(self) -> None:
        self.gpu.need_context("cuMemFreeHost")
        assert not self.freed
        self.freed = True
        self.data[:] = 0xEE  # whoever still looks at it sees rubbish
        self.gpu.pinned -= 1
        self.gpu.log.append("memory")


class Stream:
    def __init__(self, gpu: FakeCuda, flags: int) -> None:
        gpu.need_context("cuStreamCreate")
        assert flags == 1, "must not wait for the default stream"
        self.gpu, self.handle = gpu, next(gpu.numbers)
        self.queue: deque[Callable[[], None]] = deque()
        self.captured: list[Callable[[], None]] | None = None
        gpu.streams[self.handle] = self

    def put(self, work: Callable[[], None]) -> None:
        self.gpu.need_context("enqueue")
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        self.gpu.need_context("cuStreamSynchronize")
        assert self.captured is None, "a capture forbids waiting"
        self.drain()

    def drain(self) -> None:
        with self.gpu.lock:
            while self.queue:
                self.queue.popleft()()

    def wait_for_event(self, event: Event) -> None:
        self.put(event.finish)


class Event:
    def __init__(self, gpu: FakeCuda, flags: int) -> None:
        gpu.need_context("cuEventCreate")
        self.gpu, self.flags = gpu, flags
        self.time_ms: float | None = None
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.time_ms, self.stream = None, stream

        def stamp() -> None:
            self.time_ms = self.gpu.clock_ms

        stream.put(stamp)

    def finish(self) -> None:
        if self.time_ms is None and self.stream is not None:
            self.stream.drain()

    def synchronize(self) -> None:
        self.gpu.need_context("cuEventSynchronize")
        self.finish()

    def time_since(self, other: Event) -> float:
        self.gpu.need_context("cuEventElapsedTime")
        if self.time_ms is None or other.time_ms is None:
            raise LogicError("cuEventElapsedTime failed: not ready")
        return self.time_ms - other.time_ms


def fake_driver(gpu: FakeCuda) -> ModuleType:
    """A module like ``pycuda.driver``."""
    driver: Any = ModuleType("pycuda.driver")

    class Context:
        def push(self) -> None:
            gpu.stack.append(self)
            gpu.pushes += 1

        @staticmethod
        def pop() -> None:
            gpu.stack.pop()
            gpu.pops += 1

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return "Fake GPU"

        def compute_capability(self) -> tuple[int, int]:
            return 9, 0

        def total_memory(self) -> int:
            return gpu.memory_bytes

        def retain_primary_context(self) -> Context:
            return Context()

    def pagelocked_empty(size: int, dtype: object) -> np.ndarray[Any, Any]:
        assert dtype is np.uint8
        return np.asarray(Pinned(gpu, size))

    def memcpy_htod(address: int, source: np.ndarray[Any, Any]) -> None:
        gpu.need_context("cuMemcpyHtoD")
        gpu.memory(address, source.nbytes)[:] = source

    def memcpy_htod_async(address: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
        def work() -> None:
            gpu.memory(address, source.nbytes)[:] = source
            gpu.clock_ms += COPY_MS

        stream.put(work)

    def memcpy_dtoh_async(target: np.ndarray[Any, Any], address: int, stream: Stream) -> None:
        def work() -> None:
            target[:] = gpu.memory(address, target.nbytes)
            gpu.clock_ms += 2 * COPY_MS

        stream.put(work)

    driver.Error, driver.MemoryError, driver.LogicError = Error, OutOfMemoryError, LogicError
    driver.init = lambda: None
    driver.get_driver_version = lambda: 13000
    driver.get_version = lambda: (13, 0, 0)
    driver.Device, driver.Context = Device, Context
    driver.mem_alloc = lambda size: Allocation(gpu, size)
    driver.mem_get_info = lambda: (gpu.memory_bytes - gpu.spent(), gpu.memory_bytes)
    driver.pagelocked_empty = pagelocked_empty
    driver.Stream = lambda flags: Stream(gpu, flags)
    driver.Event = lambda flags: Event(gpu, flags)
    driver.memcpy_htod, driver.memcpy_htod_async = memcpy_htod, memcpy_htod_async
    driver.memcpy_dtoh_async = memcpy_dtoh_async
    return driver


class FakeGraphs:
    """The part of the driver's library that captures graphs."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu
        self.launches = 0

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        assert mode == 1, "other threads must not spoil it"
        self.gpu.streams[stream].captured = []
        return 0

    def cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        captured, self.gpu.streams[stream].captured = self.gpu.streams[stream].captured, None
        if self.gpu.refuse_capture:
            return 901
        assert captured is not None
        graph._obj.value = next(self.gpu.numbers)
        self.gpu.graphs[graph._obj.value] = captured
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: ctypes.c_void_p, flags: int) -> int:
        assert graph.value is not None
        executable._obj.value = next(self.gpu.numbers)
        self.gpu.graphs[executable._obj.value] = self.gpu.graphs[graph.value]
        return 0

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: int) -> int:
        assert executable.value is not None
        self.launches += 1
        for work in self.gpu.graphs[executable.value]:
            self.gpu.streams[stream].put(work)
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:
        assert graph.value is not None
        del self.gpu.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"operation failed due to a previous error during capture"
        return 0


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put the fake in the place of pycuda and of the driver's library."""
    gpu = FakeCuda()
    package: Any = ModuleType("pycuda")
    package.driver = fake_driver(gpu)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    monkeypatch.setattr(cuda, "_devices", {})
    monkeypatch.setattr(cuda_graph, "_library", lambda: gpu.library)
    return gpu
