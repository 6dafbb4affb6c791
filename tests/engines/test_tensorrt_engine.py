"""Running an engine: results, inputs, shapes and profiles, over a runtime in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import ml_dtypes
import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_engines import expect, feed, fixed_model, write_engine
from fake_tensorrt import DataType, FakeModel, FakeTensor, Layout, State

from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.slot import GraphMode
from quantlab.errors import MeasurementError


class TestRunning:
    def test_outputs_by_name(self, state: State, tmp_path: Path) -> None:
        inputs = feed()
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            assert engine.outputs == ("y", "total")
            found = engine.run(dict(reversed(inputs.items())))
            assert tuple(found) == engine.outputs
            np.testing.assert_array_equal(found["y"], expect(inputs))
            assert found["total"].shape == (2,)
            assert engine.sidecar.name == "tensorrt-fp32"
            assert engine.load_ms > 0

    def test_results_are_the_callers_own(self, state: State, tmp_path: Path) -> None:
        inputs, others = feed(), feed(seed=1)
        engine = TensorRTEngine(write_engine(tmp_path, "scale"))
        first = engine.run(inputs)["y"]
        assert first.flags.owndata
        engine.run(others)
        engine.close()
        np.testing.assert_array_equal(first, expect(inputs))

    def test_inputs_of_any_strides(self, state: State, tmp_path: Path) -> None:
        inputs = feed(4, 8)
        turned = {**inputs, "x": np.asfortranarray(inputs["x"])}
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            np.testing.assert_array_equal(engine.run(turned)["y"], expect(inputs))

    def test_the_first_run_is_reported(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            assert engine.first_run_ms is None
            engine.run(feed())
            first = engine.first_run_ms
            assert first is not None
            assert first > 0
            engine.run(feed())
            assert engine.first_run_ms == first

    def test_fixed_batches_are_filled_and_cut(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "fixed", fixed_batch=4)) as engine:
            x = np.arange(6, dtype=np.float32).reshape(3, 2)
            np.testing.assert_array_equal(engine.run({"x": x})["y"], x + 1)
            with pytest.raises(MeasurementError, match="larger than the model takes"):
                engine.run({"x": np.zeros((5, 2), np.float32)})

    @pytest.mark.parametrize("kind", [DataType.BF16, DataType.HALF, DataType.INT64, DataType.INT8, DataType.BOOL])
    def test_types(self, state: State, tmp_path: Path, kind: DataType) -> None:
        model = fixed_model(4)
        model.inputs["x"].kind = model.outputs["y"].kind = kind
        model.compute = lambda feed: {"y": feed["x"]}
        state.models["typed"] = model
        with TensorRTEngine(write_engine(tmp_path, "typed")) as engine:
            x = np.array([[0, 1], [1, 0], [1, 1], [0, 0]]).astype(engine.interface.inputs[0].dtype)
            found = engine.run({"x": x})["y"]
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found, x)
        expected = {DataType.BF16: ml_dtypes.bfloat16, DataType.INT64: np.int64, DataType.BOOL: np.bool_}
        if kind in expected:
            assert x.dtype == expected[kind]

    def test_a_type_that_arrays_do_not_have(self, state: State, tmp_path: Path) -> None:
        state.models["fixed"].outputs["y"].kind = DataType.INT4
        with pytest.raises(MeasurementError, match="tensor 'y' is of type INT4"):
            TensorRTEngine(write_engine(tmp_path, "fixed"))

    def test_packed_memory_is_refused(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeCuda, tmp_path: Path) -> None:
        state = fake_tensorrt.install(monkeypatch, gpu, layout=Layout.CHW32)
        state.models["fixed"] = fixed_model(4)
        with pytest.raises(MeasurementError, match="tensor 'x' is packed as CHW32"):
            TensorRTEngine(write_engine(tmp_path, "fixed"))
        assert gpu.live == {}

    def test_an_execution_that_fails(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        inputs = feed()
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            engine.run(inputs)
            state.fail_enqueue = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (out of memory)"
            with pytest.raises(MeasurementError, match="tensorrt-fp32: failed to run") as caught:
                engine.run(inputs)
            assert caught.value.got == state.fail_enqueue
            state.fail_enqueue = None
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
        assert gpu.stack == []

    def test_errors_of_the_driver(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:

            def refuse(*_: object) -> None:
                raise fake_cuda.LogicError("an illegal memory access was encountered")

            engine.device.driver.memcpy_htod_async = refuse
            with pytest.raises(MeasurementError, match="tensorrt-fp32 failed to run") as caught:
                engine.run(feed())
            assert "illegal memory access" in str(caught.value)


class TestInputs:
    @pytest.mark.parametrize(
        ("change", "what", "got", "expected"),
        [
            (lambda f: f.pop("side"), "input 'side' is missing", "x", "x, side"),
            (lambda f: f.update(more=f["x"]), "input 'more' is not one of its inputs", "x, side, more", "x, side"),
            (lambda f: f.update(x=f["x"].astype(np.float64)), "input 'x' has the wrong type", "float64", "float32"),
            (lambda f: f.update(x=f["x"][0]), "input 'x' has 2 axes", "3x4", "?x3x?"),
            (lambda f: f.clear(), "input 'x', 'side' is missing", "no inputs", "x, side"),
        ],
    )
    def test_wrong_ones_are_named(
        self, state: State, tmp_path: Path, change: Callable[[Any], Any], what: str, got: str, expected: str
    ) -> None:
        inputs = feed()
        change(inputs)
        with (
            TensorRTEngine(write_engine(tmp_path, "scale")) as engine,
            pytest.raises(MeasurementError, match=f"tensorrt-fp32: {what}") as caught,
        ):
            engine.run(inputs)
        assert (caught.value.got, caught.value.expected) == (got, expected)

    def test_a_shape_outside_every_profile(self, state: State, tmp_path: Path) -> None:
        with (
            TensorRTEngine(write_engine(tmp_path, "scale")) as engine,
            pytest.raises(MeasurementError, match="input 'x' has a shape that it was not built for") as caught,
        ):
            engine.run(feed(3, 9))
        assert caught.value.got == "x 3x3x9"
        assert caught.value.expected == "x 1x3x2 to 4x3x8 or x 4x3x2 to 32x3x4"
        assert caught.value.hint is not None
        assert "--shapes x:1x3x2:2x3x4:4x3x9" in caught.value.hint

    def test_shapes_that_fit_no_one_profile(self, state: State, tmp_path: Path) -> None:
        """Each alone would fit one."""
        inputs = {**feed(2), "side": np.zeros((16, 1, 1), np.float32)}
        with (
            TensorRTEngine(write_engine(tmp_path, "scale")) as engine,
            pytest.raises(MeasurementError, match="'side', 'x' has shapes that no one profile takes together"),
        ):
            engine.run(inputs)

    def test_a_size_that_the_model_fixes(self, state: State, tmp_path: Path) -> None:
        inputs = feed()
        inputs["x"] = inputs["x"][:, :2]
        with (
            TensorRTEngine(write_engine(tmp_path, "scale")) as engine,
            pytest.raises(MeasurementError, match="'x' has a shape") as caught,
        ):
            engine.run(inputs)
        assert caught.value.hint == "the model itself fixes that size: export it with a dynamic axis"


class TestProfiles:
    def profile_of(self, engine: TensorRTEngine) -> int:
        found: int = engine._native.slots[0].context.active_optimization_profile
        return found

    @pytest.mark.parametrize(("n", "profile"), [(1, 0), (3, 0), (32, 1), (4, 0), (5, 1)])
    def test_one_that_fits_is_taken(self, state: State, tmp_path: Path, n: int, profile: int) -> None:
        """A batch of 4 fits both, and is nearer to the optimum of the first."""
        inputs = feed(n)
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
            assert self.profile_of(engine) == profile

    def test_switching_there_and_back(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            for n, width in ((1, 2), (32, 4), (4, 8), (1, 2), (1, 3), (8, 2), (8, 2)):
                inputs = feed(n, width, seed=n)
                np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))

    def test_shapes_that_stay_are_not_set_again(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            context = engine._native.slots[0].context
            engine.run(feed(2))
            before = context.settings
            engine.run(feed(2, seed=1))
            assert context.settings == before
            engine.run(feed(3))
            assert context.settings > before
            del context

    def test_memory_is_taken_once_for_the_largest(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
            spent, allocations = gpu.spent(), gpu.allocations
            assert spent == 4 * (32 * 3 * 4 + 32 + 32 * 3 * 4 + 32)
            for n in (32, 1, 4, 16):
                engine.run(feed(n, 2))
            assert (gpu.spent(), gpu.allocations) == (spent, allocations)

    def test_out_of_memory_names_the_tensor(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        gpu.memory_bytes = 1000
        with pytest.raises(MeasurementError, match="tensor 'x' does not fit") as caught:
            TensorRTEngine(write_engine(tmp_path, "scale"), contexts=3)
        assert caught.value.expected == f"{4 * 32 * 3 * 4:,} bytes"
        del caught
        gc.collect()
        assert (gpu.live, gpu.pinned, gpu.stack) == ({}, 0, [])


class TestDataDependent:
    def test_outputs_as_large_as_the_data_say(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "nonzero")) as engine:
            for values in ([1, -1, 2], [-1.0], [3, 4, 5, 6, 7], [1, -1, 2], [0, 0]):
                x = np.array(values, np.float32)
                np.testing.assert_array_equal(engine.run({"x": x})["found"], x[x > 0])
            x = np.arange(64, dtype=np.float32)
            assert engine.run({"x": x})["found"].shape == (63,)
        assert gpu.live == {}

    def test_out_of_memory_in_the_allocator(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "nonzero")) as engine:
            gpu.memory_bytes = gpu.spent() + 8
            with pytest.raises(MeasurementError, match="tensor 'found' does not fit"):
                engine.run({"x": np.ones(64, np.float32)})
            gpu.memory_bytes = 1 << 30
            assert engine.run({"x": np.ones(64, np.float32)})["found"].shape == (64,)

    def test_no_graph(self, state: State, tmp_path: Path) -> None:
        x = {"x": np.array([1, -1], np.float32)}
        with TensorRTEngine(write_engine(tmp_path, "nonzero"), graphs=GraphMode.CAPTURED) as engine:
            assert engine.run(x)["found"].tolist() == [1]
            with pytest.raises(MeasurementError, match="cannot be captured") as caught:
                engine.time_device(x, use_graph=True)
            assert "'found'" in str(caught.value)

    def test_sizes_that_the_host_decides(self, state: State, tmp_path: Path) -> None:
        """An input in host memory whose contents are the output's shape."""
        state.models["resize"] = FakeModel(
            inputs={"x": FakeTensor((-1,)), "size": FakeTensor((1,), DataType.INT32, host=True)},
            outputs={"y": FakeTensor((-1,))},
            profiles=[{"x": ((1,), (2,), (4,)), "size": ((1,), (1,), (1,))}],
            shapes=lambda shapes, hosts: {"y": (int(hosts["size"][0]),) if "size" in hosts else (-1,)},
            compute=lambda feed: {"y": np.resize(feed["x"], int(feed["size"][0]))},
        )
        with TensorRTEngine(write_engine(tmp_path, "resize")) as engine:
            x = np.array([1, 2], np.float32)
            for size in (3, 8, 2):
                found = engine.run({"x": x, "size": np.array([size], np.int32)})["y"]
                np.testing.assert_array_equal(found, np.resize(x, size))
