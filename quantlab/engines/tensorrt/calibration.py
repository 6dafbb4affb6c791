"""INT8 ranges that TensorRT finds itself, up to version 10: what it calibrates on, and what the sidecar says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.cache_provenance import cache_provenance_path
from quantlab.calibrators.tensorrt import Calibrator, make_calibrator
from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.calibrators.tensorrt_feed import CalibrationData, DeviceStaging
from quantlab.calibrators.tensorrt_outcome import CalibrationOutcome
from quantlab.datasets import Dataset
from quantlab.documents import near_match
from quantlab.engines.artifact import Ranges
from quantlab.engines.cuda import PinnedStaging
from quantlab.engines.tensorrt.profiles import NetworkInput, Profiles, settle_profiles
from quantlab.errors import ConfigError, ModelError
from quantlab.graph.model import Model, model_inputs
from quantlab.precision import Precision
from quantlab.progress import Narrator

CALIBRATORS = MappingProxyType(
    {
        "entropy2": Algorithm.ENTROPY_2,
        "minmax": Algorithm.MINMAX,
        "entropy": Algorithm.ENTROPY,
        "legacy": Algorithm.LEGACY,
    }
)
"""TensorRT's calibrators, by their names on the command line."""

CALIBRATED = (Precision.INT8, Precision.INT8_FP16)
"""Precisions for which TensorRT calibrates."""

DEFAULT_CALIBRATOR = "entropy2"
CACHE_SUFFIX = ".calib"


@dataclass(frozen=True, slots=True)
class NativeCalibration:
    """Calibration by TensorRT itself, in place of a table.

    Attributes:
        calibrator: One of `CALIBRATORS`.
        dataset: What to calibrate on; None if the cache stands in for data.
        preprocess: Preprocessing of the data, as JSON; None for ready tensors and where it was assumed.
        cache: Calibration cache that is read if it is there and written if not; None to write one beside the engine.
        staging: Makes the device memory that batches go through.

    Raises:
        ConfigError: If there is no such calibrator, or nothing to calibrate with.
    """

    calibrator: str = DEFAULT_CALIBRATOR
    dataset: Dataset | None = None
    preprocess: str | None = None
    cache: Path | None = None
    staging: Callable[[], DeviceStaging] = PinnedStaging

    def __post_init__(self) -> None:
        check_calibrator(self.calibrator)
        if self.dataset is None and self.cache is None:
            raise ConfigError("TensorRT has nothing to calibrate with", expected="--data, --calibration-cache or both")

    @property
    def algorithm(self) -> Algorithm:
        """What the calibrator is in TensorRT's words."""
        return CALIBRATORS[self.calibrator]

    @property
    def method(self) -> str:
        """Range method, for the sidecar and the variant's name: a cache alone may be of any."""
        return f"{'cache' if self.dataset is None else 'trt'}-{self.calibrator}"

    @property
    def ranges(self) -> Ranges:
        """What is known of the data."""
        if self.dataset is None:
            return Ranges(self.method)
        samples = tuple(sorted(entry.sha256 for entry in self.dataset.manifest.entries))
        digest = str(self.dataset.describe().get("preprocess_sha256") or "")
        return Ranges(self.method, samples, digest, self.preprocess)


def check_calibrator(name: str) -> None:
    """Refuse the name of a calibrator that TensorRT does not have.

    Raises:
        ConfigError: With the nearest name.
    """
    if name not in CALIBRATORS:
        near = near_match(name, CALIBRATORS)
        raise ConfigError(
            f"there is no calibrator {name!r}", expected=", ".join(CALIBRATORS),
            hint=f"did you mean {near!r}?" if near else None,
        )  # fmt: skip


