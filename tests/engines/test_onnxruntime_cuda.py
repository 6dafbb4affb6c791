"""The CUDA backend without a GPU: its files, its refusals, and its checks, with another provider in CUDA's place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from cuda_here import cuda_is_missing
from engine_data import calibrated, cnn, feed, prepared_cnn, target_of, variant
from onnx import ModelProto, TensorProto, helper, numpy_helper
from test_engine_suite import EngineSuite

import quantlab.engines.onnxruntime_cuda as backend
import quantlab.engines.onnxruntime_provider as provider
from quantlab.degradation import DegradationCode
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.onnxruntime_cuda import BFLOAT16_OPS, NAME, OnnxRuntimeCudaBuilder
from quantlab.engines.onnxruntime_provider import Placement
from quantlab.engines.protocol import Engine, EngineBuilder
from quantlab.engines.sidecar import read_sidecar, sidecar_path
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, EngineBuildError, ExitCode, MeasurementError, QuantlabError
from quantlab.files import sha256_file
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.targets import TENSORRT
from quantlab.precision import Execution, Precision
from quantlab.workflow.build import builder_for

EMULATED = {Precision.INT8, Precision.INT8_FP16, Precision.FP8}
AVAILABLE = onnxruntime.get_available_providers()
needs_plain = pytest.mark.skipif(provider.PROVIDER in AVAILABLE, reason="needs an ONNX Runtime without CUDA")
on_the_cpu = pytest.mark.filterwarnings("ignore:Duplicate provider")


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_cnn()


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU provider in CUDA's place: everything is real but the device."""
    monkeypatch.setattr(provider, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(provider, "_missing_library", lambda runtime: None)


@pytest.fixture(scope="module")
def plain_file(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 variant."""
    return OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.FP32), tmp_path_factory.mktemp("plain"))


def refuse_sessions(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make ONNX Runtime fail to open sessions that have options for a provider."""
    original = onnxruntime.InferenceSession._create_inference_session

    def create(session: Any, providers: list[Any], *others: Any, **options: Any) -> None:
        if any(isinstance(provider, tuple) for provider in providers):
            raise RuntimeError(text)
        original(session, providers, *others, **options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)


def cuda(prepared: Prepared, precision: Precision, **values: Any) -> Variant:
    """A variant with a table, which FP16 takes its measured magnitudes from."""
    table = values.pop("table", calibrated(prepared))
    return dataclasses.replace(variant(prepared, precision), backend=NAME, table=table, **values)


def types(path: Path) -> tuple[ModelProto, GraphIndex]:
    proto = onnx.load(path)
    return proto, GraphIndex(proto.graph, typed_graph(proto))


@pytest.mark.parametrize("precision", Precision)
def test_file_and_sidecar(precision: Precision, prepared: Prepared, tmp_path: Path) -> None:
    path = OnnxRuntimeCudaBuilder().build(cuda(prepared, precision), tmp_path)
    sidecar = read_sidecar(path)
    onnx.checker.check_model(onnx.load(path))
    assert path.suffix == ".onnx"
    assert sidecar.name.startswith(f"{NAME}-{precision}")
    assert (sidecar.backend, sidecar.requested, sidecar.sha256) == (NAME, precision, sha256_file(path))
    assert sidecar.execution is (Execution.EMULATED if precision in EMULATED else Execution.NATIVE)
    assert ("latency is not" in sidecar.proof) == (precision in EMULATED)
    assert sidecar.session["cuda.use_tf32"] == ("1" if precision is Precision.TF32 else "0")
    assert sidecar.engine is None
    assert sorted(tmp_path.iterdir()) == sorted([path, sidecar_path(path)])


@needs_plain
@pytest.mark.parametrize("precision", Precision)
def test_types_prove_what_they_can_without_a_gpu(precision: Precision, prepared: Prepared, tmp_path: Path) -> None:
    sidecar = read_sidecar(OnnxRuntimeCudaBuilder().build(cuda(prepared, precision), tmp_path))
    open_ = precision in (Precision.FP32, Precision.TF32)
    assert sidecar.proved is (None if open_ else precision)
    codes = [degradation.code for degradation in sidecar.degradations]
    assert (DegradationCode.PRECISION_NOT_PROVED in codes) == open_
    assert "not run: this ONNX Runtime has no CUDA provider" in sidecar.proof


def test_fp16_is_really_typed(prepared: Prepared, tmp_path: Path) -> None:
    proto, index = types(OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.FP16), tmp_path))
    assert {tensor.data_type for tensor in proto.graph.initializer} == {TensorProto.FLOAT16}
    for node in proto.graph.node:
        if node.op_type != "Cast":
            assert {index.elem_type(name) for name in node.input} == {TensorProto.FLOAT16}, node.name
    borders = (*proto.graph.input, *proto.graph.output)
    assert {value.type.tensor_type.elem_type for value in borders} == {TensorProto.FLOAT}


