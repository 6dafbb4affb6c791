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
from quantlab.calibrators.table import TABLE_SCHEMA, AutoChoice
from quantlab.degradation import DegradationCode
from quantlab.errors import CalibrationError, ConfigError

Plain = dict[str, Any]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.lists(st.text(TEXT, min_size=1), unique=True, max_size=4)


def choices() -> st.SearchStrategy[AutoChoice]:
    """What method ``auto`` may say of itself."""
    ratio = st.floats(allow_nan=False)
    return st.builds(
        AutoChoice,
        target=st.sampled_from(["tensorrt", "onnxruntime"]),
        n_search=st.integers(1, 96),
        n_check=st.integers(1, 192),
        sqnr_db=st.fixed_dictionaries(dict.fromkeys(METHOD_NAMES, ratio)),
        swept_sqnr_db=ratio,
        taken=st.sampled_from(["sweep", *METHOD_NAMES]),
        picked=st.fixed_dictionaries(dict.fromkeys(METHOD_NAMES, st.integers(0, 500))),
    )


@st.composite
def tables(draw: st.DrawFn) -> CalibrationTable:
    entries = []
    for name in draw(NAMES):
        low, high = sorted(draw(st.tuples(FINITE, FINITE)))
        chosen = tensor_range(
            low,
            high,
            clipped_fraction=draw(st.none() | st.floats(0, 1)),
            sqnr_db=draw(st.none() | st.floats(allow_nan=False)),
            fallback=draw(st.none() | st.text(TEXT)),
            picked=draw(st.none() | st.sampled_from(METHOD_NAMES)),
        )
        values = {
            "count": draw(st.integers(0, 2**60)),
            "zero_fraction": draw(st.none() | st.floats(0, 1)),
            "kind": draw(st.sampled_from(["", "constant", "discrete", "sparse", "one-sided"])),
            "non_finite_sample": draw(st.none() | st.text(TEXT)),
            "absent_samples": draw(st.integers(0, 2**60)),
        }
        entries.append(entry(name, chosen, minimum=low, maximum=high, **values))
    made = table(*entries, method=draw(st.sampled_from(METHOD_NAMES)))
    return dataclasses.replace(made, tensors=tuple(entries), auto=draw(st.none() | choices()))


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
    assert document["schema"] == TABLE_SCHEMA == "quantlab.calibration/2"


def _first(document: Plain) -> Plain:
    return document["tensors"][0]["ranges"]["int8-symmetric"]["mse"]


