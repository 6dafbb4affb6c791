"""Engines on a real GPU: results, shapes, threads, graphs, times and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_engines
import ml_dtypes
import numpy as np
import pytest
from gpu_engines import LARGE, SMALL, BuildRefusedError, build, feed, network, on_cpu, one_node, vouch
from onnx import TensorProto

from quantlab.engines.cuda import Device
from quantlab.engines.sidecar import sidecar_path
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.slot import GraphMode
from quantlab.errors import EngineMismatch, MeasurementError
from quantlab.harness.trtexec import device_figures

pytestmark = pytest.mark.gpu

TF32 = 4e-3
"""Largest error of results whose operands may be rounded to ten bits, as a share of the largest value."""
VECTOR = {"x": ((1,), (8,), (1000,))}


@pytest.fixture(scope="module")
def path(flavour: Flavour, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(network(), [SMALL, LARGE], tmp_path_factory.mktemp("engine"), flavour, device)


@pytest.fixture
def engine(path: Path) -> Iterator[TensorRTEngine]:
    with TensorRTEngine(path) as opened:
        yield opened


def close_to(found: Any, expected: Any, share: float = TF32) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


class TestResults:
    @pytest.mark.parametrize(("n", "size"), [(1, 8), (3, 16), (8, 32), (8, 17), (32, 64), (9, 33), (1, 8)])
    def test_as_on_the_cpu(self, engine: TensorRTEngine, n: int, size: int) -> None:
        """Shapes of both profiles; those of several in turn on one context."""
        for seed in range(2):
            inputs = feed(n, size, seed)
            found, expected = engine.run(inputs), on_cpu(network(), inputs)
            assert tuple(found) == engine.outputs == tuple(expected)
            for name, value in expected.items():
                close_to(found[name], value)

    def test_shapes_in_turn(self, engine: TensorRTEngine) -> None:
        for n, size in ((1, 8), (32, 64), (8, 32), (1, 8), (4, 16), (16, 32), (2, 31)):
            inputs = feed(n, size, n)
            close_to(engine.run(inputs)["scores"], on_cpu(network(), inputs)["scores"])

    def test_results_are_the_callers_own(self, path: Path) -> None:
        engine = TensorRTEngine(path)
        inputs = feed()
        first = engine.run(inputs)["scores"]
        kept = first.copy()
        engine.run(feed(seed=1))
        engine.close()
        np.testing.assert_array_equal(first, kept)
        with pytest.raises(MeasurementError, match="is closed"):
            engine.run(inputs)

    @pytest.mark.parametrize(
        ("operator", "kind", "dtype"),
        [
            ("Add", TensorProto.FLOAT16, np.float16),
            ("Add", TensorProto.BFLOAT16, ml_dtypes.bfloat16),
            ("Add", TensorProto.INT32, np.int32),
            ("Add", TensorProto.INT64, np.int64),
            ("Not", TensorProto.BOOL, np.bool_),
        ],
    )
    def test_types(
        self, flavour: Flavour, device: Device, tmp_path: Path, operator: str, kind: int, dtype: Any
    ) -> None:
        try:
            made = build(one_node(operator, kind, twice=operator == "Add"), [VECTOR], tmp_path, flavour, device)
        except BuildRefusedError as error:
            pytest.skip(str(error))
        with TensorRTEngine(made) as engine:
            assert engine.interface.inputs[0].dtype == np.dtype(dtype)
            x = np.arange(-4, 5).astype(dtype)
            found = engine.run({"x": x})["y"]
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found, ~x if operator == "Not" else x + x)

    def test_shapes_that_data_decide(self, flavour: Flavour, device: Device, tmp_path: Path) -> None:
        proto = one_node("NonZero", TensorProto.FLOAT, TensorProto.INT64)
        try:
            made = build(proto, [VECTOR], tmp_path, flavour, device)
        except BuildRefusedError as error:
            pytest.skip(str(error))
        with TensorRTEngine(made) as engine:
            for n in (5, 1000, 1, 8, 8):
                x = np.random.default_rng(n).integers(0, 2, n).astype(np.float32)
                np.testing.assert_array_equal(engine.run({"x": x})["y"], np.stack(np.nonzero(x)))
            with pytest.raises(MeasurementError, match="cannot be captured"):
                engine.time_device({"x": x}, seconds=0.01, use_graph=True)


class TestInputs:
    @pytest.mark.parametrize("wrong", ["missing", "unknown", "type", "rank", "shape", "fixed"])
    def test_wrong_ones_are_named(self, engine: TensorRTEngine, wrong: str) -> None:
        inputs = feed()
        match wrong:
            case "missing":
                del inputs["side"]
            case "unknown":
                inputs["more"] = inputs["side"]
            case "type":
                inputs["side"] = inputs["side"].astype(np.float64)
            case "rank":
                inputs["side"] = inputs["side"][0]
            case "shape":
                inputs = feed(33, 64)
            case _:
                inputs["side"] = inputs["side"][:, :2]
        name = {"unknown": "more", "shape": "image"}.get(wrong, "side")
        with pytest.raises(MeasurementError, match=engine.sidecar.name) as caught:
            engine.run(inputs)
        assert repr(name) in str(caught.value)
        if wrong == "shape":
            assert "--shapes image:1x3x8x8:4x3x16x16:33x3x64x64" in str(caught.value)
        good = feed()
        close_to(engine.run(good)["scores"], on_cpu(network(), good)["scores"])


class TestThreads:
    @pytest.mark.parametrize("contexts", [1, 3])
    @pytest.mark.parametrize("graphs", [GraphMode.OFF, GraphMode.CAPTURED])
    def test_each_gets_its_own_results(self, path: Path, contexts: int, graphs: GraphMode) -> None:
        inputs = [feed(1 + seed % 4, 8 + 8 * (seed % 2), seed) for seed in range(12)]
        expected = [on_cpu(network(), one)["scores"] for one in inputs]
        with TensorRTEngine(path, contexts=contexts, graphs=graphs) as engine, ThreadPoolExecutor(6) as pool:
            for _ in range(4):
                for found, wanted in zip(pool.map(engine.run, inputs), expected, strict=True):
                    close_to(found["scores"], wanted)

    def test_two_engines_at_once(self, path: Path, flavour: Flavour, device: Device, tmp_path: Path) -> None:
        other = build(one_node("Add", TensorProto.FLOAT, twice=True), [VECTOR], tmp_path, flavour, device)
        inputs, x = feed(), np.arange(9, dtype=np.float32)
        expected = on_cpu(network(), inputs)["scores"]
        with TensorRTEngine(path) as first, TensorRTEngine(other) as second, ThreadPoolExecutor(2) as pool:
            for _ in range(30):
                a, b = pool.submit(first.run, inputs), pool.submit(second.run, {"x": x})
                close_to(a.result()["scores"], expected)
                np.testing.assert_array_equal(b.result()["y"], x + x)
            first.close()
            np.testing.assert_array_equal(second.run({"x": x})["y"], x + x)

    def test_next_to_torch(self, engine: TensorRTEngine) -> None:
        """Torch finds its own context again, before and after, in this thread and another."""
        torch = pytest.importorskip("torch", reason="needs torch")
        if not torch.cuda.is_available():
            pytest.skip("needs torch with CUDA")
        inputs = feed()
        expected = on_cpu(network(), inputs)["scores"]

        def both() -> None:
            a = torch.arange(1000.0, device="cuda")
            for _ in range(10):
                close_to(engine.run(inputs)["scores"], expected)
                assert float((a * 2).sum()) == 999_000.0
            assert torch.cuda.current_device() == 0

        both()
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(both) for _ in range(4)]:
                future.result()


class TestGraphs:
    @pytest.mark.parametrize("mode", [GraphMode.CAPTURED, GraphMode.RUNTIME])
    def test_bit_for_bit(self, path: Path, flavour: Flavour, mode: GraphMode) -> None:
        if mode is GraphMode.RUNTIME and not hasattr(flavour.module, "CudaGraphStrategy"):
            pytest.skip(f"{flavour.product} has no graphs of its own")
        inputs = [feed(n, size, n) for n, size in ((4, 16), (4, 16), (1, 8), (32, 64), (4, 16))]
        with TensorRTEngine(path) as plain, TensorRTEngine(path, graphs=mode) as graphs:
            for one in inputs:
                expected = plain.run(one)
                for _ in range(3):
                    found = graphs.run(one)
                    for name, value in expected.items():
                        np.testing.assert_array_equal(found[name], value)


class TestMemory:
    def test_a_thousand_runs(self, path: Path, device: Device) -> None:
        with TensorRTEngine(path) as engine:
            inputs = [feed(n, 16, n) for n in (1, 4, 8)]
            for one in inputs * 3:
                engine.run(one)
            before = device.free_bytes()
            for index in range(1000):
                engine.run(inputs[index % 3])
            assert before - device.free_bytes() <= 2 << 20

    def test_opening_and_closing(self, path: Path, device: Device) -> None:
        inputs = feed()
        for _ in range(2):
            with TensorRTEngine(path) as engine:
                engine.run(inputs)
        before = device.free_bytes()
        for _ in range(5):
            with TensorRTEngine(path, contexts=2) as engine:
                engine.run(inputs)
        assert before - device.free_bytes() <= 16 << 20

    def test_at_the_end_of_a_process(self, path: Path) -> None:
        """An engine that is left open is let go in order, without a word."""
        script = (
            "import sys, threading, numpy as np\n"
            "from pathlib import Path\n"
            "from quantlab.engines.tensorrt.engine import TensorRTEngine\n"
            "engine = TensorRTEngine(Path(sys.argv[1]), contexts=2)\n"
            "feed = {'image': np.ones((2, 3, 8, 8), np.float32), 'side': np.ones((2, 4), np.float32)}\n"
            "t = threading.Thread(target=engine.run, args=(feed,))\n"
            "t.start(); t.join()\n"
            "print(engine.run(feed)['scores'].shape)\n"
        )
        command = [sys.executable, "-c", script, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "(2, 10)"), done.stderr
        for word in ("PyCUDA", "Traceback", "rror"):
            assert word not in done.stderr, done.stderr


class TestTimes:
    def test_figures(self, engine: TensorRTEngine) -> None:
        times = engine.time_device(feed(32, 64), seconds=0.5, warmup_ms=100)
        figures = device_figures(times)
        assert figures.queries >= 10
        assert figures.batch_size == 32
        assert 0.001 < figures.compute.median_ms < 100
        assert 0.001 < figures.h2d.median_ms < 100
        assert 0.001 < figures.d2h.median_ms < 100
        assert figures.enqueue.median_ms > 0
        assert figures.walltime_s >= 0.45
        parts = figures.h2d.mean_ms + figures.compute.mean_ms + figures.d2h.mean_ms
        assert figures.latency.mean_ms == pytest.approx(parts)
        slowest = max(figures.h2d.mean_ms, figures.compute.mean_ms, figures.d2h.mean_ms)
        assert figures.throughput_qps <= 1.1 * 1000 / slowest, "no stage is faster than it was timed"
        assert times.first_run_ms > 0
        print(figures)

    def test_graphs_and_no_transfers(self, engine: TensorRTEngine) -> None:
        inputs = feed(1, 8)
        plain = device_figures(engine.time_device(inputs, seconds=0.3, transfers=False))
        graph = device_figures(engine.time_device(inputs, seconds=0.3, transfers=False, use_graph=True, spin=True))
        assert (plain.h2d.max_ms, plain.d2h.max_ms) == (0.0, 0.0)
        assert plain.latency == plain.compute
        assert graph.compute.median_ms < 1.5 * plain.compute.median_ms
        assert graph.enqueue.median_ms < 1.2 * plain.enqueue.median_ms, "one call instead of one a kernel"
        print(plain, graph, sep="\n")
        close_to(engine.run(inputs)["scores"], on_cpu(network(), inputs)["scores"])

    def test_layers(self, engine: TensorRTEngine) -> None:
        inputs = feed(8, 32)
        layers = engine.profile(inputs, runs=5)
        assert layers
        assert all(ms >= 0 for ms in layers.values())
        assert sum(layers.values()) > 0
        print(layers)
        close_to(engine.run(inputs)["scores"], on_cpu(network(), inputs)["scores"])

    def test_inspector(self, engine: TensorRTEngine) -> None:
        engine.run(feed())
        found = json.loads(engine.inspect())
        assert found["Layers"]
        print(json.dumps(found, indent=1)[:2000])


class TestRefusals:
    def copy(self, path: Path, folder: Path, data: bytes) -> Path:
        made = folder / path.name
        made.write_bytes(data)
        return made

    @pytest.mark.parametrize("kept", [0, 10, 100, -1000])
    def test_truncated_although_vouched_for(
        self, path: Path, flavour: Flavour, device: Device, tmp_path: Path, kept: int
    ) -> None:
        """The sidecar was made for the truncated file, so that only the library can tell; it may not crash."""
        made = self.copy(path, tmp_path, path.read_bytes()[:kept])
        vouch(made, [SMALL, LARGE], flavour, device)
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from quantlab.engines.tensorrt.engine import TensorRTEngine\n"
            "from quantlab.errors import EngineMismatch\n"
            "try:\n"
            "    TensorRTEngine(Path(sys.argv[1]))\n"
            "except EngineMismatch as error:\n"
            "    print('refused:', error)\n"
        )
        command = [sys.executable, "-c", script, str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "refused" in done.stdout
        print(done.stdout)

    def test_another_file_than_the_sidecars(self, path: Path, tmp_path: Path) -> None:
        made = self.copy(path, tmp_path, path.read_bytes()[:-1])
        sidecar_path(made).write_bytes(sidecar_path(path).read_bytes())
        with pytest.raises(EngineMismatch, match="is not the file its sidecar describes"):
            TensorRTEngine(made)

    def test_trust(self, path: Path, flavour: Flavour, tmp_path: Path) -> None:
        made = self.copy(path, tmp_path, path.read_bytes())
        with pytest.raises(EngineMismatch, match="has no sidecar"):
            TensorRTEngine(made)
        inputs = feed()
        with TensorRTEngine(made, trust=True, backend=flavour.backend) as engine:
            close_to(engine.run(inputs)["scores"], on_cpu(network(), inputs)["scores"])

    def test_built_elsewhere(self, path: Path, flavour: Flavour, device: Device, tmp_path: Path) -> None:
        """Recorded for another version and GPU: refused by the record, or by a library that can tell opened anyway."""
        made = self.copy(path, tmp_path, path.read_bytes())
        vouch(made, [SMALL, LARGE], flavour, device, version="0.1", compute_capability="5.0", gpu="Maxwell")
        if flavour.has_validity:
            with TensorRTEngine(made) as engine:
                assert [one.what for one in engine.differences] == ["version", "compute capability", "GPU"]
            return
        with pytest.raises(EngineMismatch, match="was built for another place") as caught:
            TensorRTEngine(made)
        assert "Maxwell" in str(caught.value)

    def test_the_cache_of_compiled_kernels(
        self, path: Path, flavour: Flavour, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        if not hasattr(flavour.module, "IRuntimeCache"):
            pytest.skip(f"{flavour.product} compiles nothing at run time")
        cache = tmp_path / "kernels.cache"
        inputs = feed()
        first_runs = []
        for _ in range(2):
            with TensorRTEngine(path, runtime_cache=cache) as engine:
                found = engine.run(inputs)["scores"]
                first_runs.append((engine.load_ms, engine.first_run_ms))
            close_to(found, on_cpu(network(), inputs)["scores"])
            assert cache.stat().st_size > 0
        assert "is not used" not in caplog.text
        print("load and first run, without and with the cache:", first_runs)
        cache.write_bytes(b"rubbish")
        with TensorRTEngine(path, runtime_cache=cache) as engine:
            close_to(engine.run(inputs)["scores"], on_cpu(network(), inputs)["scores"])
        assert "is not used" in caplog.text


def test_the_models_differ_from_zero() -> None:
    """On the CPU: a model whose outputs are zero would pass any comparison."""
    scores = on_cpu(network(), feed())["scores"]
    assert np.abs(scores).max() > 0.1
    assert np.std(scores, axis=0).max() > 0.01
    assert gpu_engines.SMALL["image"][2] == LARGE["image"][0]
