"""One execution context with its stream and its memory: what a single thread runs an engine with."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.engines.cuda import Device, DeviceBuffer, PinnedBuffer, byte_count
from quantlab.engines.cuda_driver import cuda_errors, first_line
from quantlab.engines.cuda_graph import CudaGraph
from quantlab.engines.protocol import Arrays
from quantlab.engines.tensorrt.interface import Interface, Shape, TensorSpec, shape_text
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.errors import MeasurementError, QuantlabError


class GraphMode(StrEnum):
    """Who launches an engine as a CUDA graph."""

    OFF = "off"
    """Nobody: every kernel is enqueued."""
    CAPTURED = "captured"
    """We do: the engine's work is captured at the first run of each set of shapes."""
    RUNTIME = "runtime"
    """The library does (TensorRT-RTX)."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all slots of an engine have in common.

    Attributes:
        module: The TensorRT module.
        device: The GPU.
        interface: Inputs and outputs.
        log: TensorRT's log.
        captures: Whether runs are captured as CUDA graphs.
    """

    module: Any
    device: Device
    interface: Interface
    log: TensorRTLog
    captures: bool = False

    def failed(self, what: str, cause: BaseException | None = None) -> MeasurementError:
        """An error with TensorRT's last words."""
        errors = self.log.errors
        got = errors[-1] if errors else first_line(cause) if cause is not None else None
        return MeasurementError(f"{self.interface.engine}: {what}", got=got)


@dataclass(frozen=True, slots=True)
class Copy:
    """Arguments of a copy between host and device.

    Attributes:
        host: Bytes of page-locked memory.
        address: Of the device memory.
    """

    host: NDArray[np.uint8]
    address: int


