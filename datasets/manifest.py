"""What is in a data set: a content hash and a label per sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.documents import canonical_sha256, dump_json, read_json
from quantlab.errors import DataError
from quantlab.files import write_text
from quantlab.records import from_plain, to_plain

SCHEMA = "quantlab.manifest/1"


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One sample.

    Attributes:
        id: Name of the sample, unique within its data set.
        sha256: Hash of the decoded content (see `quantlab.datasets.content`), so that a re-compressed or renamed
            image is still recognised.
        label: Class index, or None.
    """

    id: str
    sha256: str
    label: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The samples of a data set, in its order.

    Attributes:
        entries: One per readable sample.
    """

    entries: tuple[ManifestEntry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def sha256(self) -> str:
        """Digest of the contents and labels; the same for any order of the samples and whatever they are called."""
        pairs = sorted((entry.sha256, -1 if entry.label is None else entry.label) for entry in self.entries)
        return canonical_sha256({"schema": SCHEMA, "samples": pairs})

    def overlap(self, other: Manifest) -> tuple[tuple[str, str], ...]:
        """Samples whose content is in ``other`` too, as ``(id here, first such id there)`` in the order here."""
        there: dict[str, str] = {}
        for entry in other.entries:
            there.setdefault(entry.sha256, entry.id)
        return tuple((entry.id, there[entry.sha256]) for entry in self.entries if entry.sha256 in there)

    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """Groups of two or more ids with the same content, in the order of their first members."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for entry in self.entries:
            groups[entry.sha256].append(entry.id)
        return tuple(tuple(ids) for ids in groups.values() if len(ids) > 1)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON, with the schema name and the digest."""
        return {"schema": SCHEMA, "sha256": self.sha256, "entries": to_plain(self.entries)}

    @classmethod
    def from_plain(cls, document: Mapping[str, Any], where: str = "manifest") -> Manifest:
        """Rebuild a manifest from what `to_plain` gave.

        Raises:
            DataError: If keys or types are wrong, an id is repeated, or the digest does not belong to the entries.
        """
        digest = document.get("sha256")
        body = {key: value for key, value in document.items() if key not in ("schema", "sha256")}
        manifest = from_plain(cls, body, where, DataError)
        seen: set[str] = set()
        for entry in manifest.entries:
            if entry.id in seen:
                raise DataError(f"{where} lists the sample {entry.id!r} twice", expected="unique ids")
            seen.add(entry.id)
        if digest != manifest.sha256:
            raise DataError(
                f"{where} was changed after it was written",
                got=f"sha256 {manifest.sha256} of the entries",
                expected=digest,
                hint="make it again from the data",
            )
        return manifest

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, whole or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        write_text(path, dump_json(self.to_plain()))

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest that `save` wrote.

        Raises:
            DataError: If it is missing, of another schema, malformed, or was edited.
        """
        return cls.from_plain(read_json(path, SCHEMA, DataError, "manifest"), f"manifest {path}")
