"""The provenance file of a cache: written with it, checked on use."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from calibrator_data import entry, table, tensor_range

import quantlab.calibrators.cache_provenance as module
from quantlab.calibrators import CalibrationCache, CalibrationTable
from quantlab.calibrators.cache_provenance import CacheProvenance, load_cache, read_cache_provenance, write_cache
from quantlab.calibrators.imported import imported_table
from quantlab.errors import CalibrationError, EngineMismatch, OutputError
from quantlab.files import sha256_file


@pytest.fixture
def made() -> CalibrationTable:
    return table(entry("a", tensor_range(-2.54, 2.54)), method="minmax")


def test_written_with_the_cache(tmp_path: Path, made: CalibrationTable) -> None:
    cache = CalibrationCache.from_table(made, "8.6.1")
    path, beside = write_cache(tmp_path / "m.calib", cache, made)
    assert (path.name, beside.name) == ("m.calib", "m.calib.json")
    loaded, provenance = load_cache(path)
    assert loaded == cache
    assert provenance is not None
    assert dataclasses.asdict(provenance) | {"quantlab": ""} == {
        "quantlab": "", "cache": "m.calib", "cache_sha256": sha256_file(path), "source": "observed",
        "model": "model.onnx", "model_sha256": "a" * 64, "table_sha256": made.sha256,
        "data_sha256": made.provenance.data_sha256, "preprocess_sha256": "", "method": "minmax",
        "algorithm": "MinMaxCalibration", "tensorrt": "8.6.1", "tensors": 1,
        "shapes": {},
    }  # fmt: skip


def test_imported_ranges_have_no_data(made: CalibrationTable) -> None:
    imported = imported_table({"a": 0.5}, "old.calib")
    provenance = CacheProvenance.of("m.calib", CalibrationCache.from_table(imported), imported)
    assert (provenance.source, provenance.data_sha256, provenance.model_sha256) == ("old.calib", "", "")
    assert made.provenance.data_sha256


def test_a_changed_cache_is_refused_with_both_hashes(tmp_path: Path, made: CalibrationTable) -> None:
    path, _ = write_cache(tmp_path / "m.calib", CalibrationCache.from_table(made), made)
    before = sha256_file(path)
    path.write_text(path.read_text().replace("a: ", "b: "))
    with pytest.raises(EngineMismatch, match=r"not the one that m\.calib\.json describes") as caught:
        load_cache(path)
    assert before[:16] in str(caught.value)
    assert sha256_file(path)[:16] in str(caught.value)


def test_a_cache_alone_is_read(tmp_path: Path, made: CalibrationTable) -> None:
    path, beside = write_cache(tmp_path / "m.calib", CalibrationCache.from_table(made), made)
    beside.unlink()
    assert read_cache_provenance(path) is None
    assert load_cache(path)[1] is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": "quantlab.cache-provenance/1", "cache": 3}'])
def test_damaged_provenance(tmp_path: Path, made: CalibrationTable, text: str) -> None:
    path, beside = write_cache(tmp_path / "m.calib", CalibrationCache.from_table(made), made)
    beside.write_text(text)
    with pytest.raises(CalibrationError):
        load_cache(path)


def test_an_unknown_key_is_refused(tmp_path: Path, made: CalibrationTable) -> None:
    path, beside = write_cache(tmp_path / "m.calib", CalibrationCache.from_table(made), made)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"extra": 1}))
    with pytest.raises(CalibrationError, match="extra"):
        load_cache(path)


def test_a_provenance_without_shapes_is_read(tmp_path: Path, made: CalibrationTable) -> None:
    """As versions wrote it that knew caches of tables alone."""
    path, beside = write_cache(tmp_path / "m.calib", CalibrationCache.from_table(made), made)
    document = json.loads(beside.read_text())
    del document["shapes"]
    beside.write_text(json.dumps(document))
    provenance = read_cache_provenance(path)
    assert provenance is not None
    assert provenance.shapes == {}


def test_an_interrupted_write_leaves_no_provenance_of_another(
    tmp_path: Path, made: CalibrationTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, beside = write_cache(tmp_path / "m.calib", CalibrationCache.from_table(made), made)
    real = module.write_text

    def failing(target: Path, text: str) -> None:
        if target == beside:
            raise OutputError("disk full")
        real(target, text)

    monkeypatch.setattr(module, "write_text", failing)
    with pytest.raises(OutputError):
        write_cache(path, CalibrationCache.from_table(made, "8.6.1"), made)
    assert path.read_text().startswith("TRT-8601-")
    assert not beside.exists()
