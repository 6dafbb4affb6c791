"""Masks: the class of every pixel, from a folder of PNG files or from COCO segmentations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.annotations import Truths
from quantlab.datasets.annotations_coco import Coco, CocoAnnotation, CocoImage, number
from quantlab.datasets.decode import quiet_pillow
from quantlab.datasets.image_files import printable
from quantlab.errors import BackendUnavailable, DataError

IGNORE = 255
"""Class number of pixels that are not judged."""

MOST_CLASSES = 65535
"""Largest class number, as of a 16-bit mask."""

Mask = NDArray[np.int64]
"""Height x width class numbers in the image's own size; `IGNORE` where there is no truth."""

LoadMask = Callable[[], Mask]
"""Masks are read when they are needed, for all of them seldom fit into memory."""

_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def folder_masks(folder: Path) -> Truths[LoadMask]:
    """Masks in a folder, at any depth: files named as their images, whose pixel values are class numbers.

    Indexed, grey and 16-bit files are understood; for indexed ones the index counts, not its colour.

    Raises:
        DataError: If there is no such folder or it has no masks; later, if a mask cannot be read or has colours.
    """
    where = f"mask folder {folder}"
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    except OSError as cause:
        raise DataError(f"cannot read {where}", got=cause.strerror) from cause
    if not paths:
        got = "an empty folder, or one of other files" if folder.is_dir() else "no such folder"
        raise DataError(f"there are no masks in {where}", got=got, expected="files " + ", ".join(_SUFFIXES))
    named = {printable(path.relative_to(folder).as_posix()): _reader(path) for path in paths}  # as ids of samples are
    return Truths(named, where, stems=True)


def _reader(path: Path) -> LoadMask:
    return lambda: read_mask(path)


def read_mask(path: Path) -> Mask:
    """Class numbers of a mask file.

    Raises:
        DataError: If it is damaged, or has colours in place of class numbers.
    """
    from PIL import Image

    quiet_pillow()
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode not in ("P", "L", "1") and not mode.startswith("I"):
                raise DataError(
                    f"mask {path} has colours",
                    got=f"an image of mode {mode}",
                    expected="one class number a pixel: an indexed or grey PNG",
                    hint="convert it by the palette of its data set first",
                )
            mask: Mask = np.asarray(image).astype(np.int64)
    except (DataError, MemoryError):
        raise
    except Exception as cause:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"mask {path} cannot be read", got=str(cause) or type(cause).__name__) from cause
    if mask.min(initial=0) < 0 or mask.max(initial=0) > MOST_CLASSES:
        raise DataError(f"mask {path} has values that are no class numbers", got=f"{mask.min()} to {mask.max()}")
    return mask


def coco_masks(coco: Coco, classes: Mapping[int, int], background: int) -> Truths[LoadMask]:
    """Masks from the segmentations of a COCO file: polygons and run lengths.

    Pixels that annotations of different classes claim are `IGNORE`; torchvision's reference ignores overlaps of one
    class, too.

    Args:
        coco: The annotations.
        classes: Class numbers by category id.
        background: Class of pixels in no annotation, or `IGNORE`.

    Raises:
        BackendUnavailable: If pycocotools is missing.
        DataError: If an annotation has no segmentation, two images have one name, or a class number is not 0 to 254;
            later, if a segmentation is malformed.
    """
    _mask_api()
    beyond = [found for found in classes.values() if not 0 <= found < IGNORE]
    if beyond:
        raise DataError(f"{coco.where} has class numbers that a mask cannot hold", got=beyond[0], expected="0 to 254")
    entries: dict[str, LoadMask] = {}
    for identity, listed in coco.by_image().items():
        image = coco.images[identity]
        for one in listed:
            if not one.fields.get("segmentation"):
                raise DataError(
                    f"{one.name} has no segmentation", expected="polygons or run lengths",
                    hint="are these annotations for --task detect?",
                )  # fmt: skip
        if image.name in entries:
            raise DataError(f"{coco.where} has two images of one name", got=repr(image.name))
        entries[image.name] = _painter(listed, image, classes, background)
    return Truths(entries, coco.where)


def _painter(
    annotations: list[CocoAnnotation], image: CocoImage, classes: Mapping[int, int], background: int
) -> LoadMask:
    return lambda: _paint(annotations, image, classes, background)


def _paint(annotations: list[CocoAnnotation], image: CocoImage, classes: Mapping[int, int], background: int) -> Mask:
    mask = np.full((image.height, image.width), background, np.int64)
    claimed = np.zeros((image.height, image.width), bool)
    for one in annotations:
        own, here = classes[one.category], _region(one, image)
        disputed = here & claimed & (mask != own)
        mask[here] = own
        mask[disputed] = IGNORE
        claimed |= here
    return mask


def _region(annotation: CocoAnnotation, image: CocoImage) -> NDArray[np.bool_]:
    """The pixels of one segmentation, by pycocotools."""
    api, given = _mask_api(), annotation.fields["segmentation"]
    size = image.height, image.width
    if isinstance(given, list):
        good = all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in given)
        if not good or not np.isfinite([number(value) for part in given for value in part]).all():
            raise DataError(
                f"{annotation.name} has a wrong polygon", got=repr(given)[:120],
                expected="lists of at least three points x, y",
            )  # fmt: skip
        for part in given:
            if not image.holds(part[::2], part[1::2]):  # pycocotools would go through every pixel up to there
                raise DataError(
                    f"{annotation.name} has a polygon outside its image {image.name!r}", got=repr(part)[:120],
                    expected=f"points within {image.width} x {image.height} pixels",
                )  # fmt: skip
        lengths = api.merge(api.frPyObjects(given, *size))
    else:
        lengths = _run_lengths(annotation, given, size)
    pixels: NDArray[np.bool_] = api.decode(lengths).astype(bool)
    return pixels


def _run_lengths(annotation: CocoAnnotation, given: object, size: tuple[int, int]) -> Any:
    counts = given.get("counts") if isinstance(given, dict) else None
    stated = given.get("size") if isinstance(given, dict) else None
    error = DataError(
        f"{annotation.name} has wrong run lengths", got=repr(given)[:120],
        expected=f"counts that add up to {size[0]} x {size[1]} pixels, and that size",
    )  # fmt: skip
    if stated != list(size):
        raise error
    api = _mask_api()
    if isinstance(counts, list):
        if not all(type(n) is int and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
            raise error
        return api.frPyObjects(given, *size)
    if not isinstance(counts, str) or _total(counts) != size[0] * size[1]:
        raise error  # pycocotools reads past its memory on such a text
    return {"size": stated, "counts": counts.encode("ascii")}


def _total(text: str) -> int:
    """Pixels that compressed run lengths cover; -1 if it is none.

    The inverse of ``rleToString`` of the COCO API (``common/maskApi.c``): five bits a character from 48 on, the sixth
    says that more follow; from the fourth on, runs are stored as the difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return -1
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return -1
        value = shift = 0
    return sum(runs) if shift == 0 else -1


def _mask_api() -> Any:
    try:
        from pycocotools import mask
    except ImportError as cause:
        raise BackendUnavailable(
            "COCO segmentations need pycocotools", got=str(cause), hint="pip install 'quantlab[detect]'"
        ) from cause
    return mask
