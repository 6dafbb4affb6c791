"""A text file with one image path a line, and optionally its label."""

from __future__ import annotations

from pathlib import Path

from quantlab.datasets.decode import IMAGE_SUFFIXES
from quantlab.datasets.image_files import ImageFiles, sample_id
from quantlab.datasets.labels import number_labels, read_text
from quantlab.datasets.source import Listing
from quantlab.errors import DataError


def open_listfile(path: Path, name: str) -> ImageFiles:
    """Read paths, relative to the list's own folder; a label may follow after a tab, comma or space.

    Empty lines and lines that start with ``#`` are passed over. A listed file that does not exist counts as
    unreadable.

    Raises:
        DataError: If the list is not text, is empty, names a file twice, or has wrong labels.
    """
    root = path.parent
    entries: dict[str, tuple[Path, str | None]] = {}
    for number, line in enumerate(read_text(path, "image list").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        file, label = _split(text, root)
        name_here = sample_id(root / file, root)
        if name_here in entries:
            raise DataError(
                f"image list {path} names a file twice at line {number}", got=file, expected="each file once"
            )
        entries[name_here] = (root / file, label)
    if not entries:
        raise DataError(f"image list {path} is empty", expected="one image path a line")
    numbered = number_labels([label for _, label in entries.values()], f"image list {path}")
    listing = Listing(
        kind="list",
        name=name,
        ids=tuple(entries),
        labels=numbered.labels,
        class_names=numbered.class_names,
        labelling=numbered.labelling,
    )
    return ImageFiles(listing, [file for file, _ in entries.values()])


def _split(text: str, root: Path) -> tuple[str, str | None]:
    """Path and label; a path with spaces or commas is recognised because it exists or ends as an image."""
    if _is_image(text, root):
        return text, None
    for separator in ("\t", ",", None):
        parts = text.rsplit(separator, 1)
        if len(parts) == 2 and _is_image(parts[0].strip(), root):
            return parts[0].strip(), parts[1].strip() or None
    return text, None


def _is_image(text: str, root: Path) -> bool:
    return Path(text).suffix.lower() in IMAGE_SUFFIXES or (root / text).is_file()
