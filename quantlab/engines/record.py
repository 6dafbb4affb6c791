"""What the sidecar of a compiled engine records of its making: an engine belongs to a library, a GPU and a driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes of one input that an engine takes, batch first.

    Attributes:
        minimum: Smallest.
        optimum: The one that kernels were chosen for.
        maximum: Largest.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.minimum, self.optimum, self.maximum))


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The making of a compiled engine.

    Attributes:
        flavour: Backend name, ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of the library that built it.
        gpu: Name of the GPU it was built on; None if it was built without one.
        compute_capability: Of that GPU, such as ``9.0``.
        driver: Version of the NVIDIA driver.
        cuda: Highest CUDA version that the driver supports, such as ``13.0``.
        options: What the builder was told, in the words of the command line.
        profiles: Shapes by input, one mapping a profile.
        onnx_sha256: Hash of the graph given to the parser; empty for a network made by Python code.
        probe: File beside the engine with probe inputs and reference outputs; None if there is none.
        probe_sha256: Hash of that file.
        layers: What the engine inspector said, in lines for people; empty if the engine has not been run.
        stated: What the types of the compiled graph say of the precision, in words; empty if that is not known.
    """

    flavour: str
    version: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    options: Mapping[str, str]
    profiles: tuple[Mapping[str, Profile], ...]
    onnx_sha256: str
    probe: str | None = None
    probe_sha256: str | None = None
    layers: tuple[str, ...] = field(default=())
    stated: str = ""
