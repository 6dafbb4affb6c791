"""Outputs that are either whole or absent, and content hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from quantlab.errors import OutputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success rename it to ``path``, otherwise delete it.

    Parent folders are made, and removed again if nothing comes to lie in them. The file's data reaches the disk before
    the rename. A symbolic link is kept: the file that it points to is replaced.

    Raises:
        OutputError: If the folder cannot be made or written to, the disk is full, or ``path`` is a folder or a device.
    """
    target = _target(path)
    # The name is cut, or a long one that is legal itself would be too long with the ending.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    made: list[Path] = []
    try:
        made += [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            for folder in made:  # the innermost first
                folder.rmdir()


def _target(path: Path) -> Path:
    """The file to replace, links followed.

    Raises:
        OutputError: For what a rename cannot replace, or would destroy (root would make a file of /dev/null).
    """
    found = None
    try:
        target = path.resolve() if path.is_symlink() else path
        if target.is_dir() or not target.name:
            found = "a folder of that name"
        elif target.exists() and not target.is_file():
            found = "a device, pipe or socket of that name"
    except OSError as error:
        raise _unwritable(path, error) from error
    if found is not None:
        raise OutputError(f"cannot write {path}", got=found, expected="a file name", hint="name another output with -o")
    return target


def _unwritable(path: Path, error: OSError) -> OutputError:
    hint = "check permissions and free space, or use -o"
    return OutputError(f"cannot write {path}", got=error.strerror or str(error), hint=hint)


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False, too, for a name that no file can have (too long, a NUL character)."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False, too, for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be made or written to, before any work is done for it; makes nothing.

    Raises:
        OutputError: If a file is in the way, the name is impossible, or writing there is not permitted.
    """
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not place.is_dir():
        got, expected = f"{place} is a file", "a folder, or a name that is free"
        raise OutputError(f"cannot write to {folder}", got=got, expected=expected, hint="name another output with -o")
    if not os.access(place, os.W_OK | os.X_OK):
        hint = "check permissions, or name another output with -o"
        raise OutputError(f"cannot write to {folder}", got=f"no permission to write in {place}", hint=hint)


def remove_file(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        OutputError: If it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` as a whole or not at all.

    Raises:
        OutputError: As for `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` as a whole or not at all.

    Raises:
        OutputError: As for `replacing`.
    """
    write_bytes(path, text.encode("utf-8"))


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
