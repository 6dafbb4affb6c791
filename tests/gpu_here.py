"""Whether there is an NVIDIA GPU that can be used, for tests that need one or must not have one."""

from __future__ import annotations

from quantlab.engines.cuda import open_device
from quantlab.errors import BackendUnavailable


def gpu_is_here() -> bool:
    try:
        open_device()
    except BackendUnavailable:
        return False
    return True
