from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from dataset_images import pictures
from PIL import Image

from quantlab.datasets import PRESETS, Color, InputSpec, Interpolation, Layout, Preprocess, Resize
from quantlab.errors import ConfigError, DataError


def reference(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Float64, Pillow and the torchvision rules for sizes, written apart from the code under test."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture = picture.convert("L" if preprocess.color is Color.GRAY else "RGB")
    width, height = picture.size
    method = Image.Resampling[preprocess.interpolation.name]
    if preprocess.shortest is not None:
        if width <= height:
            picture = picture.resize((preprocess.shortest, int(preprocess.shortest * height / width)), method)
        else:
            picture = picture.resize((int(preprocess.shortest * width / height), preprocess.shortest), method)
    elif preprocess.size is not None:
        picture = picture.resize(preprocess.size[::-1], method)
    if preprocess.crop is not None:
        width, height = picture.size
        top, left = round((height - preprocess.crop[0]) / 2), round((width - preprocess.crop[1]) / 2)
        picture = picture.crop((left, top, left + preprocess.crop[1], top + preprocess.crop[0]))
    values = np.asarray(picture, np.float64).reshape(picture.size[1], picture.size[0], -1)
    if preprocess.color is Color.BGR:
        values = values[:, :, ::-1]
    values = (values / preprocess.scale - np.array(preprocess.mean)) / np.array(preprocess.std)
    return values if preprocess.layout is Layout.NHWC else values.transpose(2, 0, 1)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(300, 401, 3), (280, 256, 1), (256, 256, 3)], ids=str)
@pytest.mark.parametrize("layout", Layout)
def test_presets_equal_a_float64_reference(name: str, shape: tuple[int, ...], layout: Layout) -> None:
    channels = 1 if PRESETS[name].color is Color.GRAY else 3
    size = PRESETS[name].crop or PRESETS[name].size or (96, 80)
    spec = InputSpec("x", (channels, *size) if layout is Layout.NCHW else (*size, channels))
    preprocess = PRESETS[name].fitted(spec)
    preprocess.check_fits(spec)
    image = pictures(1, shape)[0]
    got = preprocess.apply(image)
    assert got.dtype == np.float32
    assert got.flags["C_CONTIGUOUS"]
    assert spec.accepts(got.shape)
    expected = reference(image, preprocess)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


def test_arithmetic_is_bit_identical_to_torchvision() -> None:
    # ToTensor divides by 255 in float32; Normalize subtracts and divides in place, in float32
    image = pictures(1, (224, 224, 3))[0]
    preprocess = dataclasses.replace(PRESETS["imagenet"], resize=Resize.NONE, shortest=None)
    expected = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    expected -= np.array(preprocess.mean, np.float32)[:, None, None]
    expected /= np.array(preprocess.std, np.float32)[:, None, None]
    np.testing.assert_array_equal(preprocess.apply(image), expected)


def test_letterbox_keeps_the_aspect_ratio() -> None:
    image = np.full((50, 100, 3), 200, np.uint8)
    got = Preprocess(resize=Resize.LETTERBOX, size=(64, 64), fill=7).apply(image)
    assert got.shape == (3, 64, 64)
    assert (got[:, :16] == 7).all()
    assert (got[:, 48:] == 7).all()
    assert (got[:, 16:48] == 200).all()


def test_channel_order_and_grey() -> None:
    image = pictures(1, (4, 5, 3))[0]
    np.testing.assert_array_equal(Preprocess(color=Color.BGR).apply(image), image.transpose(2, 0, 1)[::-1])
    grey = image[:, :, :1]
    np.testing.assert_array_equal(Preprocess(color=Color.RGB).apply(grey), np.repeat(grey.transpose(2, 0, 1), 3, 0))
    means = Preprocess(color=Color.BGR, mean=(1.0, 2.0, 3.0)).apply(grey)
    np.testing.assert_array_equal(means[0] - means[2], np.full((4, 5), 2.0))


def test_integer_and_half_results() -> None:
    image = pictures(1, (4, 5, 3))[0]
    raw = Preprocess(layout=Layout.NHWC).apply(image, np.dtype(np.uint8))
    np.testing.assert_array_equal(raw, image)
    assert PRESETS["mnist"].apply(image, np.dtype(np.float16)).dtype == np.float16


