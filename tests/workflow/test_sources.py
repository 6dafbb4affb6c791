"""Finding and opening the model and the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_data import Recorder

from quantlab.datasets import sample_data, sample_model
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError, DataError, ModelError
from quantlab.workflow.sources import (
    DataRequest,
    class_count,
    find_model,
    input_specs,
    open_data,
    open_model,
    parse_shapes,
    thread_count,
)


class TestFindModel:
    def test_the_given_one_even_if_missing(self, tmp_path: Path) -> None:
        assert find_model(tmp_path / "x.onnx", tmp_path) == tmp_path / "x.onnx"

    def test_the_recipes(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").touch()
        (tmp_path / "b.onnx").touch()
        (tmp_path / "quantlab.toml").write_text('schema = 1\n[model]\nfile = "sub/c.onnx"\n')
        assert find_model(None, tmp_path) == tmp_path / "sub" / "c.onnx"

    def test_the_only_one(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").touch()
        (tmp_path / "a.onnx.data").touch()
        assert find_model(None, tmp_path) == tmp_path / "a.onnx"

    @pytest.mark.parametrize(
        ("names", "got"),
        [([], "0 .onnx files in this folder: none"), (["b", "a"], "a.onnx, b.onnx"), (list("abcdefg"), "e.onnx, ...")],
    )
    def test_none_or_several(self, tmp_path: Path, names: list[str], got: str) -> None:
        for name in names:
            (tmp_path / f"{name}.onnx").touch()
        with pytest.raises(ConfigError, match="no model was named") as caught:
            find_model(None, tmp_path)
        assert got in str(caught.value.got)
        assert "--model" in str(caught.value.hint)


class TestShapes:
    @given(st.dictionaries(st.text(min_size=1), st.lists(st.integers(1, 99999), min_size=1, max_size=5).map(tuple)))
    def test_round_trip(self, shapes: dict[str, tuple[int, ...]]) -> None:
        assert parse_shapes(tuple(f"{name}:{'x'.join(map(str, dims))}" for name, dims in shapes.items())) == shapes

    @pytest.mark.parametrize(
        "text",
        ["", "x", "x:", ":1x3", "x:0x3", "x:1x-3", "x:1,3", "x:1x", "x:ax3", "x:1 x3", "x:9999999999", "x:1x3\n"],
    )
    def test_malformed(self, text: str) -> None:
        with pytest.raises(ConfigError, match="malformed"):
            parse_shapes((text,))

    def test_twice(self) -> None:
        with pytest.raises(ConfigError, match="'x' twice"):
            parse_shapes(("x:1x3", "x:1x4"))


def test_thread_count() -> None:
    assert thread_count(3) == 3
    assert thread_count(0) >= 1
    with pytest.raises(ConfigError, match="threads"):
        thread_count(-1)


def test_open_model_tells_what_it_is(recorder: Recorder) -> None:
    prepared = open_model(sample_model(), {}, recorder)
    assert recorder.said[0].startswith("model  fashion-resnet.onnx: image [batch,1,28,28] float32 -> logits")
    assert recorder.warned == []
    assert class_count(prepared.model) == 10
    (spec,) = input_specs(prepared.model)
    assert (spec.name, spec.shape, spec.dtype) == ("image", (1, 28, 28), "float32")


def test_open_model_with_a_shape_for_no_input(recorder: Recorder) -> None:
    with pytest.raises(ConfigError, match="imag"):
        open_model(sample_model(), {"imag": (1, 1, 28, 28)}, recorder)


def test_open_model_that_is_missing(recorder: Recorder, tmp_path: Path) -> None:
    shutil.copy(sample_model(), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="does not exist") as caught:
        open_model(tmp_path / "modle.onnx", {}, recorder)
    assert "model.onnx" in str(caught.value.hint)


class TestOpenData:
    @pytest.fixture(scope="class")
    def model(self):
        return open_model(sample_model(), {}, Recorder()).model

    def test_says_what_the_model_will_see(self, model, recorder: Recorder) -> None:
        dataset, resolved = open_data(model, DataRequest(str(sample_data()), limit=20), recorder)
        assert len(dataset) == 20
        assert resolved.origin == "model metadata"
        text = "\n".join(recorder.said)
        assert "20 samples, 10 classes" in text
        assert "image [1,28,28] float32, first 20, per channel: min -0.8102" in text
        assert recorder.warned == []

    def test_a_flag_goes_before_the_models_own(self, model, recorder: Recorder) -> None:
        _, resolved = open_data(model, DataRequest(str(sample_data()), limit=5, preprocess="unit"), recorder)
        assert resolved.preprocess is not None
        assert resolved.preprocess.mean != (0.286,)
        assert "flag" in resolved.origin

    def test_ready_tensors_are_not_preprocessed(self, model, recorder: Recorder, tmp_path: Path) -> None:
        np.savez(tmp_path / "ready.npz", image=np.zeros((4, 1, 28, 28), np.float32))
        _, resolved = open_data(model, DataRequest(str(tmp_path / "ready.npz")), recorder)
        assert resolved.preprocess is None

    def test_random_data_is_a_degradation_at_once(self, model, recorder: Recorder) -> None:
        open_data(model, DataRequest("random:3"), recorder)
        assert [d.code for d in recorder.warned] == [DegradationCode.RANDOM_DATA]

    def test_labels_outside_the_classes(self, model, recorder: Recorder, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 28, 28), np.float32), labels=np.array([3, 10]))
        with pytest.raises(DataError, match="label"):
            open_data(model, DataRequest(str(tmp_path / "x.npz")), recorder)

    def test_missing(self, model, recorder: Recorder) -> None:
        with pytest.raises(DataError, match="no data at"):
            open_data(model, DataRequest("nowhere"), recorder)
