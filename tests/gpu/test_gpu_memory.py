"""Memory, staging and contexts of a real GPU."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantlab.engines.cuda import Device, DeviceBuffer, PinnedBuffer, PinnedStaging, open_device
from quantlab.engines.cuda_graph import CudaGraph
from quantlab.errors import MeasurementError

pytestmark = pytest.mark.gpu


def read_back(device: Device, address: int, size: int) -> bytes:
    if size == 0:
        return b""
    target = np.zeros(size, np.uint8)
    with device.active():
        device.driver.memcpy_dtoh(target, address)
    return target.tobytes()


def test_facts(device: Device) -> None:
    facts = device.facts
    assert facts.name
    major, minor = map(int, facts.compute_capability.split("."))
    assert (major, minor) >= (7, 0)
    assert facts.memory_bytes >= device.free_bytes() > 0
    assert facts.driver is None or facts.driver[0].isdigit()
    assert float(facts.cuda) >= 11.4
    assert open_device() is device


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(2, 0, 1)[::2],
        np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
        np.array([True, False, True]),
        np.random.default_rng(0).standard_normal((64, 3, 224, 224)).astype(np.float32),
        np.zeros((0, 3), np.float32),
    ],
    ids=["float32", "strided", "bfloat16", "bool", "large", "empty"],
)
def test_staged_bytes(device: Device, array: np.ndarray[Any, Any]) -> None:
    with PinnedStaging(device) as staging:
        address = staging.upload("x", array)
        assert address > 0
        assert read_back(device, address, array.nbytes) == array.tobytes()


def test_staging_keeps_and_grows(device: Device) -> None:
    with PinnedStaging(device) as staging:
        first = staging.upload("x", np.ones(1000, np.float32))
        other = staging.upload("y", np.zeros(1000, np.float32))
        assert first != other
        assert staging.upload("x", np.full(10, 2, np.float32)) == first
        grown = staging.upload("x", np.full(1 << 22, 3, np.float32))
        assert read_back(device, grown, 16) == np.full(4, 3, np.float32).tobytes()
        assert read_back(device, other, 4000) == bytes(4000)


def test_staging_from_several_threads(device: Device) -> None:
    def work(seed: int) -> bool:
        array = np.random.default_rng(seed).standard_normal(10_000)
        with PinnedStaging(device) as staging:
            addresses = (staging.upload("x", array) for _ in range(20))
            return all(read_back(device, address, array.nbytes) == array.tobytes() for address in addresses)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_memory_comes_back(device: Device) -> None:
    before = device.free_bytes()
    for _ in range(20):
        buffer, pinned = DeviceBuffer(device, "x", 64 << 20), PinnedBuffer(device, "x", 1 << 20)
        freeing = threading.Thread(target=lambda b=buffer, p=pinned: (b.free(), p.free()))
        freeing.start()
        freeing.join()
    assert abs(before - device.free_bytes()) <= 2 << 20


def test_out_of_memory(device: Device) -> None:
    with pytest.raises(MeasurementError, match="tensor 'huge' does not fit") as caught:
        DeviceBuffer(device, "huge", 1 << 50)
    assert caught.value.expected == f"{1 << 50:,} bytes"
    DeviceBuffer(device, "small", 1024).free()


def test_events_and_streams(device: Device) -> None:
    host, memory = PinnedBuffer(device, "x", 64 << 20), DeviceBuffer(device, "x", 64 << 20)
    with device.active():
        stream, start, end = device.stream(), device.event(), device.event(spin=True)
        start.record(stream)
        device.driver.memcpy_htod_async(memory.address, host.bytes(64 << 20), stream)
        end.record(stream)
        end.synchronize()
        ms = end.time_since(start)
        del stream, start, end
    host.free()
    memory.free()
    assert 0.2 < ms < 200, "64 MiB at 0.3 to 300 GB/s"


def test_a_graph_of_a_copy(device: Device) -> None:
    host, memory = PinnedBuffer(device, "x", 1024), DeviceBuffer(device, "x", 1024)
    with device.active():
        stream = device.stream()
        copy = partial(device.driver.memcpy_htod_async, memory.address, host.bytes(1024), stream)
        host.bytes(1024)[:] = 1
        copy()
        stream.synchronize()
        graph = CudaGraph(stream.handle, copy)
        for value in (2, 3):
            host.bytes(1024)[:] = value
            assert read_back(device, memory.address, 1) != bytes([value]), "nothing ran in the capture"
            graph.launch(stream.handle)
            stream.synchronize()
            assert read_back(device, memory.address, 1024) == bytes([value]) * 1024
        graph.close()
        del stream, copy
    host.free()
    memory.free()


def test_a_capture_that_fails_ends(device: Device) -> None:
    with device.active():
        stream = device.stream()
        with pytest.raises(MeasurementError, match="cannot be captured"):
            CudaGraph(stream.handle, _waits(stream))
        stream.synchronize()
        del stream


def _waits(stream: Any) -> Any:
    """Work that a capture forbids; the driver then refuses to end the capture with a graph."""

    def work() -> None:
        try:
            stream.synchronize()
        except Exception as error:
            print(f"as expected: {error}")

    return work


def test_at_the_end_of_a_process(device: Device) -> None:
    """What is left open is freed in order, without a word."""
    script = (
        "import numpy as np, threading\n"
        "from quantlab.engines.cuda import PinnedStaging, open_device\n"
        "staging = PinnedStaging()\n"
        "t = threading.Thread(target=lambda: staging.upload('x', np.ones(1000)))\n"
        "t.start(); t.join()\n"
        "staging.upload('y', np.ones(1000))\n"
        "stream, event = open_device().stream(), open_device().event()\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
    assert "PyCUDA" not in done.stderr
    assert "Traceback" not in done.stderr
