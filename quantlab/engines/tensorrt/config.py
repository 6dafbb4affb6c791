"""The builder's configuration: every option is applied and seen to hold, or refused with the module's own words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.engines.tensorrt.options import BuildOptions
from quantlab.engines.tensorrt.profiles import NetworkInput, Profiles
from quantlab.errors import BackendUnavailable, ConfigError, EngineBuildError
from quantlab.files import is_file, write_bytes

_LARGEST_TIMING_CACHE = 2 << 30
_DOES_NOTHING = re.compile(r"unsupported|not supported|ignored|no-op|no effect|deprecated.*removed", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Session:
    """One builder with its log, in which everything for one engine is made.

    Attributes:
        flavour: The module.
        log: Its messages.
        builder: Its ``Builder``.
    """

    flavour: Flavour
    log: TensorRTLog
    builder: Any

    @classmethod
    def open(cls, flavour: Flavour) -> Session:
        """Make the builder.

        Raises:
            BackendUnavailable: If the module cannot: no GPU, or a driver that is too old.
        """
        log = TensorRTLog(flavour.module)
        try:
            builder = flavour.module.Builder(log.native)
        except Exception as cause:  # the binding raises TypeError where the library gives no object
            got = "; ".join(log.errors) or str(cause).splitlines()[0]
            raise BackendUnavailable(
                f"{flavour.product} cannot make a builder here", got=got, expected="an NVIDIA GPU and its driver",
                hint="run quantlab doctor; --backend tensorrt-rtx builds without a GPU",
            ) from cause  # fmt: skip
        return cls(flavour, log, builder)


@contextlib.contextmanager
def _applying(session: Session, what: str, hint: str | None = None) -> Iterator[None]:
    """Apply one option. What the module says against it, in whichever way it says it, is an error.

    TensorRT answers with a missing attribute, a line in the log, or a warning that the call does nothing.
    """
    session.log.clear()
    product = session.flavour.product
    hint = hint or f"leave {what} out"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield
    except AttributeError as cause:
        raise ConfigError(f"{product} has no {what}", got="no such option in the module", hint=hint) from cause
    except (TypeError, ValueError, OverflowError, RuntimeError) as cause:
        got = "; ".join(session.log.errors) or str(cause).splitlines()[0]
        raise ConfigError(f"{product} refuses {what}", got=got, hint=hint) from cause
    warned = (*session.log.warnings, *(str(one.message) for one in said))
    told = [*session.log.errors, *(text for text in warned if _DOES_NOTHING.search(text))]
    if told:
        raise ConfigError(f"{product} refuses {what}", got="; ".join(told), hint=hint)


def make_config(session: Session, options: BuildOptions, *, tf32: bool, current_gpu: bool) -> Any:
    """Make an ``IBuilderConfig`` with all options but profiles and the timing cache.

    Args:
        session: Builder to configure.
        options: What is asked for.
        tf32: Whether layers of 32-bit floats may run in TF32.
        current_gpu: Whether a GPU is here; a module that builds for named GPUs then builds for it unless told.

    Raises:
        ConfigError: If the module lacks or refuses an option.
    """
    module = session.flavour.module
    config = session.builder.create_builder_config()
    flags = module.BuilderFlag
    with _applying(session, "detailed profiling verbosity"):
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    with _applying(session, "a choice of TF32"):
        config.set_flag(flags.TF32) if tf32 else config.clear_flag(flags.TF32)
    for name, limit in options.memory_pools:
        with _applying(session, f"--memory-pool {name}"):
            pool = getattr(module.MemoryPoolType, name.upper().replace("-", "_"))
            config.set_memory_pool_limit(pool, limit)
    if options.optimization_level is not None:
        with _applying(session, "--optimization-level"):
            config.builder_optimization_level = options.optimization_level
    if options.max_aux_streams is not None:
        with _applying(session, "--max-aux-streams"):
            config.max_aux_streams = options.max_aux_streams
    if options.hardware_compatibility is not None:
        with _applying(session, "--hardware-compatibility"):
            level = options.hardware_compatibility.upper().replace("-", "_")
            config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
    for flag, name, wanted in (
        ("--version-compatible", "VERSION_COMPATIBLE", options.version_compatible),
        ("--refit", "REFIT", options.refit),
        ("--strip", "STRIP_PLAN", options.strip_plan),
        ("--sparse-weights", "SPARSE_WEIGHTS", options.sparse_weights),
    ):
        if wanted:
            with _applying(session, flag):
                config.set_flag(getattr(flags, name))
    _set_compute_capabilities(session, config, options, current_gpu=current_gpu)
    _set_dla(session, config, options)
    return config


def _set_compute_capabilities(session: Session, config: Any, options: BuildOptions, *, current_gpu: bool) -> None:
    asked = options.compute_capabilities
    if not asked and not (current_gpu and session.flavour.builds_without_gpu):
        return
    flag = "--compute-capability"
    if not session.flavour.builds_without_gpu:
        raise ConfigError(
            f"{session.flavour.product} has no {flag}", got="it builds for the GPU that is here",
            hint=f"leave {flag} out, or use --backend tensorrt-rtx",
        )  # fmt: skip
    known = session.flavour.module.ComputeCapability
    names = asked or ("current",)
    if "current" in asked and not current_gpu:
        raise BackendUnavailable(
            f"{flag} current needs a GPU", got="no GPU that can be used here", hint=f"name one, such as {flag} sm89"
        )
    for name in names:
        if not hasattr(known, name.upper()):
            choices = [one.lower() for one in known.__members__ if one not in ("NONE", "CURRENT")]
            raise ConfigError(
                f"{session.flavour.product} cannot build for {name}", expected=", ".join(["current", *choices])
            )
    with _applying(session, flag):
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not config.set_compute_capability(getattr(known, name.upper()), index):
                raise ValueError(f"{name} was not accepted")


def _set_dla(session: Session, config: Any, options: BuildOptions) -> None:
    if options.dla_core is None:
        return
    module, flag = session.flavour.module, "--dla-core"
    cores = int(getattr(session.builder, "num_DLA_cores", 0))
    if options.dla_core >= cores:
        raise ConfigError(
            f"{session.flavour.product} finds no deep learning accelerator number {options.dla_core} here",
            got=f"{cores} of them", hint=f"leave {flag} out; they are in Jetson and Drive modules, with TensorRT 10",
        )  # fmt: skip
    with _applying(session, flag):
        config.default_device_type = module.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(module.BuilderFlag.GPU_FALLBACK)


def add_profiles(session: Session, config: Any, profiles: Profiles, inputs: tuple[NetworkInput, ...]) -> None:
    """Add optimization profiles to a configuration.

    Raises:
        ConfigError: If the module refuses one.
    """
    values = {one.name for one in inputs if one.values}
    for profile in profiles:
        with _applying(session, "a profile of --shapes", "give other --shapes"):
            native = session.builder.create_optimization_profile()
            for name, shapes in profile.items():
                if name in values:
                    native.set_shape_input(name, list(shapes.minimum), list(shapes.optimum), list(shapes.maximum))
                else:
                    native.set_shape(name, shapes.minimum, shapes.optimum, shapes.maximum)
            if config.add_optimization_profile(native) < 0:
                raise ValueError("the profile is not valid for this network")


def load_plugins(session: Session, paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Make TensorRT's own plugins known, and load shared libraries that bring operators.

    A library registers them when it is loaded, or exports functions that list them; both ways are tried.

    Returns:
        Names of the operators that became known.

    Raises:
        ConfigError: If a file is missing, is no library for this machine, or brings no operator.
    """
    known = getattr(session.flavour.module, "init_libnvinfer_plugins", None)
    if known is not None:
        known(session.log.native, "")
    if not paths:
        return ()
    registry: Any = session.flavour.module.get_plugin_registry()
    added: list[str] = []
    for path in paths:
        if not is_file(path):
            raise ConfigError(f"--plugin {path}: there is no such file", hint="check the path")
        before = _creators(registry)
        try:
            ctypes.CDLL(os.fspath(path.resolve()), mode=ctypes.RTLD_GLOBAL)
        except OSError as cause:
            got = str(cause)
            hint = "build it for this machine and against this library's version"
            raise ConfigError(f"--plugin {path} cannot be loaded", got=got, hint=hint) from cause
        session.log.clear()
        if _creators(registry) == before:
            registry.load_library(os.fspath(path.resolve()))
        new = _creators(registry) - before
        if not new and os.fspath(path.resolve()) not in _LOADED:
            raise ConfigError(
                f"--plugin {path} brings no operator for {session.flavour.product}",
                got="; ".join(session.log.errors) or "it was loaded, and no plugin creator was registered",
                expected="a library of TensorRT plugins",
            )
        _LOADED.add(os.fspath(path.resolve()))
        added += sorted(name for name, _, _ in new)
    session.log.clear()
    return tuple(added)


