"""The bundled sample data: three small models and part of Fashion-MNIST.

``benchmarks/sample_models/pack.py`` makes the files; ``NOTICE`` has their licence.
"""

from __future__ import annotations

import re
import secrets
import shutil
from importlib import resources
from pathlib import Path
from typing import Literal, cast

import numpy as np

from quantlab.datasets.subset import balanced_subset
from quantlab.errors import ConfigError, OutputError

SAMPLE_MODELS = ("fashion-resnet", "fashion-mobilenet", "fashion-vit")
"""Names of the bundled models."""

SAMPLE_SETS = {"calibration": "fashion-mnist-calibration.npz", "evaluation": "fashion-mnist-eval.npz"}
"""Bundled images by the name of the folder they are unpacked to."""


def _file(name: str) -> Path:
    path = cast("Path", resources.files("quantlab.datasets.samples") / name)
    if not path.is_file():
        raise ConfigError(f"the bundled file {name} is missing", hint="reinstall quantlab")
    return path


def sample_model(name: str = "fashion-resnet") -> Path:
    """Path of a bundled ONNX model: input ``image`` (N, 1, 28, 28) float32, output ``logits`` (N, 10).

    Raises:
        ConfigError: If there is no model of that name.
    """
    if name not in SAMPLE_MODELS:
        raise ConfigError("there is no such bundled model", got=repr(name), expected=", ".join(SAMPLE_MODELS))
    return _file(f"{name}.onnx")


def sample_data(name: Literal["calibration", "evaluation"] = "evaluation") -> Path:
    """Path of the bundled images as one ``.npz`` that `open_dataset` takes: 512 for calibration, 2,000 for evaluation.

    Raises:
        ConfigError: If there is no set of that name.
    """
    if name not in SAMPLE_SETS:
        raise ConfigError("there is no such bundled set", got=repr(name), expected=", ".join(SAMPLE_SETS))
    return _file(SAMPLE_SETS[name])


def class_folder(label: int, name: str) -> str:
    """Folder of a class, sorted as its label: ``0-t-shirt-top``."""
    return f"{label}-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def unpack_samples(folder: Path, *, per_set: int | None = None, force: bool = False) -> dict[str, Path]:
    """Write the bundled images as PNG files: ``<folder>/calibration/<class>/<id>.png`` and ``evaluation/...``.

    Names of files are the images' numbers in the original training and test files. The pixels are the same as in the
    ``.npz`` files, and so are the content hashes.

    Args:
        folder: Where to; made if missing.
        per_set: Write only so many images of each set, balanced over the classes; None for all.
        force: Write into folders that have files already; images of an earlier unpacking are replaced, other files
            stay.

    Returns:
        The folder of each set.

    Raises:
        OutputError: If something is in the way or cannot be written.
    """
    targets = {name: folder / name for name in SAMPLE_SETS}
    for target in targets.values():
        if target.exists() and not target.is_dir():
            raise OutputError(f"cannot write to {target}", got="a file of that name")
        if not force and target.is_dir() and any(target.iterdir()):
            raise OutputError(f"folder {target} is not empty", hint="choose another folder, or use --force")
    for name, target in targets.items():
        _unpack(sample_data(cast("Literal['calibration', 'evaluation']", name)), target, per_set)
    return targets


def _unpack(archive: Path, target: Path, limit: int | None) -> None:
    """Write beside the target first, so that a full disk or an interruption leaves no half of a set."""
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_images(archive, staging, limit)
        if target.is_dir() and any(target.iterdir()):
            for path in target.glob("[0-9]-*/[0-9][0-9][0-9][0-9][0-9].png"):
                path.unlink()
            for path in staging.glob("*/*.png"):
                place = target / path.relative_to(staging)
                place.parent.mkdir(exist_ok=True)
                path.replace(place)
        else:
            staging.replace(target)
    except OSError as cause:
        raise OutputError(
            f"cannot write images to {target}",
            got=cause.strerror or str(cause),
            hint="check permissions and free space, or choose another folder",
        ) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_images(archive: Path, folder: Path, limit: int | None) -> None:
    from PIL import Image

    with np.load(archive, allow_pickle=False) as stored:
        images, labels, ids = stored["image"], stored["labels"].tolist(), stored["ids"].tolist()
        names = stored["class_names"].tolist()
    folders = [folder / class_folder(label, name) for label, name in enumerate(names)]
    for path in folders:
        path.mkdir(parents=True)
    for index in balanced_subset(labels, len(labels), limit, seed=0):
        path = folders[labels[index]] / f"{ids[index]:05d}.png"
        Image.fromarray(images[index]).save(path, "png", compress_level=1)
