from __future__ import annotations

from pathlib import Path

import pytest
from dataset_images import GRAY, RGB

from quantlab.datasets import (
    METADATA_KEY,
    PRESETS,
    Color,
    InputSpec,
    Layout,
    load_preprocess,
    preprocess_from_metadata,
    resolve_preprocess,
)
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError

METADATA = {METADATA_KEY: PRESETS["fashion-mnist"].to_json()}


def test_precedence() -> None:
    flag = resolve_preprocess("unit", {"preset": "raw"}, METADATA, [GRAY])
    recipe = resolve_preprocess(None, {"preset": "raw"}, METADATA, [GRAY])
    model = resolve_preprocess(None, None, METADATA, [GRAY])
    assert [r.origin for r in (flag, recipe, model)] == ["flag --preprocess unit", "recipe", "model metadata"]
    assert flag.preprocess == PRESETS["unit"].fitted(GRAY)
    assert recipe.preprocess == PRESETS["raw"].fitted(GRAY)
    assert model.preprocess == PRESETS["fashion-mnist"].fitted(GRAY)
    assert not any(r.degradation for r in (flag, recipe, model))


@pytest.mark.parametrize(
    ("spec", "color", "layout", "scale"),
    [
        (GRAY, Color.GRAY, Layout.NCHW, 255.0),
        (RGB, Color.RGB, Layout.NCHW, 255.0),
        (InputSpec("x", (8, 8, 3)), Color.RGB, Layout.NHWC, 255.0),
        (InputSpec("x", (8, 8, 1), "uint8"), Color.GRAY, Layout.NHWC, 1.0),
    ],
    ids=str,
)
def test_an_assumption_is_counted_and_said(spec: InputSpec, color: Color, layout: Layout, scale: float) -> None:
    resolved = resolve_preprocess(None, None, {}, [spec])
    assert resolved.origin == "assumed"
    assert resolved.preprocess is not None
    assert (resolved.preprocess.color, resolved.preprocess.layout, resolved.preprocess.scale) == (color, layout, scale)
    assert resolved.degradation is not None
    assert resolved.degradation.code is DegradationCode.ASSUMED_PREPROCESS
    assert resolved.preprocess.describe() in resolved.degradation.message


def test_nothing_is_assumed_where_no_image_can_go() -> None:
    for inputs in ([InputSpec("tokens", (128,), "int64")], [GRAY, GRAY]):
        resolved = resolve_preprocess(None, None, {}, inputs)
        assert (resolved.preprocess, resolved.origin, resolved.degradation) == (None, "ready tensors", None)


def test_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("preset = 'imagenet'\ncrop = 192\n")
    got = load_preprocess(str(path))
    assert got.crop == (192, 192)
    assert got.mean == PRESETS["imagenet"].mean
    path.write_text("[preprocess]\npreset = 'imagenet'\nresize = 'stretch'\nsize = [224, 224]\n")
    assert load_preprocess(str(path)).size == (224, 224)


@pytest.mark.parametrize(
    ("text", "message"), [("imagnet", "did you mean 'imagenet'"), ("zzz", "one of imagenet"), ("a.toml", "not exist")]
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preprocess(text)
    assert message in str(caught.value)


def test_broken_metadata_is_refused() -> None:
    assert preprocess_from_metadata({}) is None
    for text in ("{", "[]", '{"sise": 3}', "[" * 100_000):
        with pytest.raises(ConfigError, match="metadata"):
            preprocess_from_metadata({METADATA_KEY: text})
