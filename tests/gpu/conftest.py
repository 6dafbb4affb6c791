"""Tests on a real GPU; all of them are skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest

from quantlab.engines.cuda import Device, open_device
from quantlab.engines.tensorrt.flavour import FLAVOURS, Flavour, load_flavour
from quantlab.errors import BackendUnavailable


@pytest.fixture(scope="session")
def device() -> Device:
    """The first GPU."""
    try:
        return open_device()
    except BackendUnavailable as error:
        pytest.skip(f"needs an NVIDIA GPU: {error.what} ({error.got})")


@pytest.fixture(scope="session", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest, device: Device) -> Flavour:
    """Each flavour of TensorRT that is installed."""
    try:
        return load_flavour(request.param)
    except BackendUnavailable as error:
        pytest.skip(f"needs {request.param}: {error.what}")
