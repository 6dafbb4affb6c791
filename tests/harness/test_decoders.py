from __future__ import annotations

import numpy as np
import pytest

from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.tasks.boxes import Detections
from quantlab.harness.tasks.decoders import DECODERS, DetectSettings, Reading

FED = (100, 200)
CLASSES = (0, 1, 2)


def decode(decoder: str, outputs: dict[str, np.ndarray], **settings: object) -> list[Detections | None]:
    options = DetectSettings(decoder, **settings)  # type: ignore[arg-type]
    return DECODERS[decoder].decode(outputs, Reading(options, FED, CLASSES))


def rows(found: Detections | None) -> list[tuple[float, ...]]:
    assert found is not None
    return [
        (*np.round(box, 4).tolist(), round(score, 4), number)
        for box, score, number in zip(found.boxes, found.scores.tolist(), found.classes.tolist(), strict=True)
    ]


def yolov5_head() -> np.ndarray:
    head = np.zeros((1, 5, 8), np.float32)
    head[0, 0] = [50, 40, 20, 10, 0.9, 0.8, 0.0, 0.5]  # a box of two classes
    head[0, 1] = [51, 40, 20, 10, 0.8, 0.8, 0.0, 0.0]  # IoU 19/21 with it: goes
    head[0, 2] = [70, 40, 20, 10, 0.5, 0.5, 0.0, 0.0]  # beside it: stays
    head[0, 3] = [120, 60, 40, 20, 0.02, 0.01, 0.04, 0.0]  # 0.0002 and 0.0008: too low
    return head


EXPECTED_YOLO = [
    (40.0, 35.0, 60.0, 45.0, 0.72, 0), (40.0, 35.0, 60.0, 45.0, 0.45, 2), (60.0, 35.0, 80.0, 45.0, 0.25, 0),
]  # fmt: skip


def test_yolov5() -> None:
    (found,) = decode("yolov5", {"output0": yolov5_head()})
    assert rows(found) == EXPECTED_YOLO


def test_yolov8() -> None:
    five = yolov5_head()
    head = np.concatenate([five[:, :, :4], five[:, :, 4:5] * five[:, :, 5:]], axis=2).transpose(0, 2, 1)
    assert head.shape == (1, 7, 5)
    (found,) = decode("yolov8", {"output0": head.astype(np.float16)})
    assert [row[:4] + row[5:] for row in rows(found)] == [row[:4] + row[5:] for row in EXPECTED_YOLO]
    assert found is not None
    np.testing.assert_allclose(found.scores, [0.72, 0.45, 0.25], rtol=1e-3)


def test_normalised_yolo() -> None:
    head = yolov5_head()
    head[:, :, :4] /= [200, 100, 200, 100]
    (found,) = decode("yolov5", {"output0": head}, coordinates="normalised")
    assert rows(found) == EXPECTED_YOLO


@pytest.mark.parametrize("decoder", ["yolov10", "end2end"])
def test_end2end(decoder: str) -> None:
    head = np.zeros((2, 4, 6), np.float32)
    head[0, 0] = [1, 2, 30, 40, 0.3, 2]
    head[0, 1] = [5, 6, 7, 8, 0.9, 0]
    head[0, 2] = [5, 6, 7, 8, 0.8, 0]  # suppression is the model's: both stay
    first, second = decode(decoder, {"output0": head})
    assert rows(first) == [(5, 6, 7, 8, 0.9, 0), (5, 6, 7, 8, 0.8, 0), (1, 2, 30, 40, 0.3, 2)]
    assert second is not None and len(second) == 0


def ssd_lists() -> dict[str, np.ndarray]:
    return {
        "detection_boxes": np.array([[[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.2, 0.9]]], np.float32),
        "detection_classes": np.array([[1, 2, 0]], np.float32),
        "detection_scores": np.array([[0.5, 0.75, 0.25]], np.float32),
    }


def test_ssd() -> None:
    outputs = ssd_lists()
    (found,) = decode("ssd", outputs)
    # The third box ends before it begins: it has no area.
    expected = [(0, 0, 200, 100, 0.75, 2), (20, 20, 60, 40, 0.5, 1), (100, 50, 100, 90, 0.25, 0)]
    assert rows(found) == expected
    named = dict(zip(("bboxes", "labels", "scores"), outputs.values(), strict=True))
    named["labels"] = named["labels"].astype(np.int64)
    assert rows(decode("ssd", named)[0]) == expected
    counted = outputs | {"num_detections": np.array([1.0], np.float32)}
    counted["detection_scores"][0, 1] = np.nan  # beyond the count there may be anything
    assert rows(decode("ssd", counted)[0]) == [expected[1]]
    assert decode("ssd", {k: v for k, v in counted.items() if k != "num_detections"}) == [None]


