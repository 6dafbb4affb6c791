"""Engines that were built where there was no GPU: what is proved when they are loaded, and compared, where one is."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_data import MemoryData, prepared_cnn, samples
from fake_cuda import FakeCuda
from fake_tensorrt import FakeModel, FakeTensor, State
from onnx import ModelProto

from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.probe import probe_path
from quantlab.engines.record import EngineRecord, Profile
from quantlab.engines.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from quantlab.engines.tensorrt.builder import TensorRTBuilder
from quantlab.engines.tensorrt.evidence import write_probe
from quantlab.engines.tensorrt.profiles import NetworkInput
from quantlab.errors import BackendUnavailable, ConfigError, EngineMismatch
from quantlab.files import sha256_bytes
from quantlab.graph.half import to_half
from quantlab.graph.model import Model, Optimization, open_session
from quantlab.graph.tf32 import to_tf32
from quantlab.harness.compare import CompareSettings, compare
from quantlab.precision import Execution, Precision
from quantlab.progress import Silent
from quantlab.workflow.compare import open_engines

PREPARED = prepared_cnn()
PROFILE = {"image": Profile((1, 3, 8, 8), (1, 3, 8, 8), (32, 3, 8, 8)), "side": Profile((1, 4), (1, 4), (32, 4))}
INPUTS = [NetworkInput("image", (None, 3, 8, 8), False), NetworkInput("side", (None, 4), False)]
ARITHMETIC: dict[str, Callable[[Model], ModelProto]] = {
    "fp32": lambda model: model.proto,
    "tf32": to_tf32,
    "fp16": lambda model: to_half(model, Precision.FP16)[0],
}
CAVEAT = Degradation(DegradationCode.PRECISION_NOT_PROVED, "nothing was run, as there is no GPU here")
OTHER = Degradation(DegradationCode.NOT_SIMPLIFIED, "the simplifier failed")


def network(arithmetic: str) -> FakeModel:
    """The CNN, computed in an arithmetic."""
    proto = ARITHMETIC[arithmetic](PREPARED.model)
    session = open_session(PREPARED.model.with_proto(proto), threads=1, optimize=Optimization.NONE)
    return FakeModel(
        inputs={"image": FakeTensor((-1, 3, 8, 8)), "side": FakeTensor((-1, 4))},
        outputs={"scores": FakeTensor((-1, 6))},
        profiles=[{name: (one.minimum, one.optimum, one.maximum) for name, one in PROFILE.items()}],
        shapes=lambda shapes, _: {"scores": (shapes["image"][0], 6)},
        compute=lambda feed: {"scores": session.run(None, dict(feed))[0]},
    )


@pytest.fixture
def rtx(rtx: State) -> State:
    """TensorRT-RTX with an engine for each arithmetic."""
    rtx.models |= {f"computes in {name}": network(name) for name in ARITHMETIC}
    return rtx


def built(folder: Path, requested: Precision, really: str, *, probe: bool = True, **changes: Any) -> Path:
    """An engine as a machine without a GPU writes it."""
    path = folder / f"tensorrt-rtx-{requested}.engine"
    path.write_bytes(f"computes in {really}".encode("latin-1"))
    made = write_probe(probe_path(path), PREPARED, None, (PROFILE,), INPUTS) if probe else None
    stated = Precision.FP16 if requested is Precision.FP16 else None
    record = EngineRecord(
        flavour="tensorrt-rtx", version="1.6.1.120", gpu=None, compute_capability=None, driver=None, cuda=None,
        options={}, profiles=(PROFILE,), onnx_sha256="0" * 64, stated="3 of 3 weighted layers" if stated else "floats",
        probe=probe_path(path).name if made else None, probe_sha256=made.sha256 if made else None,
    )  # fmt: skip
    degradations = (OTHER,) if stated else (OTHER, CAVEAT)
    sidecar = Sidecar(
        name=path.stem, file=path.name, sha256=sha256_bytes(path.read_bytes()), size_bytes=4, backend="tensorrt-rtx",
        requested=requested, proved=stated, proof="nothing was run", execution=Execution.NATIVE, target=None,
        method=None, excluded=(), model="cnn.onnx", model_sha256="1" * 64, graph_sha256="2" * 64, table_sha256=None,
        calibration_samples=(), preprocess_sha256=None, shapes={}, fixed_batch=None, environment={},
        degradations=degradations, engine=record,
    )  # fmt: skip
    write_sidecar(path, dataclasses.replace(sidecar, **changes))
    return path


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def load(path: Path, narrator: Listener | None = None) -> Sidecar:
    """What the loaded engine says of itself."""
    engine = TensorRTBuilder("tensorrt-rtx", narrator=narrator).load(path, 0)
    try:
        return engine.sidecar
    finally:
        engine.close()  # type: ignore[attr-defined]


def codes(sidecar: Sidecar) -> list[DegradationCode]:
    return [one.code for one in sidecar.degradations]


class TestProof:
    @pytest.mark.parametrize("really", ["fp32", "tf32"])
    @pytest.mark.parametrize("requested", [Precision.FP32, Precision.TF32])
    def test_a_run_proves(self, requested: Precision, really: str, rtx: State, tmp_path: Path) -> None:
        path = built(tmp_path, requested, really)
        before, listener = sidecar_path(path).read_bytes(), Listener()
        sidecar = load(path, listener)
        assert sidecar.proved is Precision(really)
        assert CAVEAT not in sidecar.degradations, "what it said is not so any more"
        contradicted = requested is not Precision(really)
        assert (DegradationCode.PRECISION_NOT_PROVED in codes(sidecar)) is contradicted
        assert OTHER in sidecar.degradations
        assert sidecar.engine is not None
        assert sidecar.engine.layers
        assert any(f"proved {sidecar.name}: {really}" in line for line in listener.said)
        assert sidecar_path(path).read_bytes() == before, "only a build writes sidecars"

    def test_a_run_confirms_types(self, rtx: State, tmp_path: Path) -> None:
        sidecar = load(built(tmp_path, Precision.FP16, "fp16"))
        assert sidecar.proved is Precision.FP16
        assert "3 of 3 weighted layers" in sidecar.proof
        assert codes(sidecar) == [DegradationCode.NOT_SIMPLIFIED]

    def test_a_run_contradicts_types(self, rtx: State, tmp_path: Path) -> None:
        sidecar = load(built(tmp_path, Precision.FP16, "fp32"))
        assert sidecar.proved is not Precision.FP16
        assert "the run contradicts the graph" in sidecar.proof
        assert DegradationCode.PRECISION_NOT_PROVED in codes(sidecar)

    def test_another_probe_is_refused(self, rtx: State, gpu: FakeCuda, tmp_path: Path) -> None:
        path = built(tmp_path, Precision.FP32, "fp32")
        probe_path(path).write_bytes(probe_path(path).read_bytes() + b"\0")
        with pytest.raises(EngineMismatch, match="is not the one that the engine's sidecar describes") as caught:
            load(path)
        assert "together with its engine" in str(caught.value.hint)
        assert gpu.live == {}, "the engine was closed"

    def test_a_missing_probe(self, rtx: State, tmp_path: Path) -> None:
        path = built(tmp_path, Precision.FP32, "fp32")
        probe_path(path).unlink()
        sidecar = load(path)
        assert sidecar.proved is None
        assert "its probe tensorrt-rtx-fp32.probe.npz is missing" in sidecar.proof
        assert DegradationCode.PRECISION_NOT_PROVED in codes(sidecar)

    def test_an_engine_without_a_probe_keeps_what_its_types_say(self, rtx: State, tmp_path: Path) -> None:
        sidecar = load(built(tmp_path, Precision.FP16, "fp16", probe=False))
        assert sidecar.proved is Precision.FP16
        assert "there is no probe" in sidecar.proof

    def test_an_engine_that_fails_on_the_probe(self, rtx: State, tmp_path: Path) -> None:
        path = built(tmp_path, Precision.FP16, "fp16")
        rtx.fail_enqueue = "an illegal memory access was encountered"
        sidecar = load(path)
        assert sidecar.proved is Precision.FP16
        assert "could not be run here" in sidecar.proof
        assert DegradationCode.PRECISION_NOT_PROVED in codes(sidecar)

    def test_one_that_was_run_is_not_run_again(self, rtx: State, tmp_path: Path) -> None:
        path = built(tmp_path, Precision.FP32, "tf32")
        sidecar = read_sidecar(path)
        assert sidecar.engine is not None
        record = dataclasses.replace(sidecar.engine, layers=("2 layers",))
        write_sidecar(path, dataclasses.replace(sidecar, engine=record, proved=Precision.FP32))
        contexts = rtx.contexts
        assert load(path).proved is Precision.FP32
        assert rtx.contexts == contexts + 1, "none for timing its layers"


class TestComparing:
    def test_the_comparison_says_what_was_proved(self, rtx: State, gpu: FakeCuda, tmp_path: Path) -> None:
        paths = [built(tmp_path, Precision.FP32, "tf32"), built(tmp_path, Precision.FP16, "fp16")]
        with open_engines(paths, 1) as engines:
            settings = CompareSettings(batch_size=4, latency=None)
            result = compare(engines, "tensorrt-rtx-fp32", MemoryData(samples(8)), settings, Silent())
            assert gpu.live
        assert [(one.requested, one.proved) for one in result.variants] == [
            (Precision.FP32, Precision.TF32),
            (Precision.FP16, Precision.FP16),
        ]
        assert result.variants[0].proof.startswith("NOT FP32: TF32")
        told = [one for one in result.degradations if one.code is DegradationCode.PRECISION_NOT_PROVED]
        assert ["requested fp32, proved tf32" in one.message for one in told] == [True]
        assert gpu.live == {}, "the memory goes back"

    def test_the_first_is_closed_if_the_second_fails(self, rtx: State, gpu: FakeCuda, tmp_path: Path) -> None:
        paths = [built(tmp_path, Precision.FP32, "fp32"), built(tmp_path, Precision.FP16, "gone")]
        with pytest.raises(EngineMismatch, match="cannot open"), open_engines(paths, 1):
            pass
        assert gpu.live == {}

    def test_and_if_the_comparison_fails(self, rtx: State, gpu: FakeCuda, tmp_path: Path) -> None:
        held: list[Any] = []
        with pytest.raises(ZeroDivisionError), open_engines([built(tmp_path, Precision.FP32, "fp32")], 1) as engines:
            held.append(weakref.ref(engines[0]))
            raise ZeroDivisionError
        assert gpu.live == {}

    def test_plugins_reach_the_library(self, rtx: State, tmp_path: Path) -> None:
        path = built(tmp_path, Precision.FP32, "fp32")
        with (
            pytest.raises(ConfigError, match=r"--plugin .*gone\.so: there is no such file"),
            open_engines([path], 1, plugins=(tmp_path / "gone.so",)),
        ):
            pass

    def test_plugins_are_for_tensorrt(self, rtx: State, tmp_path: Path) -> None:
        path = built(tmp_path, Precision.FP32, "fp32", backend="onnxruntime")
        with (
            pytest.raises(ConfigError, match="--plugin is for engines of TensorRT"),
            open_engines([path], 1, plugins=(tmp_path / "own.so",)),
        ):
            pass

    def test_without_a_gpu(self, rtx: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(index: int = 0) -> None:
            raise BackendUnavailable("no NVIDIA GPU")

        monkeypatch.setattr("quantlab.engines.tensorrt.engine.open_device", none)
        path = built(tmp_path, Precision.FP32, "fp32")
        with pytest.raises(BackendUnavailable, match="no NVIDIA GPU"), open_engines([path], 1):
            pass


def test_the_figures_of_the_fake_are_the_models() -> None:
    """So that the proofs above are about arithmetic."""
    feed = {name: np.stack([s.inputs[name] for s in samples(4)]) for name in ("image", "side")}
    exact = network("fp32").compute(feed)["scores"]
    errors = [float(np.abs(network(name).compute(feed)["scores"] - exact).max()) for name in ("tf32", "fp16")]
    assert all(1e-5 < error < 0.1 for error in errors)


@pytest.mark.parametrize("strategies", [(), ("eager",), ("eager", "none")], ids=["right", "specialized", "always"])
def test_an_engine_that_is_wrong_in_batches_only(
    rtx: State, gpu: FakeCuda, tmp_path: Path, strategies: tuple[str, ...]
) -> None:
    """One by one it is right, so that its arithmetic is proved all the same."""
    right, wrong = network("tf32"), bool(strategies)

    def compute(feed: dict[str, Any]) -> dict[str, Any]:
        scores = right.compute(feed)["scores"]
        used = rtx.configs[-1].dynamic_shapes_kernel_specialization_strategy
        return {"scores": np.roll(scores, 1, axis=0) if used in strategies else scores}

    rtx.models["computes in tf32"] = dataclasses.replace(right, compute=compute)
    with TensorRTBuilder("tensorrt-rtx").load(built(tmp_path, Precision.TF32, "tf32"), 1) as engine:  # type: ignore[attr-defined]
        sidecar = engine.sidecar
    told = [one for one in sidecar.degradations if one.code is DegradationCode.BATCH_DISAGREES]
    assert sidecar.proved is Precision.TF32
    assert len(told) == wrong
    if not wrong:
        return
    assert "in a batch of 32, samples give other results than one by one" in told[0].message
    blamed = "the kernels that the library compiles for each shape are wrong" in told[0].message
    assert blamed == ("none" not in strategies)
