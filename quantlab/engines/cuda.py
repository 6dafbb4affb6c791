"""A GPU through its primary context: memory, streams, events and staging, next to other users of the same GPU.

The primary context is the one that every CUDA runtime in the process shares (TensorRT, torch, ONNX Runtime). It is
pushed for each use and popped after it, in whichever thread the use is, so that nobody finds another context than
the one they left. pycuda frees memory only while the context that it was taken in is current, or in the thread that
made the context, and is silent otherwise: therefore there is one context object for each GPU and process, and
everything here frees under it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.cuda_driver import cuda_errors, driver_version, first_line, load_driver
from quantlab.errors import BackendUnavailable, ConfigError, MeasurementError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, which other libraries use
_BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC: the thread that waits sleeps

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a GPU is.

    Attributes:
        index: Number among the visible GPUs.
        name: Marketing name.
        compute_capability: Such as ``9.0``.
        memory_bytes: Of the whole GPU.
        driver: Version of the NVIDIA driver; None where nothing tells.
        cuda: Highest CUDA version that the driver supports, such as ``13.0``.
        pycuda: CUDA version that pycuda was built for.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int
    driver: str | None
    cuda: str
    pycuda: str


class Device:
    """One GPU; open it with `open_device`.

    Attributes:
        driver: The module ``pycuda.driver``.
        facts: What it is.
    """

    def __init__(self, driver: Any, index: int) -> None:
        self.driver = driver
        try:
            device = driver.Device(index)
            self.facts = DeviceFacts(
                index=index,
                name=str(device.name()),
                compute_capability=".".join(map(str, device.compute_capability())),
                memory_bytes=int(device.total_memory()),
                driver=driver_version(),
                cuda=_cuda_version(driver.get_driver_version()),
                pycuda=".".join(map(str, driver.get_version()[:2])),
            )
            self._context = device.retain_primary_context()
        except driver.Error as cause:
            hint = "another process may hold it alone (compute mode), or it is out of memory: see nvidia-smi"
            raise BackendUnavailable(f"GPU {index} cannot be used", got=first_line(cause), hint=hint) from cause

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this GPU's primary context current in this thread; may be nested.

        Raises:
            MeasurementError: If the driver refuses.
        """
        with cuda_errors(self.driver, f"the context of {self.facts.name} cannot be made current"):
            self._context.push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    def free_bytes(self) -> int:
        """Memory that is free now, whoever uses the rest."""
        with self.active(), cuda_errors(self.driver, f"{self.facts.name} does not state its memory"):
            return int(self.driver.mem_get_info()[0])

    def stream(self) -> Any:
        """A new stream that runs beside the default stream; let go of it while the context is active."""
        with self.active(), cuda_errors(self.driver, "no stream could be made"):
            return self.driver.Stream(_NON_BLOCKING)

    def event(self, *, spin: bool = False) -> Any:
        """A new event that measures time; let go of it while the context is active.

        Args:
            spin: Whether a thread that waits for it spins, which is more exact, instead of sleeping.
        """
        with self.active(), cuda_errors(self.driver, "no event could be made"):
            return self.driver.Event(0 if spin else _BLOCKING_SYNC)


_devices: dict[int, Device] = {}
_lock = threading.Lock()


def open_device(index: int = 0) -> Device:
    """The GPU of that number; the same object for the same number, kept until the process ends.

    Raises:
        BackendUnavailable: If pycuda, the driver or a GPU is missing or broken.
        ConfigError: If there is no GPU of that number.
    """
    with _lock:
        if index not in _devices:
            driver = load_driver()
            count = driver.Device.count()
            if not 0 <= index < count:
                expected = "0" if count == 1 else f"0 to {count - 1}"
                raise ConfigError(f"there is no GPU {index}", expected=expected, hint="see nvidia-smi -L")
            _devices[index] = Device(driver, index)
        return _devices[index]


class DeviceBuffer:
    """Memory of a GPU for one tensor: grown when needed, else kept."""

    def __init__(self, device: Device, name: str, size_bytes: int | None = None) -> None:
        self._device = device
        self._name = name
        self._memory: Any = None
        self.capacity = 0
        if size_bytes is not None:
            self.reserve(size_bytes)

    @property
    def address(self) -> int:
        """Where it is; 0 before memory is reserved and after it is freed."""
        return int(self._memory) if self._memory is not None else 0

    def reserve(self, size_bytes: int) -> None:
        """Make room for ``size_bytes``; the contents are lost and the address changes if there was not enough.

        Raises:
            MeasurementError: If the GPU has not enough memory, with the tensor, the bytes needed and those free.
        """
        if self._memory is not None and size_bytes <= self.capacity:
            return
        driver = self._device.driver
        self.free()
        with self._device.active():
            try:
                self._memory = driver.mem_alloc(max(size_bytes, 1))  # nothing is still an address for TensorRT
            except driver.MemoryError as cause:
                raise _out_of_memory(self._name, size_bytes, self._device) from cause
            except driver.Error as cause:
                raise MeasurementError(
                    f"no memory for tensor {self._name!r}", got=first_line(cause), expected=f"{size_bytes:,} bytes"
                ) from cause
        self.capacity = size_bytes

    def free(self) -> None:
        """Give the memory back; may be called again."""
        memory, self._memory, self.capacity = self._memory, None, 0
        if memory is not None:
            with self._device.active():
                memory.free()


