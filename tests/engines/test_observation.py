"""One pass over the data: the same histograms bit for bit, however the data are cut, ordered and shared out."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from engine_data import MemoryData, calibrated, cnn, prepared_cnn, samples, table_of
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import quantlab.engines.observation as observation
from quantlab.calibrators import Histogram
from quantlab.calibrators.counting import Keys, count_numpy
from quantlab.datasets import Sample
from quantlab.engines.observation import Observation, derived_tensors, observe, observed_tensors
from quantlab.errors import CalibrationError
from quantlab.graph.model import Model, open_session
from quantlab.graph.prepare import Prepared, prepare
from quantlab.progress import Silent


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_cnn()


def run(prepared: Prepared, chosen: list[Sample], threads: int = 1) -> Observation:
    return observe(prepared, MemoryData(chosen), observed_tensors(prepared), threads, Silent())


def assert_same(a: dict[str, Histogram], b: dict[str, Histogram]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        np.testing.assert_array_equal(a[name].counts, b[name].counts, err_msg=name)
        assert (a[name].minimum, a[name].maximum) == (b[name].minimum, b[name].maximum), name


def test_every_float_activation_is_observed(prepared: Prepared) -> None:
    names = observed_tensors(prepared)
    assert set(names) == {"image", "side", "c1", "k1", "c2", "r2", "g2", "f2", "j2", "scores"}
    assert set(run(prepared, samples(3))) == set(names)


def test_counts_are_those_of_the_activations(prepared: Prepared) -> None:
    """Against a plain session with every tensor as an output, one sample at a time."""
    chosen = samples(5)
    names = observed_tensors(prepared)
    fetched = [name for name in names if name not in ("image", "side")]
    session = open_session(prepared.model, threads=1, outputs=fetched)
    expected = {name: Histogram() for name in names}
    for sample in chosen:
        feed = {name: value[None] for name, value in sample.inputs.items()}
        for name, value in (*zip(fetched, session.run(fetched, feed), strict=True), *feed.items()):
            expected[name].add(value)
    got = run(prepared, chosen)
    for name in names:
        expected[name].widen(got[name].octave)  # a clipped histogram keeps the octaves of its source
    assert_same(got, expected)


def test_derived_tensors_are_those_of_relu_and_clip(prepared: Prepared) -> None:
    rules = derived_tensors(prepared, observed_tensors(prepared))
    assert {name: (rule.source, rule.low, rule.high) for name, rule in rules.items()} == {
        "k1": ("c1", 0.0, 6.0),
        "r2": ("c2", 0.0, float("inf")),
    }


class TestDeterminism:
    @pytest.fixture(scope="class")
    def whole(self, prepared: Prepared) -> dict[str, Histogram]:
        return run(prepared, samples())

    @pytest.mark.parametrize("threads", [1, 2, 4])
    @pytest.mark.parametrize("order", ["given", "reversed", "shuffled"])
    def test_order_and_threads(self, prepared: Prepared, whole: dict[str, Histogram], order: str, threads: int) -> None:
        chosen = samples()
        if order == "reversed":
            chosen = chosen[::-1]
        elif order == "shuffled":
            chosen = [chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))]
        histograms = run(prepared, chosen, threads)
        assert_same(histograms, whole)
        assert table_of(prepared, histograms).sha256 == table_of(prepared, whole).sha256

    @pytest.mark.parametrize("cut", [1, 20, 33])
    def test_two_halves_merge_to_the_whole(self, prepared: Prepared, whole: dict[str, Histogram], cut: int) -> None:
        first, second = run(prepared, samples()[:cut], 2), run(prepared, samples()[cut:])
        for name, histogram in second.items():
            first[name].merge(histogram)
        assert_same(first, whole)
        assert table_of(prepared, first) == table_of(prepared, whole)


def test_workers_do_not_count_over_each_other(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that lets the other threads in between reading and writing, as a compiled one may."""

    def interruptible(
        bits: NDArray[np.int32], row: int, counts: NDArray[np.uint32], octave: int, lows: Keys, highs: Keys
    ) -> int:
        fresh = counts.copy()
        rows = count_numpy(bits, row, fresh, octave, lows, highs)
        time.sleep(0.001)
        counts[:] = fresh
        return rows

    expected = run(prepared, samples(12))
    monkeypatch.setattr(observation, "kernel_for", lambda values: interruptible)
    assert_same(run(prepared, samples(12), 4), expected)


class TestFixedBatch:
    def fixed(self, batch: int) -> Prepared:
        model = Model.of(cnn(batch))
        return dataclasses.replace(prepare(model), fixed_batch=batch)

    @pytest.mark.parametrize("n", [4, 8, 9, 11])
    def test_padding_is_not_counted(self, n: int) -> None:
        histograms = run(self.fixed(4), samples(n), 2)
        assert histograms["image"].total == n * 3 * 8 * 8
        assert histograms["scores"].total == n * 6

    def test_values_are_those_of_single_samples(self, prepared: Prepared) -> None:
        padded, single = run(self.fixed(4), samples(6)), run(prepared, samples(6))
        assert_same({"image": padded["image"]}, {"image": single["image"]})
        assert padded["scores"].maximum == pytest.approx(single["scores"].maximum, rel=1e-5)


