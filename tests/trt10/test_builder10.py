"""The builder on TensorRT 10: weak typing, calibrators, DLA and timing caches.

Enums and calibrator classes are the genuine ones, and so are the attributes of everything else: stand-ins are made from
the genuine classes and refuse what those lack. What TensorRT does in a build is acted. It has not run on the library.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import onnx
import pytest
from qdq_checks import UNLIMITED
from stand_in import StandIn

from quantlab.degradation import DegradationCode
from quantlab.engines.cuda import DeviceFacts
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.tensorrt import builder as builder_module
from quantlab.engines.tensorrt import evidence
from quantlab.engines.tensorrt.builder import TensorRTBuilder
from quantlab.engines.tensorrt.evidence import ProbeFile
from quantlab.engines.tensorrt.flavour import TENSORRT, Flavour
from quantlab.engines.tensorrt.options import BuildOptions, Typing
from quantlab.engines.variant import Variant
from quantlab.errors import (
    BackendUnavailable,
    CalibrationError,
    ConfigError,
    EngineBuildError,
    EngineMismatch,
    MeasurementError,
)
from quantlab.graph.model import Optimization, open_session
from quantlab.graph.tf32 import to_tf32
from quantlab.precision import Precision

sys.path.append(str(Path(__file__).parents[1] / "engines"))
from engine_data import calibrated, prepared_cnn

ENGINE = b"an engine of TensorRT 10"
GPU = DeviceFacts(0, "NVIDIA Orin", "8.7", 32 << 30, "540.4", "12.6", "12.6")


class Tensorrt10:
    """The module ``tensorrt`` with its genuine names, and stand-ins for what needs the library.

    Attributes:
        cores: Deep learning accelerators that there are.
        act: What a build does with the configuration; gives the engine.
    """

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine
        self.cores = 0
        self.act: Callable[[Any], bytes | None] = lambda config: ENGINE
        self.config: Any = None
        self.layers: list[Any] = []
        self.network_flags: int | None = None
        self.timings = b"timings"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._genuine, name)

    def _like(self, kind: str, **values: Any) -> Any:
        made = create_autospec(getattr(self._genuine, kind), instance=True, spec_set=True)
        for key, value in values.items():
            setattr(made, key, value)
        return made

    def Builder(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        self.network = self._like("INetworkDefinition", num_inputs=0, num_outputs=0, num_layers=0)
        self.config = self._like("IBuilderConfig")
        self.config.add_optimization_profile.return_value = 0
        self.config.create_timing_cache.side_effect = lambda content: (
            self._like("ITimingCache") if content != b"?" else None
        )
        self.config.set_timing_cache.return_value = True
        self.config.get_timing_cache.return_value.serialize.return_value = self.timings
        made = self._like("Builder", num_DLA_cores=self.cores)

        def create_network(flags: int = 0) -> Any:
            self.network_flags = flags
            return self.network

        made.create_network.side_effect = create_network
        made.create_builder_config.return_value = self.config
        made.create_optimization_profile.side_effect = lambda: self._like("IOptimizationProfile")
        made.build_serialized_network.side_effect = lambda network, config: self.act(config)
        return made

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        made = self._like("OnnxParser")

        def parse(data: bytes) -> bool:
            graph = onnx.ModelProto.FromString(data).graph
            inputs = [self._tensor(value.name, value) for value in graph.input]
            self.layers = [self._layer(node) for node in graph.node]
            for what, found in (("input", inputs), ("layer", self.layers)):
                setattr(network, f"num_{what}s", len(found))
                getattr(network, f"get_{what}").side_effect = found.__getitem__
            network.num_outputs = len(graph.output)
            return True

        made.parse.side_effect = parse
        return made

    def _tensor(self, name: str, value: Any = None) -> Any:
        dims = value.type.tensor_type.shape.dim if value is not None else ()
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
        return self._like("ITensor", name=name, shape=shape, dtype=self._genuine.DataType.FLOAT, is_shape_tensor=False)

    def _layer(self, node: Any) -> Any:
        """The parser names a layer after its node; a Gemm becomes several, which name the node in their metadata."""
        expanded = node.op_type == "Gemm"
        outputs = [self._tensor(name) for name in node.output]
        made = self._like(
            "ILayer", name=f"{node.name}_matmul" if expanded else node.name, num_outputs=len(outputs),
            metadata=f"[ONNX Layer: {node.name}]",
        )  # fmt: skip
        made.get_output.side_effect = outputs.__getitem__
        return made

    def held(self) -> list[str]:
        """Layers that were held in FP32, in precision and outputs."""
        kind = self._genuine.DataType.FLOAT
        return [
            layer.name
            for layer in self.layers
            if layer.precision is kind and layer.set_output_type.call_args_list == [((0, kind),)]
        ]

    def flags(self) -> set[str]:
        return {call.args[0].name for call in self.config.set_flag.call_args_list}


@pytest.fixture
def module(trt: StandIn, monkeypatch: pytest.MonkeyPatch) -> Tensorrt10:
    made = Tensorrt10(trt.module)
    monkeypatch.setattr(builder_module, "load_flavour", lambda backend: Flavour(backend, made))
    monkeypatch.setattr(builder_module, "open_device", lambda: SimpleNamespace(facts=GPU))
    monkeypatch.setattr(builder_module, "write_probe", lambda *_: ProbeFile(None, None))
    monkeypatch.setattr(builder_module, "confirmed", lambda made, *_: made)  # nothing here could run it
    return made


def variant(precision: Precision, method: str = "minmax", **values: Any) -> Variant:
    prepared = prepared_cnn()
    return Variant(prepared, TENSORRT, precision, UNLIMITED, calibrated(prepared, method), **values)


def build(made: Variant, folder: Path, **options: Any) -> Sidecar:
    return read_sidecar(TensorRTBuilder(TENSORRT, BuildOptions(**options)).build(made, folder))


def takes_the_cache(config: Any) -> bytes:
    """What TensorRT does with a cache that it accepts."""
    calibrator = config.int8_calibrator
    cache = calibrator.read_calibration_cache()
    calibrator.write_calibration_cache(memoryview(bytes(cache)))
    return ENGINE


def rejects_the_cache(config: Any) -> bytes:
    calibrator = config.int8_calibrator
    calibrator.read_calibration_cache()
    calibrator.get_batch(["image", "side"])
    return ENGINE


class TestWeakTyping:
    def test_fp16_is_a_flag(self, module: Tensorrt10, tmp_path: Path) -> None:
        sidecar = build(variant(Precision.FP16), tmp_path, typing=Typing.WEAK)
        assert module.network_flags == 0
        assert "FP16" in module.flags()
        assert sidecar.proved is None
        assert sidecar.proof.startswith("weakly typed: TensorRT may take FP16")
        assert DegradationCode.PRECISION_NOT_PROVED in {one.code for one in sidecar.degradations}
        assert sidecar.engine is not None
        assert (sidecar.engine.gpu, sidecar.engine.compute_capability) == ("NVIDIA Orin", "8.7")
        assert sidecar.engine.options["typing"] == "weak"
        assert (tmp_path / sidecar.file).read_bytes() == ENGINE

    def test_nodes_that_overflow_are_held(self, module: Tensorrt10, tmp_path: Path) -> None:
        """A table that says that the second convolution gives 1e6, which FP16 does not hold."""
        made = variant(Precision.FP16)
        assert made.table is not None
        tensors = tuple(
            dataclasses.replace(entry, maximum=1e6) if entry.name == "c2" else entry for entry in made.table.tensors
        )
        made = dataclasses.replace(made, table=dataclasses.replace(made.table, tensors=tensors))
        sidecar = build(made, tmp_path, typing=Typing.WEAK)
        assert "conv2" in module.held()
        assert "conv1" not in module.held()
        assert "OBEY_PRECISION_CONSTRAINTS" in module.flags()
        n = len(module.held())
        assert f"{n} of {n} nodes held in a wider precision" in sidecar.proof

    @pytest.mark.parametrize(
        ("precision", "flags"),
        [
            (Precision.FP32, set()),
            (Precision.TF32, {"TF32"}),
            (Precision.BF16, {"BF16"}),
            (Precision.INT8, {"INT8"}),
            (Precision.INT8_FP16, {"INT8", "FP16"}),
        ],
    )
    def test_flags(self, precision: Precision, flags: set[str], module: Tensorrt10, tmp_path: Path) -> None:
        if "INT8" in flags:
            module.act = takes_the_cache
        build(variant(precision), tmp_path, typing=Typing.WEAK)
        assert module.flags() - {"OBEY_PRECISION_CONSTRAINTS"} == flags
        cleared = {call.args[0].name for call in module.config.clear_flag.call_args_list}
        assert cleared == (set() if precision is Precision.TF32 else {"TF32"})

    @pytest.mark.parametrize(
        ("method", "header", "kind"),
        [
            ("minmax", b"TRT-101601-MinMaxCalibration\n", "IInt8MinMaxCalibrator"),
            ("entropy", b"TRT-101601-EntropyCalibration2\n", "IInt8EntropyCalibrator2"),
        ],
    )
    def test_the_table_stands_in_for_calibration(
        self, method: str, header: bytes, kind: str, module: Tensorrt10, tmp_path: Path
    ) -> None:
        seen: list[bytes] = []

        def act(config: Any) -> bytes:
            assert isinstance(config.int8_calibrator, getattr(module, kind))
            seen.append(bytes(config.int8_calibrator.read_calibration_cache()))
            return takes_the_cache(config)

        module.act = act
        sidecar = build(variant(Precision.INT8, method), tmp_path, typing=Typing.WEAK)
        assert seen[0].startswith(header)
        assert b"image: " in seen[0]
        assert sidecar.table_sha256 is not None
        assert sidecar.name == f"tensorrt-int8-{method}"

    def test_a_rejected_cache_is_an_error_after_the_build(self, module: Tensorrt10, tmp_path: Path) -> None:
        module.act = rejects_the_cache
        with pytest.raises(CalibrationError, match="did not take the calibration table"):
            build(variant(Precision.INT8), tmp_path, typing=Typing.WEAK)
        assert list(tmp_path.iterdir()) == []

    def test_a_calibrator_that_is_never_asked(self, module: Tensorrt10, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="did not calibrate"):
            build(variant(Precision.INT8), tmp_path, typing=Typing.WEAK)
        assert list(tmp_path.iterdir()) == []

    def test_excluded_layers_are_held(self, module: Tensorrt10, tmp_path: Path) -> None:
        module.act = takes_the_cache
        sidecar = build(variant(Precision.INT8, exclude=("conv1", "fc")), tmp_path, typing=Typing.WEAK)
        assert module.held() == ["conv1", "fc_matmul"]
        assert sidecar.excluded == ("conv1", "fc")
        assert sidecar.name.endswith("+2excl")

    def test_beside_int8_and_fp16_they_are_held_in_fp16(self, module: Tensorrt10, tmp_path: Path) -> None:
        module.act = takes_the_cache
        build(variant(Precision.INT8_FP16, exclude=("conv1", "fc")), tmp_path, typing=Typing.WEAK)
        assert module.held() == []
        half = module.DataType.HALF
        assert [layer.name for layer in module.layers if layer.precision is half] == ["conv1", "fc_matmul"]

    @pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8_WEIGHTS])
    def test_what_flags_cannot_say(self, precision: Precision, module: Tensorrt10, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            build(variant(precision), tmp_path, typing=Typing.WEAK)
        assert "leave out --typing weak" in str(caught.value.got)

    def test_int8_needs_a_table(self, module: Tensorrt10, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="needs a calibration table"):
            build(dataclasses.replace(variant(Precision.INT8), table=None), tmp_path, typing=Typing.WEAK)


class TestStrongTyping:
    def test_networks_are_strongly_typed(self, module: Tensorrt10, tmp_path: Path) -> None:
        sidecar = build(variant(Precision.FP16), tmp_path)
        assert module.network_flags == 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert "FP16" not in module.flags()
        assert sidecar.proved is Precision.FP16


class Defect(Exception):  # noqa: N818 - not an error of the user's
    def __init__(self, what: str, got: str) -> None:
        super().__init__(what, got)


class FakeEngine:
    """Runs the model in ONNX Runtime in place of the engine; the inspector's words are short."""

    rounding: Callable[[Any], Any] = staticmethod(lambda model: model.proto)
    fails: type[Exception] | None = None

    def __init__(self, path: Path, plugins: tuple[Path, ...] = ()) -> None:
        if self.fails is not None:
            raise self.fails("the engine is for another GPU", got="9.0")
        assert read_sidecar(path).engine is not None, "a sidecar vouches for it before it is run"
        model = prepared_cnn().model
        proto = type(self).rounding(model)
        self.session = open_session(model.with_proto(proto), threads=1, optimize=Optimization.NONE)
        self.interface = SimpleNamespace(largest=lambda index: {"image": (32, 3, 8, 8), "side": (32, 4)})

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, inputs: Any) -> dict[str, Any]:
        return {"scores": self.session.run(None, dict(inputs))[0]}

    def profile(self, inputs: Any) -> dict[str, float]:
        return {"conv1": 0.5}

    def inspect(self) -> str:
        return json.dumps({"Layers": ["conv1", "conv2"], "Bindings": ["image", "side", "scores"]})


