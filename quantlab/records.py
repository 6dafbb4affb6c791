"""Frozen dataclasses to and from plain JSON/TOML values, with every type checked.

One decoder serves recipes, policies, tables, sidecars and results, so that each of them refuses unknown keys
(with the nearest known one), missing keys and wrong types in the same words. Infinities and NaN, which JSON
lacks, are written as the strings ``inf``, ``-inf`` and ``nan``; dates as ``YYYY-MM-DD``. Keys are the field names with
dashes or underscores.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from quantlab.documents import check_keys, near_match
from quantlab.errors import ConfigError, QuantlabError

T = TypeVar("T")

_SPECIAL_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dt.date: "a date YYYY-MM-DD",
}


def to_plain(value: object) -> Any:
    """Turn dataclasses, enums, tuples and mappings into dicts, strings and lists for JSON; fields keep their order."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dt.date):
        return value.isoformat()
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_plain(cls: type[T], value: object, where: str, error: type[QuantlabError] = ConfigError) -> T:
    """Build the dataclass ``cls`` from plain values.

    Args:
        cls: A dataclass whose fields are str, int, float, bool, date, enums, dataclasses, ``tuple[X, ...]``, fixed
            tuples, ``Mapping[str, X]``, or a union of one of these with None.
        value: What a JSON or TOML parser gave.
        where: Name of the place for messages.
        error: Class of the error to raise.

    Raises:
        QuantlabError: Of type ``error``, naming the key and what was expected.
    """
    result = _decode(cls, value, where, error)
    return typing.cast(T, result)


def _fail(
    error: type[QuantlabError], where: str, value: object, expected: str, hint: str | None = None
) -> QuantlabError:
    shown = repr(value)
    got = shown if len(shown) <= 80 else shown[:77] + "..."
    return error(f"{where} has a wrong value", got=got, expected=expected, hint=hint)


def _decode(kind: Any, value: object, where: str, error: type[QuantlabError]) -> object:
    origin = get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        members = get_args(kind)
        if value is None and type(None) in members:
            return None
        return _decode(next(member for member in members if member is not type(None)), value, where, error)
    if origin is tuple:
        return _decode_tuple(get_args(kind), value, where, error)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _fail(error, where, value, "a table")
        return {str(key): _decode(get_args(kind)[1], item, f"{where}.{key}", error) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where, error)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _decode_enum(kind, value, where, error)
    return _decode_scalar(kind, value, where, error)


def _decode_enum(kind: type[Enum], value: object, where: str, error: type[QuantlabError]) -> Enum:
    try:
        return kind(value)
    except ValueError:
        choices = [str(member.value) for member in kind]
        near = near_match(value, choices) if isinstance(value, str) else None
        hint = f"did you mean {near!r}?" if near else None
        raise _fail(error, where, value, "one of " + ", ".join(choices), hint) from None


def _decode_scalar(kind: Any, value: object, where: str, error: type[QuantlabError]) -> object:
    if kind is Any or kind is object:
        return value
    decoded: object = None
    if kind is float:
        decoded = _as_float(value)
    elif kind is int:
        decoded = value if isinstance(value, int) and not isinstance(value, bool) else None
    elif kind is dt.date:
        decoded = _as_date(value)
    elif isinstance(value, str) and kind is str and not _is_text(value):
        raise _fail(error, where, value, "a string that is text, without lone surrogates")
    elif isinstance(value, kind):
        decoded = value
    if decoded is None:
        raise _fail(error, where, value, _WORDS.get(kind, str(kind)))
    return decoded


def _is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8; JSON can escape halves of characters that cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _as_float(value: object) -> float | None:
    if isinstance(value, str):
        return _SPECIAL_FLOATS.get(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def _as_date(value: object) -> dt.date | None:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    if isinstance(value, str):
        try:
            return dt.date.fromisoformat(value)
        except ValueError:
            return None
    return None


def _decode_tuple(
    members: tuple[Any, ...], value: object, where: str, error: type[QuantlabError]
) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise _fail(error, where, value, "a list")
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise _fail(error, where, value, f"a list of {len(members)}")
    return tuple(
        _decode(kind, item, f"{where}[{i}]", error) for i, (kind, item) in enumerate(zip(members, value, strict=True))
    )


def _decode_dataclass(cls: type, value: object, where: str, error: type[QuantlabError]) -> object:
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if not isinstance(value, Mapping):
        raise _fail(error, where, value, "a table with the keys " + ", ".join(fields))
    given = {str(key).replace("-", "_"): item for key, item in value.items()}
    if len(given) < len(value):
        raise error(f"{where} has a key twice, with a dash and with an underscore", got=", ".join(map(str, value)))
    try:
        check_keys(given, fields, where)
    except ConfigError as cause:
        raise error(cause.what, expected=cause.expected, hint=cause.hint) from None
    hints = _hints(cls)
    written = {str(key).replace("-", "_"): key for key in value}  # messages name keys as the document does
    arguments = {}
    for name, field in fields.items():
        if name in given:
            arguments[name] = _decode(hints[name], given[name], f"{where}.{written[name]}", error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{where} lacks the key {name!r}", expected=", ".join(fields))
    return cls(**arguments)
