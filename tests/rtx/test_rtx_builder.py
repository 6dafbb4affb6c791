"""Engines of TensorRT-RTX, built without a GPU by the public classes and by the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from efficientnet_graph import efficientnet_lite0
from gpu_here import gpu_is_here
from onnx import TensorProto, helper
from qdq_checks import UNLIMITED
from rtx_builder import PACKAGE, REASON

from quantlab.cli.main import main
from quantlab.datasets import SAMPLE_MODELS, sample_model
from quantlab.degradation import DegradationCode
from quantlab.engines.probe import load_probe, probe_path
from quantlab.engines.record import Profile
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.tensorrt.builder import TensorRTBuilder
from quantlab.engines.tensorrt.options import BuildOptions, Typing
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, ConfigError, EngineBuildError, ExitCode, OutputError
from quantlab.files import sha256_file
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.precision import Execution, Precision

sys.path.append(str(Path(__file__).parents[1] / "engines"))
from engine_data import calibrated, cnn, prepared_cnn

trt = pytest.importorskip(PACKAGE, reason=REASON)
pytestmark = [
    pytest.mark.tensorrt_rtx,
    pytest.mark.skipif(gpu_is_here(), reason="about builds without a GPU; the engine suite has those with one"),
]

BACKEND = "tensorrt-rtx"
PROVED_BY_TYPES = [precision for precision in Precision if precision not in (Precision.FP32, Precision.TF32)]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_cnn()


def variant(prepared: Prepared, precision: Precision) -> Variant:
    return Variant(prepared, BACKEND, precision, UNLIMITED, calibrated(prepared))


def build(prepared: Prepared, folder: Path, precision: Precision = Precision.FP32, **options: object) -> Path:
    made = variant(prepared, precision)
    return TensorRTBuilder(BACKEND, BuildOptions(**options)).build(made, folder)  # type: ignore[arg-type]


def command(*arguments: object) -> int:
    """Run ``quantlab`` in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


