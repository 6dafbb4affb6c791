from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from task_data import beginning, image_data, memory_batch, request, values

from quantlab.datasets import Resize
from quantlab.degradation import DegradationCode
from quantlab.errors import BackendUnavailable, ConfigError, DataError
from quantlab.harness.tasks.detect import DetectTask, make
from quantlab.harness.tasks.registry import Beginning
from quantlab.harness.tasks.segment import make as make_segment

SIZE = (40, 60)
BATCH = memory_batch(("a.png", "b.png", "c.png"), SIZE)


def annotations(folder: Path, names: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    """Two objects in the first image, none in the second."""
    document = {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names)],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": 0, "category_id": 1, "bbox": [0, 0, 20, 10]},
            {"image_id": 0, "category_id": 44, "bbox": [30, 20, 20, 20]},
        ],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(document))
    return path


def head(*rows: tuple[float, ...], n: int = 3) -> dict[str, np.ndarray]:
    """Rows x1 y1 x2 y2 score class of the first sample."""
    output = np.zeros((n, 6, 6))
    output[0, : len(rows)] = rows
    return {"output0": output}


PERSON, BOTTLE = (0, 0, 20, 10, 0.9, 0), (30, 20, 50, 40, 0.8, 1)


def task(folder: Path, **options: str) -> DetectTask:
    return make(request(annotations(folder), decoder="end2end", **options), beginning(BATCH))


def test_all_found(tmp_path: Path) -> None:
    made = task(tmp_path)
    meter = made.meter()
    columns = meter.add(BATCH, head(BOTTLE, PERSON, (5, 5, 9, 9, 0.99, 7)))  # class 7 is none of the truths'
    assert values(meter) == {"map": pytest.approx(100), "map50": pytest.approx(100), "ar100": pytest.approx(100)}
    assert columns["objects"].tolist() == [2, 0, -1] and columns["found50"].tolist() == [2, 0, -1]
    assert columns["detections"].tolist() == [3, 0, 0] and columns["matches"][2] is None
    assert meter.counted("map").tolist() == [True, True, False]
    assert [d.code for d in made.degradations] == [DegradationCode.UNLABELLED_SAMPLES]
    assert made.degradations[0].count == 1
    assert (meter.says(0), meter.truth(0), meter.says(2), meter.truth(2)) == (
        "found 2 of 2 at IoU 0.5, 2 at 0.75", "2 objects", "not judged", None,
    )  # fmt: skip


def test_box_that_is_a_little_off(tmp_path: Path) -> None:
    """18 of 20 columns: IoU 0.9 and so right at nine of ten thresholds; the bottle is not found at all."""
    meter = task(tmp_path).meter()
    meter.add(BATCH, head((0, 0, 18.001, 10, 0.9, 0)))
    assert values(meter) == {"map": pytest.approx(45), "map50": pytest.approx(50), "ar100": pytest.approx(45)}
    reference = task(tmp_path).meter()
    reference.add(BATCH, head(PERSON, BOTTLE))
    np.testing.assert_allclose(meter.drops(reference), [2 - 0.9, np.nan, np.nan])


def test_numbering_of_the_classes(tmp_path: Path) -> None:
    meter = task(tmp_path, classes="ids").meter()
    meter.add(BATCH, head((*PERSON[:5], 1), (*BOTTLE[:5], 44)))
    assert values(meter)["map"] == pytest.approx(100)


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    made = task(tmp_path)
    reference, meter = made.meter(), made.meter()
    outputs = head(PERSON, BOTTLE)
    reference.add(BATCH, outputs)
    outputs["output0"][:2, 5, 0] = np.nan
    columns = meter.add(BATCH, outputs)
    assert columns["broken"].tolist() == [True, True, False]
    assert values(meter) == {"map": 0.0, "map50": 0.0, "ar100": 0.0}
    np.testing.assert_array_equal(meter.drops(reference), [3, 1, np.nan])
    assert meter.says(0) == "outputs that are not finite"
    other = made.meter()
    empty = head(PERSON, BOTTLE)
    empty["output0"][1, 5, 0] = np.inf
    other.add(BATCH, empty)
    assert values(other)["map"] < 5, "an image without objects cannot hide broken outputs"


def test_boxes_land_in_the_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name)
    ((dataset, batch),) = image_data(tmp_path / "images", (120, 120), Resize.LETTERBOX)
    made = make(request(annotations(tmp_path), decoder="end2end"), Beginning(dataset, batch, {}))  # type: ignore[arg-type]
    fed = [tuple(2 * v + 20 * (i % 2) for i, v in enumerate(row[:4])) + row[4:] for row in (PERSON, BOTTLE)]
    meter = made.meter()
    meter.add(batch, head(*fed, n=2))
    assert values(meter)["map"] == pytest.approx(100) and made.degradations == ()


def test_truths_of_another_size(tmp_path: Path) -> None:
    batch = memory_batch(("a.png",), (40, 61))
    meter = make(request(annotations(tmp_path), decoder="end2end"), beginning(batch)).meter()
    with pytest.raises(DataError, match=r"truth of sample 'a\.png' is for an image of another size"):
        meter.add(batch, head(PERSON, n=1))


def test_truths_of_another_size_where_any_size_can_be_fed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name, exif=turned)
    ((dataset, batch),) = image_data(tmp_path / "images", (120, 120), Resize.LETTERBOX)
    labels = annotations(tmp_path, ("a.jpg", "b.jpg"))
    made = make(request(labels, decoder="end2end"), Beginning(dataset, batch, {}))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"truth of sample 'a\.jpg' is for an image of another size") as caught:
        made.meter().add(batch, head(PERSON, n=2))
    assert "40 x 60" in str(caught.value.got) and "60 x 40" in str(caught.value.expected)
    assert "EXIF" in (caught.value.hint or "")


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs truths"):
        make(request(None, decoder="ssd"), beginning(BATCH))
    with pytest.raises(ConfigError, match="needs a decoder"):
        make(request(annotations(tmp_path)), beginning(BATCH))
    with pytest.raises(ConfigError, match="unknown key 'nms'"):
        task(tmp_path, nms="0.5")
    with pytest.raises(ConfigError, match="setting max_detections of the task detect is wrong"):
        task(tmp_path, max_detections="1.5")
    with pytest.raises(DataError, match="no entry for any of the first 3 samples"):
        make(request(annotations(tmp_path, ("x.png", "y.png")), decoder="ssd"), beginning(BATCH))
    two = memory_batch(("a.png",))
    two.inputs["other"] = two.inputs["x"]  # type: ignore[index]
    with pytest.raises(DataError, match="one input of images"):
        make(request(annotations(tmp_path), decoder="ssd"), beginning(two))
    for module in ("pycocotools", "pycocotools.cocoeval", "pycocotools.mask"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailable) as caught:
        task(tmp_path)
    assert caught.value.hint == "pip install 'quantlab[detect]'"
    with pytest.raises(BackendUnavailable, match="segmentations need pycocotools"):
        make_segment(request(annotations(tmp_path)), beginning(BATCH))
