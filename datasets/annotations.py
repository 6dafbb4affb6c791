"""Truths of samples that are more than a class number: boxes, masks, values; found by the sample's id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from quantlab.documents import near_match
from quantlab.errors import DataError

T = TypeVar("T")

_MOST_FOR_NEAR_MATCH = 10_000


class Truths(Generic[T]):
    """Truths by the name of their image, and the samples that they were found for.

    A sample has the truth whose name is its id. Else one path must be the end of the other, as of ``val/a.png`` and
    ``a.png``, and only one truth's may. With ``stems`` suffixes do not count, as for a mask ``a.png`` of an image
    ``a.jpg``.

    Args:
        entries: By file name with forward slashes, as the annotations have it; at least one.
        where: What the annotations are called in messages, such as ``COCO file val.json``.
        stems: Compare names without their suffixes.

    Raises:
        DataError: If two entries have the same name.
    """

    def __init__(self, entries: Mapping[str, T], where: str, *, stems: bool = False) -> None:
        self.where = where
        self._stems = stems
        self._entries: dict[str, T] = {}
        self._by_base: defaultdict[str, list[str]] = defaultdict(list)
        self._owners: dict[str, str] = {}
        self._missing: dict[str, None] = {}
        for written, entry in entries.items():
            name = self._key(written)
            if name in self._entries:
                raise DataError(f"{where} has two entries for one image", got=repr(written), expected="one an image")
            self._entries[name] = entry
            self._by_base[name.rsplit("/", 1)[-1]].append(name)

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> tuple[T, ...]:
        """All truths, in the order of the annotations."""
        return tuple(self._entries.values())

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the samples that were asked for and have no truth."""
        return tuple(self._missing)

    def find(self, sample: str) -> T | None:
        """The truth of a sample; None, which is noted, if there is none.

        Raises:
            DataError: If several entries could be meant, or one entry by two samples.
        """
        name = self._key(sample)
        base = name.rsplit("/", 1)[-1]
        matches = [name] if name in self._entries else [
            other for other in self._by_base.get(base, [])
            if f"/{other}".endswith(f"/{name}") or f"/{name}".endswith(f"/{other}")
        ]  # fmt: skip
        if not matches:
            self._missing[sample] = None
            return None
        if len(matches) > 1:
            raise DataError(
                f"{self.where} has {len(matches)} entries that sample {sample!r} could mean",
                got=", ".join(map(repr, matches[:3])),
                expected="one entry whose name is the sample's id",
                hint="write the images' paths relative to the folder of the data",
            )
        owner = self._owners.setdefault(matches[0], sample)
        if owner != sample:
            raise DataError(
                f"{self.where} has one entry for two samples",
                got=f"{matches[0]!r} for {owner!r} and {sample!r}",
                expected="an entry for each, with its path relative to the folder of the data",
            )
        return self._entries[matches[0]]

    def require(self, samples: tuple[str, ...]) -> None:
        """Refuse annotations that have nothing for any of ``samples``: they belong to other data.

        Raises:
            DataError: With the nearest name.
        """
        if any(self.find(sample) is not None for sample in samples):
            return
        first = next(iter(self._entries))
        near = near_match(samples[0], list(self._entries)) if len(self) <= _MOST_FOR_NEAR_MATCH else None
        raise DataError(
            f"{self.where} has no entry for any of the first {len(samples)} samples",
            got=f"entries such as {first!r}",
            expected=f"entries such as {samples[0]!r}",
            hint=f"did you mean {near!r} by {samples[0]!r}?" if near else "do the annotations belong to this data?",
        )

    def _key(self, written: str) -> str:
        name = written.replace("\\", "/").removeprefix("./")
        return PurePosixPath(name).with_suffix("").as_posix() if self._stems and name else name
