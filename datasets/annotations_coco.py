"""COCO annotation files: what is in them, boxes by image, and class numbers.

The format is that of https://cocodataset.org/#format-data; keys that are not needed here may be missing.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.annotations import Truths
from quantlab.documents import near_match, read_file
from quantlab.errors import ConfigError, DataError

FROM_ZERO, FROM_ONE, CATEGORY_IDS = "from-0", "from-1", "ids"
"""How a model numbers the categories: in the order of their ids from 0, or from 1 (0 is the background), or by id."""

_OUTSIDE_PX = 1.0

_LARGEST_ID = 2**63 - 1

_LONGEST_EDGE_PX = 65535
"""Of an image, as of a JPEG."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its file's name and its size in pixels."""

    name: str
    height: int
    width: int

    def holds(self, xs: Sequence[float], ys: Sequence[float]) -> bool:
        """Whether points lie within the image, or a pixel beyond: annotation tools round to whole pixels."""
        inside = (-_OUTSIDE_PX <= low <= high <= edge + _OUTSIDE_PX
                  for low, high, edge in ((min(xs), max(xs), self.width), (min(ys), max(ys), self.height)))  # fmt: skip
        return all(inside)


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """One annotation.

    Attributes:
        name: What it is called in messages.
        image: Id of its image.
        category: Id of its category.
        fields: All that the file says of it.
    """

    name: str
    image: int
    category: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Coco:
    """A COCO annotation file, with every reference in it checked.

    Attributes:
        where: What it is called in messages.
        images: By id.
        categories: Names by id, in the order of the ids.
        annotations: In the order of the file.
    """

    where: str
    images: Mapping[int, CocoImage]
    categories: Mapping[int, str]
    annotations: tuple[CocoAnnotation, ...]

    def by_image(self) -> dict[int, list[CocoAnnotation]]:
        """The annotations of every image, also of those that have none."""
        found: defaultdict[int, list[CocoAnnotation]] = defaultdict(list)
        for annotation in self.annotations:
            found[annotation.image].append(annotation)
        return {image: found[image] for image in self.images}


