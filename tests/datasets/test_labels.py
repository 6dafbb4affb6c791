from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_images import GRAY, MakeFolder, pictures
from hypothesis import given
from hypothesis import strategies as st

from quantlab.datasets import load_preprocess, open_dataset
from quantlab.datasets.subset import balanced_subset
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError, DataError

UNIT = load_preprocess("unit")


def labelled(source: Path, file: Path, text: str) -> dict[str, int | None]:
    file.write_text(text, encoding="utf-8")
    return {s.id: s.label for s in open_dataset(str(source), [GRAY], UNIT, labels=file, num_classes=10)}


@pytest.mark.parametrize(
    "text",
    [
        "file,label\nant/000.png,5\nbee/001.png,7\n",
        "ant/000.png,5\r\nbee/001.png,7\r\n",
        "./000.png\t5\n001.png\t7",
        "\ufefffile,label\n000.png,5\n\n001.png,7\n001.png,7\n",
        "000.png 5\n001.png 7\n",
    ],
)
def test_by_id_or_base_name(class_folder: MakeFolder, tmp_path: Path, text: str) -> None:
    got = labelled(class_folder(1), tmp_path / "labels.csv", text)
    assert got == {"ant/000.png": 5, "bee/001.png": 7, "cat/002.png": None}


def test_names_of_the_source_keep_their_numbers(class_folder: MakeFolder, tmp_path: Path) -> None:
    got = labelled(class_folder(1), tmp_path / "labels.csv", "000.png,cat\n001.png,bee\n002.png,cat\n")
    assert list(got.values()) == [2, 1, 2]


@pytest.mark.parametrize(("text", "expected"), [("3\n1\n2\n", [3, 1, 2]), ("label\nx\ny\nx\n", [0, 1, 0])])
def test_one_label_a_line_in_order(tmp_path: Path, text: str, expected: list[int]) -> None:
    np.save(tmp_path / "data.npy", pictures(3))
    got = labelled(tmp_path / "data.npy", tmp_path / "labels.txt", text)
    assert list(got.values()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000.png,1\n000.png,2\n", "conflicting labels"),
        ("000.png,1\n00.png,2\n", "did you mean"),
        ("000.png,-1\n", "wrong label"),
        ("000.png,1.5\n", "wrong label"),
        ("000.png,1\n001.png,dog\n", "mixes class numbers and names"),
        ("000.png,10\n", "label out of range"),
        ("000.png,1,2\n", "wrong row at line 1"),
        ("000.png,\n", "wrong row at line 1"),
        ("1\n2\n", "one label a sample"),
        ("file,label\n", "no labels"),
        ("", "no labels"),
    ],
)
def test_wrong_files(class_folder: MakeFolder, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        labelled(class_folder(1), tmp_path / "labels.csv", text)
    assert message in str(caught.value)


def test_ambiguous_base_names(class_folder: MakeFolder, tmp_path: Path) -> None:
    root = class_folder(1)
    (root / "bee" / "000.png").write_bytes((root / "ant" / "000.png").read_bytes())
    with pytest.raises(DataError, match="names 2 samples"):
        labelled(root, tmp_path / "labels.csv", "000.png,1\n")


def test_missing_file(class_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(str(class_folder(1)), [GRAY], UNIT, labels=tmp_path / "absent.csv")


def test_partly_labelled(class_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("000.png,1\n")
    dataset = open_dataset(str(class_folder(1)), [GRAY], UNIT, labels=tmp_path / "labels.csv")
    assert [(d.code, d.count) for d in dataset.degradations] == [(DegradationCode.UNLABELLED_SAMPLES, 2)]


@given(st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 5))
def test_subsets_are_as_even_as_the_classes_allow(labels: list[int | None], limit: int, seed: int) -> None:
    chosen = balanced_subset(labels, len(labels), limit, seed)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == min(limit, len(labels))
    present, taken = Counter(labels), Counter(labels[index] for index in chosen)
    most = max(taken.values())
    assert all(taken[label] >= min(count, most - 1) for label, count in present.items())
    if limit > 1:
        assert set(balanced_subset(labels, len(labels), limit - 1, seed)) <= set(chosen)


@pytest.mark.parametrize("limit", [0, -1])
def test_wrong_limits(limit: int) -> None:
    with pytest.raises(ConfigError, match="limit"):
        balanced_subset(None, 10, limit, 0)
