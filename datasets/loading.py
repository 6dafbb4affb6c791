"""Open a data set by what the user wrote after ``--data``."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantlab.datasets import random_source, torchvision_source
from quantlab.datasets.arrays import open_arrays
from quantlab.datasets.content import Content
from quantlab.datasets.dataset import Selection, SourceDataset
from quantlab.datasets.decode import IMAGE_SUFFIXES
from quantlab.datasets.factory import open_factory
from quantlab.datasets.folder import open_folder
from quantlab.datasets.glob import open_glob, open_image
from quantlab.datasets.idx import IDX_NAME, open_idx
from quantlab.datasets.image_files import printable
from quantlab.datasets.inputs import InputSpec
from quantlab.datasets.items import Items, as_indexable
from quantlab.datasets.labels import override_labels
from quantlab.datasets.listfile import open_listfile
from quantlab.datasets.preprocess import Preprocess
from quantlab.datasets.protocol import Dataset
from quantlab.datasets.resolution import ResolvedPreprocess, as_ready
from quantlab.datasets.source import Listing, Source
from quantlab.datasets.subset import balanced_subset
from quantlab.datasets.user_code import FUNCTION
from quantlab.documents import near_match
from quantlab.errors import ConfigError, DataError


class _Relabelled:
    """A source whose labels were replaced."""

    def __init__(self, source: Source, listing: Listing) -> None:
        self._source = source
        self.listing = listing

    def load(self, index: int) -> Content:
        return self._source.load(index)


def open_dataset(
    spec: str,
    inputs: Sequence[InputSpec],
    preprocess: ResolvedPreprocess | Preprocess,
    *,
    labels: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    num_classes: int | None = None,
) -> Dataset:
    """Open a folder, glob, list, ``.npz``/``.npy``, IDX file, ``random:N``, ``torchvision:NAME`` or ``module:factory``.

    Nothing is decoded yet, but everything that can be checked without is: the form of the arrays, labels against
    ``num_classes``, the preprocessing against the model's input.

    Args:
        spec: What the user wrote; an existing path comes before all other readings.
        inputs: The model's inputs, without the batch axis.
        preprocess: What to do with images; ready tensors are fed as they are.
        labels: File with labels that replace the source's own (`quantlab.datasets.labels`).
        limit: Use at most so many samples, balanced over the classes.
        seed: Of that choice and of random data.
        threads: Threads that decode and preprocess ahead of the consumer.
        num_classes: Classes of the model, if known; labels must lie below.

    Raises:
        DataError: If there is no such data, it is empty or damaged, or does not fit the inputs.
        ConfigError: If an argument is wrong, or the preprocessing does not fit the input.
        BackendUnavailable: If torchvision is asked for and not installed.
    """
    if not inputs:
        raise DataError("the model has no inputs to feed")
    source = _open_source(spec, inputs, seed)
    if isinstance(source, Dataset):
        if labels is not None or (limit is not None and limit < len(source)):
            raise ConfigError(
                f"{spec} returns a complete data set, which takes no labels or limit",
                hint="apply them in the factory, or return a sequence of samples",
            )
        return source
    return _assemble(source, inputs, preprocess, labels, limit, seed, threads, num_classes)


def wrap_items(
    items: object,
    inputs: Sequence[InputSpec],
    preprocess: ResolvedPreprocess | Preprocess,
    *,
    name: str = "items",
    labels: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 2,
    num_classes: int | None = None,
) -> Dataset:
    """Make a data set of a Python sequence or any map-style torch ``Dataset``.

    Items are Pillow images or arrays, ``(image or array, label)`` pairs, or dicts of arrays by input name. Other
    arguments and errors are those of `open_dataset`.
    """
    source = Items(as_indexable(items, name), "items", name, inputs)
    return _assemble(source, inputs, preprocess, labels, limit, seed, threads, num_classes)


def _assemble(
    source: Source,
    inputs: Sequence[InputSpec],
    preprocess: ResolvedPreprocess | Preprocess,
    labels: Path | None,
    limit: int | None,
    seed: int,
    threads: int,
    num_classes: int | None,
) -> SourceDataset:
    if labels is not None:
        source = _Relabelled(source, override_labels(source.listing, labels))
    resolved = preprocess if isinstance(preprocess, ResolvedPreprocess) else ResolvedPreprocess(preprocess, "given")
    listing = source.listing
    applied = _fit_to_images(resolved, inputs, listing) if listing.images else as_ready(resolved)
    indices = balanced_subset(listing.labels, len(listing.ids), limit, seed)
    return SourceDataset(
        source, inputs, applied, Selection(indices, limit, seed), threads=threads, num_classes=num_classes
    )


def _fit_to_images(resolved: ResolvedPreprocess, inputs: Sequence[InputSpec], listing: Listing) -> ResolvedPreprocess:
    if len(inputs) != 1:
        raise DataError(
            f"{listing.name} holds images, which feed one input, and the model has {len(inputs)}",
            expected=", ".join(f"{spec.name} {spec}" for spec in inputs),
            hint="give an .npz with one array per input name",
        )
    (spec,) = inputs
    if resolved.preprocess is None:
        Preprocess().check_fits(spec)
        raise ConfigError(f"{listing.name} holds images and no preprocessing applies", hint="state --preprocess")
    fitted = resolved.preprocess.fitted(spec)
    fitted.check_fits(spec)
    return replace(resolved, preprocess=fitted)


def _open_source(spec: str, inputs: Sequence[InputSpec], seed: int) -> Source | Dataset:
    if not spec.strip():
        raise DataError("no data was named", expected="a folder, pattern, list, array file, or random:N")
    path, name = Path(spec).expanduser(), printable(spec)
    kind = _kind_of_path(path)
    if kind == "folder":
        return open_folder(path, name)
    if kind == "file":
        return _open_file(path, name, inputs)
    if spec.startswith(random_source.PREFIX):
        return random_source.open_random(spec, inputs, seed)
    if spec.startswith(torchvision_source.PREFIX):
        return torchvision_source.open_torchvision(spec, inputs)
    if glob.has_magic(spec):
        return open_glob(str(path))
    if FUNCTION.match(spec):
        return open_factory(spec, inputs)
    raise _missing(path, spec)


def _kind_of_path(path: Path) -> str:
    try:
        if path.is_dir():
            return "folder"
        return "file" if path.exists() else "none"
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return "none"


def _open_file(path: Path, name: str, inputs: Sequence[InputSpec]) -> Source:
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return open_arrays(path, name, inputs)
    if IDX_NAME.search(path.name):
        return open_idx(path, name, inputs)
    if suffix in IMAGE_SUFFIXES:
        return open_image(path, name)
    if suffix in (".txt", ".lst", ".list"):
        return open_listfile(path, name)
    raise DataError(
        f"the kind of data in {name} is not known",
        got=f"a file with suffix {suffix!r}" if suffix else "a file without a suffix",
        expected="a folder, an image, a .txt list, .npz, .npy or an IDX file",
    )


def _missing(path: Path, spec: str) -> DataError:
    near: Any = None
    try:
        if path.parent.is_dir():
            near = near_match(path.name, [entry.name for entry in path.parent.iterdir()])
    except (OSError, ValueError):
        near = None
    shown = spec if len(spec) <= 200 else spec[:197] + "..."
    return DataError(
        f"there is no data at {shown!r}",
        expected="a folder, pattern, .txt list, .npz, .npy, IDX file, random:N, torchvision:NAME or module:factory",
        hint=f"did you mean {path.parent / near}?" if near else "check the path",
    )
