"""What surrounds a measurement, before and after it; what must agree for two of them to be compared."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantlab.harness.caution import Caution, CautionCode
from quantlab.harness.environment import package_versions
from quantlab.harness.gpu import Gpu
from quantlab.harness.gpus import nvidia_gpus
from quantlab.harness.machine import Host, read_host

CLOCK_TOLERANCE = 0.02
"""Relative change of a clock over a measurement from which it is told."""
_OTHERS_SHARE, _OTHERS_LEAST = 0.05, 0.2
_STOLEN_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The machine at one moment.

    Attributes:
        taken: When, in UTC, as ISO 8601.
        host: Processors and memory.
        gpus: GPUs.
    """

    taken: str
    host: Host
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must agree for two measurements to be compared; threads are compared row by row.

    Attributes:
        processor: Marketing name.
        cpus: Processors that the process may use.
        cpu_quota: Processors that its control group may use up; None without a limit.
        governor: Policy of their frequency.
        boost: Whether they may exceed the nominal frequency.
        system: Operating system and its version.
        python: Version.
        gpus: Name, driver and power limit of each GPU.
        packages: Versions of what runs engines.
    """

    processor: str
    cpus: int
    cpu_quota: float | None
    governor: str | None
    boost: bool | None
    system: str
    python: str
    gpus: tuple[str, ...]
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One key in which two fingerprints differ.

    Attributes:
        key: Such as ``governor`` or ``packages.onnxruntime``.
        here: Value of this measurement.
        there: Value of the other one.
    """

    key: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.key}: {self.here} here, {self.there} there"


def read_surroundings() -> Surroundings:
    """The machine now."""
    return Surroundings(dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), read_host(), nvidia_gpus())


def fingerprint_of(surroundings: Surroundings) -> Fingerprint:
    """What must agree of these surroundings, with the versions installed here."""
    host = surroundings.host
    return Fingerprint(
        processor=host.processor,
        cpus=host.cpus,
        cpu_quota=host.cpu_quota,
        governor=host.governor,
        boost=host.boost,
        system=platform.platform(),
        python=platform.python_version(),
        gpus=tuple(
            f"{gpu.name}, driver {gpu.driver or 'unknown'}, "
            + (f"{gpu.power_limit_w:g} W" if gpu.power_limit_w is not None else "power limit unknown")
            for gpu in surroundings.gpus
        ),
        packages=package_versions(),
    )


def differences(here: Fingerprint, there: Fingerprint) -> tuple[Difference, ...]:
    """The keys in which two fingerprints differ, with both values, in the order of the fields."""
    mine, other = dict(_flat(here)), dict(_flat(there))
    keys = [*mine, *(key for key in other if key not in mine)]
    found = ((key, mine.get(key, "absent"), other.get(key, "absent")) for key in keys)
    return tuple(Difference(key, a, b) for key, a, b in found if a != b)


def _flat(fingerprint: Fingerprint) -> Iterator[tuple[str, str]]:
    yield "processor", fingerprint.processor
    yield "cpus", str(fingerprint.cpus)
    yield "cpu_quota", "none" if fingerprint.cpu_quota is None else f"{fingerprint.cpu_quota:g}"
    yield "governor", fingerprint.governor or "unknown"
    yield "boost", {True: "on", False: "off", None: "unknown"}[fingerprint.boost]
    yield "system", fingerprint.system
    yield "python", fingerprint.python
    yield from ((f"gpus[{number}]", gpu) for number, gpu in enumerate(fingerprint.gpus))
    yield from ((f"packages.{name}", version) for name, version in fingerprint.packages.items())


def surroundings_cautions(
    before: Surroundings, after: Surroundings, *, threads: Sequence[int], callers: Sequence[int] = (1,), gpu: bool
) -> tuple[Caution, ...]:
    """What the surroundings say about a measurement between two readings.

    Args:
        before: Read before the engines were opened, so that this process is not among those on the GPU.
        after: Read right after the measurement.
        threads: Threads of each engine that were tried.
        callers: Concurrent callers that were tried.
        gpu: Whether an engine ran on a GPU.
    """
    cautions = [*_host(before.host, after.host, max(threads, default=1), max(callers, default=1))]
    if gpu:
        cautions += _gpus(before.gpus, after.gpus)
    return tuple(cautions)


def _host(before: Host, after: Host, threads: int, callers: int) -> Iterator[Caution]:
    spent = after.clock_s - before.clock_s
    if spent > 0 and before.busy_s is not None and after.busy_s is not None:
        others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / spent
        if others > max(_OTHERS_LEAST, _OTHERS_SHARE * before.cpus):
            yield Caution(CautionCode.OTHER_LOAD, f"other processes used {others:.1f} processors on average")
    if spent > 0 and before.stolen_s is not None and after.stolen_s is not None:
        share = (after.stolen_s - before.stolen_s) / spent / before.cpus
        if share > _STOLEN_SHARE:
            yield Caution(CautionCode.STOLEN_TIME, f"{share:.1%} of the processors' time went to other machines")
    quota = before.cpu_quota
    if quota is not None and quota < threads * callers:
        text = f"the control group may use {quota:g} processors, the engines have {threads * callers} threads"
        yield Caution(CautionCode.CPU_QUOTA, text)
    if threads * callers > before.cpus:
        text = f"{callers * threads} threads (threads {threads}, callers {callers}) on {before.cpus} processors"
        yield Caution(CautionCode.TOO_MANY_THREADS, text)
    if before.governor is not None and before.governor != "performance":
        yield Caution(CautionCode.GOVERNOR, f"the governor of the processors is {before.governor}")
    # A measured clock of an idle processor says nothing of the run, so it is recorded and not judged here.


def _gpus(before: Sequence[Gpu], after: Sequence[Gpu]) -> Iterator[Caution]:
    for number, (first, last) in enumerate(zip(before, after, strict=False)):
        name = f"GPU {number}"
        if first.other_processes:
            text = f"{first.other_processes} other processes compute on it"
            yield Caution(CautionCode.GPU_SHARED, text, name)
        if last.throttled:
            yield Caution(CautionCode.THROTTLED, f"throttled by {', '.join(last.throttled)}", name)


def clock_cautions(readings: Mapping[str, tuple[Sequence[Gpu], Sequence[Gpu]]]) -> tuple[Caution, ...]:
    """Clocks that changed, and throttling, while an engine ran.

    Args:
        readings: GPUs right after an engine's first run and right after its last, by engine. Both are under load, so
            that the clocks of an idle GPU, which are low, do not count as a change.
    """
    cautions = []
    for engine, (first, last) in readings.items():
        for number, (one, other) in enumerate(zip(first, last, strict=False)):
            for what, begin, end in (
                ("processors", one.clock_sm_mhz, other.clock_sm_mhz),
                ("memory", one.clock_memory_mhz, other.clock_memory_mhz),
            ):
                if begin and end and abs(end / begin - 1.0) > CLOCK_TOLERANCE:
                    text = f"the clock of GPU {number}'s {what} went from {begin} to {end} MHz"
                    cautions.append(Caution(CautionCode.CLOCKS_CHANGED, text, engine))
            reasons = tuple(dict.fromkeys((*(one.throttled or ()), *(other.throttled or ()))))
            if reasons:
                text = f"GPU {number} was throttled by {', '.join(reasons)}"
                cautions.append(Caution(CautionCode.THROTTLED, text, engine))
    return tuple(cautions)
