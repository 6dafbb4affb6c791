from __future__ import annotations

import filecmp
from pathlib import Path

import pytest

import quantlab.workflow.demo as demo
from quantlab.datasets import sample_model, unpack_samples
from quantlab.errors import ConfigError
from quantlab.gate import load_policy
from quantlab.workflow.demo import RECIPES, is_demo, make_demo
from quantlab.workflow.recipe import load_recipe


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack 20 images of each set: the full unpacking is tested with the data sets."""
    monkeypatch.setattr(demo, "unpack_samples", lambda folder, force: unpack_samples(folder, per_set=20, force=force))


@pytest.mark.usefixtures("few")
class TestDemo:
    def test_content(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "demo"
        made = make_demo(folder, force=False)
        assert is_demo(folder)
        assert set(made) == set(folder.iterdir())
        for recipe_name, model in RECIPES.items():
            recipe = load_recipe(folder / recipe_name)
            assert recipe.model.file == f"{model}.onnx"
            assert filecmp.cmp(folder / recipe.model.file, sample_model(model), shallow=False)
            assert recipe.calibrate is not None
            assert recipe.compare is not None
            for data in (recipe.calibrate.data, recipe.compare.data):
                assert len(list((folder / data).glob("*/*.png"))) == 20
                assert len(list((folder / data).iterdir())) == 10
            assert load_policy(folder / recipe.gate.policy).checks
        assert len({load_recipe(folder / name).run.out for name in RECIPES}) == 2

    def test_a_folder_that_is_not_empty(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="is not empty"):
            make_demo(tmp_path, force=False)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        make_demo(tmp_path, force=True)
        (tmp_path / "quantlab.toml").write_text("changed")
        make_demo(tmp_path, force=True)
        assert is_demo(tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert (tmp_path / "quantlab.toml").read_text() != "changed"

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "demo").touch()
        with pytest.raises(ConfigError, match="is not a folder"):
            make_demo(tmp_path / "demo", force=True)

    @pytest.mark.parametrize("missing", ["policy.toml", "mobilenet.toml", "fashion-resnet.onnx"])
    def test_half_a_demo_is_none(self, tmp_path: Path, missing: str) -> None:
        make_demo(tmp_path, force=False)
        (tmp_path / missing).unlink()
        assert not is_demo(tmp_path)


def test_recipes_say_how_they_are_run() -> None:
    text = demo._RECIPE
    assert "quantlab:default" not in text
    assert not is_demo(Path("/nonexistent"))
