from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from task_data import beginning, image_data, memory_batch, request, values

from quantlab.datasets import Preprocess, Resize
from quantlab.datasets.geometry import Placement
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError, DataError, MeasurementError
from quantlab.harness.tasks.class_maps import ClassScores, SegmentSettings, class_output, image_classes
from quantlab.harness.tasks.registry import Beginning
from quantlab.harness.tasks.segment import count_pixels, make

IDS = ("a.png", "b.png", "c.png")


def save_masks(folder: Path, masks: list[np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, mask in zip(IDS, masks, strict=False):
        Image.fromarray(mask.astype(np.uint8)).save(folder / name)
    return folder


def by_definition(truths: list[np.ndarray], said: list[np.ndarray], ignore: int = 255) -> tuple[float, float]:
    """mIoU and pixel accuracy, pixel by pixel."""
    both: dict[int, int] = {}
    either: dict[int, int] = {}
    right = total = 0
    for truth, answer in zip(truths, said, strict=True):
        for a, b in zip(truth.ravel().tolist(), answer.ravel().tolist(), strict=True):
            if a == ignore:
                continue
            total += 1
            right += a == b
            both[a] = both.get(a, 0) + (a == b)
            for number in {a, b}:
                either[number] = either.get(number, 0) + 1
    return 100 * float(np.mean([both.get(c, 0) / n for c, n in either.items()])), 100 * right / total


@pytest.mark.parametrize("form", ["scores", "nhwc", "numbers", "one channel"])
def test_figures(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(1)
    truths = [rng.choice([0, 1, 2, 255], (8, 8), p=[0.4, 0.3, 0.2, 0.1]) for _ in IDS]
    said = np.stack([np.where((rng.random((8, 8)) < 0.7) & (t != 255), t, rng.integers(0, 4, (8, 8))) for t in truths])
    scores = np.eye(4, dtype=np.float32)[said].transpose(0, 3, 1, 2)
    output = {"scores": scores, "nhwc": scores.transpose(0, 2, 3, 1), "numbers": said, "one channel": said[:, None]}[
        form
    ]
    batch = memory_batch(IDS)
    layout = {"layout": "nhwc"} if form == "nhwc" else {}
    meter = make(request(save_masks(tmp_path / "masks", truths), **layout), beginning(batch)).meter()
    columns = meter.add(batch, {"y": output})
    miou, accuracy = by_definition(truths, list(said))
    assert values(meter) == {"miou": pytest.approx(miou), "pixel_accuracy": pytest.approx(accuracy)}
    weights = np.array([2, 0, 1])
    repeated = [0, 0, 2]
    expected = by_definition([truths[i] for i in repeated], [said[i] for i in repeated])
    assert tuple(values(meter, weights).values()) == pytest.approx(expected)
    rebuilt = np.zeros((2, 4))
    for classes, *counts in zip(*(columns[name] for name in ("classes", "intersections", "unions")), strict=True):
        for row, text in zip(rebuilt, counts, strict=True):
            np.add.at(row, np.array(str(classes).split(), int), np.array(str(text).split(), int))
    assert 100 * np.mean(rebuilt[0] / rebuilt[1]) == pytest.approx(miou), "the file of samples has all that is needed"


def test_class_that_nobody_says_does_not_count(tmp_path: Path) -> None:
    truth, batch = np.zeros((8, 8), int), memory_batch(IDS[:1])
    meter = make(request(save_masks(tmp_path, [truth])), beginning(batch)).meter()
    meter.add(batch, {"y": np.eye(9)[truth].transpose(2, 0, 1)[None]})
    assert values(meter) == {"miou": 100.0, "pixel_accuracy": 100.0}


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), h=st.integers(1, 12), w=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_bilinear_is_that_of_pillow(height: int, width: int, h: int, w: int, seed: int) -> None:
    """Where it enlarges, Pillow's bilinear filter is the same interpolation."""
    height, width = height + h, width + w
    scores = np.random.default_rng(seed).normal(size=(11, h, w)).astype(np.float32)
    placed = Placement((height, width), (h, w), (h / height, w / width))
    got = image_classes(ClassScores(scores), placed, "bilinear")
    full = np.stack([Image.fromarray(s).resize((width, height), Image.Resampling.BILINEAR) for s in scores])
    best = np.sort(full, axis=0)
    clear = best[-1] - best[-2] > 1e-4  # else rounding decides
    np.testing.assert_array_equal(got[clear], full.argmax(axis=0)[clear])
    assert clear.mean() > 0.9 or clear.size < 50


def test_nearest() -> None:
    numbers = np.arange(6).reshape(2, 3)
    placed = Placement((4, 6), (2, 3), (0.5, 0.5))
    expected = numbers.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(image_classes(ClassScores(numbers), placed, "nearest"), expected)
    scores = np.eye(6)[numbers].transpose(2, 0, 1)
    np.testing.assert_array_equal(image_classes(ClassScores(scores), placed, "nearest"), expected)


@pytest.mark.parametrize("resize", [Resize.STRETCH, Resize.LETTERBOX])
def test_answers_land_in_the_image(tmp_path: Path, resize: Resize) -> None:
    """A map of where the fed pixels came from, asked for in the image's own pixels."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(2)
    truth = np.kron(rng.integers(0, 3, (5, 9)), np.ones((8, 8), int))  # 40 x 72
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    Image.fromarray(colours[truth]).save(tmp_path / "images" / "a.png")
    masks = save_masks(tmp_path / "masks", [truth])
    ((dataset, batch),) = image_data(tmp_path / "images", (64, 64), resize)
    meter = make(request(masks), Beginning(dataset, batch, {})).meter()  # type: ignore[arg-type]
    meter.add(batch, {"y": batch.inputs["x"]})  # colours are scores
    assert values(meter)["miou"] > 90, "but for the edges, where colours are mixed"


def test_crop_judges_what_was_seen(tmp_path: Path) -> None:
    truth = np.zeros((8, 12), int)
    truth[:, 2:10] = 1
    (tmp_path / "images").mkdir()
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "images" / "a.png")
    ((dataset, batch),) = image_data(tmp_path / "images", (8, 12))
    batch = memory_batch(batch.ids, (8, 8))
    task = make(request(save_masks(tmp_path / "masks", [truth])), Beginning(dataset, batch, {}))  # type: ignore[arg-type]
    task.source = type(task.source)("x", task.source.layout, Preprocess(crop=(8, 8)))
    meter = task.meter()
    assert meter.add(batch, {"y": np.ones((1, 8, 8), np.int64)})["pixels"].tolist() == [64]
    assert values(meter) == {"miou": 100.0, "pixel_accuracy": 100.0}


def test_threshold(tmp_path: Path) -> None:
    truth = np.array([[[0, 1], [1, 1]]])
    logits = np.array([[[[-3.0, 0.5], [0.1, -0.2]]]])
    batch = memory_batch(IDS[:1], (2, 2))
    masks = save_masks(tmp_path, list(truth))
    meter = make(request(masks, threshold="0"), beginning(batch)).meter()
    meter.add(batch, {"y": logits})
    assert values(meter)["pixel_accuracy"] == 75.0
    with pytest.raises(MeasurementError, match="one score a pixel, not class numbers"):
        make(request(masks), beginning(batch)).meter().add(batch, {"y": logits})


@pytest.mark.parametrize("threshold", [{}, {"threshold": "0"}])
def test_broken_outputs_are_the_worst(tmp_path: Path, threshold: dict[str, str]) -> None:
    rng = np.random.default_rng(3)
    truths = [rng.integers(0, 2, (8, 8)) for _ in IDS]
    masks, batch = save_masks(tmp_path, truths), memory_batch(IDS)
    channels = 1 if threshold else 2
    good = rng.normal(size=(3, channels, 8, 8))
    broken = good.copy()
    broken[1, 0, 3, 3] = np.nan
    meter = make(request(masks, **threshold), beginning(batch)).meter()
    assert meter.add(batch, {"y": broken})["broken"].tolist() == [False, True, False]
    for _ in range(20):
        other = make(request(masks, **threshold), beginning(batch)).meter()
        changed = good.copy()
        changed[1] = rng.normal(size=(channels, 8, 8))
        other.add(batch, {"y": changed})
        assert values(other)["miou"] >= values(meter)["miou"]
        assert values(other)["pixel_accuracy"] >= values(meter)["pixel_accuracy"]
    assert meter.says(1) == "an output that is not finite"
    assert meter.drops(other)[1] > 0 and np.isnan(meter.drops(other)[0])


def test_coco_segmentations(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": [{"image_id": 1, "category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 8, 0, 8]]}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    batch = memory_batch(("a.png", "b.png"))
    answer = np.zeros((2, 8, 8), np.int64)
    answer[:, :, :5] = 1
    task = make(request(path), beginning(batch))
    meter = task.meter()
    meter.add(batch, {"y": answer})
    assert values(meter) == {"miou": pytest.approx(100 * (32 / 40 + 24 / 32) / 2), "pixel_accuracy": 87.5}
    assert meter.counted("miou").tolist() == [True, False]
    assert [d.code for d in task.degradations] == [DegradationCode.UNLABELLED_SAMPLES]
    only = make(request(path, classes="from-0"), beginning(batch)).meter()
    only.add(batch, {"y": np.zeros((2, 8, 8), np.int64)})
    assert values(only) == {"miou": 100.0, "pixel_accuracy": 100.0}, "pixels in no annotation are not judged"


def test_bad_truths_and_outputs(tmp_path: Path) -> None:
    batch = memory_batch(IDS)
    with pytest.raises(ConfigError, match="needs truths"):
        make(request(None), beginning(batch))
    masks = save_masks(tmp_path / "masks", [np.full((8, 8), 7)] * 3)
    meter = make(request(masks), beginning(batch)).meter()
    with pytest.raises(DataError, match="has a class that the model lacks"):
        meter.add(batch, {"y": np.zeros((3, 7, 8, 8))})
    small = save_masks(tmp_path / "small", [np.zeros((4, 8))] * 3)
    with pytest.raises(DataError, match="image of another size"):
        make(request(small), beginning(batch)).meter().add(batch, {"y": np.zeros((3, 7, 8, 8))})
    with pytest.raises(DataError, match="no entry for any of the first 1 samples"):
        make(request(masks), beginning(memory_batch(("z.png",))))
    with pytest.raises(ConfigError, match="unknown key 'treshold'"):
        make(request(masks, treshold="1"), beginning(batch))
    with pytest.raises(ConfigError, match="threshold of the task segment is wrong"):
        make(request(masks, threshold="half"), beginning(batch))
    for settings in ({"resize": "cubic"}, {"layout": "chw"}, {"ignore": -1}, {"ignore": 65536}):
        with pytest.raises(ConfigError, match=r"is wrong|is out of range"):
            SegmentSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threshold is for a model of one class"):
        class_output({"y": np.zeros((3, 7, 2, 2))}, SegmentSettings(threshold=0.5))
    with pytest.raises(MeasurementError, match="which output holds"):
        class_output({"y": np.zeros((3, 7))}, SegmentSettings())
    with pytest.raises(MeasurementError, match="which output holds") as caught:
        class_output({"y": np.zeros((3, 7, 2, 2)), "z": np.zeros((3, 7, 2, 2))}, SegmentSettings())
    assert caught.value.hint == "name it: --task-option output=NAME"
    assert len(class_output({"y": np.zeros((3, 7, 2, 2)), "z": np.zeros((3, 7))}, SegmentSettings(output="y"))) == 3
    for number in (-1, 70_000):
        with pytest.raises(MeasurementError, match="holds no class numbers"):
            class_output({"y": np.full((3, 2, 2), number)}, SegmentSettings())
    with pytest.raises(ConfigError, match="no output 'q'"):
        class_output({"y": np.zeros((3, 7, 2, 2))}, SegmentSettings(output="q"))


def test_masks_that_judge_nothing(tmp_path: Path) -> None:
    batch = memory_batch(IDS)
    outputs = {"y": np.zeros((3, 2, 8, 8))}
    white = np.zeros((8, 8))
    white[:3] = 255
    for folder, masks, message in (
        ("binary", [white] * 3, "no pixel of any class but 0"),
        ("void", [np.full((8, 8), 255)] * 3, r"no pixel of any class\n"),
    ):
        meter = make(request(save_masks(tmp_path / folder, masks)), beginning(batch)).meter()
        meter.add(batch, outputs)
        with pytest.raises(DataError, match=message):
            meter.estimators()
    meter = make(request(save_masks(tmp_path / "some", [white, white, np.ones((8, 8))])), beginning(batch)).meter()
    meter.add(batch, outputs)
    assert values(meter)["pixel_accuracy"] == pytest.approx(100 * 80 / (80 + 64))
    empty = make(request(save_masks(tmp_path / "empty", [np.zeros((8, 8))] * 3)), beginning(batch)).meter()
    empty.add(batch, outputs)
    assert values(empty)["pixel_accuracy"] == 100, "no object in any image, and nothing left out"


def test_background_of_a_file_of_names(tmp_path: Path) -> None:
    """A category that is class 0 leaves no number for what no annotation claims."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    for text, judged in (("cat\n", 16), ("background\ncat\n", 64)):
        (tmp_path / "names.txt").write_text(text)
        options = {"classes": str(tmp_path / "names.txt")}
        batch = memory_batch(("a.png",))
        meter = make(request(tmp_path / "coco.json", **options), beginning(batch)).meter()
        columns = meter.add(batch, {"y": np.zeros((1, 2, 8, 8))})
        assert columns["pixels"].tolist() == [judged]


def test_image_of_which_nothing_is_judged() -> None:
    counts = count_pixels(np.full((2, 2), 255), np.zeros((2, 2), np.int64), np.zeros((2, 2), bool))
    assert counts.pixels == 0 and len(counts.classes) == 0 and np.isnan(counts.share)
