from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_data import beginning, memory_batch, request, values

from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError, DataError, MeasurementError
from quantlab.harness.tasks.regress import error_figures, make


def by_definition(true: np.ndarray, said: np.ndarray) -> tuple[float, float, float]:
    residual, spread = ((said - true) ** 2).sum(axis=0), ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    r2 = np.mean(1 - residual / spread)
    return float(np.abs(said - true).mean()), math.sqrt(((said - true) ** 2).mean()), float(r2)


@given(
    n=st.integers(2, 30), width=st.integers(1, 3), seed=st.integers(0, 2**32 - 1), offset=st.sampled_from([0.0, 1e6])
)
def test_figures(n: int, width: int, seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    true = rng.normal(offset, 3, (n, width))
    said = true + rng.normal(0, 1, (n, width))
    found = error_figures(np.vstack([true, np.full((1, width), np.nan)]), np.vstack([said, np.ones((1, width))]))
    ones = np.ones((1, n + 1))
    got = [float(found[name](ones)[0]) for name in ("mae", "rmse", "r2")]
    np.testing.assert_allclose(got, by_definition(true, said), rtol=1e-9)
    counts = rng.integers(0, 3, n)
    counts[:2] = 1
    rows = np.repeat(np.arange(n), counts)
    got = [float(found[name](np.append(counts, 5)[None].astype(float))[0]) for name in ("mae", "rmse", "r2")]
    np.testing.assert_allclose(got, by_definition(true[rows], said[rows]), rtol=1e-9)


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ages.csv"
    path.write_text("file,age\na.png,3\nb.png,5\n")
    batch = memory_batch(("a.png", "b.png", "c.png"))
    task = make(request(path, unit="years"), beginning(batch))
    reference, meter = task.meter(), task.meter()
    reference.add(batch, {"y": np.array([[3.0], [5.5], [0.0]])})
    columns = meter.add(batch, {"y": np.array([4.0, 5.0, 9.0], np.float16)})
    assert values(meter) == {"mae": 0.5, "rmse": pytest.approx(math.sqrt(0.5)), "r2": 0.5}
    np.testing.assert_array_equal(columns["age.true"], [3, 5, np.nan])
    np.testing.assert_array_equal(columns["age"], [4, 5, 9])
    np.testing.assert_array_equal(meter.drops(reference), [1.0, np.nan, np.nan])
    assert (meter.says(0), meter.truth(0), meter.truth(2)) == ("4", "3", None)
    assert [(f.name, f.unit) for f in task.figures] == [("mae", "years"), ("rmse", "years"), ("r2", "")]
    assert [(d.code, d.count) for d in task.degradations] == [(DegradationCode.UNLABELLED_SAMPLES, 1)]
    assert meter.counted("mae").tolist() == [True, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "v.csv"
    path.write_text("a,1\nb,2\nc,4\n")
    batch = memory_batch(("a", "b", "c"))
    meter = make(request(path), beginning(batch)).meter()
    meter.add(batch, {"y": np.array([1.0, value, 4.0])})
    assert values(meter) == {"mae": math.inf, "rmse": math.inf, "r2": -math.inf}
    assert values(meter, np.array([1, 0, 1])) == {"mae": 0.0, "rmse": 0.0, "r2": 1.0}, "without it all is well"
    assert np.isnan(meter.drops(meter)).all()


def test_truths_that_are_all_equal() -> None:
    found = error_figures(np.full((5, 1), 0.1), np.arange(5.0)[:, None])
    assert math.isnan(found["r2"](np.ones((1, 5)))[0]) and found["mae"](np.ones((1, 5)))[0] > 0


def test_outputs_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text("a,1,2\nb,2,3\n")
    batch = memory_batch(("a", "b"))
    meter = make(request(path), beginning(batch)).meter()
    with pytest.raises(MeasurementError, match="one output of 2 values a sample"):
        meter.add(batch, {"y": np.zeros((2, 3))})
    with pytest.raises(MeasurementError, match="one output of 2 values") as caught:
        meter.add(batch, {"y": np.zeros((2, 2)), "z": np.zeros((2, 1, 2))})
    assert caught.value.hint == "name it: --task-option output=NAME"
    named = make(request(path, output="z"), beginning(batch)).meter()
    named.add(batch, {"y": np.zeros((2, 2)), "z": np.zeros((2, 1, 2))})
    assert values(named)["mae"] == 2.0
    with pytest.raises(ConfigError, match="no output 'q'"):
        make(request(path, output="q"), beginning(batch)).meter().add(batch, {"y": np.zeros((2, 2))})
    with pytest.raises(ConfigError, match="needs truths"):
        make(request(None), beginning(batch))
    with pytest.raises(DataError, match="no entry for any"):
        make(request(path), beginning(memory_batch(("x",))))
