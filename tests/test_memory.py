"""Freed memory goes back to the system; on systems without glibc the functions do nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quantlab import memory

SCRIPT = """
from quantlab.memory import release_memory
import numpy as np

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = [np.ones(12_000) for _ in range(1_000)]  # blocks of 96 kB, which glibc takes from the heap
kept = kept[::-1]
before = resident()
last = kept[0]
del kept[1:]
release_memory()
print(before - resident())
"""


@pytest.mark.skipif(memory._glibc() is None, reason="not glibc")
def test_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 60_000_000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._glibc.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        memory.return_large_blocks()
        memory.release_memory()
        assert memory._glibc() is None
    finally:
        memory._glibc.cache_clear()
