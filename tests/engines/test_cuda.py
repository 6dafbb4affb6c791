"""The GPU through pycuda: what is missing is said, contexts are left as found, and everything is freed once."""

from __future__ import annotations

import builtins
import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_cuda
import ml_dtypes
import numpy as np
import pytest
from fake_cuda import FakeCuda

from quantlab.engines import cuda, cuda_driver, cuda_graph
from quantlab.engines.cuda import Device, DeviceBuffer, PinnedBuffer, PinnedStaging, open_device
from quantlab.engines.cuda_graph import CudaGraph
from quantlab.errors import BackendUnavailable, ConfigError, MeasurementError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def device(gpu: FakeCuda) -> Device:
    return open_device()


class TestMissing:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "_devices", {})

    def importing(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        """Importing pycuda fails so."""
        real: Callable[..., Any] = builtins.__import__
        for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
            monkeypatch.delitem(sys.modules, name)

        def failing(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] == "pycuda":
                raise error
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", failing)
        monkeypatch.setattr(cuda_driver.importlib, "import_module", failing)

    @pytest.mark.parametrize(
        ("error", "what", "hint"),
        [
            (ModuleNotFoundError("No module named 'pycuda'", name="pycuda"), "pycuda is not installed", "quantlab["),
            (ModuleNotFoundError("No module named 'mako'", name="mako"), "installed but cannot be loaded", "reinstall"),
            (
                ImportError("libcuda.so.1: cannot open shared object file: No such file or directory"),
                "the NVIDIA driver is not installed",
                "container",
            ),
            (
                ImportError("undefined symbol: cuCtxCreate_v4"),
                "installed but cannot be loaded",
                "one CUDA",
            ),
            (RuntimeError(""), "installed but cannot be loaded", "reinstall"),
        ],
    )
    def test_pycuda(self, monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, hint: str) -> None:
        self.importing(monkeypatch, error)
        with pytest.raises(BackendUnavailable, match=what) as caught:
            open_device()
        assert caught.value.hint is not None
        assert hint in caught.value.hint
        assert caught.value.got == (str(error) or "RuntimeError")
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("cuInit failed: no CUDA-capable device is detected", "there is no NVIDIA GPU"),
            ("cuInit failed: unknown error", "the NVIDIA driver does not start"),
            ("cuInit failed: system has unsupported display driver / cuda driver combination", "does not start"),
        ],
    )
    def test_driver(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda, text: str, what: str) -> None:
        def refuse() -> None:
            raise fake_cuda.LogicError(text)

        monkeypatch.setattr(sys.modules["pycuda.driver"], "init", refuse)
        with pytest.raises(BackendUnavailable, match=what) as caught:
            open_device()
        assert caught.value.got == text

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> None:
        module: Any = sys.modules["pycuda.driver"]
        monkeypatch.setattr(module.Device, "count", staticmethod(lambda: 0))
        with pytest.raises(BackendUnavailable, match="there is no NVIDIA GPU"):
            open_device()

    @pytest.mark.parametrize("index", [-1, 1])
    def test_no_such_gpu(self, gpu: FakeCuda, index: int) -> None:
        with pytest.raises(ConfigError, match=f"there is no GPU {index}") as caught:
            open_device(index)
        assert caught.value.expected == "0"

    def test_a_gpu_that_another_process_holds_alone(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> None:
        def refuse(self: object) -> None:
            raise fake_cuda.LogicError("cuDevicePrimaryCtxRetain failed: all CUDA-capable devices are busy")

        module: Any = sys.modules["pycuda.driver"]
        monkeypatch.setattr(module.Device, "retain_primary_context", refuse)
        with pytest.raises(BackendUnavailable, match="GPU 0 cannot be used") as caught:
            open_device()
        assert "busy" in str(caught.value)

    def test_a_gpu_is_looked_for_again(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda) -> None:
        """A failure is not remembered."""
        module: Any = sys.modules["pycuda.driver"]
        with monkeypatch.context() as patch:
            patch.setattr(module.Device, "count", staticmethod(lambda: 0))
            with pytest.raises(BackendUnavailable):
                open_device()
        assert open_device().facts.name == "Fake GPU"


class TestVersions:
    def test_from_the_kernel_module(self, tmp_path: Path) -> None:
        path = tmp_path / "version"
        line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"
        path.write_text(line + "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n")
        assert cuda_driver._file_version(path) == "580.95.05"
        path.write_text("nothing of the kind")
        assert cuda_driver._file_version(path) is None
        assert cuda_driver._file_version(tmp_path / "missing") is None

    def test_from_the_management_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Library:
            ended = 0

            def nvmlInit_v2(self) -> int:  # noqa: N802
                return 0

            def nvmlSystemGetDriverVersion(self, text: Any, size: ctypes.c_uint) -> int:  # noqa: N802
                text.value = b"570.1"
                assert size.value == len(text)
                return 0

            def nvmlShutdown(self) -> None:  # noqa: N802
                self.ended += 1

        library = Library()
        monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: library)
        assert cuda_driver.driver_version() == "570.1"
        assert library.ended == 1

    def test_facts(self, device: Device) -> None:
        facts = device.facts
        assert (facts.name, facts.compute_capability, facts.cuda, facts.pycuda) == ("Fake GPU", "9.0", "13.0", "13.0")
        assert facts.memory_bytes == 1 << 30


