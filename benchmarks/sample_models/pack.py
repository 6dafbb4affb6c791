"""Turn the trained models and Fashion-MNIST into ``datasets/samples``.

Run after ``train.py``::

    python benchmarks/sample_models/pack.py --data /usr/share/datasets/fashion-mnist --models build/sample-models

The same inputs give the same bytes: images are chosen by seed, archives carry no dates.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from quantlab.datasets.content import ImageContent
from quantlab.datasets.idx import read_idx
from quantlab.datasets.presets import PRESETS
from quantlab.datasets.resolution import METADATA_KEY
from quantlab.datasets.subset import balanced_subset
from quantlab.files import write_bytes, write_text

Array = NDArray[np.generic]

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MODELS = ("fashion-resnet", "fashion-mobilenet", "fashion-vit")
EVALUATION, CALIBRATION = 2000, 512
MAX_TOTAL_BYTES = 6 * 2**20

NOTICE = """\
Fashion-MNIST
=============

fashion-mnist-eval.npz and fashion-mnist-calibration.npz hold part of the Fashion-MNIST images and labels, unchanged,
and fashion-resnet.onnx, fashion-mobilenet.onnx and fashion-vit.onnx were trained on its training images.
Source: https://github.com/zalandoresearch/fashion-mnist

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--models", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "datasets" / "samples")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()

    images, labels = load(options.data, "t10k")
    chosen = distinct_subset(images, labels, EVALUATION, options.seed, set())
    taken = {digest(images[index]) for index in chosen}
    save_images(options.out / "fashion-mnist-eval.npz", images, labels, chosen)

    images, labels = load(options.data, "train")
    chosen = distinct_subset(images, labels, CALIBRATION, options.seed, taken)
    save_images(options.out / "fashion-mnist-calibration.npz", images, labels, chosen)

    for name in MODELS:
        save_model(options.models / f"{name}.onnx", options.out / f"{name}.onnx")
    shutil.copyfile(options.models / "training.json", options.out / "training.json")
    write_text(options.out / "NOTICE", NOTICE)

    files = sorted(path for path in options.out.iterdir() if path.is_file())
    for path in files:
        print(f"{path.stat().st_size:>10,}  {path.name}")
    total = sum(path.stat().st_size for path in files)
    if total > MAX_TOTAL_BYTES:
        raise SystemExit(f"{total:,} bytes are more than {MAX_TOTAL_BYTES:,}")


def load(folder: Path, split: str) -> tuple[Array, Array]:
    """Images (N, 28, 28) uint8 and labels (N,) uint8 of ``train`` or ``t10k``."""
    return (
        read_idx(folder / f"{split}-images-idx3-ubyte.gz"),
        read_idx(folder / f"{split}-labels-idx1-ubyte.gz"),
    )


def digest(image: Array) -> str:
    """Content hash as in a manifest."""
    return ImageContent(image.view(np.uint8)[:, :, None]).sha256()


def distinct_subset(images: Array, labels: Array, total: int, seed: int, taken: set[str]) -> list[int]:
    """Indices of a class-balanced choice in which no content is repeated or in ``taken``."""
    seen = set(taken)
    distinct = []
    for index, image in enumerate(images):
        key = digest(image)
        if key not in seen:
            seen.add(key)
            distinct.append(index)
    chosen = balanced_subset([int(labels[index]) for index in distinct], len(distinct), total, seed)
    return [distinct[position] for position in chosen]


def save_images(path: Path, images: Array, labels: Array, chosen: list[int]) -> None:
    """Write a compressed ``.npz`` without dates; ``ids`` are the positions in the original file."""
    arrays = {
        "image": images[chosen],
        "labels": labels[chosen],
        "ids": np.array(chosen, np.int32),
        "class_names": np.array(CLASSES),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    write_bytes(path, buffer.getvalue())


def save_model(source: Path, target: Path) -> None:
    """Write the model with its preprocessing and class names in the metadata."""
    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model, {METADATA_KEY: PRESETS["fashion-mnist"].to_json(), "quantlab.classes": json.dumps(CLASSES)}
    )
    model.doc_string = "Trained on Fashion-MNIST by benchmarks/sample_models/train.py of quantlab."
    onnx.checker.check_model(model, full_check=True)
    write_bytes(target, model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
