"""Arrays, IDX files, factories, torchvision and random numbers."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_images import GRAY, RGB, pictures, write_idx

from quantlab.datasets import Dataset, InputSpec, batches, load_preprocess, open_dataset, wrap_items
from quantlab.datasets.resolution import resolve_preprocess
from quantlab.degradation import DegradationCode
from quantlab.errors import BackendUnavailable, ConfigError, DataError

UNIT = load_preprocess("unit")
TOKENS = InputSpec("tokens", (8,), "int64")
MASK = InputSpec("mask", (8,), "float32")


def saved(folder: Path, **arrays: object) -> str:
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "data.npz")


def test_several_inputs_by_name(tmp_path: Path) -> None:
    tokens, mask = np.arange(24).reshape(3, 8), np.ones((3, 8), np.float64)
    dataset = open_dataset(saved(tmp_path, mask=mask, tokens=tokens, extra=mask), [TOKENS, MASK], UNIT)
    (batch,) = batches(dataset, 8)
    np.testing.assert_array_equal(batch.inputs["tokens"], tokens)
    assert batch.inputs["mask"].dtype == np.float32
    assert [s.name for s in dataset.statistics()] == ["tokens", "mask"]


def test_an_input_may_be_called_like_a_key_of_its_own(tmp_path: Path) -> None:
    """Token ids are often called ``ids``, and then they are the input and not the samples' names."""
    ids, spec = np.arange(24).reshape(3, 8), InputSpec("ids", (8,), "int64")
    dataset = open_dataset(saved(tmp_path, ids=ids, labels=np.array([2, 0, 1])), [spec], UNIT)
    assert [(sample.id, sample.label) for sample in dataset] == [("data#0", 2), ("data#1", 0), ("data#2", 1)]
    np.testing.assert_array_equal(np.stack([sample.inputs["ids"] for sample in dataset]), ids)


def test_ready_tensors_take_no_preprocessing_and_assume_none(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 2 * 784, dtype=np.float32).reshape(2, 1, 28, 28)
    dataset = open_dataset(saved(tmp_path, x=values), [GRAY], resolve_preprocess(None, None, {}, [GRAY]))
    np.testing.assert_array_equal(np.stack([sample.inputs["image"] for sample in dataset]), values)
    assert dataset.describe()["preprocess_origin"] == "ready tensors"
    assert dataset.degradations == ()


def test_images_that_are_preprocessed_by_assumption_say_so(tmp_path: Path) -> None:
    source = saved(tmp_path, x=pictures(2))
    dataset = open_dataset(source, [GRAY], resolve_preprocess(None, None, {}, [GRAY]))
    assert [d.code for d in dataset.degradations] == [DegradationCode.ASSUMED_PREPROCESS]


@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32), (40, 20)], ids=str)
def test_image_arrays_of_any_form(tmp_path: Path, shape: tuple[int, ...]) -> None:
    dataset = open_dataset(saved(tmp_path, x=pictures(2, shape)), [RGB], UNIT)
    assert {sample.inputs["image"].shape for sample in dataset} == {(3, 32, 32)}


def test_uint8_model_of_the_same_shape_is_fed_as_it_is(tmp_path: Path) -> None:
    images, spec = pictures(2, (8, 8, 3)), InputSpec("x", (8, 8, 3), "uint8")
    dataset = open_dataset(saved(tmp_path, x=images), [spec], UNIT)
    np.testing.assert_array_equal(np.stack([sample.inputs["x"] for sample in dataset]), images)