class NativeRun:
    """The calibration of one build, from the data to what is written beside the engine.

    Attributes:
        calibrator: For the build.
        stop: Set it to end the calibration with the next batch.
        options: What the sidecar records among the options of the build.
        ranges: What the sidecar records of the ranges.
        files: Texts to write beside the engine, by file name; known after `complete`.
    """

    def __init__(
        self, wanted: NativeCalibration, module: Any, model: Model, profiles: Profiles, name: str, narrator: Narrator
    ) -> None:
        """Look at the data once; see `make_calibrator` for what it refuses.

        Args:
            wanted: What to calibrate on.
            module: The imported ``tensorrt``.
            model: The model that is calibrated.
            profiles: What ``--shapes`` asked for: the first profile's OPT batch is that of the calibration.
            name: Of the variant, for the cache beside its engine.
            narrator: Told of progress.
        """
        self._wanted = wanted
        self.stop = Event()
        self.options = {"calibrator": wanted.calibrator}
        self.ranges = wanted.ranges
        self.files: dict[str, str] = {}
        with ExitStack() as undo:
            self._cache = wanted.cache or (
                Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="quantlab-"))) / f"{name}{CACHE_SUFFIX}"
            )
            data = None
            if wanted.dataset is not None:
                batch = optimum_batch(model, profiles)
                self.options["calibration-batch"] = str(batch)
                data = CalibrationData(wanted.dataset, batch, _StoppableStaging(wanted.staging(), self.stop))
            self.calibrator: Calibrator = make_calibrator(
                module, wanted.algorithm, data=data, cache=self._cache, narrator=narrator, model_sha256=model.sha256,
                model=model.path.name if model.path else model.name,
            )  # fmt: skip
            undo.callback(self.calibrator.close)
            self._resources = undo.pop_all()

    def complete(self) -> CalibrationOutcome:
        """Check that TensorRT calibrated as it was meant to, and write the cache, or keep it for beside the engine.

        Raises:
            QuantlabError: As `Calibrator.complete`.
        """
        outcome = self.calibrator.complete()
        self.options["calibration-ranges"] = outcome.origin.value
        if self._wanted.cache is None:
            for file in (self._cache, cache_provenance_path(self._cache)):
                self.files[file.name] = file.read_text("utf-8")
        return outcome

    def close(self) -> None:
        """Free what it holds; may be called again."""
        self._resources.close()


def optimum_batch(model: Model, profiles: Profiles) -> int:
    """The batch that kernels are chosen for: the OPT batch of the first profile, or the model's own.

    Raises:
        ConfigError: If the profiles do not fit the model.
        ModelError: If no input has a batch axis, or their batches differ.
    """
    inputs = tuple(
        NetworkInput(spec.name, tuple(size if isinstance(size, int) else None for size in spec.shape or ()), False)
        for spec in model_inputs(model.proto)
    )
    settled, _ = settle_profiles(inputs, profiles)
    found = {one.optimum[0] for one in settled[0].values() if one.optimum}
    if len(found) != 1:
        raise ModelError(
            "TensorRT cannot calibrate on samples: the inputs have no batch of one size", got=_sizes(sorted(found)),
            hint="run quantlab calibrate and pass --table",
        )  # fmt: skip
    return found.pop()


def _sizes(found: Sequence[int]) -> str:
    return f"batches of {', '.join(map(str, found))}" if found else "no batch axis"


class _StoppableStaging:
    """Staging that ends the calibration when the build is to stop: TensorRT asks for that only between its steps."""

    def __init__(self, staging: DeviceStaging, stop: Event) -> None:
        self._staging = staging
        self._stop = stop

    def upload(self, name: str, array: NDArray[np.generic]) -> int:
        if self._stop.is_set():
            raise KeyboardInterrupt
        return self._staging.upload(name, array)

    def close(self) -> None:
        self._staging.close()


__all__ = [
    "CACHE_SUFFIX",
    "CALIBRATED",
    "CALIBRATORS",
    "DEFAULT_CALIBRATOR",
    "NativeCalibration",
    "NativeRun",
    "check_calibrator",
    "optimum_batch",
]
