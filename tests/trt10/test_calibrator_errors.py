"""What the bindings of TensorRT 10 forgive, and quantlab does not: every error comes out after the build."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from calibration_bench import Arrays, Listener, MemoryData, case, rows
from numpy.typing import NDArray
from stand_in import HostStaging, StandIn

from quantlab.calibrators.tensorrt import CalibrationData, make_calibrator
from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.calibrators.tensorrt_feed import survey
from quantlab.datasets import Sample
from quantlab.errors import CalibrationError, ConfigError, DataError


class FailingStaging(HostStaging):
    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def upload(self, name: str, array: NDArray[np.generic]) -> int:
        if len(self.uploads) == self.at:
            raise self.error
        return super().upload(name, array)


class AddressStaging(HostStaging):
    def upload(self, name: str, array: NDArray[np.generic]) -> int:
        return 0


@pytest.mark.parametrize("error", [RuntimeError("cuMemcpyHtoD failed"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_exception_while_a_batch_is_staged(
    trt: StandIn, capfd: pytest.CaptureFixture[str], at: int, error: BaseException
) -> None:
    """TensorRT takes it for the end of the data and builds; the exception itself is raised afterwards."""
    staging = FailingStaging(at, error)
    one = case(trt, staging=staging)
    assert not one.calibrator.failed
    assert one.build() == b"engine"
    assert len(trt.batches) == at
    assert trt.calls == ["read", "size 1", *["batch"] * (at + 1), "write"]
    assert one.calibrator.failed
    for after in (one.calibrator.raise_pending, one.calibrator.complete):
        with pytest.raises(type(error)) as caught:
            after()
        assert caught.value is error
    assert "Exception caught" not in capfd.readouterr().err, "it went through the binding"


@pytest.mark.parametrize("at", [0, 5, 11])
def test_ctrl_c_while_a_sample_is_read(trt: StandIn, at: int) -> None:
    def later(index: int, inputs: Arrays) -> Arrays:
        if index == at:
            raise KeyboardInterrupt
        return inputs

    dataset = MemoryData({"x": rows(12, 3, 4)}, later)
    one = case(trt, dataset=dataset)
    one.build()
    with pytest.raises(KeyboardInterrupt):
        one.calibrator.complete()
    one.calibrator.close()
    assert dataset.open_passes == 0


def test_an_interrupt_counts_more_than_an_error_before_it(trt: StandIn) -> None:
    one = case(trt, staging=FailingStaging(1, RuntimeError("first")))
    one.build()
    one.calibrator._remember(KeyboardInterrupt())
    one.calibrator._remember(RuntimeError("third"))
    with pytest.raises(KeyboardInterrupt):
        one.calibrator.raise_pending()


def test_an_exception_that_only_the_binding_sees(
    trt: StandIn, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As an interrupt between the binding's call and ours: nothing remembers it, but the batches are counted."""
    one = case(trt)
    real, calls = one.calibrator.next_batch, []

    def interrupted(names: Sequence[str]) -> list[int] | None:
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(names)

    monkeypatch.setattr(one.calibrator, "next_batch", interrupted)
    assert one.build() == b"engine"
    assert "Exception caught" in capfd.readouterr().err
    one.calibrator.raise_pending()
    with pytest.raises(CalibrationError, match="before the end of the data") as caught:
        one.calibrator.complete()
    assert (caught.value.got, caught.value.expected) == ("1 batches", "3 batches of memory")


def test_tensorrt_stops_early(trt: StandIn) -> None:
    one = case(trt)
    trt.stop_after(2)
    one.build()
    with pytest.raises(CalibrationError, match="stopped calibrating before the end"):
        one.calibrator.complete()


def test_tensorrt_calls_nothing(trt: StandIn) -> None:
    one = case(trt)
    trt.be_silent()
    one.build()
    with pytest.raises(CalibrationError, match="did not calibrate") as caught:
        one.calibrator.complete()
    assert "neither for a cache nor for data" in str(caught.value)
    assert "Q/DQ" in str(caught.value)


def test_tensorrt_asks_for_no_data(trt: StandIn) -> None:
    one = case(trt)
    assert one.calibrator.native.read_calibration_cache() is None
    with pytest.raises(CalibrationError, match="did not calibrate") as caught:
        one.calibrator.complete()
    assert "it asked for no data" in str(caught.value)


