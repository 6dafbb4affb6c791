"""What every builder and engine promises; one subclass of the suite for each backend."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_data import CALIBRATED, calibrated, feed, prepared_cnn, target_of, variant
from gpu_here import gpu_is_here
from onnx import ModelProto
from qdq_checks import UNLIMITED

import quantlab.engines.onnxruntime as onnxruntime_backend
from quantlab.degradation import DegradationCode
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.protocol import Engine, EngineBuilder
from quantlab.engines.sidecar import read_sidecar, sidecar_path
from quantlab.engines.variant import Variant, variant_name
from quantlab.errors import (
    BackendUnavailable,
    ConfigError,
    EngineBuildError,
    EngineMismatch,
    MeasurementError,
    ModelError,
)
from quantlab.files import sha256_file
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.half import FORMATS
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile
from quantlab.precision import Execution, Precision

FLOATING = (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16)
QUANTIZED = (Precision.INT8, Precision.INT8_WEIGHTS, Precision.FP8)
LEAST_SQNR_DB = {
    Precision.TF32: 45,
    Precision.FP16: 45,
    Precision.BF16: 30,
    Precision.INT8: 20,
    Precision.INT8_WEIGHTS: 35,
    Precision.FP8: 24,
}


class EngineSuite(ABC):
    """The contract of `EngineBuilder` and `Engine`."""

    precisions = (*FLOATING, *QUANTIZED)
    files = 2  # of one variant: engine and sidecar

    @abstractmethod
    def builder(self) -> EngineBuilder:
        """The backend's."""

    def target(self, precision: Precision) -> TargetProfile:
        """Rules by which the backend builds `cnn`."""
        return target_of(precision)

    def reproducible(self, precision: Precision) -> bool:
        """Whether building again gives the same bytes."""
        return True

    def is_what_fp32_is(self, precision: Precision) -> bool:
        """Whether an engine of FP32 may compute in this precision, too."""
        return False

    def measures_when_built(self) -> bool:
        """Whether a sidecar holds times, which differ."""
        return False

    def refusal(self, error: EngineBuildError) -> str | None:
        """Why it is right that this version of the backend does not build a variant; None if it is not."""
        return None

    def build(self, made: Variant, folder: Path) -> Path:
        """Build a variant; skips the test where this version of the backend does not."""
        try:
            return self.builder().build(made, folder)
        except EngineBuildError as error:
            reason = self.refusal(error)
            if reason is None:
                raise
            pytest.skip(reason)

    def load(self, path: Path) -> Engine:
        """Open an engine; skips the test where that cannot be."""
        return self.builder().load(path, 1)

    @abstractmethod
    def break_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the next build fail after it began to write."""

    @pytest.fixture(scope="class")
    def prepared(self) -> Prepared:
        return prepared_cnn()

    @pytest.fixture(scope="class")
    def built(self, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
        folder = tmp_path_factory.mktemp("engines")
        made: dict[Precision, Path] = {}
        for precision in self.precisions:
            try:
                made[precision] = self.builder().build(self.variant(prepared, precision), folder)
            except EngineBuildError as error:
                if self.refusal(error) is None:
                    raise
        return made

    def variant(self, prepared: Prepared, precision: Precision) -> Variant:
        made = variant(prepared, precision, self.target(precision))
        return dataclasses.replace(made, backend=self.builder().backend)

    @pytest.fixture(params=precisions, ids=str)
    def precision(self, request: pytest.FixtureRequest) -> Precision:
        chosen: Precision = request.param
        return chosen

    @pytest.fixture
    def path(self, built: dict[Precision, Path], precision: Precision) -> Path:
        if precision not in built:
            pytest.skip(f"this version of {self.builder().backend} does not build {precision}")
        return built[precision]

    @pytest.fixture
    def engine(self, path: Path) -> Engine:
        return self.load(path)

    def test_file_and_sidecar_have_the_name_of_the_variant(
        self, path: Path, precision: Precision, prepared: Prepared
    ) -> None:
        sidecar = read_sidecar(path)
        method = "minmax" if precision is Precision.INT8 else None
        assert sidecar.name == variant_name(self.builder().backend, precision, method, 0)
        assert path.name.startswith(sidecar.name)
        assert sidecar.file == path.name
        assert sidecar.sha256 == sha256_file(path)
        assert sidecar.size_bytes == path.stat().st_size
        assert sidecar.backend == self.builder().backend
        assert sidecar.model_sha256 == prepared.model.sha256
        assert sidecar.graph_sha256 == prepared.graph_sha256
        assert sidecar.environment
        assert [p.name for p in path.parent.iterdir() if not p.name.startswith(f"{self.builder().backend}-")] == []

    def test_requested_is_proved(self, path: Path, precision: Precision) -> None:
        sidecar = read_sidecar(path)
        assert (sidecar.requested, sidecar.proved) == (precision, precision)
        assert sidecar.proof
        assert sidecar.degradations == ()

    def test_calibration_is_recorded_where_it_was_used(self, path: Path, precision: Precision) -> None:
        sidecar = read_sidecar(path)
        recorded = (sidecar.table_sha256, sidecar.preprocess_sha256)
        if precision in CALIBRATED:
            assert None not in recorded
            assert sidecar.calibration_samples == ("d" * 64,)
        else:
            assert recorded == (None, None)
            assert sidecar.calibration_samples == ()
        assert sidecar.method == ("minmax" if precision is Precision.INT8 else None), "FP8 takes the exact extremes"
        assert sidecar.target == (self.target(precision).name if precision in QUANTIZED else None)

    def test_another_file_is_refused(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes() + b"\0")
        sidecar_path(copy).write_bytes(sidecar_path(path).read_bytes())
        with pytest.raises(EngineMismatch, match="is not the file its sidecar describes") as caught:
            self.builder().load(copy, 1)
        assert sha256_file(copy)[:16] in str(caught.value)
        assert sha256_file(path)[:16] in str(caught.value)

    @pytest.mark.parametrize("content", [None, b"", b"{}", b'{"schema": "quantlab.engine/1"}'])
    def test_without_a_whole_sidecar_is_refused(self, path: Path, tmp_path: Path, content: bytes | None) -> None:
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        if content is not None:
            sidecar_path(copy).write_bytes(content)
        with pytest.raises(EngineMismatch, match="sidecar"):
            self.builder().load(copy, 1)

    def test_runs_by_input_name(self, engine: Engine) -> None:
        inputs = feed(5)
        outputs = engine.run(inputs)
        assert tuple(outputs) == engine.outputs == ("scores",)
        assert outputs["scores"].shape == (5, 6)
        assert outputs["scores"].dtype == np.float32
        turned = engine.run(dict(reversed(inputs.items())))
        np.testing.assert_array_equal(outputs["scores"], turned["scores"])

    def batch_tolerance(self, precision: Precision) -> float:
        """How far a batch may be from its samples one by one, as a share of the largest score."""
        return 1e-4

    def test_batches_of_one_and_of_seven_agree(self, engine: Engine, precision: Precision) -> None:
        inputs, tolerance = feed(7), self.batch_tolerance(precision)
        together = engine.run(inputs)["scores"]
        alone = [engine.run({name: value[i : i + 1] for name, value in inputs.items()})["scores"] for i in range(7)]
        limit = tolerance * np.abs(together).max()
        np.testing.assert_allclose(np.concatenate(alone), together, rtol=tolerance, atol=limit)

    def test_close_to_the_reference(self, engine: Engine, built: dict[Precision, Path], precision: Precision) -> None:
        inputs = feed(30)
        expected = self.load(built[Precision.FP32]).run(inputs)["scores"].astype(np.float64)
        lost = np.sum((engine.run(inputs)["scores"] - expected) ** 2)
        if precision is Precision.FP32:
            assert lost == 0.0
        else:
            assert 10 * np.log10(np.sum(expected**2) / lost) > LEAST_SQNR_DB[precision]
            assert lost > 0.0 or self.is_what_fp32_is(precision), "the precision leaves its mark"

    def test_two_threads_get_their_own_results(self, engine: Engine) -> None:
        inputs = [feed(3, seed) for seed in range(8)]
        expected = [engine.run(one)["scores"] for one in inputs]
        with ThreadPoolExecutor(2) as pool:
            for _ in range(5):
                for got, wanted in zip(pool.map(engine.run, inputs), expected, strict=True):
                    np.testing.assert_array_equal(got["scores"], wanted)

    @pytest.mark.parametrize("wrong", ["missing", "shape", "unknown"])
    def test_wrong_inputs_are_a_measurement_error(self, engine: Engine, wrong: str) -> None:
        inputs = feed(2)
        if wrong == "missing":
            del inputs["side"]
        elif wrong == "shape":
            inputs["side"] = inputs["side"][:, :2]
        else:
            inputs["more"] = inputs["side"]
        with pytest.raises(MeasurementError, match=engine.sidecar.name):
            engine.run(inputs)

    @pytest.mark.parametrize("fixed", [1, 4])
    def test_models_of_fixed_batch_are_padded(
        self, fixed: int, precision: Precision, built: dict[Precision, Path], tmp_path: Path
    ) -> None:
        prepared = dataclasses.replace(prepared_cnn(fixed), fixed_batch=fixed)
        model = prepared.model
        if model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value != fixed:
            for value in (*model.proto.graph.input, *model.proto.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = fixed
        table = None
        if precision in CALIBRATED:
            table = dataclasses.replace(calibrated(prepared_cnn()), method="minmax")
        made = dataclasses.replace(
            self.variant(prepared, Precision.FP32), precision=precision, table=table, target=self.target(precision)
        )
        path = self.build(made, tmp_path)
        assert read_sidecar(path).fixed_batch == fixed
        engine = self.load(path)
        inputs = feed(fixed)
        whole = engine.run(inputs)["scores"]
        for n in range(1, fixed + 1):
            part = engine.run({name: value[:n] for name, value in inputs.items()})["scores"]
            assert part.shape == (n, 6)
            np.testing.assert_allclose(part, whole[:n], rtol=1e-5, atol=1e-5)
        with pytest.raises(MeasurementError, match="larger than the model takes"):
            engine.run(feed(fixed + 1))

    def test_a_build_that_fails_leaves_nothing(
        self, precision: Precision, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.break_in_the_middle(monkeypatch)
        with pytest.raises(Exception, match="broken in the middle"):
            self.build(self.variant(prepared, precision), tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_building_again_replaces(self, precision: Precision, prepared: Prepared, tmp_path: Path) -> None:
        made = self.variant(prepared, precision)
        first = self.build(made, tmp_path)
        content, record = first.read_bytes(), sidecar_path(first).read_text()
        first.write_bytes(b"something else")
        second = self.builder().build(made, tmp_path)
        assert second == first
        if self.reproducible(precision):
            assert second.read_bytes() == content
            assert sidecar_path(second).read_text() == record or self.measures_when_built()
        assert read_sidecar(second).size_bytes == second.stat().st_size
        assert len(list(tmp_path.iterdir())) == self.files

    @pytest.mark.parametrize("calibrated_precision", CALIBRATED)
    def test_quantized_activations_need_a_table(
        self, calibrated_precision: Precision, prepared: Prepared, tmp_path: Path
    ) -> None:
        made = dataclasses.replace(self.variant(prepared, calibrated_precision), table=None)
        with pytest.raises(ConfigError, match="needs a calibration table"):
            self.builder().build(made, tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestTensorRTRTX(EngineSuite):
    """Builds engines anywhere; runs them where there is a GPU that takes them."""

    pytestmark = pytest.mark.tensorrt_rtx
    files = 3  # and the probe

    def builder(self) -> EngineBuilder:
        pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13 (Linux on x86-64)")
        from quantlab.engines.tensorrt.builder import TensorRTBuilder

        return TensorRTBuilder("tensorrt-rtx")

    def break_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from quantlab.engines.tensorrt import builder

        def broken(*_: object) -> None:
            raise EngineBuildError("broken in the middle")

        monkeypatch.setattr(builder, "vouch", broken)

    def target(self, precision: Precision) -> TargetProfile:
        return UNLIMITED

    def test_requested_is_proved(self, path: Path, precision: Precision) -> None:
        """On a GPU, FP32 and TF32 are what the engine is found to compute in, which may be the other one."""
        sidecar = read_sidecar(path)
        if precision in (Precision.FP32, Precision.TF32):
            assert sidecar.proved in ((None, Precision.FP32, Precision.TF32) if gpu_is_here() else (None,))
        else:
            assert sidecar.proved is precision
        told = DegradationCode.PRECISION_NOT_PROVED in {one.code for one in sidecar.degradations}
        assert told is (sidecar.proved is not precision)
        assert sidecar.proof

    def refusal(self, error: EngineBuildError) -> str | None:
        known = "no 8-bit convolutions" in str(error.hint)
        return "this TensorRT-RTX builds no INT8 convolutions: 1.7 does" if known else None

    def reproducible(self, precision: Precision) -> bool:
        return precision in FLOATING  # with Q/DQ pairs, TensorRT-RTX numbers its tensors otherwise each time

    def measures_when_built(self) -> bool:
        return gpu_is_here()

    def is_what_fp32_is(self, precision: Precision) -> bool:
        return precision is Precision.TF32

    def batch_tolerance(self, precision: Precision) -> float:
        """Other kernels for another batch round otherwise, in the engine's arithmetic: "FP32" may be TF32.

        Quantized engines did not, on an H200, and so are held to what others are.
        """
        if precision not in FLOATING:
            return super().batch_tolerance(precision)
        return float(10 ** (-LEAST_SQNR_DB.get(precision, LEAST_SQNR_DB[Precision.TF32]) / 20))

    def load(self, path: Path) -> Engine:
        if not gpu_is_here():
            pytest.skip("runs on an NVIDIA GPU only")
        return super().load(path)

    def test_the_probe_is_beside_it(self, path: Path) -> None:
        record = read_sidecar(path).engine
        assert record is not None
        assert record.probe_sha256 == sha256_file(path.parent / str(record.probe))


class TestOnnxRuntime(EngineSuite):
    def builder(self) -> EngineBuilder:
        return OnnxRuntimeBuilder()

    def break_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise EngineBuildError("broken in the middle")

        monkeypatch.setattr(onnxruntime_backend, "vouch", broken)

    def test_what_is_native_and_what_is_emulated(self, engine: Engine, precision: Precision) -> None:
        native = precision in (Precision.FP32, Precision.INT8, Precision.INT8_WEIGHTS)
        assert engine.sidecar.execution is (Execution.NATIVE if native else Execution.EMULATED)
        assert ("computed by FP32 kernels" in engine.sidecar.proof) == (not native)

    def test_tensorrt_rules_are_emulated_on_this_cpu(self, prepared: Prepared, tmp_path: Path) -> None:
        """Symmetric INT8 on both sides has no fused kernels here: the accuracy is real, the latency is not."""
        sidecar = read_sidecar(self.builder().build(variant(prepared, Precision.INT8, TENSORRT), tmp_path))
        assert sidecar.execution is Execution.EMULATED
        assert sidecar.target == "tensorrt"
        assert sidecar.proved is Precision.INT8
        assert "integer kernels" in sidecar.proof

    def test_half_results_are_half_values(self, built: dict[Precision, Path]) -> None:
        for precision in (Precision.FP16, Precision.BF16):
            scores = self.builder().load(built[precision], 1).run(feed(9))["scores"]
            np.testing.assert_array_equal(FORMATS[precision].round(scores), scores)

    def test_excluded_layers_are_in_the_name(self, prepared: Prepared, tmp_path: Path) -> None:
        path = self.builder().build(variant(prepared, Precision.INT8, exclude=("conv*",)), tmp_path)
        sidecar = read_sidecar(path)
        assert sidecar.name == "onnxruntime-int8-minmax+2excl"
        assert sidecar.excluded == ("conv1", "conv2")
        assert sidecar.proved is Precision.INT8
        assert "1 of 3" in sidecar.proof

    def test_exclusions_do_not_touch_floating_variants(self, prepared: Prepared, tmp_path: Path) -> None:
        path = self.builder().build(variant(prepared, Precision.FP16, exclude=("nothing like this",)), tmp_path)
        assert read_sidecar(path).name == "onnxruntime-fp16"

    def test_what_is_for_gpus_alone(self, prepared: Prepared, tmp_path: Path) -> None:
        made = variant(prepared, Precision.INT8_FP16)
        assert "is for GPUs" in str(self.builder().supports(made))
        with pytest.raises(BackendUnavailable, match="cannot build int8-fp16"):
            self.builder().build(made, tmp_path)

    def test_options_that_a_file_must_be_opened_with(self, engine: Engine, precision: Precision) -> None:
        expected = {
            Precision.FP8: {"graph_optimization_level": "ORT_DISABLE_ALL"},
            Precision.INT8_WEIGHTS: {"session.disable_quant_qdq": "1"},
        }
        assert dict(engine.sidecar.session) == expected.get(precision, {})

    @pytest.mark.parametrize("method", ["minmax", "entropy", "mse"])
    def test_fp8_is_the_same_whatever_the_method(self, method: str, prepared: Prepared, tmp_path: Path) -> None:
        paths = [
            self.builder().build(variant(prepared, Precision.FP8, table=calibrated(prepared, name)), tmp_path / name)
            for name in ("percentile", method)
        ]
        assert paths[0].name == paths[1].name == "onnxruntime-fp8.onnx"
        assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_weights_alone_say_nothing_of_a_table(self, prepared: Prepared, tmp_path: Path) -> None:
        path = self.builder().build(variant(prepared, Precision.INT8_WEIGHTS, table=calibrated(prepared)), tmp_path)
        sidecar = read_sidecar(path)
        assert (sidecar.name, sidecar.table_sha256) == ("onnxruntime-int8-weights", None)
        assert sidecar.proof.startswith("3 of 3 weighted layers with INT8 weights, activations float")

    def test_layers_that_a_size_limit_leaves_out_are_recorded(self, prepared: Prepared, tmp_path: Path) -> None:
        """They are not a degradation: the rule of the target wants it so."""
        path = self.builder().build(variant(prepared, Precision.INT8, TENSORRT), tmp_path)
        sidecar = read_sidecar(path)
        assert sidecar.skipped == {
            "conv2": "it has fewer than 16 channels that kernels could pad (8 input and 8 output channels)",
            "fc": "its K or N is below 16 (M=batch K=12 N=6)",
        }
        assert sidecar.degradations == ()

    def test_existing_pairs_are_completed_on_request(self, prepared: Prepared, tmp_path: Path) -> None:
        table = calibrated(prepared)
        partly = quantize_model(prepared.model, table, ONNXRUNTIME, ["conv2"])
        held = dataclasses.replace(prepared, model=prepared.model.with_proto(partly.proto))
        with pytest.raises(ModelError, match="already holds"):
            self.builder().build(variant(held, Precision.INT8, table=table), tmp_path)
        made = variant(held, Precision.INT8, table=table, existing=ExistingPolicy.COMPLETE)
        sidecar = read_sidecar(self.builder().build(made, tmp_path))
        assert sidecar.kept == ("conv1", "fc")
        assert sidecar.proof.startswith("3 of 3 weighted layers INT8")

    def test_a_sidecar_of_an_earlier_version_is_read(self, built: dict[Precision, Path], tmp_path: Path) -> None:
        """One without the fields that came later."""
        path = built[Precision.INT8]
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        document = json.loads(sidecar_path(path).read_text())
        for name in ("skipped", "kept", "session"):
            del document[name]
        sidecar_path(copy).write_text(json.dumps(document))
        assert self.builder().load(copy, 1).sidecar == read_sidecar(path)

    def test_a_precision_that_is_not_proved_is_a_degradation(
        self, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half(model: object, precision: Precision) -> tuple[ModelProto, tuple[()]]:
            return prepared.model.proto, ()

        monkeypatch.setattr(onnxruntime_backend, "to_half", half)
        sidecar = read_sidecar(self.builder().build(variant(prepared, Precision.FP16), tmp_path))
        assert (sidecar.requested, sidecar.proved) == (Precision.FP16, Precision.FP32)
        assert [d.code for d in sidecar.degradations] == [DegradationCode.PRECISION_NOT_PROVED]

    def test_a_tampered_sidecar_field_is_named(self, built: dict[Precision, Path], tmp_path: Path) -> None:
        path = built[Precision.FP32]
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        document = json.loads(sidecar_path(path).read_text())
        document["requested"] = "fp31"
        sidecar_path(copy).write_text(json.dumps(document))
        with pytest.raises(EngineMismatch, match="requested"):
            self.builder().load(copy, 1)

    def test_int8_weights_are_small(self, built: dict[Precision, Path]) -> None:
        kinds = [
            t.data_type for t in onnx.load(built[Precision.INT8]).graph.initializer if t.name.startswith("w") and t.dims
        ]
        assert onnx.TensorProto.INT8 in kinds

    def test_the_table_is_untouched_by_a_target(self, prepared: Prepared, tmp_path: Path) -> None:
        table = calibrated(prepared)
        before = table.sha256
        for target in (ONNXRUNTIME, TENSORRT):
            path = self.builder().build(variant(prepared, Precision.INT8, target, table=table), tmp_path / target.name)
            assert read_sidecar(path).table_sha256 == before
