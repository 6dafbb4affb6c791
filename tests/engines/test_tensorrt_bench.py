"""A bench of engines over a runtime in memory: contexts, the moments of queries, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_engines import feed, write_engine
from fake_tensorrt import State

from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.harness import sweep
from quantlab.harness.bench import BenchSettings
from quantlab.harness.queries import CUDA_EVENTS, traced_times
from quantlab.harness.sweep import Setting, query_engines
from quantlab.harness.trtexec_files import read_times, times_text
from quantlab.progress import Silent
from quantlab.workflow.bench_engines import open_timed


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_SETTLE_S", 0.0)


@pytest.mark.parametrize("transfers", [True, False])
def test_the_moments_of_queries_are_in_order(state: State, tmp_path: Path, transfers: bool) -> None:
    with TensorRTEngine(write_engine(tmp_path, "scale")) as engine:
        measured = engine.time_device(feed(4), seconds=0.05, warmup_ms=5.0, transfers=transfers)
    found = traced_times(measured)
    assert len(found.latency_ms) == len(measured.compute_ms)
    for earlier, later in (
        (found.start_h2d_ms, found.end_h2d_ms),
        (found.end_h2d_ms, found.start_compute_ms),
        (found.start_compute_ms, found.end_compute_ms),
        (found.end_compute_ms, found.start_d2h_ms),
        (found.start_d2h_ms, found.end_d2h_ms),
        (found.start_enqueue_ms, found.end_enqueue_ms),
    ):
        assert np.all(later - earlier >= -1e-9)
    assert np.all(np.diff(found.start_enqueue_ms) > 0)
    path = tmp_path / "times.json"
    path.write_text(times_text(found))
    np.testing.assert_array_equal(read_times(path).compute_ms, measured.compute_ms)
    if not transfers:
        np.testing.assert_array_equal(found.start_h2d_ms, found.start_compute_ms)
        np.testing.assert_array_equal(found.start_d2h_ms, found.end_compute_ms)


def test_as_many_contexts_as_callers(state: State, gpu: FakeCuda, tmp_path: Path) -> None:
    path = write_engine(tmp_path, "scale")
    with open_timed([path], 1, 3, (), Silent()) as (engines, spent):
        assert state.contexts == 3
        assert spent[0] > 0
        settings = BenchSettings(query_seconds=0.02, graph=False)
        found = query_engines(engines, feed(4), Setting(1, 4, 3), settings, Silent())
    (row,) = found.rows
    assert (row.figures.clock, row.figures.streams, row.figures.graph) == (CUDA_EVENTS, 3, False)
    assert row.figures.queries >= 30, "each makes ten at least"
    assert len(found.times[row.engine].latency_ms) == row.figures.queries
    assert gpu.live == {}, "closed at the end"