def test_inputs_that_have_no_data(trt: StandIn) -> None:
    """The list of addresses would be too short, and the binding would read beyond its end."""
    inputs = {"x": ("FLOAT", (4, 3, 4)), "mask": ("FLOAT", (4, 3)), "ids": ("INT64", (4, 2))}
    staging = HostStaging()
    one = case(trt, inputs=inputs, configured=False, staging=staging)
    one.build()
    assert (trt.calls, trt.batches, staging.uploads) == (["read", "size 1", "batch", "write"], [], [])
    with pytest.raises(DataError, match="lack inputs of the network") as caught:
        one.calibrator.complete()
    assert (caught.value.got, caught.value.expected) == ("x", "mask, ids")


def test_data_for_more_inputs_than_the_network_has(trt: StandIn) -> None:
    images, spare = rows(4, 3, 4), rows(4, 2)
    one = case(trt, dataset=MemoryData({"spare": spare, "x": images}))
    one.build()
    assert one.calibrator.complete().batches == 1
    assert trt.batches == [images.tobytes()]


def test_staging_without_an_address(trt: StandIn) -> None:
    one = case(trt, staging=AddressStaging())
    one.build()
    assert trt.batches == []
    with pytest.raises(CalibrationError, match=r"input 'x' of calibration batch 1 .* has no device address"):
        one.calibrator.complete()


def _nan(array: NDArray[np.float32]) -> NDArray[np.float32]:
    spoilt = array.copy()
    spoilt.flat[3] = np.nan
    return spoilt


def _infinite(array: NDArray[np.float32]) -> NDArray[np.float32]:
    spoilt = array.copy()
    spoilt.flat[0] = -np.inf
    return spoilt