_LOADED: set[str] = set()
"""Libraries of this process whose operators are registered already; loading them again adds none."""


def _creators(registry: Any) -> set[tuple[str, str, str]]:
    return {(one.name, one.plugin_version, one.plugin_namespace) for one in registry.all_creators}


class TimingCache:
    """A file of kernel timings: read and checked before the build, written after one that succeeded."""

    def __init__(self, session: Session, config: Any, path: Path) -> None:
        self._session, self._config, self._path = session, config, path
        content = self._read()
        with _applying(session, "--timing-cache"):
            cache = config.create_timing_cache(content)
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                raise self._refused("it was not accepted")

    def _read(self) -> bytes:
        try:
            if not self._path.exists():
                return b""
            if not self._path.is_file() or self._path.stat().st_size > _LARGEST_TIMING_CACHE:
                raise self._refused("no file, or one that is too large for a timing cache")
            return self._path.read_bytes()
        except OSError as cause:
            raise ConfigError(f"cannot read the timing cache {self._path}", got=cause.strerror) from cause

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{self._session.flavour.product} refuses the timing cache {self._path}",
            got="; ".join((*self._session.log.errors, *self._session.log.warnings)) or reason,
            expected="a cache of the same version and GPU",
            hint="delete it, or name another file",
        )

    def save(self) -> None:
        """Write what the build left in the cache.

        Raises:
            EngineBuildError: If the module gives none.
            OutputError: If the file cannot be written.
        """
        cache = self._config.get_timing_cache()
        if cache is None:
            raise EngineBuildError(f"{self._session.flavour.product} gave no timing cache after the build")
        write_bytes(self._path, bytes(cache.serialize()))
