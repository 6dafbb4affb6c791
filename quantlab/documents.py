"""Reading and writing of JSON and TOML documents with a schema name, and key checks with near matches."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quantlab.errors import ConfigError, QuantlabError
from quantlab.files import sha256_bytes

MAX_DOCUMENT_BYTES = 512 * 2**20


def near_match(name: str, choices: Collection[str]) -> str | None:
    """The choice most like ``name``, if any is close."""
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def check_keys(table: Mapping[str, object], allowed: Collection[str], where: str) -> None:
    """Refuse keys that are not known.

    Raises:
        ConfigError: Naming the key, the place and the nearest known key.
    """
    for key in table:
        if key not in allowed:
            near = near_match(key, allowed)
            raise ConfigError(
                f"unknown key {key!r} in {where}",
                expected="one of " + ", ".join(sorted(allowed)),
                hint=f"did you mean {near!r}?" if near else None,
            )


def read_file(path: Path, error: type[QuantlabError], what: str) -> bytes:
    """Read a whole document file.

    Raises:
        QuantlabError: Of type ``error``, if the file is missing, a folder, unreadable or absurdly large.
    """
    try:
        with path.open("rb") as file:
            # Not stat: a pipe has no size, and a device has no end.
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        near = near_match(path.name, _names_in(path.parent))
        hint = f"did you mean {path.parent / near}?" if near else "check the path"
        raise error(f"{what} {path} does not exist", hint=hint) from None
    except IsADirectoryError:
        raise error(f"{what} {path} is a folder", expected="a file") from None
    except (OSError, ValueError) as cause:  # ValueError: a NUL character in the name
        got = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise error(f"cannot read {what} {str(path)!r}", got=got) from cause
    if len(data) > MAX_DOCUMENT_BYTES:
        raise error(f"{what} {path} is too large", expected=f"at most {MAX_DOCUMENT_BYTES:,} bytes")
    return data


def _names_in(folder: Path) -> list[str]:
    """Names for a hint; none if the folder cannot be read, for the missing file is the news."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: If it is missing, not UTF-8 or not TOML.
    """
    data = read_file(path, ConfigError, what)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as cause:
        raise ConfigError(f"{what} {path} is not UTF-8 text", got=str(cause)) from cause
    except tomllib.TOMLDecodeError as cause:
        raise ConfigError(f"{what} {path} is not valid TOML", got=str(cause)) from cause


def read_json(path: Path, schema: str, error: type[QuantlabError], what: str) -> dict[str, Any]:
    """Read a JSON document whose ``schema`` key must equal ``schema``.

    Raises:
        QuantlabError: Of type ``error``, if it is missing, not JSON, not an object, or of another schema.
    """
    data = read_file(path, error, what)
    try:
        document = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise error(f"{what} {path} is not valid JSON", got=str(cause) or type(cause).__name__) from cause
    if not isinstance(document, dict):
        raise error(f"{what} {path} is not a JSON object", got=type(document).__name__)
    if document.get("schema") != schema:
        raise error(
            f"{what} {path} has another schema",
            got=repr(document.get("schema")),
            expected=repr(schema),
            hint="make it again with this version of quantlab",
        )
    return document


def dump_json(document: Mapping[str, Any]) -> str:
    """Indented JSON with a final newline; NaN and infinities are refused."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def canonical_sha256(document: Mapping[str, Any]) -> str:
    """SHA-256 of the document's canonical form: sorted keys, no spaces."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return sha256_bytes(text.encode("utf-8"))
