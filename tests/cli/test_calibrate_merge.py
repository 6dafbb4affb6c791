"""``calibrate --merge``: calibrations of parts give the files of one calibration of the whole, byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_bench import Bench, Cli, tiny_cnn, tree

from quantlab.calibrators import CalibrationTable, load_histograms, save_histograms
from quantlab.datasets import sample_data, sample_model
from quantlab.errors import ExitCode

COMMON = ("--preprocess", "unit.toml", "--threads", "1", "--quiet")


def calibrate(cli: Cli, data: str, out: str, *flags: str) -> None:
    answer = cli("calibrate", "--data", data, "-o", out, "--quiet", *flags)
    assert answer.code == 0, answer.err


@pytest.fixture
def three(bench: Bench, cli: Cli) -> Sequence[str]:
    """The tiny model calibrated with all images as ``whole``, and with three parts of them; what `calibrate` takes."""
    bench.take("net.onnx", "images", "unit.toml")
    calibrate(cli, "images", "whole", *COMMON)
    for name, classes in (("part0", "2"), ("part1", "01"), ("part2", "3")):
        for label in classes:
            shutil.copytree(bench / "images" / label, bench / f"images-{name}" / label)
        calibrate(cli, f"images-{name}", name, *COMMON)
    return ("part0", "part1", "part2")


def test_the_bundled_model_and_images(bench: Bench, cli: Cli) -> None:
    """A random split, of unlike sizes and in another order."""
    n = 40
    shutil.copyfile(sample_model(), bench / "fashion.onnx")
    with np.load(sample_data("calibration")) as archive:
        images = archive["image"][:n]
    np.savez(bench / "whole.npz", image=images)
    calibrate(cli, "whole.npz", "whole", "--target", "onnxruntime")
    for number, chosen in enumerate(np.split(np.random.default_rng(3).permutation(n), [n // 8, n // 2])):
        np.savez(bench / f"part{number}.npz", image=images[chosen])
        calibrate(cli, f"part{number}.npz", f"part{number}")
    answer = cli("calibrate", "--merge", "part2", "part0", "part1", "-o", "merged", "--target", "onnxruntime")
    assert answer.code == 0, answer.err
    assert tree(bench / "merged") == tree(bench / "whole")
    assert "40 samples" in answer.out
    assert "merged 3 parts" in answer.err


def test_parts_are_named_by_folder_table_or_histograms(bench: Bench, cli: Cli, three: Sequence[str]) -> None:
    named = ("part2", "part1/calibration.json", "part0/histograms.npz")
    assert cli("calibrate", "--merge", *named, "--model", "net.onnx", "-o", "merged").code == 0
    assert tree(bench / "merged") == tree(bench / "whole")


def test_merged_calibrations_merge_again(bench: Bench, cli: Cli, three: Sequence[str]) -> None:
    assert cli("calibrate", "--merge", *three[:2], "-o", "some").code == 0
    assert cli("calibrate", "--merge", "some", three[2], "-o", "merged").code == 0
    assert tree(bench / "merged") == tree(bench / "whole")


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_another_method_than_that_of_the_parts(bench: Bench, cli: Cli, three: Sequence[str], method: str) -> None:
    calibrate(cli, "images", "whole", "--method", method, *COMMON)
    assert cli("calibrate", "--merge", *three, "--method", method, "-o", "merged").code == 0
    assert tree(bench / "merged") == tree(bench / "whole")


def test_parts_of_extremes_alone(bench: Bench, cli: Cli, three: Sequence[str]) -> None:
    flags = ("--method", "minmax", "--minmax-only", *COMMON)
    calibrate(cli, "images", "whole", *flags)
    for name in three:
        calibrate(cli, f"images-{name}", name, *flags)
    answer = cli("calibrate", "--merge", *three, "-o", "merged")
    assert answer.code == 0, answer.err
    assert tree(bench / "merged") == tree(bench / "whole")
    assert not (bench / "merged/histograms.npz").exists()


def test_json(bench: Bench, cli: Cli) -> None:
    two_parts(bench, cli)
    document = cli("calibrate", "--merge", "one", "two", "-o", "merged", "--json").document()
    assert (document["schema"], document["n_samples"]) == ("quantlab.calibrate/1", 12)


def two_parts(bench: Bench, cli: Cli, *flags: str) -> None:
    """The tiny model calibrated with two halves of the classes."""
    bench.take("net.onnx", "images", "unit.toml")
    for name, classes in (("one", (0, 1)), ("two", (2, 3))):
        for label in classes:
            shutil.copytree(bench / "images" / str(label), bench / f"images-{name}" / str(label))
        assert cli("calibrate", "--data", f"images-{name}", "-o", name, *COMMON, *flags).code == 0


def refused(cli: Cli, *arguments: str, code: ExitCode = ExitCode.BAD_INPUT) -> str:
    answer = cli("calibrate", "--merge", *arguments)
    assert answer.code == code, answer.err
    assert not Path("calibration").exists()
    assert "Traceback" not in answer.err
    return answer.err


class TestRefused:
    def test_fewer_than_two(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        assert "nothing to merge" in refused(cli, "one", code=ExitCode.USAGE)
        assert "nothing to merge" in refused(cli, code=ExitCode.USAGE)

    def test_the_same_images_twice(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        said = refused(cli, "one", "two", "one/calibration.json")
        assert "6 samples are in more than one" in said
        first = min(CalibrationTable.load(bench / "one/calibration.json").provenance.samples)
        assert first[:16] in said

    def test_another_model(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        bench.model(tiny_cnn(classes=5), "other.onnx")
        said = refused(cli, "one", "two", "--model", "other.onnx")
        assert "another model than other" in said
        table = CalibrationTable.load(bench / "one/calibration.json")
        assert table.provenance.model_sha256 in said
        args = ("calibrate", "--data", "images-two", "--model", "other.onnx", "-o", "two", "--force", *COMMON)
        assert cli(*args).code == 0
        assert "differ in the model" in refused(cli, "one", "two", "--model", "net.onnx")

    def test_another_preprocessing(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        bench.write("half.toml", "scale = 127.5\n")
        args = ("calibrate", "--data", "images-two", "-o", "two", "--preprocess", "half.toml", "--quiet")
        assert cli(*args).code == 0
        assert "differ in the preprocessing" in refused(cli, "one", "two")

    def test_histograms_missing_damaged_or_of_another_table(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        path = bench / "two/histograms.npz"
        good = path.read_bytes()
        path.unlink()
        assert "two has no histograms to merge" in refused(cli, "one", "two")
        path.write_bytes(good[: len(good) // 2])
        assert "two/histograms.npz" in refused(cli, "one", "two")
        shutil.copyfile(bench / "one/histograms.npz", path)
        assert "does not belong to its table" in refused(cli, "one", "two")
        path.write_bytes(good)
        kept = load_histograms(path)
        kept.pop("y")
        save_histograms(path, kept)
        assert "do not belong to its table" in refused(cli, "one", "two")

    def test_a_table_that_is_missing_or_damaged(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        assert "does not exist" in refused(cli, "one", "nowhere")
        bench.write("two/calibration.json", "{}")
        assert "another schema" in refused(cli, "one", "two")

    def test_method_auto(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        said = refused(cli, "one", "two", "--method", "auto", code=ExitCode.USAGE)
        assert "needs the images" in said and "--method mse" in said

    def test_methods_of_min_max_only_parts(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli, "--method", "minmax", "--minmax-only")
        assert "min-max only" in refused(cli, "one", "two", "--method", "entropy", code=ExitCode.USAGE)

    def test_a_part_as_output(self, bench: Bench, cli: Cli) -> None:
        two_parts(bench, cli)
        before = tree(bench / "one")
        assert "would overwrite the part" in refused(cli, "one", "two", "-o", "one", code=ExitCode.USAGE)
        assert tree(bench / "one") == before

    @pytest.mark.parametrize(
        "flags", [("--data", "images"), ("--limit", "3"), ("--percentile", "99.9"), ("--preprocess", "unit.toml")]
    )
    def test_flags_about_images(self, bench: Bench, cli: Cli, flags: tuple[str, ...]) -> None:
        two_parts(bench, cli)
        assert f"--merge takes no {flags[0]}" in refused(cli, "one", "two", *flags, code=ExitCode.USAGE)

    def test_parts_without_merge(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        answer = cli("calibrate", "images")
        assert answer.code == ExitCode.USAGE and "--merge" in answer.err and "--data" in answer.err
        answer = cli("calibrate")
        assert answer.code == ExitCode.USAGE and "--data" in answer.err


def test_degradations_are_those_of_the_whole(bench: Bench, cli: Cli) -> None:
    two_parts(bench, cli)
    for folder in ("images", "images-one"):
        (bench / folder / "0" / "0.png").write_bytes(b"no image")
    for name in ("one", "two"):
        assert cli("calibrate", "--data", f"images-{name}", "-o", name, *COMMON).code == 0
    assert cli("calibrate", "--data", "images", "-o", "whole", *COMMON).code == 0
    assert cli("calibrate", "--merge", "one", "two", "-o", "merged").code == 0
    assert tree(bench / "merged") == tree(bench / "whole")
    (unreadable,) = (
        d
        for d in json.loads((bench / "merged/calibration.json").read_text())["degradations"]
        if d["code"] == "unreadable-samples"
    )
    assert "1 of 12 samples" in unreadable["message"]