class TestFailures:
    @pytest.mark.parametrize("threads", [1, 3])
    def test_the_sample_is_named(self, prepared: Prepared, threads: int) -> None:
        chosen = samples(9)
        inputs = dict(chosen[5].inputs) | {"side": np.zeros(3, np.float32)}
        chosen[5] = dataclasses.replace(chosen[5], inputs=inputs)
        with pytest.raises(CalibrationError, match="the model failed on sample 'sample#5'") as caught:
            run(prepared, chosen, threads)
        assert caught.value.got
        assert "\n" not in str(caught.value.got)

    def test_an_error_of_the_data_passes_through(self, prepared: Prepared) -> None:
        class Failing(MemoryData):
            def __iter__(self) -> Iterator[Sample]:
                yield self.samples[0]
                raise CalibrationError("the disk is gone")

        with pytest.raises(CalibrationError, match="the disk is gone"):
            observe(prepared, Failing(samples(3)), observed_tensors(prepared), 2, Silent())

    def test_non_finite_values_are_counted_apart(self, prepared: Prepared) -> None:
        chosen = samples(4)
        side = np.array([np.nan, np.inf, 1.0, -2.0], np.float32)
        chosen[2] = dataclasses.replace(chosen[2], inputs=dict(chosen[2].inputs) | {"side": side})
        histograms = run(prepared, chosen)
        assert histograms["side"].non_finite == 2
        assert histograms["scores"].non_finite == 6
        assert histograms["c2"].non_finite == 0
        assert histograms.non_finite == dict.fromkeys(("side", "j2", "scores"), "sample#2")

    @pytest.mark.parametrize("threads", [1, 3])
    def test_the_first_sample_by_name_is_remembered(self, prepared: Prepared, threads: int) -> None:
        chosen = samples(9)
        for i in (7, 3, 5):
            image = np.full((3, 8, 8), np.inf, np.float32)
            chosen[i] = dataclasses.replace(chosen[i], inputs=dict(chosen[i].inputs) | {"image": image})
        assert run(prepared, chosen[::-1], threads).non_finite["c1"] == "sample#3"

    def test_the_broken_sample_of_a_batch_is_told_from_the_others(self) -> None:
        fixed = dataclasses.replace(prepare(Model.of(cnn(4))), fixed_batch=4)
        chosen = samples(8)
        chosen[6] = dataclasses.replace(
            chosen[6], inputs=dict(chosen[6].inputs) | {"image": np.full((3, 8, 8), np.nan, np.float32)}
        )
        assert run(fixed, chosen).non_finite["c2"] == "sample#6"


def branching() -> Prepared:
    """``y`` holds the positive numbers of ``x`` and so is empty for some samples; ``z`` always is."""
    value = helper.make_tensor_value_info
    stored = [
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(1e30), "huge"),
        numpy_helper.from_array(np.array([-1], np.int64), "flat"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "flat"], ["row"]),
            helper.make_node("Greater", ["row", "zero"], ["positive"]),
            helper.make_node("Compress", ["row", "positive"], ["y"], axis=0),
            helper.make_node("Greater", ["row", "huge"], ["never"]),
            helper.make_node("Compress", ["row", "never"], ["z"], axis=0),
        ],
        "branching",
        [value("x", 1, [1, 5])],
        [value("y", 1, [None]), value("z", 1, [None])],
        stored,
    )
    model = Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return dataclasses.replace(prepare(model), fixed_batch=None)


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_without_values_are_counted(threads: int) -> None:
    rows = [[-1, -2, -3, -4, -5], [1, -2, 3, -4, 5], [-1, -1, -1, -1, -1], [2, 2, 2, 2, 2]]
    chosen = [Sample(f"s{i}", {"x": np.array(row, np.float32)}, None, str(i)) for i, row in enumerate(rows)]
    found = run(branching(), chosen, threads)
    assert found["y"].total == 8
    assert found["z"].total == 0
    assert found.absent == {"y": 2, "z": 4}


def test_samples_of_changing_shape() -> None:
    """A model with dynamic height and width: buffers follow the samples."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((2, 1, 3, 3)).astype(np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "dynamic",
        [value("x", 1, ["n", 1, 9, 9])],
        [value("y", 1, ["n", 2, 7, 7])],
        [weight],
    )
    prepared = prepare(Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    for dim in prepared.model.proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "s"
    del prepared.model.proto.graph.value_info[:]
    for dim in prepared.model.proto.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "t"
    rng = np.random.default_rng(1)
    chosen = [
        Sample(f"s{i}", {"x": rng.standard_normal((1, size, size)).astype(np.float32)}, None, str(i))
        for i, size in enumerate([9, 9, 12, 5, 5, 9])
    ]
    histograms = run(prepared, chosen, 2)
    assert histograms["y"].total == sum(2 * (s.inputs["x"].shape[1] - 2) ** 2 for s in chosen)


class Generated(MemoryData):
    """Samples made as they are asked for, so that the data set itself takes no memory."""

    def __init__(self, n: int) -> None:
        super().__init__([])
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Sample]:
        for i in range(self.n):
            rng = np.random.default_rng(i)
            inputs = {"image": rng.standard_normal((3, 8, 8), np.float32), "side": rng.standard_normal(4, np.float32)}
            yield Sample(f"g{i}", inputs, None, hashlib.sha256(str(i).encode()).hexdigest())


def test_memory_does_not_grow_with_the_samples(prepared: Prepared) -> None:
    def peak(n: int) -> int:
        tracemalloc.start()
        try:
            observe(prepared, Generated(n), observed_tensors(prepared), 2, Silent())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)
    small, large = peak(64), peak(1024)
    assert large < small * 1.1 + 200_000, (small, large)


def test_the_default_table_is_reproducible(prepared: Prepared) -> None:
    assert calibrated(prepared).to_json() == calibrated(prepared).to_json()
