from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.datasets import Manifest, ManifestEntry
from quantlab.errors import DataError

HASHES = st.integers(0, 50).map(lambda n: hashlib.sha256(bytes([n])).hexdigest())
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(NAMES, unique=True, max_size=20))
    labels = st.none() | st.integers(0, 1000)
    return Manifest(tuple(ManifestEntry(name, draw(HASHES), draw(labels)) for name in names))


@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    assert Manifest.from_plain(manifest.to_plain()) == manifest


@given(manifests(), st.randoms())
def test_digest_does_not_depend_on_order_or_names(manifest: Manifest, random: object) -> None:
    entries = list(manifest.entries)
    random.shuffle(entries)  # type: ignore[attr-defined]
    renamed = tuple(ManifestEntry(f"{i}", e.sha256, e.label) for i, e in enumerate(entries))
    assert Manifest(renamed).sha256 == manifest.sha256


@given(manifests(), manifests())
def test_overlap_is_by_content(one: Manifest, two: Manifest) -> None:
    hashes = {entry.sha256 for entry in two.entries}
    by_id = {entry.id: entry.sha256 for entry in two.entries}
    mine = {entry.id: entry.sha256 for entry in one.entries}
    overlap = one.overlap(two)
    assert [here for here, _ in overlap] == [entry.id for entry in one.entries if entry.sha256 in hashes]
    assert all(mine[here] == by_id[there] for here, there in overlap)


@given(manifests())
def test_duplicates_partition_the_repeated_hashes(manifest: Manifest) -> None:
    groups = manifest.duplicates()
    repeated = len(manifest) - len({entry.sha256 for entry in manifest.entries})
    assert sum(len(group) - 1 for group in groups) == repeated


def test_digest_depends_on_content_and_label() -> None:
    def digest(sha256: str, label: int | None) -> str:
        return Manifest((ManifestEntry("a", sha256, label),)).sha256

    assert len({digest("00", None), digest("00", 0), digest("00", 1), digest("11", 0)}) == 4


def test_files(tmp_path: Path) -> None:
    manifest = Manifest((ManifestEntry("ünï\ncode.png", "ab", 3), ManifestEntry("b", "cd")))
    path = tmp_path / "deep" / "manifest.json"
    manifest.save(path)
    assert Manifest.load(path) == manifest
    path.write_text(path.read_text().replace('"label": 3', '"label": 4'))
    with pytest.raises(DataError, match="changed after it was written"):
        Manifest.load(path)
    with pytest.raises(DataError, match="does not exist"):
        Manifest.load(tmp_path / "absent.json")


def test_repeated_ids_are_refused() -> None:
    document = Manifest((ManifestEntry("a", "00"), ManifestEntry("a", "11"))).to_plain()
    with pytest.raises(DataError, match="twice"):
        Manifest.from_plain(document)
