"""What a TensorRT builder is told besides the graph and its shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quantlab.documents import near_match
from quantlab.engines.tensorrt.profiles import Profiles
from quantlab.errors import ConfigError

LARGEST_OPTIMIZATION_LEVEL = 5

MEMORY_POOLS = (
    "workspace", "dla-managed-sram", "dla-local-dram", "dla-global-dram", "tactic-dram", "tactic-shared-memory",
)  # fmt: skip
"""Memory pools with a limit, as the command line names them."""

HARDWARE_LEVELS = ("none", "ampere-plus", "same-compute-capability")
"""Hardware compatibility levels, as the command line names them."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmg]i?)?b?", re.IGNORECASE)
_CAPABILITY = re.compile(r"current|sm\d{2,3}")


class Typing(StrEnum):
    """Who decides in which precision a layer runs."""

    STRONG = "strong"
    """The types of the graph's tensors."""
    WEAK = "weak"
    """The builder, among the precisions that its flags allow; TensorRT 10 and older."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build; one left at its default is TensorRT's to choose. What a module lacks is refused.

    Attributes:
        profiles: Ranges of shapes asked for; empty for the default (see `profiles.settle_profiles`).
        memory_pools: Limits in bytes by pool, of `MEMORY_POOLS`.
        timing_cache: File of timings to start from; written after a build that succeeded.
        optimization_level: 0 to 5.
        version_compatible: Whether later versions of the library may load the engine.
        hardware_compatibility: One of `HARDWARE_LEVELS`: which other GPUs may run the engine.
        compute_capabilities: GPUs to build for without one, such as ``sm89``; ``current`` for the one that is here.
        dla_core: Deep learning accelerator to run on; what it cannot run goes to the GPU.
        plugins: Shared libraries with operators of the user's own.
        refit: Whether weights can be exchanged in the finished engine.
        strip_plan: Whether the engine is written without the weights that a refit can bring.
        sparse_weights: Whether kernels for weights of 2:4 structured sparsity may be taken.
        typing: Who decides in which precision a layer runs.
        max_aux_streams: Most streams besides the main one.
    """

    profiles: Profiles = ()
    memory_pools: tuple[tuple[str, int], ...] = ()
    timing_cache: Path | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    dla_core: int | None = None
    plugins: tuple[Path, ...] = ()
    refit: bool = False
    strip_plan: bool = False
    sparse_weights: bool = False
    typing: Typing = Typing.STRONG
    max_aux_streams: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one is none that any TensorRT takes.
        """
        _check_range("--optimization-level", self.optimization_level, 0, LARGEST_OPTIMIZATION_LEVEL)
        _check_range("--max-aux-streams", self.max_aux_streams, 0, 128)
        _check_range("--dla-core", self.dla_core, 0, 15)
        pools = [name for name, _ in self.memory_pools]
        for name in pools:
            _check_name("memory pool", name, MEMORY_POOLS)
            if pools.count(name) > 1:
                raise ConfigError(f"the memory pool {name!r} is given two limits")
        if self.hardware_compatibility is not None:
            _check_name("hardware compatibility level", self.hardware_compatibility, HARDWARE_LEVELS)
        for name in self.compute_capabilities:
            if not _CAPABILITY.fullmatch(name):
                raise ConfigError(f"--compute-capability {name!r} is malformed", expected="current, or such as sm89")
        if "current" in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise ConfigError("--compute-capability current stands alone", got=", ".join(self.compute_capabilities))

    def described(self) -> dict[str, str]:
        """What differs from the defaults, in the words of the command line; profiles are recorded elsewhere."""
        words: dict[str, str] = {f"memory-pool {name}": str(limit) for name, limit in self.memory_pools}
        for flag, value in (
            ("timing-cache", self.timing_cache.name if self.timing_cache else None),
            ("optimization-level", self.optimization_level),
            ("hardware-compatibility", self.hardware_compatibility),
            ("compute-capability", ",".join(self.compute_capabilities) or None),
            ("dla-core", self.dla_core),
            ("plugin", ",".join(path.name for path in self.plugins) or None),
            ("max-aux-streams", self.max_aux_streams),
            ("typing", self.typing.value if self.typing is not Typing.STRONG else None),
        ):
            if value is not None:
                words[flag] = str(value)
        for flag, on in (
            ("version-compatible", self.version_compatible),
            ("refit", self.refit),
            ("strip", self.strip_plan),
            ("sparse-weights", self.sparse_weights),
        ):
            if on:
                words[flag] = "yes"
        return words


@dataclass(frozen=True, slots=True)
class BuildFlags:
    """The options as the command line's flags and the recipe's table ``[build.tensorrt]`` state them.

    Attributes:
        workspace: Limit of the memory pool of that name, such as ``2GiB``.
        memory_pool: Limits of other pools, ``POOL:SIZE``.
        timing_cache: File, relative to the recipe.
        optimization_level: 0 to 5.
        version_compatible: See `BuildOptions`; so for the others.
        hardware_compatibility: One of `HARDWARE_LEVELS`.
        compute_capability: List such as ``sm89,sm120``.
        dla_core: Number.
        plugin: Libraries, relative to the recipe.
        refit: Whether weights can be exchanged.
        strip: Whether such weights are left out.
        sparse_weights: Whether kernels for 2:4 sparse weights may be taken.
        typing: Name of a `Typing`.
        max_aux_streams: Number.
    """

    workspace: str | None = None
    memory_pool: tuple[str, ...] = ()
    timing_cache: str | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    compute_capability: str | None = None
    dla_core: int | None = None
    plugin: tuple[str, ...] = ()
    refit: bool = False
    strip: bool = False
    sparse_weights: bool = False
    typing: str = Typing.STRONG.value
    max_aux_streams: int | None = None

    def options(self, profiles: Profiles = (), folder: Path = Path()) -> BuildOptions:
        """Options of a build.

        Args:
            profiles: Ranges of shapes.
            folder: What files are relative to.

        Raises:
            ConfigError: If a value is wrong.
        """
        return BuildOptions(
            profiles=profiles,
            memory_pools=parse_memory_pools(self.memory_pool, self.workspace),
            timing_cache=folder / self.timing_cache if self.timing_cache is not None else None,
            optimization_level=self.optimization_level,
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility,
            compute_capabilities=tuple(part for part in (self.compute_capability or "").split(",") if part),
            dla_core=self.dla_core,
            plugins=tuple(folder / file for file in self.plugin),
            refit=self.refit,
            strip_plan=self.strip,
            sparse_weights=self.sparse_weights,
            typing=parse_typing(self.typing),
            max_aux_streams=self.max_aux_streams,
        )


def parse_size(text: str, flag: str) -> int:
    """Bytes of a size such as ``2GiB``, ``512M`` or ``1048576``.

    Raises:
        ConfigError: If it is malformed or nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found.group(1)) * _UNITS[(found.group(2) or "").lower()]) if found else 0
    if not 0 < size < 2**62:
        raise ConfigError(f"{flag} {text!r} is malformed", expected="a size above 0, such as 2GiB, 512MB or 1048576")
    return size


