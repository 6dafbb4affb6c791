"""The host at one moment: what it is, how its processors are clocked, who else uses them, and what a container allows.

Everything is read from ``/proc`` and ``/sys``; what is not there (another system, a container) is None.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_UNLIMITED_BYTES = 2**60
"""Memory limits from here on are how version 1 of control groups says that there is none."""


@dataclass(frozen=True, slots=True)
class Host:
    """The host at one moment. What cannot be read is None.

    Attributes:
        processor: Marketing name of the processor.
        cpus: Processors that this process may use.
        affinity: Their numbers, such as ``0-3,8``.
        governor: Policy of the processors' frequency; several are joined by commas.
        frequency_mhz: Median of the frequencies at this moment.
        boost: Whether frequencies above the nominal one are allowed.
        load_average: Of the last minute.
        runnable_threads: Threads that run or want to, of the whole system, this one included.
        cpu_quota: Processors that the control group may use up, such as 1.5; None without a limit.
        memory_limit_bytes: Memory that the control group may take; None without a limit.
        peak_memory_bytes: Largest resident memory of this process so far.
        clock_s: Monotonic clock, to tell the time between two readings.
        busy_s: Processor time of all processes since the start of the system, stolen time excluded.
        stolen_s: Time in which another virtual machine had the processors.
        own_s: Processor time of this process and its ended children.
    """

    processor: str
    cpus: int
    affinity: str | None
    governor: str | None
    frequency_mhz: float | None
    boost: bool | None
    load_average: float | None
    runnable_threads: int | None
    cpu_quota: float | None
    memory_limit_bytes: int | None
    peak_memory_bytes: int | None
    clock_s: float
    busy_s: float | None
    stolen_s: float | None
    own_s: float


def processor_name(root: Path = _ROOT) -> str:
    """Marketing name of the processor, or its architecture where the system does not tell."""
    for name, value in _cpuinfo(root):
        if name == "model name":
            return value
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_host(root: Path = _ROOT) -> Host:
    """Read the host; ``root`` is where ``proc`` and ``sys`` lie. Cost: a few milliseconds."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy, stolen = _processor_times(root)
    loads = (_text(root / "proc/loadavg") or "").split()
    return Host(
        processor=processor_name(root),
        cpus=available_cpus(),
        affinity=ranges_of(allowed) if allowed else None,
        governor=_governor(root, allowed or ()),
        frequency_mhz=_frequency(root, allowed or ()),
        boost=_boost(root),
        load_average=_float(loads[0]) if loads else None,
        runnable_threads=_int(loads[3].partition("/")[0]) if len(loads) > 3 else None,
        cpu_quota=_cpu_quota(root),
        memory_limit_bytes=_memory_limit(root),
        peak_memory_bytes=_peak_memory(root),
        clock_s=time.monotonic(),
        busy_s=busy,
        stolen_s=stolen,
        own_s=sum(used.ru_utime + used.ru_stime for used in usage),
    )


def ranges_of(numbers: Iterable[int]) -> str:
    """``0-3,8``: ascending numbers, neighbours joined."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _cpuinfo(root: Path) -> Iterator[tuple[str, str]]:
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def _governor(root: Path, cpus: Iterable[int]) -> str | None:
    found = {_text(_cpufreq(root, cpu) / "scaling_governor") for cpu in cpus} - {None, ""}
    return ", ".join(sorted(name for name in found if name)) or None


def _frequency(root: Path, cpus: Iterable[int]) -> float | None:
    khz = [value for cpu in cpus if (value := _float(_text(_cpufreq(root, cpu) / "scaling_cur_freq"))) is not None]
    if khz:
        return statistics.median(khz) / 1000.0
    mhz = [value for name, text in _cpuinfo(root) if name == "cpu MHz" and (value := _float(text)) is not None]
    return statistics.median(mhz) if mhz else None


def _cpufreq(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"


def _boost(root: Path) -> bool | None:
    folder = root / "sys/devices/system/cpu"
    forbidden, allowed = _text(folder / "intel_pstate/no_turbo"), _text(folder / "cpufreq/boost")
    if forbidden in ("0", "1"):
        return forbidden == "0"
    return allowed == "1" if allowed in ("0", "1") else None


def _processor_times(root: Path) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of all processors: the first line of ``/proc/stat`` (proc(5))."""
    fields = (_text(root / "proc/stat") or "").partition("\n")[0].split()
    ticks = [_int(field) for field in fields[1:9]]
    if len(ticks) < 8 or fields[0] != "cpu" or None in ticks:
        return None, None
    user, nice, system, _idle, _iowait, interrupts, soft, stolen = (float(tick or 0) for tick in ticks)
    return (user + nice + system + interrupts + soft) / _TICKS_PER_S, stolen / _TICKS_PER_S


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process' control group and of those around it: version 2, then version 1."""
    mount = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0":
            base = mount
        elif controller in names.split(","):
            base = mount / controller
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        if ".." in inner.parts:  # a group outside of what this container sees
            inner = PurePosixPath()
        yield from (base / part for part in (inner, *inner.parents))


def _cpu_quota(root: Path) -> float | None:
    quotas = []
    for folder in _groups(root, "cpu"):
        limit, _, period = (_text(folder / "cpu.max") or "").partition(" ")
        if not limit:
            limit, period = (_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        allowed, of = _float(limit), _float(period)
        if allowed is not None and of is not None and allowed > 0 and of > 0:
            quotas.append(allowed / of)
    return min(quotas, default=None)


def _memory_limit(root: Path) -> int | None:
    limits = []
    for folder in _groups(root, "memory"):
        limit = _int(_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes"))
        if limit is not None and 0 < limit < _UNLIMITED_BYTES:
            limits.append(limit)
    return min(limits, default=None)


def _peak_memory(root: Path) -> int | None:
    for line in (_text(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            kibibytes = _int(line.split()[1]) if len(line.split()) > 1 else None
            return None if kibibytes is None else kibibytes * 1024
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _int(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
