"""The host as files below a folder state it, and what is missing there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from quantlab.harness import machine
from quantlab.harness.machine import Host, ranges_of, read_host

STAT = "cpu  1000 50 300 9000 20 30 20 400 7 0\ncpu0 1 2 3\n"
CPUINFO = "processor : 0\nmodel name : Fast CPU\ncpu MHz : 2000.0\n\nprocessor : 1\ncpu MHz : 3000.5\n"


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(machine, "_TICKS_PER_S", 100)


def host(folder: Path, files: Mapping[str, str]) -> Host:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_host(folder)


def test_a_host_that_tells_everything(tmp_path: Path) -> None:
    found = host(
        tmp_path,
        {
            "proc/cpuinfo": CPUINFO,
            "proc/loadavg": "1.25 0.80 0.75 3/456 789\n",
            "proc/stat": STAT,
            "proc/self/status": "Name:\tpython\nVmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n",
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "1073741824\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1400000\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
        },
    )
    assert (found.processor, found.cpus, found.affinity) == ("Fast CPU", 2, "0-1")
    assert (found.governor, found.frequency_mhz, found.boost) == ("performance, powersave", 1300.0, True)
    assert (found.load_average, found.runnable_threads) == (1.25, 3)
    assert found.cpu_quota == 1.5, "the limit of the group around counts where the own has none"
    assert found.memory_limit_bytes == 2**30
    assert found.peak_memory_bytes == 2**21
    assert found.busy_s == pytest.approx(14.0), "(1000 + 50 + 300 + 30 + 20) ticks of a hundredth"
    assert found.stolen_s == pytest.approx(4.0)
    assert found.own_s > 0


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    found = read_host(tmp_path)
    for name in (
        "governor", "frequency_mhz", "boost", "load_average", "runnable_threads", "cpu_quota", "memory_limit_bytes",
        "peak_memory_bytes", "busy_s", "stolen_s",
    ):  # fmt: skip
        assert getattr(found, name) is None, name
    assert found.processor


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    found = host(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert (found.cpu_quota, found.memory_limit_bytes) == (0.5, None), "2**63 - 4096 is how version 1 says no limit"


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/../../outside\n", "sys/fs/cgroup/cpu.max": "nonsense"},
        {"proc/self/cgroup": "no colons here\n0\n"},
        {"proc/loadavg": "", "proc/stat": "cpu 1 2\n", "proc/self/status": "VmHWM:\n"},
        {"proc/loadavg": "x y z w q", "proc/stat": "cpu a b c d e f g h\n"},
        {"sys/devices/system/cpu/cpufreq/boost": "perhaps", "proc/cpuinfo": "cpu MHz : fast\n"},
    ],
)
def test_files_of_another_form(tmp_path: Path, files: Mapping[str, str]) -> None:
    found = host(tmp_path, files)
    assert (found.cpu_quota, found.load_average, found.busy_s, found.boost) == (None, None, None, None)


def test_boost_of_amd_and_frequency_of_a_virtual_machine(tmp_path: Path) -> None:
    found = host(tmp_path, {"sys/devices/system/cpu/cpufreq/boost": "0\n", "proc/cpuinfo": CPUINFO})
    assert (found.boost, found.frequency_mhz) == (False, pytest.approx(2500.25))


@pytest.mark.parametrize(
    ("numbers", "text"), [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([1, 3, 5], "1,3,5"), (list(range(128)), "0-127")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges_of(numbers) == text
