"""TensorRT's runtime over NumPy and the fake driver: what it insists on, it insists on.

Shapes outside the active profile, missing addresses, buffers that are too small, a context used by two threads at
once, and calls without a current CUDA context are refused or fail the test.
"""

from __future__ import annotations

import enum
import json
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from numpy.typing import NDArray

COMPUTE_MS = 1.0
DEPENDS = -1

Array = NDArray[Any]


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)


NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32, DataType.BOOL: np.bool_}


@dataclass
class FakeTensor:
    shape: tuple[int, ...]
    kind: DataType = DataType.FLOAT
    host: bool = False


@dataclass
class FakeModel:
    """A network.

    Attributes:
        inputs: By name; sizes below zero vary.
        outputs: By name; the shapes are ignored.
        profiles: Shapes by input.
        shapes: Output shapes of input shapes (and of the contents of host inputs); -1 where data decide.
        compute: Outputs of inputs.
        capturable: Whether it can be captured.
    """

    inputs: dict[str, FakeTensor]
    outputs: dict[str, FakeTensor]
    profiles: list[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]
    shapes: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Array]], dict[str, tuple[int, ...]]]
    compute: Callable[[Mapping[str, Array]], dict[str, Array]]
    capturable: bool = True


@dataclass
class State:
    """What a fake module remembers.

    Attributes:
        models: By name; an engine file holds the name.
        fail_enqueue: Message of an enqueue that fails.
    """

    gpu: FakeCuda
    models: dict[str, FakeModel] = field(default_factory=dict)
    fail_enqueue: str | None = None
    deserialized: int = 0
    contexts: int = 0
    validity: tuple[str, int] = ("VALID", 0)
    fail_deserialize: str | None = None
    host_code_allowed: bool = False
    configs: list[Any] = field(default_factory=list)
    caches: list[bytes] = field(default_factory=list)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Base:
    """Of the classes that users derive from; their constructor must be called."""

    def __init__(self) -> None:
        self.initialized = True


class Mode(enum.Enum):
    INPUT, OUTPUT = range(2)


class Place(enum.Enum):
    DEVICE, HOST = range(2)


class Layout(enum.Enum):
    LINEAR, CHW32 = range(2)


class Engine:
    def __init__(self, state: State, model: FakeModel, logger: Any, layout: Layout) -> None:
        state.gpu.need_context("deserialize")
        self.state, self.model, self.logger, self.layout = state, model, logger, layout
        self.tensors = {**model.inputs, **model.outputs}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(model.profiles)
        _watch(self, state.gpu, "engine")

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].kind

    def get_tensor_format(self, name: str) -> Layout:
        return self.layout

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_location(self, name: str) -> Place:
        return Place.HOST if self.tensors[name].host else Place.DEVICE

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.model.inputs else Mode.OUTPUT

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return list(self.model.profiles[index][name])

    def create_execution_context(self, *config: Any) -> Context:
        self.state.configs += config
        return Context(self)

    def create_engine_inspector(self) -> Any:
        class Inspector:
            execution_context: Any = None

            def get_engine_information(inner, form: str) -> str:  # noqa: N805
                assert form == "json"
                assert isinstance(inner.execution_context, Context)
                return json.dumps({"Layers": []})

        return Inspector()


class Context:
    def __init__(self, engine: Engine) -> None:
        engine.state.gpu.need_context("context")
        self.engine, self.state, self.model = engine, engine.state, engine.model
        self.active_optimization_profile = 0
        self.profiler: Any = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.busy = threading.Lock()
        self.settings = 0
        self.executed: set[int] = set()
        self.state.contexts += 1
        _watch(self, engine.state.gpu, "context")

    def error(self, message: str) -> bool:
        self.engine.logger.log(Severity.ERROR, message)
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.state.gpu.need_context("profile")
        self.active_optimization_profile = index
        self.shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.model.profiles[self.active_optimization_profile][name]
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self.error(f"setInputShape: {name} {shape} is outside the profile")
        self.shapes[name] = tuple(shape)
        self.settings += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self.addresses[name] = address
        return address > 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        assert allocator.initialized
        self.allocators[name] = allocator
        return True

    def host_values(self) -> dict[str, Array]:
        found = {}
        for name, tensor in self.model.inputs.items():
            if tensor.host and name in self.addresses:
                size = int(np.prod(self.shapes[name]))
                kind = np.ctypeslib.as_ctypes_type(NUMPY[tensor.kind])
                found[name] = np.ctypeslib.as_array((kind * size).from_address(self.addresses[name]))
        return found

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {**self.shapes, **self.model.shapes(self.shapes, self.host_values())}[name]

    def infer_shapes(self) -> list[str]:
        hosts = [name for name, tensor in self.model.inputs.items() if tensor.host and name not in self.addresses]
        return [name for name in self.model.inputs if name not in self.shapes] + hosts

    def execute_async_v3(self, handle: int) -> bool:
        gpu = self.state.gpu
        gpu.need_context("enqueueV3")
        assert self.busy.acquire(blocking=False), "a context is used by two threads at once"
        try:
            if self.state.fail_enqueue:
                return self.error(self.state.fail_enqueue)
            if missing := [n for n in self.engine.tensors if n not in self.addresses and n not in self.allocators]:
                return self.error(f"no address for {missing}")
            stream = gpu.streams[handle]
            if self.allocators:
                stream.drain()
                return self.execute(dict(self.shapes), dict(self.addresses))
            if stream.captured is not None and self.settings not in self.executed:
                return self.error("operation not permitted when stream is capturing: a first execution allocates")
            shapes, addresses, settings = dict(self.shapes), dict(self.addresses), self.settings
            self.executed.add(settings)

            def work() -> None:
                assert settings == self.settings, "a graph of shapes that were set anew since"
                assert self.execute(shapes, addresses)

            stream.put(work)
            if self.profiler is not None:
                assert self.profiler.initialized
                stream.drain()
                for layer, ms in (("conv", 0.75), ("relu", 0.125), ("conv", 0.25)):
                    self.profiler.report_layer_time(layer, ms)
            return True
        finally:
            self.busy.release()

    def execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> bool:
        gpu, feed = self.state.gpu, self.host_values()
        for name, tensor in self.model.inputs.items():
            if not tensor.host:
                dtype = np.dtype(_numpy(tensor.kind))
                size = int(np.prod(shapes[name])) * dtype.itemsize
                feed[name] = gpu.memory(addresses[name], size).view(dtype).reshape(shapes[name]).copy()
        for name, value in self.model.compute(feed).items():
            address = addresses.get(name)
            if name in self.allocators:
                allocator = self.allocators[name]
                address = allocator.reallocate_output(name, 0, value.nbytes, 256)
                if address == 0:
                    return self.error("output allocator returned nullptr")
                allocator.notify_shape(name, value.shape)
            assert address is not None
            gpu.memory(address, value.nbytes)[:] = np.ascontiguousarray(value).view(np.uint8).ravel()
        gpu.clock_ms += COMPUTE_MS
        return True


