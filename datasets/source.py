"""Where samples come from: a listing made once, and content loaded by index."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from quantlab.datasets.content import Content
from quantlab.degradation import Degradation


class Labelling(StrEnum):
    """How class numbers were found."""

    NONE = "none"
    """There are no labels."""
    STATED = "stated"
    """Numbers were given as such."""
    SORTED_NAMES = "sorted names"
    """Names were numbered in sorted order, as torchvision's ``ImageFolder`` does."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source knows before it loads anything.

    Attributes:
        kind: Kind of source, as in the documentation.
        name: What the user called it.
        ids: Unique id of each sample, in order.
        labels: Class index of each sample, None where it has none; None as a whole if only loading tells.
        class_names: Names of the classes by index, if known.
        labelling: How the class numbers were found.
        images: Whether content goes through preprocessing; False for ready tensors.
        ignored: Files that were passed over because they are not images.
        degradations: What is known already.
    """

    kind: str
    name: str
    ids: tuple[str, ...]
    labels: tuple[int | None, ...] | None
    class_names: tuple[str, ...] | None = None
    labelling: Labelling = Labelling.NONE
    images: bool = True
    ignored: int = 0
    degradations: tuple[Degradation, ...] = ()


class Source(Protocol):
    """Random access to the content of samples; called from several threads at once."""

    @property
    def listing(self) -> Listing:
        """Ids, labels and class names."""
        ...

    def load(self, index: int) -> Content:
        """Content of one sample.

        Raises:
            UnreadableSampleError: If this sample cannot be read; the data set leaves it out and counts it.
        """
        ...