class TestContext:
    def test_one_device_for_a_number(self, gpu: FakeCuda) -> None:
        with ThreadPoolExecutor(4) as pool:
            assert len(set(map(id, pool.map(lambda _: open_device(), range(20))))) == 1

    def test_nothing_is_current_before_and_after(self, gpu: FakeCuda, device: Device) -> None:
        assert gpu.stack == []
        with device.active():
            with device.active():
                assert len(gpu.stack) == 2
            assert len(gpu.stack) == 1
        assert gpu.stack == []
        with pytest.raises(ZeroDivisionError), device.active():
            _ = 1 / 0
        assert gpu.stack == []
        assert gpu.pushes == gpu.pops == 3

    def test_another_context_is_found_again(self, gpu: FakeCuda, device: Device) -> None:
        other = object()
        gpu.stack.append(other)
        DeviceBuffer(device, "x", 4).free()
        assert gpu.stack == [other]

    def test_free_memory(self, gpu: FakeCuda, device: Device) -> None:
        buffer = DeviceBuffer(device, "x", 1000)
        assert device.free_bytes() == gpu.memory_bytes - 1000
        buffer.free()
        assert device.free_bytes() == gpu.memory_bytes

    def test_events_spin_or_sleep(self, device: Device) -> None:
        assert (device.event().flags, device.event(spin=True).flags) == (1, 0)


