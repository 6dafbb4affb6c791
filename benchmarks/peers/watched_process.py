"""One command in a process of its own: its time, its memory, and an end to it when it takes too much of either.

Memory is read from ``/proc``: a limit on the address space (``ulimit -v``) stops PyTorch long before it uses much.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
MIB = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a process is ended.

    Attributes:
        seconds: Wall time.
        memory_mib: Resident memory of the process and all that it started.
        threads: Processors that it may use.
    """

    seconds: float
    memory_mib: float
    threads: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a process took.

    Attributes:
        wall_s: Seconds from start to end, imports included.
        cpu_s: Processor seconds, user and system, of it and the children that it waited for.
        peak_mib: Most resident memory of the whole tree at one time; pages that processes share count for each.
        error: Why it failed: the limit, or the last line that it wrote; None if it did not fail.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float
    error: str | None


def run_watched(command: Sequence[str], log: Path, limits: Limits, environment: Mapping[str, str]) -> Outcome:
    """Run a command to its end or to a limit; what it writes goes to ``log``."""
    processors = sorted(os.sched_getaffinity(0))[: limits.threads]
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(  # a session of its own: whatever it starts can be found and ended
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environment),
            start_new_session=True, cwd=log.parent,
        )  # fmt: skip
        os.sched_setaffinity(process.pid, processors)
        peak, stopped = 0.0, None
        try:
            while True:
                now, highest = _memory_mib(process.pid)
                peak = max(peak, now, highest)
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                seconds = time.perf_counter() - start
                if pid:
                    break
                if stopped is None and now > limits.memory_mib:
                    stopped = f"ended at {now:,.0f} MiB, more than {limits.memory_mib:,.0f}"
                elif stopped is None and seconds > limits.seconds:
                    stopped = f"ended after {seconds:,.0f} s"
                if stopped is not None:
                    _kill_session(process.pid)
                time.sleep(POLL_S)
        finally:  # what it may have left behind; all of it, if this process is interrupted
            _kill_session(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)  # reaped here, for the resource usage
    error = stopped
    if error is None and process.returncode != 0:
        error = last_line(log) or f"exit status {process.returncode}"
    return Outcome(seconds, usage.ru_utime + usage.ru_stime, peak, error)


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters of it."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]


def _session(leader: int) -> list[int]:
    """Processes of a session: those that it started, and theirs, unless they opened sessions of their own."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # gone
                continue
            if int(fields[3]) == leader:
                found.append(int(folder.name))
    return found


def _memory_mib(leader: int) -> tuple[float, float]:
    """Resident memory of all processes of a session now, and the highest that any single one had."""
    total = highest = 0.0
    for pid in _session(leader):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / MIB
            status = Path(f"/proc/{pid}/status").read_text()
        except (OSError, IndexError):
            continue
        mark = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
        highest = max(highest, int(mark.split()[1]) / 1024)
    return total, highest


def _kill_session(leader: int) -> None:
    for pid in _session(leader):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
