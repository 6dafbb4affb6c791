"""Decoders: a detector's outputs to boxes in the pixels of what it was fed. Each documents its exact layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.annotations_coco import CATEGORY_IDS, FROM_ONE, FROM_ZERO
from quantlab.documents import near_match
from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.tasks.boxes import Detections, Floats, suppress
from quantlab.harness.tasks.options import check_range
from quantlab.harness.tasks.protocol import Arrays

PIXELS, NORMALISED = "pixels", "normalised"


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """How outputs are read; the defaults are those of the usual evaluation of detectors on COCO.

    Attributes:
        decoder: Name of a decoder (`DECODERS`).
        classes: Numbering of the classes (`class_numbers`); None for the decoder's own.
        confidence: Detections must have a higher score.
        iou: Overlap from which non-maximum suppression drops the lower score, for decoders that suppress.
        max_detections: Kept an image; the evaluator takes the best 100 of each class.
        max_candidates: Boxes that suppression looks at in an image, the best ones.
        coordinates: ``pixels`` of what is fed or ``normalised`` to 0..1; None for the decoder's own.
        output: Name of the output with the boxes, for decoders of one output; None for the only one that fits.
    """

    decoder: str = ""
    classes: str | None = None
    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    max_candidates: int = 30_000
    coordinates: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            near = near_match(self.decoder, DECODERS)
            raise ConfigError(
                f"there is no decoder {self.decoder!r}" if self.decoder else "the task detect needs a decoder",
                expected="--task-option decoder=" + ", ".join(DECODERS),
                hint=f"did you mean {near!r}?" if near else None,
            )
        if self.coordinates not in (None, PIXELS, NORMALISED):
            raise ConfigError(
                "the setting coordinates is wrong", got=repr(self.coordinates), expected=f"{PIXELS} or {NORMALISED}"
            )
        check_range("confidence", self.confidence, 0.0, 1.0)
        check_range("iou", self.iou, 0.0, 1.0)
        check_range("max_detections", self.max_detections, 1, 10_000)
        check_range("max_candidates", self.max_candidates, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a decoder needs to know besides the outputs.

    Attributes:
        settings: See there.
        fed: Height and width of what the model is fed.
        classes: Class numbers that truths can have.
    """

    settings: DetectSettings
    fed: tuple[int, int]
    classes: Collection[int]

    def to_pixels(self, boxes: Floats, usual: str) -> Floats:
        """Boxes (..., 4) as x y x y or x y w h in the pixels of what is fed."""
        if (self.settings.coordinates or usual) == PIXELS:
            return boxes
        height, width = self.fed
        scaled: Floats = boxes * np.array([width, height, width, height], np.float64)
        return scaled


Decode = Callable[[Arrays, Reading], list[Detections | None]]
"""Detections of each sample of a batch; None for a sample whose outputs are not all finite."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """One layout of outputs.

    Attributes:
        decode: Reads it.
        classes: Its usual numbering of the classes.
    """

    decode: Decode
    classes: str


def decode_yolov5(outputs: Arrays, reading: Reading) -> list[Detections | None]:
    """One output (N, boxes, 5 + C): centre x, centre y, width, height, objectness, C class probabilities.

    YOLOv5, YOLOv7 and YOLOX (exported with its decoding). A box counts for every class for which objectness times
    class probability exceeds the confidence; then suppression class by class.
    """
    value = _only_output(outputs, reading, 3, "(N, boxes, 5 + classes)")
    _check_classes(value.shape[2] - 5, value.shape[1] - 4, value.shape, reading)
    return [
        None if row is None else _dense(row[:, :4], row[:, 4:5] * row[:, 5:], reading) for row in _finite_rows(value)
    ]


def decode_yolov8(outputs: Arrays, reading: Reading) -> list[Detections | None]:
    """One output (N, 4 + C, boxes): centre x, centre y, width, height, C class probabilities.

    YOLOv8, YOLOv9, YOLO11 and later heads without objectness. A box counts for every class whose probability exceeds
    the confidence; then suppression class by class.
    """
    value = _only_output(outputs, reading, 3, "(N, 4 + classes, boxes)")
    _check_classes(value.shape[1] - 4, value.shape[2] - 5, value.shape, reading)
    return [None if row is None else _dense(row[:4].T, row[4:].T, reading) for row in _finite_rows(value)]


def decode_end2end(outputs: Arrays, reading: Reading) -> list[Detections | None]:
    """One output (N, k, 6): x1, y1, x2, y2, score, class; suppressed already.

    YOLOv10, YOLO26 and exports with suppression in the graph. Rows of padding have a score of 0.
    """
    value = _only_output(outputs, reading, 3, "(N, k, 6)")
    if value.shape[2] != 6:
        raise MeasurementError("the decoder end2end does not fit the output", got=value.shape, expected="(N, k, 6)")
    found: list[Detections | None] = []
    for row in _finite_rows(value):
        if row is None:
            found.append(None)
            continue
        boxes = reading.to_pixels(row[:, :4], PIXELS)
        found.append(_listed(boxes, row[:, 4], row[:, 5], reading))
    return found


def decode_ssd(outputs: Arrays, reading: Reading) -> list[Detections | None]:
    """Boxes (N, k, 4) as xmin ymin xmax ymax of 0..1, classes (N, k), scores (N, k), optionally counts (N,).

    SSD and others with suppression in the graph. Outputs are told apart by their names: those with ``box``, ``score``,
    ``class`` or ``label``, and ``num`` or ``count`` in them.
    """
    return _decode_lists(outputs, reading, (0, 1, 2, 3))


def decode_ssd_tf(outputs: Arrays, reading: Reading) -> list[Detections | None]:
    """As `decode_ssd`, with boxes as ymin xmin ymax xmax: models of TensorFlow's detection API."""
    return _decode_lists(outputs, reading, (1, 0, 3, 2))


