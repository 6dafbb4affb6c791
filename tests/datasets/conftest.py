from __future__ import annotations

from pathlib import Path

import pytest
from dataset_images import MakeFolder, pictures, png


@pytest.fixture
def class_folder(tmp_path: Path) -> MakeFolder:
    """Make a folder with one subfolder a class."""

    def make(per_class: int = 6, classes: tuple[str, ...] = ("ant", "bee", "cat"), name: str = "photos") -> Path:
        root = tmp_path / name
        images = pictures(per_class * len(classes))
        for number, image in enumerate(images):
            folder = root / classes[number % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03d}.png").write_bytes(png(image))
        return root

    return make
