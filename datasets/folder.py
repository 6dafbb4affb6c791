"""A folder of images: flat, with one subfolder a class, or with a ``labels.csv``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from quantlab.datasets.image_files import ImageFiles, keep_images, sample_id
from quantlab.datasets.labels import override_labels
from quantlab.datasets.source import Labelling, Listing
from quantlab.errors import DataError

LABELS_FILE = "labels.csv"


def open_folder(folder: Path, name: str) -> ImageFiles:
    """List the images under ``folder``, at any depth, in the order of their relative paths.

    Labels come from ``labels.csv`` (rows ``file,label``) in the folder; otherwise, where images lie in two or more
    subfolders, from these: by their numbers if all names are numbers, else in sorted order. Hidden files and folders
    are passed over; links are followed, but not in circles.

    Raises:
        DataError: If the folder cannot be read or has no images, or ``labels.csv`` is wrong.
    """
    root = folder
    files = sorted(_walk(root, ()), key=lambda path: path.relative_to(root).as_posix())
    labels_file = root / LABELS_FILE
    paths, ignored = keep_images((path for path in files if path != labels_file), f"folder {folder}")
    listing = Listing(
        kind="folder", name=name, ids=tuple(sample_id(path, root) for path in paths), labels=None, ignored=ignored
    )
    if labels_file.is_file():
        return ImageFiles(override_labels(listing, labels_file), paths)
    return ImageFiles(_by_subfolder(listing, [path.relative_to(root).parts for path in paths]), paths)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    yield from _walk(folder / entry.name, (*above, identity))
                elif entry.is_file() or entry.is_symlink():  # a dangling link is listed, and counted as unreadable
                    yield folder / entry.name
    except OSError as cause:
        raise DataError(f"cannot read folder {folder}", got=cause.strerror, hint="check its permissions") from cause


def _by_subfolder(listing: Listing, parts: list[tuple[str, ...]]) -> Listing:
    names = sorted({part[0] for part in parts if len(part) > 1})
    if len(names) < 2:
        return Listing(listing.kind, listing.name, listing.ids, (None,) * len(parts), ignored=listing.ignored)
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = {name: int(name) for name in names}
        class_names, labelling = None, Labelling.STATED
    else:
        numbers = {name: number for number, name in enumerate(names)}
        class_names, labelling = tuple(names), Labelling.SORTED_NAMES
    labels = tuple(numbers[part[0]] if len(part) > 1 else None for part in parts)
    return Listing(listing.kind, listing.name, listing.ids, labels, class_names, labelling, ignored=listing.ignored)