@dataclass(frozen=True, slots=True, eq=False)
class ImageBoxes:
    """The boxes of one image, in its pixels.

    Attributes:
        size: Height and width of the image.
        boxes: (n, 4) float64: x and y of the upper left corner, width, height; as the file has them.
        classes: (n,) int64.
        crowd: (n,) bool: regions of many objects, in which detections are neither right nor wrong.
        area: (n,) float64 in pixels: of the object where the file says so, else of the box.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]


def read_coco(path: Path) -> Coco:
    """Read a COCO annotation file.

    Raises:
        DataError: If it is missing, no JSON, of another form, has no annotations, or refers to an image or a category
            that it does not have.
    """
    where = f"COCO file {path}"
    data = read_file(path, DataError, "COCO file")
    try:
        document = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise DataError(f"{where} is not valid JSON", got=str(cause) or type(cause).__name__) from cause
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in _PARTS):
        got = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise DataError(
            f"{where} is not of the COCO form", got=got[:200] or "nothing",
            expected=f"an object with the lists {', '.join(_PARTS)}",
        )  # fmt: skip
    images = {}
    for index, entry in enumerate(document["images"]):
        name = f"{where}: image {index}"
        identity = _whole(entry, "id", name)
        if identity in images:
            raise DataError(f"{name} has the id of another image", got=identity)
        file = _text(entry, "file_name", name)
        height, width = (_whole(entry, key, name, 1, _LONGEST_EDGE_PX) for key in ("height", "width"))
        images[identity] = CocoImage(file, height, width)
    categories = {}
    for index, entry in enumerate(document["categories"]):
        name = f"{where}: category {index}"
        identity = _whole(entry, "id", name)
        if identity in categories:
            raise DataError(f"{name} has the id of another category", got=identity)
        categories[identity] = _text(entry, "name", name)
    annotations = tuple(
        _annotation(entry, f"{where}: annotation {index}", images, categories)
        for index, entry in enumerate(document["annotations"])
    )
    if not annotations:
        raise DataError(f"{where} has no annotations", expected="at least one")
    return Coco(where, images, dict(sorted(categories.items())), annotations)


_PARTS = ("images", "annotations", "categories")


def _annotation(
    entry: object, name: str, images: Mapping[int, CocoImage], categories: Mapping[int, str]
) -> CocoAnnotation:
    image, category = _whole(entry, "image_id", name), _whole(entry, "category_id", name)
    for what, identity, known in (("an image", image, images), ("a category", category, categories)):
        if identity not in known:
            raise DataError(f"{name} refers to {what} that the file does not have", got=f"id {identity}")
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    return CocoAnnotation(name, image, category, fields)


def _field(entry: object, key: str, name: str) -> object:
    if not isinstance(entry, dict) or key not in entry:
        got = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise DataError(f"{name} has no {key!r}", got=got or "an empty object", expected=f"an object with {key!r}")
    return entry[key]


def _whole(entry: object, key: str, name: str, least: int = -_LARGEST_ID, most: int = _LARGEST_ID) -> int:
    value = _field(entry, key, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        bounds = "" if most == _LARGEST_ID else f" from {least} to {most}"
        raise DataError(f"{name} has a wrong {key!r}", got=repr(value)[:80], expected=f"a whole number{bounds}")
    return value


def _text(entry: object, key: str, name: str) -> str:
    value = _field(entry, key, name)
    if not isinstance(value, str) or not value:
        raise DataError(f"{name} has a wrong {key!r}", got=repr(value)[:80], expected="a text")
    return value


def class_numbers(coco: Coco, numbering: str) -> dict[int, int]:
    """The model's class number of every category id.

    Args:
        coco: The annotations.
        numbering: ``from-0``: categories in the order of their ids, from 0, which gives the usual 80 classes where ids
            are skipped; ``from-1``: from 1; ``ids``: the ids themselves; else a text file with the model's class
            names, one a line, class 0 first.

    Raises:
        ConfigError: If it is none of these.
        DataError: If the text file is missing, or lacks a category that has annotations or has it twice.
    """
    ids = list(coco.categories)
    if numbering == CATEGORY_IDS:
        return {identity: identity for identity in ids}
    if numbering in (FROM_ZERO, FROM_ONE):
        return {identity: index for index, identity in enumerate(ids, start=int(numbering == FROM_ONE))}
    path = Path(numbering)
    if path.suffix not in (".txt", ".names"):
        raise ConfigError(
            "the numbering of the classes is not known",
            got=repr(numbering),
            expected=f"{FROM_ZERO}, {FROM_ONE}, {CATEGORY_IDS}, or a .txt or .names file with one class name a line",
        )
    try:
        lines = read_file(path, DataError, "file of class names").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as cause:
        raise DataError(f"file of class names {path} is not UTF-8 text", got=str(cause)) from cause
    listed = [line.strip() for line in lines]
    names = {name: index for index, name in enumerate(listed) if name}
    for identity in sorted({annotation.category for annotation in coco.annotations}):
        if listed.count(coco.categories[identity]) > 1:
            raise DataError(
                f"file of class names {path} has a category of {coco.where} twice", got=repr(coco.categories[identity])
            )
        if coco.categories[identity] not in names:
            near = near_match(coco.categories[identity], names)
            raise DataError(
                f"file of class names {path} lacks a category of {coco.where}",
                got=repr(coco.categories[identity]),
                hint=f"is it {near!r} there?" if near else None,
            )
    return {identity: names[name] for identity, name in coco.categories.items() if name in names}


def coco_boxes(coco: Coco, classes: Mapping[int, int]) -> Truths[ImageBoxes]:
    """The boxes of every image; images without annotations have none, and count.

    Args:
        coco: The annotations.
        classes: Class numbers by category id (`class_numbers`).

    Raises:
        DataError: If a box is missing, not four finite numbers, of negative size, or outside its image; if all boxes
            are so small that they can only be shares of the image.
    """
    entries = {}
    for identity, listed in coco.by_image().items():
        image = coco.images[identity]
        boxes = np.array([_box(one, image) for one in listed], np.float64).reshape(-1, 4)
        crowd = [_whole(one.fields, "iscrowd", one.name, 0, 1) if "iscrowd" in one.fields else 0 for one in listed]
        stated = [_area(one) for one in listed]
        area = [w * h if size is None else size for size, (_, _, w, h) in zip(stated, boxes.tolist(), strict=True)]
        entry = ImageBoxes(
            (image.height, image.width),
            boxes,
            np.array([classes[one.category] for one in listed], np.int64),
            np.array(crowd, bool),
            np.array(area, np.float64),
        )
        if image.name in entries:
            raise DataError(f"{coco.where} has two images of one name", got=repr(image.name))
        entries[image.name] = entry
    ends = [entry.boxes[:, :2] + entry.boxes[:, 2:] for entry in entries.values()]
    if max((float(end.max(initial=0.0)) for end in ends), default=0.0) <= 1.0:
        raise DataError(
            f"{coco.where} has no box that reaches beyond the first pixel of its image",
            got=f"such as {coco.annotations[0].fields['bbox']}", expected="boxes in pixels, not in shares of the image",
        )  # fmt: skip
    return Truths(entries, coco.where)


def _box(annotation: CocoAnnotation, image: CocoImage) -> list[float]:
    given = _field(annotation.fields, "bbox", annotation.name)
    box = [number(value) for value in given] if isinstance(given, list) else []
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise DataError(
            f"{annotation.name} has a wrong box", got=repr(given)[:120],
            expected="[x, y, width, height]: finite numbers, no negative size",
        )  # fmt: skip
    x, y, width, height = box
    if not image.holds((x, x + width), (y, y + height)):
        raise DataError(
            f"{annotation.name} has a box outside its image {image.name!r}",
            got=f"x {x:g} to {x + width:g}, y {y:g} to {y + height:g}",
            expected=f"within {image.width} x {image.height} pixels",
            hint="COCO boxes are [x, y, width, height] in pixels, not corners and not shares",
        )
    return box


def number(value: object) -> float:
    """A number of a JSON document; NaN for anything else, and for one that is too large."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _area(annotation: CocoAnnotation) -> float | None:
    if "area" not in annotation.fields:
        return None
    area = number(annotation.fields["area"])
    if not (math.isfinite(area) and area >= 0):
        raise DataError(
            f"{annotation.name} has a wrong 'area'", got=repr(annotation.fields["area"])[:80],
            expected="a finite number from 0",
        )  # fmt: skip
    return area
