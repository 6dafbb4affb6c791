"""Images by a pattern such as ``photos/**/*.jpg``."""

from __future__ import annotations

import glob
from pathlib import Path

from quantlab.datasets.image_files import ImageFiles, keep_images, printable, sample_id
from quantlab.datasets.source import Listing
from quantlab.errors import DataError


def open_glob(pattern: str) -> ImageFiles:
    """List the images that match, in sorted order; ``**`` spans folders, hidden files are passed over.

    Ids are relative to the part of the pattern before its first wildcard. There are no labels without ``--labels``.

    Raises:
        DataError: If nothing matches, or no image does.
    """
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns
    files = [path for path in matches if not path.is_dir()]
    if not files:
        raise DataError(
            f"no file matches {pattern!r}",
            got=f"{len(matches)} folders" if matches else "nothing",
            expected="image files",
            hint="quote the pattern so that the shell leaves it alone, and use ** for folders at any depth",
        )
    root = _fixed_part(pattern)
    paths, ignored = keep_images(files, f"the matches of {pattern!r}")
    ids = tuple(sample_id(path, root) for path in paths)
    return ImageFiles(Listing("glob", printable(pattern), ids, (None,) * len(ids), ignored=ignored), paths)


def open_image(path: Path, name: str) -> ImageFiles:
    """A single image file as a data set of one."""
    return ImageFiles(Listing("image", name, (sample_id(path, path.parent),), (None,)), (path,))


def _fixed_part(pattern: str) -> Path:
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])
