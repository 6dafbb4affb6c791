"""Ranges chosen by the noise at the outputs: what is taken, what is left, and what the graph to come would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from qdq_checks import UNLIMITED
from small_nets import Net
from small_observations import ArrayObservations, context_of, state_of

from quantlab import CalibrateSettings, DataRequest, Silent, calibrate, open_data, open_model
from quantlab.calibrators.methods import METHOD_NAMES
from quantlab.calibrators.quantize import INT8_SYMMETRIC, UINT8_AFFINE, parameters
from quantlab.calibrators.table import TensorEntry, TensorRange
from quantlab.datasets.protocol import Sample
from quantlab.engines.output_noise import Probe, make_probe
from quantlab.graph.model import save_model
from quantlab.graph.targets import TARGETS, TENSORRT
from quantlab.recovery.judge import Judged, falls, noise_of
from quantlab.recovery.observations import Observed
from quantlab.recovery.protocol import Context, Proposals, State
from quantlab.recovery.ranges import Ranges, _candidates, _search
from quantlab.recovery.recover import Recovered, RecoverSettings, recover
from quantlab.recovery.shift import Shift, affine_step, moved_grids

Feed = Mapping[str, NDArray[np.float32]]


def _model() -> ModelProto:
    """Conv, Relu, Conv, Relu, pooled, Gemm; nothing pads, so that every Relu can be moved for nothing."""
    net = Net(3, 9, 9)
    x = net.add("Relu", net.add("Conv", "x", net.normal(16, 3, 3, 3), net.normal(16)))
    x = net.add("Relu", net.add("Conv", x, net.normal(32, 16, 3, 3), net.normal(32)))
    return net.model(net.add("Gemm", net.add("Flatten", net.add("GlobalAveragePool", x)), net.normal(16, 32), transB=1))


def _times(found: TensorRange, factor: float) -> TensorRange:
    return replace(found, low=found.low * factor, high=found.high * factor)


def _widened(entry: TensorEntry, method: str, factor: float) -> TensorEntry:
    """An entry with ranges of another method: those of min-max, so many times as wide."""
    ranges = {
        scheme: {**by_method, method: _times(by_method["minmax"], factor)} for scheme, by_method in entry.ranges.items()
    }
    return replace(entry, ranges=ranges)


def _state(feed: Feed, factor: float) -> tuple[State, ArrayObservations]:
    """A state whose table has min-max ranges, and takes those of ``mse``, which are so many times as wide."""
    observations = ArrayObservations(feed)
    state = state_of(_model(), observations)
    tensors = tuple(_widened(entry, "mse", factor) for entry in state.table.tensors)
    return replace(state, table=replace(state.table, method="mse", tensors=tensors)), observations


@pytest.fixture(scope="module")
def feed() -> Feed:
    return Net(3, 9, 9).feed(64)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def _probe(state: State, feed: Feed, pool: ThreadPoolExecutor) -> Probe:
    samples = [Sample(str(i), {"x": value}, None, str(i)) for i, value in enumerate(feed["x"])]
    return make_probe(state.prepared, samples, pool=pool, what="this test", hint="")


def _propose(
    feed: Feed, factor: float, pool: ThreadPoolExecutor, target: str = "tensorrt", **settings: object
) -> tuple[State, Context, Proposals]:
    state, observations = _state(feed, factor)
    context = replace(context_of(observations, target), search=_probe(state, feed, pool), **settings)
    return state, context, Ranges().propose(state, context)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("factor", [0.2, 12.0])
def test_a_range_of_another_method_is_taken(target: str, factor: float, feed: Feed, pool: ThreadPoolExecutor) -> None:
    """Ranges that clip most values, and ranges that waste three bits, give way to those of min-max."""
    state, context, found = _propose(feed, factor, pool, target)
    (proposal,) = found.proposals
    changed = set(proposal.changed)
    quantized = state.quantized(context.target).tensors
    assert changed == set(quantized)
    assert proposal.label == f"{len(changed)} by minmax"
    scheme = TARGETS[target].activation
    for entry in proposal.state.table.tensors:
        if entry.name in changed:
            moved = entry.name in moved_grids(state, context)
            by_method = entry.ranges[UINT8_AFFINE.name if moved else scheme.name]
            assert by_method["mse"] == replace(by_method["minmax"], picked="minmax")
            if not moved:
                whole = by_method["minmax"]
                got = proposal.state.quantized(context.target).tensors[entry.name]
                assert got == parameters(whole.low, whole.high, scheme)
    assert proposal.state.table.method == "mse"
    before, after = (
        noise_of(one, context.target, (), context.search, Judged.ACTIVATIONS, moved_grids(one, context))
        for one in (state, proposal.state)
    )
    assert after.sum() < 0.25 * before.sum()


def test_a_good_range_is_left(feed: Feed, pool: ThreadPoolExecutor) -> None:
    _, _, found = _propose(feed, 1.001, pool)
    assert not found.proposals
    assert found.notes == ("no range is surely better than that of mse",)


def test_ranges_of_one_method_alone(feed: Feed, pool: ThreadPoolExecutor) -> None:
    observations = ArrayObservations(feed)
    state = state_of(_model(), observations)
    context = replace(context_of(observations), search=_probe(state, feed, pool))
    found = Ranges().propose(state, context)
    assert not found.proposals
    assert found.notes == ("the table holds the ranges of one method alone",)


def test_no_tensor_makes_much_of_the_noise(feed: Feed, pool: ThreadPoolExecutor) -> None:
    _, _, found = _propose(feed, 12.0, pool, shares={"x": 0.01})
    assert not found.proposals
    assert found.notes == ("no tensor makes 2% of the noise",)


def test_tensors_that_share_a_scale_are_one(feed: Feed, pool: ThreadPoolExecutor) -> None:
    """A Concat and what it joins have one grid, the widest; what the search measures is what the writer writes."""
    net = Net(3, 9, 9)
    a = net.add("Relu", net.add("Conv", "x", net.normal(16, 3, 3, 3), net.normal(16)))
    b = net.add("LeakyRelu", net.add("Conv", a, net.normal(16, 16, 1, 1), net.normal(16)))
    joined = net.add("Conv", net.add("Concat", a, b, axis=1), net.normal(16, 32, 3, 3), net.normal(16))
    net.add("Conv", b, net.normal(16, 16, 1, 1))
    observations = ArrayObservations(feed)
    state = state_of(net.model(joined, net.nodes[-1].output[0]), observations)
    tensors = tuple(_widened(entry, "mse", 12.0) for entry in state.table.tensors)
    state = replace(state, table=replace(state.table, method="mse", tensors=tensors))
    context = replace(context_of(observations), target=UNLIMITED, search=_probe(state, feed, pool), moving=False)
    search, grids = _search(state, context, {})
    shared = [group.tensors for group in search.groups if len(group.tensors) > 1]
    assert shared == [(a, b, "Concat_4_out")]
    candidates = _candidates(state, context, search.groups, grids, {})
    chosen = search.choose({name: found[0] for name, found in candidates.items()}, candidates, Silent())
    assert {one.label for one in chosen.values()} == {"minmax"}
    (proposal,) = Ranges().propose(state, context).proposals
    written = noise_of(proposal.state, context.target, (), context.search, Judged.ACTIVATIONS)
    np.testing.assert_allclose(search.noise(chosen), written, rtol=1e-6)


def test_a_tensor_that_the_table_does_not_hold(feed: Feed, pool: ThreadPoolExecutor) -> None:
    """A Softmax has [0, 1] without an entry, and keeps it."""
    net = Net(3, 9, 9)
    left, right = (net.add("Conv", "x", net.normal(16, 3, 1, 1), net.normal(16)) for _ in range(2))
    soft = net.add("Softmax", net.add("MatMul", left, right), axis=-1)
    state = state_of(net.model(net.add("MatMul", soft, right)), observations := ArrayObservations(feed))
    tensors = tuple(_widened(entry, "mse", 12.0) for entry in state.table.tensors if entry.name != soft)
    state = replace(state, table=replace(state.table, method="mse", tensors=tensors))
    context = replace(context_of(observations), target=UNLIMITED, search=_probe(state, feed, pool))
    assert soft in state.quantized(UNLIMITED).tensors
    (proposal,) = Ranges().propose(state, context).proposals
    assert soft not in proposal.changed
    assert proposal.changed


def test_a_moved_tensor_keeps_its_symmetric_range(feed: Feed, pool: ThreadPoolExecutor) -> None:
    """If it is not moved in the end, it has what it had; the grid that was chosen for it is that of the moved one."""
    state, context, found = _propose(feed, 0.7, pool)
    (proposal,) = found.proposals
    moved = set(moved_grids(state, context)) & set(proposal.changed)
    assert moved
    before, after = state.quantized(context.target).tensors, proposal.state.quantized(context.target).tensors
    for name in moved:
        assert after[name] == before[name]
        entry = proposal.state.table.entries()[name]
        assert moved_grids(proposal.state, context)[name].scale == pytest.approx(entry.maximum / 255, rel=1e-6)
    assert found.notes == (
        f"measured with {len(moved_grids(state, context))} tensors on the grids that shift is to give them",
    )


@pytest.mark.parametrize("infinite", [np.inf, np.nan])
def test_what_cures_infinite_noise_is_better(infinite: float) -> None:
    good, bad = np.ones((4, 1)), np.array([[1.0], [infinite], [1.0], [1.0]])
    signal = np.ones(1)
    assert falls(bad, good, signal) == np.inf
    assert falls(good, bad, signal) == -np.inf
    assert falls(bad, bad, signal) == -np.inf


def test_tensors_that_make_little_noise_are_left(feed: Feed, pool: ThreadPoolExecutor) -> None:
    _, context, found = _propose(feed, 12.0, pool)
    names = found.proposals[0].changed
    shares = dict.fromkeys(names, 0.001) | {names[0]: 0.5}
    _, _, few = _propose(feed, 12.0, pool, shares=shares)
    assert few.proposals[0].changed == (names[0],)
    assert not few.proposals[0].state.table.entries()[names[1]].ranges[INT8_SYMMETRIC.name]["mse"].picked
    assert not context.shares


def test_the_grid_to_come_is_that_of_the_moved_graph(feed: Feed, pool: ThreadPoolExecutor) -> None:
    """Zero-points that stand in for the moving give the noise that the moved graph has, to float32's rounding."""
    state, context, _ = _propose(feed, 1.0, pool)
    grids = moved_grids(state, context)
    assert len(grids) == 2
    proposal = next(p for p in Shift().propose(state, context).proposals if set(p.changed) == set(grids))
    as_is, stands_in, moved = (
        noise_of(of, context.target, (), context.search, Judged.ACTIVATIONS, given)
        for of, given in ((state, {}), (state, grids), (proposal.state, {}))
    )
    np.testing.assert_allclose(stands_in.sum(), moved.sum(), rtol=0.02)
    assert moved.sum() < 0.6 * as_is.sum()


