"""Whether an engine file can run here: what its sidecar recorded against what is here, before it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlab.engines.cuda import DeviceFacts
from quantlab.engines.record import EngineRecord
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.log import LOGGER, TensorRTLog
from quantlab.errors import EngineMismatch


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that was recorded otherwise than it is here.

    Attributes:
        what: What differs.
        recorded: At the time of the build.
        here: Now.
        decisive: Whether the engine cannot be opened because of it.
    """

    what: str
    recorded: str
    here: str
    decisive: bool

    def __str__(self) -> str:
        return f"{self.what}: built with {self.recorded}, here {self.here}"


def differences(record: EngineRecord, flavour: Flavour, device: DeviceFacts) -> tuple[Difference, ...]:
    """What differs between the making of an engine and this place.

    An engine belongs to one flavour. It belongs to one version, unless it was built version-compatible: then later
    versions take it. It belongs to one compute capability, unless it was built for others too. TensorRT-RTX states
    by itself which versions and GPUs an engine is for, so there these two decide nothing here. Neither the driver
    nor the model of the GPU decides.
    """
    portable = record.options.get("hardware-compatibility", "none")
    later = "version-compatible" in record.options and _numbers(flavour.version) >= _numbers(record.version)
    newer_gpu = portable == "ampere-plus" and _numbers(device.compute_capability) >= (8, 0)
    pairs = (
        ("backend", record.flavour, flavour.backend, True),
        ("version", record.version, flavour.version, not (later or flavour.has_validity)),
        (
            "compute capability",
            record.compute_capability,
            device.compute_capability,
            not (newer_gpu or flavour.has_validity or flavour.builds_without_gpu),
        ),
        ("GPU", record.gpu, device.name, False),
        ("driver", record.driver, device.driver, False),
        ("CUDA of the driver", record.cuda, device.cuda, False),
    )
    return tuple(
        Difference(what, recorded, here, decisive)
        for what, recorded, here, decisive in pairs
        if recorded is not None and here is not None and recorded != here
    )


def check_record(record: EngineRecord, flavour: Flavour, device: DeviceFacts, name: str) -> tuple[Difference, ...]:
    """Refuse an engine whose record says that it cannot run here.

    Returns:
        The differences, none of which is decisive; they are in the log.

    Raises:
        EngineMismatch: With every difference, and what to do.
    """
    found = differences(record, flavour, device)
    if any(difference.decisive for difference in found):
        raise EngineMismatch(
            f"engine {name} was built for another place",
            got="; ".join(map(str, found)),
            expected="the same backend, version and compute capability, or an engine built for others too",
            hint=_advice(found, record.options),
        )
    for difference in found:
        LOGGER.info("%s: %s", name, difference)
    return found


def check_validity(
    flavour: Flavour,
    runtime: Any,
    data: bytes,
    found: tuple[Difference, ...],
    name: str,
    log: TensorRTLog | None = None,
) -> None:
    """Ask the runtime of the flavour if it would take an engine, by the engine's header.

    A GPU that it does not support is not the end: TensorRT-RTX 1.6 says so of every engine on an H100, and runs them
    there. Opening the engine decides then.

    Args:
        flavour: Flavour; nothing is asked of one that cannot say.
        runtime: Its ``Runtime``.
        data: The whole engine.
        found: Known differences, for the message.
        name: For errors.
        log: The runtime's log, for what the reasons leave out.

    Raises:
        EngineMismatch: If it would not, with the runtime's own reasons.
    """
    if not flavour.has_validity:
        return
    if log is not None:
        log.clear()
    validity, diagnostics = runtime.get_engine_validity(data[: runtime.engine_header_size])
    words = [*_reasons(flavour.module, int(diagnostics)), *(log.errors if log else ())]
    reasons = "; ".join(words) or "no reason given"
    if validity == flavour.module.EngineValidity.INVALID:
        if _only_unsupported_gpu(flavour.module, int(diagnostics)):
            LOGGER.warning("%s: %s does not support this GPU; it may run all the same", name, flavour.product)
            return
        raise EngineMismatch(
            f"{flavour.product} says that engine {name} cannot run here",
            got="; ".join((reasons, *map(str, found))),
            hint=_advice(found, {}),
        )
    if validity == flavour.module.EngineValidity.SUBOPTIMAL:
        LOGGER.warning("%s: runs here, but slower than it could: %s; build it again on this GPU", name, reasons)


def _reasons(module: Any, diagnostics: int) -> list[str]:
    """The bits of a diagnosis, in words."""
    known = getattr(module, "EngineInvalidityDiagnostics", None)
    members: Mapping[str, Any] = getattr(known, "__members__", {})
    return [name.lower().replace("_", " ") for name, bit in members.items() if int(bit) & diagnostics]


def _only_unsupported_gpu(module: Any, diagnostics: int) -> bool:
    """Whether a diagnosis is the GPU's compute capability and nothing else."""
    bit = getattr(getattr(module, "EngineInvalidityDiagnostics", None), "UNSUPPORTED_CC", None)
    return bit is not None and diagnostics == int(bit)


def _advice(found: tuple[Difference, ...], options: Mapping[str, str]) -> str:
    decisive = {difference.what for difference in found if difference.decisive}
    ways = ["build it again here with quantlab build"]
    if "version" in decisive and "backend" not in decisive:
        later = "version-compatible" in options
        ways.append("install the version it was built with" if later else "build it once with --version-compatible")
    if "compute capability" in decisive and "backend" not in decisive:
        ways.append("build it with --hardware-compatibility ampere-plus for several GPUs")
    return ", or ".join(ways)


def _numbers(version: str) -> tuple[int, ...]:
    """``(10, 16, 1)`` for ``10.16.1``; what is not a number counts as none."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
