"""Requests for TensorRT's own calibration: which go with what else was asked for, and what is opened for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from quantlab.cli.main import State, group
from quantlab.datasets import sample_data, sample_model
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.options import BuildOptions, Typing
from quantlab.errors import BackendUnavailable, ConfigError, DataError, QuantlabError
from quantlab.graph.prepare import Prepared
from quantlab.precision import Precision
from quantlab.progress import Silent
from quantlab.workflow import native_calibration
from quantlab.workflow.native_calibration import CalibrationRequest, check_request, open_calibration
from quantlab.workflow.sources import DataRequest, open_model

WEAK = BuildOptions(typing=Typing.WEAK)
DATA = DataRequest("images")
INT8 = (Precision.FP32, Precision.INT8)
OLD = SimpleNamespace(
    __version__="10.16.1", IInt8Calibrator=object, IBuilderConfig=SimpleNamespace(int8_calibrator=None)
)
NEW = SimpleNamespace(__version__="11.2.0", IBuilderConfig=SimpleNamespace())


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    installed: dict[str, Any] = {"tensorrt": OLD, "tensorrt-rtx": NEW}
    monkeypatch.setattr(native_calibration, "load_flavour", lambda name: Flavour(name, installed[name]))
    return installed


@pytest.mark.parametrize(
    "request_",
    [
        CalibrationRequest(),
        CalibrationRequest(DATA),
        CalibrationRequest(DATA, "legacy"),
        CalibrationRequest(DATA, None, Path("a.cache")),
        CalibrationRequest(None, "minmax", Path("a.cache")),
    ],
)
def test_what_goes_together(request_: CalibrationRequest, module: dict[str, Any]) -> None:
    check_request(request_, "tensorrt", WEAK, INT8)


def test_nothing_asked_for_goes_with_everything(module: dict[str, Any]) -> None:
    check_request(CalibrationRequest(), "onnxruntime", BuildOptions(), (Precision.FP32,))
    assert open_calibration(CalibrationRequest(), None, Silent()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "backend", "options", "precisions", "kind", "what", "expected"),
    [
        (CalibrationRequest(DATA), "onnxruntime", WEAK, INT8, ConfigError, "--data: calibration by TensorRT", "weak"),
        (CalibrationRequest(DATA), "tensorrt", BuildOptions(), INT8, ConfigError, "weakly typed", "--typing weak"),
        (CalibrationRequest(DATA), "tensorrt-rtx", WEAK, INT8, BackendUnavailable, "does not calibrate", "TensorRT 10"),
        (
            CalibrationRequest(DATA),
            "tensorrt",
            WEAK,
            (Precision.FP16,),
            ConfigError,
            "none of the",
            "int8 or int8-fp16",
        ),
        (CalibrationRequest(None, "minmax"), "tensorrt", WEAK, INT8, ConfigError, "nothing to calibrate", "--data"),
        (CalibrationRequest(DATA, "minmaks"), "tensorrt", WEAK, INT8, ConfigError, "no calibrator", "entropy2, minmax"),
    ],
)
def test_what_does_not(
    request_: CalibrationRequest,
    backend: str,
    options: BuildOptions,
    precisions: tuple[Precision, ...],
    kind: type[QuantlabError],
    what: str,
    expected: str,
    module: dict[str, Any],
) -> None:
    with pytest.raises(kind) as caught:
        check_request(request_, backend, options, precisions)
    assert what in caught.value.what
    assert expected in str(caught.value.expected)


def test_a_version_without_calibrators(module: dict[str, Any]) -> None:
    module["tensorrt"] = NEW
    with pytest.raises(BackendUnavailable, match=r"TensorRT 11\.2\.0 does not calibrate"):
        check_request(CalibrationRequest(DATA), "tensorrt", WEAK, INT8)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return open_model(sample_model("fashion-resnet"), {}, Silent())


def test_data_are_opened_for_the_model(prepared: Prepared) -> None:
    source = DataRequest(str(sample_data("calibration")), limit=12, threads=1)
    made = open_calibration(CalibrationRequest(source, "minmax", Path("a.cache")), prepared, Silent())
    assert made is not None
    assert made.dataset is not None
    assert len(made.dataset) == 12
    assert (made.calibrator, made.cache, made.method) == ("minmax", Path("a.cache"), "trt-minmax")
    assert made.preprocess is not None, "the model states it"
    assert made.ranges.preprocess == made.preprocess
    assert made.ranges.preprocess_sha256 == made.dataset.describe()["preprocess_sha256"]
    assert len(made.ranges.samples) == 12


def test_a_cache_alone(prepared: Prepared) -> None:
    made = open_calibration(CalibrationRequest(None, None, Path("a.cache")), prepared, Silent())
    assert made is not None
    assert (made.calibrator, made.dataset, made.method) == ("entropy2", None, "cache-entropy2")


def test_data_that_do_not_fit(prepared: Prepared, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 5), np.float32))
    with pytest.raises(DataError):
        open_calibration(CalibrationRequest(DataRequest(str(tmp_path / "x.npy"))), prepared, Silent())


@pytest.mark.parametrize("flag", ["--limit", "--preprocess", "--labels"])
def test_flags_about_samples_need_samples(flag: str) -> None:
    result = CliRunner().invoke(group, ["build", "--model", "gone.onnx", flag, "5"], obj=State())
    assert isinstance(result.exception, ConfigError)
    assert result.exception.what == f"{flag} is about samples, and there are none"


def test_networks_by_code_are_not_calibrated(module: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.workflow.build.load_flavour", lambda name: Flavour(name, module[name]))
    words = "build --network a.b:c --backend tensorrt --typing weak --precisions int8 --data images"
    result = CliRunner().invoke(group, words.split(), obj=State())
    assert isinstance(result.exception, ConfigError)
    assert "--data too" in str(result.exception.got)