def test_bf16_is_given_only_to_operators_that_have_it(prepared: Prepared, tmp_path: Path) -> None:
    path = OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.BF16), tmp_path)
    proto, index = types(path)
    halves = {
        node.op_type
        for node in proto.graph.node
        if node.op_type != "Cast" and TensorProto.BFLOAT16 in {index.elem_type(name) for name in node.input}
    }
    assert halves == {"Conv", "Relu", "Flatten", "Concat", "Gemm"}
    assert halves <= BFLOAT16_OPS
    reasons = read_sidecar(path).float32.values()
    assert set(reasons) == {f"no bfloat16 kernel of {operator} in {NAME}" for operator in ("Clip", "GlobalAveragePool")}


def test_bf16_is_refused_where_no_weighted_layer_has_it(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((3, 2, 2, 2), np.float32), "w")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")],
        "up",
        [info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [info("y", TensorProto.FLOAT, ["n", 2, 5, 5])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = Variant(prepare(Model.of(model)), NAME, Precision.BF16, TENSORRT)
    reason = OnnxRuntimeCudaBuilder().supports(made)
    assert reason is not None
    assert "bfloat16" in reason
    with pytest.raises(BackendUnavailable, match="cannot build bf16"):
        OnnxRuntimeCudaBuilder().build(made, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert OnnxRuntimeCudaBuilder().supports(dataclasses.replace(made, precision=Precision.FP16)) is None


def test_a_build_that_fails_leaves_nothing(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise EngineBuildError("broken in the middle")

    monkeypatch.setattr(backend, "vouch", broken)
    with pytest.raises(EngineBuildError, match="broken in the middle"):
        OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.FP16), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_name_on_the_command_line() -> None:
    assert builder_for(NAME).backend == NAME


@needs_plain
def test_loading_without_the_provider(plain_file: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no CUDA provider") as caught:
        builder_for(NAME).load(plain_file, 1)
    assert caught.value.exit_code is ExitCode.UNAVAILABLE
    assert "CPUExecutionProvider" in str(caught.value.got)
    assert f"onnxruntime {onnxruntime.__version__}" in str(caught.value.got)
    assert "pip install onnxruntime-gpu" in str(caught.value.hint)


@needs_plain
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_back_to_the_cpu_is_an_error(plain_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is asked for a provider that it does not have, and opens a session on the CPU, as it always does."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider.PROVIDER, "CPUExecutionProvider"])
    with pytest.raises(BackendUnavailable, match="fell back to the CPU") as caught:
        OnnxRuntimeCudaBuilder().load(plain_file, 1)
    assert caught.value.got == "CPUExecutionProvider"


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="needs a provider that takes no nodes")
def test_layers_on_the_cpu_are_an_error(plain_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is there, but has no kernel for any of the layers: ONNX Runtime runs them on the CPU."""
    monkeypatch.setattr(provider, "PROVIDER", "AzureExecutionProvider")
    with pytest.raises(EngineBuildError, match="would not run on the GPU") as caught:
        OnnxRuntimeCudaBuilder().load(plain_file, 1)
    assert caught.value.got == "on the CPU: conv1 (Conv), conv2 (Conv), fc (Gemm)"


def test_an_old_onnxruntime_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider.PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", object)
    with pytest.raises(BackendUnavailable, match="cannot say on which device") as caught:
        provider.require_provider()
    assert caught.value.expected == "1.24 or later"


@on_the_cpu
@pytest.mark.parametrize(
    "precision", [Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_WEIGHTS, Precision.FP8]
)
def test_results_are_those_of_the_file(
    precision: Precision, simulated: None, prepared: Prepared, tmp_path: Path
) -> None:
    """With the CPU in CUDA's place, a quantized file gives what the CPU backend's gives, and FP16 comes close."""
    made = cuda(prepared, precision, target=target_of(precision))
    engine = OnnxRuntimeCudaBuilder().load(OnnxRuntimeCudaBuilder().build(made, tmp_path), 1)
    plain = OnnxRuntimeBuilder()
    expected = plain.load(plain.build(dataclasses.replace(made, backend="onnxruntime"), tmp_path), 1).run(feed(5))
    outputs = engine.run(feed(5))
    assert tuple(outputs) == engine.outputs == ("scores",)
    assert outputs["scores"].dtype == np.float32
    if precision is Precision.FP16:
        np.testing.assert_allclose(outputs["scores"], expected["scores"], rtol=0, atol=2e-2)
    else:
        np.testing.assert_array_equal(outputs["scores"], expected["scores"])
    assert engine.placement.cuda > 0


@on_the_cpu
def test_what_a_run_shows_is_in_the_proof(simulated: None, prepared: Prepared, tmp_path: Path) -> None:
    sidecar = read_sidecar(OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.FP32), tmp_path))
    assert sidecar.proved is Precision.FP32
    assert sidecar.degradations == ()
    assert "8 nodes on CUDA, no Memcpy nodes" in sidecar.proof
    assert "computes in FP32" in sidecar.proof


@on_the_cpu
def test_an_option_that_is_not_obeyed_is_found(simulated: None, prepared: Prepared, tmp_path: Path) -> None:
    """The CPU, which stands for CUDA here, has no TF32 and says nothing about the option."""
    sidecar = read_sidecar(OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.TF32), tmp_path))
    assert (sidecar.requested, sidecar.proved) == (Precision.TF32, Precision.FP32)
    assert [degradation.code for degradation in sidecar.degradations] == [DegradationCode.PRECISION_NOT_PROVED]


@on_the_cpu
def test_a_fixed_batch_is_filled(simulated: None, tmp_path: Path) -> None:
    prepared = dataclasses.replace(prepare(Model.of(cnn(4))), fixed_batch=4)
    model = prepared.model
    for value in (*model.proto.graph.input, *model.proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    engine = OnnxRuntimeCudaBuilder().load(
        OnnxRuntimeCudaBuilder().build(cuda(prepared, Precision.FP32, table=None), tmp_path), 1
    )
    whole = engine.run(feed(4))["scores"]
    np.testing.assert_allclose(
        engine.run({name: value[:3] for name, value in feed(4).items()})["scores"], whole[:3], rtol=1e-6, atol=1e-6
    )
    with pytest.raises(MeasurementError, match="larger than the model takes"):
        engine.run(feed(5))


@on_the_cpu
def test_wrong_inputs_name_the_engine(simulated: None, plain_file: Path) -> None:
    engine = OnnxRuntimeCudaBuilder().load(plain_file, 1)
    inputs = feed(2)
    inputs["side"] = inputs["side"][:, :2]
    with pytest.raises(MeasurementError, match="onnxruntime-cuda-fp32 failed to run"):
        engine.run(inputs)


class TestConformance(EngineSuite):
    """What every backend promises; what runs an engine needs a GPU."""

    tolerance: ClassVar = {Precision.FP32: 1e-4, Precision.TF32: 5e-3, Precision.FP16: 5e-3}

    def builder(self) -> EngineBuilder:
        return OnnxRuntimeCudaBuilder()

    def refusal(self, error: EngineBuildError) -> str | None:
        lacking = "Could not find an implementation" in str(error.got)
        return f"this ONNX Runtime lacks a kernel: {error.got}" if lacking else None

    def load(self, path: Path) -> Engine:
        if cuda_is_missing():
            pytest.skip(cuda_is_missing())
        return super().load(path)

    def break_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise EngineBuildError("broken in the middle")

        monkeypatch.setattr(backend, "vouch", broken)

    def variant(self, prepared: Prepared, precision: Precision) -> Variant:
        """FP16 and BF16 take measured magnitudes from a table, without which there is a degradation."""
        made = super().variant(prepared, precision)
        return dataclasses.replace(made, table=made.table or calibrated(prepared))

    def test_requested_is_proved(self, path: Path, precision: Precision) -> None:
        if precision in (Precision.FP32, Precision.TF32) and cuda_is_missing():
            pytest.skip(cuda_is_missing())
        super().test_requested_is_proved(path, precision)

    def test_batches_of_one_and_of_seven_agree(self, engine: Engine, precision: Precision) -> None:  # type: ignore[override]
        """Kernels differ with the batch, and so do their roundings."""
        inputs = feed(7)
        together = engine.run(inputs)["scores"]
        alone = [engine.run({name: value[i : i + 1] for name, value in inputs.items()})["scores"] for i in range(7)]
        atol = self.tolerance.get(precision, 5e-2) * np.abs(together).max()
        np.testing.assert_allclose(np.concatenate(alone), together, rtol=0, atol=atol)

    def test_close_to_the_reference(self, engine: Engine, built: dict[Precision, Path], precision: Precision) -> None:
        """Two sessions may choose different algorithms, so that FP32 is close to itself, not equal."""
        if precision is not Precision.FP32:
            super().test_close_to_the_reference(engine, built, precision)
            return
        expected = self.load(built[Precision.FP32]).run(feed(30))["scores"]
        np.testing.assert_allclose(engine.run(feed(30))["scores"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


FULL = (
    "Non-zero status code returned while running Conv node. Failed to allocate memory for requested buffer of size 9",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=box",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "CUDNN_BACKEND_TENSOR_DESCRIPTOR cudnnFinalize failed: CUDNN_STATUS_ALLOC_FAILED",
    "bfc_arena.cc:300 Available memory of 1024 is smaller than requested bytes of 4096",
)


@on_the_cpu
@pytest.mark.parametrize("text", FULL)
def test_a_full_gpu(text: str, simulated: None, plain_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of ONNX Runtime, while running and while opening."""
    engine = OnnxRuntimeCudaBuilder().load(plain_file, 1)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", full)
    with pytest.raises(MeasurementError, match="the memory of the GPU is full") as caught:
        engine.run(feed(2))
    assert "--batch-size" in str(caught.value.hint)
    refuse_sessions(monkeypatch, text)
    with pytest.raises(MeasurementError, match="the memory of the GPU is full"):
        OnnxRuntimeCudaBuilder().load(plain_file, 1)


@on_the_cpu
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0", BackendUnavailable),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1", BackendUnavailable),
        ("CUDA failure 209: no kernel image is available for execution on the device ; GPU=0", BackendUnavailable),
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(22)", EngineBuildError),
    ],
)
def test_a_session_that_cannot_be_opened(
    text: str, error: type[QuantlabError], simulated: None, plain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_sessions(monkeypatch, text)
    with pytest.raises(error) as caught:
        OnnxRuntimeCudaBuilder().load(plain_file, 1)
    assert caught.value.got == text


class FakeRuntime:
    """A module whose provider needs a library that only a given folder has."""

    cuda_version = "13.0"
    __version__ = "1.31.1"

    def __init__(self, folder: Path, holder: Path | None) -> None:
        (folder / "capi").mkdir(parents=True)
        (folder / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"")
        self.__file__ = str(folder / "__init__.py")
        self.holder = holder
        self.asked: list[str | None] = []

    def preload_dlls(self, directory: str | None = None) -> None:
        print("Failed to load libcublasLt.so.13")
        self.asked.append(directory)

    def load(self, name: str) -> object:
        if self.holder is not None and str(self.holder) in self.asked:
            raise OSError(f"{name}: undefined symbol: Provider_GetHost")  # as without ONNX Runtime around it
        raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize("found", [True, False])
def test_libraries_are_looked_for_beside_pytorch(
    found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "libsomething.so.9").write_bytes(b"")
    (tmp_path / "nvidia" / "empty" / "lib").mkdir(parents=True)
    runtime = FakeRuntime(tmp_path / "onnxruntime", folders[0] if found else None)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(provider.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(provider.ctypes, "CDLL", runtime.load)
    missing = provider._missing_library(runtime)
    if found:
        assert missing is None
        assert runtime.asked == [None, str(folders[0])]
    else:
        assert missing == "libcublasLt.so.13: cannot open shared object file: No such file or directory"
        assert runtime.asked == [None, *map(str, folders)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("missing", "what", "hint"),
    [
        ("libcublasLt.so.13: cannot open shared object file", "a library of the CUDA provider is missing", "cudnn"),
        ("libcuda.so.1: cannot open shared object file", "the NVIDIA driver is not installed", "container"),
    ],
)
def test_a_missing_library_is_named(missing: str, what: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider.PROVIDER])
    monkeypatch.setattr(provider, "_missing_library", lambda runtime: missing)
    with pytest.raises(BackendUnavailable, match=what) as caught:
        provider.require_provider()
    assert caught.value.got == missing
    assert hint in str(caught.value.hint)


def test_placement_in_words() -> None:
    assert str(Placement(41, {})) == "41 nodes on CUDA"
    assert str(Placement(41, {}, 0)) == "41 nodes on CUDA, no Memcpy nodes between them"
    mixed = Placement(36, {"Gather": 1, "Shape": 2, "Add": 2}, 54)
    assert str(mixed) == "36 nodes on CUDA, 5 on the CPU (Add x2, Shape x2, Gather x1), 54 Memcpy nodes between them"
