"""The command line in this process, and one set of finished artifacts for all tests."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from cli_bench import Answer, Bench, Cli, call, tiny_cnn

from quantlab.cli.main import main


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished artifacts of the tiny model, made by the command line: take copies with ``Bench.take``."""
    folder = tmp_path_factory.mktemp("shop")
    bench = Bench(folder, folder)
    bench.model(tiny_cnn())
    bench.images("images", per_class=3)
    bench.images("other", per_class=6)
    for path in sorted((folder / "other").glob("*/[3-5].png")):  # none of the calibration images
        target = folder / "eval" / path.relative_to(folder / "other")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    bench.write("unit.toml", "scale = 255\n")
    common = ["--preprocess", "unit.toml", "--threads", "1", "--quiet"]
    bench.write("policy.toml", 'schema = 1\n[[check]]\nid = "sqnr"\nmetric = "sqnr_db"\nlimit = 1.0\n')
    table = "calibration/calibration.json"
    for arguments in (
        ["calibrate", "--model", "net.onnx", "--data", "images", *common],
        ["build", "--model", "net.onnx", "--table", table, "--precisions", "fp32,fp16,int8", "--quiet"],
        ["compare", "--data", "eval", "--latency-seconds", "0", *common],
        ["gate", "--policy", "policy.toml", "--quiet"],
    ):
        text = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 0, text.getvalue()
    return folder


@pytest.fixture
def bench(tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An empty folder, which is the current one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Bench(folder, shop)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Call the command line in this process, with all that is printed, by native code too."""

    def run(*arguments: str) -> Answer:
        return call(arguments, lambda: (lambda read: (read.out, read.err))(capfd.readouterr()))

    return run
