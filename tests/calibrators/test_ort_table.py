"""Tables of ONNX Runtime's TensorRT provider, against what ONNX Runtime itself writes and reads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.calibrators.ort_table import OrtForm, OrtTable
from quantlab.errors import CalibrationError

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1).filter(
        lambda name: not name.lstrip().startswith("{")
    ),
    st.sampled_from(["a b", "a: b", "t ", " ", "(Unnamed Layer* 3) [Shuffle]_output", "图/卷积:0", "{x}", '"', "\\"]),
)
AMAX = st.floats(0, 1e38).map(abs)
ROWS = st.dictionaries(NAMES, AMAX, min_size=1, max_size=6)


@pytest.mark.parametrize("form", OrtForm)
@given(rows=ROWS)
def test_parse_gives_what_was_rendered(form: OrtForm, rows: dict[str, float]) -> None:
    table = OrtTable.parse(OrtTable(form, rows).render(), "t")
    assert (table.form, dict(table.amax)) == (form, rows)


@given(rows=ROWS)
def test_onnxruntime_reads_our_flatbuffers(rows: dict[str, float]) -> None:
    from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable

    table = TrtTable.GetRootAs(OrtTable(OrtForm.FLATBUFFERS, rows).render(), 0)
    pairs = [table.Dict(i) for i in range(table.DictLength())]
    assert {pair.Key().decode(): float(pair.Value()) for pair in pairs} == rows


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files of ONNX Runtime, of tensors that are not symmetric."""
    from onnxruntime.quantization import write_calibration_table
    from onnxruntime.quantization.calibrate import TensorData

    folder = tmp_path_factory.mktemp("ort")
    write_calibration_table(
        {
            "a b": TensorData(lowest=np.float32(-5), highest=np.float32(1)),
            "c:0": TensorData(lowest=np.array([0.0], np.float32), highest=np.array([2.5], np.float32)),
        },
        str(folder),
    )
    return folder


@pytest.mark.parametrize("name", ["calibration.flatbuffers", "calibration.cache"])
def test_what_onnxruntime_wrote_is_the_higher_bound(written: Path, name: str) -> None:
    """Its ``max(highest, lowest)`` is 1 for a tensor in [-5, 1]; there is no way to tell from these two files."""
    assert OrtTable.parse((written / name).read_bytes(), name).amax == {"a b": 1.0, "c:0": 2.5}


def test_json_has_both_bounds(written: Path) -> None:
    assert OrtTable.parse((written / "calibration.json").read_bytes(), "j").amax == {"a b": 5.0, "c:0": 2.5}


def test_saved_tensors_data(tmp_path: Path) -> None:
    from onnxruntime.quantization import save_tensors_data
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    data = {"x": TensorData(lowest=np.float32(-3), highest=np.float32(2))}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), tmp_path / "t.json")
    assert OrtTable.parse((tmp_path / "t.json").read_bytes(), "j").amax == {"x": 3.0}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x -1.0\n", "amax of tensor 'x' is unusable.*(?s:.)*max\\(highest, lowest\\)"),
        (b"x nan\n", "unusable"),
        (b"x inf\n", "unusable"),
        (b"x 1e300\n", "unusable"),
        (b"x\n", "line 1 is malformed"),
        (b"x 1\ny one\n", "line 2 is malformed"),
        (b"x 1_0\n", "line 1 is malformed"),
        (b"x 1\nx 2\n", "gives tensor 'x' twice"),
        (b"", "holds no tensor"),
        (b"\xff 1\n", "not UTF-8"),
        (b"{", "line 1 is malformed"),
        (b'{"', "not valid JSON"),
        (b"{}", "holds no tensor"),
        (b'{"x": 1}', "'x' has no bounds"),
        (b'{"x": {"lowest": true, "highest": 1}}', "'x' has no bounds"),
        (b'{"x": {"lowest": 2, "highest": 1}}', "impossible bounds"),
        (b'{"x": {"lowest": NaN, "highest": 1}}', "impossible bounds"),
        (b'{"x": {"lowest": 0, "highest": 1}, "x": {"lowest": 0, "highest": 2}}', "twice"),
        (b'{"x": {"lowest": 0, "highest": 1' + b"0" * 400 + b"}}", "'x' has no bounds"),
        (b"[" * 100_000, "line 1 is malformed"),
        (b"{" + b'"a":{' * 100_000, "not valid JSON"),
        (b"\0" * 40, "not a calibration table"),
        (b"\x04\0\0\0" + b"\xff" * 40, "not a calibration table"),
    ],
    ids=range(23),
)
def test_refusals(data: bytes, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        OrtTable.parse(data, "t")


@given(st.binary() | st.binary().map(lambda data: b"\x0c\0\0\0" + data), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_are_a_table_or_an_error(data: bytes, at: int, byte: int) -> None:
    damaged = bytearray(OrtTable(OrtForm.FLATBUFFERS, {"a": 1.0, "bb": 2.0, "c": 0.5}).render())
    damaged[at % len(damaged)] = byte
    for candidate in (data, bytes(damaged)):
        try:
            table = OrtTable.parse(candidate, "t")
        except CalibrationError as error:
            assert str(error).startswith("t")
        else:
            assert all(math.isfinite(amax) and amax >= 0 for amax in table.amax.values())


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\ud800"])
@pytest.mark.parametrize("form", OrtForm)
def test_names_that_no_form_can_hold(form: OrtForm, name: str) -> None:
    with pytest.raises(CalibrationError, match="cannot stand"):
        OrtTable(form, {name: 1.0}).render()
