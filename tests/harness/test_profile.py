"""Profiles of several engines: rounds, control, what is left out, and the sentences."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from harness_data import Arrays, FunctionEngine

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.errors import ConfigError, DataError, EngineMismatch, MeasurementError
from quantlab.harness.alignment import align
from quantlab.harness.footprint import Footprint
from quantlab.harness.profile import EngineProfile, Profiles, noise_ratio, profile_engines, typical_layers
from quantlab.harness.profile_words import gains, notes, regressions, worst_first
from quantlab.precision import Execution, Precision

COMPUTE, REFORMAT, QUANTIZE = LayerKind.COMPUTE, LayerKind.REFORMAT, LayerKind.QUANTIZE
INPUTS = {"x": np.zeros((4, 2), np.float32)}
FP32, INT8 = "onnxruntime-fp32", "onnxruntime-int8-mse"


def layer(
    source: str, ms: float, kind: LayerKind = COMPUTE, operator: str = "Conv", precision: str = "fp32"
) -> LayerTime:
    return LayerTime(f"{source}_{operator}", tuple(source.split("+")), kind, ms, operator, precision)


class TimedEngine(FunctionEngine):
    """Gives the layers of one round after the other, the last again and again."""

    log: list[str]

    def __init__(self, name: str, *rounds: Sequence[LayerTime] | Exception, **values: object) -> None:
        super().__init__(name, lambda x: x, **values)
        self.rounds = list(rounds)
        self.log = []

    def layer_times(self, inputs: Arrays, runs: int = 10) -> tuple[LayerTime, ...]:
        self.log.append(self.sidecar.name)
        found = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        if isinstance(found, Exception):
            raise found
        return tuple(found)


def profiles(*engines: Sequence[LayerTime], requested: Precision = Precision.INT8, noise: float = 1.0) -> Profiles:
    made = tuple(
        EngineProfile(name, "onnxruntime", kind, Execution.NATIVE, 5.0, tuple(layers))
        for name, kind, layers in zip((FP32, INT8), (Precision.FP32, requested), engines, strict=False)
    )
    return Profiles(FP32, made, align(engines), 10, 3, 1, noise, {})


class TestProfileEngines:
    def test_two(self) -> None:
        fast = TimedEngine(INT8, [layer("conv", 1, operator="QLinearConv"), layer("fc", 4)], requested=Precision.INT8)
        found = profile_engines([TimedEngine(FP32, [layer("conv", 2), layer("fc", 4)]), fast], INPUTS, 5)
        assert (found.reference, found.runs, found.rounds, found.batch_size) == (FP32, 5, 3, 4)
        assert [engine.name for engine in found.engines] == [FP32, INT8]
        assert [[cell.ms if cell else None for cell in row.cells] for row in found.rows] == [[2, 1], [4, 4]]
        assert [engine.total_ms for engine in found.engines] == [6, 5]
        assert all(engine.run_ms >= 0 for engine in found.engines)
        assert (found.noise_ratio, found.left_out) == (1.0, {})

    def test_order_is_turned_round_and_the_reference_goes_twice(self) -> None:
        one, two = TimedEngine("a", [layer("n", 1)]), TimedEngine("b", [layer("n", 1)])
        two.log = one.log
        profile_engines([one, two], INPUTS, 1, rounds=3)
        assert one.log == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]

    def test_the_control_is_the_noise(self) -> None:
        """Reference and control take turns: 1, 2, then 2, 1 in the round that is turned, and so on."""
        times = [[layer("n", ms)] for ms in (1.0, 2.0, 2.0, 1.0, 1.0, 2.0)]
        found = profile_engines([TimedEngine("a", *times)], INPUTS, 1, rounds=3)
        assert found.noise_ratio == 2.0
        assert found.engines[0].layers[0].ms == 1.0

    def test_reference(self) -> None:
        engines = [TimedEngine("a", [layer("n", 1)]), TimedEngine("b", [layer("n", 2)])]
        found = profile_engines(engines, INPUTS, 1, reference="b")
        assert (found.reference, found.baseline, found.candidates) == ("b", 1, (0,))
        first, second = found.rows[0].cells
        assert first is not None and second is not None
        assert (first.ratio, second.ratio) == (0.5, None)

    def test_engines_without_layer_times_are_left_out(self) -> None:
        plain = FunctionEngine("onnxruntime-cuda-fp32", lambda x: x, backend="onnxruntime-cuda")
        broken = TimedEngine("broken", MeasurementError("it died", got="signal 11"))
        stale = TimedEngine("stale", EngineMismatch("it changed"))
        empty = TimedEngine("empty", [])
        late = TimedEngine("late", [layer("n", 1)], MeasurementError("it died later"))
        engines = [plain, broken, TimedEngine(FP32, [layer("n", 1)]), empty, late, stale]
        found = profile_engines(engines, INPUTS, 1, reference=FP32)
        assert [engine.name for engine in found.engines] == [FP32]
        assert found.left_out == {
            "onnxruntime-cuda-fp32": "the backend onnxruntime-cuda does not time layers",
            "broken": "it died: signal 11",
            "empty": "the profiler of onnxruntime recorded no layers of empty",
            "late": "it died later",
            "stale": "it changed",
        }
        assert notes(found)[-2:] == ("stale has no profile: it changed.", "late has no profile: it died later.")

    def test_the_reference_must_work(self) -> None:
        good = TimedEngine("good", [layer("n", 1)])
        with pytest.raises(MeasurementError, match="it died"):
            profile_engines([TimedEngine("bad", MeasurementError("it died")), good], INPUTS, 1)
        with pytest.raises(MeasurementError, match="does not time layers"):
            profile_engines([good, FunctionEngine("plain", lambda x: x)], INPUTS, 1, reference="plain")
        with pytest.raises(MeasurementError, match="none of the engines can be profiled"):
            profile_engines([FunctionEngine("plain", lambda x: x)], INPUTS, 1)
        with pytest.raises(MeasurementError, match="none of the engines can be profiled"):
            profile_engines([], INPUTS, 1)
        with pytest.raises(ConfigError, match="no engine is named 'god'"):
            profile_engines([good], INPUTS, 1, reference="god")

    @pytest.mark.parametrize(("runs", "rounds"), [(0, 1), (1, 0), (-1, 1)])
    def test_counts(self, runs: int, rounds: int) -> None:
        with pytest.raises(ConfigError, match="at least one run"):
            profile_engines([TimedEngine("a", [layer("n", 1)])], INPUTS, runs, rounds=rounds)

    @pytest.mark.parametrize("ms", [float("nan"), float("inf"), -1.0])
    def test_times_that_are_none(self, ms: float) -> None:
        with pytest.raises(MeasurementError, match="a time that is none"):
            profile_engines([TimedEngine("a", [layer("n", ms)])], INPUTS, 1)

    def test_names_that_are_no_text_can_be_saved(self, tmp_path: Path) -> None:
        odd = LayerTime("a\ud800", ("b\udfff", "b\udfff", "c"), COMPUTE, 1.0, "\ud800", "\ud800")
        found = profile_engines([TimedEngine("a", [odd])], INPUTS, 1)
        (tmp_path / "p.json").write_text(found.to_json(), encoding="utf-8")
        assert Profiles.load(tmp_path / "p.json") == found
        assert found.rows[0].nodes == ("b?", "c")


class TestTypicalLayers:
    def test_medians_by_layer(self) -> None:
        rounds = [[layer("a", ms), layer("a", 10 * ms), layer("b", 5)] for ms in (1, 3, 2)]
        assert [one.ms for one in typical_layers(rounds)] == [2, 20, 5]

    def test_layers_that_only_some_rounds_have(self) -> None:
        rounds = [[layer("a", 1)], [layer("a", 1), layer("b", 8)], [layer("b", 6), layer("a", 1)]]
        assert [(one.sources, one.ms) for one in typical_layers(rounds)] == [(("a",), 1), (("b",), 6)]

    def test_nothing(self) -> None:
        assert typical_layers([]) == ()
        assert typical_layers([[], []]) == ()


class TestNoise:
    def test_95_percent_of_the_larger_rows(self) -> None:
        """19 of 20 rows agree within 1.25, one is far off; what takes less than 1 % is not looked at."""
        reference = [layer(f"n{i}", 10.0) for i in range(20)] + [layer("tiny", 0.5)]
        control = [layer(f"n{i}", 8.0) for i in range(19)] + [layer("n19", 100.0), layer("tiny", 500.0)]
        assert noise_ratio(reference, control) == 1.25

    def test_without_rows(self) -> None:
        assert noise_ratio([], []) == 1.0
        assert noise_ratio([layer("a", 1)], []) == 1.0
        assert noise_ratio([layer("a", 0)], [layer("a", 1)]) == 1.0


class TestWords:
    def test_slower_in_float_with_conversions_around_it(self) -> None:
        """The sentence that the profile is for."""
        around = [layer("conv1+relu", 2, QUANTIZE, "QuantizeLinear", "fp32") for _ in range(4)]
        found = profiles([layer("conv1+relu", 10)], [*around, layer("conv1+relu", 23, operator="FusedConv")])
        (change,) = regressions(found, 1)
        assert change.words == (
            "conv1 + relu got 3.1x slower (10.000 to 31.000 ms): it runs in float with 4 quantize/dequantize nodes "
            "around it, 26 % of its time"
        )
        assert (change.ratio, change.difference_ms, change.engine) == (3.1, 21, INT8)
        assert gains(found, 1) == ()

    def test_faster(self) -> None:
        found = profiles([layer("fc", 10)], [layer("fc", 4, operator="QGemm", precision="uint8")])
        (change,) = gains(found, 1)
        assert change.words == "fc got 2.5x faster (10.000 to 4.000 ms): it runs as QGemm in uint8"
        assert regressions(found, 1) == ()

    def test_the_same_kernel_has_no_reason(self) -> None:
        (change,) = regressions(profiles([layer("a", 10)], [layer("a", 20)]), 1)
        assert change.words == "a got 2.0x slower (10.000 to 20.000 ms)"

    def test_reformats_are_said_where_they_differ(self) -> None:
        base = [layer("a", 10), layer("a", 1, REFORMAT, "ReorderInput")]
        more = [*base, layer("a", 9, REFORMAT, "ReorderOutput")]
        (change,) = regressions(profiles(base, more), 1)
        assert change.words.endswith(": with 2 reformats around it, 50 % of its time")
        (change,) = regressions(profiles(base, [layer("a", 20), base[1]]), 1)
        assert "reformat" not in change.words

    def test_a_float_variant_runs_in_float_and_that_is_no_news(self) -> None:
        around = layer("a", 5, QUANTIZE, "QuantizeLinear")
        (change,) = regressions(profiles([layer("a", 10)], [layer("a", 20), around], requested=Precision.FP16), 1)
        assert "in float" not in change.words

    def test_layers_of_one_engine_only(self) -> None:
        found = profiles([layer("a", 10), layer("b", 10)], [layer("a", 10), layer("new", 5)])
        assert [change.words for change in regressions(found, 1)] == [
            f"new takes 5.000 ms (33.3 %) and has no time in {FP32}: it runs as Conv in fp32"
        ]
        assert [change.words for change in gains(found, 1)] == [
            "b is computed with other layers, or not at all (10.000 ms saved)"
        ]

    @pytest.mark.parametrize(
        ("ms", "noise", "said"),
        [(10.9, 1.0, 0), (11.1, 1.0, 1), (11.1, 1.2, 0), (12.1, 1.2, 1), (9.2, 1.0, 0), (9.0, 1.0, 1), (9.0, 1.2, 0)],
    )
    def test_differences_within_the_noise_are_not_said(self, ms: float, noise: float, said: int) -> None:
        found = profiles([layer("a", 10)], [layer("a", ms)], noise=noise)
        assert len(regressions(found, 1)) + len(gains(found, 1)) == said

    def test_small_layers_are_not_said(self) -> None:
        found = profiles([layer("a", 1000), layer("b", 1)], [layer("a", 1000), layer("b", 10.9)])
        assert regressions(found, 1) == ()

    def test_the_most_costly_first_and_no_more_than_asked_for(self) -> None:
        base = [layer(f"n{i}", 10) for i in range(8)]
        slow = [layer(f"n{i}", 20 + (i * 5) % 8) for i in range(8)]
        found = regressions(profiles(base, slow), 1, most=3)
        assert [change.difference_ms for change in found] == [17, 16, 15]

    def test_worst_first(self) -> None:
        found = profiles([layer("a", 5), layer("b", 1), layer("c", 9)], [layer("a", 4), layer("b", 3), layer("c", 10)])
        assert [row.nodes for row in worst_first(found)] == [("b",), ("c",), ("a",)]
        alone = profiles([layer("a", 5), layer("b", 1), layer("c", 9)])
        assert [row.nodes for row in worst_first(alone)] == [("c",), ("a",), ("b",)]

    def test_notes(self) -> None:
        copies = [layer("a", 3, REFORMAT, "ReorderInput") for _ in range(4)]
        found = profiles([layer("a", 88), *copies], [layer("a", 98), layer("a", 2, QUANTIZE, "QuantizeLinear")])
        emulated = dataclasses.replace(found.engines[1], execution=Execution.EMULATED)
        said = notes(dataclasses.replace(found, engines=(found.engines[0], emulated)))
        assert said[0] == (
            f"{FP32}: 5 layers; 4 reformats take 12 % of their time; the layers add up to 100.000 ms, a run without "
            "the profiler takes 5.000."
        )
        assert "1 quantize/dequantize node that nothing fused: 2 % of their time" in said[1]
        assert said[1].endswith("emulated: its times are not those of int8.")
        assert "are no latencies" in said[2]


class TestDocument:
    def found(self) -> Profiles:
        made = profiles([layer("a", 1), layer("b", 0)], [layer("a", 1), layer("c", 2, QUANTIZE, "Q")])
        return dataclasses.replace(made, footprints=(Footprint(FP32, 10, 1, 2, (1.0, 9.0, 2.0), (3.0,), (7, 5)),))

    def test_round_trip(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text(self.found().to_json(), encoding="utf-8")
        assert Profiles.load(tmp_path / "p.json") == self.found()

    def test_footprint(self) -> None:
        found = self.found().footprint(FP32)
        assert found is not None
        assert (found.processes, found.median_load_ms, found.median_first_run_ms) == (3, 2.0, 3.0)
        assert (found.median_peak_bytes, found.median_device_bytes) == (6, None)
        assert self.found().footprint(INT8) is None

    @pytest.mark.parametrize(
        "damage", [{"reference": "nobody"}, {"engines": []}, {"rows": [{"nodes": ["a"], "cells": []}]}, {"runs": "3"}]
    )
    def test_damage(self, tmp_path: Path, damage: dict[str, object]) -> None:
        document = json.loads(self.found().to_json()) | damage
        (tmp_path / "p.json").write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(DataError):
            Profiles.load(tmp_path / "p.json")
