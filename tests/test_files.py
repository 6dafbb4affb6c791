"""Outputs are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from quantlab.errors import OutputError
from quantlab.files import replacing, sha256_bytes, sha256_file, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "grün\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "grün\n".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_an_exception_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.json"]


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "out.json") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a" / "b" / "out.json") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "mine" / "b" / "out.json"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["mine"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "out.json").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot write") as caught:
        write_bytes(tmp_path / "out.json", b"new")
    assert caught.value.got == os.strerror(errno.ENOSPC)
    assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / "out.json").read_text() == "old"
    assert names(tmp_path) == ["out.json"]


def test_forgetting_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), replacing(tmp_path / "out.json"):
        pass
    assert names(tmp_path) == []


def test_the_target_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="cannot write") as caught:
        write_text(tmp_path / "out", "x")
    assert caught.value.got == "a folder of that name"
    assert names(tmp_path) == ["out"]
    with pytest.raises(OutputError):
        write_text(Path("/"), "x")


def test_a_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "file" / "out.json", "x")


def test_an_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    # A superuser may write anywhere; /proc refuses even that one.
    target = folder / "a" if os.geteuid() else Path("/proc/quantlab/a")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(target, "x")
    assert names(folder) == []


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError) as caught:
        write_text(Path("/dev/full"), "x")
    assert caught.value.got == "a device, pipe or socket of that name"
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "out.json").write_text("old")
    (tmp_path / "out.json").symlink_to("real/out.json")
    write_text(tmp_path / "out.json", "new")
    assert (tmp_path / "out.json").is_symlink()
    assert (tmp_path / "real" / "out.json").read_text() == "new"


def test_the_longest_legal_name(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 255), "x")
    assert names(tmp_path) == ["x" * 255]
    with pytest.raises(OutputError):
        write_text(tmp_path / ("x" * 256), "x")


def test_hashes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    write_bytes(tmp_path / "a", data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()
