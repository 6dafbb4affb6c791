"""``calibrate --recover`` and what is made of it: files, builds, reports, and refusals."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import recovered_model
from cli_bench import Bench, Cli, tree

from quantlab.calibrators import CalibrationTable
from quantlab.cli.main import main
from quantlab.engines.sidecar import read_sidecar
from quantlab.errors import EngineMismatch, ExitCode
from quantlab.graph.metadata import stated_recovery
from quantlab.progress import Silent
from quantlab.recovery.recover import recover
from quantlab.recovery.result import Recovery
from quantlab.workflow.bench_rebuilds import RebuildRequest, plan_rebuilds

CALIBRATE = ("calibrate", "--model", "net.onnx", "--data", "images", "--preprocess", "unit.toml", "--threads", "1")
TABLE = "calibration/calibration.json"
BUILD = ("build", "--model", "net.onnx", "--table", TABLE, "--precisions")
COMPARE = ("compare", "--data", "eval", "--preprocess", "unit.toml", "--threads", "1", "--latency-seconds", "0")
REAL = recover
FILES = ["calibration.json", "model.onnx", "recovery.json", "weights.npz"]


@pytest.fixture(autouse=True)
def _known_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.recovery.recover.recover", recovered_model.recover)


@pytest.fixture(scope="module")
def finished(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration that was recovered once; take copies."""
    folder = tmp_path_factory.mktemp("recovered")
    bench = Bench(folder, shop)
    bench.take("net.onnx", "images", "unit.toml")
    text = io.StringIO()
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantlab.recovery.recover.recover", recovered_model.recover)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as ended:
            main([*CALIBRATE, "--recover", "equalize,round,bias", "--quiet"])
    assert ended.value.code == 0, text.getvalue()
    return folder / "calibration"


@pytest.fixture
def recovered(bench: Bench, finished: Path) -> Bench:
    bench.take("net.onnx", "images", "eval", "unit.toml")
    shutil.copytree(finished, bench / "calibration")
    return bench


