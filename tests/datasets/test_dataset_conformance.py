"""The contract of `Dataset`, which every kind of source keeps."""

from __future__ import annotations

import gzip
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_images import GRAY, pictures, png, write_idx

from quantlab.datasets import Dataset, InputSpec, Manifest, batches, load_preprocess, open_dataset

IMAGES, LABELS = pictures(30), np.arange(30) % 3
KINDS = ("folder", "labels.csv", "glob", "list", "npz", "npy", "idx", "idx.gz", "tensors", "random", "pairs", "dicts")
UNLABELLED = ("glob", "npy", "random")
FACTORY = """
import numpy as np
from PIL import Image
images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
def pairs():
    return [(Image.fromarray(image), index % 3) for index, image in enumerate(images)]
def dicts():
    return [{"image": image[None].astype(np.float32), "label": i % 3} for i, image in enumerate(images)]
"""


def make_source(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if kind in ("folder", "labels.csv", "glob", "list"):
        for index, image in enumerate(IMAGES):
            place = folder / "data" / ("abc"[index % 3] if kind == "folder" else "") / f"{index:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png(image))
        rows = "".join(f"{index:02d}.png,{index % 3}\n" for index in range(30))
        if kind == "labels.csv":
            (folder / "data" / "labels.csv").write_text("file,label\n" + rows)
        if kind == "list":
            (folder / "list.txt").write_text("data/" + rows.strip().replace("\n", "\ndata/"))
        return {"glob": str(folder / "data" / "*.png"), "list": str(folder / "list.txt")}.get(
            kind, str(folder / "data")
        )
    if kind in ("npz", "npy", "tensors"):
        path = folder / ("data.npy" if kind == "npy" else "data.npz")
        if kind == "npy":
            np.save(path, IMAGES)
        else:
            data = IMAGES if kind == "npz" else IMAGES[:, None].astype(np.float32)
            np.savez(path, image=data, labels=LABELS)
        return str(path)
    if kind.startswith("idx"):
        suffix = ".gz" if kind.endswith("gz") else ""
        for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS.astype(np.uint8))):
            path = folder / f"t10k-{name}-ubyte{suffix}"
            write_idx(path, array)
            if suffix:
                path.write_bytes(gzip.compress(path.read_bytes()))
        return str(folder / f"t10k-images-idx3-ubyte{suffix}")
    if kind == "random":
        return "random:30"
    name = f"conformance_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:{kind}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return make_source(kind, tmp_path, monkeypatch)


def opened(source: str, **options: int) -> Dataset:
    return open_dataset(source, [GRAY], load_preprocess("fashion-mnist"), **options)  # type: ignore[arg-type]


def test_is_a_dataset_with_a_size(source: str) -> None:
    dataset = opened(source)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 30
    assert dataset.name == source
    assert dataset.describe()["samples"] == 30


def test_restarts_with_the_same_samples(source: str) -> None:
    dataset = opened(source)
    first, second = list(dataset), list(dataset)
    assert [(s.id, s.sha256, s.label) for s in first] == [(s.id, s.sha256, s.label) for s in second]
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.inputs["image"], two.inputs["image"])


def test_samples_fit_the_input(source: str) -> None:
    for sample in opened(source):
        array = sample.inputs["image"]
        assert array.shape == GRAY.shape
        assert array.dtype == np.float32
        assert array.flags["C_CONTIGUOUS"]


def test_number_of_threads_changes_nothing(source: str) -> None:
    one, four = list(opened(source, threads=1)), list(opened(source, threads=4))
    assert [(s.id, s.sha256, s.label) for s in one] == [(s.id, s.sha256, s.label) for s in four]
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a.inputs["image"], b.inputs["image"])


def test_ids_are_unique_and_labels_known(source: str, kind: str) -> None:
    samples = list(opened(source, num_classes=3))
    assert len({sample.id for sample in samples}) == 30
    expected = {None: 30} if kind in UNLABELLED else {0: 10, 1: 10, 2: 10}
    assert Counter(sample.label for sample in samples) == expected


def test_manifest_lists_the_samples_and_ignores_their_order(source: str) -> None:
    before = opened(source).manifest  # takes its own pass
    dataset = opened(source)
    samples = list(dataset)
    assert dataset.manifest == before
    assert [entry.id for entry in before.entries] == [sample.id for sample in samples]
    assert Manifest(tuple(reversed(before.entries))).sha256 == before.sha256
    assert before.overlap(dataset.manifest)
    assert not before.duplicates()


def test_limit_is_balanced_and_seeded(source: str, kind: str) -> None:
    dataset = opened(source, limit=12, seed=3)
    ids = [sample.id for sample in dataset]
    assert len(dataset) == len(ids) == 12
    assert ids == [sample.id for sample in opened(source, limit=12, seed=3)]
    listed = [sample.id for sample in opened(source)]
    assert ids == [name for name in listed if name in set(ids)]
    if kind not in (*UNLABELLED, "dicts"):  # a dict's label is known only once it is loaded
        assert Counter(sample.label for sample in dataset) == {0: 4, 1: 4, 2: 4}
    if kind != "random":
        assert ids != [sample.id for sample in opened(source, limit=12, seed=4)]
    assert len(opened(source, limit=1000)) == 30


def test_statistics_are_those_of_the_samples(source: str) -> None:
    dataset = opened(source)
    (got,) = dataset.statistics(n=30)
    values = np.stack([sample.inputs["image"] for sample in dataset]).astype(np.float64)
    assert (got.name, got.shape, got.dtype, got.n) == ("image", (1, 28, 28), "float32", 30)
    np.testing.assert_allclose(
        [got.minimum[0], got.maximum[0], got.mean[0], got.std[0]],
        [values.min(), values.max(), values.mean(), values.std()],
        rtol=1e-12,
    )


def test_abandoned_pass_ends_its_threads(source: str) -> None:
    iterator = iter(opened(source))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quantlab-data")]


def test_batches_stack_the_samples_in_order(source: str) -> None:
    dataset = opened(source)
    samples, got = list(dataset), list(batches(dataset, 8))
    assert [len(batch) for batch in got] == [8, 8, 8, 6]
    assert [name for batch in got for name in batch.ids] == [sample.id for sample in samples]
    assert [label for batch in got for label in batch.labels] == [sample.label for sample in samples]
    np.testing.assert_array_equal(
        np.concatenate([batch.inputs["image"] for batch in got]), np.stack([s.inputs["image"] for s in samples])
    )


@pytest.mark.parametrize("kind", ["folder", "labels.csv", "glob", "list", "npz", "npy", "idx", "idx.gz", "pairs"])
def test_the_same_images_have_the_same_content_hashes_in_every_kind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(make_source(kind, tmp_path, monkeypatch))
    (tmp_path / "reference").mkdir()
    reference = opened(make_source("npz", tmp_path / "reference", monkeypatch))
    assert {e.sha256 for e in dataset.manifest.entries} == {e.sha256 for e in reference.manifest.entries}


def test_every_batch_reports_the_input_by_name() -> None:
    spec = InputSpec("tokens", (4,), "int64")
    (batch,) = batches(open_dataset("random:3", [spec], load_preprocess("unit")), 5)
    assert batch.inputs["tokens"].shape == (3, 4)
    assert batch.inputs["tokens"].dtype == np.int64
