"""Inputs and outputs of an engine: names, types, ranges of shapes, and whether given arrays fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from quantlab.engines.protocol import Arrays
from quantlab.engines.record import Profile
from quantlab.errors import MeasurementError

_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: Tensor name.
        shape: Sizes; None where they vary.
        dtype: NumPy type, with those of ml_dtypes for bfloat16 and FP8.
        on_host: Whether TensorRT reads or writes it in host memory (sizes that decide about shapes).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """What an engine takes and gives.

    Attributes:
        engine: Its name, for errors.
        inputs: In the engine's order.
        outputs: In the engine's order.
        profiles: Ranges of shapes by input, one mapping a profile; at least one.
    """

    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Mapping[str, Profile], ...]

    def check(self, arrays: Arrays) -> None:
        """Refuse arrays whose names, types or numbers of axes are not the engine's.

        Raises:
            MeasurementError: With the tensor by name.
        """
        known = {spec.name: spec for spec in self.inputs}
        for wrong, text in (
            ([name for name in known if name not in arrays], "is missing"),
            ([name for name in arrays if name not in known], "is not one of its inputs"),
        ):
            if wrong:
                what = f"{self.engine}: input {', '.join(map(repr, wrong))} {text}"
                raise MeasurementError(what, got=", ".join(arrays) or "no inputs", expected=", ".join(known))
        for name, spec in known.items():
            array = arrays[name]
            if array.dtype != spec.dtype:
                raise MeasurementError(
                    f"{self.engine}: input {name!r} has the wrong type",
                    got=array.dtype.name,
                    expected=spec.dtype.name,
                    hint=f"convert it with astype({spec.dtype.name!r})",
                )
            if array.ndim != len(spec.shape):
                raise MeasurementError(
                    f"{self.engine}: input {name!r} has {array.ndim} axes",
                    got=shape_text(array.shape),
                    expected=shape_text(spec.shape),
                )

    def choose(self, shapes: Mapping[str, Shape]) -> int:
        """The profile that takes these shapes; among several the one whose optimum is nearest in size.

        Args:
            shapes: By input name, of the right number of axes.

        Raises:
            MeasurementError: If none does, with the tensors by name, what is allowed, and the flag to build it with.
        """
        fitting = [index for index in range(len(self.profiles)) if not self._misfits(index, shapes)]
        if not fitting:
            raise self._no_profile(shapes)
        return min(fitting, key=lambda index: _distance(self.profiles[index], shapes))

    def largest(self, index: int) -> dict[str, Shape]:
        """The largest shapes of a profile, by input name."""
        return {name: profile.maximum for name, profile in self.profiles[index].items()}

    def _misfits(self, index: int, shapes: Mapping[str, Shape]) -> list[str]:
        return [name for name, profile in self.profiles[index].items() if not _fits(shapes[name], profile)]

    def _no_profile(self, shapes: Mapping[str, Shape]) -> MeasurementError:
        misfits = [self._misfits(index, shapes) for index in range(len(self.profiles))]
        never = [spec.name for spec in self.inputs if all(spec.name in names for names in misfits)]
        named = never or sorted({name for names in misfits for name in names})
        reason = "a shape that it was not built for" if never else "shapes that no one profile takes together"
        ranges = [
            f"{name} {shape_text(profiles[name].minimum)} to {shape_text(profiles[name].maximum)}"
            for name in named
            for profiles in self.profiles
        ]
        flags = []
        for spec in self.inputs:
            profile = self.profiles[0][spec.name]
            low, high = (
                tuple(pick(pair) for pair in zip(shapes[spec.name], bound, strict=True))
                for pick, bound in ((min, profile.minimum), (max, profile.maximum))
            )
            if low != high:
                flags.append(f"--shapes {spec.name}:{Profile(low, profile.optimum, high)}")
        return MeasurementError(
            f"{self.engine}: input {', '.join(map(repr, named))} has {reason}",
            got=", ".join(f"{name} {shape_text(shapes[name])}" for name in named),
            expected=" or ".join(dict.fromkeys(ranges)),
            hint="the model itself fixes that size: export it with a dynamic axis"
            if any(self._fixed(spec, shapes[spec.name]) for spec in self.inputs)
            else f"build it again with {' '.join(flags)}",
        )

    @staticmethod
    def _fixed(spec: TensorSpec, shape: Shape) -> bool:
        """Whether the shape differs from the spec where that does not vary."""
        return any(size not in (None, given) for size, given in zip(spec.shape, shape, strict=True))


def read_interface(module: Any, engine: Any, name: str) -> Interface:
    """Ask a deserialized engine for its inputs and outputs.

    Args:
        module: The TensorRT module.
        engine: Its ``ICudaEngine``.
        name: For errors.

    Raises:
        MeasurementError: If a tensor has a type or a memory format that arrays cannot have.
    """
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(tensor).name
        if kind not in _DTYPES:
            raise MeasurementError(f"{name}: tensor {tensor!r} is of type {kind}", expected=", ".join(_DTYPES))
        layout = engine.get_tensor_format(tensor)
        if layout != module.TensorFormat.LINEAR:
            hint = "build it with plain inputs and outputs (the default)"
            raise MeasurementError(
                f"{name}: tensor {tensor!r} is packed as {layout.name}", expected="LINEAR", hint=hint
            )
        spec = TensorSpec(
            name=tensor,
            shape=tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(tensor)),
            dtype=np.dtype(_DTYPES[kind]),
            on_host=engine.get_tensor_location(tensor) == module.TensorLocation.HOST,
        )
        (inputs if engine.get_tensor_mode(tensor) == module.TensorIOMode.INPUT else outputs).append(spec)
    profiles = tuple(
        {spec.name: _profile(engine, spec.name, index) for spec in inputs}
        for index in range(engine.num_optimization_profiles)
    )
    return Interface(name, tuple(inputs), tuple(outputs), profiles)


def shape_text(shape: tuple[int | None, ...]) -> str:
    """``1x3x?x?``; sizes that vary are question marks."""
    return "x".join("?" if size is None else str(size) for size in shape) or "a single value"


def _profile(engine: Any, name: str, index: int) -> Profile:
    low, middle, high = (tuple(int(size) for size in shape) for shape in engine.get_tensor_profile_shape(name, index))
    return Profile(low, middle, high)


def _fits(shape: Shape, profile: Profile) -> bool:
    bounds = zip(profile.minimum, shape, profile.maximum, strict=True)
    return all(low <= size <= high for low, size, high in bounds)


def _distance(profiles: Mapping[str, Profile], shapes: Mapping[str, Shape]) -> float:
    """How far the sizes are from the optimum: the largest ratio of element counts, as a logarithm."""
    return max(
        (
            abs(math.log(max(math.prod(shapes[name]), 1) / max(math.prod(profile.optimum), 1)))
            for name, profile in profiles.items()
        ),
        default=0.0,
    )
