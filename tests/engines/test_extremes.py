"""Min-max alone gives the extremes of the counted pass, of the tensors that a quantized graph reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_data import MemoryData, cnn, prepared_cnn, samples
from onnx import helper

from quantlab.calibrators.extremes import Extremes
from quantlab.calibrators.measure import measure_extremes
from quantlab.engines.extremes import extreme_tensors, observe_extremes
from quantlab.engines.observation import observe
from quantlab.errors import CalibrationError
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.progress import Silent


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_cnn()


def extremes(prepared: Prepared, n: int, threads: int = 1) -> dict[str, Extremes]:
    return observe_extremes(prepared, MemoryData(samples(n)), extreme_tensors(prepared), threads, Silent())[0]


def test_inputs_of_fused_activations_are_left_out(prepared: Prepared) -> None:
    assert set(extreme_tensors(prepared)) == {"image", "side", "k1", "r2", "g2", "f2", "j2", "scores"}


def test_an_activation_input_that_others_read_is_kept() -> None:
    model = cnn()
    model.graph.node.insert(2, helper.make_node("GlobalAveragePool", ["c1"], ["mean1"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("mean1", 1, ["n", 8, 1, 1]))
    assert "c1" in extreme_tensors(prepare(Model.of(model)))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_as_counting(prepared: Prepared, threads: int) -> None:
    found = extremes(prepared, 30, threads)
    counted = observe(prepared, MemoryData(samples(30)), list(found), 1, Silent())
    for name, tensor in found.items():
        assert tensor.maximum == counted[name].maximum, name
        assert tensor.total == counted[name].total, name
        assert tensor.minimum == (0.0 if name in ("k1", "r2") else counted[name].minimum), name


def test_ranges_are_those_of_minmax(prepared: Prepared) -> None:
    entry = measure_extremes("c", Extremes(-3.0, 2.0, 10, 0))
    assert entry.ranges["int8-symmetric"]["minmax"].high == 3.0
    assert (entry.ranges["uint8-affine"]["minmax"].low, entry.ranges["uint8-affine"]["minmax"].high) == (-3.0, 2.0)
    assert entry.ranges["uint8-affine"]["minmax"].sqnr_db is None
    with pytest.raises(CalibrationError, match="'c' has no finite value"):
        measure_extremes("c", Extremes(non_finite=4))


def test_padding_of_a_fixed_batch_is_not_seen() -> None:
    fixed = dataclasses.replace(prepare(Model.of(cnn(4))), fixed_batch=4)
    found = extremes(fixed, 6)
    assert found["image"].total == 6 * 3 * 8 * 8
    assert found["k1"].total == 6 * 8 * 8 * 8


def test_the_first_broken_sample_is_named(prepared: Prepared) -> None:
    chosen = samples(6)
    for i in (4, 2):
        side = np.array([np.nan, 1.0, 2.0, 3.0], np.float32)
        chosen[i] = dataclasses.replace(chosen[i], inputs=dict(chosen[i].inputs) | {"side": side})
    found, broken = observe_extremes(prepared, MemoryData(chosen[::-1]), extreme_tensors(prepared), 2, Silent())
    assert broken["side"] == broken["scores"] == "sample#2"
    assert found["side"].non_finite == 2


class TestExtremes:
    def test_non_finite_values_are_counted_apart(self) -> None:
        extremes = Extremes()
        extremes.add(np.array([1.0, np.nan, -2.0, np.inf], np.float32))
        assert extremes == Extremes(-2.0, 1.0, 2, 2)
        extremes.add(np.full(3, np.nan, np.float32))
        assert extremes == Extremes(-2.0, 1.0, 2, 5)
        extremes.add(np.zeros(0, np.float32))
        assert extremes == Extremes(-2.0, 1.0, 2, 5)

    def test_parts_merge_to_the_whole(self) -> None:
        values = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
        whole, merged = Extremes(), Extremes()
        whole.add(values)
        for part in np.split(values, [10, 500]):
            one = Extremes()
            one.add(part)
            merged.merge(one)
        assert merged == whole == Extremes(float(values.min()), float(values.max()), 1000, 0)
