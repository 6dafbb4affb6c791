"""The genuine Python bindings of TensorRT 10 over a stand-in for its library: see stand_in.cpp."""

from __future__ import annotations

import ctypes
import importlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINDINGS = "tensorrt_bindings"
SOURCE = Path(__file__).with_name("stand_in.cpp")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def compiler() -> list[str] | None:
    """The system's C++ compiler; None without one."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    return [found] if found else None


def compile_libraries(command: list[str], folder: Path) -> list[Path]:
    """The three libraries that the bindings ask the system's loader for; the first one has all symbols."""
    empty = folder / "empty.cpp"
    empty.write_text("")
    paths = []
    for name in LIBRARIES:
        path = folder / f"lib{name}.so.10"
        source = SOURCE if name == "nvinfer" else empty
        options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared"]
        arguments = [*command, *options, f"-Wl,-soname,{path.name}", "-o", str(path), str(source)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        paths.append(path)
    return paths


class StandIn:
    """A TensorRT 10 that calibrates on the CPU.

    Attributes:
        module: The genuine bindings.
    """

    def __init__(self, libraries: list[Path]) -> None:
        # Loaded by path, they satisfy what the bindings look for by name. They stay local, so that TensorRT-RTX in the
        # same process, which has functions of the same names, finds its own.
        self._library, *self._others = (ctypes.CDLL(str(path)) for path in libraries)
        for name in ("Calls", "Profile"):
            getattr(self._library, f"standIn{name}").restype = ctypes.c_char_p
        for name in ("Quantile", "Cutoff"):
            getattr(self._library, f"standIn{name}").restype = ctypes.c_double
        self._library.standInBatch.restype = ctypes.c_void_p
        self._library.standInBatches.restype = ctypes.c_size_t
        self._library.standInCache.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self._library.standInStopAfter.argtypes = [ctypes.c_int64]
        self.module: Any = importlib.import_module(BINDINGS)
        self._log = self.module.Logger()
        self.builder = self.module.Builder(self._log)

    def reset(self) -> None:
        """Behave, and forget."""
        self._library.standInReset()

    def stop_after(self, batches: int) -> None:
        """Ask for so many batches at most."""
        self._library.standInStopAfter(batches)

    def reject_caches(self) -> None:
        """Take no cache."""
        self._library.standInReject()

    def fail(self) -> None:
        """Give no engine."""
        self._library.standInFail()

    def be_silent(self) -> None:
        """Do not calibrate."""
        self._library.standInSilent()

    def refuse_profiles(self) -> None:
        """Take no calibration profile."""
        self._library.standInRefuseProfile()

    def swap_inputs(self) -> None:
        """Ask for the inputs in reverse order."""
        self._library.standInSwapped()

    def overwrite_caches(self) -> None:
        """Reuse the memory of a cache after it was handed over."""
        self._library.standInOverwrite()

    def write_instead(self, *caches: bytes) -> None:
        """Hand over these in place of the calibrated cache."""
        for cache in caches:
            self._library.standInCache(cache, len(cache))

    def make_shape_input(self, tensor: Any) -> None:
        """Let an input of a network hold a shape."""
        # The object of the bindings keeps the address of the library's behind its header.
        address = ctypes.c_void_p.from_address(id(tensor) + object.__basicsize__)
        self._library.standInShapeInput(address)

    @property
    def calls(self) -> list[str]:
        """What was called on the calibrator, in order."""
        return list(filter(None, self._library.standInCalls().decode().split(", ")))

    @property
    def profile(self) -> list[str]:
        """``input:shape`` for MIN, OPT and MAX of each input in the calibration profile."""
        return list(self._library.standInProfile().decode().split())

    @property
    def int8(self) -> bool:
        """Whether the last build was asked for INT8."""
        return bool(self._library.standInFlags() >> int(self.module.BuilderFlag.INT8) & 1)

    @property
    def legacy(self) -> tuple[float, float]:
        """Quantile and cutoff that the calibrator gave."""
        return self._library.standInQuantile(), self._library.standInCutoff()

    @property
    def batches(self) -> list[bytes]:
        """The memory at the addresses of every batch, inputs in the order of the network."""
        found = []
        for index in range(self._library.standInBatches()):
            length = ctypes.c_size_t()
            address = self._library.standInBatch(ctypes.c_size_t(index), ctypes.byref(length))
            found.append(ctypes.string_at(address, length.value))
        return found

    def network(self, **inputs: tuple[str, tuple[int, ...]]) -> Any:
        """A network with these inputs (type and shape by name) and one layer behind each floating-point one."""
        network = self.builder.create_network(0)
        for name, (kind, shape) in inputs.items():
            tensor = network.add_input(name, getattr(self.module.DataType, kind), shape)
            if kind in ("FLOAT", "HALF"):
                network.add_shuffle(tensor)
        return network

    def build(self, network: Any, config: Any) -> bytes | None:
        """Build an engine; None if that failed."""
        engine = self.builder.build_serialized_network(network, config)
        return None if engine is None else bytes(engine)


class HostStaging:
    """Staging in host memory; every upload moves the buffer, so that an old address is of no use."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}
        self.uploads: list[str] = []
        self.closed = 0

    def upload(self, name: str, array: NDArray[np.generic]) -> int:
        assert array.flags.c_contiguous
        old = self.buffers.get(name)
        if old is not None:
            old[:] = 0xEE
        self.buffers[name] = np.frombuffer(array.tobytes(), np.uint8).copy()
        self.uploads.append(name)
        return int(self.buffers[name].ctypes.data)

    def close(self) -> None:
        self.buffers.clear()
        self.closed += 1
