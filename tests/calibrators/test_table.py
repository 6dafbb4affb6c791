"""calibration.json: what goes in comes out, and what was tampered with stays out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrator_data import CONTINUOUS, entry, histogram_of, table, tensor_range
from hypothesis import given
from hypothesis import strategies as st

from quantlab.calibrators import (
    METHOD_NAMES,
    SCHEMES,
    CalibrationTable,
    clipped_fraction,
    measure_tensor,
    range_methods,
    sqnr_db,
)
from quantlab.calibrators.measure import table_degradations
from quantlab.degradation import DegradationCode
from quantlab.errors import CalibrationError, ConfigError

Plain = dict[str, Any]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.lists(st.text(TEXT, min_size=1), unique=True, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> CalibrationTable:
    entries = []
    for name in draw(NAMES):
        low, high = sorted(draw(st.tuples(FINITE, FINITE)))
        chosen = tensor_range(
            low,
            high,
            clipped_fraction=draw(st.floats(0, 1)),
            sqnr_db=draw(st.floats(allow_nan=False)),
            fallback=draw(st.none() | st.text(TEXT)),
        )
        entries.append(entry(name, chosen, minimum=low, maximum=high, count=draw(st.integers(1, 2**60))))
    made = table(*entries, method=draw(st.sampled_from(METHOD_NAMES)))
    return dataclasses.replace(made, tensors=tuple(entries))


@given(made=tables())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, made: CalibrationTable) -> None:
    path = tmp_path_factory.mktemp("table") / "calibration.json"
    path.write_text(made.to_json(), encoding="utf-8")
    loaded = CalibrationTable.load(path)
    assert loaded == made
    assert loaded.sha256 == made.sha256
    assert loaded.to_json() == made.to_json()


def test_the_text_is_strict_json() -> None:
    made = table(entry(chosen=tensor_range(sqnr_db=math.inf)))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(made.to_json(), parse_constant=refuse)
    assert document["schema"] == "quantlab.calibration/1"


def _first(document: Plain) -> Plain:
    return document["tensors"][0]["ranges"]["int8-symmetric"]["mse"]


TAMPERING: dict[str, Callable[[Plain], object]] = {
    "nan bound": lambda d: _first(d).update(low="nan"),
    "infinite bound": lambda d: _first(d).update(high="inf"),
    "low above high": lambda d: _first(d).update(low=2.0),
    "bound is text": lambda d: _first(d).update(high="1"),
    "tensor twice": lambda d: d["tensors"].append(d["tensors"][0]),
    "unknown scheme": lambda d: d["tensors"][0]["ranges"].update(int4={}),
    "scheme missing": lambda d: d["tensors"][0]["ranges"].pop("uint8-affine"),
    "method missing": lambda d: d["tensors"][0]["ranges"]["int8-symmetric"].pop("mse"),
    "unknown method": lambda d: d.update(method="best"),
    "unknown key": lambda d: d.update(extra=1),
    "unknown range key": lambda d: _first(d).update(amax=1.0),
    "key missing": lambda d: d.pop("provenance"),
    "other schema": lambda d: d.update(schema="quantlab.calibration/2"),
    "schema missing": lambda d: d.pop("schema"),
    "count is fractional": lambda d: d["tensors"][0].update(count=1.5),
    "tensors is a table": lambda d: d.update(tensors={}),
    "unknown degradation": lambda d: d["degradations"][0].update(code="bad-luck"),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampered_tables_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "calibration.json"
    document = json.loads(table().to_json())
    TAMPERING[name](document)
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match=r"calibration\.json"):
        CalibrationTable.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calibration.json").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"calibration\.json"):
        CalibrationTable.load(tmp_path / "calibration.json")


def test_messages_name_the_tensor_and_both_values(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    document = json.loads(table(entry("conv1")).to_json())
    _first(document).update(low=2.0, high=1.0)
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match="'conv1' has an impossible mse range") as caught:
        CalibrationTable.load(path)
    assert "[2.0, 1.0]" in str(caught.value)


def test_with_method() -> None:
    made = table(method="mse")
    other = made.with_method("entropy")
    assert (other.method, made.method) == ("entropy", "mse")
    assert other.tensors == made.tensors
    assert other.sha256 != made.sha256
    with pytest.raises(ConfigError, match="no range method 'entropi'"):
        made.with_method("entropi")


def test_entries_are_by_name() -> None:
    assert set(table(entry("a"), entry("b")).entries()) == {"a", "b"}


@pytest.mark.parametrize("name", ["laplace", "relu", "shifted"])
def test_measure_tensor(name: str) -> None:
    """Every method and scheme is there, and says of its range what the error formulas say."""
    values = CONTINUOUS[name]
    histogram = histogram_of(np.append(values, np.float32(np.nan)))
    measured = measure_tensor("t", histogram, range_methods())
    assert (measured.count, measured.non_finite) == (values.size, 1)
    assert (measured.minimum, measured.maximum) == (float(values.min()), float(values.max()))
    assert measured.zero_fraction == np.count_nonzero(values == 0) / values.size
    assert list(measured.ranges) == list(SCHEMES)
    for scheme, by_method in measured.ranges.items():
        assert tuple(by_method) == METHOD_NAMES
        for method in range_methods():
            got = by_method[method.name]
            chosen = method.choose(histogram.distribution(), SCHEMES[scheme])
            assert (got.low, got.high, got.fallback) == (chosen.low, chosen.high, chosen.fallback)
            assert got.clipped_fraction == clipped_fraction(histogram.distribution(), got.low, got.high)
            assert got.sqnr_db == sqnr_db(histogram.distribution(), got.low, got.high, SCHEMES[scheme])
        best = max(found.sqnr_db for found in by_method.values())
        assert by_method["mse"].sqnr_db >= best - 0.05, "no method has a better expected SQNR"


def test_nothing_finite_names_the_tensor() -> None:
    with pytest.raises(CalibrationError, match="tensor 'conv1' has no finite value") as caught:
        measure_tensor("conv1", histogram_of([math.nan, math.inf]), range_methods())
    assert "2 NaN or infinite" in str(caught.value)


def test_degradations() -> None:
    fallen = entry("fallen", tensor_range(fallback="only 3 values"))
    constant = entry("constant", tensor_range(fallback="constant"), minimum=1.0, maximum=1.0)
    broken = entry("broken", non_finite=3)
    found = {d.code: d.subjects for d in table_degradations([entry("fine"), fallen, constant, broken], "mse")}
    assert found == {DegradationCode.METHOD_FALLBACK: ("fallen",), DegradationCode.NON_FINITE_VALUES: ("broken",)}
    assert table_degradations([entry("fine"), constant], "mse") == ()
