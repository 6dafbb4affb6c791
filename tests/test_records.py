"""Frozen records to plain values and back, and the words in which wrong values are refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Mapping
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.documents import canonical_sha256, dump_json
from quantlab.errors import ConfigError, DataError
from quantlab.records import from_plain, to_plain


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    name: str
    size: int = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Outer:
    text: str
    number: float
    whole: int
    truth: bool
    day: dt.date
    colour: Colour
    inner: Inner
    pair: tuple[int, str]
    several: tuple[Inner, ...] = ()
    table: Mapping[str, float] = dataclasses.field(default_factory=dict)
    maybe: float | None = None
    anything: Mapping[str, object] = dataclasses.field(default_factory=dict)


inners = st.builds(Inner, st.text(), st.integers())
outers = st.builds(
    Outer,
    text=st.text(),
    number=st.floats(allow_nan=False),
    whole=st.integers(),
    truth=st.booleans(),
    day=st.dates(),
    colour=st.sampled_from(Colour),
    inner=inners,
    pair=st.tuples(st.integers(), st.text()),
    several=st.lists(inners, max_size=3).map(tuple),
    table=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    maybe=st.none() | st.floats(allow_nan=False),
    anything=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3),
)
GOOD = {
    "text": "a", "number": 1.5, "whole": 2, "truth": True, "day": dt.date(2027, 1, 31), "colour": "red",
    "inner": {"name": "b"}, "pair": [1, "c"],
}  # fmt: skip


@given(outers)
def test_round_trip_through_json(record: Outer) -> None:
    text = dump_json(to_plain(record))
    again = from_plain(Outer, json.loads(text), "record")
    assert again == record
    assert dump_json(to_plain(again)) == text


@given(outers)
def test_the_hash_does_not_depend_on_the_order_of_keys(record: Outer) -> None:
    plain = to_plain(record)
    assert canonical_sha256(dict(reversed(plain.items()))) == canonical_sha256(plain)


@pytest.mark.parametrize(("value", "written"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_special_floats(value: float, written: str) -> None:
    record = from_plain(Outer, GOOD | {"number": written}, "record")
    assert repr(record.number) == repr(value)
    assert to_plain(record)["number"] == written


def test_defaults_dashes_and_whole_numbers_for_floats() -> None:
    record = from_plain(Outer, GOOD | {"number": 3, "several": [{"name": "x", "size": 1}]}, "record")
    assert isinstance(record.number, float)
    assert record.inner == Inner("b", 3)
    assert from_plain(Dashed, {"two-words": 1}, "record") == from_plain(Dashed, {"two_words": 1}, "record")


@dataclasses.dataclass(frozen=True, slots=True)
class Dashed:
    two_words: int


WRONG = [
    ("text", 1, "a string"),
    ("number", "1.5", "a number"),
    ("number", True, "a number"),
    ("number", 10**400, "a number"),
    ("whole", 1.0, "a whole number"),
    ("whole", True, "a whole number"),
    ("truth", 1, "true or false"),
    ("day", "31.1.2027", "a date YYYY-MM-DD"),
    ("day", dt.datetime(2027, 1, 31), "a date YYYY-MM-DD"),
    ("day", 20270131, "a date YYYY-MM-DD"),
    ("colour", "dark_blue", "did you mean 'dark-blue'"),
    ("colour", ["red"], "one of red, dark-blue"),
    ("inner", 3, "a table"),
    ("inner", {}, "lacks the key 'name'"),
    ("inner", {"name": "b", "siez": 3}, "did you mean 'size'"),
    ("pair", [1], "a list of 2"),
    ("pair", "1c", "a list"),
    ("several", [{"name": "a"}, {"name": 2}], "several[1].name"),
    ("table", {"x": "y"}, "table.x"),
    ("table", [1], "a table"),
    ("maybe", "1", "a number"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG)
def test_wrong_values(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain(Outer, GOOD | {key: value}, "record")
    assert said in str(caught.value)
    assert f"record.{key}" in str(caught.value)


def test_the_error_is_of_the_asked_class() -> None:
    for value in (None, {"text": 1}, {"txet": 1}, GOOD | {"day": "x"}):
        with pytest.raises(DataError):
            from_plain(Outer, value, "file", DataError)


def test_a_key_in_two_spellings_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        from_plain(Dashed, {"two-words": 1, "two_words": 2}, "record")


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain(Outer, GOOD | {"whole": "x" * 1000}, "record")
    assert len(str(caught.value)) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), json_values))
def test_no_value_escapes_as_another_exception(wrong: dict[str, object]) -> None:
    try:
        from_plain(Outer, GOOD | wrong, "record")
    except ConfigError as error:
        assert error.what