class Slot:
    """A context, its stream and its buffers; for one thread at a time, with the GPU's context active."""

    def __init__(self, shared: Shared, context: Any) -> None:
        self.context = context
        self._shared = shared
        self._shapes: dict[str, Shape] = {}
        self._settled: tuple[tuple[str, int, Shape], ...] = ()
        self._graph: CudaGraph | None = None
        self._host: dict[str, PinnedBuffer] = {}
        self._memory: dict[str, DeviceBuffer] = {}
        self._allocators: dict[str, Any] = {}
        self._release = weakref.finalize(self, _free, self._memory, self._host)
        self._release.atexit = False  # the engine frees its slots then, after its contexts
        self.stream = shared.device.stream()
        interface = shared.interface
        for spec in (*interface.inputs, *interface.outputs):
            self._host[spec.name] = PinnedBuffer(shared.device, spec.name)
            if not spec.on_host:
                self._memory[spec.name] = DeviceBuffer(shared.device, spec.name)

    def reserve_largest(self) -> None:
        """Take memory for the largest shapes of every profile, so that no later run takes any.

        Outputs whose shapes depend on data, or on the contents of inputs, are left to the runs.

        Raises:
            MeasurementError: If memory is short.
        """
        interface = self._shared.interface
        specs = (*interface.inputs, *interface.outputs)
        sizes = dict.fromkeys((spec.name for spec in specs), 0)
        for index in range(len(interface.profiles)):
            shapes = interface.largest(index)
            if not any(spec.on_host for spec in interface.inputs):
                self._set_profile(index)
                self._set_shapes(shapes)
                shapes |= {spec.name: self._shape(spec) for spec in interface.outputs}
            for spec in specs:
                shape = shapes.get(spec.name)
                if shape is not None and min(shape, default=0) >= 0:
                    sizes[spec.name] = max(sizes[spec.name], byte_count(shape, spec.dtype))
        for spec in specs:
            self._reserve(spec, sizes[spec.name])

    @property
    def data_dependent(self) -> bool:
        """Whether the shape of an output is known only after a run."""
        return bool(self._allocators)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Run one batch and wait for it.

        Args:
            inputs: Checked arrays.

        Returns:
            Copies of the outputs.

        Raises:
            MeasurementError: If no profile takes the shapes, memory is short, or TensorRT or the driver fails.
        """
        self.settle(inputs)
        driver = self._shared.device.driver
        with cuda_errors(driver, f"{self._shared.interface.engine} failed to run"):
            try:
                for copy in self.uploads():
                    driver.memcpy_htod_async(copy.address, copy.host, self.stream)
                self._launch()
                shapes = self.output_shapes()
                for copy in self.downloads(shapes):
                    driver.memcpy_dtoh_async(copy.host, copy.address, self.stream)
            finally:
                self.stream.synchronize()  # after an error, too: nothing may be under way in memory that is reused
        return {
            spec.name: self._host[spec.name].view(shapes[spec.name], spec.dtype).copy()
            for spec in self._shared.interface.outputs
        }

    def settle(self, inputs: Arrays) -> None:
        """Choose the profile, set shapes and addresses, and bring the inputs into page-locked memory.

        Raises:
            MeasurementError: If no profile takes the shapes, or memory is short.
        """
        interface = self._shared.interface
        shapes = {spec.name: tuple(inputs[spec.name].shape) for spec in interface.inputs}
        index = interface.choose(shapes)
        settled, self._shapes = self._shapes, {}  # what fails below must not leave addresses that are gone
        for spec in interface.inputs:
            self._reserve(spec, byte_count(shapes[spec.name], spec.dtype))
            self._host[spec.name].view(shapes[spec.name], spec.dtype)[...] = inputs[spec.name]
        self._set_profile(index)
        if shapes == settled and not any(spec.on_host for spec in interface.inputs):
            self._shapes = settled
            return
        self._set_shapes(shapes)
        for spec in interface.inputs:
            self._set_address(spec)
        self._infer()
        for spec in interface.outputs:
            shape = self._shape(spec)
            if min(shape, default=0) < 0:
                self._set_allocator(spec)
            else:
                self._reserve(spec, byte_count(shape, spec.dtype))
                self._set_address(spec)
        self._shapes = shapes

    def enqueue(self, stream: int) -> None:
        """Put one execution on a stream.

        Raises:
            MeasurementError: If TensorRT refuses.
        """
        try:
            done = self.context.execute_async_v3(stream)
        except Exception as cause:  # the binding raises RuntimeError; a plugin of the user's may raise anything
            raise self._shared.failed("failed to run", cause) from cause
        if not done:
            for allocator in self._allocators.values():
                if allocator.error is not None:
                    raise allocator.error
            raise self._shared.failed("failed to run")

    def capture(self, stream: int) -> CudaGraph:
        """The settled execution as a CUDA graph; it must have been executed once.

        Raises:
            MeasurementError: If it cannot be captured.
        """
        if self.data_dependent:
            raise MeasurementError(
                f"{self._shared.interface.engine} cannot be captured as a CUDA graph",
                got=f"shapes of {', '.join(map(repr, self._allocators))} that data decide",
                hint="run it without a CUDA graph",
            )
        return CudaGraph(stream, lambda: self.enqueue(stream))

    def uploads(self) -> list[Copy]:
        """Copies of the settled inputs."""
        return self._copies(self._shared.interface.inputs, self._shapes)

    def downloads(self, shapes: Mapping[str, Shape]) -> list[Copy]:
        """Copies of the outputs, of these shapes."""
        return self._copies(self._shared.interface.outputs, shapes)

    def output_shapes(self) -> dict[str, Shape]:
        """Shapes of the outputs, those that data decide as of the last execution; room is made on the host.

        Raises:
            MeasurementError: If memory is short.
        """
        shapes = {}
        for spec in self._shared.interface.outputs:
            allocator = self._allocators.get(spec.name)
            shapes[spec.name] = self._shape(spec) if allocator is None else allocator.shape
            self._host[spec.name].reserve(byte_count(shapes[spec.name], spec.dtype))
        return shapes

    def drop_context(self) -> None:
        """Let go of TensorRT's objects and the stream; call it before the engine is let go."""
        if self._graph is not None:
            self._graph.close()
        self._graph = self.context = self.stream = None
        self._allocators.clear()

    def free(self) -> None:
        """Give the memory back; after `drop_context`."""
        self._release()

    def _launch(self) -> None:
        """Execute the settled work: enqueued, or as a graph where graphs are wanted."""
        handle = self.stream.handle
        if not self._shared.captures or self.data_dependent:
            self.enqueue(handle)
            return
        settled = self._settlement()
        if self._graph is None or settled != self._settled:
            self.enqueue(handle)  # a first execution allocates, which a capture must not
            self.stream.synchronize()
            if self._graph is not None:
                self._graph.close()
            self._graph = None
            self._graph = self.capture(handle)
            self._settled = settled
        self._graph.launch(handle)

    def _settlement(self) -> tuple[tuple[str, int, Shape], ...]:
        """Addresses and shapes that a captured graph holds on to; the profile follows from the shapes."""
        shapes = {**self._shapes, **{spec.name: self._shape(spec) for spec in self._shared.interface.outputs}}
        return tuple((name, self._address(name), shape) for name, shape in shapes.items())

    def _copies(self, specs: tuple[TensorSpec, ...], shapes: Mapping[str, Shape]) -> list[Copy]:
        sizes = [(spec, byte_count(shapes[spec.name], spec.dtype)) for spec in specs if not spec.on_host]
        return [
            Copy(self._host[spec.name].bytes(size), self._memory[spec.name].address) for spec, size in sizes if size > 0
        ]

    def _address(self, name: str) -> int:
        return (self._memory[name] if name in self._memory else self._host[name]).address

    def _reserve(self, spec: TensorSpec, size_bytes: int) -> None:
        self._host[spec.name].reserve(size_bytes)
        if not spec.on_host:
            self._memory[spec.name].reserve(size_bytes)

    def _shape(self, spec: TensorSpec) -> Shape:
        return tuple(int(size) for size in self.context.get_tensor_shape(spec.name))

    def _set_profile(self, index: int) -> None:
        if self.context.active_optimization_profile == index:
            return
        self._shapes = {}
        if not self._call(self.context.set_optimization_profile_async, index, self.stream.handle):
            raise self._shared.failed(f"cannot switch to optimization profile {index}")
        self.stream.synchronize()

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Forgets what was settled: it holds again when everything else is set, too."""
        self._shapes, self._settled = {}, ()
        for name, shape in shapes.items():
            if not self._call(self.context.set_input_shape, name, shape):
                raise self._shared.failed(f"input {name!r} cannot have the shape {shape_text(shape)}")

    def _set_address(self, spec: TensorSpec) -> None:
        if not self._call(self.context.set_tensor_address, spec.name, self._address(spec.name)):
            raise self._shared.failed(f"no address could be set for tensor {spec.name!r}")

    def _set_allocator(self, spec: TensorSpec) -> None:
        if spec.name in self._allocators:
            return
        if spec.on_host:
            raise self._shared.failed(f"output {spec.name!r} is in host memory and of a shape that data decide")
        allocator = _output_allocator(self._shared.module, self._memory[spec.name])
        if not self._call(self.context.set_output_allocator, spec.name, allocator):
            raise self._shared.failed(f"no memory could be offered for output {spec.name!r}")
        self._allocators[spec.name] = allocator

    def _infer(self) -> None:
        """Have TensorRT infer the output shapes.

        Raises:
            MeasurementError: If it cannot, with the tensors that it lacks.
        """
        try:
            lacking = self.context.infer_shapes()
        except Exception as cause:
            raise self._shared.failed("shapes of the outputs cannot be inferred", cause) from cause
        if lacking:
            raise self._shared.failed(f"not enough is known of {', '.join(map(repr, lacking))}")

    def _call(self, method: Callable[..., Any], *arguments: Any) -> bool:
        try:
            return bool(method(*arguments))
        except Exception as cause:  # the binding raises RuntimeError or ValueError
            raise self._shared.failed("was refused by TensorRT", cause) from cause


def _output_allocator(module: Any, buffer: DeviceBuffer) -> Any:
    """An ``IOutputAllocator`` over one buffer; exceptions are kept, for they must not pass through the binding."""

    class Allocator(module.IOutputAllocator):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            module.IOutputAllocator.__init__(self)
            self.shape: Shape = ()
            self.error: QuantlabError | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            self.error = None
            try:
                buffer.reserve(size)
            except QuantlabError as error:
                self.error = error
                return 0
            return buffer.address  # aligned to 256 bytes, which is more than TensorRT asks for

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(int(size) for size in shape)

    return Allocator()


def _free(memory: dict[str, DeviceBuffer], host: dict[str, PinnedBuffer]) -> None:
    for buffer in memory.values():
        buffer.free()
    for pinned in host.values():
        pinned.free()
