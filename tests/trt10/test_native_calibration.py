"""INT8 that TensorRT 10 calibrates itself: from samples to the sidecar, over the stand-in's calibrating builder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from stand_in import HostStaging, StandIn
from test_builder10 import ENGINE, Tensorrt10, module, variant  # noqa: F401 - a fixture

from quantlab.calibrators.cache_provenance import load_cache
from quantlab.cli.main import State, group
from quantlab.datasets import Sample
from quantlab.degradation import DegradationCode
from quantlab.engines.record import Profile
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.tensorrt.builder import TensorRTBuilder
from quantlab.engines.tensorrt.calibration import NativeCalibration, optimum_batch
from quantlab.engines.tensorrt.flavour import TENSORRT, Flavour
from quantlab.engines.tensorrt.options import BuildOptions, Typing
from quantlab.errors import CalibrationError, ConfigError, DataError, EngineMismatch, ModelError
from quantlab.graph.model import Model
from quantlab.precision import Precision
from quantlab.progress import Silent
from quantlab.workflow import native_calibration

from engine_data import MemoryData, cnn, samples  # isort: skip - found by test_builder10

T = TypeVar("T")
NAME = "tensorrt-int8-trt-entropy2"
BATCH_OF_4 = (
    {
        "image": Profile((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)),
        "side": Profile((1, 4), (4, 4), (8, 4)),
    },
)


@pytest.fixture
def calibrating(trt: StandIn, module: Tensorrt10) -> Tensorrt10:  # noqa: F811 - the fixture
    """A builder that calls the calibrator as TensorRT does, on a network with the model's inputs."""

    def act(config: Any) -> bytes | None:
        network = trt.network(image=("FLOAT", (-1, 3, 8, 8)), side=("FLOAT", (-1, 4)))
        genuine = trt.builder.create_builder_config()
        genuine.int8_calibrator = config.int8_calibrator
        profile = trt.builder.create_optimization_profile()
        if config.set_calibration_profile.called:  # it is not, without data
            for call in config.set_calibration_profile.call_args.args[0].set_shape.call_args_list:
                profile.set_shape(*call.args)
            genuine.set_calibration_profile(profile)
        return ENGINE if trt.build(network, genuine) is not None else None

    module.act = act
    return module


def build(folder: Path, precision: Precision = Precision.INT8, narrator: Any = None, **wanted: Any) -> Sidecar:
    wanted.setdefault("staging", HostStaging)
    calibration = NativeCalibration(**wanted)
    options = BuildOptions(typing=Typing.WEAK, profiles=BATCH_OF_4)
    return read_sidecar(TensorRTBuilder(TENSORRT, options, narrator, calibration).build(variant(precision), folder))


def codes(sidecar: Sidecar) -> set[DegradationCode]:
    return {one.code for one in sidecar.degradations}


class Changing(MemoryData):
    """Gives other samples in the second pass."""

    def __init__(self, given: list[Sample], second: Callable[[int, Sample], Sample]) -> None:
        super().__init__(given)
        self.passes = 0
        self.second = second

    def __iter__(self) -> Iterator[Sample]:
        self.passes += 1
        for index, sample in enumerate(self.samples):
            yield sample if self.passes == 1 else self.second(index, sample)


