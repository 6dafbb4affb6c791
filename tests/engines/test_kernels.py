from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from engine_data import calibrated, prepared_cnn

from quantlab.engines.kernels import integer_kernels
from quantlab.errors import EngineBuildError
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import ONNXRUNTIME


@pytest.mark.parametrize(("exclude", "expected"), [((), 3), (("conv2",), 2), (("conv*",), 1)])
def test_layers_in_integers_are_counted(exclude: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    prepared = prepared_cnn()
    proto = quantize_model(prepared.model, calibrated(prepared), ONNXRUNTIME, exclude).proto
    onnx.save(proto, tmp_path / "m.onnx")
    assert integer_kernels(tmp_path / "m.onnx") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_float_model_has_none(tmp_path: Path) -> None:
    onnx.save(prepared_cnn().model.proto, tmp_path / "m.onnx")
    assert integer_kernels(tmp_path / "m.onnx") == 0


def test_a_model_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineBuildError, match=r"cannot run .*m\.onnx"):
        integer_kernels(tmp_path / "m.onnx")