TAMPERING: dict[str, Callable[[Plain], object]] = {
    "nan bound": lambda d: _first(d).update(low="nan"),
    "infinite bound": lambda d: _first(d).update(high="inf"),
    "low above high": lambda d: _first(d).update(low=2.0),
    "bound is text": lambda d: _first(d).update(high="1"),
    "tensor twice": lambda d: d["tensors"].append(d["tensors"][0]),
    "unknown scheme": lambda d: d["tensors"][0]["ranges"].update(int4={}),
    "no scheme": lambda d: d["tensors"][0]["ranges"].clear(),
    "method missing": lambda d: [by_method.pop("mse") for by_method in d["tensors"][0]["ranges"].values()],
    "imported method": lambda d: d.update(method="imported"),
    "unknown method": lambda d: d.update(method="best"),
    "unknown key": lambda d: d.update(extra=1),
    "unknown range key": lambda d: _first(d).update(amax=1.0),
    "key missing": lambda d: d.pop("provenance"),
    "older schema": lambda d: d.update(schema="quantlab.calibration/1"),
    "newer schema": lambda d: d.update(schema="quantlab.calibration/3"),
    "schema missing": lambda d: d.pop("schema"),
    "count is fractional": lambda d: d["tensors"][0].update(count=1.5),
    "tensors is a table": lambda d: d.update(tensors={}),
    "auto is empty": lambda d: d.update(auto={}),
    "picked is a number": lambda d: _first(d).update(picked=3),
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


def test_a_table_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    document = json.loads(table().to_json())
    path.write_text(json.dumps(document | {"schema": "quantlab.calibration/1"}))
    with pytest.raises(CalibrationError, match="another schema") as caught:
        CalibrationTable.load(path)
    assert caught.value.got == "'quantlab.calibration/1'"
    assert caught.value.expected == f"'{TABLE_SCHEMA}'"
    assert "again" in (caught.value.hint or "")


def _chosen(target_scheme: str = "int8-symmetric") -> CalibrationTable:
    """A table as method ``auto`` leaves it: ranges of its own for one scheme only."""
    made = entry()
    auto = dataclasses.replace(tensor_range(-0.5, 0.5), picked="minmax")
    ranges = {**made.ranges, target_scheme: {**made.ranges[target_scheme], "auto": auto}}
    return dataclasses.replace(table(dataclasses.replace(made, ranges=ranges)), method="auto")


def test_auto_choice_round_trip(tmp_path: Path) -> None:
    evidence = AutoChoice(
        target="tensorrt",
        n_search=96,
        n_check=192,
        sqnr_db={"minmax": 20.5, "percentile": -math.inf, "entropy": 21.25, "mse": 23.0},
        swept_sqnr_db=24.0,
        taken="sweep",
        picked={"minmax": 1, "percentile": 0, "entropy": 0, "mse": 0},
    )
    made = dataclasses.replace(_chosen(), auto=evidence)
    path = tmp_path / "calibration.json"
    path.write_text(made.to_json())
    loaded = CalibrationTable.load(path)
    assert loaded == made
    assert loaded.auto == evidence
    assert loaded.tensors[0].ranges["int8-symmetric"]["auto"].picked == "minmax"
    assert loaded.sha256 == made.sha256 != dataclasses.replace(made, auto=None).sha256


def test_range_of_is_the_range_of_the_tables_method() -> None:
    by_method = {name: tensor_range(-i, i) for i, name in enumerate(METHOD_NAMES, start=1)}
    made = dataclasses.replace(entry(), ranges={"int8-symmetric": by_method, "uint8-affine": by_method})
    for name in METHOD_NAMES:
        for scheme in SCHEMES:
            assert table(made, method=name).range_of(made, scheme) == by_method[name]


def test_range_of_another_target_names_what_is_there() -> None:
    made = _chosen("uint8-affine")
    assert made.range_of(made.tensors[0], "uint8-affine").high == 0.5
    with pytest.raises(ConfigError, match="no auto range of tensor 'x' for int8-symmetric") as caught:
        made.range_of(made.tensors[0], "int8-symmetric")
    assert caught.value.got == "minmax, percentile, entropy, mse"
    assert "--target" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="no auto range of tensor 'x' for int4") as caught:
        made.range_of(made.tensors[0], "int4")
    assert caught.value.got == "no ranges for int4"


def test_a_method_that_a_tensor_lacks_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match="no auto range of tensor 'x'") as caught:
        table().with_method("auto")
    assert caught.value.expected == "entropy, minmax, mse, percentile"


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
        ratios = {method: found.sqnr_db for method, found in by_method.items() if found.sqnr_db is not None}
        assert set(ratios) == set(METHOD_NAMES)
        best = max(ratios.values())
        assert ratios["mse"] >= best - 0.05, "no method has a better expected SQNR"


def test_nothing_finite_names_the_tensor() -> None:
    with pytest.raises(CalibrationError, match="tensor 'conv1' has no finite value") as caught:
        measure_tensor("conv1", histogram_of([math.nan, math.inf]), range_methods())
    assert "2 NaN or infinite" in str(caught.value)


def test_the_sample_with_nan_is_named() -> None:
    with pytest.raises(CalibrationError, match="tensor 'conv1' has no finite value") as caught:
        measure_tensor("conv1", histogram_of([math.nan]), range_methods(), non_finite_sample="0/7.png")
    assert "first on sample '0/7.png'" in str(caught.value)
    (found,) = table_degradations(
        [entry("a", non_finite=3, non_finite_sample="1.png"), entry("b", non_finite=1, non_finite_sample="0.png")],
        "mse",
    )
    assert "'0.png'" in found.message
    assert "1.png" not in found.message
    assert found.subjects == ("a", "b")


def test_degradations() -> None:
    fallen = entry("fallen", tensor_range(fallback="only 3 values"))
    constant = entry("constant", tensor_range(fallback="constant"), minimum=1.0, maximum=1.0)
    broken = entry("broken", non_finite=3)
    absent = entry("absent", absent_samples=2)
    found = {d.code: d.subjects for d in table_degradations([entry("fine"), fallen, constant, broken, absent], "mse")}
    assert found == {
        DegradationCode.METHOD_FALLBACK: ("fallen",),
        DegradationCode.NON_FINITE_VALUES: ("broken",),
        DegradationCode.ABSENT_TENSORS: ("absent",),
    }
    assert table_degradations([entry("fine"), constant], "mse") == ()
