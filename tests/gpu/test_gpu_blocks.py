"""Engines on a real GPU against each other: every boundary at once, and an engine is as fast as itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu_engines import LARGE, SMALL, build, feed, network, on_cpu

from quantlab.engines.cuda import Device
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.harness.device_timing import time_on_gpu
from quantlab.harness.latency import CONTROL, LatencySettings, Timings
from quantlab.harness.measurement import Boundary, Change
from quantlab.harness.trtexec import device_figures

pytestmark = pytest.mark.gpu

SETTINGS = LatencySettings(seconds=4.0, least_seconds=1.0)


@pytest.fixture(scope="module")
def path(flavour: Flavour, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(network(), [SMALL, LARGE], tmp_path_factory.mktemp("blocks"), flavour, device)


@pytest.fixture
def engines(path: Path) -> Iterator[tuple[TensorRTEngine, TensorRTEngine]]:
    """The same file, opened twice."""
    with TensorRTEngine(path) as one, TensorRTEngine(path) as other:
        yield one, other


def told(found: dict[Boundary, Timings]) -> None:
    for boundary, timings in found.items():
        for name, latency in timings.latencies.items():
            low, high = latency.ratio_interval.low, latency.ratio_interval.high
            print(f"{boundary} {name}: {latency.median_ms:.5f} ms, {latency.ratio:.4f} ({low:.4f} to {high:.4f})")
        floor = timings.noise_floor
        distinct = len(set(timings.blocks_ms[timings.reference]))
        print(f"  control {floor.low:.4f} to {floor.high:.4f}; {len(timings.order)} rounds, {distinct} medians differ")
        print(f"  {timings.stop} after {timings.elapsed_s:.1f} s; {[str(w.code) for w in timings.warnings]}")


@pytest.mark.parametrize("use_graph", [False, True])
@pytest.mark.parametrize(("n", "size"), [(1, 8), (32, 64)])
def test_an_engine_against_itself(
    engines: tuple[TensorRTEngine, TensorRTEngine], use_graph: bool, n: int, size: int
) -> None:
    """Two contexts in other memory can differ by a little; by more than 5 % they do not."""
    inputs = feed(n, size)
    found = time_on_gpu(dict(zip("ab", engines, strict=True)), "a", inputs, n, SETTINGS, use_graph=use_graph)
    told(found)
    assert tuple(found) == (Boundary.DEVICE, Boundary.ENQUEUE, Boundary.TRANSFERS)
    for boundary in (Boundary.DEVICE, Boundary.TRANSFERS):
        timings = found[boundary]
        assert timings.labels == ("a", "b", CONTROL)
        b = timings.latencies["b"]
        assert b.ratio_interval.low <= b.ratio <= b.ratio_interval.high
        assert b.ratio == pytest.approx(1.0, abs=0.05)
        assert timings.noise_floor.low <= timings.control_ratio <= timings.noise_floor.high
        assert timings.control_ratio == pytest.approx(1.0, abs=0.02)
    for name in "ab":
        device, enqueue, whole = (timings.latencies[name] for timings in found.values())
        assert 0.0 < device.median_ms < whole.median_ms
        assert 0.0 < enqueue.median_ms < 10.0
        assert device.n_calls == whole.n_calls == enqueue.n_calls
    expected = on_cpu(network(), inputs)["scores"]
    for engine in engines:
        np.testing.assert_allclose(engine.run(inputs)["scores"], expected, rtol=0, atol=4e-3 * np.abs(expected).max())


def test_a_larger_batch_takes_longer(engines: tuple[TensorRTEngine, TensorRTEngine]) -> None:
    """Two timers of one engine's shapes at once: the ratio is that of the medians, and the word for it is right."""
    one, other = engines
    small, large = feed(8, 32), feed(32, 64)
    medians = {}
    for name, inputs in (("small", small), ("large", large)):
        with one.block_timer(inputs, use_graph=True) as timer:
            timer.time(200)
            medians[name] = float(np.median(timer.time(500).device_ns))
    assert medians["large"] > medians["small"]

    class Fixed:
        """The other engine, at a batch of its own."""

        sidecar = other.sidecar

        @staticmethod
        def block_timer(_: object, **how: bool) -> object:
            return other.block_timer(large, **how)

    found = time_on_gpu({"small": one, "large": Fixed()}, "small", small, 8, SETTINGS, use_graph=True)  # type: ignore[dict-item]
    told(found)
    latency = found[Boundary.DEVICE].latencies["large"]
    assert latency.change is Change.SLOWER
    assert latency.ratio == pytest.approx(medians["large"] / medians["small"], rel=0.1)


def test_as_trtexec_defines_it(engines: tuple[TensorRTEngine, TensorRTEngine]) -> None:
    """Blocks and a loop of seconds are the same queries: their medians agree.

    As graphs only: without, the time of so small an engine is that of the host's launches, 0.10 or 0.14 ms.
    """
    inputs = feed(32, 64)
    figures = device_figures(engines[0].time_device(inputs, seconds=1.0, use_graph=True))
    with engines[0].block_timer(inputs, use_graph=True) as timer:
        timer.time(500)
        blocks = [timer.time(50) for _ in range(20)]
    device = float(np.median(np.concatenate([block.device_ns for block in blocks]))) / 1e6
    whole = float(np.median([block.transfers_ns for block in blocks if block.transfers_ns is not None])) / 1e6
    print(f"compute {figures.compute.median_ms:.5f} and {device:.5f} ms")
    print(f"latency {figures.latency.median_ms:.5f} and {whole:.5f} ms")
    assert device == pytest.approx(figures.compute.median_ms, rel=0.1)
    assert whole == pytest.approx(figures.latency.median_ms, rel=0.15)


def test_the_step_of_the_gpus_clock(engines: tuple[TensorRTEngine, TensorRTEngine]) -> None:
    """Times of events are multiples of a step; blocks' medians cannot tell apart what is less."""
    with engines[0].block_timer(feed(1, 8), use_graph=True, transfers=False) as timer:
        timer.time(500)
        block = timer.time(2000)
    assert block.transfers_ns is None
    values = np.unique(block.device_ns)
    steps = np.diff(values)
    print(f"median {np.median(block.device_ns):.0f} ns, {len(values)} values, smallest step {steps.min():.1f} ns")
    assert math.isfinite(steps.min()) and steps.min() < 0.1 * np.median(block.device_ns)
