"""Arrays in ``.npz`` and ``.npy`` files: uint8 images, or tensors ready for the model."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.content import Content, ImageContent, TensorContent, as_pixels
from quantlab.datasets.inputs import InputSpec, format_shape
from quantlab.datasets.source import Labelling, Listing
from quantlab.errors import DataError

Array = NDArray[np.generic]

LABEL_KEYS = ("labels", "label")
RESERVED_KEYS = frozenset({*LABEL_KEYS, "class_names", "ids"})
"""Keys of an ``.npz`` that are no model input: labels (N), class names, and sample ids (N)."""


class Arrays:
    """A `Source` over arrays whose first axis is the samples."""

    def __init__(self, listing: Listing, arrays: Mapping[str, Array]) -> None:
        self.listing = listing
        self._arrays = dict(arrays)

    def load(self, index: int) -> Content:
        """Copy one sample out of the arrays."""
        if not self.listing.images:
            return TensorContent({name: np.array(array[index]) for name, array in self._arrays.items()})
        (array,) = self._arrays.values()
        pixels = as_pixels(array[index])
        if pixels is None:
            raise AssertionError("the form of the array was checked when it was opened")
        return ImageContent(np.ascontiguousarray(pixels))


def open_arrays(path: Path, name: str, inputs: Sequence[InputSpec]) -> Arrays:
    """Open an ``.npz`` (arrays by input name) or ``.npy`` file (memory-mapped; for a model of one input).

    The keys ``labels`` or ``label`` (N integers), ``class_names`` and ``ids`` of an ``.npz`` are not inputs, unless the
    model has an input of that name. Images (uint8; N x H x W, N x H x W x C or N x C x H x W with 1 or 3 channels) go
    through the preprocessing; arrays that have the input's shape and kind of dtype are ready tensors.

    Raises:
        DataError: If the file is damaged, needs pickle, has no samples, or does not fit the inputs.
    """
    stored = _read(path)
    reserved = RESERVED_KEYS - {spec.name for spec in inputs}  # token ids are often called so
    notes = {key: stored.pop(key) for key in reserved & stored.keys()}
    labels = _labels(notes, path)
    arrays = match_inputs(stored, inputs, str(path))
    class_names = notes.get("class_names")
    names = None if class_names is None else tuple(str(text) for text in class_names.ravel().tolist())
    return array_source("arrays", name, path.name.split(".")[0], arrays, inputs, labels, names, notes.get("ids"))


def array_source(
    kind: str,
    name: str,
    stem: str,
    arrays: Mapping[str, Array],
    inputs: Sequence[InputSpec],
    labels: Array | None = None,
    class_names: tuple[str, ...] | None = None,
    ids: Array | None = None,
) -> Arrays:
    """A source over arrays by input name; ids are ``stem#index`` or ``stem#`` and the given id.

    Raises:
        DataError: If lengths differ, ids repeat, or an array fits its input neither as images nor as tensors.
    """
    lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if labels is not None:
        lengths["labels"] = len(labels)
    if ids is not None:
        lengths["ids"] = len(ids) if ids.ndim else 0
    if len(set(lengths.values())) != 1:
        got = ", ".join(f"{key}: {length}" for key, length in lengths.items())
        raise DataError(f"the arrays of {name} differ in length", got=got, expected="one entry a sample in each")
    total = next(iter(lengths.values()))
    if total == 0:
        raise DataError(
            f"{name} has no samples", got=", ".join(f"{k} {format_shape(a.shape)}" for k, a in arrays.items())
        )
    keys = range(total) if ids is None else ids.tolist()
    listed = tuple(f"{stem}#{key}" for key in keys)
    if len(set(listed)) != total:
        raise DataError(f"the ids of {name} are not unique", got=f"{len(set(listed))} different of {total}")
    listing = Listing(
        kind=kind,
        name=name,
        ids=listed,
        labels=(None,) * total if labels is None else tuple(int(label) for label in labels.tolist()),
        class_names=class_names,
        labelling=Labelling.NONE if labels is None else Labelling.STATED,
        images=_are_images(arrays, inputs, name),
    )
    return Arrays(listing, arrays)


def _are_images(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], name: str) -> bool:
    if len(inputs) == 1 and inputs[0].is_image:
        (array,) = arrays.values()
        ready = array.dtype == inputs[0].numpy_dtype and inputs[0].accepts(array.shape[1:])
        if not ready and as_pixels(array[0]) is not None:
            return True
    for spec in inputs:
        array = arrays[spec.name]
        if not spec.accepts(array.shape[1:]):
            lacks_batch = spec.accepts(array.shape)
            raise DataError(
                f"the array for input {spec.name!r} in {name} does not fit the model",
                got=f"{format_shape(array.shape)} {array.dtype}",
                expected=f"(samples, {format_shape(spec.shape)[1:]} {spec.dtype}"
                + (", or uint8 images (samples, height, width, channels)" if spec.is_image else ""),
                hint="add a batch axis: array[None]" if lacks_batch else None,
            )
    return False


def match_inputs(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    """Arrays by input name; a single array belongs to a single input whatever it is called.

    Raises:
        DataError: If an input has no array.
    """
    if len(arrays) == 1 and len(inputs) == 1:
        return {inputs[0].name: next(iter(arrays.values()))}
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise DataError(
            f"{where} has no array for input {missing[0]!r}",
            got=", ".join(arrays) or "no arrays",
            expected=", ".join(spec.name for spec in inputs),
            hint="name the arrays as the model's inputs: np.savez(path, **{name: array})",
        )
    return {spec.name: arrays[spec.name] for spec in inputs}


def _read(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:  # numpy.load leaks the file of a damaged archive if it opens it itself
            if file.read(2) == b"PK":
                file.seek(0)
                with np.load(file, allow_pickle=False) as archive:
                    return {key: archive[key] for key in archive.files}
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as cause:
        text = str(cause)
        pickled = "allow_pickle" in text or "Object arrays" in text or "pickle" in text.lower()
        raise DataError(
            f"cannot read arrays from {path}",
            got="Python objects or no NumPy file" if pickled else text or type(cause).__name__,
            expected="plain numeric arrays written by numpy.savez or numpy.save",
            hint="quantlab never unpickles data",
        ) from cause


def _labels(stored: Mapping[str, Array], path: Path) -> Array | None:
    key = next((key for key in LABEL_KEYS if key in stored), None)
    if key is None:
        return None
    labels = stored[key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"the labels in {path} are not class numbers",
            got=f"{format_shape(labels.shape)} {labels.dtype}",
            expected="(samples,) integers",
            hint="for one-hot labels, store labels.argmax(1)",
        )
    return labels
