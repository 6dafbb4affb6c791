"""INT8 calibration by TensorRT itself, up to version 10: what was asked for, checked and opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlab.datasets.resolution import ASSUMED
from quantlab.engines.tensorrt.calibration import (
    CALIBRATED,
    DEFAULT_CALIBRATOR,
    NativeCalibration,
    check_calibrator,
)
from quantlab.engines.tensorrt.flavour import FLAVOURS, TENSORRT, load_flavour
from quantlab.engines.tensorrt.options import BuildOptions, Typing
from quantlab.errors import BackendUnavailable, ConfigError
from quantlab.graph.prepare import Prepared
from quantlab.precision import Precision
from quantlab.progress import Narrator
from quantlab.workflow.sources import DataRequest, open_data


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What is given to TensorRT's own calibration.

    Attributes:
        data: What ``--data`` and its companions say; None without it.
        calibrator: What ``--calibrator`` says.
        cache: What ``--calibration-cache`` says.
    """

    data: DataRequest | None = None
    calibrator: str | None = None
    cache: Path | None = None

    @property
    def given(self) -> str:
        """The flags that were given."""
        flags = (("--data", self.data), ("--calibrator", self.calibrator), ("--calibration-cache", self.cache))
        return ", ".join(flag for flag, value in flags if value is not None)


def check_request(
    request: CalibrationRequest, backend: str, options: BuildOptions, precisions: Sequence[Precision]
) -> None:
    """Refuse a request that goes with nothing else that was asked for, before a model is read for it.

    Raises:
        ConfigError: If TensorRT is not to calibrate in this build, or there is nothing to calibrate with.
        BackendUnavailable: If the backend cannot calibrate.
    """
    if not request.given:
        return
    hint = "run quantlab calibrate and pass --table, which every backend takes"
    if backend not in FLAVOURS:
        raise ConfigError(
            f"{request.given}: calibration by TensorRT itself", got=f"--backend {backend}",
            expected=f"--backend {TENSORRT} --typing weak", hint=hint,
        )  # fmt: skip
    flavour = load_flavour(backend)
    if not flavour.has_calibrators:
        raise BackendUnavailable(
            f"{request.given}: {flavour.product} does not calibrate", got="no calibrators in its module",
            expected="TensorRT 10 or earlier", hint=hint,
        )  # fmt: skip
    if options.typing is not Typing.WEAK:
        raise ConfigError(
            f"{request.given}: TensorRT calibrates weakly typed networks only", got=f"--typing {options.typing}",
            expected="--typing weak", hint=hint,
        )  # fmt: skip
    if not set(precisions) & set(CALIBRATED):
        raise ConfigError(
            f"{request.given}: none of the precisions is calibrated", got=", ".join(precisions),
            expected=f"--precisions with {' or '.join(CALIBRATED)}",
        )  # fmt: skip
    if request.calibrator is not None:
        check_calibrator(request.calibrator)
        if request.data is None and request.cache is None:
            raise ConfigError(
                "--calibrator has nothing to calibrate with", expected="--data, --calibration-cache or both"
            )


def open_calibration(request: CalibrationRequest, prepared: Prepared, narrator: Narrator) -> NativeCalibration | None:
    """Open what TensorRT is to calibrate on; None if it is not to.

    Raises:
        DataError: If the data cannot be read or do not fit the model.
        ConfigError: If the preprocessing is wrong.
    """
    if not request.given:
        return None
    calibrator = request.calibrator or DEFAULT_CALIBRATOR
    if request.data is None:
        return NativeCalibration(calibrator, cache=request.cache)
    dataset, resolved = open_data(prepared.model, request.data, narrator)
    known = resolved.preprocess is not None and resolved.origin != ASSUMED
    preprocess = resolved.preprocess.to_json() if known and resolved.preprocess is not None else None
    return NativeCalibration(calibrator, dataset, preprocess, request.cache)
