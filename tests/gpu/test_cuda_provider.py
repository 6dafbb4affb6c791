"""ONNX Runtime's CUDA provider on a GPU: what every precision loses, and that nothing runs on the CPU unseen."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cuda_here import cuda_is_missing
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from qdq_checks import outputs, prepared_sample, sqnr

import quantlab.workflow.doctor as doctor
from quantlab.datasets import SAMPLE_MODELS
from quantlab.engines.onnxruntime_cuda import NAME, OnnxRuntimeCudaBuilder, OnnxRuntimeCudaEngine, _runs
from quantlab.engines.onnxruntime_provider import open_cuda_session
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import EngineBuildError, ExitCode, MeasurementError
from quantlab.graph.model import Model, Optimization, load_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile
from quantlab.precision import Execution, Precision

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(cuda_is_missing()), reason=cuda_is_missing())]

LEAST_SQNR_DB = {
    Precision.FP32: 90,
    Precision.TF32: 45,
    Precision.FP16: 45,
    Precision.BF16: 28,
    Precision.INT8: 15,
    Precision.INT8_WEIGHTS: 25,
    Precision.INT8_FP16: 15,
    Precision.FP8: 15,
}
"""Against FP32 on the CPU; TF32 and FP16 have 10 mantissa bits, BF16 has 7."""

Built = Callable[[str, Precision], Path]


def variant(name: str, precision: Precision, target: TargetProfile = TENSORRT) -> Variant:
    prepared, table, *_ = prepared_sample(name)
    return Variant(prepared, NAME, precision, target, table)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Any precision of any bundled model, built once."""

    @functools.cache
    def build(name: str, precision: Precision) -> Path:
        return OnnxRuntimeCudaBuilder().build(variant(name, precision), tmp_path_factory.mktemp(f"{name}-{precision}"))

    return build


def scores(engine: OnnxRuntimeCudaEngine, feed: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    (values,) = engine.run(feed).values()
    return values.astype(np.float32)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_drift_against_fp32_on_the_cpu(name: str, precision: Precision, built: Built) -> None:
    prepared, _, feed, _ = prepared_sample(name)
    expected = outputs(prepared.model, feed)[0]
    got = scores(OnnxRuntimeCudaBuilder().load(built(name, precision), 1), feed)
    drift = sqnr(expected, got)
    agreement = float(np.mean(got.argmax(1) == expected.argmax(1)))
    print(f"\n{name} {precision}: {drift:.1f} dB, top-1 agreement {agreement:.3f}")
    assert drift > LEAST_SQNR_DB[precision]
    if precision is not Precision.FP32:
        assert drift < 110, "the precision leaves its mark"


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_requested_is_proved_by_a_run(name: str, precision: Precision, built: Built) -> None:
    sidecar = read_sidecar(built(name, precision))
    print(f"\n{name} {precision}: {sidecar.proof}")
    assert sidecar.proved is precision
    assert "nodes on CUDA" in sidecar.proof
    assert [str(degradation) for degradation in sidecar.degradations] == []


@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_tf32_shows_in_the_error(name: str, built: Built) -> None:
    """One file content, two options: what the provider is told makes the difference."""
    prepared, _, feed, _ = prepared_sample(name)
    expected = outputs(prepared.model, feed)[0].astype(np.float64)
    errors = {}
    for precision in (Precision.FP32, Precision.TF32):
        got = scores(OnnxRuntimeCudaBuilder().load(built(name, precision), 1), feed)
        errors[precision] = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    print(f"\n{name}: FP32 {errors[Precision.FP32]:.1e}, TF32 {errors[Precision.TF32]:.1e}")
    assert errors[Precision.TF32] > 20 * errors[Precision.FP32]


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS])
@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_quantized_graphs_compute_what_they_say(name: str, precision: Precision, built: Built) -> None:
    """The same file run by ONNX Runtime's CPU kernels, node by node."""
    feed = prepared_sample(name)[2]
    expected = outputs(load_model(built(name, precision)), feed, Optimization.NONE)[0]
    got = scores(OnnxRuntimeCudaBuilder().load(built(name, precision), 1), feed)
    assert sqnr(expected, got) > 30


def test_int8_copies_between_the_devices(tmp_path: Path) -> None:
    """The provider has no kernel for INT32 biases, which ONNX Runtime's own rules write."""
    copies = {}
    for target in (ONNXRUNTIME, TENSORRT):
        path = OnnxRuntimeCudaBuilder().build(variant("fashion-resnet", Precision.INT8, target), tmp_path / target.name)
        proof = read_sidecar(path).proof
        print(f"\n{target.name}: {proof}")
        assert read_sidecar(path).execution is Execution.EMULATED
        found = proof.split(" Memcpy nodes")[0].rsplit(" ", 1)[1]
        copies[target.name] = 0 if found == "no" else int(found)
    assert copies["onnxruntime"] > copies["tensorrt"]


_LOAD = """
import sys
from pathlib import Path
from quantlab.engines.onnxruntime_cuda import OnnxRuntimeCudaBuilder
from quantlab.errors import QuantlabError
try:
    OnnxRuntimeCudaBuilder().load(Path(sys.argv[1]), 1)
except QuantlabError as error:
    print(error)
    sys.exit(int(error.exit_code))
"""


