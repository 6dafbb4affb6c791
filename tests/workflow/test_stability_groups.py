"""Observation in groups: the same counts as without, whatever the order of the data, and a result that is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from workflow_data import Recorder

from quantlab.datasets import Dataset, ResolvedPreprocess, Sample
from quantlab.engines.observation import observe, observed_tensors
from quantlab.errors import ConfigError, DataError
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile
from quantlab.workflow.calibrate import CalibrateSettings, calibrate
from quantlab.workflow.sources import DataRequest, open_data, open_model
from quantlab.workflow.stability import GroupedObservation, Stability, write_stability

N = 48
Opened = tuple[Dataset, ResolvedPreprocess]


def prepare(folder: Path, *nodes: onnx.NodeProto, batch: int | str, shape: tuple[int, ...]) -> Prepared:
    """A model from x [batch, *shape] to y, with the weights w and v."""
    rng = np.random.default_rng(9)
    weights = {"w": rng.standard_normal((16, 3, 3, 3)), "v": rng.standard_normal((16, 16))}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 16])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "small.onnx")
    return open_model(folder / "small.onnx", {}, Recorder())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(
        tmp_path_factory.mktemp("model"),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
        batch="n",
        shape=(3, 8, 8),
    )


def open_images(prepared: Prepared, path: Path, order: np.ndarray) -> Opened:  # type: ignore[type-arg]
    """Some random tensors, of unlike power, in an order of their own."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((N, 3, 8, 8)) * rng.lognormal(size=(N, 1, 1, 1))
    np.savez(path, x=values[order].astype(np.float32))
    return open_data(prepared.model, DataRequest(str(path)), Recorder())


@pytest.fixture
def opened(prepared: Prepared, tmp_path: Path) -> Opened:
    return open_images(prepared, tmp_path / "images.npz", np.arange(N))


def stability_of(
    prepared: Prepared, data: Opened, *, seed: int = 0, method: str = "percentile", target: TargetProfile = TENSORRT
) -> Stability:
    grouped = GroupedObservation(seed)
    grouped.observe(prepared, data[0], observed_tensors(prepared), 2, Recorder())
    table, _ = calibrate(prepared, *data, CalibrateSettings(method, 99.99, 2), Recorder())
    return grouped.measure(prepared, table, target, 2, Recorder())


def check_same_counts(prepared: Prepared, dataset: Dataset) -> None:
    tensors = observed_tensors(prepared)
    plain = observe(prepared, dataset, tensors, 2, Recorder())
    grouped = GroupedObservation(0).observe(prepared, dataset, tensors, 2, Recorder())
    assert sorted(grouped) == sorted(plain)
    assert (grouped.non_finite, grouped.absent) == (plain.non_finite, plain.absent)
    for name, histogram in plain.items():
        assert (grouped[name].counts == histogram.counts).all(), name
        assert (grouped[name].special == histogram.special).all(), name
        assert grouped[name].octave == histogram.octave, name
        assert (grouped[name].minimum, grouped[name].maximum) == (histogram.minimum, histogram.maximum), name


def test_groups_add_up_to_the_whole(prepared: Prepared, opened: Opened) -> None:
    check_same_counts(prepared, opened[0])


def test_every_image_is_in_one_group(prepared: Prepared, opened: Opened) -> None:
    grouped = GroupedObservation(0)
    grouped.observe(prepared, opened[0], observed_tensors(prepared), 2, Recorder())
    assert [group.images for group in grouped.groups] == [N // 16] * 16


def test_neither_order_nor_names_matter(prepared: Prepared, tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(N)
    made = [
        stability_of(prepared, open_images(prepared, tmp_path / f"{name}.npz", order))
        for name, order in (("a", np.arange(N)), ("b", order))
    ]
    assert made[0] == made[1]


def test_the_seed_matters(prepared: Prepared, opened: Opened) -> None:
    first, again, other = (stability_of(prepared, opened, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.tensors != other.tensors
    assert (first.seed, other.seed) == (0, 1)


@pytest.mark.parametrize("target", [TENSORRT, ONNXRUNTIME])
def test_ranges_of_the_target(prepared: Prepared, opened: Opened, target: TargetProfile) -> None:
    found = stability_of(prepared, opened, target=target)
    assert (found.scheme, found.method, found.n_samples) == (target.activation.name, "percentile", N)
    assert [(size.images, size.subsets) for size in found.sizes] == [(3, 16), (6, 8), (12, 8), (24, 8)]
    moved = [size.movement_median for size in found.sizes]
    assert moved[0] > moved[-1] >= 0.0
    if target is TENSORRT:
        assert all(tensor.low == -tensor.high for tensor in found.tensors)


def test_fixed_batches_stay_together(tmp_path: Path) -> None:
    """A model that mixes the samples of its batch gives other values in other company; the last batch is filled."""
    prepared = prepare(
        tmp_path,
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Add", ["x", "m"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
        batch=2,
        shape=(16,),
    )
    assert prepared.fixed_batch == 2
    dataset, _ = open_data(prepared.model, DataRequest("random:35"), Recorder())
    check_same_counts(prepared, dataset)
    few, _ = open_data(prepared.model, DataRequest("random:30"), Recorder())
    with pytest.raises(DataError, match="too few samples") as caught:
        check_same_counts(prepared, few)
    assert "15 batches of the model's 2" in str(caught.value.got) and caught.value.expected == "at least 32"


def test_unreadable_images_are_in_no_group(prepared: Prepared, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(6)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "05.png").write_bytes(b"no image")
    (tmp_path / "unit.toml").write_text("scale = 255\n")
    request = DataRequest(f"{tmp_path}/*.png", preprocess=str(tmp_path / "unit.toml"))
    dataset, _ = open_data(prepared.model, request, Recorder())
    check_same_counts(prepared, dataset)
    grouped = GroupedObservation(0)
    grouped.observe(prepared, dataset, observed_tensors(prepared), 2, Recorder())
    assert sorted(group.images for group in grouped.groups) == [1] * 13 + [2] * 3
    assert [(found.code, found.count) for found in dataset.degradations] == [("unreadable-samples", 1)]


def test_too_few_images(prepared: Prepared, tmp_path: Path) -> None:
    dataset, _ = open_images(prepared, tmp_path / "few.npz", np.arange(15))
    with pytest.raises(DataError, match="too few samples") as caught:
        GroupedObservation(0).observe(prepared, dataset, observed_tensors(prepared), 2, Recorder())
    assert (caught.value.got, caught.value.expected) == ("15 samples", "at least 16")


class OneByOne:
    """A complete data set of a factory."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name = "mine:data"
        self.class_names = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.dataset)

    @property
    def manifest(self) -> object:
        return self.dataset.manifest


def test_a_data_set_without_parts(prepared: Prepared, opened: Opened) -> None:
    with pytest.raises(ConfigError, match="mine:data is a complete data set") as caught:
        GroupedObservation(0).observe(prepared, OneByOne(opened[0]), ["x"], 2, Recorder())  # type: ignore[arg-type]
    assert "sequence of samples" in str(caught.value.hint)


def test_saved_and_loaded(prepared: Prepared, opened: Opened, tmp_path: Path) -> None:
    found = stability_of(prepared, opened)
    path = write_stability(tmp_path, found)
    assert path.name == "stability.json"
    assert Stability.load(path) == found