def test_ids_and_class_names(tmp_path: Path) -> None:
    source = saved(
        tmp_path, x=pictures(2), ids=np.array([70, 9]), label=np.array([1, 0]), class_names=np.array(["a", "b"])
    )
    dataset = open_dataset(source, [GRAY], UNIT)
    assert [(sample.id, sample.label) for sample in dataset] == [("data#70", 1), ("data#9", 0)]
    assert dataset.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({"x": np.zeros((4, 28, 28, 1), np.float32)}, [GRAY], "does not fit the model"),
        ({"x": np.zeros((1, 28, 28), np.float32)}, [GRAY], "add a batch axis"),
        ({"x": np.zeros((0, 1, 28, 28), np.float32)}, [GRAY], "no samples"),
        ({"x": pictures(2), "labels": np.zeros(3, int)}, [GRAY], "differ in length"),
        ({"x": pictures(2), "labels": np.zeros(2)}, [GRAY], "not class numbers"),
        ({"x": pictures(2), "labels": np.array([0, -1])}, [GRAY], "label out of range"),
        ({"x": pictures(2), "labels": np.array([0, 10])}, [GRAY], "0 to 9"),
        ({"x": pictures(2), "ids": np.array([1, 1])}, [GRAY], "not unique"),
        ({"a": pictures(2), "b": pictures(2)}, [GRAY], "no array for input 'image'"),
        ({"tokens": np.zeros((2, 8), int)}, [TOKENS, MASK], "no array for input 'mask'"),
        ({"x": np.array([{}, {}])}, [GRAY], "never unpickles"),
        ({"x": pictures(2)}, [TOKENS], "does not fit the model"),
    ],
    ids=str,
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, object], inputs: list[InputSpec], message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(saved(tmp_path, **arrays), inputs, UNIT, num_classes=10)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0] * 8, [np.nan] * 8]), "not finite"),
        (np.array([[0.0] * 8, [1e300] * 8]), "not finite"),  # beyond float32
        (np.zeros((2, 8), int), "does not fit input 'mask'"),
    ],
    ids=["nan", "overflow", "kind"],
)
def test_wrong_values_name_the_sample(tmp_path: Path, values: np.ndarray, message: str) -> None:
    dataset = open_dataset(saved(tmp_path, mask=values), [MASK], UNIT)
    with pytest.raises(DataError, match=r"sample 'data#\d'") as caught:
        list(dataset)
    assert message in str(caught.value)


def test_integers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    spec = InputSpec("x", (1,), "int8")
    with pytest.raises(DataError, match="values beyond"):
        list(open_dataset(saved(tmp_path, x=np.array([[300]])), [spec], UNIT))


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00"], ids=repr)
def test_damaged_files(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="cannot read arrays"):
        open_dataset(str(tmp_path / name), [GRAY], UNIT)