class TestVariants:
    @pytest.mark.parametrize("precision", Precision)
    def test_file_probe_and_sidecar(self, precision: Precision, prepared: Prepared, tmp_path: Path) -> None:
        path = build(prepared, tmp_path, precision)
        sidecar = read_sidecar(path)
        record = sidecar.engine
        assert record is not None
        assert (sidecar.backend, sidecar.requested, sidecar.execution) == (BACKEND, precision, Execution.NATIVE)
        assert (record.flavour, record.version) == (BACKEND, trt.__version__)
        assert (record.gpu, record.compute_capability, record.driver, record.cuda) == (None, None, None, None)
        assert record.options == {"tf32": "yes" if precision is Precision.TF32 else "no"}
        assert record.profiles[0]["image"] == Profile((1, 3, 8, 8), (1, 3, 8, 8), (32, 3, 8, 8))
        assert record.probe == probe_path(path).name
        assert record.probe_sha256 == sha256_file(probe_path(path))
        assert load_probe(probe_path(path)).inputs.keys() == {"image", "side"}
        assert sidecar.fixed_batch is None
        assert len(record.onnx_sha256) == 64
        assert len(list(tmp_path.iterdir())) == 3

    @pytest.mark.parametrize("precision", PROVED_BY_TYPES)
    def test_types_prove_the_precision(self, precision: Precision, prepared: Prepared, tmp_path: Path) -> None:
        sidecar = read_sidecar(build(prepared, tmp_path, precision))
        assert sidecar.proved is precision
        assert sidecar.proof.startswith("strongly typed graph: ")
        assert DegradationCode.PRECISION_NOT_PROVED not in {d.code for d in sidecar.degradations}

    @pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
    def test_without_a_gpu_nobody_knows_fp32_from_tf32(
        self, precision: Precision, prepared: Prepared, tmp_path: Path
    ) -> None:
        sidecar = read_sidecar(build(prepared, tmp_path, precision))
        assert sidecar.proved is None
        assert "there is no GPU here" in sidecar.proof
        (degradation,) = sidecar.degradations
        assert degradation.code is DegradationCode.PRECISION_NOT_PROVED

    def test_every_variant_is_another_engine(self, prepared: Prepared, tmp_path: Path) -> None:
        engines = {build(prepared, tmp_path, precision).read_bytes() for precision in Precision}
        assert len(engines) == len(Precision)

    def test_building_again_gives_the_same(self, prepared: Prepared, tmp_path: Path) -> None:
        """Not with Q/DQ pairs: there TensorRT-RTX numbers its tensors otherwise each time."""
        one, two = (build(prepared, tmp_path / name, Precision.FP16) for name in "ab")
        for name in sorted(entry.name for entry in one.parent.iterdir()):
            assert (one.parent / name).read_bytes() == (two.parent / name).read_bytes(), name

    def test_int8_weights_are_stored_in_a_byte(self, tmp_path: Path) -> None:
        """A product of 1,024 x 1,024: 4 MiB of floats, 1 MiB of bytes."""
        rng = np.random.default_rng(0)
        weight = onnx.numpy_helper.from_array(rng.standard_normal((1024, 1024)).astype(np.float32), "w")
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["image", "w"], ["y"], name="product")],
            "product",
            [value("image", TensorProto.FLOAT, ["n", 1024])],
            [value("y", TensorProto.FLOAT, ["n", 1024])],
            [weight],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        prepared = prepare(Model.of(proto))
        sizes = {}
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8_WEIGHTS):
            made = Variant(prepared, BACKEND, precision, UNLIMITED)
            sizes[precision] = TensorRTBuilder(BACKEND).build(made, tmp_path).stat().st_size
        assert sizes[Precision.FP32] - sizes[Precision.FP16] == pytest.approx(2 << 20, rel=0.1)
        assert sizes[Precision.FP32] - sizes[Precision.INT8_WEIGHTS] == pytest.approx(3 << 20, rel=0.1)

    def test_uint8_rules_are_refused(self, prepared: Prepared) -> None:
        made = dataclasses.replace(variant(prepared, Precision.INT8), target=ONNXRUNTIME)
        assert "use --target tensorrt" in str(TensorRTBuilder(BACKEND).supports(made))
        assert TensorRTBuilder(BACKEND).supports(dataclasses.replace(made, target=TENSORRT)) is None
        assert TensorRTBuilder(BACKEND).supports(dataclasses.replace(made, precision=Precision.FP16)) is None

    def test_a_missing_library_is_unavailable(self, prepared: Prepared, tmp_path: Path) -> None:
        made = dataclasses.replace(variant(prepared, Precision.FP16), backend="tensorrt")
        builder = TensorRTBuilder("tensorrt")
        reason = builder.supports(made)
        if reason is None:
            pytest.skip("the package tensorrt is installed")
        assert "TensorRT is" in reason
        with pytest.raises(BackendUnavailable):
            builder.build(made, tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestOptions:
    def test_profiles_change_the_engine(self, prepared: Prepared, tmp_path: Path) -> None:
        def profile(*batches: int) -> dict[str, Profile]:
            image, side = (tuple((n, *rest) for n in batches) for rest in ((3, 8, 8), (4,)))
            return {"image": Profile(*image), "side": Profile(*side)}

        one = build(prepared, tmp_path / "one", profiles=(profile(1, 2, 4),))
        two = build(prepared, tmp_path / "two", profiles=(profile(1, 2, 4), profile(8, 8, 64)))
        assert one.read_bytes() != two.read_bytes()
        record = read_sidecar(two).engine
        assert record is not None
        assert record.profiles == (profile(1, 2, 4), profile(8, 8, 64))
        fixed = read_sidecar(build(prepared, tmp_path / "fixed", profiles=(profile(4, 4, 4),)))
        assert fixed.fixed_batch == 4
        assert fixed.engine is not None
        assert load_probe(tmp_path / "fixed" / str(fixed.engine.probe)).inputs["side"].shape[1:] == (4, 4)

    def test_a_profile_that_does_not_fit(self, prepared: Prepared, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no range for input 'side'"):
            build(prepared, tmp_path, profiles=({"image": Profile((1, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8))},))
        assert list(tmp_path.iterdir()) == []

    def test_named_gpus(self, prepared: Prepared, tmp_path: Path) -> None:
        one = build(prepared, tmp_path / "one", compute_capabilities=("sm89",))
        two = build(prepared, tmp_path / "two", compute_capabilities=("sm120",))
        assert one.read_bytes() != two.read_bytes()
        record = read_sidecar(one).engine
        assert record is not None
        assert record.options["compute-capability"] == "sm89"

    @pytest.mark.parametrize("option", ["refit", "strip_plan"])
    def test_what_needs_a_gpu_says_so(self, option: str, prepared: Prepared, tmp_path: Path) -> None:
        with pytest.raises(EngineBuildError, match="cannot build tensorrt-rtx-fp32") as caught:
            build(prepared, tmp_path, **{option: True})
        assert "needs a GPU" in str(caught.value.hint)
        assert list(tmp_path.iterdir()) == []

    def test_too_little_workspace(self, prepared: Prepared, tmp_path: Path) -> None:
        with pytest.raises(EngineBuildError, match="cannot build tensorrt-rtx-fp32") as caught:
            build(prepared, tmp_path, memory_pools=(("workspace", 1024),))
        assert "workspace" in str(caught.value.got)
        assert "--workspace" in str(caught.value.hint)
        assert list(tmp_path.iterdir()) == []

    def test_weak_typing_is_tensorrt_10s(self, prepared: Prepared, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            build(prepared, tmp_path, typing=Typing.WEAK)
        assert "always strongly typed" in str(caught.value.got)

    def test_timing_cache_stays_as_it_was(self, prepared: Prepared, tmp_path: Path) -> None:
        cache = tmp_path / "timings"
        cache.write_bytes(b"of another library")
        with pytest.raises(ConfigError, match="refuses --timing-cache"):
            build(prepared, tmp_path / "out", timing_cache=cache)
        assert cache.read_bytes() == b"of another library"
        assert not (tmp_path / "out").exists()

    def test_an_operator_that_nobody_knows(self, tmp_path: Path) -> None:
        proto = cnn()
        proto.graph.node[3].op_type, proto.graph.node[3].domain = "MyRelu", "my.ops"
        proto.opset_import.append(helper.make_opsetid("my.ops", 1))
        onnx.save(proto, tmp_path / "own.onnx")
        out = tmp_path / "out"
        code = command("build", "--quiet", "--model", tmp_path / "own.onnx", "--backend", BACKEND, "--precisions",
                       "fp32", "-o", out)  # fmt: skip
        assert code == ExitCode.BAD_INPUT
        assert not out.exists()


class TestFailures:
    @pytest.fixture
    def old(self, prepared: Prepared, tmp_path: Path) -> Path:
        return build(prepared, tmp_path / "out")

    def test_a_refused_build_keeps_the_old_engine(self, old: Path, prepared: Prepared) -> None:
        before = {entry.name: entry.read_bytes() for entry in old.parent.iterdir()}
        with pytest.raises(EngineBuildError):
            build(prepared, old.parent, memory_pools=(("workspace", 1024),))
        assert {entry.name: entry.read_bytes() for entry in old.parent.iterdir()} == before

    def test_a_full_disk(self, prepared: Prepared, tmp_path: Path) -> None:
        """A limit on the size of files stands in for it: the engine is larger, the rest is not."""
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(OutputError, match="cannot write"):
                build(prepared, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert list(tmp_path.iterdir()) == []

    def test_no_sidecar_no_engine(self, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OutputError("the disk is full")

        monkeypatch.setattr("quantlab.engines.artifact.write_sidecar", full)
        with pytest.raises(OutputError, match="disk is full"):
            build(prepared, tmp_path)
        assert list(tmp_path.iterdir()) == []


DEEP = '''
import sys
import numpy as np

def build_network(network, trt):
    """Convolutions, so many that building takes some seconds."""
    weights = (np.random.default_rng(0).standard_normal((64, 64, 3, 3)) * 0.04).astype(np.float32)
    bias = np.zeros(64, np.float32)
    x = network.add_input("x", trt.float32, (-1, 64, 56, 56))
    for _ in range(800):
        layer = network.add_convolution_nd(x, 64, (3, 3), trt.Weights(weights), trt.Weights(bias))
        layer.padding_nd = (1, 1)
        x = network.add_activation(layer.get_output(0), trt.ActivationType.RELU).get_output(0)
    x.name = "y"
    network.mark_output(x)
    print("filled", file=sys.stderr, flush=True)
    return weights, bias
'''


class TestPython:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "deep_net.py").write_text(DEEP)
        (tmp_path / "small_net.py").write_text(DEEP.replace("800", "2").replace('print("filled"', 'str("filled"')
                                               .replace(", file=sys.stderr, flush=True", ""))  # fmt: skip
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    def test_a_network_of_code(self, folder: Path) -> None:
        arguments = ["--network", "small_net:build_network", "--precisions", "fp32,tf32", "--optimization-level", "1"]
        shapes = ["--shapes", "x:1x64x56x56:2x64x56x56:4x64x56x56"]
        assert command("build", "--quiet", "--backend", BACKEND, *arguments, *shapes, "-o", "out") == 0
        sidecar = read_sidecar(folder / "out/tensorrt-rtx-tf32.engine")
        record = sidecar.engine
        assert record is not None
        assert sidecar.model == "small_net:build_network"
        assert sidecar.model_sha256 == sha256_file(folder / "small_net.py")
        assert [(spec.name, spec.shape) for spec in sidecar.inputs] == [("x", (64, 56, 56))]
        assert record.options == {"tf32": "yes", "optimization-level": "1"}
        assert str(record.profiles[0]["x"]) == "1x64x56x56:2x64x56x56:4x64x56x56"
        assert (record.onnx_sha256, record.probe) == ("", None)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--precisions", "fp16"], "strongly typed, and is built as it is"),
            (["--precisions", "fp32", "--model", "x.onnx"], "--network makes the network"),
            (["--precisions", "fp32", "--shapes", "x:1x64x56x56"], "--network makes the network"),
            (["--precisions", "fp32", "--backend", "onnxruntime"], "--network is for TensorRT"),
        ],
    )
    def test_what_does_not_go_with_it(
        self, arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = ["--backend", BACKEND, "--network", "small_net:build_network", "-o", "out", *arguments]
        assert command("build", *given) == ExitCode.USAGE
        assert said in capsys.readouterr().err
        assert not (folder / "out").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interruption_ends_the_build(self, number: signal.Signals, folder: Path) -> None:
        """A real signal while TensorRT builds; it ends within its current step, and nothing is there."""
        arguments = ["--backend", BACKEND, "--network", "deep_net:build_network", "--precisions", "fp32", "-o", "out"]
        process = subprocess.Popen(
            [sys.executable, "-m", "quantlab", "build", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        )
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("filled"):
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=60)
        assert process.returncode == ExitCode.INTERRUPTED, "".join(said) + err
        assert "stopping: TensorRT ends its current step first" in err
        assert "interrupted" in err
        assert "Traceback" not in err
        assert out == ""
        assert not (folder / "out").exists()


class TestCommand:
    @pytest.mark.parametrize("name", [*SAMPLE_MODELS, "efficientnet-lite0"])
    def test_models_in_every_precision(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """From calibration to engines. Probes are another test's."""
        from quantlab.engines.tensorrt import builder
        from quantlab.engines.tensorrt.evidence import ProbeFile

        monkeypatch.setattr(builder, "write_probe", lambda *_: ProbeFile(None, None))
        model = tmp_path / "efficientnet-lite0.onnx"
        if name in SAMPLE_MODELS:
            model = sample_model(name)
        else:
            onnx.save(efficientnet_lite0(), model)
        calibration = ["--model", model, "--data", "random:4", "--method", "minmax", "-o", tmp_path / "calibration"]
        assert command("calibrate", "--quiet", *calibration) == 0
        capsys.readouterr()
        given = ["--table", tmp_path / "calibration/calibration.json", "--backend", BACKEND, "-o", tmp_path / "out"]
        assert command("build", "--json", "--model", model, "--precisions", ",".join(Precision), *given) == 0
        engines = json.loads(capsys.readouterr().out)["engines"]
        assert [engine["requested"] for engine in engines] == list(Precision)
        proved = {engine["requested"]: engine["proved"] for engine in engines}
        assert proved == {p.value: p.value if p in PROVED_BY_TYPES else None for p in Precision}
        size = {engine["requested"]: engine["size_bytes"] for engine in engines}
        assert size["fp16"] < size["fp32"]
        assert size["int8-fp16"] < size["int8"] * 1.2

    def test_dynamic_height_and_width(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        proto = cnn()
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
        model = tmp_path / "open.onnx"
        onnx.save(proto, model)
        shapes = ["--shapes", "image:1x3x8x8:2x3x16x16:4x3x32x32", "--shapes", "side:1x4:2x4:4x4"]
        given = ["--model", model, "--backend", BACKEND, "--precisions", "fp32,fp16", *shapes, "-o", tmp_path / "out"]
        assert command("build", *given) == 0
        said = capsys.readouterr().err
        assert "not-simplified x1: the model was neither simplified nor verified" in said
        sidecar = read_sidecar(tmp_path / "out/tensorrt-rtx-fp16.engine")
        assert sidecar.engine is not None
        assert str(sidecar.engine.profiles[0]["image"]) == "1x3x8x8:2x3x16x16:4x3x32x32"
        assert [spec.shape for spec in sidecar.inputs] == [(3, None, None), (4,)]

    def test_a_shape_and_a_range(self, tmp_path: Path) -> None:
        """One input imposed, the other with a range of batches."""
        model = tmp_path / "cnn.onnx"
        onnx.save(cnn(), model)
        shapes = ["--shapes", "image:1x3x8x8:4x3x8x8:4x3x8x8", "--shapes", "side:1x4:4x4:4x4"]
        given = ["--model", model, "--backend", BACKEND, "--precisions", "tf32", *shapes, "-o", tmp_path / "out"]
        assert command("build", "--quiet", *given) == 0
        record = read_sidecar(tmp_path / "out/tensorrt-rtx-tf32.engine").engine
        assert record is not None
        assert str(record.profiles[0]["side"]) == "1x4:4x4:4x4"

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (["--backend", "onnxruntime", "--workspace", "1GiB"], ExitCode.USAGE, "--memory-pool workspace: not for"),
            (["--backend", "onnxruntime", "--shapes", "side:1x4:2x4:4x4"], ExitCode.USAGE, "--shapes MIN:OPT:MAX"),
            (["--backend", BACKEND, "--workspace", "much"], ExitCode.USAGE, "--workspace 'much' is malformed"),
            (["--backend", BACKEND, "--shapes", "side:4x4:2x4:1x4", "--shapes", "image:1x3x8x8:1x3x8x8:1x3x8x8"],
             ExitCode.USAGE, "out of order"),
            (["--backend", BACKEND, "--compute-capability", "current"], ExitCode.UNAVAILABLE, "needs a GPU"),
            (["--backend", BACKEND, "--target", "onnxruntime", "--precisions", "int8-weights"], ExitCode.UNAVAILABLE,
             "use --target tensorrt"),
        ],
    )  # fmt: skip
    def test_bad_input(
        self, arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        onnx.save(cnn(), tmp_path / "cnn.onnx")
        given = ["--precisions", "fp32", "--model", tmp_path / "cnn.onnx", *arguments, "-o", tmp_path / "out"]
        assert command("build", *given) == code
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
