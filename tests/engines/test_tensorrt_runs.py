"""Threads, graphs, times and the end of engines, over a runtime in memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_engines import expect, feed, write_engine
from fake_tensorrt import State

from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.slot import GraphMode
from quantlab.errors import MeasurementError
from quantlab.harness.trtexec import device_figures


class TestThreads:
    @pytest.mark.parametrize("contexts", [1, 3])
    @pytest.mark.parametrize("graphs", [GraphMode.OFF, GraphMode.CAPTURED])
    def test_each_gets_its_own_results(
        self, state: State, gpu: FakeCuda, tmp_path: Path, contexts: int, graphs: GraphMode
    ) -> None:
        inputs = [feed(1 + seed % 5, 2 + seed % 3, seed) for seed in range(24)]
        with TensorRTEngine(write_engine(tmp_path, "scale"), contexts=contexts, graphs=graphs) as engine:
            with ThreadPoolExecutor(6) as pool:
                for _ in range(5):
                    for one, found in zip(inputs, pool.map(engine.run, inputs), strict=True):
                        np.testing.assert_array_equal(found["y"], expect(one))
            assert state.contexts == contexts
        assert (gpu.live, gpu.stack) == ({}, [])

    def test_closing_waits_and_later_runs_are_refused(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        engine = TensorRTEngine(write_engine(tmp_path, "scale"))
        started, go_on = threading.Event(), threading.Event()

        def slow(feed: Any) -> dict[str, Any]:
            started.set()
            assert go_on.wait(10)
            return {"y": feed["x"] * 2 + feed["side"], "total": feed["x"].sum(axis=(1, 2)).astype(np.float32)}

        state.models["scale"].compute = slow
        inputs = feed()
        with ThreadPoolExecutor(3) as pool:
            running = pool.submit(engine.run, inputs)
            assert started.wait(10)
            closing = pool.submit(engine.close)
            late = pool.submit(engine.run, inputs)
            go_on.set()
            np.testing.assert_array_equal(running.result(10)["y"], expect(inputs))
            closing.result(10)
            assert late.exception(10) is None or isinstance(late.exception(), MeasurementError)
        with pytest.raises(MeasurementError, match="tensorrt-fp32 is closed"):
            engine.run(inputs)
        engine.close()
        assert gpu.live == {}


class TestGraphs:
    def test_replayed_runs_are_the_same(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale"), graphs=GraphMode.CAPTURED) as engine:
            for seed in range(4):
                inputs = feed(seed=seed)
                np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
            assert gpu.library.launches == 4
            assert len(gpu.graphs) == 1, "captured once"

    def test_other_shapes_are_captured_again(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale"), graphs=GraphMode.CAPTURED) as engine:
            for n in (1, 4, 4, 32, 1):
                inputs = feed(n, 4, n)
                np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
        assert gpu.graphs == {}

    def test_after_times_of_other_shapes(self, state: State, tmp_path: Path) -> None:
        """The graph of before belongs to a settlement that is gone."""
        with TensorRTEngine(write_engine(tmp_path, "scale"), graphs=GraphMode.CAPTURED) as engine:
            inputs = feed(2)
            engine.run(inputs)
            engine.time_device(feed(3), seconds=0.01, warmup_ms=0)
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))

    def test_after_a_failure_with_other_shapes(self, state: State, tmp_path: Path) -> None:
        """The shapes of the graph were set anew: it is not launched again."""
        with TensorRTEngine(write_engine(tmp_path, "scale"), graphs=GraphMode.CAPTURED) as engine:
            inputs = feed(2)
            engine.run(inputs)
            state.fail_enqueue = "broken"
            with pytest.raises(MeasurementError, match="failed to run"):
                engine.run(feed(3))
            state.fail_enqueue = None
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))

    def test_a_refused_capture_is_an_error(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        gpu.refuse_capture = True
        with (
            TensorRTEngine(write_engine(tmp_path, "scale"), graphs=GraphMode.CAPTURED) as engine,
            pytest.raises(MeasurementError, match="cannot be captured"),
        ):
            engine.run(feed())


class TestTimes:
    """The fake's copies take 0.25 ms in and 0.5 ms out for each tensor, its compute 1 ms."""

    @pytest.mark.parametrize("use_graph", [False, True])
    def test_by_the_gpus_clock(self, state: State, tmp_path: Path, use_graph: bool) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            found = engine.time_device(feed(4), seconds=0.1, warmup_ms=10.0, use_graph=use_graph)
        np.testing.assert_allclose(found.h2d_ms, 0.5)
        np.testing.assert_allclose(found.compute_ms, 1.0)
        np.testing.assert_allclose(found.d2h_ms, 1.0)
        assert (found.enqueue_ms > 0).all()
        assert found.batch_size == 4
        assert found.settings.use_graph == use_graph
        assert found.first_run_ms > 0
        assert found.load_ms > 0
        figures = device_figures(found)
        assert figures.latency.median_ms == pytest.approx(2.5)
        assert found.walltime_ms >= 100.0 - 2.5
        assert figures.throughput_qps == pytest.approx(400.0, rel=0.05)
        assert found.warmup_queries == pytest.approx(10 / 2.5, abs=2)

    def test_without_transfers(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            found = engine.time_device(feed(), seconds=0.05, warmup_ms=5.0, transfers=False)
        assert found.h2d_ms.tolist() == found.d2h_ms.tolist() == [0.0] * len(found.compute_ms)
        assert found.walltime_ms == pytest.approx(len(found.compute_ms))

    def test_at_least_so_many_queries(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            found = engine.time_device(feed(), seconds=0.0, warmup_ms=20.0, iterations=50)
        assert 50 <= len(found.compute_ms) <= 53

    def test_outputs_after_timing(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        inputs = feed()
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            engine.time_device(inputs, seconds=0.01, use_graph=True)
            assert gpu.graphs == {}
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
        assert gpu.stack == []

    def test_garbage_collection_is_as_before(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            engine.time_device(feed(), seconds=0.01)
            assert gc.isenabled()
            state.fail_enqueue = "broken"
            with pytest.raises(MeasurementError, match="broken"):
                engine.time_device(feed(), seconds=0.01)
            assert gc.isenabled()

    def test_layers(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        """Layers of one name are added up, and the run before does not count."""
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            spent = gpu.spent()
            assert engine.profile(feed(), runs=4) == {"conv": 1.0, "relu": 0.125}
            assert gpu.spent() == spent
            assert state.contexts == 2
            engine.run(feed())

    def test_inspector(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            assert engine.inspect() == '{"Layers": []}'


class TestEnd:
    ORDER = ("context", "context", "engine", "runtime", "memory")

    def check(self, gpu: FakeCuda) -> None:
        seen = list(dict.fromkeys(gpu.log))
        assert gpu.log[:4] == list(self.ORDER[:4])
        assert seen == ["context", "engine", "runtime", "memory"]
        assert (gpu.live, gpu.pinned, gpu.stack) == ({}, 0, [])

    def test_order(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        engine = TensorRTEngine(write_engine(tmp_path, "scale"), contexts=2)
        engine.run(feed())
        engine.close()
        engine.close()
        self.check(gpu)

    def test_of_one_that_is_forgotten(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        engine = TensorRTEngine(write_engine(tmp_path, "scale"), contexts=2)
        engine.run(feed())
        del engine
        gc.collect()
        self.check(gpu)

    def test_at_the_end_of_the_process(self, tmp_path: Path) -> None:
        """What was left open is let go in the same order, while the driver is still there."""
        script = f"""
import atexit, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from pathlib import Path
gpus = []
atexit.register(lambda: print(*dict.fromkeys(gpus[0].log), len(gpus[0].live), gpus[0].pinned, len(gpus[0].stack)))
import fake_cuda, fake_tensorrt
from fake_engines import feed, scale_model, write_engine
from quantlab.engines.tensorrt.engine import TensorRTEngine
patch = pytest.MonkeyPatch()
gpus.append(fake_cuda.install(patch))
state = fake_tensorrt.install(patch, gpus[0])
state.models["scale"] = scale_model()
engine = TensorRTEngine(write_engine(Path({str(tmp_path)!r}), "scale"), contexts=2)
engine.run(feed())
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.split() == ["context", "engine", "runtime", "memory", "0", "0", "0"], done.stderr
        assert done.stderr == ""

    def test_a_thousand_runs_take_no_memory(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            engine.run(feed())
            before = (gpu.allocations, gpu.pinned, len(gpu.streams))
            for seed in range(1000):
                engine.run(feed(1 + seed % 4))
            assert (gpu.allocations, gpu.pinned, len(gpu.streams)) == before
        assert gpu.pushes == gpu.pops

    def test_two_engines_at_once(self, state: State, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        first = TensorRTEngine(write_engine(tmp_path, "scale"))
        second = TensorRTEngine(write_engine(tmp_path / "other", "nonzero"))
        inputs = feed()
        x = np.array([1, -2, 3], np.float32)
        for _ in range(3):
            np.testing.assert_array_equal(first.run(inputs)["y"], expect(inputs))
            assert second.run({"x": x})["found"].tolist() == [1, 3]
        first.close()
        assert second.run({"x": x})["found"].tolist() == [1, 3]
        second.close()