class TestData:
    def test_samples_become_ranges(self, trt: StandIn, calibrating: Tensorrt10, tmp_path: Path) -> None:
        given = samples(12)
        sidecar = build(tmp_path, dataset=MemoryData(given))
        assert trt.profile == [f"{name}:4x{rest}" for name, rest in (("image", "3x8x8"), ("side", "4")) for _ in "123"]
        assert trt.batches == [
            np.concatenate([np.stack([s.inputs[name] for s in given[i : i + 4]]).ravel() for name in ("image", "side")])
            .astype(np.float32)
            .tobytes()
            for i in (0, 4, 8)
        ]
        assert (sidecar.name, sidecar.method, sidecar.table_sha256) == (NAME, "trt-entropy2", None)
        assert sidecar.calibration_samples == tuple(sorted(sample.sha256 for sample in given))
        assert sidecar.preprocess_sha256 == "", "ready tensors"
        assert sidecar.engine is not None
        told = {key: value for key, value in sidecar.engine.options.items() if key.startswith("calibrat")}
        assert told == {"calibrator": "entropy2", "calibration-batch": "4", "calibration-ranges": "data"}
        assert "INT8" in calibrating.flags()

    def test_the_cache_lies_beside_the_engine(self, calibrating: Tensorrt10, tmp_path: Path) -> None:
        given = samples(12)
        build(tmp_path, dataset=MemoryData(given))
        cache, provenance = load_cache(tmp_path / f"{NAME}.calib")
        largest = max(float(np.abs(sample.inputs["image"]).max()) for sample in given)
        assert cache.scales["image"] * 127 == pytest.approx(largest, rel=1e-6)
        assert provenance is not None
        assert (provenance.cache, provenance.method) == (f"{NAME}.calib", "tensorrt")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"{NAME}.calib", f"{NAME}.calib.json", f"{NAME}.engine", f"{NAME}.engine.engine.json",
        ]  # fmt: skip

    def test_another_build_calibrates_anew(self, trt: StandIn, calibrating: Tensorrt10, tmp_path: Path) -> None:
        """The cache beside the engine is a result; only one that is named is read."""
        build(tmp_path, dataset=MemoryData(samples(12)))
        trt.reset()
        sidecar = build(tmp_path, dataset=MemoryData(samples(8, seed=2)))
        assert len(trt.batches) == 2
        assert len(sidecar.calibration_samples) == 8
        assert load_cache(tmp_path / f"{NAME}.calib")[1] is not None

    @pytest.mark.parametrize(
        ("calibrator", "kind"),
        [
            ("minmax", "IInt8MinMaxCalibrator"),
            ("entropy", "IInt8EntropyCalibrator"),
            ("legacy", "IInt8LegacyCalibrator"),
        ],
    )
    def test_calibrators(self, calibrator: str, kind: str, calibrating: Tensorrt10, tmp_path: Path) -> None:
        sidecar = build(tmp_path, calibrator=calibrator, dataset=MemoryData(samples(12)))
        assert isinstance(calibrating.config.int8_calibrator, getattr(calibrating, kind))
        assert sidecar.method == f"trt-{calibrator}"

    def test_fp16_beside_it(self, calibrating: Tensorrt10, tmp_path: Path) -> None:
        sidecar = build(tmp_path, Precision.INT8_FP16, dataset=MemoryData(samples(12)))
        assert sidecar.name == "tensorrt-int8-fp16-trt-entropy2"
        assert {"INT8", "FP16"} <= calibrating.flags()

    def test_samples_left_over_are_told(self, calibrating: Tensorrt10, tmp_path: Path) -> None:
        sidecar = build(tmp_path, dataset=MemoryData(samples(10)))
        (dropped,) = [one for one in sidecar.degradations if one.code is DegradationCode.DROPPED_SAMPLES]
        assert dropped.count == 2
        assert DegradationCode.UNMATCHED_RANGES in codes(sidecar), "the stand-in knows of no layers"

    def test_the_default_profile_has_batches_of_1(self) -> None:
        assert optimum_batch(Model.of(cnn()), ()) == 1
        assert optimum_batch(Model.of(cnn()), BATCH_OF_4) == 4
        assert optimum_batch(Model.of(cnn(3)), ()) == 3

    def test_inputs_of_several_batches(self) -> None:
        other = ({**BATCH_OF_4[0], "side": Profile((1, 4), (2, 4), (8, 4))},)
        with pytest.raises(ModelError, match="no batch of one size") as caught:
            optimum_batch(Model.of(cnn()), other)
        assert caught.value.got == "batches of 2, 4"


class TestNamedCache:
    def test_written_then_read(self, trt: StandIn, calibrating: Tensorrt10, tmp_path: Path) -> None:
        file, data = tmp_path / "kept" / "net.cache", MemoryData(samples(12))
        build(tmp_path / "a", dataset=data, cache=file)
        assert [path.name for path in (tmp_path / "a").glob("*.calib")] == []
        before = file.read_bytes()
        trt.reset()
        sidecar = build(tmp_path / "b", dataset=data, cache=file)
        assert trt.calls == ["read"], "no batch was asked for"
        assert sidecar.engine is not None
        assert sidecar.engine.options["calibration-ranges"] == "cache"
        assert len(sidecar.calibration_samples) == 12
        assert file.read_bytes() == before

    def test_it_stands_in_for_data(self, trt: StandIn, calibrating: Tensorrt10, tmp_path: Path) -> None:
        file = tmp_path / "net.cache"
        build(tmp_path / "a", dataset=MemoryData(samples(12)), cache=file)
        trt.reset()
        sidecar = build(tmp_path / "b", cache=file)
        assert trt.calls == ["read"]
        assert (sidecar.method, sidecar.calibration_samples) == ("cache-entropy2", ())
        assert sidecar.preprocess_sha256 is None

    def test_of_other_data(self, calibrating: Tensorrt10, tmp_path: Path) -> None:
        file = tmp_path / "net.cache"
        build(tmp_path / "a", dataset=MemoryData(samples(12)), cache=file)
        with pytest.raises(EngineMismatch, match="does not fit"):
            build(tmp_path / "b", dataset=MemoryData(samples(12, seed=5)), cache=file)
        assert not (tmp_path / "b").exists()

    def test_rejected(self, trt: StandIn, calibrating: Tensorrt10, tmp_path: Path) -> None:
        file, data = tmp_path / "net.cache", MemoryData(samples(12))
        build(tmp_path / "a", dataset=data, cache=file)
        trt.reset()
        trt.reject_caches()
        sidecar = build(tmp_path / "b", dataset=data, cache=file)
        assert len(trt.batches) == 3
        assert DegradationCode.CACHE_REJECTED in codes(sidecar)
        assert sidecar.engine is not None
        assert sidecar.engine.options["calibration-ranges"] == "data"

    def test_rejected_without_data(self, trt: StandIn, calibrating: Tensorrt10, tmp_path: Path) -> None:
        file = tmp_path / "net.cache"
        build(tmp_path / "a", dataset=MemoryData(samples(12)), cache=file)
        trt.reject_caches()
        with pytest.raises(CalibrationError, match="did not take"):
            build(tmp_path / "b", cache=file)
        assert not (tmp_path / "b").exists()