def parse_memory_pools(texts: tuple[str, ...], workspace: str | None = None) -> tuple[tuple[str, int], ...]:
    """Limits of ``--memory-pool POOL:SIZE`` and ``--workspace SIZE``.

    Raises:
        ConfigError: If one is malformed.
    """
    limits = [("workspace", parse_size(workspace, "--workspace"))] if workspace is not None else []
    for text in texts:
        name, separator, size = text.partition(":")
        if not separator:
            raise ConfigError(f"--memory-pool {text!r} is malformed", expected="POOL:SIZE such as tactic-dram:2GiB")
        limits.append((name, parse_size(size, f"--memory-pool {name}:")))
    return tuple(limits)


def parse_typing(name: str) -> Typing:
    """The typing of that name.

    Raises:
        ConfigError: If there is none.
    """
    _check_name("typing", name, [typing.value for typing in Typing])
    return Typing(name)


def _check_range(flag: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{flag} is out of range", got=value, expected=f"{low} to {high}")


def _check_name(what: str, name: str, known: tuple[str, ...] | list[str]) -> None:
    if name not in known:
        near = near_match(name, known)
        raise ConfigError(
            f"there is no {what} {name!r}",
            expected=", ".join(known),
            hint=f"did you mean {near!r}?" if near else None,
        )
