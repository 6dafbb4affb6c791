"""Reading of JSON and TOML documents, and every way in which it can go wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from quantlab import documents
from quantlab.documents import check_keys, dump_json, near_match, read_file, read_json, read_toml
from quantlab.errors import ConfigError, DataError, ModelError

SCHEMA = "quantlab.test/1"


def test_near_match() -> None:
    assert near_match("percentil", ["minmax", "percentile"]) == "percentile"
    assert near_match("zzz", ["minmax", "percentile"]) is None


def test_check_keys_names_key_place_and_nearest() -> None:
    check_keys({"a": 1}, {"a", "b"}, "here")
    with pytest.raises(ConfigError) as caught:
        check_keys({"alhpa": 1}, {"alpha", "beta"}, "[gate]")
    assert str(caught.value) == (
        "unknown key 'alhpa' in [gate]\n  expected: one of alpha, beta\n  try:      did you mean 'alpha'?"
    )


def test_json_round_trip(tmp_path: Path) -> None:
    document = {"schema": SCHEMA, "text": "ü\u2028", "list": [1, 2.5, None, True]}
    path = tmp_path / "a.json"
    path.write_text(dump_json(document), encoding="utf-8")
    assert read_json(path, SCHEMA, DataError, "test") == document


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_what_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"x": value})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "another schema"),
        (b'{"schema": "quantlab.test/2"}', "another schema"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_json(path, SCHEMA, DataError, "test")


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(path, "recipe") == {"a": 1}
    path.write_bytes(b"a = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(path, "recipe")
    path.write_bytes(b"a = '\xff'\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_toml(path, "recipe")


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ModelError, match="does not exist") as caught:
        read_file(tmp_path / "calibratoin.json", ModelError, "table")
    assert str(tmp_path / "calibration.json") in str(caught.value)
    with pytest.raises(ModelError, match="does not exist"):
        read_file(tmp_path / "no" / "such" / "folder", ModelError, "table")


def test_a_folder_and_a_path_through_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_file(tmp_path, DataError, "table")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot read"):
        read_file(tmp_path / "file" / "a", DataError, "table")


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_file(Path("a\0b"), DataError, "table")


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    with pytest.raises(DataError, match="too large"):
        read_file(Path("/dev/zero"), DataError, "table")


def test_a_pipe_can_be_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a = 1\n")
    os.close(writer)
    try:
        assert read_toml(Path(f"/dev/fd/{reader}"), "recipe") == {"a": 1}
    finally:
        os.close(reader)
