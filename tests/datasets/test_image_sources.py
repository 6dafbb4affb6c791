"""Folders, patterns and lists of image files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dataset_images import GRAY, MakeFolder, pictures, png

from quantlab.datasets import Dataset, load_preprocess, open_dataset
from quantlab.degradation import DegradationCode
from quantlab.errors import DataError

IMAGES = [png(image) for image in pictures(12)]


def opened(source: object, **options: object) -> Dataset:
    return open_dataset(str(source), [GRAY], load_preprocess("fashion-mnist"), **options)  # type: ignore[arg-type]


def labels(dataset: Dataset) -> dict[str, int | None]:
    return {sample.id: sample.label for sample in dataset}


def codes(dataset: Dataset) -> list[DegradationCode]:
    return [degradation.code for degradation in dataset.degradations]


def test_class_folders_are_numbered_in_sorted_order(class_folder: MakeFolder) -> None:
    root = class_folder(1, ("zebra", "ant", "Bee"))
    dataset = opened(root, num_classes=3)
    assert dataset.class_names == ("Bee", "ant", "zebra")
    assert labels(dataset) == {"Bee/002.png": 0, "ant/001.png": 1, "zebra/000.png": 2}
    assert codes(dataset) == []
    assert codes(opened(root, num_classes=10)) == [DegradationCode.ASSUMED_LABELS]


def test_folders_named_by_numbers_are_these_numbers(class_folder: MakeFolder) -> None:
    dataset = opened(class_folder(1, ("10", "2", "007")))
    assert labels(dataset) == {"007/002.png": 7, "10/000.png": 10, "2/001.png": 2}
    with pytest.raises(DataError, match="label out of range"):
        opened(class_folder(1, ("1", "10"), "again"), num_classes=10)


def test_flat_nested_hidden_and_foreign_files(tmp_path: Path) -> None:
    names = ["b.png", "a b.PNG", "sub/deep/ü.png", "sub/new\nline.png", ".hidden.png", ".git/x.png", "__MACOSX/y.png"]
    for name, data in zip(names, IMAGES, strict=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "readme.md").write_text("")
    dataset = opened(tmp_path)
    assert labels(dataset) == dict.fromkeys(["a b.PNG", "b.png", "sub/deep/ü.png", "sub/new\nline.png"])
    assert dataset.describe()["ignored_files"] == 1
    assert dataset.class_names is None


def test_names_that_are_not_unicode_can_be_written_to_json(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    path = os.fsencode(folder) + b"/caf\xe9.png"
    with open(path, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(IMAGES[0])
    dataset = opened(folder)
    assert dataset.name.endswith("d\\xe9")
    assert [entry.id for entry in dataset.manifest.entries] == ["caf\\xe9.png"]
    dataset.manifest.save(tmp_path / "manifest.json")


def test_links_are_followed_but_not_in_circles(class_folder: MakeFolder, tmp_path: Path) -> None:
    root = class_folder(1, ("a", "b"))
    (root / "a" / "loop").symlink_to(root)
    (root / "c.png").symlink_to(root / "b" / "001.png")
    (root / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    dataset = opened(root)
    assert list(labels(dataset)) == ["a/000.png", "b/001.png", "c.png"]
    unreadable = next(d for d in dataset.degradations if d.code is DegradationCode.UNREADABLE_SAMPLES)
    assert unreadable.subjects == ("dangling.png: no such file",)
    assert DegradationCode.DUPLICATE_SAMPLES in codes(dataset)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no images"):
        opened(tmp_path)


def test_labels_csv(tmp_path: Path) -> None:
    for name, data in zip("abc", IMAGES, strict=False):
        (tmp_path / f"{name}.png").write_bytes(data)
    (tmp_path / "labels.csv").write_text("file,label\na.png,dog\nc.png,cat\n")
    dataset = opened(tmp_path)
    assert labels(dataset) == {"a.png": 1, "b.png": None, "c.png": 0}
    assert dataset.class_names == ("cat", "dog")
    assert codes(dataset) == [DegradationCode.UNLABELLED_SAMPLES]


def test_folders_without_images_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        opened(tmp_path)
    for name in ("a.md", "b.md", "data.npz"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert "2 x .md" in str(caught.value)
    assert "did you mean" in str(caught.value)


def test_unreadable_and_lossy_samples_are_counted(tmp_path: Path) -> None:
    rgba = pictures(1, (28, 28, 4))[0]
    files = {"a.png": IMAGES[0], "b.png": b"", "c.png": IMAGES[1][:300], "d.png": b"text", "e.png": png(rgba)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    dataset = opened(tmp_path)
    assert len(dataset) == 5
    for _ in range(2):  # a second pass counts nothing twice
        assert list(labels(dataset)) == ["a.png", "e.png"]
        unreadable, lossy = dataset.degradations
    assert (unreadable.code, unreadable.count) == (DegradationCode.UNREADABLE_SAMPLES, 3)
    assert unreadable.subjects[0] == "b.png: is empty (0 bytes)"
    assert (lossy.code, lossy.subjects) == (DegradationCode.LOSSY_DECODE, ("e.png",))
    assert len(dataset.manifest) == 2


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for consume in (list, lambda dataset: dataset.manifest):
        with pytest.raises(DataError, match="none of the 1 samples"):
            consume(opened(tmp_path))


def test_a_file_that_vanishes_between_passes_is_an_error(tmp_path: Path) -> None:
    for name, data in zip("ab", IMAGES, strict=False):
        (tmp_path / f"{name}.png").write_bytes(data)
    dataset = opened(tmp_path)
    list(dataset)
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match="could be read before"):
        list(dataset)


def test_size_that_the_preprocessing_does_not_mend_names_the_sample(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "b.png").write_bytes(png(pictures(1, (30, 28))[0]))
    (tmp_path / "p.toml").write_text("scale = 255\n")
    dataset = open_dataset(str(tmp_path), [GRAY], load_preprocess(str(tmp_path / "p.toml")))
    with pytest.raises(DataError, match=r"sample 'b\.png' does not fit") as caught:
        list(dataset)
    assert "(1, 30, 28)" in str(caught.value)


def test_patterns(class_folder: MakeFolder) -> None:
    root = class_folder(2)
    assert list(labels(opened(root / "*" / "*.png"))) == list(labels(opened(root)))
    assert len(opened(root / "**" / "*.png")) == 6
    assert list(labels(opened(root / "ant" / "00[0-2].png"))) == ["000.png"]
    with pytest.raises(DataError, match="no file matches"):
        opened(root / "*.png")


def test_a_single_image(class_folder: MakeFolder) -> None:
    assert list(labels(opened(class_folder(1) / "ant" / "000.png"))) == ["000.png"]


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_lists(tmp_path: Path, separator: str) -> None:
    names = ["a.png", "with space.png", "comma,name.png"]
    for name, data in zip(names, IMAGES, strict=False):
        (tmp_path / name).write_bytes(data)
    lines = ["# comment", "", *(f"{name}{separator}{label}" for label, name in enumerate(names)), "./absent.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    dataset = opened(tmp_path / "list.txt")
    assert labels(dataset) == {name: label for label, name in enumerate(names)}
    assert codes(dataset) == [DegradationCode.UNREADABLE_SAMPLES, DegradationCode.UNLABELLED_SAMPLES]


def test_wrong_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for text, message in (
        ("\n# x\n", "is empty"),
        ("a.png 1\na.png 2\n", "twice at line 2"),
        ("a.png -1", "wrong label"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            opened(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="not UTF-8"):
        opened(path)