@pytest.mark.parametrize(("target", "moving"), [("onnxruntime", True), ("tensorrt", False)])
def test_nothing_stands_in_for_what_does_not_follow(
    target: str, moving: bool, feed: Feed, pool: ThreadPoolExecutor
) -> None:
    state, context, _ = _propose(feed, 1.0, pool, target, moving=moving)
    assert moved_grids(state, context) == {}


def test_the_unsigned_grid_of_auto_is_that_of_the_method_it_picked(feed: Feed) -> None:
    state, _ = _state(feed, 0.5)
    entry = next(entry for entry in state.table.tensors if entry.minimum == 0.0)
    for picked, factor in (("minmax", 1.0), ("mse", 0.5)):
        symmetric = entry.ranges[INT8_SYMMETRIC.name]
        auto = {**symmetric, "auto": replace(symmetric[picked], picked=picked)}
        found = replace(entry, ranges={**entry.ranges, INT8_SYMMETRIC.name: auto})
        step, _ = affine_step(found, replace(state.table, method="auto"))
        assert step == pytest.approx(factor * entry.maximum / 255, rel=1e-6)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, feed: Feed) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    save_model(_model(), folder / "net.onnx", None)
    np.savez(folder / "data.npz", x=feed["x"])
    return folder


@pytest.mark.parametrize("method", ["mse", "auto", "imported"])
def test_what_is_observed_anew_keeps_the_method_that_was_picked(method: str, calibrated: Path) -> None:
    """Scheme by scheme; methods that observe nothing take the pick of the scheme that has one, or the default."""
    prepared = open_model(calibrated / "net.onnx", {}, Silent())
    dataset, preprocess = open_data(prepared.model, DataRequest(str(calibrated / "data.npz")), Silent())
    table, _ = calibrate(prepared, dataset, preprocess, CalibrateSettings("mse", 99.99, 2, TENSORRT), Silent())
    one, other = [entry for entry in table.tensors if entry.minimum == 0.0][:2]

    def with_pick(entry: TensorEntry, picked: str | None) -> TensorEntry:
        symmetric = entry.ranges[INT8_SYMMETRIC.name]
        chosen = {**symmetric, method: replace(symmetric[picked or "mse"], picked=picked)}
        return replace(entry, ranges={**entry.ranges, INT8_SYMMETRIC.name: chosen})

    picks = {one.name: "percentile", other.name: None}
    entries = tuple(with_pick(entry, picks.get(entry.name)) for entry in table.tensors)
    state = State(prepared, replace(table, method=method, tensors=entries))
    found = Observed(dataset, 1).ranges(state, {one.name, other.name}).entries()
    again = found[one.name].ranges
    assert again[INT8_SYMMETRIC.name][method] == replace(again[INT8_SYMMETRIC.name]["percentile"], picked="percentile")
    affine, plain = again[UINT8_AFFINE.name], found[other.name].ranges[INT8_SYMMETRIC.name]
    if method == "mse":
        assert affine == one.ranges[UINT8_AFFINE.name]
        assert plain["mse"] == other.ranges[INT8_SYMMETRIC.name]["mse"]
    else:
        assert affine[method] == replace(affine["percentile"], picked="percentile")
        assert plain[method] == replace(plain["mse"], picked="mse")


