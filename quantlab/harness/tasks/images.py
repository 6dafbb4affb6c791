"""Where the images of samples lie in what the model is fed, so that answers land in the image's own pixels."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.datasets import Batch, Dataset, InputSpec, Layout, Preprocess
from quantlab.datasets.annotations import T, Truths
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.geometry import Placement
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import DataError
from quantlab.harness.tasks.registry import Beginning

_RESIZED = "is the image rotated by its EXIF data, or resized since it was annotated?"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input that takes the images.

    Attributes:
        name: Of the input.
        layout: Of its axes.
        preprocess: What was done to the images; None for ready tensors, whose truths are in the tensors' own pixels.
        images: Knows the size of every image that was read; None for ready tensors.
    """

    name: str
    layout: Layout
    preprocess: Preprocess | None
    images: SourceDataset | None = None

    @classmethod
    def of(cls, beginning: Beginning) -> ImageInput:
        """The one input with four axes.

        Raises:
            DataError: If there is none, or more than one.
        """
        inputs = {name: value.shape for name, value in beginning.batch.inputs.items() if value.ndim == 4}
        if len(inputs) != 1:
            raise DataError(
                "the task needs a model with one input of images",
                got=", ".join(f"{name} {value.shape}" for name, value in beginning.batch.inputs.items()),
                expected="one input with four axes",
            )
        ((name, shape),) = inputs.items()
        dataset = beginning.dataset
        images = dataset if isinstance(dataset, SourceDataset) else None
        preprocess = images.preprocess.preprocess if images else None
        layout = (preprocess.layout if preprocess else None) or InputSpec(name, shape[1:]).layout
        return cls(name, layout, preprocess, images)

    def fed_size(self, batch: Batch) -> tuple[int, int]:
        """Height and width of what the model is fed."""
        shape = batch.inputs[self.name].shape
        return (shape[1], shape[2]) if self.layout is Layout.NHWC else (shape[2], shape[3])

    def placement(self, size: tuple[int, int], fed: tuple[int, int], sample: str) -> Placement:
        """Where an image of ``size`` (height, width) lies in what the model is fed.

        Raises:
            DataError: If the image is of another size, or one of this size cannot have become what the model is fed.
        """
        real = self.images.image_size(sample) if self.images else None
        if real not in (None, size):
            raise DataError(
                f"the truth of sample {sample!r} is for an image of another size",
                got=f"{size[0]} x {size[1]} pixels (height x width)",
                expected=f"{real[0]} x {real[1]} pixels, as the upright image has",
                hint=_RESIZED,
            )
        placed = Placement(size, size) if self.preprocess is None else self.preprocess.placement(size)
        if placed.fed != fed:
            kind = "is fed as it is" if self.preprocess is None else f"is preprocessed: {self.preprocess.describe()}"
            raise DataError(
                f"the truth of sample {sample!r} is for an image of another size",
                got=f"{size[0]} x {size[1]} pixels, which {kind}",
                expected=f"{fed[0]} x {fed[1]} fed to input {self.name!r}",
                hint=_RESIZED,
            )
        return placed


def match_samples(truths: Truths[T], beginning: Beginning) -> None:
    """Look up the truths of all samples, as far as their ids are known before they are read.

    Raises:
        DataError: If no sample has a truth, or a truth could be that of several samples.
    """
    ids = _sample_ids(beginning.dataset) or beginning.batch.ids
    truths.require(ids)
    for sample in ids:
        truths.find(sample)


def missing_truths(truths: Truths[T]) -> tuple[Degradation, ...]:
    """What must be told of samples that were asked for and have no truth: no figure counts them."""
    if not truths.missing:
        return ()
    message = f"samples have no entry in {truths.where} and are left out of the figures"
    return (Degradation.of(DegradationCode.UNLABELLED_SAMPLES, message, truths.missing),)


def _sample_ids(dataset: Dataset) -> tuple[str, ...]:
    return dataset.sample_ids if isinstance(dataset, SourceDataset) else ()
