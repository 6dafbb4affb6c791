"""Blocks of queries of engines over a runtime in memory: one measurement, every boundary, engines in turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_engines import expect, feed, write_engine
from fake_tensorrt import State

from quantlab.engines.protocol import BlockTimed
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.errors import MeasurementError
from quantlab.harness.device_timing import time_on_gpu
from quantlab.harness.latency import CONTROL, LatencySettings
from quantlab.harness.measurement import Boundary

SHORT = LatencySettings(
    seconds=0.0, warmup_ms=5.0, block_ms=3.5, min_rounds=20, max_rounds=20, half_width=0.0, least_seconds=0.0
)


def queries(gpu: FakeCuda) -> float:
    """Queries so far, each of 1 ms of computing and 1.5 ms of copies."""
    return gpu.clock_ms / 2.5


@pytest.mark.parametrize("use_graph", [False, True])
def test_a_block_by_the_gpus_clock(state: State, gpu: FakeCuda, tmp_path: Path, use_graph: bool) -> None:
    """The fake's copies take 0.25 ms in and 0.5 ms out for each of two tensors, its compute 1 ms."""
    inputs = feed(4)
    with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
        assert isinstance(engine, BlockTimed)
        with engine.block_timer(inputs, use_graph=use_graph) as timer:
            made = (gpu.allocations, gpu.pinned, len(gpu.streams), len(gpu.graphs))
            assert made[-1] == use_graph
            for n in (1, 2, 7):
                launches, before = gpu.library.launches, queries(gpu)
                block = timer.time(n)
                assert queries(gpu) - before == pytest.approx(n + 1), "one is led in that is not counted"
                assert gpu.library.launches - launches == (n + 1) * use_graph
                np.testing.assert_allclose(block.device_ns, np.full(n, 1e6))
                assert block.transfers_ns is not None
                np.testing.assert_allclose(block.transfers_ns, np.full(n, 2.5e6))
                assert block.enqueue_ns.shape == (n,) and (block.enqueue_ns > 0).all()
            assert (gpu.allocations, gpu.pinned, len(gpu.streams), len(gpu.graphs)) == made, "nothing is made anew"
        assert gpu.graphs == {}
        np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
    assert (gpu.live, gpu.stack, gpu.pushes) == ({}, [], gpu.pops)


def test_without_copies(state: State, gpu: FakeCuda, tmp_path: Path) -> None:
    with TensorRTEngine(write_engine(tmp_path, "scale")) as engine, engine.block_timer(feed(), transfers=False) as t:
        before = gpu.clock_ms
        block = t.time(5)
        assert block.transfers_ns is None
        assert gpu.clock_ms - before == pytest.approx(6.0)


def test_engines_in_turn(state: State, gpu: FakeCuda, tmp_path: Path) -> None:
    """Two engines that compute for 1 ms: at every boundary of the GPU's clock exactly as long as each other."""
    (tmp_path / "other").mkdir()
    with (
        TensorRTEngine(write_engine(tmp_path, "scale")) as one,
        TensorRTEngine(write_engine(tmp_path / "other", "scale")) as other,
    ):
        found = time_on_gpu({"one": one, "other": other}, "one", feed(4), 4, SHORT, use_graph=True)
        np.testing.assert_array_equal(one.run(feed())["y"], expect(feed()))
    for boundary, ms in ((Boundary.DEVICE, 1.0), (Boundary.TRANSFERS, 2.5)):
        timings = found[boundary]
        assert timings.labels == ("one", "other", CONTROL)
        assert [latency.median_ms for latency in timings.latencies.values()] == pytest.approx([ms, ms])
        assert timings.latencies["other"].ratio == pytest.approx(1.0)
        assert timings.latencies["other"].throughput_per_s == pytest.approx(4000.0 / ms)
        assert timings.latencies["other"].n_calls == 20 * 4, "3.5 ms of the device's time in each of 20 rounds"
    assert found[Boundary.ENQUEUE].latencies["one"].median_ms > 0
    assert (gpu.live, gpu.stack, gpu.graphs) == ({}, [], {})


@pytest.mark.parametrize("use_graph", [False, True])
def test_a_failure_lets_go_of_everything(state: State, gpu: FakeCuda, tmp_path: Path, use_graph: bool) -> None:
    with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
        state.fail_enqueue = "broken"
        with pytest.raises(MeasurementError, match="broken"), engine.block_timer(feed(), use_graph=use_graph):
            pass
        state.fail_enqueue = None
        with pytest.raises(MeasurementError, match="broken"), engine.block_timer(feed()) as timer:
            timer.time(3)
            state.fail_enqueue = "broken"
            timer.time(3)
        state.fail_enqueue = None
        np.testing.assert_array_equal(engine.run(feed())["y"], expect(feed()))
    assert (gpu.live, gpu.stack, gpu.graphs) == ({}, [], {})


def test_a_refused_capture(state: State, gpu: FakeCuda, tmp_path: Path) -> None:
    gpu.refuse_capture = True
    with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
        with pytest.raises(MeasurementError, match="cannot be captured"), engine.block_timer(feed(), use_graph=True):
            pass
        with engine.block_timer(feed()) as timer:
            assert len(timer.time(2).device_ns) == 2
    assert (gpu.live, gpu.stack) == ({}, [])


def test_no_queries(state: State, tmp_path: Path) -> None:
    with (
        TensorRTEngine(write_engine(tmp_path, "scale")) as engine,
        engine.block_timer(feed()) as timer,
        pytest.raises(ValueError, match="0 queries"),
    ):
        timer.time(0)