Spoil = Callable[[NDArray[np.float32]], NDArray[np.generic]]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "float16": (lambda a: a.astype(np.float16), "dtype that TensorRT cannot calibrate with"),
    "float64": (lambda a: a.astype(np.float64), "dtype that TensorRT cannot calibrate with"),
    "uint8": (lambda a: a.astype(np.uint8), "dtype that TensorRT cannot calibrate with"),
    "other byte order": (lambda a: a.astype(a.dtype.newbyteorder()), "dtype that TensorRT cannot calibrate with"),
    "transposed": (lambda a: np.asfortranarray(a), "is not contiguous"),
    "strided": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], "is not contiguous"),
    "nan": (_nan, "values that are not finite"),
    "infinite": (_infinite, "values that are not finite"),
    "other shape": (lambda a: np.ascontiguousarray(a[:, :2]), "differ in the shape of input 'x'"),
    "other rank": (lambda a: a[None], "differ in the shape of input 'x'"),
    "integers": (lambda a: a.astype(np.int32), "differ in the dtype of input 'x'"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("place", [0, 7])
def test_samples_that_cannot_be_calibrated_on(trt: StandIn, kind: str, place: int) -> None:
    """Found before anything is built, with input and sample, and the device memory is given back."""
    spoil, says = SPOILT[kind]
    if place == 0 and "differ" in says:
        place = 1
    images = list(rows(12, 3, 4))
    images[place] = spoil(images[place])  # type: ignore[call-overload]
    staging = HostStaging()
    with pytest.raises(DataError, match=says) as caught:
        case(trt, dataset=MemoryData({"x": images}), staging=staging)
    assert "'x'" in caught.value.what
    assert f"'s{place}'" in str(caught.value)
    assert (staging.closed, staging.uploads) == (1, [])


@pytest.mark.parametrize("kind", SPOILT)
def test_samples_that_change_between_the_passes(trt: StandIn, kind: str) -> None:
    """The second pass is checked as the first: what comes then would reach TensorRT as it is."""
    spoil, _ = SPOILT[kind]
    dataset = MemoryData({"x": rows(12, 3, 4)}, lambda i, a: {"x": spoil(a["x"])} if 4 <= i < 8 else a)  # type: ignore[arg-type]
    one = case(trt, dataset=dataset)
    one.build()
    if kind in ("strided", "other byte order"):  # which stacking mends
        assert one.calibrator.complete().batches == 3
        assert b"".join(trt.batches) == rows(12, 3, 4).tobytes()
        return
    assert len(trt.batches) == 1
    with pytest.raises(DataError, match="input 'x' of calibration batch 2"):
        one.calibrator.complete()


def test_a_batch_of_mixed_shapes(trt: StandIn) -> None:
    dataset = MemoryData({"x": rows(8, 3, 4)}, lambda i, a: {"x": a["x"][:1]} if i == 5 else a)
    one = case(trt, dataset=dataset)
    one.build()
    with pytest.raises(DataError, match="differ in the shape of input 'x'"):
        one.calibrator.complete()


@pytest.mark.parametrize(("given", "batches"), [(8, 2), (9, 2), (0, 0)])
def test_a_second_pass_that_ends_early(trt: StandIn, given: int, batches: int) -> None:
    dataset = MemoryData({"x": rows(12, 3, 4)}, lambda i, a: a if i < given else None)
    one = case(trt, dataset=dataset)
    one.build()
    assert len(trt.batches) == batches
    with pytest.raises(DataError, match="ended early") as caught:
        one.calibrator.complete()
    assert (caught.value.got, caught.value.expected) == (f"{given} samples", "12, as in the pass before")


@pytest.mark.parametrize(("given", "batches"), [(6, 1), (9, 2), (10, 3)])
def test_missing_samples_are_not_filled_with_repeats(trt: StandIn, given: int, batches: int) -> None:
    """Min-max calibration fills the last batch, but a batch that is shorter than it was means that data are gone."""
    dataset = MemoryData({"x": rows(10, 3, 4)}, lambda i, a: a if i < given else None)
    one = case(trt, Algorithm.MINMAX, dataset)
    one.build()
    assert len(trt.batches) == batches
    if given == 10:
        assert one.calibrator.complete().samples == 10
        return
    with pytest.raises(DataError, match="ended early"):
        one.calibrator.complete()


def test_samples_with_other_inputs(trt: StandIn) -> None:
    class Odd(MemoryData):
        def __init__(self) -> None:
            super().__init__({"x": rows(4, 3, 4)})
            first = self.samples[2]
            self.samples[2] = Sample(first.id, {"y": first.inputs["x"]}, None, first.sha256)

    with pytest.raises(DataError, match="inputs of sample 's2' are not those of the first"):
        case(trt, dataset=Odd())


def test_no_samples(trt: StandIn) -> None:
    with pytest.raises(DataError, match="no samples"):
        case(trt, dataset=MemoryData({"x": rows(0, 3, 4)}))


@pytest.mark.parametrize("size", [0, -3])
def test_a_wrong_batch_size(size: int) -> None:
    with pytest.raises(ConfigError, match="batch size"):
        survey(MemoryData({"x": rows(4, 3, 4)}), size)


def test_nothing_to_calibrate_on(trt: StandIn) -> None:
    with pytest.raises(ConfigError, match="nothing to calibrate on"):
        make_calibrator(trt.module, Algorithm.MINMAX)


def test_a_narrator_that_fails(trt: StandIn) -> None:
    """Whatever is raised in a callback comes out, also what is not ours."""

    class Broken(Listener):
        def track(self, items, total, what):  # type: ignore[no-untyped-def]
            if what == "calibrating":
                raise BrokenPipeError
            return super().track(items, total, what)

    one = case(trt, narrator=Broken())
    one.build()
    with pytest.raises(BrokenPipeError):
        one.calibrator.complete()


def test_closing_ends_the_pass_and_frees_the_memory(trt: StandIn) -> None:
    dataset, staging = MemoryData({"x": rows(12, 3, 4)}), HostStaging()
    one = case(trt, dataset=dataset, staging=staging)
    trt.stop_after(1)
    one.build()
    assert dataset.open_passes == 1
    with one.calibrator:
        pass
    assert (dataset.open_passes, staging.closed) == (0, 1)


def test_data_are_given_back_when_the_data_set_fails(trt: StandIn) -> None:
    staging = HostStaging()
    with pytest.raises(DataError):
        make_calibrator(
            trt.module, Algorithm.MINMAX, data=CalibrationData(MemoryData({"x": rows(0, 1)}), 1, staging)
        )  # fmt: skip
    assert staging.closed == 1
