"""The OpenVINO backend: contract, proof of the precision, and what happens without it."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from engine_data import feed, prepared_cnn, target_of, variant
from onnx import TensorProto, helper, numpy_helper
from test_engine_suite import EngineSuite

import quantlab.engines.openvino as backend
import quantlab.engines.openvino_runtime as openvino_runtime
from quantlab.degradation import DegradationCode
from quantlab.engines.layer_time import LayerKind
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.openvino import HINT, OpenVinoBuilder, OpenVinoEngine
from quantlab.engines.openvino_layers import CompiledLayers, operands
from quantlab.engines.protocol import EngineBuilder, LayerTimed
from quantlab.engines.sidecar import read_sidecar, sidecar_path
from quantlab.engines.tensorrt.inspector import EngineLayer, LayerSummary
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, EngineBuildError, EngineMismatch, MeasurementError
from quantlab.files import sha256_file
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile
from quantlab.precision import Execution, Precision
from quantlab.versions import installed_version
from quantlab.workflow.compare import open_engines

needs_openvino = pytest.mark.skipif(installed_version("openvino") is None, reason="needs the package openvino")

PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT8_WEIGHTS)


def has(precision: Precision) -> bool:
    """Whether OpenVINO has a precision on this processor."""
    wanted = {Precision.BF16: "BF16", Precision.FP16: "FP16"}.get(precision, "FP32")
    return wanted in openvino_runtime.load_openvino().capabilities


def made_of(prepared: Prepared, precision: Precision, target: TargetProfile | None = None) -> Variant:
    return dataclasses.replace(variant(prepared, precision, target or target_of(precision)), backend="openvino")


@needs_openvino
class TestConformance(EngineSuite):
    """What every backend promises."""

    @property
    def precisions(self) -> tuple[Precision, ...]:  # type: ignore[override]
        return tuple(precision for precision in PRECISIONS if has(precision))

    @pytest.fixture(params=PRECISIONS, ids=str)
    def precision(self, request: pytest.FixtureRequest) -> Precision:
        chosen: Precision = request.param
        if not has(chosen):
            pytest.skip(f"OpenVINO has no {chosen} on this processor")
        return chosen

    @pytest.mark.parametrize("calibrated_precision", [Precision.INT8])
    def test_quantized_activations_need_a_table(
        self, calibrated_precision: Precision, prepared: Prepared, tmp_path: Path
    ) -> None:
        super().test_quantized_activations_need_a_table(calibrated_precision, prepared, tmp_path)

    def builder(self) -> EngineBuilder:
        return OpenVinoBuilder()

    def break_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise EngineBuildError("broken in the middle")

        monkeypatch.setattr(backend, "vouch", broken)

    def test_everything_is_set_and_recorded(self, path: Path, precision: Precision) -> None:
        sidecar = read_sidecar(path)
        hints = {Precision.BF16: "bf16", Precision.FP16: "f16"}
        assert dict(sidecar.session) == {
            HINT: hints.get(precision, "f32"),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        environment = sidecar.environment
        assert environment["openvino"] == openvino_runtime.load_openvino().version
        assert "FP32" in environment["openvino capabilities"].split()
        assert environment["openvino device"]

    def test_layers_and_a_run_are_in_the_proof(self, path: Path, precision: Precision) -> None:
        proof = read_sidecar(path).proof
        named = {Precision.BF16: "bf16", Precision.FP16: "fp16", Precision.INT8: "uint8"}.get(precision, "fp32")
        assert f"operands of the 3 weighted ones: 3 {named}" in proof
        assert "against float64" in proof
        assert ("OpenVINO runs 3 of 3 with integer kernels" in proof) is (precision is Precision.INT8)

    def test_layers_are_timed(self, path: Path, precision: Precision) -> None:
        engine = self.load(path)
        assert isinstance(engine, LayerTimed)
        times = engine.layer_times(feed(2), runs=3)
        computing = {name for one in times if one.kind is LayerKind.COMPUTE for name in one.sources}
        assert {"conv1", "conv2", "fc"} <= computing
        assert all(one.ms >= 0 for one in times)
        expected = {Precision.BF16: "bf16", Precision.FP16: "fp16", Precision.INT8: "uint8"}.get(precision, "fp32")
        assert {one.precision for one in times if one.operator == "Convolution"} == {expected}

    @pytest.mark.parametrize("wrong", [np.float64, np.float16])
    def test_other_types_are_no_inputs(self, path: Path, wrong: type[np.generic]) -> None:
        inputs = {name: value.astype(wrong) for name, value in feed(2).items()}
        with pytest.raises(MeasurementError, match="failed to run") as caught:
            self.load(path).run(inputs)
        assert "'image' of type float" in str(caught.value.got)


@needs_openvino
class TestProof:
    """What a file is said to compute in, it computes in."""

    @pytest.fixture(scope="class")
    def prepared(self) -> Prepared:
        return prepared_cnn()

    def test_a_hint_of_bf16_is_found_out(
        self, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As OpenVINO takes by itself on processors that have BF16."""
        if not has(Precision.BF16):
            pytest.skip("OpenVINO has no BF16 on this processor")
        options = {**backend.plugin_options(Precision.FP32), HINT: "bf16"}
        monkeypatch.setattr(backend, "plugin_options", lambda _: options)
        path = OpenVinoBuilder().build(made_of(prepared, Precision.FP32), tmp_path)
        sidecar = read_sidecar(path)
        assert (sidecar.requested, sidecar.proved) == (Precision.FP32, Precision.BF16)
        assert sidecar.proof.startswith("NOT FP32: BF16; computes in BF16 (error")
        assert [one.code for one in sidecar.degradations] == [DegradationCode.PRECISION_NOT_PROVED]

    def test_a_run_that_contradicts_the_layers_proves_nothing(
        self, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """BF16 kernels whose results are FP32's: one of both lies."""
        if not has(Precision.BF16):
            pytest.skip("OpenVINO has no BF16 on this processor")
        true = backend._Session(
            openvino_runtime.load_openvino(),
            OpenVinoBuilder().build(made_of(prepared, Precision.FP32), tmp_path),
            "true",
            backend.plugin_options(Precision.FP32),
            1,
        )
        monkeypatch.setattr(backend._Session, "run", lambda _, inputs, run=true.run: run(inputs))
        sidecar = read_sidecar(OpenVinoBuilder().build(made_of(prepared, Precision.BF16), tmp_path))
        assert sidecar.proved is Precision.FP32
        assert sidecar.proof.startswith("NOT BF16: FP32; the run contradicts the graph, which says BF16")

    def test_int8_that_is_not_its_graph_is_not_proved(
        self, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = backend._Session.run

        def wrong(session: backend._Session, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            return {name: value[:, ::-1] * 1.5 for name, value in real(session, inputs).items()}

        monkeypatch.setattr(backend._Session, "run", wrong)
        sidecar = read_sidecar(OpenVinoBuilder().build(made_of(prepared, Precision.INT8), tmp_path))
        assert sidecar.proved is None
        assert "the run contradicts the graph, which says INT8" in sidecar.proof

    @pytest.mark.parametrize("target", [ONNXRUNTIME, TENSORRT], ids=lambda target: target.name)
    def test_both_rules_run_in_integer_kernels(self, prepared: Prepared, tmp_path: Path, target: TargetProfile) -> None:
        sidecar = read_sidecar(OpenVinoBuilder().build(made_of(prepared, Precision.INT8, target), tmp_path))
        assert (sidecar.proved, sidecar.execution, sidecar.target) == (Precision.INT8, Execution.NATIVE, target.name)
        n = 3 - len(sidecar.skipped)
        assert f"OpenVINO runs {n} of {n} with integer kernels" in sidecar.proof

    def test_symmetric_int8_is_native_here_alone(self, prepared: Prepared, tmp_path: Path) -> None:
        """The same file: ONNX Runtime's CPU kernels have no symmetric activations."""
        found = {}
        for builder in (OpenVinoBuilder(), OnnxRuntimeBuilder()):
            made = dataclasses.replace(made_of(prepared, Precision.INT8, TENSORRT), backend=builder.backend)
            path = builder.build(made, tmp_path)
            found[read_sidecar(path).execution] = sha256_file(path)
        assert set(found) == {Execution.NATIVE, Execution.EMULATED}
        assert len(set(found.values())) == 1

    @pytest.mark.parametrize(
        ("flags", "execution"), [("avx512_bf16", Execution.NATIVE), ("avx512f", Execution.EMULATED)]
    )
    def test_bf16_is_native_where_the_processor_has_it(
        self,
        prepared: Prepared,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        flags: str,
        execution: Execution,
    ) -> None:
        if not has(Precision.BF16):
            pytest.skip("OpenVINO has no BF16 on this processor")
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor : 0\nflags : fpu {flags} sse\n")
        monkeypatch.setattr(openvino_runtime, "_CPU_INFO", info)
        sidecar = read_sidecar(OpenVinoBuilder().build(made_of(prepared, Precision.BF16), tmp_path))
        assert sidecar.execution is execution
        assert ("this CPU states none for BF16" in sidecar.proof) is (execution is Execution.EMULATED)

    def test_a_file_of_another_processor_is_refused(self, prepared: Prepared, tmp_path: Path) -> None:
        """One that was proved BF16 and that is computed in FP32 here."""
        path = OpenVinoBuilder().build(made_of(prepared, Precision.FP32), tmp_path)
        record = sidecar_path(path)
        record.write_text(record.read_text().replace('"proved": "fp32"', '"proved": "bf16"'))
        with pytest.raises(EngineMismatch, match="proved to compute in BF16, not on this processor") as caught:
            OpenVinoBuilder().load(path, 1)
        assert caught.value.got == "most layers run in fp32"

    def test_a_node_that_no_layer_names_is_counted_with_its_reader(self) -> None:
        """Of the two products of attention in one kernel, OpenVINO names the second."""
        make = helper.make_node
        nodes = [
            make("MatMul", ["q", "k"], ["scores"], name="first"),
            make("Softmax", ["scores"], ["shares"], name="softmax"),
            make("MatMul", ["shares", "v"], ["out"], name="second"),
            make("MatMul", ["out", "w"], ["last"], name="third"),
        ]
        graph = helper.make_graph(nodes, "attention", [], [])
        layers = (
            EngineLayer("second", "Subgraph", "int8", True, False, False, "jit_avx512_i8"),
            EngineLayer("third", "FullyConnected", "fp32", True, False, False, "undef_f32"),
        )
        compiled = CompiledLayers(LayerSummary(layers, True, {}), (("softmax", "second"), ("third",)))
        assert compiled.integer_nodes(graph, ("first", "second", "third")) == 2
        assert compiled.integer_nodes(graph, ("third", "not there")) == 0

    @pytest.mark.parametrize(
        ("kernel", "precision", "expected"),
        [
            ("brgconv_avx512_1x1_I8", "u8", "uint8"),
            ("undef_i8", "i8", "int8"),
            ("undef_f32", "i8", "fp32"),
            ("brgconv_avx512_dw_bf16", "bf16", "bf16"),
            ("jit_avx512_I8", "f32", "fp32"),
            ("ref_any", "", "unknown"),
        ],
    )
    def test_operands_are_the_wider_of_what_is_stated(self, kernel: str, precision: str, expected: str) -> None:
        assert operands(kernel, precision) == expected


@needs_openvino
class TestRefusals:
    @pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP8, Precision.INT8_FP16])
    def test_what_it_does_not_compute(self, precision: Precision, tmp_path: Path) -> None:
        made = made_of(prepared_cnn(), precision)
        with pytest.raises(BackendUnavailable, match=f"cannot build {precision}") as caught:
            OpenVinoBuilder().build(made, tmp_path)
        assert "use another --backend" in str(caught.value.got)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
    def test_what_the_processor_lacks(
        self, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OpenVINO would take the hint and compute in something else."""
        runtime = dataclasses.replace(openvino_runtime.load_openvino(), capabilities=("FP32", "INT8"), device="A CPU")
        monkeypatch.setattr(backend, "load_openvino", lambda: runtime)
        with pytest.raises(BackendUnavailable, match=f"cannot build {precision}") as caught:
            OpenVinoBuilder().build(made_of(prepared_cnn(), precision), tmp_path)
        assert str(caught.value.got).startswith(f"OpenVINO has no {precision.upper()} on this CPU (A CPU: FP32, INT8)")

    def test_a_model_that_openvino_does_not_take(self, tmp_path: Path) -> None:
        """Its words come without the places in its source."""
        value = helper.make_tensor_value_info
        nodes = [helper.make_node("Frobnicate", ["x"], ["y"], domain="my.own")]
        graph = helper.make_graph(
            nodes, "own", [value("x", TensorProto.FLOAT, ["n", 2])], [value("y", TensorProto.FLOAT, ["n", 2])]
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
        path = tmp_path / "own.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        with pytest.raises(EngineBuildError, match=r"OpenVINO .* cannot compile own\.onnx") as caught:
            openvino_runtime.load_openvino().compile(path, backend.plugin_options(Precision.FP32), 1)
        assert "No conversion rule found for operations: my.own.Frobnicate" in str(caught.value.got)
        assert "src/" not in str(caught.value.got)

    def test_an_option_that_it_does_not_take(self, tmp_path: Path) -> None:
        path = OpenVinoBuilder().build(made_of(prepared_cnn(), Precision.FP32), tmp_path)
        with pytest.raises(EngineBuildError, match="cannot compile") as caught:
            openvino_runtime.load_openvino().compile(path, {HINT: "f19"}, 1)
        assert str(caught.value.got).startswith("Wrong value f19 for property key INFERENCE_PRECISION_HINT")


@needs_openvino
class TestRuns:
    def test_several_threads_share_an_engine(self, tmp_path: Path) -> None:
        engine = OpenVinoBuilder().load(OpenVinoBuilder().build(made_of(prepared_cnn(), Precision.FP32), tmp_path), 1)
        inputs = [feed(1 + seed % 3, seed) for seed in range(24)]
        expected = [engine.run(one)["scores"] for one in inputs]
        start = threading.Barrier(4)

        def work(i: int) -> None:
            start.wait()
            for number in range(i, len(inputs), 4):
                np.testing.assert_array_equal(engine.run(inputs[number])["scores"], expected[number])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert isinstance(engine, OpenVinoEngine)
        assert 1 <= len(engine._session._idle) <= 4

    def test_inputs_of_an_earlier_call_are_not_taken(self, tmp_path: Path) -> None:
        """An infer request keeps them."""
        engine = OpenVinoBuilder().load(OpenVinoBuilder().build(made_of(prepared_cnn(), Precision.FP32), tmp_path), 1)
        inputs = feed(2)
        engine.run(inputs)
        with pytest.raises(MeasurementError) as caught:
            engine.run({"image": inputs["image"]})
        assert (caught.value.got, caught.value.expected) == ("inputs image", "image, side")

    def test_types_and_order_of_outputs_are_kept(self, tmp_path: Path) -> None:
        """OpenVINO itself gives bfloat16 as float16, and knows outputs by sets of names."""
        kinds = {
            "wide": TensorProto.DOUBLE, "best": TensorProto.INT64, "brain": TensorProto.BFLOAT16,
            "half": TensorProto.FLOAT16, "same": TensorProto.FLOAT,
        }  # fmt: skip
        make, value = helper.make_node, helper.make_tensor_value_info
        nodes = [make("MatMul", ["x", "w"], ["same"]), make("ArgMax", ["same"], ["best"], axis=1, keepdims=0)]
        nodes += [make("Cast", ["same"], [name], to=kinds[name]) for name in ("wide", "brain", "half")]
        weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
        outputs = [value(name, kind, ["n"] if name == "best" else ["n", 3]) for name, kind in kinds.items()]
        graph = helper.make_graph(nodes, "types", [value("x", TensorProto.FLOAT, ["n", 3])], outputs, [weight])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        prepared = prepare(Model.of(proto))
        path = OpenVinoBuilder().build(made_of(prepared, Precision.FP32), tmp_path)
        engine = OpenVinoBuilder().load(path, 1)
        got = engine.run({"x": np.array([[1, 2.5, -3]], np.float32)})
        assert tuple(got) == engine.outputs == tuple(kinds)
        assert [array.dtype for array in got.values()] == [
            np.dtype(kind) for kind in (np.float64, np.int64, ml_dtypes.bfloat16, np.float16, np.float32)
        ]
        for name in ("wide", "brain", "half", "same"):
            assert got[name].astype(np.float64).tolist() == [[1, 2.5, -3]]
        assert got["best"].tolist() == [1]

    def test_bfloat16_inputs(self, tmp_path: Path) -> None:
        value = helper.make_tensor_value_info
        nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
        graph = helper.make_graph(
            nodes, "brain", [value("x", TensorProto.BFLOAT16, ["n", 2])], [value("y", TensorProto.FLOAT, ["n", 2])]
        )
        path = tmp_path / "brain.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        session = backend._Session(openvino_runtime.load_openvino(), path, "brain", {HINT: "f32"}, 1)
        given = np.array([[1.5, -2]], ml_dtypes.bfloat16)
        assert session.run({"x": given})["y"].tolist() == [[1.5, -2]]

    def test_variants_of_both_backends_are_opened_together(self, tmp_path: Path) -> None:
        prepared = prepared_cnn()
        paths = [
            OnnxRuntimeBuilder().build(variant(prepared, Precision.FP32), tmp_path),
            OpenVinoBuilder().build(made_of(prepared, Precision.INT8), tmp_path),
        ]
        with open_engines(paths, 1) as engines:
            reference, candidate = (engine.run(feed(20))["scores"].astype(np.float64) for engine in engines)
        assert 10 * np.log10(np.sum(reference**2) / np.sum((candidate - reference) ** 2)) > 20

    def test_nothing_is_printed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = OpenVinoBuilder().build(made_of(prepared_cnn(), Precision.INT8), tmp_path)
        OpenVinoBuilder().load(path, 2).run(feed(2))
        assert capfd.readouterr() == ("", "")
