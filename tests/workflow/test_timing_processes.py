"""Timing in fresh processes, with real engines."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from workflow_data import Recorder

from quantlab.datasets import sample_model
from quantlab.documents import dump_json
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import ConfigError, ExitCode, MeasurementError
from quantlab.graph.model import load_model
from quantlab.graph.prepare import prepare
from quantlab.graph.targets import ONNXRUNTIME
from quantlab.harness.latency import LatencySettings
from quantlab.precision import Precision
from quantlab.records import to_plain
from quantlab.workflow import timing_processes as module
from quantlab.workflow.timing_processes import time_in_processes

SETTINGS = LatencySettings(seconds=0.1, warmup_ms=1.0, block_ms=1.0, min_rounds=6, max_rounds=6, seed=4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = prepare(load_model(sample_model("fashion-resnet")))
    return OnnxRuntimeBuilder().build(
        Variant(prepared, "onnxruntime", Precision.FP32, ONNXRUNTIME), tmp_path_factory.mktemp("e")
    )


def inputs_of(engine: Path) -> dict[str, np.ndarray]:
    (entry,) = read_sidecar(engine).inputs
    return {entry.name: np.zeros((1, 1, 28, 28), np.float32)}


def test_each_process_runs_the_whole_protocol(engine: Path, recorder: Recorder) -> None:
    found = time_in_processes(
        [engine], "onnxruntime-fp32", inputs_of(engine), 1, SETTINGS, processes=2, threads=1, narrator=recorder
    )
    assert len(found.processes) == 2
    assert [one.settings.seed for one in found.processes] == [4, 5]
    assert found.processes[0].settings == replace(SETTINGS, seed=4)
    assert [len(one.order) for one in found.processes] == [6, 6]
    assert found.latencies["onnxruntime-fp32"].n_blocks == 12
    assert 0.0 < found.noise_floor.low < found.noise_floor.high < math.inf
    assert recorder.said == [f"timing in process {n} of 2 for about 0.1 s" for n in (1, 2)]


def test_an_error_in_a_process_is_named(engine: Path) -> None:
    with pytest.raises(MeasurementError, match="timing process 1 of 2 failed") as caught:
        time_in_processes([engine], "another", inputs_of(engine), 1, SETTINGS, processes=2)
    assert "no reference 'another'" in str(caught.value.got)


def test_a_process_that_is_killed_is_named(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            self.kill()

    monkeypatch.setattr(module.subprocess, "Popen", Killed)
    with pytest.raises(MeasurementError, match="timing process 1 of 3 died") as caught:
        time_in_processes([engine], "onnxruntime-fp32", inputs_of(engine), 1, SETTINGS)
    assert "SIGKILL" in str(caught.value.got)
    assert "memory" in str(caught.value.hint)


def test_an_interrupt_ends_the_process(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process would go on for an hour; the interrupt comes while it is waited for."""
    children: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            children.append(self)
            main = threading.main_thread().ident
            threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT)).start()

    monkeypatch.setattr(module.subprocess, "Popen", Kept)
    hour = replace(SETTINGS, seconds=3600.0, max_rounds=10**7, half_width=0.0)
    with pytest.raises(KeyboardInterrupt):
        time_in_processes([engine], "onnxruntime-fp32", inputs_of(engine), 1, hour)
    assert children[0].poll() is not None


def test_inputs_of_every_type_arrive(tmp_path: Path) -> None:
    inputs = {
        "images/0:../x": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        "half": np.ones(3, ml_dtypes.bfloat16),
        "flags": np.array([True, False]),
        "ids": np.array([2**40], np.int64),
        "": np.array(1.5, np.float16),
    }
    names = module._write_inputs(tmp_path / "inputs.npz", inputs)
    back = module._read_inputs(tmp_path / "inputs.npz", names)
    assert list(back) == list(inputs)
    for name, value in inputs.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert np.array_equal(back[name], value)


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="'text' cannot be handed to another process"):
        module._write_inputs(tmp_path / "inputs.npz", {"text": np.array(["a", None], object)})


def test_no_process(engine: Path) -> None:
    with pytest.raises(ConfigError, match="needs a process"):
        time_in_processes([engine], "onnxruntime-fp32", {}, 1, SETTINGS, processes=0)


def test_a_folder_without_a_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([str(tmp_path)]) == ExitCode.BAD_INPUT
    assert "request.json" in capsys.readouterr().err


def test_a_process_ends_with_the_one_that_waits_for_it(engine: Path, tmp_path: Path) -> None:
    """It would go on for an hour; here its parent's end of the pipe closes, as at any death of the parent."""
    hour = replace(SETTINGS, seconds=3600.0, max_rounds=10**7, half_width=0.0)
    names = module._write_inputs(tmp_path / "inputs.npz", inputs_of(engine))
    request = module._Request((str(engine),), "onnxruntime-fp32", names, 1, 1, (), hour)
    document = {"schema": "quantlab.timing-request/1", **to_plain(request)}
    (tmp_path / "request.json").write_text(dump_json(document), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "quantlab.workflow.timing_processes", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        try:
            assert child.wait(120) == ExitCode.INTERRUPTED
        finally:
            child.kill()
