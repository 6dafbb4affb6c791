"""What is recorded of the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import quantlab.harness.gpus as gpus
from quantlab.harness.environment import environment
from quantlab.harness.gpus import Gpu, nvidia_gpus

ALWAYS = {
    "processor", "cpus", "threads", "system", "python", "load_average", "gpus", "quantlab", "numpy", "onnx",
    "onnxruntime", "pillow",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of ``nvidia-smi``, on machines with a GPU too."""
    monkeypatch.setitem(sys.modules, "pynvml", None)


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an ``nvidia-smi`` on the path."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_keys_are_the_same_with_and_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    without = environment(2)
    assert set(without) >= ALWAYS
    assert (without["gpus"], without["threads"]) == ([], 2)
    assert "not installed" not in without.values()
    line = "NVIDIA H100 80GB HBM3, 9.0, 580.159.04, 81559, 345, 2619, 1980, 700.00, GPU-1, 71.20, 33, 0x0000000005"
    smi(tmp_path, monkeypatch, f"echo '{line}'")
    with_ = environment(2)
    assert set(with_) == set(without)
    (gpu,) = json.loads(json.dumps(with_["gpus"]))
    assert gpu == {
        "name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "driver": "580.159.04", "memory_mib": 81559,
        "clock_sm_mhz": 345, "clock_memory_mhz": 2619, "clock_sm_max_mhz": 1980, "power_limit_w": 700.0,
        "uuid": "GPU-1", "power_w": 71.2, "temperature_c": 33, "throttled": ["software power cap"],
        "other_processes": None,
    }  # fmt: skip


def test_several_gpus_and_what_they_do_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "Orin, 8.7, 540.4.0, [N/A], [N/A], [Not Supported], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]",
        "T4, 7.5, 550.1, 15360, 300, 405, 1590, 70, GPU-2, 12.5, 40, 0x0000000000000001",
    ]
    smi(tmp_path, monkeypatch, "\n".join(f"echo '{line}'" for line in [*lines, "a warning"]))
    assert nvidia_gpus() == (
        Gpu("Orin", "8.7", "540.4.0", None, None, None, None, None),
        Gpu("T4", "7.5", "550.1", 15360, 300, 405, 1590, 70.0, "GPU-2", 12.5, 40, ()),
    )


@pytest.mark.parametrize("script", ["echo 'NVIDIA-SMI has failed because'; exit 9", "kill -SEGV $$", "exec sleep 30"])
def test_an_nvidia_smi_that_fails(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_TIMEOUT_S", 1)
    smi(tmp_path, monkeypatch, script)
    assert nvidia_gpus() == ()
