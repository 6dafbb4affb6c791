"""Items of a Python sequence: what a factory or a map-style torch data set returns."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.arrays import match_inputs
from quantlab.datasets.content import Content, ImageContent, TensorContent, UnreadableSampleError, as_pixels
from quantlab.datasets.decode import decode_pillow
from quantlab.datasets.inputs import InputSpec, format_shape
from quantlab.datasets.source import Labelling, Listing
from quantlab.errors import DataError, QuantlabError


@runtime_checkable
class Indexable(Protocol):
    """Sized and indexable, such as a list or a map-style torch ``Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Items:
    """A `Source` over a sequence of images, of ``(image or array, label)`` pairs, or of dicts of arrays.

    Images are Pillow images or uint8 arrays; other arrays and torch tensors are ready for the model. A dict's key
    ``label`` or ``labels`` is the label. Items are taken one at a time, for few user sequences are safe with threads.
    """

    def __init__(self, items: Indexable, kind: str, name: str, inputs: Sequence[InputSpec]) -> None:
        self._items = items
        self._inputs = tuple(inputs)
        self._lock = threading.Lock()
        total = len(items)
        if total == 0:
            raise DataError(f"{name} has no samples")
        labels = _known_labels(items, total)
        classes = getattr(items, "classes", None)
        self._name = name
        self.listing = Listing(
            kind=kind,
            name=name,
            ids=tuple(f"{name.rsplit(':', 1)[-1]}#{index}" for index in range(total)),
            labels=labels,
            class_names=tuple(str(c) for c in classes) if isinstance(classes, list | tuple) else None,
            labelling=Labelling.STATED,
        )
        first = self._first_readable(total)
        labelled = first.label is not None or labels is not None
        kept = Labelling.STATED if labelled else Labelling.NONE
        self.listing = Listing(
            kind, name, self.listing.ids, labels, self.listing.class_names, kept, isinstance(first, ImageContent)
        )

    def load(self, index: int) -> Content:
        """Take one item and look at what it is.

        Raises:
            UnreadableSampleError: If the sequence raises, or an image is damaged.
            DataError: If the item is none of the known forms.
        """
        try:
            with self._lock:
                item = self._items[index]
        except QuantlabError:
            raise
        except Exception as cause:  # whatever the user's code or its data raise
            raise UnreadableSampleError(f"raised {type(cause).__name__}: {cause}") from cause
        sample = self.listing.ids[index]
        if isinstance(item, Mapping):
            arrays = {str(key): _array(value, sample) for key, value in item.items()}
            label = next((arrays.pop(key) for key in ("label", "labels") if key in arrays), None)
            return self._content(arrays, _label(label, sample), sample)
        value, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if hasattr(value, "getbands"):  # a Pillow image, told without importing Pillow
            image = _decode(value)
            return ImageContent(image.pixels, image.losses, _label(label, sample))
        return self._content({"": _array(value, sample)}, _label(label, sample), sample)

    def _first_readable(self, total: int) -> Content:
        reason = ""
        for index in range(total):
            try:
                return self.load(index)
            except UnreadableSampleError as error:
                reason = error.what
        raise DataError(f"none of the {total} samples of {self._name} could be read", got=reason)

    def _content(self, arrays: Mapping[str, NDArray[np.generic]], label: int | None, sample: str) -> Content:
        matched = match_inputs(arrays, self._inputs, f"sample {sample!r}")
        if len(self._inputs) == 1:
            (spec,) = self._inputs
            (array,) = matched.values()
            ready = array.dtype == spec.numpy_dtype and spec.accepts(array.shape)
            pixels = as_pixels(array) if spec.is_image and not ready else None
            if pixels is not None:
                return ImageContent(np.ascontiguousarray(pixels), (), label)
        return TensorContent(matched, label)


def as_indexable(value: object, name: str) -> Indexable:
    """The value itself if it is sized and indexable; a re-iterable collection becomes a list.

    Raises:
        DataError: If it is a one-shot iterator, or nothing to iterate over.
    """
    if isinstance(value, Indexable) and not isinstance(value, Mapping | str | bytes):
        return value
    if isinstance(value, Iterable) and iter(value) is value:
        raise DataError(
            f"{name} gives samples only once",
            got=f"a one-shot {type(value).__name__}",
            expected="a list, or an object with __len__ and __getitem__, because the data is read several times",
            hint="wrap it: return list(...)",
        )
    if isinstance(value, Iterable) and not isinstance(value, Mapping | str | bytes):
        return list(value)
    raise DataError(
        f"{name} gives no data set",
        got=type(value).__name__,
        expected="a quantlab Dataset, or a sequence of (image, label) pairs or of dicts of arrays",
    )


def _decode(value: Any) -> ImageContent:
    try:
        return decode_pillow(value)
    except UnreadableSampleError:
        raise
    except Exception as cause:  # Pillow's decoders raise many kinds on damaged files
        raise UnreadableSampleError(f"is damaged: {cause}") from cause


def _array(value: object, sample: str) -> NDArray[np.generic]:
    if hasattr(value, "getbands"):
        return _decode(value).pixels
    detached = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        array: NDArray[Any] = np.asarray(detached)
    except (ValueError, TypeError) as cause:
        raise DataError(f"sample {sample!r} is not an array", got=type(value).__name__) from cause
    if array.dtype.kind not in "biuf" and not array.dtype.name.startswith(("bfloat", "float")):
        raise DataError(
            f"sample {sample!r} is not numeric", got=f"{type(value).__name__} of {array.dtype}",
            expected="a Pillow image, an array or a dict of arrays",
        )  # fmt: skip
    return array


def _label(value: object, sample: str) -> int | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"sample {sample!r} has a wrong label",
            got=f"{format_shape(array.shape)} {array.dtype}",
            expected="one class number",
        )
    return int(array.reshape(()))


def _known_labels(items: object, total: int) -> tuple[int | None, ...] | None:
    """Labels without loading: the ``targets`` of torchvision's data sets, or the pairs of a list."""
    targets = getattr(items, "targets", None)
    if targets is not None:
        array = np.asarray(targets)
        if array.shape == (total,) and array.dtype.kind in "iu":
            return tuple(int(label) for label in array.tolist())
    if isinstance(items, list | tuple) and all(isinstance(item, tuple) and len(item) == 2 for item in items):
        return tuple(_label(label, f"#{index}") for index, (_, label) in enumerate(items))
    return None
