from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from task_data import beginning, memory_batch, values

from quantlab.errors import ConfigError, DataError
from quantlab.harness.tasks.custom import CustomTask, make
from quantlab.harness.tasks.registry import TaskRequest, task_for

MODULE = """
import numpy as np

def psnr(outputs, batch):
    error = ((outputs["y"] - batch.inputs["x"].mean(axis=(1, 2, 3))) ** 2) + 1.0
    return -10 * np.log10(error)
psnr.higher_is_better = True
psnr.unit = "dB"

def several(outputs, batch):
    known = np.array([label is not None for label in batch.labels])
    truth = np.array([label or 0 for label in batch.labels])
    return {"miss": np.ma.masked_array(np.abs(outputs["y"] - truth), ~known), "sum": outputs["y"].tolist()}
several.higher_is_better = {"miss": False, "sum": True}
several.unit = {"miss": "m"}

def silent(outputs, batch):
    return outputs["y"]

def half(outputs, batch):
    return {"a": outputs["y"], "b": outputs["y"]}
half.higher_is_better = {"a": True}

def fails(outputs, batch):
    return outputs["absent"]
fails.higher_is_better = True

def short(outputs, batch):
    return outputs["y"][:1]
short.higher_is_better = True

def words(outputs, batch):
    return ["good"] * len(batch.ids)
words.higher_is_better = True

def nothing(outputs, batch):
    return {}
nothing.higher_is_better = True

def fickle(outputs, batch):
    return {str(len(batch.ids)): outputs["y"]}
fickle.higher_is_better = True

def named(outputs, batch):
    return {" ": outputs["y"]}
named.higher_is_better = True

def writes(outputs, batch):
    outputs["y"][:] = 0
    return outputs["y"]
writes.higher_is_better = True

def feeds(outputs, batch):
    batch.inputs["x"][:] = 0
    return outputs["y"]
feeds.higher_is_better = True

def takes(outputs, batch):
    return outputs.pop("y")
takes.higher_is_better = np.True_

def ends(outputs, batch):
    raise SystemExit(0)
ends.higher_is_better = True

def prints(outputs, batch):
    print("to stderr")
    return outputs["y"]
prints.higher_is_better = True

def stubborn(outputs, batch):
    class Tensor:
        def __array__(self, *_arguments, **_options):
            raise RuntimeError("call detach() first")
    return Tensor()
stubborn.higher_is_better = True

def objects(outputs, batch):
    return outputs["y"].astype(object)
objects.higher_is_better = True

def masked(outputs, batch):
    return np.ma.masked_all(len(batch.ids))
masked.higher_is_better = True

constant = 3
"""

BATCH = memory_batch(("a", "b", "c"), labels=(1, None, 3))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "quantlab_test_metrics.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "quantlab_test_metrics", raising=False)
    return "quantlab_test_metrics"


def made(module: str, function: str, y: object = (0.0, 1.0, 3.0)) -> CustomTask:
    outputs = {"y": np.array(y)}
    task = task_for(TaskRequest(metric=f"{module}:{function}"), beginning(BATCH, outputs))
    assert isinstance(task, CustomTask)
    return task


def test_one_figure(module: str) -> None:
    task = made(module, "psnr")
    assert [(f.name, f.unit, f.higher_is_better) for f in task.figures] == [("psnr", "dB", True)]
    meter = task.meter()
    columns = meter.add(BATCH, {"y": np.array([0.0, 1.0, 3.0])})
    np.testing.assert_allclose(columns["psnr"], -10 * np.log10([1, 2, 10]))
    assert values(meter)["psnr"] == pytest.approx(-10 * math.log10(20) / 3)
    assert values(meter, np.array([2, 0, 1]))["psnr"] == pytest.approx(-10 / 3)
    worse = task.meter()
    worse.add(BATCH, {"y": np.array([3.0, 1.0, 3.0])})
    np.testing.assert_allclose(worse.drops(meter), [10, np.nan, np.nan])
    assert (worse.drop_unit, worse.says(0)) == ("psnr worse, dB", "psnr -10")


