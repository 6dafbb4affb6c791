"""TensorRT's own objects of one loaded engine, made and let go in the order that TensorRT asks for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlab.engines.cuda import Device
from quantlab.engines.cuda_driver import first_line
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.log import LOGGER, TensorRTLog
from quantlab.engines.tensorrt.slot import GraphMode, Slot
from quantlab.errors import ConfigError, EngineMismatch, MeasurementError
from quantlab.files import is_file, write_bytes


@dataclass(slots=True)
class Native:
    """What must be let go in order: contexts, engine, runtime, memory.

    It does not know the object that uses it, so that it can be released when that is collected or the process ends.

    Attributes:
        device: The GPU.
        log: Receives the messages; outlives the rest.
        runtime: ``IRuntime``.
        engine: ``ICudaEngine``.
        config: ``IRuntimeConfig``, where the module has it.
        cache: ``IRuntimeCache``: compiled kernels; where the module has it and it is wanted.
        slots: Contexts with their buffers.
        specializes: Whether kernels are compiled for each set of shapes.
    """

    device: Device
    log: TensorRTLog
    runtime: Any = None
    engine: Any = None
    config: Any = None
    cache: Any = None
    slots: list[Slot] = field(default_factory=list)
    specializes: bool = False

    def release(self) -> None:
        """Let go of everything; may be called again."""
        slots = list(self.slots)
        self.slots.clear()
        with self.device.active():
            for slot in slots:
                slot.drop_context()
            self.config = self.cache = None
            self.engine = None
            self.runtime = None
            for slot in slots:
                slot.free()


def deserialize(native: Native, flavour: Flavour, data: bytes, name: str) -> None:
    """Open a serialized engine.

    Raises:
        EngineMismatch: If the library refuses it, with its reason.
        MeasurementError: If memory is short.
    """
    native.log.clear()
    cause: Exception | None = None
    try:
        native.engine = native.runtime.deserialize_cuda_engine(data)
    except Exception as error:  # the binding raises what the library throws
        cause = error
    if native.engine is not None:
        return
    errors = native.log.errors
    got = errors[0] if errors else first_line(cause) if cause is not None else "no reason given"
    if any("out of memory" in line.lower() or "allocation" in line.lower() for line in errors):
        free = f"{native.device.free_bytes():,} bytes free"
        raise MeasurementError(
            f"engine {name} does not fit into the memory of {native.device.facts.name}", got=f"{got}; {free}"
        ) from cause
    raise EngineMismatch(
        f"{flavour.product} cannot open engine {name}",
        got=got,
        expected="a whole engine of this version, for this GPU",
        hint="build it again here with quantlab build",
    ) from cause


def configure(
    native: Native, flavour: Flavour, graphs: GraphMode, cache: Path | None, *, specialize: bool = True
) -> None:
    """Make the runtime configuration of a library that compiles kernels at run time (TensorRT-RTX).

    Shape-specialized kernels are compiled before the run that needs them, not beside it: kernels that change while a
    model runs would change its results in the last digits and spoil timings. Without `specialize` there are none: one
    set of kernels runs every shape, many times slower for some models.

    Raises:
        ConfigError: If a cache or the library's graphs are wanted from a library that has none.
    """
    module = flavour.module
    if not hasattr(native.engine, "create_runtime_config") or not hasattr(module, "CudaGraphStrategy"):
        if graphs is GraphMode.RUNTIME or cache is not None:
            wanted = "a runtime cache" if cache is not None else "graphs of the library's own"
            raise ConfigError(f"{flavour.product} has no {wanted}", hint="only TensorRT-RTX compiles at run time")
        return
    native.config = native.engine.create_runtime_config()
    strategy = module.CudaGraphStrategy
    native.config.cuda_graph_strategy = (
        strategy.WHOLE_GRAPH_CAPTURE if graphs is GraphMode.RUNTIME else strategy.DISABLED
    )
    specialization = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is not None:
        chosen = specialization.EAGER if specialize else specialization.NONE
        native.config.dynamic_shapes_kernel_specialization_strategy = chosen
        native.specializes = specialize
    if cache is None:
        return
    native.cache = native.config.create_runtime_cache()
    if is_file(cache):
        accepted = False
        with contextlib.suppress(Exception):  # a damaged file is one that was not accepted
            accepted = bool(native.cache.deserialize(cache.read_bytes()))
        if not accepted:
            LOGGER.warning("%s is not used: it is of another GPU, driver or version, or damaged", cache)
    native.config.set_runtime_cache(native.cache)


def save_cache(native: Native, path: Path) -> None:
    """Write the compiled kernels, for the next time.

    Raises:
        MeasurementError: If there is no cache, because none was asked for.
        OutputError: If the file cannot be written.
    """
    if native.cache is None:
        raise MeasurementError("there is no runtime cache to save", hint="open the engine with runtime_cache")
    with native.device.active():
        data = bytes(memoryview(native.cache.serialize()))
    write_bytes(path, data)


def new_context(native: Native, name: str) -> Any:
    """A new execution context.

    Raises:
        MeasurementError: If TensorRT makes none: mostly for lack of memory.
    """
    native.log.clear()
    cause: Exception | None = None
    context = None
    try:
        context = native.engine.create_execution_context(*([native.config] if native.config is not None else []))
    except Exception as error:
        cause = error
    if context is None:
        errors = native.log.errors
        raise MeasurementError(
            f"{name}: no execution context could be made",
            got=errors[0] if errors else first_line(cause) if cause is not None else None,
            expected=f"memory for its activations; {native.device.free_bytes():,} bytes are free",
            hint="use fewer contexts, or end other programs on the GPU",
        ) from cause
    return context
