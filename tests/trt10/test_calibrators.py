"""The four calibrators, driven through the genuine bindings of TensorRT 10 in the sequence that TensorRT documents."""

from __future__ import annotations

import gc
import types
import warnings

import numpy as np
import pytest
from calibration_bench import Case, Listener, MemoryData, case, rows
from stand_in import HostStaging, StandIn

from quantlab.calibrators import CalibrationCache
from quantlab.calibrators.tensorrt import (
    CalibrationData,
    LegacyOptions,
    RangeOrigin,
    make_calibrator,
    network_tensors,
)
from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.datasets import InputSpec, Preprocess, wrap_items
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import BackendUnavailable, ConfigError, DataError, EngineBuildError, ExitCode, ModelError

TWO = {"image": ("FLOAT", (-1, 3, 4)), "ids": ("INT64", (-1, 2))}


def two_inputs(n: int = 8) -> MemoryData:
    return MemoryData({"ids": np.arange(2 * n).reshape(n, 2), "image": rows(n, 3, 4)})


@pytest.mark.parametrize("algorithm", Algorithm)
class TestEveryAlgorithm:
    def test_calibrates_on_a_data_set(self, trt: StandIn, algorithm: Algorithm) -> None:
        images = rows(12, 3, 4)
        one = case(trt, algorithm, MemoryData({"x": images}))
        assert isinstance(one.calibrator.native, getattr(trt.module, algorithm.calibrator))
        assert one.build() == b"engine"
        assert trt.calls == ["read", "size 1", *["batch"] * 4, "write"]
        assert trt.batches == [images[i : i + 4].tobytes() for i in (0, 4, 8)]
        assert trt.int8
        one.calibrator.raise_pending()
        outcome = one.calibrator.complete()
        assert (outcome.algorithm, outcome.origin) == (algorithm, RangeOrigin.DATA)
        assert (outcome.batches_promised, outcome.batches, outcome.samples) == (3, 3, 12)
        assert outcome.shapes == {"x": (4, 3, 4)}
        scale = float(np.float32(np.abs(images).max()) / np.float32(127))
        assert outcome.cache == CalibrationCache(101601, algorithm.value, {"x": scale, "x_out": scale})
        assert outcome.degradations == ()

    def test_the_same_build_again(self, trt: StandIn, algorithm: Algorithm) -> None:
        one = case(trt, algorithm)
        one.build()
        first, calls, batches = one.calibrator.complete(), trt.calls, trt.batches
        trt.reset()
        one.build()
        assert (trt.calls, trt.batches) == (calls, batches)
        assert one.calibrator.complete() == first


def test_a_real_data_set(trt: StandIn) -> None:
    """From the data sets of the package: decoded in threads, any order of the inputs."""
    items = [{"x": image} for image in rows(9, 3, 4)]
    dataset = wrap_items(items, [InputSpec("x", (3, None))], Preprocess())
    staging = HostStaging()
    listener = Listener()
    data = CalibrationData(dataset, 2, staging)
    with make_calibrator(trt.module, Algorithm.ENTROPY_2, data=data, narrator=listener) as calibrator:
        assert Case(trt, calibrator, {"x": ("FLOAT", (-1, 3, -1))}).build() == b"engine"
        assert calibrator.complete().samples == 8
    assert trt.batches == [np.stack([item["x"] for item in items[i : i + 2]]).tobytes() for i in (0, 2, 4, 6)]
    assert listener.tracked == [("checking", 9, 9), ("calibrating", 8, 8)]
    assert staging.closed == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_addresses_are_in_the_order_that_is_asked_for(trt: StandIn, swapped: bool) -> None:
    dataset, staging = two_inputs(), HostStaging()
    one = case(trt, dataset=dataset, inputs=TWO, staging=staging)
    if swapped:
        trt.swap_inputs()
    one.build()
    assert one.calibrator.complete().batches == 2
    assert staging.uploads == (["ids", "image"] if swapped else ["image", "ids"]) * 2
    samples = [sample.inputs for sample in dataset.samples]
    for index, found in enumerate(trt.batches):
        part = samples[4 * index : 4 * index + 4]
        assert found == b"".join(np.stack([inputs[name] for inputs in part]).tobytes() for name in ("image", "ids"))