@pytest.mark.parametrize("count", [np.nan, np.inf])
def test_an_ssd_count_that_is_not_finite_breaks_the_sample(count: float) -> None:
    assert decode("ssd", ssd_lists() | {"num_detections": np.array([count], np.float32)}) == [None]


def test_ssd_tf() -> None:
    (found,) = decode("ssd-tf", ssd_lists())
    assert rows(found)[:2] == [(0, 0, 200, 100, 0.75, 2), (40, 10, 80, 30, 0.5, 1)]


def test_ssd_in_pixels() -> None:
    outputs = ssd_lists()
    outputs["detection_boxes"] = outputs["detection_boxes"] * 10
    (found,) = decode("ssd", outputs, coordinates="pixels")
    assert rows(found)[0] == (0, 0, 10, 10, 0.75, 2)


def test_ssd_scores() -> None:
    boxes = np.array([[[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.41], [0.5, 0.5, 0.6, 0.9]]], np.float32)
    scores = np.array([[[0.1, 0.5, 0.4], [0.2, 0.0, 0.8], [0.999, 0.0005, 0.0005]]], np.float32)
    (found,) = decode("ssd-scores", {"boxes": boxes, "scores": scores})
    assert rows(found) == [(20, 20, 60, 41, 0.8, 2), (20, 20, 60, 40, 0.5, 1)]


def test_settings_of_suppression() -> None:
    head = {"output0": yolov5_head()}
    assert len(rows(decode("yolov5", head, iou=0.95)[0])) == 4
    assert rows(decode("yolov5", head, max_detections=1)[0]) == EXPECTED_YOLO[:1]
    assert rows(decode("yolov5", head, confidence=0.5)[0]) == EXPECTED_YOLO[:1]
    assert rows(decode("yolov5", head, max_candidates=2)[0]) == EXPECTED_YOLO[:1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    head = np.concatenate([yolov5_head()] * 2)
    head[0, 4, 7] = value
    broken, fine = decode("yolov5", {"output0": head})
    assert broken is None and rows(fine) == EXPECTED_YOLO


@pytest.mark.parametrize(
    ("decoder", "outputs", "message"),
    [
        ("yolov5", {"a": np.zeros((1, 9, 7))}, "does not fit the output"),  # two classes for three
        ("yolov5", {"a": np.zeros((1, 7, 99))}, "does not fit the output"),  # the layout of yolov8
        ("yolov8", {"a": np.zeros((1, 99, 8))}, "does not fit the output"),  # the layout of yolov5
        ("yolov8", {"a": np.zeros((1, 3, 9))}, "does not fit the output"),
        ("yolov8", {"a": np.zeros((1, 9))}, "needs one output of 3 axes"),
        ("yolov8", {"a": np.zeros((1, 7, 9)), "b": np.zeros((1, 7, 9))}, "needs one output of 3 axes"),
        ("end2end", {"a": np.zeros((1, 9, 7))}, "does not fit the output"),
        ("end2end", {"a": np.full((1, 9, 6), 0.5)}, "does not fit the output"),
        ("ssd", {"boxes": np.zeros((1, 9, 4)), "scores": np.zeros((1, 9))}, "which output holds the classes"),
        ("ssd", {"boxes": np.zeros((1, 9, 4)), "scores": np.zeros((1, 8)), "labels": np.zeros((1, 9))}, "does not fit"),
        ("ssd-scores", {"boxes": np.zeros((1, 9, 4)), "scores": np.zeros((1, 9))}, "does not fit the outputs"),
        ("ssd-scores", {"boxes": np.zeros((1, 9, 4)), "scores": np.zeros((1, 9, 2))}, "does not fit the output"),
    ],
)
def test_outputs_that_do_not_fit(decoder: str, outputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        decode(decoder, outputs)


def test_output_by_name() -> None:
    outputs = {"raw": np.zeros((1, 5, 8), np.float32), "final": yolov5_head()}
    assert rows(decode("yolov5", outputs, output="final")[0]) == EXPECTED_YOLO
    with pytest.raises(ConfigError, match="no output 'last'"):
        decode("yolov5", outputs, output="last")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": ""}, "needs a decoder"),
        ({"decoder": "yolo8"}, "no decoder 'yolo8'"),
        ({"decoder": "ssd", "iou": 1.5}, "setting iou is out of range"),
        ({"decoder": "ssd", "confidence": -0.1}, "setting confidence is out of range"),
        ({"decoder": "ssd", "max_detections": 0}, "setting max_detections is out of range"),
        ({"decoder": "ssd", "coordinates": "mm"}, "setting coordinates is wrong"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectSettings(**settings)  # type: ignore[arg-type]