class PinnedBuffer:
    """Page-locked host memory for one tensor, which the GPU copies from and to by itself: grown when needed."""

    def __init__(self, device: Device, name: str, size_bytes: int | None = None) -> None:
        self._device = device
        self._name = name
        self._memory: Bytes | None = None
        if size_bytes is not None:
            self.reserve(size_bytes)

    @property
    def address(self) -> int:
        """Where it is; 0 before memory is reserved and after it is freed."""
        return int(self._memory.ctypes.data) if self._memory is not None else 0

    def reserve(self, size_bytes: int) -> None:
        """Make room for ``size_bytes``; the contents are lost if there was not enough.

        Raises:
            MeasurementError: If the system refuses to lock so much memory.
        """
        if self._memory is not None and size_bytes <= len(self._memory):
            return
        driver = self._device.driver
        self.free()
        with self._device.active():
            try:
                self._memory = driver.pagelocked_empty(max(size_bytes, 1), np.uint8)
            except driver.Error as cause:
                raise MeasurementError(
                    f"no page-locked host memory for tensor {self._name!r}",
                    got=first_line(cause),
                    expected=f"{size_bytes:,} bytes",
                    hint="use smaller batches, or raise the limit of locked memory (ulimit -l)",
                ) from cause

    def bytes(self, size_bytes: int) -> Bytes:
        """The first ``size_bytes``, as they are; dangling once it grows or is freed."""
        if self._memory is None:
            raise MeasurementError(f"the host memory of tensor {self._name!r} is freed already")
        return self._memory[:size_bytes]

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Its first bytes as an array; dangling once it grows or is freed, so copy what leaves the engine."""
        return self.bytes(byte_count(shape, dtype)).view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back; may be called again."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with self._device.active():
                allocation: Any = memory.base
                allocation.free()


class PinnedStaging:
    """Device copies of host arrays by name, through page-locked memory; see `calibrators.tensorrt.DeviceStaging`.

    Freed when it is closed, collected, or when the process ends.
    """

    def __init__(self, device: Device | None = None) -> None:
        """Stage on ``device``, the first GPU where none is given.

        Raises:
            BackendUnavailable: If there is no GPU to stage on.
        """
        self._device = device or open_device()
        self._buffers: dict[str, tuple[PinnedBuffer, DeviceBuffer]] = {}
        self._release = weakref.finalize(self, _free_pairs, self._buffers)

    def upload(self, name: str, array: NDArray[Any]) -> int:
        """Copy an array to the device buffer of that name, and wait until it is there.

        Args:
            name: Tensor name; its buffer is grown as needed and kept.
            array: Any dtype and strides; the device gets it in C order.

        Returns:
            Device address, above 0; it holds until the next upload under the name or the end.

        Raises:
            MeasurementError: If there is not enough memory, or the copy fails.
        """
        if not self._release.alive:
            raise MeasurementError(f"staging of tensor {name!r} after the end", expected="an upload before close()")
        size = array.nbytes
        if name not in self._buffers:
            self._buffers[name] = (PinnedBuffer(self._device, name), DeviceBuffer(self._device, name))
        pinned, buffer = self._buffers[name]
        pinned.reserve(size)
        buffer.reserve(size)
        pinned.view(array.shape, array.dtype)[...] = array
        driver = self._device.driver
        with self._device.active(), cuda_errors(driver, f"tensor {name!r} could not be copied to the GPU"):
            driver.memcpy_htod(buffer.address, pinned.bytes(max(size, 1)))  # waits: returns when the copy is done
        return buffer.address

    def close(self) -> None:
        """Free all buffers; may be called again."""
        self._release()

    def __enter__(self) -> PinnedStaging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def byte_count(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of a dense array."""
    size: int = np.prod(shape, dtype=np.int64).item() * dtype.itemsize
    return size


def _free_pairs(buffers: dict[str, tuple[PinnedBuffer, DeviceBuffer]]) -> None:
    while buffers:
        for buffer in buffers.popitem()[1]:
            buffer.free()


def _out_of_memory(name: str, size_bytes: int, device: Device) -> MeasurementError:
    return MeasurementError(
        f"tensor {name!r} does not fit into the memory of {device.facts.name}",
        got=f"{device.free_bytes():,} bytes free",
        expected=f"{size_bytes:,} bytes",
        hint="end other programs on the GPU, use fewer contexts, or build with a smaller largest shape (--shapes)",
    )


def _cuda_version(number: int) -> str:
    """``13.0`` for 13000."""
    return f"{number // 1000}.{number % 1000 // 10}"
