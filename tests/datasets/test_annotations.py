from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_images import GRAY, MakeFolder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quantlab.datasets import Color, InputSpec, Preprocess, load_preprocess, open_dataset
from quantlab.datasets.annotations import Truths
from quantlab.datasets.annotations_coco import class_numbers, coco_boxes, read_coco
from quantlab.datasets.annotations_masks import IGNORE, _total, coco_masks, folder_masks, read_mask
from quantlab.datasets.annotations_values import read_values
from quantlab.errors import ConfigError, DataError

IMAGE = {"id": 7, "file_name": "a.jpg", "height": 10, "width": 20}
BOX = {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4]}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "images": [
            IMAGE,
            {"id": 9, "file_name": "sub/b.jpg", "height": 8, "width": 8},
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 2, "name": "bike"}, {"id": 13, "name": "sign"}],
        "annotations": [
            BOX,
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0.5, 0, 19.5, 10], "area": 77.5, "iscrowd": 1},
        ],
    } | changes


def write(folder: Path, content: object) -> Path:
    path = folder / "coco.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_boxes(tmp_path: Path) -> None:
    coco = read_coco(write(tmp_path, document()))
    truths = coco_boxes(coco, class_numbers(coco, "from-0"))
    boxes = truths.find("a.jpg")
    assert boxes is not None and boxes.size == (10, 20)
    np.testing.assert_array_equal(boxes.boxes, [[1, 2, 3, 4], [0.5, 0, 19.5, 10]])
    np.testing.assert_array_equal(boxes.classes, [2, 0])
    np.testing.assert_array_equal(boxes.crowd, [False, True])
    np.testing.assert_array_equal(boxes.area, [12, 77.5])
    empty = truths.find("somewhere/sub/b.jpg")
    assert empty is not None and empty.boxes.shape == (0, 4), "an image without an object counts, too"
    assert truths.find("c.jpg") is None and truths.missing == ("c.jpg",)


@pytest.mark.parametrize(
    ("numbering", "expected"),
    [("from-0", {2: 0, 13: 1, 90: 2}), ("from-1", {2: 1, 13: 2, 90: 3}), ("ids", {2: 2, 13: 13, 90: 90})],
)
def test_numbering(tmp_path: Path, numbering: str, expected: dict[int, int]) -> None:
    assert class_numbers(read_coco(write(tmp_path, document())), numbering) == expected


