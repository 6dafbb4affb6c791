"""A bench in every format: golden files, the columns of programs, hostile names, nothing measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from bench_examples import FP32, INT8, bench, end_to_end, latency
from test_golden import GOLDEN, check

from quantlab.errors import DataError
from quantlab.harness.bench import Bench, BenchSettings, Opening, QueryRow
from quantlab.harness.bench_change import change_since
from quantlab.harness.timings import TimingCode, TimingWarning
from quantlab.reports import FORMATS, Style, render
from quantlab.reports.bench import bench_tables
from quantlab.reports.bench_frame import bench_frame, bench_lines
from quantlab.reports.cells import display_width

FORMATS_OF_BENCH = [name for name in FORMATS if Bench in FORMATS[name].renderers]
HOSTILE = "=cmd|'/c calc'!A1 \x1b[31m`<b>\n|x\x00\u202e @team & \ud800"


def whole() -> Bench:
    now = bench()
    return dataclasses.replace(now, change=change_since(now, now, ()))


def test_formats() -> None:
    assert FORMATS_OF_BENCH == ["terminal", "markdown", "csv", "json"]


@pytest.mark.parametrize("name", FORMATS_OF_BENCH)
def test_golden(name: str) -> None:
    check(GOLDEN / f"bench.{name}{FORMATS[name].suffix}", render(whole(), name))


def test_golden_of_a_narrow_coloured_terminal() -> None:
    check(GOLDEN / "bench.terminal-60.txt", render(whole(), "terminal", Style(60, colour=True)))


@pytest.mark.parametrize("name", FORMATS_OF_BENCH)
def test_a_saved_bench_gives_the_same_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(whole().to_json(), encoding="utf-8")
    assert render(Bench.load(path), name) == render(whole(), name)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_table_is_wider_than_the_terminal(width: int) -> None:
    lines = render(whole(), "terminal", Style(width)).splitlines()
    assert max(map(display_width, lines)) <= width


def test_a_row_for_each_engine_and_setting_then_the_files() -> None:
    frame = bench_frame(bench())
    assert list(zip(frame["engine"], frame["streams"].fillna(0), strict=True)) == [
        (FP32, 1), (FP32, 2), (INT8, 1), (INT8, 2), ("other", 0),
    ]  # fmt: skip
    assert frame["interleaved_median_ms"].fillna(-1).tolist() == [2.5, -1, 1.5, -1, -1], "those have one caller"
    assert frame["energy_mj_per_sample"].fillna(-1).tolist() == [80.0, -1, -1, -1, -1]
    assert frame["graph"].isna().tolist() == [False, False, False, True, True]
    for metric in ("latency", "h2d", "compute", "d2h", "enqueue"):
        for statistic in ("min", "max", "mean", "median", "p90", "p95", "p99"):
            assert f"{metric}_{statistic}_ms" in frame.columns


def test_on_the_gpu_by_boundary() -> None:
    frame = bench_frame(bench(imported=()))
    assert frame["gpu_device_ratio"].fillna(-1).tolist() == [1.0, -1, 0.5, -1], "those have one caller"
    assert frame["gpu_enqueue_ratio"].fillna(-1).tolist() == [1.0, -1, 1.0, -1]
    assert frame["gpu_transfers_ratio_high"].fillna(-1).tolist() == pytest.approx([1.01, -1, 0.707, -1])
    tables = [table for table in bench_tables(bench()) if table.title.startswith("On the GPU")]
    assert [table.title.rpartition(": ")[2] for table in tables] == ["device", "enqueue", "h2d+device+d2h"]
    assert all(table.names == (FP32, INT8) for table in tables)
    ratios = [column.cells for table in tables for column in table.columns if column.heading == "ratio"]
    assert ratios == [("1.000", "0.500"), ("1.000", "1.000"), ("1.000", "0.700")]
    text = " ".join(render(bench(), "terminal", Style(200)).split())
    assert f"with copies, one query ahead, ratio to {FP32}; A/A controls: device [0.999, 1.002], enqueue [0.9" in text


def test_on_the_gpu_alone() -> None:
    alone = bench(queries=(), interleaved=(), imported=())
    assert [sorted(line.on_gpu) for line in bench_lines(alone)] == [["device", "enqueue", "h2d+device+d2h"]] * 2
    noisy = dataclasses.replace(
        alone.on_gpu[0].timings[1], warnings=(TimingWarning(TimingCode.NOISY_MACHINE, "too noisy"),)
    )
    on_gpu = dataclasses.replace(alone.on_gpu[0], timings=(alone.on_gpu[0].timings[0], noisy))
    text = render(dataclasses.replace(alone, on_gpu=(on_gpu,)), "terminal", Style(200))
    assert "noisy-machine: on the GPU, enqueue, t2 b8: too noisy" in text


def test_interleaved_alone_and_queries_alone() -> None:
    assert [line.streams for line in bench_lines(bench(queries=()))] == [None, None, None]
    alone = bench(interleaved=(), on_gpu=(), imported=())
    assert [line.latency for line in bench_lines(alone)] == [None] * 4
    assert "interleaved" not in render(alone, "terminal").lower().split("warnings")[0]


def test_end_to_end_beside_the_rest() -> None:
    made = bench(end_to_end=(end_to_end(),))
    (table,) = [table for table in bench_tables(made) if table.title.startswith("Latency end to end")]
    assert table.names == (FP32, INT8)
    columns = {column.heading: column.cells for column in table.columns}
    assert columns["median ms"] == ("12.500", "11.500")
    assert columns["reading ms"] == ("10.000", "10.000")
    assert columns["reading %"] == ("80.0", "87.0")
    assert columns["ratio"] == ("1.000", "0.920")
    assert "p99 ms" not in columns, "there is none to show"
    text = " ".join(render(made, "terminal").split())
    assert (
        f"End to end: of 12.5 ms of {FP32}, 10.0 ms (80 %) are reading and preprocessing, in 2 threads; 2,000" in text
    )
    assert "Every sample was read once before" in text
    assert f"not-stationary: end to end, {INT8}:" in text
    assert "Latency end to end" in render(made, "markdown")
    frame = bench_frame(made)
    assert frame["end_to_end_median_ms"].fillna(-1).tolist() == [12.5, -1, 11.5, -1, -1], "one caller"
    assert frame["reading_median_ms"].fillna(-1).tolist() == [10.0, -1, 10.0, -1, -1]
    assert frame["end_to_end_verdict"].fillna("").tolist() == ["", "", "faster", "", ""]


def test_end_to_end_of_arrays_and_of_several_settings() -> None:
    one = dataclasses.replace(end_to_end(), in_memory=True, readers=1)
    other = dataclasses.replace(one, threads=1)
    text = " ".join(render(bench(end_to_end=(other, one), queries=(), interleaved=()), "terminal").split())
    assert "End to end (t1 b8): of 12.5 ms" in text and "End to end (t2 b8): of 12.5 ms" in text
    assert "in the calling thread" in text and "one file of arrays, which is in memory" in text
    assert "Every sample was read once before" not in text


def test_end_to_end_survives_json(tmp_path: Path) -> None:
    made = bench(end_to_end=(end_to_end(),))
    (tmp_path / "bench.json").write_text(made.to_json(), encoding="utf-8")
    assert Bench.load(tmp_path / "bench.json") == made


def test_end_to_end_of_an_unknown_engine_is_damage(tmp_path: Path) -> None:
    made = bench(end_to_end=(end_to_end(),), engines=bench().engines[:1], queries=(), interleaved=(), openings=())
    (tmp_path / "bench.json").write_text(made.to_json(), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        Bench.load(tmp_path / "bench.json")


def test_a_bench_from_before_end_to_end_loads(tmp_path: Path) -> None:
    document = json.loads(bench().to_json())
    del document["end_to_end"], document["settings"]["end_to_end"]
    (tmp_path / "bench.json").write_text(json.dumps(document), encoding="utf-8")
    assert Bench.load(tmp_path / "bench.json") == bench()


def test_without_a_single_caller_the_first_row_has_the_interleaved_figures() -> None:
    queries = tuple(row for row in bench().queries if row.streams == 2)
    lines = list(bench_lines(bench(queries=queries)))
    assert lines[0].latency == latency(1.0)


def test_only_files_of_trtexec() -> None:
    nothing = bench(
        reference=None, engines=(), openings=(), interleaved=(), on_gpu=(), queries=(), rebuilds=(), cautions=(),
        settings=BenchSettings(), data="nothing",
    )  # fmt: skip
    text = render(nothing, "terminal")
    assert text.startswith("2 files of trtexec")
    assert [table.title.partition(" ")[0] for table in bench_tables(nothing)] == ["Queries,", "Layers"]
    empty = dataclasses.replace(nothing, imported=(), imported_profiles=())
    assert bench_tables(empty) == ()
    assert len(list(csv.reader(io.StringIO(render(empty, "csv"))))) == 1, "the columns alone"


def test_several_settings_are_told_apart() -> None:
    settings = BenchSettings(batches=(1, 8), threads=(1, 2), streams=(1, 2))
    text = render(bench(settings=settings), "terminal", Style(200))
    assert f"{FP32} t2 b8 s2" in text
    assert re.search(rf"{FP32} t2 b8 +2\.500", text), "interleaved, without callers"


@pytest.mark.parametrize("name", FORMATS_OF_BENCH)
def test_hostile_names(name: str) -> None:
    original = bench()
    engines = (original.engines[0], dataclasses.replace(original.engines[1], name=HOSTILE, model=HOSTILE))
    queries = (*original.queries[:1], QueryRow(HOSTILE, 2, 8, 1, original.queries[1].figures, None))
    imported = (dataclasses.replace(original.imported[0], name=HOSTILE),)
    cautions = (dataclasses.replace(original.cautions[0], subject=HOSTILE, text=HOSTILE),)
    text = render(
        dataclasses.replace(
            original, engines=engines, queries=queries, interleaved=(), on_gpu=(),
            openings=(Opening(HOSTILE, 2, 1.0, 1.0),), imported=imported, cautions=cautions, data=HOSTILE,
        ),
        name,
    )  # fmt: skip
    if name == "json":
        return
    assert "\x1b" not in text and "\x00" not in text and "\u202e" not in text and "\ud800" not in text
    if name == "markdown":
        assert "<b>" not in text and not re.search(r"(?<!\\)\|x", text)
    if name == "csv":
        assert all(not cell.startswith("=") for row in csv.reader(io.StringIO(text)) for cell in row)


def test_interleaved_figures_stand_in_one_row() -> None:
    row = bench().queries[0]
    queries = tuple(dataclasses.replace(row, streams=streams) for streams in (2, 4))
    found = list(bench_lines(bench(queries=queries, imported=())))
    assert [line.latency is None for line in found if line.name == FP32] == [False, True]