def decode_ssd_scores(outputs: Arrays, reading: Reading) -> list[Detections | None]:
    """Boxes (N, boxes, 4) as xmin ymin xmax ymax of 0..1, and probabilities (N, boxes, 1 + C), class 0 the background.

    SSD and RetinaNet-style heads with decoded boxes and without suppression. A box counts for every class but 0 whose
    probability exceeds the confidence; then suppression class by class.
    """
    boxes, scores = _by_role(outputs, "boxes"), _by_role(outputs, "scores")
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.ndim != 3 or scores.shape[:2] != boxes.shape[:2]:
        raise MeasurementError(
            "the decoder ssd-scores does not fit the outputs",
            got=f"boxes {boxes.shape}, scores {scores.shape}",
            expected="boxes (N, boxes, 4), scores (N, boxes, 1 + classes)",
        )
    if max(reading.classes, default=0) >= scores.shape[2]:
        raise _too_few_classes(scores.shape[2], reading)
    found: list[Detections | None] = []
    for corner, score in zip(_finite_rows(boxes), _finite_rows(scores), strict=True):
        if corner is None or score is None:
            found.append(None)
            continue
        rows, columns = np.nonzero(score[:, 1:] > reading.settings.confidence)
        pixels = reading.to_pixels(corner, NORMALISED)[rows]
        found.append(_suppressed(pixels, score[rows, columns + 1], columns + 1, reading))
    return found


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "yolov5": Decoder(decode_yolov5, FROM_ZERO),
        "yolov8": Decoder(decode_yolov8, FROM_ZERO),
        "yolov10": Decoder(decode_end2end, FROM_ZERO),
        "end2end": Decoder(decode_end2end, FROM_ZERO),
        "ssd": Decoder(decode_ssd, CATEGORY_IDS),
        "ssd-tf": Decoder(decode_ssd_tf, CATEGORY_IDS),
        "ssd-scores": Decoder(decode_ssd_scores, FROM_ONE),
    }
)
"""By the name on the command line."""

_ROLES = {"boxes": ("box",), "scores": ("score", "prob"), "classes": ("class", "label"), "counts": ("num", "count")}


def _only_output(outputs: Arrays, reading: Reading, axes: int, layout: str) -> NDArray[np.generic]:
    name = reading.settings.output
    decoder = f"the decoder {reading.settings.decoder}"
    if name is not None and name not in outputs:
        raise ConfigError(f"the model has no output {name!r}", expected="one of " + ", ".join(outputs))
    fitting = [value for key, value in outputs.items() if value.ndim == axes and name in (None, key)]
    if len(fitting) != 1:
        raise MeasurementError(
            f"{decoder} needs one output of {axes} axes",
            got=", ".join(f"{key} {value.shape}" for key, value in outputs.items()),
            expected=layout,
            hint="name it: --task-option output=NAME" if fitting else "choose another decoder",
        )
    return fitting[0]


def _check_classes(classes: int, others: int, shape: tuple[int, ...], reading: Reading) -> None:
    """Refuse a head with fewer classes than the truths have, or one that is plainly of the other YOLO layout.

    Args:
        classes: Of the head, if it is of the decoder's layout.
        others: Classes of the head, if it is of the other layout.
        shape: Of the output.
        reading: See there.
    """
    wanted = _class_count(reading)
    if classes < wanted or (others == wanted and classes > others):
        raise _too_few_classes(classes, reading, shape)


def _class_count(reading: Reading) -> int:
    return max(reading.classes, default=0) + 1


