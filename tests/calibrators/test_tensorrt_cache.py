"""TensorRT's calibration cache, against the format that TensorRT itself writes."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from calibrator_data import entry, table, tensor_range
from hypothesis import given
from hypothesis import strategies as st

from quantlab.calibrators import CalibrationCache
from quantlab.calibrators.cache_text import MAX_CACHE_BYTES, read_cache_text
from quantlab.calibrators.tensorrt_cache import Algorithm, version_number, version_text
from quantlab.errors import CalibrationError, ConfigError

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1),
    st.sampled_from(
        ["a: b", "a: ", ": ", ":", " ", "x: 3c010a14", "(Unnamed Layer* 3) [Convolution]_output", "图/卷积:0"]
    ),
)
SCALES = st.floats(0, float(np.finfo(np.float32).max), width=32)


@given(
    version=st.integers(100, 9_999_999),
    algorithm=st.from_regex(r"[A-Za-z0-9]+", fullmatch=True),
    scales=st.dictionaries(NAMES, SCALES, max_size=6),
)
def test_parse_gives_what_was_rendered(version: int, algorithm: str, scales: dict[str, float]) -> None:
    cache = CalibrationCache(version, algorithm, scales)
    parsed = CalibrationCache.parse(cache.render(), "test")
    assert parsed == cache
    assert list(parsed.scales) == list(scales), "in file order"


class TestFormat:
    """NVIDIA's documentation and forum posts show caches of these forms."""

    TEXT = "TRT-8601-EntropyCalibration2\nimage: 3c010a14\n(Unnamed Layer* 0) [Convolution]_output: 4000889d\nzero: 0\n"

    def test_documented_examples(self) -> None:
        cache = CalibrationCache.parse(self.TEXT, "test")
        assert (cache.version, cache.algorithm) == (8601, "EntropyCalibration2")
        scales = list(cache.scales.values())
        assert scales == [struct.unpack(">f", bytes.fromhex(text))[0] for text in ("3c010a14", "4000889d", "00000000")]
        assert scales[0] * 127 == pytest.approx(1.00024, abs=5e-6)
        assert scales[1] == pytest.approx(2.008338, abs=5e-7)

    def test_hexadecimal_is_not_padded(self) -> None:
        assert CalibrationCache.parse(self.TEXT, "test").render() == self.TEXT
        tiny = CalibrationCache(8601, "A", {"x": 1.401298464324817e-45})
        assert tiny.render() == "TRT-8601-A\nx: 1\n"

    @pytest.mark.parametrize("bits", ["3C010A14", "3c010A14"])
    def test_either_case_is_read(self, bits: str) -> None:
        assert CalibrationCache.parse(f"TRT-8601-A\nx: {bits}\n", "test").scales["x"] * 127 == pytest.approx(
            1.00024, abs=5e-6
        )

    def test_last_line_may_lack_its_end(self) -> None:
        assert CalibrationCache.parse("TRT-8601-A\nx: 3c010a14", "test").scales.keys() == {"x"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8.6.1", 8601),
        ("10.14.1", 101401),
        ("10.16.0", 101600),
        ("7.1.3", 7103),
        ("10.0.1.6", 100001),
        ("8.5.10", 8510),
    ],
)
def test_version_number(text: str, number: int) -> None:
    """NV_TENSORRT_VERSION of NvInferVersion.h, whose formula changed with TensorRT 10."""
    assert version_number(text) == number


@pytest.mark.parametrize(
    ("number", "text"),
    [(8601, "8.6.1"), (101401, "10.14.1"), (7103, "7.1.3"), (100001, "10.0.1"), (9300, "9.3.0"), (5105, "5.1.5"),
     (999, None), (10000, None), (99999, None), (1_000_000, None)],
)  # fmt: skip
def test_version_text(number: int, text: str | None) -> None:
    assert version_text(number) == text
    assert text is None or version_number(text) == number


@given(st.integers(1, 20), st.integers(0, 9), st.integers(0, 99))
def test_version_and_back(major: int, minor: int, patch: int) -> None:
    text = f"{major}.{minor}.{patch}"
    assert version_text(version_number(text)) == text


@pytest.mark.parametrize("text", ["", "10", "10.16", "v10.16.0", "10.16.0rc1", "ten", "8.600.1", "0.1.2", "١.2.3"])
def test_no_version(text: str) -> None:
    with pytest.raises(CalibrationError, match="not a TensorRT version"):
        version_number(text)


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "x:3c010a14",
        "x: ",
        ": 3c010a14",
        "x: 3c010a1g",
        "x: 13c010a14",
        "x: 0x3c0",
        "x: -1",
        "",
        "x: 3c010a14 ",
        "x: 1\r",
    ],
)
def test_malformed_lines_are_refused_by_number(line: str) -> None:
    with pytest.raises(CalibrationError, match=r"my\.calib line 3 is malformed") as caught:
        CalibrationCache.parse(f"TRT-8601-A\ny: 1\n{line}\nz: 1\n", "my.calib")
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("bits", ["7f800000", "7fc00000", "ff800000", "bc010a14", "ffffffff"])
def test_unusable_scales_are_refused(bits: str) -> None:
    with pytest.raises(CalibrationError, match="line 2: scale of 'x' is unusable"):
        CalibrationCache.parse(f"TRT-8601-A\nx: {bits}\n", "test")


def test_repeated_tensors_are_refused() -> None:
    with pytest.raises(CalibrationError, match="line 3 repeats tensor 'x'"):
        CalibrationCache.parse("TRT-8601-A\nx: 1\nx: 1\n", "test")


