"""Method auto: measured at the outputs, checked on other samples, never worse than the best single method there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_data import MemoryData, calibrated, prepared_cnn, samples
from onnx import ModelProto, numpy_helper

from quantlab.calibrators import METHOD_NAMES, CalibrationTable
from quantlab.engines.range_search import log_falls
from quantlab.engines.selection import choose_auto
from quantlab.errors import CalibrationError
from quantlab.graph.model import Model, open_session
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TARGETS, TENSORRT, TargetProfile
from quantlab.progress import Silent


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_cnn()


@pytest.fixture(scope="module")
def table(prepared: Prepared) -> CalibrationTable:
    return calibrated(prepared)


def sqnr_db(prepared: Prepared, table: CalibrationTable, target: TargetProfile, seed: int) -> float:
    quantized = Model.of(quantize_model(prepared.model, table, target).proto)
    reference, session = open_session(prepared.model, threads=1), open_session(quantized, threads=1)
    signal = noise = 0.0
    for sample in samples(120, seed):
        feed = {name: value[None] for name, value in sample.inputs.items()}
        expected, got = reference.run(None, feed)[0], session.run(None, feed)[0]
        signal += float(np.sum(expected.astype(np.float64) ** 2))
        noise += float(np.sum((got - expected).astype(np.float64) ** 2))
    return 10.0 * float(np.log10(signal / noise))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_not_worse_than_the_best_method_on_other_samples(
    prepared: Prepared, table: CalibrationTable, target: TargetProfile
) -> None:
    chosen = choose_auto(prepared, MemoryData(samples(60)), table, target, 2, Silent())
    best = max(sqnr_db(prepared, table.with_method(name), target, 77) for name in METHOD_NAMES)
    assert (
        sqnr_db(prepared, chosen, target, 77) > best - 0.5
    )  # the choice was made on 30 samples, this is measured on 120 others


def test_what_was_chosen_is_recorded(prepared: Prepared, table: CalibrationTable) -> None:
    chosen = choose_auto(prepared, MemoryData(samples(40)), table, TENSORRT, 1, Silent())
    evidence = chosen.auto
    assert evidence is not None
    assert (chosen.method, evidence.target, evidence.n_search, evidence.n_check) == ("auto", "tensorrt", 13, 27)
    assert set(evidence.sqnr_db) == set(METHOD_NAMES)
    assert sum(evidence.picked.values()) == len(table.tensors)
    for entry in chosen.tensors:
        taken = entry.ranges["int8-symmetric"]["auto"]
        assert taken.picked in METHOD_NAMES
        assert dataclasses.replace(taken, picked=None) == entry.ranges["int8-symmetric"][taken.picked or ""]
        assert "auto" not in entry.ranges["uint8-affine"]


def test_neither_order_nor_threads_matter(prepared: Prepared, table: CalibrationTable) -> None:
    first = choose_auto(prepared, MemoryData(samples(40)), table, ONNXRUNTIME, 1, Silent())
    second = choose_auto(prepared, MemoryData(samples(40)[::-1]), table, ONNXRUNTIME, 3, Silent())
    assert first.to_json() == second.to_json()


def test_a_bad_range_is_avoided(prepared: Prepared, table: CalibrationTable) -> None:
    """All methods but one get a bad range for one tensor each: only a choice per tensor is good."""

    def spoiled(name: str, good: str) -> dict[str, object]:
        entry = table.entries()[name]
        by_method = {
            method: found if method == good else dataclasses.replace(found, low=found.low / 4, high=found.high / 4)
            for method, found in entry.ranges["uint8-affine"].items()
        }
        return {**entry.ranges, "uint8-affine": by_method}

    good = {"image": "minmax", "k1": "mse", "j2": "percentile"}
    tensors = tuple(
        dataclasses.replace(entry, ranges=spoiled(entry.name, good[entry.name])) if entry.name in good else entry
        for entry in table.tensors
    )
    chosen = choose_auto(
        prepared, MemoryData(samples(60)), dataclasses.replace(table, tensors=tensors), ONNXRUNTIME, 1, Silent()
    )
    assert chosen.auto is not None
    assert chosen.auto.taken == "sweep"
    assert chosen.auto.swept_sqnr_db > max(chosen.auto.sqnr_db.values()) + 6
    picked = {name: chosen.entries()[name].ranges["uint8-affine"]["auto"].picked for name in good}
    assert picked == good


def test_too_few_samples(prepared: Prepared, table: CalibrationTable) -> None:
    with pytest.raises(CalibrationError, match="too few samples"):
        choose_auto(prepared, MemoryData(samples(7)), table, TENSORRT, 1, Silent())


def test_falls_in_standard_errors() -> None:
    before = np.ones((4, 1))
    assert log_falls(before, before) == 0.0
    assert log_falls(before, before * 0.5) == np.inf
    assert log_falls(before, before * 2.0) == -np.inf
    falls = np.array([0.1, 0.3, 0.2, 0.2])
    expected = falls.mean() / (falls.std(ddof=1) / 2)
    assert log_falls(before, np.exp(-falls)[:, None]) == pytest.approx(expected)


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN or infinite"), (0.0, "zero everywhere")])
def test_outputs_that_tell_nothing(prepared: Prepared, table: CalibrationTable, value: float, what: str) -> None:
    proto = ModelProto()
    proto.CopyFrom(prepared.model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w3", "b3"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), tensor.name))
    broken = dataclasses.replace(prepared, model=prepared.model.with_proto(proto))
    with pytest.raises(CalibrationError, match="cannot measure at output 'scores'") as caught:
        choose_auto(broken, MemoryData(samples(30)), table, ONNXRUNTIME, 1, Silent())
    assert what in str(caught.value.got)
