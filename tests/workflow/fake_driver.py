"""A CUDA driver library for tests: one GPU with nothing behind it, or a driver that does not start."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { const char *code = getenv("FAKE_CUDA_ERROR"); return code ? atoi(code) : 0; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return 0; }
"""


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_driver(folder: Path) -> Path:
    """Make ``libcuda.so.1`` in a folder; for ``LD_LIBRARY_PATH``."""
    source = folder / "driver.c"
    source.write_text(SOURCE)
    command = compiler()
    assert command is not None
    subprocess.run([command, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    return folder
