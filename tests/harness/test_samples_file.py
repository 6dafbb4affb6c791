"""The file of samples: every figure of a comparison comes out of it again, and it is whole or absent."""

from __future__ import annotations

import dataclasses
import errno
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness_data import Arrays, FunctionEngine, MemoryData
from hypothesis import given
from hypothesis import strategies as st

from quantlab.datasets import Batch, Sample
from quantlab.datasets.slices import SliceTable
from quantlab.errors import DataError, MeasurementError, OutputError
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import Comparison
from quantlab.harness.samples import SampleWriter, escaped, read_samples, unescaped
from quantlab.harness.tasks.registry import TaskRequest
from quantlab.progress import Silent

N = 150
RNG = np.random.default_rng(8)
ROWS = (RNG.standard_normal((N, 7)) * 2).astype(np.float32)
LABELS = [None if i % 7 == 0 else int((row + RNG.standard_normal(7)).argmax()) for i, row in enumerate(ROWS)]
SETTINGS = CompareSettings(batch_size=16, latency=None)


def broken(x: np.ndarray) -> np.ndarray:
    """Rounded; two samples are not finite."""
    value = np.round(x).astype(np.float32)
    for number in (40, 101):
        value[(x == ROWS[number]).all(axis=1), number % 7] = math.nan
    return value


def engines() -> list[FunctionEngine]:
    return [
        FunctionEngine("fp32", lambda x: x),
        FunctionEngine("rounded", lambda x: np.round(x)),
        FunctionEngine("broken", broken),
    ]


def written(folder: Path, task: str, **settings: object) -> tuple[Comparison, pd.DataFrame]:
    path = folder / "samples.parquet"
    table = SliceTable(("half",), {f"s{i}": ("first" if i < 70 else "second",) for i in range(N)})
    chosen = dataclasses.replace(SETTINGS, task=TaskRequest(task), slices=table, **settings)  # type: ignore[arg-type]
    comparison = compare(engines(), "fp32", MemoryData(ROWS, LABELS), chosen, Silent(), path)
    return comparison, read_samples(path)


def recompute(rows: pd.DataFrame, figure: str) -> float:
    """A figure from the rows of one variant, in plain words."""
    labelled = rows[rows.label.notna()]
    if figure == "top1":
        return 100 * (labelled.predicted == labelled.label).mean()
    if figure == "top5":
        return 100 * labelled.in_top5.astype(bool).mean()
    if figure == "agreement":
        return 100 * rows.agrees.mean()
    if figure in ("nll", "brier"):
        return float(labelled[figure].mean())
    if figure == "calibration_error":
        bins = np.clip(np.ceil(labelled.confidence * 15) - 1, 0, 14)
        gap = (labelled.predicted == labelled.label) - labelled.confidence
        return 100 * gap.groupby(bins).sum().abs().sum() / len(labelled)
    output, _, name = figure.rpartition(".")
    if name == "sqnr_db":
        if rows[f"{output}.broken"].any():
            return -math.inf
        noise = rows[f"{output}.noise"].sum()
        return 10 * math.log10(rows[f"{output}.signal"].sum() / noise) if noise else math.inf
    if name == "sqnr_db_p5":
        return float(np.sort(rows[f"{output}.sqnr_db"])[math.ceil(0.05 * len(rows)) - 1])
    column = rows[f"{output}.{name}"]
    return float(column.max() if name == "max_abs_error" else column.mean())


@pytest.mark.parametrize("task", ["classify", "outputs"])
def test_every_figure_can_be_computed_again(task: str, tmp_path: Path) -> None:
    comparison, frame = written(tmp_path, task)
    assert len(frame) == 3 * N
    checked = 0
    for result in comparison.variants:
        rows = frame[frame.variant == result.name]
        for score in result.scores:
            part = rows
            if score.slice is not None and score.slice.column == "class":
                part = rows[rows.label == float(score.slice.value)]
            elif score.slice is not None:
                part = rows[rows[f"slice.{score.slice.column}"] == score.slice.value]
            assert recompute(part, score.figure) == pytest.approx(score.value, rel=1e-9, abs=1e-9), score
            checked += 1
        for drift in result.outputs:
            usable = rows[~rows[f"{drift.output}.broken"]]
            assert recompute(usable, f"{drift.output}.sqnr_db") == pytest.approx(drift.sqnr_db)
            for name in ("cosine", "kl_nats", "max_abs_error"):
                expected = pytest.approx(getattr(drift, name), rel=1e-9, abs=1e-12)
                assert recompute(usable, f"{drift.output}.{name}") == expected
            assert rows[f"{drift.output}.non_finite"].sum() == drift.non_finite
        if task == "classify":
            counts = result.classification
            assert counts is not None
            first = frame[frame.variant == "fp32"].reset_index()
            own = rows.reset_index()
            labelled = own.label.notna()
            right, before = (f.predicted == f.label for f in (own, first))
            assert counts.flips_to_wrong == (before & ~right & labelled).sum()
            assert counts.flips_to_right == (right & ~before & labelled).sum()
    assert checked >= 21


def test_rows_are_samples_in_order(tmp_path: Path) -> None:
    _, frame = written(tmp_path, "classify")
    rows = frame[frame.variant == "rounded"]
    assert list(rows["sample"]) == [f"s{i}" for i in range(N)]
    assert list(rows.sha256) == [f"{i:064x}" for i in range(N)]
    assert [None if math.isnan(label) else int(label) for label in rows.label] == LABELS
    assert list(rows["slice.half"]) == ["first"] * 70 + ["second"] * 80