def test_numbering_by_names(tmp_path: Path) -> None:
    coco = read_coco(write(tmp_path, document()))
    names = tmp_path / "coco.names"
    names.write_text("person\nbike\r\nbrush\ncar\n")
    assert class_numbers(coco, str(names)) == {2: 1, 90: 2}
    names.write_text("person\nbikes\nbrush\n")
    with pytest.raises(DataError, match="lacks a category") as caught:
        class_numbers(coco, str(names))
    assert (caught.value.got, caught.value.hint) == ("'bike'", "is it 'bikes' there?")
    with pytest.raises(ConfigError, match="numbering of the classes is not known"):
        class_numbers(coco, "from-2")
    with pytest.raises(DataError, match="does not exist"):
        class_numbers(coco, str(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([], "not of the COCO form"),
        ({"images": []}, "not of the COCO form"),
        (document(annotations=[]), "has no annotations"),
        (document(annotations=["x"]), "annotation 0 has no 'image_id'"),
        (document(annotations=[BOX | {"image_id": 8}]), "refers to an image that the file does not have"),
        (document(annotations=[BOX | {"category_id": 3}]), "refers to a category that the file does not have"),
        (document(annotations=[BOX | {"category_id": "x"}]), "wrong 'category_id'"),
        (document(annotations=[{"image_id": 7, "category_id": 90}]), "annotation 0 has no 'bbox'"),
        (document(annotations=[BOX | {"bbox": [1, 2, 3]}]), "wrong box"),
        (document(annotations=[BOX | {"bbox": [1, 2, 3, None]}]), "wrong box"),
        (document(annotations=[BOX | {"bbox": [1, 2, float("nan"), 4]}]), "wrong box"),
        (document(annotations=[BOX | {"bbox": [1, 2, float("inf"), 4]}]), "wrong box"),
        (document(annotations=[BOX | {"bbox": [1, 2, -1, 4]}]), "wrong box"),
        (document(annotations=[BOX | {"bbox": [18, 2, 3.5, 4]}]), "outside its image 'a.jpg'"),
        (document(annotations=[BOX | {"bbox": [-2, 2, 3, 4]}]), "outside its image"),
        (document(annotations=[BOX | {"bbox": [1, 2, 10**400, 4]}]), "wrong box"),
        (document(annotations=[BOX | {"bbox": [0.1, 0.2, 0.5, 0.25]}]), "no box that reaches beyond the first pixel"),
        (document(annotations=[BOX | {"area": float("nan")}]), "wrong 'area'"),
        (document(annotations=[BOX | {"iscrowd": "no"}]), "wrong 'iscrowd'"),
        (document(annotations=[BOX | {"iscrowd": 2}]), "wrong 'iscrowd'"),
        (document(categories=[{"id": 10**30, "name": "x"}]), "wrong 'id'"),
        (document(images=[{"id": 7, "file_name": "a.jpg", "height": 10**9, "width": 2}]), "wrong 'height'"),
        (document(images=[{"id": 7, "file_name": "a.jpg", "height": 0, "width": 2}]), "wrong 'height'"),
        (document(images=[{"id": 7, "height": 1, "width": 2}]), "no 'file_name'"),
        (document(images=[IMAGE, IMAGE | {"file_name": "c"}]), "another image"),
        (document(images=[IMAGE, IMAGE | {"id": 8}]), "one name"),
        (document(categories=[{"id": 90, "name": "x"}, {"id": 90, "name": "y"}]), "another category"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coco = read_coco(write(tmp_path, content))
        coco_boxes(coco, class_numbers(coco, "from-0"))


def test_missing_file(tmp_path: Path) -> None:
    write(tmp_path, document())
    with pytest.raises(DataError, match="does not exist") as caught:
        read_coco(tmp_path / "koko.json")
    assert caught.value.hint == f"did you mean {tmp_path / 'coco.json'}?"


def test_names_of_classes_that_come_twice(tmp_path: Path) -> None:
    coco = read_coco(write(tmp_path, document(annotations=[BOX])))
    name = coco.categories[coco.annotations[0].category]
    (tmp_path / "names.txt").write_text(f"\ufeff{name}\r\nother\r\nother\r\n")
    assert class_numbers(coco, str(tmp_path / "names.txt")) == {coco.annotations[0].category: 0}
    (tmp_path / "names.txt").write_text(f"{name}\n{name}\n")
    with pytest.raises(DataError, match=r"has a category of .* twice"):
        class_numbers(coco, str(tmp_path / "names.txt"))


def test_masks_of_negative_classes(tmp_path: Path) -> None:
    polygon = [[0, 0, 4, 0, 4, 4, 0, 4]]
    content = document(
        categories=[{"id": -4, "name": "x"}], annotations=[BOX | {"category_id": -4, "segmentation": polygon}]
    )
    coco = read_coco(write(tmp_path, content))
    with pytest.raises(DataError, match="class numbers that a mask cannot hold"):
        coco_masks(coco, class_numbers(coco, "ids"), 0)


def test_box_that_reaches_a_little_beyond(tmp_path: Path) -> None:
    coco = read_coco(write(tmp_path, document(annotations=[BOX | {"bbox": [18, 2, 2.9, 4]}])))
    assert len(coco_boxes(coco, class_numbers(coco, "from-0"))) == 2


def test_names_of_samples() -> None:
    truths = Truths({"x/a.png": 1, "y/a.png": 2, "./b.png": 3, "z\\c.png": 4}, "file f")
    assert [truths.find(name) for name in ("y/a.png", "b.png", "z/c.png", "q")] == [2, 3, 4, None]
    with pytest.raises(DataError, match=r"2 entries that sample 'a\.png' could mean"):
        truths.find("a.png")
    assert truths.find("other/c.png") is None, "a file of the same name in another folder is another file"
    with pytest.raises(DataError, match="one entry for two samples"):
        truths.find("other/b.png")
    with pytest.raises(DataError, match="two entries for one image"):
        Truths({"a.png": 1, "./a.png": 2}, "file f")


def test_annotations_of_other_data() -> None:
    truths = Truths({"img_01.png": 1, "img_02.png": 2}, "file f")
    truths.require(("absent.png", "img_02.png"))
    with pytest.raises(DataError, match="no entry for any of the first 2 samples") as caught:
        truths.require(("img-01.png", "img-02.png"))
    assert "'img_01.png'" in (caught.value.hint or "")


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1"])
def test_mask_files(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 2, (5, 7)).astype(np.uint8)
    if mode == "P":
        image = Image.fromarray(pixels)
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    elif mode == "1":
        image = Image.fromarray(pixels.astype(bool))
    else:
        pixels = pixels * (200 if mode == "L" else 1)
        image = Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.uint8))
    assert image.mode == mode
    (tmp_path / "deep").mkdir()
    image.save(tmp_path / "deep" / "a.png")
    load = folder_masks(tmp_path).find("deep/a.jpg")
    assert load is not None
    np.testing.assert_array_equal(load(), pixels)


def test_masks_of_names_that_are_no_text(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (3, 3)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / folder / os.fsdecode(b"caf\xe9.png"))
    dataset = open_dataset(str(tmp_path / "images"), [InputSpec("x", (3, 3, 3))], Preprocess(color=Color.RGB))
    (sample,) = dataset
    assert folder_masks(tmp_path / "masks").find(sample.id) is not None


def test_bad_mask_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no masks") as caught:
        folder_masks(tmp_path / "absent")
    assert caught.value.got == "no such folder"
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has colours"):
        read_mask(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(tmp_path / "a.png")
    Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(tmp_path / "wide.tiff")
    with pytest.raises(DataError, match="values that are no class numbers"):
        read_mask(tmp_path / "wide.tiff")
    Image.new("L", (3, 3)).save(tmp_path / "a.bmp")
    with pytest.raises(DataError, match="two entries"):
        folder_masks(tmp_path)


def segmented(segmentation: object) -> dict[str, Any]:
    return document(annotations=[BOX | {"segmentation": segmentation}])


def masks(folder: Path, content: object, background: int = 0) -> np.ndarray:
    coco = read_coco(write(folder, content))
    load = coco_masks(coco, class_numbers(coco, "from-1"), background).find("a.jpg")
    assert load is not None
    return load()


def test_polygons(tmp_path: Path) -> None:
    square = [[2, 1, 6, 1, 6, 5, 2, 5]]
    expected = np.zeros((10, 20), np.int64)
    expected[1:5, 2:6] = 3
    np.testing.assert_array_equal(masks(tmp_path, segmented(square)), expected)
    expected[expected == 0] = IGNORE
    np.testing.assert_array_equal(masks(tmp_path, segmented(square), IGNORE), expected)


def test_run_lengths(tmp_path: Path) -> None:
    from pycocotools import mask as api

    expected = np.random.default_rng(3).random((10, 20)) < 0.3
    encoded = api.encode(np.asfortranarray(expected.astype(np.uint8)))
    flat = expected.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    for given_counts in (encoded["counts"].decode(), counts):
        got = masks(tmp_path, segmented({"size": [10, 20], "counts": given_counts}))
        np.testing.assert_array_equal(got == 3, expected)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_length_of_compressed_run_lengths(height: int, width: int, share: float, seed: int) -> None:
    from pycocotools import mask as api

    pixels = np.random.default_rng(seed).random((height, width)) < share
    text = api.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert _total(text) == height * width


def test_pixels_that_two_classes_claim(tmp_path: Path) -> None:
    left, right = [[0, 0, 4, 0, 4, 4, 0, 4]], [[2, 0, 8, 0, 8, 4, 2, 4]]
    both = [BOX | {"segmentation": left}, BOX | {"segmentation": right, "category_id": 2}]
    got = masks(tmp_path, document(annotations=both))
    assert (got[:4, :2] == 3).all() and (got[:4, 2:4] == IGNORE).all() and (got[:4, 4:8] == 1).all()
    assert (got[4:] == 0).all()
    same = masks(tmp_path, document(annotations=[both[0], BOX | {"segmentation": right}]))
    assert (same[:4, :8] == 3).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "has no segmentation"),
        ([], "has no segmentation"),
        ([[1, 2, 3, 4]], "wrong polygon"),
        ([[1, 2, 3, 4, 5, 6, 7]], "wrong polygon"),
        ([[1, 2, 3, 4, 5, None]], "wrong polygon"),
        ([1, 2, 3, 4, 5, 6], "wrong polygon"),
        ([[1, 2, 3, 4, 5, 10**400]], "wrong polygon"),
        ([[True, True, True, True, True, True]], "wrong polygon"),
        ([[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]], "polygon outside its image"),  # pycocotools would crash
        ([[-9, 1, 3, 4, 5, 6]], "polygon outside its image"),
        ({"size": [10, 20], "counts": [True, 199]}, "wrong run lengths"),
        ({"size": [10, 20], "counts": [100, 99]}, "wrong run lengths"),
        ({"size": [10, 20], "counts": [300, -100]}, "wrong run lengths"),
        ({"size": [20, 10], "counts": [200]}, "wrong run lengths"),
        ({"size": [10, 20], "counts": "0"}, "wrong run lengths"),
        ({"size": [10, 20], "counts": "\u00e9"}, "wrong run lengths"),
        ({"size": [10, 20], "counts": "ZZZZ"}, "wrong run lengths"),
        ("x", "wrong run lengths"),
    ],
)
def test_bad_segmentations(tmp_path: Path, segmentation: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        masks(tmp_path, segmented(segmentation))


def test_class_numbers_that_no_mask_holds(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "x"}, {"id": 300, "name": "y"}, {"id": 2, "name": "z"}]
    coco = read_coco(write(tmp_path, document(categories=categories)))
    with pytest.raises(DataError, match="cannot hold"):
        coco_masks(coco, class_numbers(coco, "ids"), 0)


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("file,age\na.png,3\nb.png,-4.5\n", ("age",), [[3], [-4.5]]),
        ("a.png,3\nb.png,1e-3\n", ("value",), [[3], [0.001]]),
        ("name\tx\ty\r\na.png\t1\t2\r\nb.png\t3\t4", ("x", "y"), [[1, 2], [3, 4]]),
        ("\ufeffa.png,1,2\n\nb.png,3,4\n", ("value0", "value1"), [[1, 2], [3, 4]]),
    ],
)
def test_values(tmp_path: Path, text: str, columns: tuple[str, ...], expected: list[list[float]]) -> None:
    path = tmp_path / "values.csv"
    path.write_text(text, encoding="utf-8")
    values = read_values(path)
    assert values.columns == columns
    np.testing.assert_array_equal([values.truths.find("a.png"), values.truths.find("x/b.png")], expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no values"),
        ("file,age\n", "has no values"),
        ("a.png\nb.png\n", "wrong row at line 1"),
        ("a.png,1\nb.png,1,2\n", "wrong row at line 2"),
        ("a.png,1\nb.png,x\n", "wrong row at line 2"),
        ("file,age\na.png,nan\n", "wrong row at line 2"),
        ("a.png,1\nb.png,inf\n", "wrong row at line 2"),
        ("a.png,1\nb.png,\n", "wrong row at line 2"),
        (",1\n", "wrong row at line 1"),
        ("a.png,1\na.png,1\n", "names a sample again at line 2"),
        ("file,x,x\na.png,1,2\n", "wrong header"),
        ('a.png,"1\n', "malformed"),
    ],
)
def test_bad_values(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "values.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_values(path)


def test_class_labels_from_coco(class_folder: MakeFolder, tmp_path: Path) -> None:
    images = [{"id": i, "file_name": n, "height": 28, "width": 28} for i, n in enumerate(("000.png", "bee/001.png"))]
    content = {
        "images": images,
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cow"}],
        "annotations": [{"image_id": 0, "category_id": 9}, {"image_id": 1, "category_id": 4}],
    }
    path = write(tmp_path, content)
    data = open_dataset(str(class_folder(1)), [GRAY], load_preprocess("unit"), labels=path, num_classes=2)
    assert {s.id: s.label for s in data} == {"ant/000.png": 1, "bee/001.png": 0, "cat/002.png": None}
    assert data.class_names == ("cow", "dog")
    write(tmp_path, content | {"annotations": [*content["annotations"], {"image_id": 0, "category_id": 4}]})
    with pytest.raises(DataError, match=r"conflicting labels for '000\.png'"):
        open_dataset(str(tmp_path / "photos"), [GRAY], load_preprocess("unit"), labels=path)