class TestBuffers:
    def test_device_memory_is_grown_kept_and_freed_once(self, gpu: FakeCuda, device: Device) -> None:
        buffer = DeviceBuffer(device, "x", 100)
        first = buffer.address
        buffer.reserve(60)
        buffer.reserve(100)
        assert buffer.address == first
        buffer.reserve(101)
        assert buffer.address != first
        assert gpu.spent() == 101, "the smaller one is freed"
        buffer.free()
        buffer.free()
        assert (gpu.live, buffer.address) == ({}, 0)

    def test_nothing_still_has_an_address(self, gpu: FakeCuda, device: Device) -> None:
        buffer = DeviceBuffer(device, "x", 0)
        assert buffer.address > 0
        buffer.reserve(0)
        assert gpu.allocations == 1

    def test_out_of_memory_names_the_tensor_and_the_bytes(self, gpu: FakeCuda, device: Device) -> None:
        gpu.memory_bytes = 5000
        kept = DeviceBuffer(device, "weights", 1000)
        buffer = DeviceBuffer(device, "scores", 500)
        with pytest.raises(MeasurementError, match="tensor 'scores' does not fit into") as caught:
            buffer.reserve(6000)
        assert caught.value.got == "4,000 bytes free"
        assert caught.value.expected == "6,000 bytes"
        assert caught.value.hint is not None
        buffer.reserve(10)
        assert (buffer.address > 0, kept.address > 0, gpu.stack) == (True, True, [])

    def test_other_refusals(self, monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
        def refuse(*_: object) -> None:
            raise fake_cuda.LogicError("an illegal memory access was encountered")

        monkeypatch.setattr(device.driver, "mem_alloc", refuse)
        monkeypatch.setattr(device.driver, "pagelocked_empty", refuse)
        with pytest.raises(MeasurementError, match="no memory for tensor 'x'") as caught:
            DeviceBuffer(device, "x", 3)
        assert "illegal memory access" in str(caught.value)
        with pytest.raises(MeasurementError, match="no page-locked host memory for tensor 'x'"):
            PinnedBuffer(device, "x", 3)

    def test_pinned_memory_as_an_array(self, gpu: FakeCuda, device: Device) -> None:
        buffer = PinnedBuffer(device, "x", 24)
        address = buffer.address
        view = buffer.view((2, 3), np.dtype(np.float32))
        view[...] = 1.5
        assert buffer.bytes(24).view(np.float32).tolist() == [1.5] * 6
        assert view.ctypes.data == address
        assert buffer.view((2, 0, 3), np.dtype(np.int64)).shape == (2, 0, 3)
        buffer.reserve(20)
        assert buffer.address == address
        buffer.reserve(25)
        assert gpu.pinned == 1
        buffer.free()
        buffer.free()
        assert (gpu.pinned, buffer.address) == (0, 0)
        with pytest.raises(MeasurementError, match="is freed already"):
            buffer.bytes(1)

    def test_freed_in_another_thread(self, gpu: FakeCuda, device: Device) -> None:
        buffer = DeviceBuffer(device, "x", 8)
        thread = threading.Thread(target=buffer.free)
        thread.start()
        thread.join()
        assert gpu.live == {}


class TestStaging:
    @pytest.mark.parametrize(
        "array",
        [
            np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2],
            np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
            np.array([True, False]),
            np.array(7, np.int64),
            np.zeros((0, 3), np.float32),
        ],
        ids=["plain", "strided", "bfloat16", "bool", "scalar", "empty"],
    )
    def test_the_device_gets_the_bytes_in_c_order(
        self, gpu: FakeCuda, device: Device, array: np.ndarray[Any, Any]
    ) -> None:
        with PinnedStaging(device) as staging:
            address = staging.upload("x", array)
            assert address > 0
            assert gpu.memory(address, array.nbytes).tobytes() == array.tobytes()

    def test_buffers_are_by_name_and_kept(self, gpu: FakeCuda) -> None:
        with PinnedStaging() as staging:
            a = staging.upload("a", np.ones(4, np.float32))
            b = staging.upload("b", np.zeros(4, np.float32))
            assert a != b
            assert staging.upload("a", np.full(3, 2, np.float32)) == a
            assert gpu.memory(a, 16).view(np.float32).tolist() == [2, 2, 2, 1]
            assert gpu.allocations == 2
            staging.upload("a", np.ones(9, np.float32))
            assert gpu.spent() == 36 + 16
        assert (gpu.live, gpu.pinned, gpu.stack) == ({}, 0, [])

    def test_closed(self, gpu: FakeCuda, device: Device) -> None:
        staging = PinnedStaging(device)
        staging.upload("x", np.ones(1))
        staging.close()
        staging.close()
        with pytest.raises(MeasurementError, match="'x' after the end"):
            staging.upload("x", np.ones(1))

    def test_freed_when_it_is_forgotten(self, gpu: FakeCuda, device: Device) -> None:
        staging = PinnedStaging(device)
        staging.upload("x", np.ones(1))
        del staging
        assert (gpu.live, gpu.pinned) == ({}, 0)

    def test_a_failed_copy_names_the_tensor(
        self, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda, device: Device
    ) -> None:
        def refuse(*_: object) -> None:
            raise fake_cuda.LogicError("cuMemcpyHtoD failed: invalid argument")

        monkeypatch.setattr(device.driver, "memcpy_htod", refuse)
        with (
            PinnedStaging(device) as staging,
            pytest.raises(MeasurementError, match="tensor 'image' could not be copied"),
        ):
            staging.upload("image", np.ones(1))
        assert gpu.stack == []


class TestGraph:
    def test_captured_work_runs_at_each_launch_only(self, gpu: FakeCuda, device: Device) -> None:
        done: list[int] = []
        with device.active():
            stream = device.stream()
            graph = CudaGraph(stream.handle, lambda: stream.put(lambda: done.append(1)))
            stream.synchronize()
            assert done == []
            graph.launch(stream.handle)
            graph.launch(stream.handle)
            stream.synchronize()
            assert done == [1, 1]
            graph.close()
            graph.close()
            assert gpu.graphs == {}

    def test_a_capture_that_the_driver_refuses(self, gpu: FakeCuda, device: Device) -> None:
        gpu.refuse_capture = True
        with device.active():
            stream = device.stream()
            with pytest.raises(MeasurementError, match="cannot be captured") as caught:
                CudaGraph(stream.handle, lambda: None)
            assert "previous error during capture" in str(caught.value)
            stream.synchronize()

    def test_an_error_of_the_work_ends_the_capture(self, gpu: FakeCuda, device: Device) -> None:
        def fail() -> None:
            raise KeyboardInterrupt

        with device.active():
            stream = device.stream()
            with pytest.raises(KeyboardInterrupt):
                CudaGraph(stream.handle, fail)
            stream.synchronize()
        assert gpu.graphs == {}

    def test_no_driver_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        cuda_graph._library.cache_clear()
        monkeypatch.setattr(cuda_graph.ctypes, "CDLL", missing)
        with pytest.raises(BackendUnavailable, match="no CUDA graphs") as caught:
            CudaGraph(1, lambda: None)
        assert caught.value.got == "libcuda.so.1: cannot open shared object file"