@pytest.mark.parametrize(
    "text", ["", "\n", "x: 1\n", "TRT-8601\n", "TRT-86.1-A\n", " TRT-8601-A\n", "TRT-8601-A b\n", "{}"]
)
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match="not a TensorRT calibration cache"):
        CalibrationCache.parse(text, "test")


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("", 1.0),
        ("a\nb", 1.0),
        ("a\rb", 1.0),
        ("a\0b", 1.0),
        ("\ud800", 1.0),
        ("x" * 4097, 1.0),
        ("x", math.nan),
        ("x", -1.0),
        ("x", math.inf),
        ("x", 1e39),
    ],
)
def test_what_the_format_cannot_hold(name: str, scale: float) -> None:
    with pytest.raises(CalibrationError, match="tensor"):
        CalibrationCache(8601, "A", {name: scale}).render()


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "model.calib"
    cache = CalibrationCache(101600, "MinMaxCalibration", {"图": 0.5})
    path.write_text(cache.render(), encoding="utf-8")
    assert CalibrationCache.load(path) == cache
    path.write_bytes(b"TRT-8601-A\n\xff: 1\n")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        CalibrationCache.load(path)
    with pytest.raises(CalibrationError, match="does not exist"):
        CalibrationCache.load(tmp_path / "none.calib")


@pytest.mark.parametrize(
    ("method", "algorithm"),
    [("minmax", "MinMaxCalibration"), ("entropy", "EntropyCalibration2"), ("mse", "EntropyCalibration2")],
)
def test_from_table(method: str, algorithm: str) -> None:
    made = table(
        entry("a", tensor_range(-2.54, 2.54)),
        entry("zero", tensor_range(0.0, 0.0), minimum=0.0, maximum=0.0),
        method=method,
    )
    cache = CalibrationCache.from_table(made, "8.6.1")
    assert (cache.version, cache.algorithm) == (8601, algorithm)
    assert cache.scales == {"a": float(np.float32(2.54 / 127)), "zero": 0.0}
    assert CalibrationCache.parse(cache.render(), "test") == cache


@pytest.mark.parametrize("algorithm", Algorithm)
def test_algorithm_by_either_name(algorithm: Algorithm) -> None:
    assert Algorithm.of(algorithm.value) is Algorithm.of(algorithm.calibrator) is algorithm


def test_unknown_algorithm() -> None:
    with pytest.raises(ConfigError, match="no calibration algorithm 'EntropyCalibration3'") as caught:
        Algorithm.of("EntropyCalibration3")
    assert "did you mean 'EntropyCalibration" in str(caught.value)


def test_the_algorithm_may_be_given() -> None:
    cache = CalibrationCache.from_table(table(), "8.6.1", Algorithm.LEGACY)
    assert cache.render().startswith("TRT-8601-LegacyCalibration\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xef\xbb\xbfTRT-8601-A\nx: 1\n", "begins with a byte order mark"),
        (b"TRT-8601-A\r\nx: 1\r\n", "has Windows line ends"),
        (b"TRT-8601-A\r\nx: 1\r\ny: 1", "has Windows line ends"),
        (b"x: 1\ny: 2\n", "it has no header"),
        (b"TRT-8601-A\nx\0y: 1\n", "line 2: a tensor name holds a line break or a NUL"),
        (b"TRT-8601-A\n" + b"x" * 4097 + b": 1\n", "line 2: a tensor name is longer than 4096 bytes"),
        (b"TRT-8601-A\nx: 1\n\xff: 2\n", "is not UTF-8 text"),
        (b"TRT-8601-A\nx: 80000000\n", "scale of 'x' is unusable"),
        (b"x" * (MAX_CACHE_BYTES + 1), "is too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_of_bytes(data: bytes, says: str) -> None:
    with pytest.raises(CalibrationError, match=says) as caught:
        CalibrationCache.from_bytes(data, "my.calib")
    assert str(caught.value).startswith("my.calib ")


def test_headerless_caches_are_explained() -> None:
    with pytest.raises(CalibrationError, match="not a TensorRT calibration cache") as caught:
        CalibrationCache.parse("data: 3c010a14\nconv: 4000889d\n", "old.calib")
    assert "TensorRT 4 and older" in str(caught.value)
    read = read_cache_text("data: 3c010a14\nconv: 4000889d\n")
    assert [(line.number, line.tensor) for line in read.lines] == [(1, "data"), (2, "conv")], (
        "the linter reads it still"
    )


def test_everything_wrong_is_listed() -> None:
    read = read_cache_text("TRT-8601-A\nx: 1\nbad\nx: 2\ny: 7fc00000\nz: 0")
    assert [fault.rule for fault in read.faults] == [
        "no-final-newline", "malformed-line", "repeated-tensor", "unusable-scale",
    ]  # fmt: skip
    assert [line.number for line in read.lines] == [2, 4, 5, 6]


MANGLED = st.builds(
    lambda parts: b"".join(parts),
    st.lists(st.sampled_from([b"TRT-8601-A", b"TRT-", b"\n", b"\r\n", b": ", b":", b"x", b"3c010a14", b"0", b"7f800000",
                              b"\xff", b"\0", b"\xef\xbb\xbf", b" ", "图".encode()])),
)  # fmt: skip


@given(st.binary() | MANGLED)
def test_any_bytes_are_a_cache_or_an_error(data: bytes) -> None:
    try:
        cache = CalibrationCache.from_bytes(data, "f")
    except CalibrationError as error:
        assert str(error).startswith("f ")
    else:
        assert CalibrationCache.from_bytes(cache.render().encode(), "f") == cache
