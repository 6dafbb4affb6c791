"""trtexec's JSON files: read with its quirks, refused when damaged, and written in the same form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.errors import DataError
from quantlab.harness.queries import COLUMNS, HOST_CLOCK, TRTEXEC_FILE, QueryTimes
from quantlab.harness.trtexec_files import (
    ImportedProfile,
    ImportedTimes,
    ProfileRow,
    profile_text,
    read_times,
    read_trtexec,
    times_text,
)

TIMES = """[
  { "startEnqMs" : 201.062, "endEnqMs" : 201.112, "startH2dMs" : 200.5, "endH2dMs" : 201, "startComputeMs" : 201, \
"endComputeMs" : 203, "startD2hMs" : 203, "endD2hMs" : 203.25, "h2dMs" : 0.5, "computeMs" : 2, "d2hMs" : 0.25, \
"latencyMs" : 2.75 }
, { "startEnqMs" : 203.062, "endEnqMs" : 203.162, "startH2dMs" : 202.5, "endH2dMs" : 203, "startComputeMs" : 203, \
"endComputeMs" : 207, "startD2hMs" : 207, "endD2hMs" : 208, "h2dMs" : 0.5, "computeMs" : 4, "d2hMs" : 1, \
"latencyMs" : 5.5 }
, { "startEnqMs" : 207.062, "endEnqMs" : 207.122, "startH2dMs" : 206, "endH2dMs" : 207, "startComputeMs" : 207, \
"endComputeMs" : 210, "startD2hMs" : 210, "endD2hMs" : 210.5, "h2dMs" : 1, "computeMs" : 3, "d2hMs" : 0.5, \
"latencyMs" : 4.5 }
]
"""
"""As trtexec lays it out."""

PROFILE = r"""[
  { "count" : 20 }
, { "name" : "Conv_0 + Relu_1", "timeMs" : 40, "averageMs" : 2, "medianMs" : 1.9, "percentage" : 80 }
, { "name" : "a "quoted" name, "timeMs" : 1 } of \ Reformat", "timeMs" : 10, "averageMs" : 0.5, "medianMs" : 0.4, \
"percentage" : 20 }
]
""".replace("\\\n", "")


def read(folder: Path, text: str | bytes) -> ImportedTimes | ImportedProfile:
    path = folder / "int8.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trtexec(path)


def figures(folder: Path, text: str) -> ImportedTimes:
    found = read(folder, text)
    assert isinstance(found, ImportedTimes)
    return found


class TestTimes:
    def test_by_hand(self, tmp_path: Path) -> None:
        """From 200.5 to 210.5 ms are 10 ms for 3 queries."""
        found = figures(tmp_path, TIMES)
        assert found.name == "int8" and len(found.sha256) == 64
        summary = found.figures
        assert (summary.clock, summary.queries, summary.transfers) == (TRTEXEC_FILE, 3, True)
        assert summary.walltime_s == pytest.approx(0.010)
        assert summary.throughput_qps == pytest.approx(300.0)
        assert (summary.latency.min_ms, summary.latency.median_ms, summary.latency.max_ms) == (2.75, 4.5, 5.5)
        assert summary.compute is not None and summary.compute.mean_ms == pytest.approx(3.0)
        assert summary.total_compute_s == pytest.approx(0.009)
        assert summary.h2d is not None and summary.h2d.median_ms == 0.5
        assert summary.d2h is not None and summary.d2h.median_ms == 0.5
        assert summary.enqueue is not None and summary.enqueue.median_ms == pytest.approx(0.060)
        assert summary.compute.variation_percent == pytest.approx(100 * math.sqrt(2 / 3) / 3)

    def test_without_transfers(self, tmp_path: Path) -> None:
        """trtexec writes the start and end of compute as those of the copies."""
        rows = [
            {
                "startEnqMs": at, "endEnqMs": at + 0.05, "startH2dMs": at, "endH2dMs": at, "startComputeMs": at,
                "endComputeMs": at + 2, "startD2hMs": at + 2, "endD2hMs": at + 2, "h2dMs": 0, "computeMs": 2,
                "d2hMs": 0, "latencyMs": 2,
            }
            for at in (10.0, 12.5)
        ]  # fmt: skip
        found = figures(tmp_path, json.dumps(rows)).figures
        assert (found.transfers, found.latency.max_ms, found.throughput_qps) == (False, 2.0, pytest.approx(2000 / 4.5))

    def test_a_time_more_of_old_versions(self, tmp_path: Path) -> None:
        old = TIMES.replace('"latencyMs" : 2.75', '"latencyMs" : 2.75, "endToEndMs" : 3.5')
        assert figures(tmp_path, old).figures == figures(tmp_path, TIMES).figures

    def test_rounded_parts_add_up_nearly(self, tmp_path: Path) -> None:
        found = figures(tmp_path, TIMES.replace('"latencyMs" : 2.75', '"latencyMs" : 2.75001'))
        assert found.figures.latency.min_ms == 2.75001

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda t: "", "is empty"),
            (lambda t: "  \n", "is empty"),
            (lambda t: "[]", "holds no query"),
            (lambda t: t[: len(t) // 2], "damaged or cut off"),
            (lambda t: t.rstrip().removesuffix("]"), "damaged or cut off"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : nan'), r"(?s)damaged.*nan for a time"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : -inf'), r"(?s)damaged.*inf for a time"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : NaN'), r"(?s)damaged.*NaN for a time"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : 1e999'), r"computeMs of query 1 is no time"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : "4"'), r"computeMs of query 1 is no time"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : true'), r"computeMs of query 1 is no time"),
            (lambda t: t.replace('"computeMs" : 4', '"computeMs" : -4'), r"computeMs of query 1 is negative"),
            (lambda t: t.replace('"latencyMs" : 5.5', '"latencyMs" : 6.5'), r"(?s)latencyMs of query 1.*sum.*5.5 ms"),
            (lambda t: t.replace('"endComputeMs" : 207', '"endComputeMs" : 107'), r"query 1 ends before it begins"),
            (lambda t: t.replace('"d2hMs" : 1,', ""), r"query 1 lacks 'd2hMs'"),
            (lambda t: '{"a": 1}', "no file of trtexec"),
            (lambda t: "[1, 2]", "query 0 lacks"),
            (lambda t: "3", "no file of trtexec"),
            (lambda t: "[" * 100_000, "damaged or cut off"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, change: Callable[[str], str], says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            read(tmp_path, change(TIMES))
        assert "int8.json" in caught.value.what

    def test_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="not UTF-8"):
            read(tmp_path, b"\xff\xfe[")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            read_trtexec(tmp_path / "gone.json")

    @given(st.integers(1, 30), st.integers(0, 2**32 - 1))
    def test_what_is_written_is_read_again(self, tmp_path_factory: pytest.TempPathFactory, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        start = np.cumsum(rng.uniform(0.1, 100.0, n))
        h2d, compute, d2h, enqueue = (rng.uniform(1e-3, 50.0, n) for _ in range(4))
        times = QueryTimes(
            start - 0.5, start - 0.5 + enqueue, start, start + h2d, start + h2d, start + h2d + compute,
            start + h2d + compute, start + h2d + compute + d2h, h2d, compute, d2h, h2d + compute + d2h,
        )  # fmt: skip
        path = tmp_path_factory.mktemp("times") / "t.json"
        path.write_text(times_text(times))
        again = read_times(path)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(again, name), getattr(times, name), name)

    def test_the_form_is_trtexecs(self, tmp_path: Path) -> None:
        """Keys in its order, one query a line, so that scripts that cut lines work too."""
        path = tmp_path / "t.json"
        path.write_text(TIMES)
        mine, theirs = times_text(read_times(path)), TIMES
        assert [list(row) for row in json.loads(mine)] == [list(row) for row in json.loads(theirs)]
        assert json.loads(mine) == json.loads(theirs)
        assert [line[:2] for line in mine.splitlines()] == [line[:2] for line in theirs.splitlines()]

    def test_times_of_the_host_are_known_again(self, tmp_path: Path) -> None:
        start, spent = np.array([1.0, 4.0]), np.array([2.0, 3.0])
        zero, end = np.zeros(2), np.array([3.0, 7.0])
        times = QueryTimes(start, end, start, start, start, end, end, end, zero, spent, zero, spent)
        found = figures(tmp_path, times_text(times)).figures
        assert (found.clock, found.compute, found.enqueue, found.batch_size) == (HOST_CLOCK, None, None, None)
        assert found.cautions("x") == ()


class TestProfile:
    def test_names_that_are_not_escaped(self, tmp_path: Path) -> None:
        found = read(tmp_path, PROFILE)
        assert isinstance(found, ImportedProfile)
        assert found.runs == 20
        assert found.rows == (
            ProfileRow("Conv_0 + Relu_1", 40.0, 2.0, 1.9, 80.0),
            ProfileRow('a "quoted" name, "timeMs" : 1 } of \\ Reformat', 10.0, 0.5, 0.4, 20.0),
        )

    def test_without_medians(self, tmp_path: Path) -> None:
        text = '[\n  { "count" : 3 }\n, { "name" : "x", "timeMs" : 6, "averageMs" : 2, "percentage" : 100 }\n]\n'
        found = read(tmp_path, text)
        assert isinstance(found, ImportedProfile)
        assert found.rows == (ProfileRow("x", 6.0, 2.0, None, 100.0),)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda t: t.rstrip().removesuffix("]"), "damaged or cut off"),
            (lambda t: t.replace('"count" : 20', '"count" : 0'), "profiles nothing"),
            (lambda t: '[\n  { "count" : 20 }\n]\n', "profiles nothing"),
            (lambda t: t.replace('"timeMs" : 40', '"timeMs" : nan'), "a time of a layer is none"),
            (lambda t: t.replace('"timeMs" : 40', '"timeMs" : -40'), "a time of a layer is none"),
            (lambda t: t.replace('"averageMs" : 2,', '"averageMs" : 2..3,'), "a time of a layer is none"),
            (lambda t: t.replace('"averageMs" : 2,', ""), "is no layer of a profile"),
            (lambda t: t.replace('"count" : 20 }', '"count" : 20, }'), "damaged or cut off"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, change: Callable[[str], str], says: str) -> None:
        with pytest.raises(DataError, match=says):
            read(tmp_path, change(PROFILE))

    @given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=5))
    def test_what_is_written_is_read_again(self, tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
        rows = tuple(ProfileRow(name, 1.5, 0.5, None if i % 2 else 0.25, 10.0) for i, name in enumerate(names))
        text = profile_text(3, rows)
        parsed: list[dict[str, Any]] = json.loads(text)
        assert [row["name"] for row in parsed[1:]] == names, "ours is JSON"
        path = tmp_path_factory.mktemp("profile") / "p.json"
        path.write_text(text, encoding="utf-8", newline="")
        found = read_trtexec(path)
        assert isinstance(found, ImportedProfile)
        assert found.rows == rows
