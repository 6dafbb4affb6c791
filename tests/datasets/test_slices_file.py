"""CSV files of slices: what is read, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlab.datasets.slices import read_slices
from quantlab.errors import DataError

IDS = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/7.png")


def write(folder: Path, text: str) -> Path:
    path = folder / "slices.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_by_id_or_unambiguous_base_name(tmp_path: Path) -> None:
    path = write(tmp_path, "file,camera,light\ncat/1.png,left,day\n2.png,right,\n./dog/7.png,left,night\n")
    table = read_slices(path, IDS, "val")
    assert table.columns == ("camera", "light")
    assert table.of(IDS, "camera") == ["left", "right", None, "left"]
    assert table.of(IDS, "light") == ["day", None, None, "night"]


@pytest.mark.parametrize("text", ["\ufefffile,a\n1.png,x\n", "Image\ta\n1.png\tx\n", 'file,a\n"1.png","x"\n\n'])
def test_the_ways_of_csv(text: str, tmp_path: Path) -> None:
    assert read_slices(write(tmp_path, text), ("1.png",), "val").of(("1.png",), "a") == ["x"]


def test_a_row_may_be_repeated(tmp_path: Path) -> None:
    table = read_slices(write(tmp_path, "file,a\n2.png,x\ncat/2.png,x\n"), IDS, "val")
    assert table.of(IDS, "a") == [None, "x", None, None]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no rows"),
        ("file,camera\n", "has no rows"),
        ("camera,file\nleft,2.png\n", "does not begin with the column file"),
        ("file\n2.png\n", "has no column to slice by"),
        ("file,a,a\n2.png,x,y\n", "has the column 'a' twice"),
        ("file,a,\n2.png,x,y\n", "has a column without a name"),
        ("file,a\n2.png,x,y\n", "has a wrong row at line 2"),
        ("file,a\n2.png,x\ncat/2.png,y\n", "has two different rows for 'cat/2.png'"),
        ("file,a\n1.png,x\n", "line 2 names 2 samples"),
        ("file,a\ncat/3.png,x\n", "line 2 is about a sample that is not in val"),
        ('file,a\n"2.png', "has a wrong row at line 2"),
    ],
)
def test_refusals(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=what):
        read_slices(write(tmp_path, text), IDS, "val")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"slices file .*gone\.csv does not exist"):
        read_slices(tmp_path / "gone.csv", IDS, "val")
    (tmp_path / "binary.csv").write_bytes(b"file,a\n\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_slices(tmp_path / "binary.csv", IDS, "val")


def test_a_near_miss_is_hinted_at(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_slices(write(tmp_path, "file,a\ncat/11.png,x\n"), IDS, "val")
    assert caught.value.hint == "did you mean 'cat/1.png'?"