def test_several_figures_and_samples_left_out(module: str) -> None:
    task = made(module, "several")
    found = [(f.name, f.unit, f.higher_is_better) for f in task.figures]
    assert found == [("miss", "m", False), ("sum", "", True)]
    meter = task.meter()
    meter.add(BATCH, {"y": np.array([0.0, 1.0, 3.0])})
    assert values(meter) == {"miss": 0.5, "sum": pytest.approx(4 / 3)}
    assert meter.counted("miss").tolist() == [True, False, True] and meter.counted("sum").all()
    reference = task.meter()
    reference.add(BATCH, {"y": np.array([1.0, 1.0, 3.0])})
    np.testing.assert_array_equal(meter.drops(reference), [1.0, np.nan, np.nan])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_the_worst(module: str, value: float) -> None:
    meter = made(module, "several").meter()
    meter.add(BATCH, {"y": np.array([value, value, 3.0])})
    assert values(meter) == {"miss": math.inf, "sum": -math.inf}
    assert values(meter, np.array([0, 0, 1])) == {"miss": 0.0, "sum": 3.0}
    one = made(module, "psnr").meter()
    one.add(BATCH, {"y": np.array([0.0, 1.0, 3.0]), "other": np.array([[1.0], [value], [1.0]])})
    assert values(one) == {"psnr": -math.inf}, "another output than that which the metric reads is broken"
    assert np.isnan(one.drops(one)).all()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("silent", ConfigError, "does not state higher_is_better of 'silent'"),
        ("half", ConfigError, "does not state higher_is_better of 'b'"),
        ("fails", DataError, "failed on the batch from sample 'a'"),
        ("short", DataError, "returned something wrong for 'short'"),
        ("words", DataError, "returned something wrong for 'words'"),
        ("nothing", DataError, "returned no figure"),
        ("named", DataError, "returned a figure of a wrong name"),
        ("writes", DataError, r"(?s)failed on the batch.*read-only"),
        ("feeds", DataError, r"(?s)failed on the batch.*read-only"),
        ("ends", DataError, r"(?s)failed on the batch.*it ended the process: SystemExit\(0\)"),
        ("stubborn", DataError, r"(?s)returned something wrong for 'stubborn'.*got: +a Tensor"),
        ("objects", DataError, r"(?s)returned something wrong for 'objects'.*got: +an array of object, shape \(3,\)"),
        ("constant", ConfigError, "has no function 'constant'"),
        ("pnsr", ConfigError, "has no function 'pnsr'"),
    ],
)
def test_wrong_functions(module: str, function: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(module, function)


def test_functions_that_do_as_they_like(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    meter = made(module, "takes").meter()
    outputs = {"y": np.arange(3.0)}
    meter.add(BATCH, outputs)
    assert set(outputs) == {"y"} and outputs["y"].flags.writeable
    made(module, "prints").meter()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "to stderr\n"), "stdout is for the result"


def test_nothing_but_masked_values(module: str) -> None:
    meter = made(module, "masked").meter()
    meter.add(BATCH, {"y": np.zeros(3)})
    with pytest.raises(DataError, match="left out every sample of 'masked'"):
        meter.estimators()


def test_module_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quantlab_test_exit.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)importing 'quantlab_test_exit' .*SystemExit\(0\)"):
        made("quantlab_test_exit", "f")


def test_figures_that_change(module: str) -> None:
    meter = made(module, "fickle").meter()
    with pytest.raises(DataError, match="same figures for every batch"):
        meter.add(memory_batch(("a",)), {"y": np.zeros(1)})


def test_names(module: str) -> None:
    with pytest.raises(ConfigError, match="no Python module 'absent' for the metric"):
        made("absent", "f")
    with pytest.raises(ConfigError, match="wrong form"):
        make(TaskRequest(metric="psnr"), beginning(BATCH))
    with pytest.raises(ConfigError, match="has no setting 'iou'"):
        make(TaskRequest(metric=f"{module}:psnr", options={"iou": "1"}), beginning(BATCH))