STEPS = ("ranges", "shift", "round")


def _recover(calibrated: Path, threads: int, folder: Path | None = None) -> Recovered:
    """Recover from a table whose ranges clip."""
    prepared = open_model(calibrated / "net.onnx", {}, Silent())
    dataset, preprocess = open_data(prepared.model, DataRequest(str(calibrated / "data.npz")), Silent())
    table, _ = calibrate(prepared, dataset, preprocess, CalibrateSettings("mse", 99.99, 2, TENSORRT), Silent())
    clipping = replace(table, tensors=tuple(_widened(entry, "mse", 0.3) for entry in table.tensors))
    return recover(prepared, dataset, clipping, RecoverSettings(STEPS, TENSORRT, threads, folder=folder), Silent())


def test_the_whole_of_it(calibrated: Path) -> None:
    """The step gains on held-out samples, says so, and is kept, and so is the moving that it looked forward to."""
    made = _recover(calibrated, 2)
    ranges, shift, _ = made.record.steps
    assert ranges.name == "ranges"
    assert ranges.kept
    assert made.record.end_db > made.record.start_db + 6.0
    assert shift.name == "shift"
    assert shift.kept
    assert set(shift.changed) <= set(ranges.changed)
    entries = made.state.table.entries()
    for name in ranges.changed:
        scheme = UINT8_AFFINE if name in shift.changed else INT8_SYMMETRIC
        assert entries[name].ranges[scheme.name]["mse"].picked in METHOD_NAMES


def test_the_same_after_an_interruption_and_with_another_number_of_threads(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _recover(calibrated, 2)
    assert _recover(calibrated, 1).state.table == whole.state.table

    def interrupted(*_: object) -> Proposals:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Shift, "propose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _recover(calibrated, 2, tmp_path)
    monkeypatch.setattr(Ranges, "propose", interrupted)  # it is finished
    again = _recover(calibrated, 2, tmp_path)
    assert [step.name for step in again.record.steps] == list(STEPS)
    assert again.state.table == whole.state.table
    for name, weight in whole.state.rounded.items():
        np.testing.assert_array_equal(weight.codes, again.state.rounded[name].codes)
