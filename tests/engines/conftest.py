"""A GPU and a TensorRT in memory, for the tests that ask for them."""

from __future__ import annotations

import fake_cuda
import fake_tensorrt
import pytest
from fake_cuda import FakeCuda
from fake_engines import fixed_model, nonzero_model, scale_model
from fake_tensorrt import State


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> State:
    made = fake_tensorrt.install(monkeypatch, gpu)
    made.models = {"scale": scale_model(), "nonzero": nonzero_model(), "fixed": fixed_model(4)}
    return made


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> State:
    made = fake_tensorrt.install(monkeypatch, gpu, rtx=True)
    made.models = {"scale": scale_model()}
    return made
