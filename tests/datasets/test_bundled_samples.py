from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from quantlab.datasets import (
    METADATA_KEY,
    SAMPLE_MODELS,
    InputSpec,
    batches,
    open_dataset,
    resolve_preprocess,
    sample_data,
    sample_model,
    unpack_samples,
)
from quantlab.errors import ConfigError, OutputError

INPUTS = [InputSpec("image", (1, 28, 28))]


def metadata(name: str) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(sample_model(name)).metadata_props}


@pytest.mark.parametrize(
    ("name", "least"), [("fashion-resnet", 94.0), ("fashion-mobilenet", 93.0), ("fashion-vit", 92.0)]
)
def test_models_carry_what_they_need_and_are_accurate(name: str, least: float) -> None:
    resolved = resolve_preprocess(None, None, metadata(name), INPUTS)
    assert resolved.origin == "model metadata"
    dataset = open_dataset(str(sample_data()), INPUTS, resolved, num_classes=10)
    assert tuple(json.loads(metadata(name)["quantlab.classes"])) == dataset.class_names
    session = onnxruntime.InferenceSession(sample_model(name), providers=["CPUExecutionProvider"])
    hits = 0
    for batch in batches(dataset, 100):
        (logits,) = session.run(None, dict(batch.inputs))
        hits += int((np.asarray(logits).argmax(1) == np.array(batch.labels)).sum())
    assert 100 * hits / len(dataset) >= least  # 95.03, 94.15 and 93.40 % on all 10,000 test images (training.json)


def test_sets_are_balanced_and_apart() -> None:
    evaluation, calibration = (
        open_dataset(str(sample_data(name)), INPUTS, resolve_preprocess("fashion-mnist", None, {}, INPUTS))
        for name in ("evaluation", "calibration")
    )
    assert (len(evaluation), len(calibration)) == (2000, 512)
    assert not evaluation.manifest.overlap(calibration.manifest)
    assert evaluation.degradations == calibration.degradations == ()
    assert set(np.bincount([e.label for e in evaluation.manifest.entries])) == {200}
    assert set(np.bincount([e.label for e in calibration.manifest.entries])) == {51, 52}


def test_unpacked_images_are_the_same_data(tmp_path: Path) -> None:
    folders = unpack_samples(tmp_path / "demo")
    resolved = resolve_preprocess("fashion-mnist", None, {}, INPUTS)
    for name, folder in folders.items():
        unpacked = open_dataset(str(folder), INPUTS, resolved, num_classes=10)
        packed = open_dataset(str(sample_data(name)), INPUTS, resolved)  # type: ignore[arg-type]
        assert unpacked.manifest.sha256 == packed.manifest.sha256
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["calibration", "evaluation"]


def test_unpacking_refuses_to_overwrite(tmp_path: Path) -> None:
    unpack_samples(tmp_path, per_set=20)
    mine = tmp_path / "evaluation" / "notes.txt"
    mine.write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        unpack_samples(tmp_path)
    unpack_samples(tmp_path, per_set=10, force=True)
    assert len(list((tmp_path / "evaluation").rglob("*.png"))) == 10
    assert mine.read_text() == "keep"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        unpack_samples(tmp_path / "file")


def test_unknown_names() -> None:
    assert all(sample_model(name).suffix == ".onnx" for name in SAMPLE_MODELS)
    assert METADATA_KEY in metadata("fashion-resnet")
    with pytest.raises(ConfigError, match="no such bundled model"):
        sample_model("alexnet")
    with pytest.raises(ConfigError, match="no such bundled set"):
        sample_data("test")  # type: ignore[arg-type]
