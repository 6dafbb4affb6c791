"""A saved bench is read again as it was, or refused; a bench against a saved one; builds against each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_examples import FP32, INT8, PRINT, bench, engine, timings
from scipy import stats

from quantlab.errors import DataError, MeasurementError
from quantlab.harness.bench import Bench, BenchSettings, Interleaved
from quantlab.harness.bench_change import change_since, difference_cautions
from quantlab.harness.rebuilds import Build, rebuilds
from quantlab.harness.surroundings import differences
from quantlab.precision import Precision
from quantlab.statistics.interval import Interval


class TestSaved:
    def test_round_trip(self, tmp_path: Path) -> None:
        whole = bench()
        whole = dataclasses.replace(whole, change=change_since(whole, bench(), ()))
        path = tmp_path / "bench.json"
        path.write_text(whole.to_json())
        assert Bench.load(path) == whole

    def test_it_holds_the_raw_blocks(self) -> None:
        document = json.loads(bench().to_json())
        assert document["schema"] == "quantlab.bench/1"
        found = document["interleaved"][0]["timings"]
        assert found["blocks_ms"][FP32] == [2.5, 2.5]
        assert found["order"] == [[0, 1, 2], [2, 1, 0]]
        assert found["settings"]["seed"] == 0

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda d: d.update(reference="gone"), "is damaged"),
            (lambda d: d["engines"].append(d["engines"][0]), "is damaged"),
            (lambda d: d["engines"].pop(), "is damaged"),
            (lambda d: d["queries"][0].update(engine="gone"), "is damaged"),
            (lambda d: d.pop("settings"), "lacks the key 'settings'"),
            (lambda d: d.update(schema="quantlab.bench/9"), "another schema"),
            (lambda d: d["cautions"][0].update(code="warm"), "has a wrong value"),
        ],
    )
    def test_damage(self, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
        document = json.loads(bench().to_json())
        change(document)
        path = tmp_path / "bench.json"
        path.write_text(json.dumps(document))
        with pytest.raises(DataError, match=says):
            Bench.load(path)


class TestChange:
    def test_by_hand(self) -> None:
        """INT8 from 0.6 of FP32 to 0.75: the intervals [0.594, 0.606] and [0.7425, 0.7575] lie apart."""
        now = bench(interleaved=(Interleaved(2, 8, timings(tensorrt_rtx_fp32=1.0, tensorrt_rtx_int8_mse=0.75)),))
        found = change_since(now, bench(), ())
        reference, int8 = found.rows
        assert (reference.engine, reference.ratio_change_percent, reference.apart) == (FP32, None, None)
        assert reference.change_percent == 0.0
        assert (int8.engine, int8.apart, int8.same_engine) == (INT8, True, True)
        assert (int8.before_ms, int8.after_ms) == (1.5, 1.875)
        assert int8.change_percent == pytest.approx(25.0)
        assert int8.ratio_change_percent == pytest.approx(25.0)
        assert found.taken == "2026-11-21T20:00:00+00:00"
        assert found.remarks == ()

    def test_overlapping_intervals_are_not_apart(self) -> None:
        now = bench(interleaved=(Interleaved(2, 8, timings(tensorrt_rtx_fp32=1.0, tensorrt_rtx_int8_mse=0.61)),))
        assert change_since(now, bench(), ()).rows[1].apart is False

    def test_what_else_differs_is_said(self) -> None:
        now = bench(
            data="the first 8 samples of val",
            settings=BenchSettings(batches=(8,), processes=3),
            engines=(engine(FP32, Precision.FP32, 1), dataclasses.replace(engine(INT8, Precision.INT8, 2),
                                                                          model_sha256="b" * 64)),
            interleaved=(Interleaved(1, 8, timings(tensorrt_rtx_fp32=1.0)),),
        )  # fmt: skip
        found = change_since(now, bench(), ())
        assert found.rows == ()
        assert found.remarks == (
            "timed on random numbers, seed 0 then, on the first 8 samples of val now",
            "engines of model aaaaaaaaaaaa then, of aaaaaaaaaaaa, bbbbbbbbbbbb now",
            "1 processes then, 3 now",
            f"measured only now: {FP32} t1 b8",
            f"measured only then: {FP32} t2 b8, {INT8} t2 b8",
        )

    def test_another_file_of_the_same_name(self) -> None:
        now = bench(engines=(engine(FP32, Precision.FP32, 4_000_000), engine(INT8, Precision.INT8, 7)))
        assert [row.same_engine for row in change_since(now, bench(), ()).rows] == [True, False]

    def test_an_allowed_difference_is_a_caution(self) -> None:
        found = differences(PRINT, dataclasses.replace(PRINT, governor="powersave"))
        (caution,) = difference_cautions(found, "old.json")
        assert "governor: performance here, powersave there" in str(caution)
        assert difference_cautions((), "old.json") == ()


def build(ratio: float, error: float | None = 0.01, sha256: str = "") -> Build:
    half = 1.959963984540054 * (error or 0.01)
    interval = Interval(ratio * float(np.exp(-half)), ratio * float(np.exp(half)), 0.95)
    return Build(sha256 or f"{ratio}", 1.0, ratio, ratio, interval, error)


class TestRebuilds:
    def test_by_hand(self) -> None:
        """Logs -0.1, 0, 0.1: variance 0.01; measuring has 0.01**2, so 0.0099 is between builds."""
        found = rebuilds("int8", [build(float(np.exp(x))) for x in (-0.1, 0.0, 0.1)])
        assert found.between_percent == pytest.approx(100 * np.sqrt(0.0099))
        assert found.within_percent == pytest.approx(1.0)
        assert found.ratio == pytest.approx(1.0)
        assert found.different_files == 3
        low, high = stats.t.interval(0.95, 2, loc=0.0, scale=0.1 / np.sqrt(3))
        assert (found.interval.low, found.interval.high) == pytest.approx((np.exp(low), np.exp(high)))

    def test_errors_from_intervals_where_nothing_else_is_known(self) -> None:
        known = rebuilds("int8", [build(1.0, 0.01), build(1.1, 0.01)])
        plain = [dataclasses.replace(one, log_error=None) for one in known.builds]
        assert rebuilds("int8", plain).within_percent == pytest.approx(known.within_percent)

    def test_builds_alike(self) -> None:
        found = rebuilds("int8", [build(0.5, 0.02, "same"), build(0.505, 0.02, "same")])
        assert (found.between_percent, found.different_files) == (0.0, 1)

    def test_builds_that_agree_by_chance_are_no_surer_than_their_measurement(self) -> None:
        found = rebuilds("int8", [build(0.5, 0.02), build(0.5, 0.02)])
        low, high = np.exp(stats.t.interval(0.95, 1, loc=np.log(0.5), scale=0.02 / np.sqrt(2)))
        assert (found.interval.low, found.interval.high) == pytest.approx((low, high))

    def test_one_build(self) -> None:
        with pytest.raises(MeasurementError, match="only be compared with each other"):
            rebuilds("int8", [build(1.0)])

    def test_the_split_on_simulated_builds(self) -> None:
        """Builds that differ by 3 % and are measured to 1 %: both are found again."""
        rng = np.random.default_rng(5)
        logs = rng.normal(0.0, 0.03, 400) + rng.normal(0.0, 0.01, 400)
        found = rebuilds("int8", [build(float(np.exp(x))) for x in logs])
        assert found.between_percent == pytest.approx(3.0, rel=0.1)
        assert found.interval.low < 1.0 < found.interval.high


class TestRelative:
    def test_to_the_reference_in_the_same_setting(self) -> None:
        made = bench()
        fp32, int8, fp32_two, host_two = (row.figures for row in made.queries)
        assert made.relative(fp32, (2, 8, 1)) == 1.0
        assert made.relative(int8, (2, 8, 1)) == pytest.approx(1.5 / 2.5)
        assert made.relative(fp32_two, (2, 8, 2)) == 1.0
        assert made.relative(host_two, (2, 8, 2)) is None, "another clock"
        assert made.relative(int8, (1, 8, 1)) is None, "the reference was not queried so"

    def test_a_file_is_compared_with_what_is_timed_alike(self) -> None:
        made = bench()
        found = made.imported[0].figures
        assert made.relative(found, None) == pytest.approx(3.0 / 2.5)
        assert made.relative(dataclasses.replace(found, transfers=False), None) is None