def test_a_hidden_gpu_is_an_error(built: Built) -> None:
    """ONNX Runtime itself would run the file on the CPU and say nothing."""
    path = built("fashion-resnet", Precision.FP32)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    print(done.stdout)
    assert done.returncode == ExitCode.UNAVAILABLE, done.stderr


def test_a_layer_without_a_kernel_is_an_error() -> None:
    """The provider has no product of 64-bit integers; the CPU has."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="integers"),
            helper.make_node("Cast", ["p"], ["f"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("Relu", ["f"], ["y"], name="relu"),
        ],
        "integers",
        [info("x", TensorProto.INT64, [64, 64])],
        [info("y", TensorProto.FLOAT, [64, 64])],
        [numpy_helper.from_array(np.ones((64, 64), np.int64), "w")],
    )
    model = Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(EngineBuildError, match="would not run on the GPU") as caught:
        open_cuda_session(model, {}, {}, 1)
    assert "integers (MatMul)" in str(caught.value.got)


def test_a_full_gpu_is_an_error() -> None:
    """With the provider's memory limited to 1 MB."""
    prepared, _, feed, _ = prepared_sample("fashion-resnet")
    many = {"image": np.repeat(feed["image"], 20, axis=0)}
    with pytest.raises(MeasurementError, match="the memory of the GPU is full") as caught:
        _runs(open_cuda_session(prepared.model, {"gpu_mem_limit": "1000000"}, {}, 1)[0], "the model")(many)
    print(caught.value)


def test_batches_and_threads(built: Built) -> None:
    feed = prepared_sample("fashion-resnet")[2]
    engine = OnnxRuntimeCudaBuilder().load(built("fashion-resnet", Precision.FP32), 1)
    parts = [{"image": feed["image"][i : i + 8]} for i in range(0, 96, 8)]
    expected = [scores(engine, part) for part in parts]
    np.testing.assert_allclose(np.concatenate(expected), scores(engine, feed), rtol=1e-3, atol=1e-4)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            for got, wanted in zip(pool.map(lambda part: scores(engine, part), parts), expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    prepared, _, feed, _ = prepared_sample("fashion-resnet")
    proto = type(prepared.model.proto)()
    proto.CopyFrom(prepared.model.proto)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    fixed = dataclasses.replace(prepared, model=prepared.model.with_proto(proto), fixed_batch=4)
    made = dataclasses.replace(variant("fashion-resnet", Precision.FP16), prepared=fixed)
    engine = OnnxRuntimeCudaBuilder().load(OnnxRuntimeCudaBuilder().build(made, tmp_path), 1)
    whole = scores(engine, {"image": feed["image"][:4]})
    np.testing.assert_allclose(scores(engine, {"image": feed["image"][:3]}), whole[:3], rtol=1e-2, atol=1e-2)
    with pytest.raises(MeasurementError, match="larger than the model takes"):
        engine.run({"image": feed["image"][:5]})


def test_wrong_inputs(built: Built) -> None:
    engine = OnnxRuntimeCudaBuilder().load(built("fashion-resnet", Precision.FP32), 1)
    wrong = {"image": np.zeros((1, 1, 28, 27), np.float32)}
    with pytest.raises(MeasurementError, match=f"{NAME}-fp32 failed to run"):
        engine.run(wrong)
    with pytest.raises(MeasurementError, match=f"{NAME}-fp32 failed to run"):
        engine.device_call(wrong)()


def test_a_call_on_the_device(built: Built) -> None:
    """Without copies it takes no longer than with them; both for a batch whose copies are a large part."""
    feed = {"image": np.repeat(prepared_sample("fashion-resnet")[2]["image"], 10, axis=0)}
    engine = OnnxRuntimeCudaBuilder().load(built("fashion-resnet", Precision.FP16), 1)
    call = engine.device_call(feed)

    def best(function: object) -> float:
        durations = []
        for _ in range(30):
            start = time.perf_counter()
            function()  # type: ignore[operator]
            durations.append(time.perf_counter() - start)
        return min(durations[5:])

    device, host = best(call), best(lambda: engine.run(feed))
    print(f"\nbatch 960: {device * 1e3:.2f} ms on the device, {host * 1e3:.2f} ms with copies")
    assert device < 1.1 * host


def test_the_doctor_sees_it() -> None:
    found = {f.name: f for what in ("driver", "onnxruntime-cuda") for f in doctor._probe(what, "do this")}
    for finding in found.values():
        print(finding)
    assert {"NVIDIA driver", "GPU 0", "onnxruntime-cuda"} <= set(found)
    assert all(finding.works for finding in found.values())
    assert "with use_tf32=0 it computes in FP32" in found["onnxruntime-cuda"].detail


def test_the_doctor_tries_the_libraries_that_are_installed() -> None:
    """Whatever state TensorRT and pycuda are in, there is a finding for each, and pycuda works if it is there."""
    found = {f.name: f for what in ("pycuda", "tensorrt", "tensorrt-rtx") for f in doctor._probe(what, "do this")}
    for finding in found.values():
        print(finding)
    assert {"pycuda", "tensorrt", "tensorrt-rtx"} <= set(found)
    assert found["pycuda"].works is not False
