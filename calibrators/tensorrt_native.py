"""What touches TensorRT's module: subclasses of its calibrators, its builder's configuration, its network.

The module is always a parameter. It is asked for what it has, never for its version.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.calibrators.tensorrt_feed import DataSurvey, check_covered
from quantlab.datasets.inputs import format_shape
from quantlab.errors import BackendUnavailable, ConfigError, DataError, EngineBuildError, ModelError

BATCH_SIZE = 1
"""What ``get_batch_size`` says. It belongs to networks with an implicit batch axis, which TensorRT 10 has no more and
the ONNX parser never made. In all others the batch is part of the shape, and NVIDIA's advice is to say 1."""


@dataclass(frozen=True, slots=True)
class LegacyOptions:
    """What `Algorithm.LEGACY` asks its user for; the defaults are those of NVIDIA's sample for BERT.

    Attributes:
        quantile: Share of the values that the maximum of a region covers, 0 to 1.
        regression_cutoff: Fraction of the maximum at which a regression cuts off, 0 to 1.

    Raises:
        ConfigError: If one of them is not in 0 to 1.
    """

    quantile: float = 0.9999
    regression_cutoff: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("quantile", self.quantile), ("regression_cutoff", self.regression_cutoff)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} of the legacy calibrator is wrong", got=value, expected="0 to 1")


DEFAULT_LEGACY = LegacyOptions()


class Callbacks(Protocol):
    """Where a native calibrator passes its calls on to; none of them raises."""

    def read_cache(self) -> bytes | None:
        """A cache, or None."""
        ...

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """Device addresses in the order of ``names``, or None at the end."""
        ...

    def write_cache(self, cache: memoryview) -> None:
        """Take a cache whose memory is TensorRT's."""
        ...


def require_calibrators(module: Any, algorithm: Algorithm) -> None:
    """Refuse a module without the calibrator class.

    Raises:
        BackendUnavailable: Saying what to use in its place.
    """
    if not hasattr(module, algorithm.calibrator):
        name = f"{getattr(module, '__name__', 'the module')} {getattr(module, '__version__', '')}".strip()
        raise BackendUnavailable(
            "this TensorRT cannot calibrate",
            got=f"{name} has no {algorithm.calibrator}",
            expected="TensorRT 10 or earlier: TensorRT 11 and TensorRT-RTX have no calibrators",
            hint="build the Q/DQ model that quantlab calibrate writes; convert-cache makes one of a cache",
        )


@contextmanager
def _deprecated() -> Iterator[None]:
    """Let TensorRT 10 warn of what TensorRT 11 has no more, in silence.

    Its binding goes on after a warning that the user's filters make an error, and Python then raises `SystemError`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def make_native(module: Any, algorithm: Algorithm, legacy: LegacyOptions, callbacks: Callbacks) -> Any:
    """An instance of a subclass of the module's class for the algorithm."""
    require_calibrators(module, algorithm)
    base = getattr(module, algorithm.calibrator)

    class Native(base):  # type: ignore[misc, valid-type]  # the base class is known at run time only
        def __init__(self) -> None:
            base.__init__(self)  # not super(): the binding wants its own, and crashes without

        def get_batch_size(self) -> int:
            return BATCH_SIZE

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            return callbacks.next_batch(names)

        def read_calibration_cache(self) -> bytes | None:
            return callbacks.read_cache()

        def write_calibration_cache(self, cache: memoryview) -> None:
            callbacks.write_cache(cache)

    if algorithm is not Algorithm.LEGACY:
        with _deprecated():
            return Native()

    class NativeLegacy(Native):
        def get_quantile(self) -> float:
            return legacy.quantile

        def get_regression_cutoff(self) -> float:
            return legacy.regression_cutoff

        def read_histogram_cache(self, length: int) -> None:
            """No histograms are kept: they are those of one set of data and would outlive it."""

        def write_histogram_cache(self, pointer: object, length: int) -> None:
            """See `read_histogram_cache`."""

    with _deprecated():
        return NativeLegacy()


def configure_calibration(
    module: Any, config: Any, builder: Any, network: Any, native: Any, found: DataSurvey | None
) -> None:
    """See `Calibrator.configure`; ``found`` is None without data."""
    if found is not None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        check_covered([tensor.name for tensor in inputs], found.shapes)
        for tensor in inputs:
            _check_input(module, tensor, found)
        if any(-1 in tuple(tensor.shape) for tensor in inputs):
            _set_profile(config, builder, inputs, found)
    with _deprecated():
        config.set_flag(module.BuilderFlag.INT8)
        config.int8_calibrator = native


def _check_input(module: Any, tensor: Any, found: DataSurvey) -> None:
    name, shape, given = tensor.name, tuple(tensor.shape), found.shapes[tensor.name]
    if tensor.is_shape_tensor:
        raise ModelError(
            f"input {name!r} holds a shape, and TensorRT's calibrators are not given such inputs",
            hint="make the shape a constant of the model, or build the Q/DQ model",
        )
    if len(shape) != len(given) or any(want not in (-1, got) for want, got in zip(shape, given, strict=True)):
        raise DataError(
            f"calibration batches do not fit input {name!r} of the network",
            got=format_shape(given),
            expected=format_shape(tuple(None if size == -1 else size for size in shape)),
            hint="the first size is the batch: use the network's, if it is fixed",
        )
    exact = {getattr(module.DataType, kind.upper(), None): kind for kind in ("int32", "int64", "bool")}
    expected = exact.get(tensor.dtype, "float32")
    if found.dtypes[name] != expected:
        raise DataError(
            f"calibration data for input {name!r} have the wrong dtype",
            got=found.dtypes[name],
            expected=f"{expected}, as TensorRT reads it for an input of type {tensor.dtype}",
        )


def _set_profile(config: Any, builder: Any, inputs: Sequence[Any], found: DataSurvey) -> None:
    """TensorRT replaces MIN and MAX of a calibration profile by OPT, so they are all the same from the start."""
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        shape = found.shapes[tensor.name]
        profile.set_shape(tensor.name, shape, shape, shape)
    with _deprecated():
        taken = config.set_calibration_profile(profile)
    if not taken:
        shapes = ", ".join(f"{name} {format_shape(shape)}" for name, shape in found.shapes.items())
        raise EngineBuildError("TensorRT refuses the calibration profile", got=shapes, hint="read its log")


def network_tensors(module: Any, network: Any) -> tuple[str, ...]:
    """Names of the floating-point tensors of a network that can have a range: its inputs and what its layers give."""

    def every() -> Iterator[Any]:
        for index in range(network.num_inputs):
            yield network.get_input(index)
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            for output in range(layer.num_outputs):
                yield layer.get_output(output)

    floats = (module.DataType.FLOAT, module.DataType.HALF)
    return tuple(dict.fromkeys(tensor.name for tensor in every() if tensor is not None and tensor.dtype in floats))


__all__ = [
    "BATCH_SIZE",
    "DEFAULT_LEGACY",
    "Callbacks",
    "LegacyOptions",
    "configure_calibration",
    "make_native",
    "network_tensors",
    "require_calibrators",
]
