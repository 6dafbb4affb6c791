"""``quantlab bench`` on real engines: files, sweeps, files of trtexec, a saved bench, builds, profiles."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Bench, Cli

from quantlab.engines.onnxruntime import OnnxRuntimeEngine
from quantlab.engines.protocol import Arrays
from quantlab.errors import MeasurementError
from quantlab.harness.bench import Bench as Result
from quantlab.harness.trtexec_files import read_times

FP32, FP16, INT8 = "onnxruntime-fp32", "onnxruntime-fp16", "onnxruntime-int8-mse"
QUICK = ("--threads", "1", "--seconds", "0.2", "--query-seconds", "0.02")
FILES = {"bench.json", "bench.csv", "bench.md"}


@pytest.fixture
def ready(bench: Bench) -> Bench:
    bench.take("net.onnx", "engines", "eval", "calibration", "unit.toml")
    return bench


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_random_numbers_and_what_it_says_of_them(ready: Bench, cli: Cli) -> None:
    answer = cli("bench", *QUICK, "-o", "out")
    assert answer.code == 0, answer.err
    assert names(ready / "out") == FILES
    assert "random-inputs: timed on random numbers" in answer.out
    assert f"emulated: {FP16}: it only emulates fp16" in " ".join(answer.out.split())
    found = Result.load(ready / "out/bench.json")
    assert found.reference == FP32
    assert [engine.name for engine in found.engines] == [FP32, FP16, INT8]
    assert (found.data, found.data_sha256) == ("random numbers, seed 0", None)
    (point,) = found.interleaved
    assert len(point.timings.blocks_ms[FP32]) == len(point.timings.order) >= 2
    assert found.before.taken <= found.after.taken
    rows = list(csv.DictReader(io.StringIO((ready / "out/bench.csv").read_text())))
    assert [row["engine"] for row in rows] == [FP32, FP16, INT8]
    assert all(float(row["latency_median_ms"]) > 0 and float(row["load_ms"]) > 0 for row in rows)


def test_json_is_the_saved_document(ready: Bench, cli: Cli) -> None:
    answer = cli("bench", *QUICK, "--json", "-o", "out")
    assert answer.document() == json.loads((ready / "out/bench.json").read_text())
    again = cli("report", "out/bench.json", "--format", "markdown")
    assert again.out.rstrip("\n") == (ready / "out/bench.md").read_text().rstrip("\n")
    inspected = cli("inspect", "out/bench.json")
    assert inspected.code == 0 and "reference onnxruntime-fp32" in inspected.out


def test_real_samples(ready: Bench, cli: Cli) -> None:
    answer = cli("bench", *QUICK, "--data", "eval", "--preprocess", "unit.toml", "--batch", "4", "-o", "out")
    assert answer.code == 0, answer.err
    found = Result.load(ready / "out/bench.json")
    assert found.data == "the first 4 samples of eval" and found.data_sha256 is not None
    assert "random-inputs" not in answer.out
    assert found.settings.batches == (4,)


def test_end_to_end(ready: Bench, cli: Cli) -> None:
    answer = cli(
        "bench", f"engines/{FP32}.onnx", f"engines/{INT8}.onnx", "--data", "eval", "--preprocess", "unit.toml",
        "--end-to-end", "--batch", "1,4", "--threads", "2", "--seconds", "0.1", "--query-seconds", "0", "-o", "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = Result.load(ready / "out/bench.json")
    assert found.settings.end_to_end
    assert [(p.threads, p.batch_size, p.readers, p.samples) for p in found.end_to_end] == [(2, 1, 1, 12), (2, 4, 2, 12)]
    for point in found.end_to_end:
        assert list(point.timings.latencies) == [FP32, INT8]
        for name, latency in point.timings.latencies.items():
            assert 0.0 < point.reading.latencies[name].median_ms < latency.median_ms
        assert point.timings.order == point.reading.order
    assert "Latency end to end, from files to outputs" in answer.out
    rows = list(csv.DictReader(io.StringIO((ready / "out/bench.csv").read_text())))
    assert all(float(row["end_to_end_median_ms"]) > float(row["reading_median_ms"]) > 0 for row in rows)


def test_sweeps(ready: Bench, cli: Cli) -> None:
    answer = cli(
        "bench", f"engines/{INT8}.onnx", "--threads", "1,2", "--batch", "1,3", "--streams", "1,2", "--seconds", "0.05",
        "--query-seconds", "0.01", "--export-times", "times", "-o", "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = Result.load(ready / "out/bench.json")
    assert found.reference == INT8, "the only engine"
    assert [(row.threads, row.batch_size, row.streams) for row in found.queries] == [
        (threads, batch, streams) for threads in (1, 2) for batch in (1, 3) for streams in (1, 2)
    ]
    assert [(point.threads, point.batch_size) for point in found.interleaved] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert [opening.threads for opening in found.openings] == [1, 2]
    assert len(names(ready / "times")) == 8
    for row in found.queries:
        times = read_times(ready / f"times/{INT8}-t{row.threads}-b{row.batch_size}-s{row.streams}.times.json")
        assert len(times.latency_ms) == row.figures.queries


def test_files_of_trtexec_beside_engines(ready: Bench, cli: Cli) -> None:
    first = cli("bench", f"engines/{FP32}.onnx", *QUICK, "--export-times", "times", "-o", "out")
    assert first.code == 0, first.err
    ready.write(
        "layers.json",
        '[\n { "count" : 2 }\n, { "name" : "a"b", "timeMs" : 4, "averageMs" : 2, "percentage" : 100 }\n]\n',
    )
    answer = cli("bench", f"engines/{FP32}.onnx", f"times/{FP32}.times.json", "layers.json", *QUICK, "-o", "both")
    assert answer.code == 0, answer.err
    found = Result.load(ready / "both/bench.json")
    before = Result.load(ready / "out/bench.json")
    assert found.imported[0].figures.latency == before.queries[0].figures.latency
    assert found.imported_profiles[0].rows[0].name == 'a"b'
    assert [c.subject for c in found.cautions if c.code == "environment-unknown"] == [f"{FP32}.times", "layers"]


def test_files_of_trtexec_alone(ready: Bench, cli: Cli) -> None:
    assert cli("bench", f"engines/{FP32}.onnx", *QUICK, "--export-times", "times", "-o", "out").code == 0
    answer = cli("bench", f"times/{FP32}.times.json", "-o", "alone")
    assert answer.code == 0, answer.err
    found = Result.load(ready / "alone/bench.json")
    assert (found.reference, found.engines, found.interleaved) == (None, (), ())
    assert "1 file of trtexec" in answer.out


def test_against_a_saved_bench(ready: Bench, cli: Cli) -> None:
    assert cli("bench", *QUICK, "-o", "old").code == 0
    answer = cli("bench", *QUICK, "--against", "old/bench.json", "-o", "new")
    assert answer.code == 0, answer.err
    found = Result.load(ready / "new/bench.json")
    assert found.change is not None
    assert [(row.engine, row.same_engine) for row in found.change.rows] == [(FP32, True), (FP16, True), (INT8, True)]
    assert "Against the saved bench" in answer.out


def test_an_unlike_environment_is_refused_before_anything_is_measured(ready: Bench, cli: Cli) -> None:
    assert cli("bench", *QUICK, "-o", "old").code == 0

    def elsewhere(document: dict[str, Any]) -> None:
        document["fingerprint"]["processor"] = "another one"
        document["fingerprint"]["packages"]["onnxruntime"] = "0.1"

    ready.edit_json("old/bench.json", elsewhere)
    answer = cli("bench", *QUICK, "--against", "old/bench.json", "-o", "new")
    assert answer.code == 5
    assert "processor: " in answer.err and "another one there" in answer.err
    assert "packages.onnxruntime: " in answer.err and "0.1 there" in answer.err
    assert not (ready / "new").exists()
    assert "timing" not in answer.err
    allowed = cli("bench", *QUICK, "--against", "old/bench.json", "--allow-env-mismatch", "-o", "new")
    assert allowed.code == 0, allowed.err
    found = Result.load(ready / "new/bench.json")
    assert found.change is not None
    assert [difference.key for difference in found.change.differences] == ["processor", "packages.onnxruntime"]
    assert "environment-differs" in allowed.out


def test_builds_against_each_other(ready: Bench, cli: Cli) -> None:
    answer = cli(
        "bench", f"engines/{FP32}.onnx", f"engines/{INT8}.onnx", *QUICK, "--rebuilds", "2", "--model", "net.onnx",
        "--table", "calibration/calibration.json", "-o", "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = Result.load(ready / "out/bench.json")
    assert [(one.engine, len(one.builds), one.different_files) for one in found.rebuilds] == [
        (FP32, 2, 1),
        (INT8, 2, 1),
    ]
    sha256 = {engine.name: engine.sha256 for engine in found.engines}
    assert all(one.builds[0].sha256 == sha256[one.engine] for one in found.rebuilds), "the same variant"


def test_fresh_processes(ready: Bench, cli: Cli) -> None:
    answer = cli("bench", f"engines/{FP32}.onnx", f"engines/{INT8}.onnx", *QUICK, "--processes", "2", "-o", "out")
    assert answer.code == 0, answer.err
    (point,) = Result.load(ready / "out/bench.json").interleaved
    assert len(point.timings.processes) == 2


def test_a_profile(ready: Bench, cli: Cli) -> None:
    answer = cli("bench", f"engines/{FP32}.onnx", *QUICK, "--profile", "--export-times", "times", "-o", "out")
    assert answer.code == 0, answer.err
    assert names(ready / "out") == FILES | {"profile.json", "profile.csv", "profile.md"}
    assert "Profile of the layers" in answer.out or "Layers of" in answer.out
    document = json.loads((ready / f"times/{FP32}.profile.json").read_text())
    assert document[0]["count"] > 0 and sum(row["percentage"] for row in document[1:]) == pytest.approx(100.0)


def test_queries_alone(ready: Bench, cli: Cli) -> None:
    answer = cli("bench", "--threads", "1", "--seconds", "0", "--query-seconds", "0.02", "-o", "out")
    assert answer.code == 0, answer.err
    found = Result.load(ready / "out/bench.json")
    assert found.interleaved == () and len(found.queries) == 3


def test_an_engine_that_dies_does_not_cost_the_others(cli: Cli, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = OnnxRuntimeEngine.run, [0]

    def dying(self: OnnxRuntimeEngine, inputs: Arrays) -> dict[str, object]:
        if "int8" in self.sidecar.name:
            calls[0] += 1
            if calls[0] > 20:
                raise MeasurementError("the engine died")
        return dict(run(self, inputs))

    bench.take("engines")
    monkeypatch.setattr(OnnxRuntimeEngine, "run", dying)
    answer = cli("bench", *QUICK, "-o", "out")
    assert answer.code == 0, answer.err
    document = json.loads((bench / "out" / "bench.json").read_text())
    timed = document["interleaved"][0]["timings"]["latencies"]
    assert sorted(timed) == ["onnxruntime-fp16", "onnxruntime-fp32"]
    (failure,) = [one for one in document["degradations"] if one["code"] == "engine-failed"]
    assert "int8" in failure["message"] and "the engine died" in failure["message"]
