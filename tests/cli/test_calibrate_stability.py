"""``calibrate --stability``: the same table, and how far its ranges move."""

from __future__ import annotations

import json

import pytest
from cli_bench import Bench, Cli, tree

from quantlab.errors import ExitCode


@pytest.fixture
def calibrate(bench: Bench) -> tuple[str, ...]:
    bench.take("net.onnx", "unit.toml")
    bench.images("images", per_class=16)
    return ("calibrate", "--data", "images", "--preprocess", "unit.toml", "--method", "percentile")


def test_the_table_is_the_same_and_the_ranges_are_compared(bench: Bench, cli: Cli, calibrate: tuple[str, ...]) -> None:
    assert cli(*calibrate, "-o", "plain", "--threads", "1").code == 0
    answer = cli(*calibrate, "-o", "grouped", "--stability", "--threads", "2")
    assert answer.code == 0, answer.err
    found = tree(bench / "grouped")
    stability = found.pop("stability.json")
    assert stability and found == tree(bench / "plain")
    assert "Stability of the ranges" in answer.out and "wrote grouped/stability.json" in answer.out
    assert "calibrating: 64 samples" in answer.err
    document = json.loads((bench / "grouped/stability.json").read_text())
    assert (document["n_samples"], document["n_groups"], document["seed"]) == (64, 16, 0)
    assert [size["images"] for size in document["sizes"]] == [4, 8, 16, 32]


def test_it_is_a_result_like_others(bench: Bench, cli: Cli, calibrate: tuple[str, ...]) -> None:
    printed = cli(*calibrate, "--stability", "--json").document()
    path = "calibration/stability.json"
    assert printed["stability"]["file"] == path
    assert printed["stability"]["enough_images"] == json.loads((bench / path).read_text())["enough_images"]
    assert printed["stability"]["conclusion"].lower() in " ".join(cli("report", path).out.lower().split())
    assert cli("report", path, "--format", "markdown").out.startswith("# net")
    assert cli("report", path, "--format", "csv").out.startswith("images,groups,subsets,")
    assert cli("report", path, "--format", "junit").code == ExitCode.USAGE
    assert cli("inspect", path).out == cli("report", path).out
    assert cli("inspect", path, "--json").document()["schema"] == "quantlab.stability/1"
    assert cli(*calibrate).code == 0  # the calibration is made anew, without
    assert not (bench / path).exists()


def test_refused(bench: Bench, cli: Cli, calibrate: tuple[str, ...]) -> None:
    answer = cli(*calibrate, "--limit", "15", "--stability")
    assert answer.code == ExitCode.BAD_INPUT and "at least 16" in answer.err
    answer = cli(*calibrate, "--method", "minmax", "--minmax-only", "--stability")
    assert answer.code == ExitCode.USAGE and "--minmax-only" in answer.err
    answer = cli("calibrate", "--merge", "a", "b", "--stability")
    assert answer.code == ExitCode.USAGE and "--merge takes no --stability" in answer.err
    assert not (bench / "calibration").exists()