def _too_few_classes(classes: int, reading: Reading, shape: tuple[int, ...] | None = None) -> MeasurementError:
    return MeasurementError(
        f"the decoder {reading.settings.decoder} does not fit the output",
        got=f"{max(classes, 0)} classes" + (f" in an output of {shape}" if shape else ""),
        expected=f"{_class_count(reading)} classes, as the truths have",
        hint="choose another decoder, or state the numbering of the classes: --task-option classes=...",
    )


def _finite_rows(value: NDArray[np.generic]) -> Iterator[Floats | None]:
    """The samples one by one in float64, for a batch of them may be large; None for one that is not all finite."""
    for row in value:
        wide = row.astype(np.float64)
        yield wide if np.isfinite(wide).all() else None


def _dense(centred: Floats, scores: Floats, reading: Reading) -> Detections:
    """From boxes (b, 4) as centre and size, and scores (b, C)."""
    rows, columns = np.nonzero(scores > reading.settings.confidence)
    centred = reading.to_pixels(centred, PIXELS)[rows]
    half = centred[:, 2:] / 2
    corners = np.concatenate([centred[:, :2] - half, centred[:, :2] + half], axis=1)
    return _suppressed(corners, scores[rows, columns], columns, reading)


def _suppressed(boxes: Floats, scores: Floats, classes: NDArray[np.int64], reading: Reading) -> Detections:
    candidates = Detections(_ordered(boxes), scores, classes).best(reading.settings.max_candidates)
    return suppress(candidates, reading.settings.iou, reading.settings.max_detections)


def _listed(boxes: Floats, scores: Floats, classes: Floats, reading: Reading) -> Detections:
    """From boxes that are suppressed already."""
    whole = np.rint(classes)
    if (whole != classes).any():
        raise MeasurementError(
            f"the decoder {reading.settings.decoder} does not fit the output",
            got=f"a class {classes[whole != classes][0]:g}", expected="whole numbers",
        )  # fmt: skip
    found = Detections(_ordered(boxes), scores, whole.astype(np.int64))
    return found.take(scores > reading.settings.confidence).best(reading.settings.max_detections)


def _ordered(boxes: Floats) -> Floats:
    """A box whose end lies before its start has no area, and must not get one by a product of two negative sides."""
    result: Floats = np.concatenate([boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    return result


def _decode_lists(outputs: Arrays, reading: Reading, order: tuple[int, int, int, int]) -> list[Detections | None]:
    boxes, scores, classes = (_by_role(outputs, role) for role in ("boxes", "scores", "classes"))
    n, k = boxes.shape[:2] if boxes.ndim == 3 else (len(boxes), -1)
    if boxes.shape != (n, k, 4) or scores.shape != (n, k) or classes.shape != (n, k):
        raise MeasurementError(
            f"the decoder {reading.settings.decoder} does not fit the outputs",
            got=f"boxes {boxes.shape}, scores {scores.shape}, classes {classes.shape}",
            expected="boxes (N, k, 4), scores (N, k), classes (N, k)",
        )
    counts, counted = np.full(n, k), np.ones(n, bool)
    if any(_has_role(name, "counts") for name in outputs):
        stated = _by_role(outputs, "counts").reshape(n).astype(np.float64)
        counted = np.isfinite(stated)
        counts = np.where(counted, np.clip(stated, 0, k), 0).astype(np.int64)
    found: list[Detections | None] = []
    for box, score, number, count, known in zip(boxes, scores, classes, counts.tolist(), counted.tolist(), strict=True):
        corners, confidences, labels = (part[:count].astype(np.float64) for part in (box, score, number))
        if not known or not all(np.isfinite(part).all() for part in (corners, confidences, labels)):
            found.append(None)
            continue
        pixels = reading.to_pixels(corners[:, list(order)], NORMALISED)
        found.append(_listed(pixels, confidences, labels, reading))
    return found


def _has_role(output: str, role: str) -> bool:
    """Whether an output's name says that it plays this part; ``num_detections`` but not ``detection_classes``."""
    text = output.lower()
    if role != "counts" and any(word in text for word in _ROLES["counts"]):
        return False
    return any(word in text for word in _ROLES[role])


def _by_role(outputs: Arrays, role: str) -> NDArray[np.generic]:
    named = [name for name in outputs if _has_role(name, role)]
    if len(named) != 1:
        raise MeasurementError(
            f"cannot tell which output holds the {role}",
            got=", ".join(f"{name} {value.shape}" for name, value in outputs.items()),
            expected=f"one output with {' or '.join(map(repr, _ROLES[role]))} in its name",
            hint="rename the outputs of the model, or choose another decoder",
        )
    return outputs[named[0]]