def test_wrong_idx_files(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    write_idx(path, pictures(3))
    whole = path.read_bytes()
    for data, message in (
        (whole[:-1], "damaged"),
        (b"\1\2\3\4", "not an IDX file"),
        (gzip.compress(whole)[:-20], "damaged gzip"),
        (b"", "not an IDX file"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            open_dataset(str(path), [GRAY], UNIT)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(2, np.uint8))
    path.write_bytes(whole)
    with pytest.raises(DataError, match="differ in length"):
        open_dataset(str(path), [GRAY], UNIT)
    with pytest.raises(DataError, match="holds no images"):
        open_dataset(str(tmp_path / "t10k-labels-idx1-ubyte"), [GRAY], UNIT)


FACTORY = """
import numpy as np
from quantlab.datasets import InputSpec, load_preprocess, open_dataset
def generator():
    yield np.zeros((1, 28, 28), np.float32)
def number():
    return 3
def empty():
    return []
def failing():
    raise RuntimeError("no disk")
def complete():
    return open_dataset("random:4", [InputSpec("image", (1, 28, 28))], load_preprocess("unit"))
def texts():
    return ["a", "b"]
def soft_labels():
    return [(np.zeros((28, 28), np.uint8), 0.5)]
value = 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "quantlab_test_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "quantlab_test_factory", raising=False)
    return "quantlab_test_factory"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generator", "one-shot generator"),
        ("number", "gives no data set"),
        ("empty", "no samples"),
        ("failing", "RuntimeError: no disk"),
        ("value", "no function 'value'"),
        ("generatr", "did you mean 'generator'"),
        ("texts", "not numeric"),
        ("soft_labels", "wrong label"),
    ],
)
def test_wrong_factories(module: str, name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(f"{module}:{name}", [GRAY], UNIT)
    assert message in str(caught.value)


def test_a_complete_data_set_is_returned_as_it_is(module: str) -> None:
    assert len(open_dataset(f"{module}:complete", [GRAY], UNIT, limit=9)) == 4
    with pytest.raises(ConfigError, match="no labels or limit"):
        open_dataset(f"{module}:complete", [GRAY], UNIT, limit=2)


def test_missing_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no Python module"):
        open_dataset("absent.module:factory", [GRAY], UNIT)
    (tmp_path / "local_data.py").write_text("")
    with pytest.raises(DataError, match="no Python module") as caught:
        open_dataset("local_data:factory", [GRAY], UNIT)
    assert "PYTHONPATH=." in str(caught.value)


class TorchLike:
    """Map-style data set as torchvision's: targets, classes, and images by index."""

    classes = ("a", "b", "c")
    targets = (0, 1, 2, 0, 1, 2)
    broken = 4

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index == self.broken:
            raise OSError("damaged record")
        return pictures(6)[index], self.targets[index]


def test_map_style_data_sets() -> None:
    dataset: Dataset = wrap_items(TorchLike(), [GRAY], UNIT, name="mine", limit=6)
    assert [(sample.id, sample.label) for sample in dataset] == [(f"mine#{i}", i % 3) for i in (0, 1, 2, 3, 5)]
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.degradations[0].subjects == ("mine#4: raised OSError: damaged record",)
    assert len(wrap_items(TorchLike(), [GRAY], UNIT, limit=3)) == 3
    items = TorchLike()
    items.broken = 0  # type: ignore[misc]
    assert len(list(wrap_items(items, [GRAY], UNIT))) == 5


def test_sequences_that_always_raise() -> None:
    class Broken(list[int]):
        def __getitem__(self, index: object) -> int:  # type: ignore[override]
            raise OSError("no disk")

    with pytest.raises(DataError, match="none of the 2 samples"):
        wrap_items(Broken([1, 2]), [GRAY], UNIT)


def test_torchvision_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BackendUnavailable) as caught:
        open_dataset("torchvision:FashionMNIST?root=data&train=false", [GRAY], UNIT)
    assert "pip install 'quantlab[torch]'" in str(caught.value)


def test_torchvision_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    module, seen = ModuleType("torchvision.datasets"), {}

    def fashion(**arguments: object) -> TorchLike:
        seen.update(arguments)
        return TorchLike()

    module.FashionMNIST, module.__all__ = fashion, ("FashionMNIST",)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    dataset = open_dataset("torchvision:FashionMNIST?root=a/b&train=false&n=3", [GRAY], UNIT)
    assert seen == {"root": "a/b", "train": False, "n": 3}
    assert dataset.describe()["kind"] == "torchvision"
    with pytest.raises(DataError, match="no data set 'FashionMNST'") as caught:
        open_dataset("torchvision:FashionMNST", [GRAY], UNIT)
    assert "did you mean 'FashionMNIST'" in str(caught.value)


def test_random_numbers_taint_the_result() -> None:
    dataset = open_dataset("random:5", [GRAY, TOKENS, InputSpec("raw", (4,), "uint8")], UNIT, seed=1)
    (degradation,) = dataset.degradations
    assert (degradation.code, degradation.count) == (DegradationCode.RANDOM_DATA, 5)
    assert dataset.manifest == open_dataset("random:5", dataset.inputs, UNIT, seed=1).manifest  # type: ignore[attr-defined]
    assert dataset.manifest != open_dataset("random:5", dataset.inputs, UNIT, seed=2).manifest  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["random:", "random:0", "random:-1", "random:x", "random:1.5"])
def test_wrong_random(text: str) -> None:
    with pytest.raises(ConfigError, match="random"):
        open_dataset(text, [GRAY], UNIT)


def test_random_needs_fixed_shapes() -> None:
    with pytest.raises(DataError, match="fixed shape"):
        open_dataset("random:3", [InputSpec("x", (3, None, None))], UNIT)