@pytest.mark.parametrize(("kind", "dtype"), [("INT32", np.int32), ("BOOL", np.bool_)])
def test_index_and_mask_inputs(trt: StandIn, kind: str, dtype: type[np.generic]) -> None:
    values = np.arange(8).reshape(4, 2).astype(dtype)
    inputs = {"x": ("FLOAT", (4, 2)), "k": (kind, (4, 2))}
    one = case(trt, dataset=MemoryData({"x": rows(4, 2), "k": values}), inputs=inputs)
    one.build()
    assert one.calibrator.complete().batches == 1
    assert trt.batches[0].endswith(values.tobytes())


def test_a_half_input_is_calibrated_in_float32(trt: StandIn) -> None:
    images = rows(4, 3, 4)
    one = case(trt, dataset=MemoryData({"x": images}), inputs={"x": ("HALF", (-1, 3, 4))})
    one.build()
    assert one.calibrator.complete().batches == 1
    assert trt.batches == [images.tobytes()]


class TestProfile:
    def test_of_dynamic_shapes_is_opt_alone(self, trt: StandIn) -> None:
        one = case(trt, dataset=two_inputs(), inputs=TWO)
        one.build()
        assert trt.profile == ["image:4x3x4"] * 3 + ["ids:4x2"] * 3

    def test_is_not_needed_for_fixed_shapes(self, trt: StandIn) -> None:
        one = case(trt, inputs={"x": ("FLOAT", (4, 3, 4))})
        one.build()
        assert trt.profile == []
        assert one.calibrator.complete().batches == 3

    @pytest.mark.parametrize("shape", [(2, 3, 4), (-1, 3, 5), (-1, 3), (-1, 3, 4, 1)])
    def test_data_that_do_not_fit(self, trt: StandIn, shape: tuple[int, ...]) -> None:
        one = case(trt, inputs={"x": ("FLOAT", shape)})
        with pytest.raises(DataError, match="do not fit input 'x'") as caught:
            one.build()
        assert caught.value.got == "(4, 3, 4)"
        assert trt.calls == []

    @pytest.mark.parametrize("kind", ["INT32", "INT64", "BOOL"])
    def test_data_of_another_kind(self, trt: StandIn, kind: str) -> None:
        one = case(trt, inputs={"x": (kind, (-1, 3, 4))})
        with pytest.raises(DataError, match="input 'x' have the wrong dtype") as caught:
            one.build()
        assert caught.value.got == "float32"
        assert kind.lower() in str(caught.value.expected)

    def test_an_input_without_data(self, trt: StandIn) -> None:
        one = case(trt, inputs=TWO, dataset=MemoryData({"image": rows(4, 3, 4)}))
        with pytest.raises(DataError, match="lack inputs") as caught:
            one.build()
        assert (caught.value.got, caught.value.expected) == ("image", "ids")

    def test_an_input_that_holds_a_shape(self, trt: StandIn) -> None:
        one = case(trt, inputs=TWO, dataset=two_inputs())
        network = trt.network(**TWO)
        trt.make_shape_input(network.get_input(1))
        with pytest.raises(ModelError, match="'ids' holds a shape"):
            one.calibrator.configure(trt.builder.create_builder_config(), trt.builder, network)

    def test_that_is_refused(self, trt: StandIn) -> None:
        trt.refuse_profiles()
        with pytest.raises(EngineBuildError, match="refuses the calibration profile") as caught:
            case(trt).build()
        assert caught.value.got == "x (4, 3, 4)"

    def test_warnings_that_are_errors(self, trt: StandIn) -> None:
        """The binding warns that calibrators are deprecated, and breaks if that becomes an exception."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one = case(trt)
            assert one.build() == b"engine"
        assert one.calibrator.complete().batches == 3


class TestLastBatch:
    """11 samples in batches of 4."""

    def test_is_left_out_where_values_are_counted(self, trt: StandIn) -> None:
        listener, images = Listener(), rows(11, 3, 4)
        one = case(trt, dataset=MemoryData({"x": images}), narrator=listener)
        one.build()
        outcome = one.calibrator.complete()
        assert (outcome.batches_promised, outcome.batches, outcome.samples) == (2, 2, 8)
        assert trt.batches == [images[:4].tobytes(), images[4:8].tobytes()]
        (left,) = outcome.degradations
        assert (left.code, left.count, left.subjects) == (DegradationCode.DROPPED_SAMPLES, 3, ("s8", "s9", "s10"))
        assert listener.warned == [left]
        assert listener.tracked == [("checking", 11, 11), ("calibrating", 8, 8)]

    def test_is_filled_where_repeats_do_not_matter(self, trt: StandIn) -> None:
        images = rows(11, 3, 4)
        one = case(trt, Algorithm.MINMAX, MemoryData({"x": images}))
        one.build()
        outcome = one.calibrator.complete()
        assert (outcome.batches_promised, outcome.batches, outcome.samples) == (3, 3, 11)
        assert trt.batches[2] == images[[8, 9, 10, 10]].tobytes()
        (filled,) = outcome.degradations
        assert (filled.code, filled.count) == (DegradationCode.PADDED_BATCH, 1)

    def test_is_the_only_one(self, trt: StandIn) -> None:
        with pytest.raises(DataError, match="do not fill one calibration batch") as caught:
            case(trt, dataset=MemoryData({"x": rows(3, 3, 4)}))
        assert (caught.value.got, caught.value.expected) == ("3 samples", "at least 4")
        assert case(trt, Algorithm.MINMAX, MemoryData({"x": rows(3, 3, 4)})).build() == b"engine"
        assert len(trt.batches) == 1


def test_degradations_of_the_data_are_passed_on(trt: StandIn) -> None:
    found = Degradation(DegradationCode.LOSSY_DECODE, "lost", 1, ("s1",))
    one = case(trt, dataset=MemoryData({"x": rows(4, 3, 4)}, degradations=(found,)))
    one.build()
    assert one.calibrator.complete().degradations == (found,)


def test_tensors_without_a_range(trt: StandIn) -> None:
    one = case(trt, dataset=two_inputs(), inputs=TWO)
    network = trt.network(**TWO)
    assert network_tensors(trt.module, network) == ("image", "image_out")
    trt.write_instead(b"TRT-101601-EntropyCalibration2\nimage: 3c010a14\n")
    one.build()
    outcome = one.calibrator.complete()
    (missing,) = outcome.uncovered(network_tensors(trt.module, network))
    assert (missing.code, missing.subjects) == (DegradationCode.UNMATCHED_RANGES, ("image_out",))
    assert outcome.uncovered(["image"]) == ()


class TestLegacy:
    def test_asks_for_its_options(self, trt: StandIn) -> None:
        one = case(trt, Algorithm.LEGACY, legacy=LegacyOptions(0.25, 0.5))
        one.build()
        assert trt.legacy == (0.25, 0.5)
        assert one.calibrator.complete().batches == 3

    @pytest.mark.parametrize("options", [(-0.1, 1.0), (1.1, 1.0), (0.5, 2.0), (float("nan"), 1.0)])
    def test_wrong_options(self, options: tuple[float, float]) -> None:
        with pytest.raises(ConfigError, match="of the legacy calibrator is wrong"):
            LegacyOptions(*options)


def test_the_calibrator_lives_as_long_as_the_configuration(trt: StandIn) -> None:
    network = trt.network(x=("FLOAT", (-1, 3, 4)))
    config = trt.builder.create_builder_config()
    case(trt).calibrator.configure(config, trt.builder, network)
    gc.collect()
    assert trt.build(network, config) == b"engine"
    assert trt.calls[-1] == "write"
    assert len(trt.batches) == 3


def test_a_module_without_calibrators() -> None:
    module = types.SimpleNamespace(__name__="tensorrt", __version__="11.1.0")
    with pytest.raises(BackendUnavailable, match="cannot calibrate") as caught:
        make_calibrator(module, Algorithm.MINMAX)
    assert caught.value.exit_code is ExitCode.UNAVAILABLE
    assert "tensorrt 11.1.0 has no IInt8MinMaxCalibrator" in str(caught.value)
    assert "Q/DQ" in str(caught.value)