def _numpy(kind: DataType) -> Any:
    import ml_dtypes

    return {**NUMPY, DataType.BF16: ml_dtypes.bfloat16, DataType.INT64: np.int64, DataType.INT8: np.int8}[kind]


def _watch(thing: object, gpu: FakeCuda, what: str) -> None:
    weakref.finalize(thing, _gone, gpu, what).atexit = False


def _gone(gpu: FakeCuda, what: str) -> None:
    gpu.need_context(f"the end of a TensorRT {what}")
    gpu.log.append(what)


class RuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = "disabled"
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cache: Any = None

    def create_runtime_cache(self) -> Any:
        class Cache:
            content = b"kernels"

            def deserialize(inner, data: bytes) -> bool:  # noqa: N805
                inner.content = data + b"+"
                return data.startswith(b"kernels")

            def serialize(inner) -> bytes:  # noqa: N805
                return inner.content

        return Cache()

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


def install(
    monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda, *, rtx: bool = False, layout: Layout = Layout.LINEAR
) -> State:
    """Put the fake in the place of ``tensorrt``, or of ``tensorrt_rtx``."""
    state = State(gpu)
    name = "tensorrt_rtx" if rtx else "tensorrt"
    module: Any = ModuleType(name)

    class Runtime:
        engine_header_size = 8

        def __init__(self, logger: Any) -> None:
            gpu.need_context("createInferRuntime")
            self.logger = logger
            _watch(self, gpu, "runtime")

        @property
        def engine_host_code_allowed(self) -> bool:
            return state.host_code_allowed

        @engine_host_code_allowed.setter
        def engine_host_code_allowed(self, value: bool) -> None:
            state.host_code_allowed = value

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            state.deserialized += 1
            model = state.models.get(data.decode("latin-1"))
            if model is None or state.fail_deserialize:
                self.logger.log(Severity.ERROR, state.fail_deserialize or "magic tag does not match")
                return None
            return Engine(state, model, self.logger, layout)

    if rtx:

        class Validity(enum.Enum):
            VALID, SUBOPTIMAL, INVALID = range(3)

        class Diagnostics(enum.IntFlag):
            VERSION_MISMATCH = 1
            UNSUPPORTED_CC = 2

        def get_engine_validity(self: Any, header: bytes) -> tuple[Validity, int]:
            assert len(header) == 8
            return Validity[state.validity[0]], state.validity[1]

        Runtime.get_engine_validity = get_engine_validity  # type: ignore[attr-defined]
        module.EngineValidity, module.EngineInvalidityDiagnostics = Validity, Diagnostics
        module.ComputeCapability = object
        module.CudaGraphStrategy = type("S", (), {"DISABLED": "disabled", "WHOLE_GRAPH_CAPTURE": "whole"})
        module.DynamicShapesKernelSpecializationStrategy = type("K", (), {"EAGER": "eager", "NONE": "none"})
        monkeypatch.setattr(Engine, "create_runtime_config", lambda self: RuntimeConfig(), raising=False)
    module.__version__ = "1.6.1.120" if rtx else "10.16.1.11"
    module.Builder = object
    module.get_plugin_registry = lambda: SimpleNamespace(all_creators=[])
    module.ILogger, module.Runtime = ILogger, Runtime
    module.DataType, module.TensorIOMode, module.TensorLocation, module.TensorFormat = DataType, Mode, Place, Layout
    module.IOutputAllocator = module.IProfiler = Base
    module.LayerInformationFormat = type("F", (), {"JSON": "json"})
    monkeypatch.setitem(sys.modules, name, module)
    return state
