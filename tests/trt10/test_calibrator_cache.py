"""Caches and tables in place of data: what TensorRT 10 is given, what it wrote, and what is kept of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibration_bench import Case, Listener, MemoryData, case, rows
from stand_in import HostStaging, StandIn

from quantlab.calibrators import CalibrationCache, CalibrationTable
from quantlab.calibrators.cache_provenance import cache_provenance_path, load_cache
from quantlab.calibrators.imported import imported_table
from quantlab.calibrators.tensorrt import RangeOrigin, network_tensors
from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.degradation import DegradationCode
from quantlab.errors import CalibrationError, ConfigError, DataError, EngineMismatch, OutputError

MODEL = {"model": "net.onnx", "model_sha256": "a" * 64}
HEAD = b"TRT-101601-EntropyCalibration2\n"


def images(n: int = 12, seed: int = 7) -> MemoryData:
    return MemoryData({"x": rows(n, 3, 4, seed=seed)}, preprocess_sha256="c" * 64)


def calibrated(trt: StandIn, path: Path, algorithm: Algorithm = Algorithm.ENTROPY_2) -> CalibrationCache:
    """Calibrate on `images`, and keep the cache."""
    one = case(trt, algorithm, images(), cache=path, **MODEL)
    one.build()
    cache = one.calibrator.complete().cache
    trt.reset()
    return cache


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWriting:
    @pytest.mark.parametrize("algorithm", Algorithm)
    def test_with_its_provenance(self, trt: StandIn, tmp_path: Path, algorithm: Algorithm) -> None:
        path = tmp_path / "new" / "net.calib"
        cache = calibrated(trt, path, algorithm)
        loaded, made = load_cache(path)
        assert loaded == cache
        assert made is not None
        assert (made.source, made.method, made.table_sha256, made.tensors) == ("observed", "tensorrt", "", 2)
        assert (made.model, made.model_sha256, made.preprocess_sha256) == ("net.onnx", "a" * 64, "c" * 64)
        assert (made.algorithm, made.tensorrt) == (algorithm, "10.16.1")
        assert made.shapes == {"x": (4, 3, 4)}
        assert files(path.parent) == ["net.calib", "net.calib.json"]

    def test_not_without_a_path(self, trt: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        one = case(trt)
        one.build()
        one.calibrator.complete()
        assert files(tmp_path) == []

    def test_not_before_the_build_is_known_to_be_good(self, trt: StandIn, tmp_path: Path) -> None:
        one = case(trt, cache=tmp_path / "net.calib")
        trt.fail()
        assert one.build() is None
        assert trt.calls[-1] == "write"
        one.calibrator.raise_pending()
        one.calibrator.close()
        assert files(tmp_path) == []

    def test_not_of_part_of_the_data(self, trt: StandIn, tmp_path: Path) -> None:
        one = case(trt, cache=tmp_path / "net.calib")
        trt.stop_after(2)
        one.build()
        assert trt.calls[-1] == "write"
        with pytest.raises(CalibrationError, match="before the end"):
            one.calibrator.complete()
        assert files(tmp_path) == []

    def test_its_memory_is_copied(self, trt: StandIn) -> None:
        one = case(trt)
        trt.overwrite_caches()
        one.build()
        assert list(one.calibrator.complete().cache.scales) == ["x", "x_out"]

    def test_the_same_one_twice(self, trt: StandIn, tmp_path: Path) -> None:
        listener, cache = Listener(), HEAD + b"x: 3c010a14\n"
        one = case(trt, cache=tmp_path / "net.calib", narrator=listener)
        trt.write_instead(cache, cache)
        one.build()
        assert trt.calls[-2:] == ["write", "write"]
        one.calibrator.complete()
        assert (tmp_path / "net.calib").read_bytes() == cache
        assert listener.said == []

    def test_another_one_after_it(self, trt: StandIn, tmp_path: Path) -> None:
        listener, last = Listener(), HEAD + b"x: 4000889d\n"
        one = case(trt, cache=tmp_path / "net.calib", narrator=listener)
        trt.write_instead(HEAD + b"x: 3c010a14\n", last)
        one.build()
        outcome = one.calibrator.complete()
        assert (tmp_path / "net.calib").read_bytes() == last
        assert outcome.cache.scales["x"] == float(np.uint32(0x4000889D).view(np.float32))
        assert listener.said == ["TensorRT wrote another calibration cache than before; the last one counts"]

    @pytest.mark.parametrize(
        ("cache", "says"),
        [
            (b"", "is not a TensorRT calibration cache"),
            (HEAD + b"x: 3c01", None),
            (HEAD + b"x: 3c010a14\ny", "line 3 is malformed"),
            (HEAD + b"x: \n", "line 2 is malformed"),
            (HEAD + b"x: 3c010g14\n", "line 2 is malformed"),
            (HEAD + b"x: 003c010a14\n", "line 2 is malformed"),
            (HEAD + b"x: 7fc00000\n", "unusable"),
            (HEAD + b"x: 7f800000\n", "unusable"),
            (HEAD + b"x: bc010a14\n", "unusable"),
            (HEAD + b"x: 0\nx: 0\n", "repeats"),
            (HEAD + b"\xff\xfe: 0\n", "not UTF-8"),
            (b"x: 3c010a14\n", "no header"),
            (b"TRT-101601\nx: 3c010a14\n", "is not a TensorRT calibration cache"),
            (b"TRT-101601-MinMaxCalibration\nx: 3c010a14\n", "another algorithm"),
        ],
    )
    def test_a_bad_one(self, trt: StandIn, tmp_path: Path, cache: bytes, says: str | None) -> None:
        one = case(trt, cache=tmp_path / "net.calib")
        trt.write_instead(cache)
        assert one.build() == b"engine"
        if says is None:  # a shorter number is a number: that is why it is written whole or not at all
            assert one.calibrator.complete().cache.scales.keys() == {"x"}
            return
        with pytest.raises(CalibrationError, match=says):
            one.calibrator.complete()
        assert files(tmp_path) == []

    def test_none_at_all(self, trt: StandIn) -> None:
        one = case(trt)
        one.build()
        one.calibrator._written.clear()
        with pytest.raises(CalibrationError, match="wrote no calibration cache"):
            one.calibrator.complete()

    def test_a_folder_in_the_way_of_the_file(self, trt: StandIn, tmp_path: Path) -> None:
        path = tmp_path / "net.calib"
        one = case(trt, cache=path)
        one.build()
        path.mkdir()
        with pytest.raises(OutputError, match=r"cannot write .*net\.calib"):
            one.calibrator.complete()
        assert files(tmp_path) == ["net.calib"]
        with pytest.raises(ConfigError, match="is a folder"):
            case(trt, cache=path)

    def test_a_file_in_the_way_of_the_folder(self, trt: StandIn, tmp_path: Path) -> None:
        """Known before anything is built."""
        (tmp_path / "out").write_text("")
        staging = HostStaging()
        with pytest.raises(OutputError, match="cannot write"):
            case(trt, cache=tmp_path / "out" / "net.calib", staging=staging)
        assert (trt.calls, staging.closed) == ([], 1)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_read_only(self, trt: StandIn, tmp_path: Path) -> None:
        path = tmp_path / "net.calib"
        one = case(trt, cache=path)
        one.build()
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(OutputError, match="cannot write"):
                one.calibrator.complete()
            with pytest.raises(OutputError, match="cannot write"):
                case(trt, cache=path)
        finally:
            tmp_path.chmod(0o700)
        assert files(tmp_path) == []


class TestReading:
    @pytest.mark.parametrize("algorithm", Algorithm)
    def test_what_was_written(self, trt: StandIn, tmp_path: Path, algorithm: Algorithm) -> None:
        path = tmp_path / "net.calib"
        cache = calibrated(trt, path, algorithm)
        before = path.read_bytes()
        one = case(trt, algorithm, images(), cache=path, **MODEL)
        assert one.build() == b"engine"
        assert trt.calls == ["read"]
        outcome = one.calibrator.complete()
        assert (outcome.origin, outcome.cache) == (RangeOrigin.CACHE, cache)
        assert (outcome.batches_promised, outcome.batches, outcome.samples) == (3, 0, 0)
        assert outcome.degradations == ()
        assert path.read_bytes() == before

    def test_without_data(self, trt: StandIn, tmp_path: Path) -> None:
        cache = calibrated(trt, tmp_path / "net.calib")
        one = case(trt, with_data=False, cache=tmp_path / "net.calib", **MODEL)
        one.build()
        assert (trt.calls, trt.profile) == (["read"], [])
        outcome = one.calibrator.complete()
        assert (outcome.cache, outcome.shapes, outcome.batches_promised) == (cache, {}, 0)

    def test_one_that_is_not_there(self, trt: StandIn, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="nothing to calibrate on") as caught:
            case(trt, with_data=False, cache=tmp_path / "net.calib")
        assert "net.calib, which does not exist" in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "got", "expected"),
        [
            ({"model_sha256": "b" * 64}, "model net.onnx aaaaaaaaaaaaaaaa...", "model net.onnx bbbbbbbbbbbbbbbb..."),
            ({"dataset": images(seed=8)}, r"data \w{16}\.\.\.", r"data \w{16}\.\.\."),
            ({"dataset": images(11)}, r"data \w{16}\.\.\.", r"data \w{16}\.\.\."),
            ({"batch_size": 6}, r"batches x \(4, 3, 4\)", r"batches x \(6, 3, 4\)"),
            (
                {"algorithm": Algorithm.MINMAX},
                "algorithm EntropyCalibration2",
                "algorithm MinMaxCalibration, of IInt8M",
            ),
            ({"algorithm": Algorithm.ENTROPY}, "algorithm EntropyCalibration2", "algorithm EntropyCalibration, of"),
            ({"algorithm": Algorithm.LEGACY}, "algorithm EntropyCalibration2", "algorithm LegacyCalibration, of"),
        ],
    )
    def test_of_something_else(
        self, trt: StandIn, tmp_path: Path, change: dict[str, object], got: str, expected: str
    ) -> None:
        path, staging = tmp_path / "net.calib", HostStaging()
        calibrated(trt, path)
        before = path.read_bytes()
        options = {"dataset": images(), "cache": path, "staging": staging, **MODEL, **change}
        with pytest.raises(EngineMismatch, match=r"net\.calib does not fit") as caught:
            case(trt, **options)  # type: ignore[arg-type]
        assert re.match(got, str(caught.value.got)), caught.value.got
        assert re.match(expected, str(caught.value.expected)), caught.value.expected
        assert ";" not in str(caught.value.got)
        assert (path.read_bytes(), staging.closed) == (before, 1)

    def test_of_another_preprocessing(self, trt: StandIn, tmp_path: Path) -> None:
        calibrated(trt, tmp_path / "net.calib")
        dataset = images()
        dataset.preprocess_sha256 = None
        with pytest.raises(EngineMismatch) as caught:
            case(trt, dataset=dataset, cache=tmp_path / "net.calib", **MODEL)
        assert (caught.value.got, caught.value.expected) == ("preprocessing cccccccccccccccc...", "no preprocessing")

    @pytest.mark.parametrize("version", [8601, 101400, 101600, 110000])
    def test_of_another_tensorrt(self, trt: StandIn, tmp_path: Path, version: int) -> None:
        path = tmp_path / "net.calib"
        path.write_text(f"TRT-{version}-EntropyCalibration2\nx: 3c010a14\n")
        with pytest.raises(EngineMismatch) as caught:
            case(trt, cache=path)
        shown = {8601: "8.6.1", 101400: "10.14.0", 101600: "10.16.0", 110000: "11.0.0"}[version]
        assert (caught.value.got, caught.value.expected) == (f"TensorRT {shown}", "TensorRT 10.16.1, which runs")
        assert "convert-cache" in str(caught.value)

    def test_everything_that_differs_is_named(self, trt: StandIn, tmp_path: Path) -> None:
        calibrated(trt, tmp_path / "net.calib")
        with pytest.raises(EngineMismatch) as caught:
            case(trt, Algorithm.MINMAX, images(seed=3), 2, cache=tmp_path / "net.calib", model_sha256="b" * 64)
        for word in ("algorithm", "model", "data", "batches"):
            assert word in str(caught.value.got) and word in str(caught.value.expected)

    def test_with_a_provenance_of_another(self, trt: StandIn, tmp_path: Path) -> None:
        path = tmp_path / "net.calib"
        calibrated(trt, path)
        path.write_bytes(path.read_bytes().replace(b"x_out", b"y_out"))
        with pytest.raises(EngineMismatch, match=r"not the one that net\.calib\.json describes"):
            case(trt, dataset=images(), cache=path, **MODEL)

    def test_with_a_damaged_provenance(self, trt: StandIn, tmp_path: Path) -> None:
        calibrated(trt, tmp_path / "net.calib")
        cache_provenance_path(tmp_path / "net.calib").write_text("{")
        with pytest.raises(CalibrationError, match="not valid JSON"):
            case(trt, dataset=images(), cache=tmp_path / "net.calib", **MODEL)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: data[:20],
            lambda data: data + b"x",
            lambda data: data.replace(b"\n", b"\r\n"),
            lambda data: data.replace(b": ", b":"),
            lambda _: b"",
            lambda data: data.split(b"\n")[0] + b"\n",
        ],
        ids=["cut off", "more", "line ends", "no blank", "empty", "no scale"],
    )
    def test_a_damaged_one(self, trt: StandIn, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
        path = tmp_path / "net.calib"
        calibrated(trt, path)
        path.write_bytes(spoil(path.read_bytes()))
        cache_provenance_path(path).unlink()
        with pytest.raises(CalibrationError):
            case(trt, dataset=images(), cache=path, **MODEL)
        assert trt.calls == []

    def test_without_provenance(self, trt: StandIn, tmp_path: Path) -> None:
        calibrated(trt, tmp_path / "net.calib")
        cache_provenance_path(tmp_path / "net.calib").unlink()
        listener = Listener()
        one = case(trt, dataset=images(), cache=tmp_path / "net.calib", narrator=listener, **MODEL)
        one.build()
        (unknown,) = one.calibrator.complete().degradations
        assert (unknown.code, unknown.subjects) == (DegradationCode.UNVERIFIED_CACHE, ("net.calib",))
        assert listener.warned == [unknown]

    @pytest.mark.parametrize(
        ("change", "says"),
        [({"model_sha256": ""}, "which model"), ({"data_sha256": "", "source": "old.txt"}, "from old.txt")],
    )
    def test_with_a_provenance_that_does_not_say_it(
        self, trt: StandIn, tmp_path: Path, change: dict[str, str], says: str
    ) -> None:
        calibrated(trt, tmp_path / "net.calib")
        beside = cache_provenance_path(tmp_path / "net.calib")
        beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
        one = case(trt, dataset=images(), cache=tmp_path / "net.calib", **MODEL)
        one.build()
        (unknown,) = one.calibrator.complete().degradations
        assert unknown.code is DegradationCode.UNVERIFIED_CACHE
        assert says in unknown.message

    def test_another_one_written_after_it(self, trt: StandIn, tmp_path: Path) -> None:
        """TensorRT 5 was seen to write what it had read."""
        path = tmp_path / "net.calib"
        calibrated(trt, path)
        listener = Listener()
        one = case(trt, dataset=images(), cache=path, narrator=listener, **MODEL)
        one.build()
        one.calibrator.native.write_calibration_cache(memoryview(path.read_bytes()))
        assert one.calibrator.complete().origin is RangeOrigin.CACHE
        assert listener.said == []
        one.calibrator.native.write_calibration_cache(memoryview(HEAD + b"x: 1\n"))
        assert one.calibrator.complete().cache.scales.keys() == {"x"}
        assert listener.said == ["TensorRT wrote another calibration cache than before; the last one counts"]


class TestRejection:
    def test_with_data(self, trt: StandIn, tmp_path: Path) -> None:
        """TensorRT calibrates anew; that is counted, and the cache is replaced."""
        path = tmp_path / "net.calib"
        calibrated(trt, path)
        path.write_bytes(HEAD + b"old: 3c010a14\n")
        cache_provenance_path(path).unlink()
        listener = Listener()
        one = case(trt, dataset=images(), cache=path, narrator=listener, **MODEL)
        trt.reject_caches()
        one.build()
        assert trt.calls == ["read", "size 1", *["batch"] * 4, "write"]
        outcome = one.calibrator.complete()
        assert (outcome.origin, outcome.batches) == (RangeOrigin.DATA, 3)
        (rejected,) = outcome.degradations
        assert (rejected.code, rejected.subjects) == (DegradationCode.CACHE_REJECTED, ("net.calib",))
        assert listener.warned == [rejected]
        loaded, made = load_cache(path)
        assert (loaded, loaded.scales.keys()) == (outcome.cache, {"x", "x_out"})
        assert made is not None and made.method == "tensorrt"
        one.build()
        assert one.calibrator.complete() == outcome

    @pytest.mark.parametrize("with_table", [False, True])
    def test_without_data(self, trt: StandIn, tmp_path: Path, with_table: bool) -> None:
        path = tmp_path / "net.calib"
        calibrated(trt, path)
        before = path.read_bytes()
        one = case(trt, with_data=False, **({"table": a_table()} if with_table else {"cache": path}), **MODEL)
        trt.reject_caches()
        assert one.build() == b"engine"
        assert trt.batches == []
        with pytest.raises(CalibrationError, match=r"did not take the .*no data to calibrate on") as caught:
            one.calibrator.complete()
        assert "TRT-101601-EntropyCalibration2" in str(caught.value)
        assert path.read_bytes() == before


def a_table(**values: str) -> CalibrationTable:
    scales = {"x": 0.5, "x_out": 2.0**-130}
    return imported_table(scales, "old.calib", model="net.onnx", model_sha256=values.get("model_sha256", "a" * 64))


class TestTable:
    """A laptop calibrates for the machine with the GPU."""

    @pytest.mark.parametrize("algorithm", Algorithm)
    def test_stands_in_for_data(self, trt: StandIn, algorithm: Algorithm) -> None:
        table = a_table()
        one = case(trt, algorithm, with_data=False, table=table, **MODEL)
        assert one.build() == b"engine"
        assert trt.calls == ["read"], "TensorRT rejected it"
        assert trt.int8
        outcome = one.calibrator.complete()
        expected = CalibrationCache.from_table(table, "10.16.1", algorithm)
        assert (outcome.origin, outcome.cache, outcome.cache.version) == (RangeOrigin.CACHE, expected, 101601)
        served = one.calibrator.native.read_calibration_cache()
        assert CalibrationCache.from_bytes(served, "served") == expected
        assert outcome.degradations == ()

    def test_that_lacks_tensors(self, trt: StandIn) -> None:
        inputs = {"x": ("FLOAT", (4, 3, 4)), "y": ("FLOAT", (4, 2))}
        one = case(trt, with_data=False, table=a_table(), inputs=inputs, **MODEL)
        one.build()
        (missing,) = one.calibrator.complete().uncovered(network_tensors(trt.module, trt.network(**inputs)))
        assert (missing.count, missing.subjects) == (2, ("y", "y_out"))

    def test_of_another_model(self, trt: StandIn) -> None:
        with pytest.raises(EngineMismatch, match="made for another model") as caught:
            case(trt, with_data=False, table=a_table(model_sha256="f" * 64), **MODEL)
        assert ("aaaaaaaa" in str(caught.value.got), "ffffffff" in str(caught.value.expected)) == (True, True)

    def test_without_a_tensor(self, trt: StandIn) -> None:
        with pytest.raises(CalibrationError, match="holds no scale"):
            case(trt, with_data=False, table=imported_table({}, "old.calib"))

    def test_and_a_cache(self, trt: StandIn, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="a calibration table and a calibration cache"):
            case(trt, table=a_table(), cache=tmp_path / "net.calib")

    def test_with_data_in_reserve(self, trt: StandIn) -> None:
        one = case(trt, dataset=images(), table=a_table(), **MODEL)
        trt.reject_caches()
        one.build()
        outcome = one.calibrator.complete()
        assert (outcome.origin, outcome.batches) == (RangeOrigin.DATA, 3)
        assert [d.code for d in outcome.degradations] == [DegradationCode.CACHE_REJECTED]


def test_errors_come_before_caches(trt: StandIn, tmp_path: Path) -> None:
    """A callback that failed spoils the cache that TensorRT writes afterwards."""
    dataset = MemoryData({"x": rows(12, 3, 4)}, lambda i, a: {"x": a["x"] * np.float32(np.nan)} if i > 8 else a)
    one: Case = case(trt, dataset=dataset, cache=tmp_path / "net.calib")
    one.build()
    assert trt.calls[-1] == "write"
    with pytest.raises(DataError, match="not finite"):
        one.calibrator.complete()
    assert files(tmp_path) == []