class TestFailures:
    @pytest.fixture
    def staging(self) -> HostStaging:
        return HostStaging()

    def test_data_that_change_stop_the_build(
        self, trt: StandIn, calibrating: Tensorrt10, staging: HostStaging, tmp_path: Path
    ) -> None:
        def second(index: int, sample: Sample) -> Sample:
            broken = {**sample.inputs, "side": np.full(4, np.nan, np.float32)}
            return Sample(sample.id, broken, None, sample.sha256) if index == 5 else sample

        going: list[bool] = []
        plain = calibrating.act

        def act(config: Any) -> bytes | None:
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            going.append(monitor.step_complete("Building", 0))
            result = plain(config)
            going.append(monitor.step_complete("Building", 1))
            return result

        calibrating.act = act
        with pytest.raises(DataError, match="not finite"):
            build(tmp_path, dataset=Changing(samples(12), second), staging=lambda: staging)
        assert len(trt.batches) == 1
        assert going == [True, False], "TensorRT is told to end the build"
        assert staging.closed == 1
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_ends_the_calibration(
        self, trt: StandIn, calibrating: Tensorrt10, staging: HostStaging, tmp_path: Path
    ) -> None:
        begun = threading.Event()
        upload = staging.upload

        def slowly(name: str, array: NDArray[np.generic]) -> int:
            begun.set()
            time.sleep(0.02)
            return upload(name, array)

        class Interrupting(Silent):
            def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
                if not what.startswith("building"):
                    return items
                assert begun.wait(10)
                raise KeyboardInterrupt

        staging.upload = slowly  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, narrator=Interrupting(), dataset=MemoryData(samples(400)), staging=lambda: staging)
        assert 1 <= len(staging.uploads) < 200, "of 100 batches with two inputs each"
        assert staging.closed == 1
        assert list(tmp_path.iterdir()) == []

    def test_too_few_samples(self, calibrating: Tensorrt10, staging: HostStaging, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="do not fill one calibration batch"):
            build(tmp_path, dataset=MemoryData(samples(3)), staging=lambda: staging)
        assert staging.closed == 1

    def test_nothing_to_calibrate_with(self) -> None:
        with pytest.raises(ConfigError, match="nothing to calibrate with"):
            NativeCalibration()
        with pytest.raises(ConfigError, match="no calibrator 'entropi2'") as caught:
            NativeCalibration("entropi2", MemoryData(samples(1)))
        assert caught.value.hint == "did you mean 'entropy2'?"


def test_the_command_line(
    trt: StandIn, calibrating: Tensorrt10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No table is needed for what TensorRT calibrates."""
    for place in ("quantlab.workflow.build", "quantlab.workflow.native_calibration"):
        monkeypatch.setattr(f"{place}.load_flavour", lambda name: Flavour(name, calibrating))
    monkeypatch.setattr(native_calibration, "NativeCalibration", partial(NativeCalibration, staging=HostStaging))
    onnx.save(cnn(), tmp_path / "net.onnx")
    given = samples(10)
    arrays = {name: np.stack([sample.inputs[name] for sample in given]) for name in ("image", "side")}
    np.savez(tmp_path / "data.npz", **arrays)
    words = f"build --model {tmp_path}/net.onnx --backend tensorrt --typing weak --precisions int8 -o {tmp_path}/out"
    calibration = f"--data {tmp_path}/data.npz --limit 8 --calibrator minmax --threads 1"
    shapes = "--shapes image:1x3x8x8:4x3x8x8:8x3x8x8 --shapes side:1x4:4x4:8x4 --json"
    result = CliRunner().invoke(group, f"{words} {calibration} {shapes}".split(), obj=State(), catch_exceptions=False)
    assert result.exit_code == 0
    assert len(trt.batches) == 2
    (sidecar,) = [read_sidecar(path) for path in (tmp_path / "out").glob("*.engine")]
    assert (sidecar.name, sidecar.table_sha256) == ("tensorrt-int8-trt-minmax", None)
    assert len(sidecar.calibration_samples) == 8
    assert (tmp_path / "out" / "tensorrt-int8-trt-minmax.calib").is_file()
