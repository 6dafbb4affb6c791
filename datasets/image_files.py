"""Image files on disk, however they were listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from quantlab.datasets.content import ImageContent
from quantlab.datasets.decode import IMAGE_SUFFIXES, decode_file
from quantlab.datasets.source import Listing
from quantlab.errors import DataError


class ImageFiles:
    """A `Source` of one image per file."""

    def __init__(self, listing: Listing, paths: Sequence[Path]) -> None:
        self.listing = listing
        self._paths = tuple(paths)

    def load(self, index: int) -> ImageContent:
        """Read and decode one file.

        Raises:
            UnreadableSampleError: With the reason.
        """
        return decode_file(self._paths[index])


def printable(name: str) -> str:
    """A file name with the bytes that are not UTF-8 written as escapes, so that it can be printed and saved."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sample_id(path: Path, root: Path) -> str:
    """Printable path relative to ``root``, with forward slashes."""
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return printable(relative.as_posix())


def keep_images(paths: Iterable[Path], where: str) -> tuple[tuple[Path, ...], int]:
    """The paths with a suffix of images, and the number of others.

    Raises:
        DataError: If there are none, with the suffixes that were found.
    """
    listed = tuple(paths)
    images = tuple(path for path in listed if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        suffixes = Counter(path.suffix.lower() or "no suffix" for path in listed)
        found = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5))
        arrays = next((path for path in listed if path.suffix in (".npz", ".npy") or "idx" in path.name), None)
        raise DataError(
            f"there are no images in {where}",
            got=found or "no files",
            expected="files such as " + ", ".join(sorted(IMAGE_SUFFIXES)[:12]),
            hint=f"did you mean {arrays}?" if arrays else None,
        )
    return images, len(listed) - len(images)