def outputs(path: Path, values: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": values})[0])


def pixels() -> np.ndarray:
    return np.random.default_rng(5).random((16, 3, 8, 8), np.float32)


class TestCalibrate:
    def test_files(self, recovered: Bench, cli: Cli) -> None:
        assert sorted(path.name for path in (recovered / "calibration/recovered").iterdir()) == FILES
        assert not (recovered / "calibration/.recovery").exists()
        result = Recovery.load(recovered / "calibration/recovered/recovery.json")
        table = CalibrationTable.load(recovered / TABLE)
        assert (result.steps, result.target, result.method) == (("equalize", "round"), "tensorrt", "mse")
        assert (result.table_sha256, result.model_sha256) == (table.sha256, table.provenance.model_sha256)
        own = CalibrationTable.load(recovered / "calibration/recovered/calibration.json")
        assert (own.recovered, table.recovered) == (("equalize", "round"), ())
        assert own.entries()["r1"].maximum == 2 * table.entries()["r1"].maximum
        plain = cli(*CALIBRATE, "-o", "plain", "--quiet")
        assert plain.code == 0
        cache = "net.calib"
        assert (recovered / "plain" / cache).read_bytes() == (recovered / "calibration" / cache).read_bytes()

    def test_the_qdq_model_is_the_recovered_one(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        models = {}
        for steps in ("none", "equalize", "equalize,round"):
            assert cli(*CALIBRATE, "--recover", steps, "-o", steps, "--quiet").code == 0
            path = bench / steps / "net.qdq.onnx"
            models[steps] = outputs(path, pixels())
            said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
            assert stated_recovery(said) == tuple(steps.split(",") if steps != "none" else ())
        np.testing.assert_array_equal(models["none"], models["equalize"])
        assert np.abs(models["equalize"] - models["equalize,round"]).max() > 1e-3

    def test_what_is_printed(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        answer = cli(*CALIBRATE, "--recover", "equalize,round,bias")
        assert answer.code == 0, answer.err
        shown = " ".join(answer.out.split())
        assert "20.00 dB -> 22.50 dB (+2.50)" in shown and "+1.00 [+0.50, +1.50]" in shown
        assert "weights alone in INT8 24.00 dB, activations alone 22.00 dB, both 20.00 dB" in shown
        assert "bias: no layer of that kind" in shown and "nothing to do" in shown
        assert "wrote calibration/recovered/model.onnx" in answer.out
        assert "the TensorRT cache stays that of the model as it was" in answer.err
        document = cli(*CALIBRATE, "--recover", "equalize", "--json").document()
        assert document["recovery"]["steps"] == ["equalize"]
        assert "calibration/recovered/recovery.json" in document["files"]
        assert "recovery" not in cli(*CALIBRATE, "--json").document()

    def test_without_a_value_it_is_the_default(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        assert cli(*CALIBRATE, "--recover", "--quiet").code == 0
        names = [step.name for step in Recovery.load(bench / "calibration/recovered/recovery.json").record.steps]
        assert {"equalize", "round", "bias"} <= set(names)

    def test_a_calibration_without_removes_it(self, recovered: Bench, cli: Cli) -> None:
        (recovered / "calibration/.recovery").mkdir()
        assert cli(*CALIBRATE, "--quiet").code == 0
        assert not (recovered / "calibration/recovered").exists()
        assert not (recovered / "calibration/.recovery").exists()

    def test_files_of_others_are_left(self, recovered: Bench, cli: Cli) -> None:
        recovered.write("calibration/recovered/notes.txt", "mine")
        before = tree(recovered.folder)
        answer = cli(*CALIBRATE, "--recover", "round")
        assert answer.code == ExitCode.USAGE and "cannot write calibration/recovered" in answer.err
        assert "files that are not those of a recovery" in answer.err
        assert tree(recovered.folder) == before
        assert cli(*CALIBRATE, "--quiet").code == 0
        assert [path.name for path in (recovered / "calibration/recovered").iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder of others"])
    def test_a_place_of_others_is_found_before_any_work(
        self, kind: str, bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        place = bench / "calibration/recovered"
        place.parent.mkdir()
        match kind:
            case "file":
                place.write_text("mine")
            case "link":
                (bench / "elsewhere").mkdir()
                place.symlink_to(bench / "elsewhere")
            case "dangling link":
                place.symlink_to(bench / "nowhere")
            case _:
                place.mkdir()
                (place / "model.onnx").write_text("mine")
        before = tree(bench.folder)

        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("work was done")

        monkeypatch.setattr("quantlab.workflow.calibrate.calibrate", forbidden)
        answer = cli(*CALIBRATE, "--recover")
        assert answer.code == ExitCode.USAGE and "files that are not those of a recovery" in answer.err, answer.err
        assert "move them away, or use -o" in answer.err
        assert tree(bench.folder) == before

    def test_minmax_only(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        answer = cli(*CALIBRATE, "--method", "minmax", "--minmax-only", "--recover", "equalize,round", "--quiet")
        assert answer.code == 0, answer.err
        assert cli(*BUILD, "int8", "--quiet").code == 0
        assert (bench / "engines/onnxruntime-int8-minmax-recovered.onnx").is_file()


class TestRefused:
    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (("--recover", "equalise"), r"equalize"),
            (("--recover", "round", "--kind", "int8-weights"), "--kind int8"),
            (("--recover", "round", "--existing", "complete"), "--existing"),
            (("--recover", "round", "--existing", "keep"), "--existing"),
        ],
    )
    def test_flags(self, bench: Bench, cli: Cli, flags: tuple[str, ...], says: str) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        before = tree(bench.folder)
        answer = cli(*CALIBRATE, *flags)
        assert answer.code == ExitCode.USAGE and says in answer.err
        assert tree(bench.folder) == before

    def test_merge(self, bench: Bench, cli: Cli) -> None:
        answer = cli("calibrate", "--merge", "a", "b", "--recover", "round")
        assert answer.code == ExitCode.USAGE and "--merge takes no --recover" in answer.err

    def test_a_quantized_model(self, bench: Bench, cli: Cli) -> None:
        bench.take("calibration", "images", "unit.toml")
        shutil.copyfile(bench / "calibration/net.qdq.onnx", bench / "net.onnx")
        answer = cli(*CALIBRATE, "--recover", "-o", "out")
        assert answer.code == ExitCode.BAD_INPUT and "is quantized already" in answer.err
        assert not (bench / "out").exists()

    def test_an_interrupted_one_leaves_the_finished_steps_alone(
        self, bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.take("net.onnx", "images", "unit.toml")

        def interrupted(*arguments: object) -> None:
            recovered_model.recover(*arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr("quantlab.recovery.recover.recover", interrupted)
        assert cli(*CALIBRATE, "--recover", "round").code == ExitCode.INTERRUPTED
        assert [path.name for path in (bench / "calibration").iterdir()] == [".recovery"]

    def test_a_full_disk_leaves_no_half(self, bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.take("net.onnx", "images", "unit.toml")

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("quantlab.recovery.artifact.np.savez", full)
        answer = cli(*CALIBRATE, "--recover", "round")
        assert answer.code != 0 and "No space left on device" in answer.err
        left = {path.name for path in (bench / "calibration").iterdir()}
        assert not {name for name in left if "recovered" in name} and "calibration.json" not in left


class TestBuild:
    def test_names_outputs_and_sidecars(self, recovered: Bench, cli: Cli) -> None:
        assert cli(*BUILD, "fp32,fp16,int8,int8-weights", "--quiet").code == 0
        assert cli(*BUILD, "int8", "--recovered", "ignore", "--quiet").code == 0
        sidecars = {path.name: read_sidecar(path) for path in (recovered / "engines").glob("*.onnx")}
        name = "onnxruntime-int8-mse-recovered.onnx"
        assert [one for one, sidecar in sidecars.items() if sidecar.recovery is not None] == [name]
        sidecar, plain = sidecars[name], sidecars["onnxruntime-int8-mse.onnx"]
        assert sidecar.recovery is not None and sidecar.recovery.steps == ("equalize", "round")
        same = (sidecar.graph_sha256, sidecar.table_sha256, sidecar.proved, sidecar.calibration_samples)
        assert same == (plain.graph_sha256, plain.table_sha256, plain.proved, plain.calibration_samples)
        assert sidecar.degradations == plain.degradations == ()
        written = outputs(recovered / "calibration/net.qdq.onnx", pixels())
        np.testing.assert_array_equal(outputs(recovered / "engines" / name, pixels()), written)
        answer = cli("inspect", f"engines/{name}")
        assert "recovered     by equalize, round" in answer.out
        assert cli(*COMPARE).code == 0

    def test_excluded_layers(self, recovered: Bench, cli: Cli) -> None:
        assert cli(*BUILD, "int8", "--exclude", "head", "--quiet").code == 0
        sidecar = read_sidecar(recovered / "engines/onnxruntime-int8-mse-recovered+1excl.onnx")
        assert sidecar.excluded == ("head",)

    def test_typed_graphs(self, recovered: Bench, cli: Cli) -> None:
        assert cli(*BUILD, "int8-fp16", "--backend", "onnxruntime-cuda", "--quiet").code == 0
        assert (recovered / "engines/onnxruntime-cuda-int8-fp16-mse-recovered.onnx").is_file()

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (("--target", "onnxruntime"), "made for the target tensorrt, this is onnxruntime"),
            (("--method", "minmax"), "made with mse ranges, these are minmax"),
        ],
    )
    def test_another_target_or_method(self, recovered: Bench, cli: Cli, flags: tuple[str, ...], says: str) -> None:
        answer = cli(*BUILD, "int8", *flags)
        assert answer.code == 0 and "warning: recovery-unused x1" in answer.err and says in answer.err
        (path,) = (recovered / "engines").glob("*.onnx")
        assert "recovered" not in path.name and read_sidecar(path).recovery is None

    def test_no_step_kept(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "unit.toml")
        assert cli(*CALIBRATE, "--recover", "bias", "--quiet").code == 0
        answer = cli(*BUILD, "int8")
        assert answer.code == 0 and "no step was kept" in answer.err and "warning" not in answer.err
        assert (bench / "engines/onnxruntime-int8-mse.onnx").is_file()

    def test_why_nothing_was_done_reaches_the_engines(
        self, bench: Bench, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("quantlab.recovery.recover.recover", REAL)
        bench.take("net.onnx", "images", "unit.toml")
        for path in sorted((bench / "images").glob("*/*.png"))[7:]:
            path.unlink()
        answer = cli(*CALIBRATE, "--recover")
        assert answer.code == 0 and "warning: recovery-not-run x1" in answer.err
        assert "nothing was measured" in answer.out
        answer = cli(*BUILD, "fp32,int8")
        assert answer.err.count("warning: recovery-not-run x1") == 1
        (degradation,) = read_sidecar(bench / "engines/onnxruntime-int8-mse.onnx").degradations
        assert degradation.code == "recovery-not-run"
        assert cli(*BUILD, "int8", "--recovered", "ignore", "--json").document()["engines"][0]["degradations"] == []

    def test_a_folder_of_others_is_no_recovery(self, recovered: Bench, cli: Cli) -> None:
        """Neither is it an obstacle to builds, nor is anything in it removed, whatever the files are called."""
        (recovered / "calibration/recovered/recovery.json").unlink()
        others = tree(recovered / "calibration/recovered")
        assert cli(*BUILD, "int8", "--quiet").code == 0
        assert (recovered / "engines/onnxruntime-int8-mse.onnx").is_file()
        document = cli(*CALIBRATE, "--json").document()
        assert not [name for name in document["files"] if "recovered" in name]
        assert tree(recovered / "calibration/recovered") == others

    def test_a_table_that_it_does_not_belong_to(self, recovered: Bench, cli: Cli) -> None:
        recovered.edit_json(TABLE, lambda document: document.update(n_samples=99))
        answer = cli(*BUILD, "int8")
        assert answer.code == ExitCode.BAD_INPUT and "belongs to another calibration table" in answer.err
        assert "got:" in answer.err and "expected:" in answer.err
        assert cli(*BUILD, "fp16").code == 0
        assert cli(*BUILD, "int8", "--recovered", "ignore").code == 0
        answer = cli(*BUILD, "int8", "--recovered", "ignroe")
        assert answer.code == ExitCode.USAGE and "did you mean 'ignore'" in answer.err

    def test_its_own_table_is_no_calibration(self, recovered: Bench, cli: Cli) -> None:
        table = "calibration/recovered/calibration.json"
        answer = cli("build", "--model", "net.onnx", "--table", table, "--precisions", "int8")
        assert answer.code == ExitCode.BAD_INPUT and "ranges of a recovered model" in answer.err
        answer = cli("convert-cache", table, "-o", "new.calib")
        assert answer.code == ExitCode.USAGE and "beside recovered/" in answer.err
        answer = cli("convert-cache", "calibration/net.qdq.onnx", "-o", "new.calib")
        assert answer.code == ExitCode.USAGE and "recovered by equalize, round" in answer.err
        answer = cli("calibrate", "--merge", "calibration/recovered", "calibration", "--model", "net.onnx", "-o", "out")
        assert answer.code == ExitCode.BAD_INPUT and "is no calibration" in answer.err


def _weights(change: object) -> object:
    def damage(folder: Path) -> None:
        with np.load(folder / "weights.npz") as archive:
            arrays = {name: archive[name] for name in archive.files}
        change(arrays)  # type: ignore[operator]
        np.savez(folder / "weights.npz", allow_pickle=True, **arrays)
        _vouch(folder, "weights.npz")

    return damage


def _vouch(folder: Path, name: str) -> None:
    from quantlab.files import sha256_file

    document = json.loads((folder / "recovery.json").read_text())
    document["files"][name] = sha256_file(folder / name)
    (folder / "recovery.json").write_text(json.dumps(document))


def _other_model(folder: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "z"
    onnx.save(proto, folder / "model.onnx")
    _vouch(folder, "model.onnx")


DAMAGES = {
    "no json, but text": (lambda folder: (folder / "recovery.json").write_text("{"), "not valid JSON"),
    "other schema": (
        lambda folder: (folder / "recovery.json").write_text('{"schema": "quantlab.recovery/9"}'),
        "another schema",
    ),
    "no weights": (lambda folder: (folder / "weights.npz").unlink(), "weights.npz is not the file"),
    "other weights": (lambda folder: (folder / "weights.npz").write_bytes(b"PK"), "weights.npz is not the file"),
    "cut model": (lambda folder: (folder / "model.onnx").write_bytes(b"\x08\x08"), "model.onnx is not the file"),
    "other table": (lambda folder: (folder / "calibration.json").write_text("{}"), "calibration.json is not the file"),
    "foreign data": (lambda folder: (folder / "model.onnx.data").write_bytes(b"x"), "does not name"),
    "path": (
        lambda folder: (folder / "recovery.json").write_text(
            (folder / "recovery.json").read_text().replace('"weights.npz"', '"../../net.onnx"')
        ),
        "names other files",
    ),
    "pickle": (_weights(lambda a: a.update(names=np.array([{"a": 1}], object))), "Object arrays cannot be loaded"),
    "other name": (_weights(lambda a: a.update(names=np.array(["w9"]))), "no initializer of that name"),
    "other shape": (_weights(lambda a: a.update({"codes.0": a["codes.0"][:-1]})), "codes of shape"),
    "other type": (_weights(lambda a: a.update({"codes.0": a["codes.0"].astype(np.int16)})), "codes of type int16"),
    "no scale": (_weights(lambda a: a.pop("scales.0")), "cannot read rounded weights"),
    "scale of nothing": (_weights(lambda a: a.update({"scales.0": a["scales.0"] * 0})), "no positive number"),
    "too few scales": (_weights(lambda a: a.update({"scales.0": a["scales.0"][1:]})), "scales of shape"),
    "axis": (_weights(lambda a: a.update(axes=np.array([7]))), "along axis 7"),
    "lowest code": (_weights(lambda a: a["codes.0"].fill(-128)), "the code -128"),
    "format": (_weights(lambda a: a.update(format=np.array(2))), "another format"),
    "two names": (_weights(lambda a: a.update(names=np.array(["w1", "w2"]))), "cannot read rounded weights"),
    "other outputs": (_other_model, "other outputs"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged(name: str, recovered: Bench, cli: Cli) -> None:
    damage, says = DAMAGES[name]
    damage(recovered / "calibration/recovered")  # type: ignore[operator]
    answer = cli(*BUILD, "int8", "--debug")
    assert answer.code == ExitCode.BAD_INPUT, answer.err
    assert says in answer.err and "internal error" not in answer.err
    assert not (recovered / "engines").exists()


class TestElsewhere:
    def test_report_and_inspect(self, recovered: Bench, cli: Cli) -> None:
        path = "calibration/recovered/recovery.json"
        assert "Recovery" in cli("report", path).out
        assert cli("report", path, "--format", "markdown").out.startswith("# net.onnx: recovery")
        assert cli("report", path, "--format", "csv").out.startswith("step,label,kept,before_db,")
        assert cli("report", path, "--format", "json").out == (recovered / path).read_text()
        assert cli("report", path, "--format", "junit").code == ExitCode.USAGE
        assert cli("inspect", path).out == cli("report", path).out
        answer = cli("inspect", "calibration/recovered")
        assert "by equalize, round; its files belong together" in answer.out
        assert cli("inspect", "calibration/recovered", "--json").document()["schema"] == "quantlab.recovery/1"
        (recovered / "calibration/recovered/weights.npz").write_bytes(b"x")
        assert cli("inspect", "calibration/recovered").code == ExitCode.BAD_INPUT

    def test_layers(self, recovered: Bench, cli: Cli) -> None:
        data = ("--data", "eval", "--preprocess", "unit.toml", "--threads", "1", "--layers", "4")
        answer = cli("compare", "--table", TABLE, "--model", "net.onnx", *data)
        assert answer.code == 0, answer.err
        assert "tensorrt-int8-mse-recovered" in answer.out
        assert "the recovered floating-point model" in answer.err
        answer = cli("compare", "calibration/net.qdq.onnx", "--model", "net.onnx", *data)
        assert answer.code == ExitCode.BAD_INPUT and "recovered/model.onnx" in answer.err
        model = "calibration/recovered/model.onnx"
        assert cli("compare", "calibration/net.qdq.onnx", "--model", model, *data).code == 0
        assert cli(*CALIBRATE, "-o", "plain", "--quiet").code == 0
        answer = cli("compare", "plain/net.qdq.onnx", "--model", model, *data)
        assert answer.code == ExitCode.BAD_INPUT and "model.onnx, recovered by equalize, round" in answer.err
        assert "made of, not recovered" in answer.err
        assert cli(*BUILD, "fp32,int8", "--quiet").code == 0
        answer = cli("compare", "engines", *data)
        assert answer.code == ExitCode.USAGE and "can be looked into with --table" in answer.err

    def test_layers_where_tensors_stayed(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "eval", "unit.toml")
        assert cli(*CALIBRATE, "--recover", "round", "--quiet").code == 0
        assert cli(*BUILD, "fp32,int8", "--quiet").code == 0
        data = ("--data", "eval", "--preprocess", "unit.toml", "--threads", "1", "--layers", "4")
        for named in (("engines",), ("calibration/net.qdq.onnx", "--model", "net.onnx")):
            answer = cli("compare", *named, *data)
            assert answer.code == 0, answer.err

    def test_several_runtimes(self, recovered: Bench, cli: Cli) -> None:
        data = ("--data", "eval", "--preprocess", "unit.toml", "--threads", "1")
        assert cli(*BUILD, "fp32,int8", "--quiet").code == 0
        qdq = ("compare", "calibration/net.qdq.onnx", "--across", "onnxruntime", "--model", "net.onnx")
        answer = cli(*qdq, *data)
        assert answer.code == 0, answer.err
        assert "recovered model (by equalize, round)" in " ".join(answer.out.split())
        assert cli(*BUILD, "int8", "--recovered", "ignore", "--quiet").code == 0
        answer = cli("compare", "engines", "--across", "engines", *data)
        assert answer.code == ExitCode.BAD_INPUT and "another recovery" in answer.err

    def test_lint(self, recovered: Bench, cli: Cli) -> None:
        for path in ("calibration/net.qdq.onnx", "calibration/recovered/model.onnx"):
            assert cli("inspect", path, "--lint").code == 0
        assert cli("inspect", "calibration/net.calib", "--lint", "--model", "net.onnx").code == 0

    def test_it_is_built_again_for_bench(self, recovered: Bench, cli: Cli) -> None:
        assert cli(*BUILD, "fp32,int8", "--quiet").code == 0
        sidecars = [read_sidecar(path) for path in sorted((recovered / "engines").glob("*.onnx"))]
        request = RebuildRequest(2, recovered / "net.onnx", recovered / TABLE)
        fp32, int8 = plan_rebuilds(sidecars, request, Silent())
        assert fp32.variant.recovered is None and int8.variant.recovered is not None
        assert int8.variant.recovered.sha256 == int8.sidecar.recovery.sha256  # type: ignore[union-attr]
        shutil.rmtree(recovered / "calibration/recovered")
        with pytest.raises(EngineMismatch, match="does not lie beside"):
            plan_rebuilds(sidecars, request, Silent())


class TestRun:
    def test_recipe(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "eval")
        bench.recipe(calibrate='data = "images"\nrecover = "equalize,round"')
        answer = cli("run")
        assert answer.code == 0, answer.err
        assert (bench / "results/engines/onnxruntime-int8-mse-recovered.onnx").is_file()
        assert "cached calibrate" in (again := cli("run").err) and "cached build int8" in again
        (bench / "results/calibration/recovered/weights.npz").write_bytes(b"x")
        assert "cached calibrate" not in (repaired := cli("run").err) and "cached build int8" in repaired
        bench.recipe(calibrate='data = "images"\nrecover = "round"')
        changed = cli("run").err
        assert "cached calibrate" not in changed and "cached build int8" not in changed
        assert "cached build fp32" in changed
        bench.recipe(calibrate='data = "images"')
        assert cli("run").code == 0
        assert not (bench / "results/calibration/recovered").exists()

    def test_a_recovery_that_the_recipe_does_not_ask_for(self, bench: Bench, cli: Cli, finished: Path) -> None:
        """One that came there afterwards has no part in a run, though its table is another."""
        bench.take("net.onnx", "images", "eval")
        bench.recipe(calibrate='data = "images"')
        assert cli("run").code == 0
        shutil.copytree(finished / "recovered", bench / "results/calibration/recovered")
        bench.edit_json("results/calibration/recovered/recovery.json", lambda document: document.update(steps=None))
        answer = cli("run")
        assert answer.code == 0 and "cached calibrate" in answer.err, answer.err
        assert "cached build int8" in answer.err and "recovery:" not in answer.err

    def test_a_place_of_others_is_found_before_any_work(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "eval")
        bench.recipe(calibrate='data = "images"\nrecover = "round"')
        bench.write("results/calibration/recovered/notes.txt", "mine")
        answer = cli("run")
        assert answer.code == ExitCode.USAGE and "files that are not those of a recovery" in answer.err
        assert [path.name for path in (bench / "results").rglob("*") if path.is_file()] == ["notes.txt"]

    def test_wrong_steps(self, bench: Bench, cli: Cli) -> None:
        bench.take("net.onnx", "images", "eval")
        bench.recipe(calibrate='data = "images"\nrecover = "rond"')
        answer = cli("run")
        assert answer.code == ExitCode.USAGE and "round" in answer.err
        assert not (bench / "results").exists()
