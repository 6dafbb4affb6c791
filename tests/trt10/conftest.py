"""TensorRT 10 without a GPU, once for all tests of the folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import BINDINGS, StandIn, compile_libraries, compiler

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.trt10)


@pytest.fixture(scope="session")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    if importlib.util.find_spec(BINDINGS) is None:
        pytest.skip("needs the package tensorrt-cu12-bindings 10.16 (Linux on x86-64)")
    command = compiler()
    if command is None:
        pytest.skip("needs a C++ compiler: c++, g++ or clang++")
    return StandIn(compile_libraries(command, tmp_path_factory.mktemp("trt10")))


@pytest.fixture
def trt(_loaded: StandIn) -> Iterator[StandIn]:
    """A TensorRT that behaves."""
    _loaded.reset()
    yield _loaded
    _loaded.reset()