@pytest.mark.parametrize("interpolation", Interpolation)
def test_every_interpolation_runs(interpolation: Interpolation) -> None:
    image = pictures(1, (40, 30, 3))[0]
    preprocess = Preprocess(resize=Resize.STRETCH, size=(16, 20), interpolation=interpolation, color=Color.RGB)
    np.testing.assert_allclose(preprocess.apply(image), reference(image, preprocess))


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip_and_hash(name: str) -> None:
    preprocess = PRESETS[name]
    again = Preprocess.from_plain(json.loads(preprocess.to_json()))
    assert again == preprocess
    assert again.sha256 == preprocess.sha256
    assert "\n" not in preprocess.describe()
    assert len({PRESETS[other].sha256 for other in PRESETS}) == len(PRESETS)


def test_from_plain_takes_squares_single_numbers_and_dashes() -> None:
    got = Preprocess.from_plain({"resize": "stretch", "size": 32, "crop": 28, "mean": 0.5, "std": 2})
    assert (got.size, got.crop, got.mean, got.std) == ((32, 32), (28, 28), (0.5,), (2.0,))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"resise": "none"}, "did you mean 'resize'"),
        ({"resize": "shortest"}, "preprocess.shortest"),
        ({"shortest": 256}, "preprocess.shortest"),
        ({"size": 32}, "preprocess.size"),
        ({"resize": "stretch", "size": 0}, "preprocess.size"),
        ({"crop": [0, 4]}, "preprocess.crop"),
        ({"scale": 0}, "preprocess.scale"),
        ({"std": 0}, "preprocess.std"),
        ({"mean": "nan"}, "preprocess.mean"),
        ({"mean": [1, 2]}, "preprocess.mean"),
        ({"mean": [1, 2, 3], "color": "gray"}, "preprocess.mean"),
        ({"color": "cmyk"}, "rgb, bgr, gray"),
        ({"fill": 256}, "preprocess.fill"),
        ({"resize": "fit"}, "none, stretch, shortest, letterbox"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Preprocess.from_plain(table)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "spec", "message"),
    [
        ("imagenet", InputSpec("x", (1, 224, 224)), "add color = 'gray'"),
        ("fashion-mnist", InputSpec("x", (3, 28, 28)), "add color = 'rgb'"),
        ("imagenet", InputSpec("x", (3, 299, 299)), "set crop = [299, 299]"),
        ("unit", InputSpec("x", (3, None, None)), "is dynamic"),
        ("unit", InputSpec("x", (2, 8, 8)), "give ready-made tensors"),
        ("imagenet", InputSpec("x", (3, 224, 224), "uint8"), "--preprocess raw"),
        ("raw", InputSpec("x", (3, 224, 224), "int8"), "ready-made tensors"),
    ],
    ids=str,
)
def test_unfit_preprocessing_is_refused(preset: str, spec: InputSpec, message: str) -> None:
    preprocess = PRESETS[preset].fitted(spec)
    with pytest.raises(ConfigError) as caught:
        preprocess.check_fits(spec)
    assert message in str(caught.value)


def test_layout_is_the_models() -> None:
    spec = InputSpec("x", (224, 224, 3))
    assert spec.layout is Layout.NHWC
    assert PRESETS["imagenet"].fitted(spec).apply(pictures(1, (256, 300, 3))[0]).shape == (224, 224, 3)
    wrong = dataclasses.replace(PRESETS["imagenet"], layout=Layout.NCHW).fitted(spec)
    with pytest.raises(ConfigError, match="shape") as caught:
        wrong.check_fits(spec)
    assert "layout = 'nhwc'" in str(caught.value)


def test_images_do_not_feed_other_ranks() -> None:
    with pytest.raises(DataError, match="images cannot be fed"):
        PRESETS["unit"].check_fits(InputSpec("tokens", (128,), "int64"))


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="not an image"):
        Preprocess().apply(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(DataError, match="smaller than the centre crop"):
        Preprocess(crop=(8, 8)).apply(np.zeros((4, 9, 3), np.uint8))
