"""Calibration data for TensorRT's calibrators: batches of one shape from a data set, checked and put on the device."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.table import samples_sha256
from quantlab.datasets import Batch, Dataset, Sample, batches
from quantlab.datasets.inputs import format_shape
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import CalibrationError, ConfigError, DataError
from quantlab.progress import Narrator, Silent

CALIBRATION_DTYPES = ("float32", "int32", "int64", "bool")
"""What TensorRT reads while it calibrates: FP32 for every floating-point input, whatever type the engine's has."""

Shapes = Mapping[str, tuple[int, ...]]


class DeviceStaging(Protocol):
    """Device memory that batches are copied to; one buffer for each name."""

    def upload(self, name: str, array: NDArray[np.generic]) -> int:
        """Copy an array into the buffer of that name, which grows as needed, and wait until it is there.

        Args:
            name: Of the model input.
            array: Any shape and dtype, C-contiguous.

        Returns:
            The buffer's device address, above zero; valid until the next call with the name, or `close`.
        """
        ...

    def close(self) -> None:
        """Free the buffers; further calls do nothing."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """What TensorRT calibrates on.

    Attributes:
        dataset: Samples for every input of the network.
        batch_size: Samples a batch: the network's own if it is fixed, else the OPT batch of the profile. Entropy
            calibration wants it as large as memory allows.
        staging: Where batches go; closed with the calibrator.
    """

    dataset: Dataset
    batch_size: int
    staging: DeviceStaging


@dataclass(frozen=True, slots=True)
class DataSurvey:
    """What one pass over the calibration data showed.

    Attributes:
        shapes: Shape of a batch by input name, batch axis first.
        dtypes: NumPy name of the dtype by input name.
        ids: Of the samples, in order.
        data_sha256: Digest of the samples' contents (see `Provenance.data_sha256`).
    """

    shapes: Shapes
    dtypes: Mapping[str, str]
    ids: tuple[str, ...]
    data_sha256: str


def survey(dataset: Dataset, batch_size: int, narrator: Narrator | None = None) -> DataSurvey:
    """Look at every sample once: whatever is wrong is better known before an engine is built for minutes.

    Costs one pass of decoding. The shape is that of the calibration profile, for which TensorRT takes MIN and MAX from
    OPT: all samples must have the same.

    Raises:
        ConfigError: If the batch size is not positive.
        DataError: If there are no samples, or a sample has another shape or dtype than the first, a dtype that TensorRT
            cannot calibrate with, a layout that is not contiguous, or NaN or infinite values; with input and sample.
    """
    if batch_size <= 0:
        raise ConfigError("the calibration batch size is wrong", got=batch_size, expected="1 or more")
    first: Sample | None = None
    ids, hashes = [], []
    for sample in (narrator or Silent()).track(dataset, len(dataset), "checking"):
        first = first or sample
        _check_sample(sample, first)
        ids.append(sample.id)
        hashes.append(sample.sha256)
    if first is None:
        raise DataError(f"data set {dataset.name} has no samples to calibrate on")
    return DataSurvey(
        {name: (batch_size, *array.shape) for name, array in first.inputs.items()},
        {name: array.dtype.name for name, array in first.inputs.items()},
        tuple(ids),
        samples_sha256(hashes),
    )


def _check_sample(sample: Sample, first: Sample) -> None:
    where = f"of sample {sample.id!r}"
    if sample.inputs.keys() != first.inputs.keys():
        raise DataError(f"the inputs {where} are not those of the first one", got=", ".join(sample.inputs),
                        expected=", ".join(first.inputs))  # fmt: skip
    for name, array in sample.inputs.items():
        expected = first.inputs[name]
        check_array(name, array, where)
        if array.shape != expected.shape:
            raise DataError(
                f"calibration samples differ in the shape of input {name!r}",
                got=f"{format_shape(array.shape)} {where}",
                expected=f"{format_shape(expected.shape)}, as of {first.id!r}: TensorRT calibrates with one shape",
                hint="use a preprocessing that resizes, or calibrate on samples of one shape",
            )
        if array.dtype != expected.dtype:
            raise DataError(f"calibration samples differ in the dtype of input {name!r}",
                            got=f"{array.dtype} {where}", expected=f"{expected.dtype}, as of {first.id!r}")  # fmt: skip


def check_array(name: str, array: NDArray[np.generic], where: str) -> None:
    """Refuse what TensorRT would read wrongly: it is given an address and nothing else.

    Args:
        name: Model input.
        array: Of a sample or a batch.
        where: Whose it is, for the message.

    Raises:
        DataError: For a dtype that TensorRT cannot calibrate with, gaps between the elements, NaN or infinite values.
    """
    if array.dtype.name not in CALIBRATION_DTYPES or not array.dtype.isnative:
        raise DataError(
            f"input {name!r} {where} has a dtype that TensorRT cannot calibrate with",
            got=array.dtype.str if array.dtype.name in CALIBRATION_DTYPES else array.dtype,
            expected="float32, or int32, int64 or bool for indices and masks, in the byte order of this machine",
            hint="convert the data; TensorRT takes float32 here even if the network's input is float16 or int8",
        )
    if not array.flags.c_contiguous:
        raise DataError(f"input {name!r} {where} is not contiguous", got=f"strides {array.strides}",
                        expected="C order, without gaps", hint="apply numpy.ascontiguousarray")  # fmt: skip
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        bad = array[~np.isfinite(array)]
        raise DataError(
            f"input {name!r} {where} has values that are not finite",
            got=f"{bad.size:,} of {array.size:,}, such as {bad[0]}",
            expected="finite numbers: one NaN spoils the range of every tensor behind it",
            hint="look at the sample and its preprocessing",
        )


class CalibrationFeed:
    """Batches of a data set on the device, one at a time; restartable.

    All batches have the same shape, because TensorRT knows no other. For samples that do not fill the last one there
    are two ways, and the algorithm decides: min-max ranges do not change when a sample is seen twice, so the last
    sample is repeated and none is lost. The other algorithms count values, so that repeats would give a sample more
    weight than the others: the few samples are left out.

    Args:
        data: What to feed.
        repeat_last: Whether the last sample is repeated to fill the last batch.
        narrator: Told of progress.

    Raises:
        DataError: As `survey`, or if the samples do not fill one batch.
    """

    def __init__(self, data: CalibrationData, *, repeat_last: bool, narrator: Narrator) -> None:
        self._data = data
        self._narrator = narrator
        self.found = survey(data.dataset, data.batch_size, narrator)
        size, n = data.batch_size, len(self.found.ids)
        self.promised = -(-n // size) if repeat_last else n // size
        self._used = min(n, self.promised * size)
        if not self.promised:
            raise DataError(
                f"the samples of {data.dataset.name} do not fill one calibration batch",
                got=f"{n} samples",
                expected=f"at least {size}",
                hint=f"add samples, or calibrate with batches of {n} where the network allows it",
            )
        self.degradations = tuple(self._short_batch(n))
        self._pass: Generator[Batch, None, None] | None = None
        self.batches = 0
        self.samples = 0

    def _short_batch(self, n: int) -> Iterator[Degradation]:
        size = self._data.batch_size
        if self._used < n:
            message = f"samples do not fill a last batch of {size} and were left out of the calibration"
            yield Degradation.of(DegradationCode.DROPPED_SAMPLES, message, self.found.ids[self._used :])
        elif n % size:
            short = size - n % size
            message = f"the last batch of {size} was filled with {short} repeats, which do not change min-max ranges"
            yield Degradation(DegradationCode.PADDED_BATCH, message, short)

    @property
    def dataset(self) -> Dataset:
        """Where the samples come from."""
        return self._data.dataset

    def restart(self) -> None:
        """Begin again with the first batch."""
        self._end_pass()
        self.batches = self.samples = 0

    def stage(self, names: Sequence[str]) -> list[int] | None:
        """Put the next batch on the device.

        Args:
            names: Inputs that are asked for.

        Returns:
            Device addresses in the order of ``names``; None after the last batch.

        Raises:
            DataError: If an input has no data, or the data changed since the survey; with input and batch.
            CalibrationError: If the staging returns no address.
        """
        if self.batches == self.promised:
            self._end_pass()
            return None
        self._pass = self._pass or self._begin_pass()
        batch = next(self._pass, None)
        given = self.samples + (len(batch) if batch is not None else 0)
        if batch is None or given < min(self._used, (self.batches + 1) * self._data.batch_size):
            raise DataError(
                f"data set {self.dataset.name} ended early", got=f"{given} samples",
                expected=f"{self._used}, as in the pass before", hint="keep the data unchanged while quantlab runs",
            )  # fmt: skip
        check_covered(names, batch.inputs)
        addresses = [self._upload(name, batch) for name in names]
        self.batches += 1
        self.samples += len(batch)
        return addresses

    def _begin_pass(self) -> Generator[Batch, None, None]:
        def closing() -> Iterator[Sample]:
            samples = iter(self._data.dataset)
            try:
                yield from samples
            finally:
                close = getattr(samples, "close", None)  # ends the threads that decode ahead
                if close is not None:
                    close()

        tracked: Iterable[Sample] = self._narrator.track(closing(), self._used, "calibrating")
        yield from batches(tracked, self._data.batch_size)

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def _upload(self, name: str, batch: Batch) -> int:
        where = f"of calibration batch {self.batches + 1} ({batch.ids[0]!r} to {batch.ids[-1]!r})"
        array, expected = batch.inputs[name], self.found.shapes[name]
        if len(batch) < expected[0]:
            array = np.concatenate([array, np.repeat(array[-1:], expected[0] - len(batch), axis=0)])
        check_array(name, array, where)
        if array.shape != expected or array.dtype.name != self.found.dtypes[name]:
            raise DataError(
                f"input {name!r} {where} changed",
                got=f"{format_shape(array.shape)} {array.dtype}",
                expected=f"{format_shape(expected)} {self.found.dtypes[name]}, as in the pass before",
                hint="keep the data unchanged while quantlab runs",
            )
        address = operator.index(self._data.staging.upload(name, array))
        if address <= 0:
            raise CalibrationError(f"input {name!r} {where} has no device address", got=address, expected="above zero")
        return address

    def close(self) -> None:
        """End the pass and free the device memory."""
        try:
            self._end_pass()
        finally:
            self._data.staging.close()


def check_covered(names: Iterable[str], given: Mapping[str, object]) -> None:
    """Refuse data without an input of the network.

    Raises:
        DataError: With the names.
    """
    missing = [name for name in names if name not in given]
    if missing:
        raise DataError(
            "the calibration data lack inputs of the network",
            got=", ".join(given) or "no inputs",
            expected=", ".join(missing),
            hint="give data for every input by its name in the network",
        )


__all__ = [
    "CALIBRATION_DTYPES",
    "CalibrationData",
    "CalibrationFeed",
    "DataSurvey",
    "DeviceStaging",
    "Shapes",
    "check_array",
    "check_covered",
    "survey",
]
