from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_images import GRAY, RGB, MakeFolder, pictures

from quantlab.datasets import PRESETS, InputSpec, ResolvedPreprocess, batches, load_preprocess, open_dataset, wrap_items
from quantlab.datasets.lookahead import CHUNK, map_ahead
from quantlab.errors import ConfigError, DataError

UNIT = load_preprocess("unit")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data was named"),
        ("phtos", "did you mean"),
        ("photos/nowhere/x.png", "there is no data at"),
        ("x" * 5000, "there is no data at"),
        ("nul\0byte", "there is no data at"),
        ("notes.pdf", "kind of data"),
        ("Makefile", "without a suffix"),
    ],
    ids=lambda text: text[:20].replace("\0", "0"),
)
def test_what_is_not_there(
    spec: str, message: str, class_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folder(1)
    monkeypatch.chdir(tmp_path)
    for name in ("notes.pdf", "Makefile"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError) as caught:
        open_dataset(spec, [GRAY], UNIT)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], DataError, "no inputs"),
        ([GRAY, RGB], DataError, "images, which feed one input"),
        ([InputSpec("x", (128,))], DataError, "images cannot be fed"),
        ([InputSpec("x", (3, None, None))], ConfigError, "is dynamic"),
        ([InputSpec("x", (4, 8, 8))], ConfigError, "does not give the channels"),
    ],
)
def test_models_that_take_no_such_images(
    class_folder: MakeFolder, inputs: list[InputSpec], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_dataset(str(class_folder(1)), inputs, UNIT)


def test_images_without_any_preprocessing_are_refused(class_folder: MakeFolder) -> None:
    with pytest.raises(ConfigError, match="no preprocessing applies"):
        open_dataset(str(class_folder(1)), [GRAY], ResolvedPreprocess(None, "ready tensors"))


def test_wrong_numbers(class_folder: MakeFolder) -> None:
    root = str(class_folder(1))
    for options in ({"limit": 0}, {"threads": 0}):
        with pytest.raises(ConfigError):
            open_dataset(root, [GRAY], UNIT, **options)
    dataset = open_dataset(root, [GRAY], UNIT)
    for call in (lambda: batches(dataset, 0), lambda: dataset.statistics(0)):
        with pytest.raises(ConfigError):
            call()


def test_batches_of_unlike_shapes_are_refused() -> None:
    items = [np.zeros((1, 4, size), np.float32) for size in (4, 5)]
    dataset = wrap_items(items, [InputSpec("x", (1, None, None))], UNIT)
    assert [batch.inputs["x"].shape for batch in batches(dataset, 1)] == [(1, 1, 4, 4), (1, 1, 4, 5)]
    with pytest.raises(DataError, match="differ in the shape"):
        list(batches(dataset, 2))


def test_images_of_any_size_feed_a_dynamic_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=pictures(2, (12, 20, 3)))
    dataset = open_dataset(str(tmp_path / "x.npz"), [InputSpec("x", (3, None, None))], load_preprocess_none())
    assert {sample.inputs["x"].shape for sample in dataset} == {(3, 12, 20)}


def load_preprocess_none() -> ResolvedPreprocess:
    from quantlab.datasets import Preprocess

    return ResolvedPreprocess(Preprocess(scale=255.0), "test")


def test_statistics_are_per_channel(tmp_path: Path) -> None:
    images = pictures(4, (8, 8, 3))
    np.savez(tmp_path / "x.npz", x=images)
    for shape in ((3, 8, 8), (8, 8, 3)):
        (got,) = open_dataset(str(tmp_path / "x.npz"), [InputSpec("x", shape)], PRESETS["raw"]).statistics()
        np.testing.assert_allclose(got.mean, images.mean((0, 1, 2)))
        np.testing.assert_allclose(got.std, images.astype(np.float64).std((0, 1, 2)))
        assert got.shape == shape


def test_look_ahead_is_bounded_and_ordered() -> None:
    started: list[int] = []

    def work(index: int) -> int:
        started.append(index)
        return index

    results = map_ahead(work, range(10_000), 2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(started) <= (2 * 2 + 2) * CHUNK
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quantlab-data")]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_consumer_or_worker_ends_the_threads(error: type[BaseException]) -> None:
    def failing(index: int) -> int:
        if index == 50:
            raise error
        return index

    def consume(work: Callable[[int], int], stop: int) -> None:
        results = map_ahead(work, range(1000), 3)
        try:
            for index in results:
                if index == stop:
                    raise error
        finally:
            results.close()

    for work, stop in ((failing, -1), (int, 20)):
        with pytest.raises(error):
            consume(work, stop)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("quantlab-data")]


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, quantlab.datasets; print([m for m in ('PIL', 'pandas', 'onnx', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