def test_row_groups_are_written_while_streaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.harness.samples._ROWS_A_GROUP", 100)
    written(tmp_path, "outputs")
    file = pq.ParquetFile(tmp_path / "samples.parquet")
    assert file.num_row_groups == 5  # the first batches whose rows are 100 or more: 7 of 16 rows each
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


class TestWholeOrAbsent:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, MeasurementError("the reference died")])
    def test_a_failure_leaves_the_old_file(self, error: BaseException, tmp_path: Path) -> None:
        written(tmp_path, "outputs")
        before = (tmp_path / "samples.parquet").read_bytes()
        calls = 0

        def dies(x: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise error
            return x

        with pytest.raises((KeyboardInterrupt, MeasurementError)):
            compare(
                [FunctionEngine("fp32", dies), FunctionEngine("other", lambda x: x)], "fp32",
                MemoryData(ROWS, LABELS), SETTINGS, Silent(), tmp_path / "samples.parquet",
            )  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]
        assert (tmp_path / "samples.parquet").read_bytes() == before

    @pytest.mark.parametrize("rows_a_group", [16, 10**6], ids=["while streaming", "at the end"])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    def test_rows_that_cannot_be_written(
        self, error: BaseException, rows_a_group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last rows are written when all else has succeeded, and must not be taken for the whole file."""
        written(tmp_path, "outputs")
        before = (tmp_path / "samples.parquet").read_bytes()

        def full(self: pq.ParquetWriter, table: pa.Table) -> None:
            raise error

        monkeypatch.setattr("quantlab.harness.samples._ROWS_A_GROUP", rows_a_group)
        monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
        with pytest.raises(expected):
            written(tmp_path, "outputs")
        assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]
        assert (tmp_path / "samples.parquet").read_bytes() == before

    def test_a_folder_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "samples.parquet").mkdir()
        with pytest.raises(OutputError, match="cannot write"):
            written(tmp_path, "outputs")

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        batch = Batch(("a",), {}, (None,), ("0" * 64,))
        with (
            pytest.raises(MeasurementError, match="two columns of the file of samples are named 'label'"),
            SampleWriter(tmp_path / "s.parquet") as writer,
        ):
            writer.add(batch, "v", {"label": np.zeros(1)})
        assert list(tmp_path.iterdir()) == []


class TestNames:
    @given(st.text(st.characters(codec=None, exclude_categories=()), max_size=20))
    def test_escaping_is_reversible_and_gives_text(self, name: str) -> None:
        text = escaped(name)
        text.encode("utf-8")
        assert unescaped(text) == name

    def test_ordinary_names_stay_as_they_are(self) -> None:
        assert escaped("café/図.png") == "café/図.png"

    def test_names_that_are_no_unicode(self, tmp_path: Path) -> None:
        """Bytes of a file name that are no UTF-8 come as lone surrogates, which neither Parquet nor JSON can hold."""
        data = MemoryData(ROWS[:12], [0] * 12)
        data.samples = [Sample(f"caf\udce9\\{i}.png", s.inputs, s.label, s.sha256) for i, s in enumerate(data.samples)]
        table = SliceTable(("place",), {s.id: ("\udcff",) for s in data.samples})
        comparison = compare(
            engines()[:2], "fp32", data, dataclasses.replace(SETTINGS, slices=table), Silent(), tmp_path / "s.parquet"
        )
        assert set(read_samples(tmp_path / "s.parquet")["sample"]) == {s.id for s in data.samples}
        assert set(read_samples(tmp_path / "s.parquet")["slice.place"]) == {"\udcff"}
        (tmp_path / "c.json").write_text(comparison.to_json(), encoding="utf-8")
        loaded = Comparison.load(tmp_path / "c.json")
        assert loaded == comparison
        assert unescaped(loaded.variants[1].worst[0].sample) in {s.id for s in data.samples}


class TestReading:
    def test_some_columns(self, tmp_path: Path) -> None:
        written(tmp_path, "classify")
        frame = read_samples(tmp_path / "samples.parquet", ["sample", "scores.sqnr_db"])
        assert list(frame.columns) == ["sample", "scores.sqnr_db"]
        with pytest.raises(DataError, match="lacks the column 'gone'"):
            read_samples(tmp_path / "samples.parquet", ["gone"])

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            read_samples(tmp_path / "none.parquet")
        (tmp_path / "text.parquet").write_text("no")
        with pytest.raises(DataError, match="cannot be read"):
            read_samples(tmp_path / "text.parquet")
        pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
        with pytest.raises(DataError, match="no file of samples"):
            read_samples(tmp_path / "other.parquet")
        written(tmp_path, "classify")
        whole = (tmp_path / "samples.parquet").read_bytes()
        (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"cannot be read|is damaged"):
            read_samples(tmp_path / "cut.parquet")


def test_several_outputs_have_their_own_columns(tmp_path: Path) -> None:
    class Two(FunctionEngine):
        def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
            x = inputs["x"]
            return {"a": self.function(x), "b.c": self.function(x).reshape(-1, 7, 1)}

    pair = [Two("fp32", lambda x: x, ("a", "b.c")), Two("rounded", lambda x: np.round(x), ("a", "b.c"))]
    compare(pair, "fp32", MemoryData(ROWS, LABELS), SETTINGS, Silent(), tmp_path / "s.parquet")
    frame = read_samples(tmp_path / "s.parquet")
    assert {"a.kl_nats", "b.c.sqnr_db"} <= set(frame.columns)
    assert "b.c.kl_nats" not in frame.columns
    assert np.array_equal(frame["a.noise"], frame["b.c.noise"])