class TestConfirmation:
    """Where there is a GPU, the engine is run as soon as it is written."""

    @pytest.fixture
    def engine(self, module: Tensorrt10, monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
        made = type("Engine", (FakeEngine,), {})
        monkeypatch.setattr(builder_module, "write_probe", evidence.write_probe)
        monkeypatch.setattr(builder_module, "confirmed", evidence.confirmed)
        monkeypatch.setattr(evidence, "TensorRTEngine", made)
        return made

    @pytest.mark.parametrize("really", [Precision.FP32, Precision.TF32])
    @pytest.mark.parametrize("requested", [Precision.FP32, Precision.TF32])
    def test_what_ran_is_what_is_proved(
        self, requested: Precision, really: Precision, engine: type[FakeEngine], tmp_path: Path
    ) -> None:
        """Whatever was asked for: TensorRT-RTX 1.6.1 computes "FP32" in TF32."""
        engine.rounding = staticmethod(to_tf32 if really is Precision.TF32 else lambda model: model.proto)
        sidecar = build(variant(requested), tmp_path)
        assert sidecar.proved is really
        told = {one.code for one in sidecar.degradations}
        assert (DegradationCode.PRECISION_NOT_PROVED in told) is (requested is not really)
        assert sidecar.engine is not None
        assert sidecar.engine.layers[0].startswith("2 layers")

    @pytest.mark.parametrize("kind", [EngineMismatch, MeasurementError, BackendUnavailable])
    def test_an_engine_that_does_not_run_here(
        self, kind: type[Exception], engine: type[FakeEngine], tmp_path: Path
    ) -> None:
        engine.fails = kind
        sidecar = build(variant(Precision.FP16), tmp_path)
        assert sidecar.proved is Precision.FP16, "which its types still say"
        assert "could not be run here: the engine is for another GPU: 9.0" in sidecar.proof
        assert DegradationCode.PRECISION_NOT_PROVED in {one.code for one in sidecar.degradations}

    def test_a_defect_leaves_nothing(self, engine: type[FakeEngine], tmp_path: Path) -> None:
        engine.fails = Defect
        with pytest.raises(Defect):
            build(variant(Precision.FP16), tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestOptions:
    def test_genuine_names(self, module: Tensorrt10, tmp_path: Path) -> None:
        build(
            variant(Precision.FP32), tmp_path, version_compatible=True, refit=True, strip_plan=True,
            sparse_weights=True, optimization_level=5, max_aux_streams=0,
            hardware_compatibility="same-compute-capability",
            memory_pools=(("workspace", 1 << 30), ("dla-managed-sram", 1 << 20)),
        )  # fmt: skip
        wanted = ("VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "SPARSE_WEIGHTS")
        assert module.flags() == {getattr(module.BuilderFlag, name).name for name in wanted}
        assert module.config.builder_optimization_level == 5
        assert module.config.max_aux_streams == 0
        levels = module.HardwareCompatibilityLevel
        assert module.config.hardware_compatibility_level == levels.SAME_COMPUTE_CAPABILITY
        pools = module.MemoryPoolType
        limits = {call.args for call in module.config.set_memory_pool_limit.call_args_list}
        assert limits == {(pools.WORKSPACE, 1 << 30), (pools.DLA_MANAGED_SRAM, 1 << 20)}

    def test_dla(self, module: Tensorrt10, tmp_path: Path) -> None:
        module.cores = 2
        build(variant(Precision.FP16), tmp_path, dla_core=1)
        assert module.config.default_device_type == module.DeviceType.DLA
        assert module.config.DLA_core == 1
        assert "GPU_FALLBACK" in module.flags()
        with pytest.raises(ConfigError, match="no deep learning accelerator number 2"):
            build(variant(Precision.FP16), tmp_path, dla_core=2)

    def test_gpus_cannot_be_named(self, module: Tensorrt10, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has no --compute-capability") as caught:
            build(variant(Precision.FP32), tmp_path, compute_capabilities=("sm89",))
        assert "tensorrt-rtx" in str(caught.value.hint)

    def test_timing_cache_is_read_and_written(self, module: Tensorrt10, tmp_path: Path) -> None:
        file = tmp_path / "timings"
        for before, after in ((None, b"first"), (b"first", b"second")):
            module.timings = after
            build(variant(Precision.FP32), tmp_path / "out", timing_cache=file)
            module.config.create_timing_cache.assert_called_once_with(before or b"")
            assert module.config.set_timing_cache.call_args.kwargs == {"ignore_mismatch": False}
            assert file.read_bytes() == after

    def test_a_timing_cache_is_untouched_by_a_build_that_fails(self, module: Tensorrt10, tmp_path: Path) -> None:
        file = tmp_path / "timings"
        file.write_bytes(b"before")
        module.act = lambda config: None
        with pytest.raises(EngineBuildError, match="cannot build tensorrt-fp32"):
            build(variant(Precision.FP32), tmp_path / "out", timing_cache=file)
        assert file.read_bytes() == b"before"
        assert not (tmp_path / "out").exists()

    def test_a_damaged_timing_cache(self, module: Tensorrt10, tmp_path: Path) -> None:
        file = tmp_path / "timings"
        file.write_bytes(b"?")
        with pytest.raises(ConfigError, match="refuses the timing cache") as caught:
            build(variant(Precision.FP32), tmp_path / "out", timing_cache=file)
        assert "delete it" in str(caught.value.hint)
        assert file.read_bytes() == b"?"


def test_no_gpu_no_engine(module: Tensorrt10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise BackendUnavailable("no NVIDIA GPU", got="0 devices")

    monkeypatch.setattr(builder_module, "open_device", none)
    with pytest.raises(BackendUnavailable, match="builds engines only on the GPU that will run them") as caught:
        build(variant(Precision.FP32), tmp_path)
    assert "no NVIDIA GPU: 0 devices" in str(caught.value.got)
    assert list(tmp_path.iterdir()) == []
