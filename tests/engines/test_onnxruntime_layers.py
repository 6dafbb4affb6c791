"""What ONNX Runtime executes, mapped to the model: graphs made by hand, and the bundled models as they are run."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from engine_data import MemoryData, feed, prepared_cnn, table_of, variant
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper

import quantlab.engines.onnxruntime_layers as layers_module
from quantlab.calibrators import CalibrationTable
from quantlab.datasets import SAMPLE_MODELS, Sample
from quantlab.datasets.samples import sample_model
from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.observation import observe, observed_tensors
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder, OnnxRuntimeEngine
from quantlab.engines.onnxruntime_layers import profile_session
from quantlab.engines.onnxruntime_nodes import executed_nodes
from quantlab.engines.protocol import LayerTimed
from quantlab.engines.sidecar import sidecar_path
from quantlab.engines.variant import Variant
from quantlab.errors import EngineMismatch, MeasurementError
from quantlab.graph.lineage import CONVERSIONS
from quantlab.graph.model import load_model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.storage import write_proto
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.harness.alignment import align
from quantlab.precision import Precision
from quantlab.progress import Silent

COMPUTE, REFORMAT, QUANTIZE = LayerKind.COMPUTE, LayerKind.REFORMAT, LayerKind.QUANTIZE
KINDS = {
    "fp32": (Precision.FP32, ONNXRUNTIME),
    "uint8": (Precision.INT8, ONNXRUNTIME),
    "int8": (Precision.INT8, TENSORRT),
    "weights": (Precision.INT8_WEIGHTS, ONNXRUNTIME),
    "fp16": (Precision.FP16, ONNXRUNTIME),
    "fp8": (Precision.FP8, TENSORRT),
}


def images(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((n, 1, 28, 28)).astype(np.float32)


@cache
def prepared_sample(name: str) -> Prepared:
    return prepare(load_model(sample_model(name)))


def build(name: str, kind: str, folder: Path) -> Path:
    precision, target = KINDS[kind]
    return OnnxRuntimeBuilder().build(
        Variant(prepared_sample(name), "onnxruntime", precision, target, sample_table(name)), folder
    )


@cache
def sample_table(name: str) -> CalibrationTable:
    prepared = prepared_sample(name)
    (tensor,) = (value.name for value in prepared.model.proto.graph.input)
    samples = [
        Sample(f"s{i}", {tensor: image}, 0, hashlib.sha256(image.tobytes()).hexdigest())
        for i, image in enumerate(images(4))
    ]
    histograms = observe(prepared, MemoryData(samples), observed_tensors(prepared), 1, Silent())
    return table_of(prepared, histograms, "minmax")


@dataclass(frozen=True)
class Profiled:
    """Layers of one bundled model by kind, and the names of its nodes."""

    nodes: frozenset[str]
    layers: dict[str, tuple[LayerTime, ...]]


@pytest.fixture(scope="module", params=SAMPLE_MODELS)
def profiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    nodes = frozenset(str(node.name) for node in prepared_sample(request.param).model.proto.graph.node)
    found = {}
    for kind in KINDS:
        path = build(request.param, kind, tmp_path_factory.mktemp(kind))
        found[kind] = OnnxRuntimeEngine(path, 1).layer_times({"image": images(1)}, runs=1)
    return Profiled(nodes, found)


class TestBundledModels:
    def test_every_node_of_the_model_is_in_some_layer(self, profiled: Profiled) -> None:
        for kind, layers in profiled.layers.items():
            found = {source for layer in layers if layer.kind is COMPUTE for source in layer.sources}
            assert profiled.nodes - found == set(), kind
            assert all(layer.sources for layer in layers), kind

    def test_each_convolution_and_product_is_one_layer(self, profiled: Profiled) -> None:
        """No layer swallows two of them, and none is computed twice: a wrong neighbour would show here."""
        for kind, layers in profiled.layers.items():
            products = [
                source
                for layer in layers
                for source in layer.sources
                if layer.kind is COMPUTE and source.rpartition("/")[2] in ("Conv", "Gemm", "MatMul", "MatMul_1")
            ]
            assert len(products) == len(set(products)), kind
            for layer in layers:
                if any(part in layer.operator for part in ("Conv", "Gemm", "MatMul")):
                    assert sum(source in products for source in layer.sources) == 1, (kind, layer)

    def test_rows_are_small(self, profiled: Profiled) -> None:
        """All six variants side by side keep the layers apart: GELU with its bias, one kernel, is the largest row."""
        rows = align(list(profiled.layers.values()))
        assert all(all(row.cells) for row in rows)
        assert max(len(row.nodes) for row in rows) <= 6
        assert len(rows) >= len(profiled.nodes) / 3

    def test_kinds(self, profiled: Profiled) -> None:
        counts = {kind: [layer.kind for layer in layers].count(QUANTIZE) for kind, layers in profiled.layers.items()}
        assert counts["fp32"] == counts["weights"] == counts["fp16"] == 0
        assert counts["uint8"] > 0
        for layers in profiled.layers.values():
            for layer in layers:
                assert (layer.kind is QUANTIZE) == (layer.operator in ("QuantizeLinear", "DequantizeLinear"))
                assert layer.operator not in ("ReorderInput", "ReorderOutput", "Cast") or layer.kind is REFORMAT

    def test_precision_is_that_of_the_kernel(self, profiled: Profiled) -> None:
        integer = [
            layer for layer in profiled.layers["uint8"] if layer.operator in ("QLinearConv", "QGemm", "QLinearMatMul")
        ]
        assert integer
        assert {layer.precision for layer in integer} == {"uint8"}
        floats = [layer for layer in profiled.layers["fp32"] if "Conv" in layer.operator or "MatMul" in layer.operator]
        assert {layer.precision for layer in floats} == {"fp32"}


class TestFusionsOfOneModel:
    """What is known of fashion-resnet, by hand: convolutions with sums and activations."""

    def rows(self, kind: str, tmp_path: Path) -> dict[str, list[tuple[str, ...]]]:
        layers = OnnxRuntimeEngine(build("fashion-resnet", kind, tmp_path), 1).layer_times({"image": images(1)}, 1)
        found: dict[str, list[tuple[str, ...]]] = {}
        for layer in layers:
            found.setdefault(layer.operator, []).append(layer.sources)
        return found

    def test_float(self, tmp_path: Path) -> None:
        block = "/features/features.3"
        convolutions = self.rows("fp32", tmp_path)["Conv"]
        assert (f"{block}/conv1/Conv", f"{block}/Relu") in convolutions
        assert (f"{block}/conv2/Conv", f"{block}/Add", f"{block}/Relu_1") in convolutions

    def test_unsigned(self, tmp_path: Path) -> None:
        block = "/features/features.3"
        found = self.rows("uint8", tmp_path)
        assert (f"{block}/conv1/Conv", f"{block}/Relu") in found["QLinearConv"]
        assert (f"{block}/conv2/Conv",) in found["QLinearConv"]
        assert any(f"{block}/Add" in sources for sources in found["QLinearAdd"])

    def test_signed_in_float_kernels(self, tmp_path: Path) -> None:
        block = "/features/features.3"
        found = self.rows("int8", tmp_path)
        assert (f"{block}/conv1/Conv", f"{block}/Relu") in found["FusedConv"]
        around = [sources for sources in found["DequantizeLinear"] if f"{block}/conv1/Conv" in sources]
        assert len(around) == 2  # input and weight


def graph(nodes: list[object], stored: list[TensorProto] | None = None) -> GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 1, 4, 4])], [value("y", TensorProto.FLOAT, None)], stored or []
    )


def weight(name: str, *dims: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, dims, np.ones(int(np.prod(dims))).tolist())


make = helper.make_node
SOURCE = graph(
    [
        make("Conv", ["x", "w1"], ["c1"], name="conv1"),
        make("Relu", ["c1"], ["r1"], name="relu1"),
        make("Conv", ["r1", "w2"], ["c2"], name="conv2"),
        make("Add", ["c2", "r1"], ["a"], name="add"),
        make("Relu", ["a"], ["y"], name="relu2"),
    ],
    [weight("w1", 2, 1, 1, 1), weight("w2", 2, 2, 1, 1)],
)


def sources(optimized: GraphProto, source: GraphProto = SOURCE) -> list[tuple[str, ...]]:
    return [node.sources for node in executed_nodes(optimized, source)]


class TestByHand:
    def test_the_graph_itself(self) -> None:
        assert sources(SOURCE) == [("conv1",), ("relu1",), ("conv2",), ("add",), ("relu2",)]

    def test_activation_behind_a_node_that_kept_its_name(self) -> None:
        fused = [
            make("FusedConv", ["x", "w1"], ["r1"], name="conv1"),
            make("FusedConv", ["r1", "w2", "r1"], ["y"], name="conv2"),
        ]
        assert sources(graph(fused, list(SOURCE.initializer))) == [("conv1", "relu1"), ("conv2", "add", "relu2")]

    def test_blocked_layout(self) -> None:
        """Named after what they wrote when they were made; weights have new names; the sum was fused later."""
        blocked = [
            make("Conv", ["x", "reorder"], ["t1"], name="r1_nchwc"),
            make("Conv", ["t1", "reorder_1", "t1"], ["t2"], name="c2_nchwc"),
            make("ReorderOutput", ["t2"], ["y"], name="ReorderOutput"),
        ]
        found = executed_nodes(graph(blocked, [weight("reorder", 8), weight("reorder_1", 8)]), SOURCE)
        assert [node.sources for node in found[:2]] == [("conv1", "relu1"), ("conv2", "add", "relu2")]
        assert found[2].kind is REFORMAT
        assert found[2].sources == ("conv2", "add", "relu2")

    def test_weights_tell_when_names_do_not(self) -> None:
        anonymous = [make("A", ["x", "w1"], ["t"]), make("B", ["t", "w2"], ["y"])]
        assert sources(graph(anonymous, list(SOURCE.initializer))) == [
            ("conv1", "relu1"),
            ("conv2", "add", "relu2"),
        ]

    def test_nothing_is_known(self) -> None:
        alien = graph([make("Magic", ["x"], ["z"], name="magic")])
        assert sources(alien) == [()]
        assert sources(graph([])) == []

    def test_inserted_transposes_are_reformats_and_the_models_own_are_not(self) -> None:
        source = graph([make("Transpose", ["x"], ["t"], name="flip"), make("Relu", ["t"], ["y"], name="relu")])
        run = graph(
            [
                make("Transpose", ["x"], ["t"], name="flip"),
                make("Transpose", ["t"], ["u"], name="Transpose_token_3"),
                make("Relu", ["u"], ["y"], name="relu"),
            ]
        )
        found = executed_nodes(run, source)
        assert [(node.kind, node.sources) for node in found] == [
            (COMPUTE, ("flip",)),
            (REFORMAT, ("relu",)),
            (COMPUTE, ("relu",)),
        ]

    def test_names_that_are_not_unique_or_hostile(self) -> None:
        source = graph([make("Relu", ["x"], ["t"], name="\x1b[1m"), make("Relu", ["t"], ["y"], name="\x1b[1m")])
        assert sources(source, source) == [("\x1b[1m",), ("\x1b[1m", "\x1b[1m")]


class TestEngine:
    def engine(self, tmp_path: Path, batch: int | str = "n") -> OnnxRuntimeEngine:
        path = OnnxRuntimeBuilder().build(variant(prepared_cnn(batch), Precision.FP32), tmp_path)
        return OnnxRuntimeEngine(path, 1)

    def test_it_is_layer_timed(self, tmp_path: Path) -> None:
        assert isinstance(self.engine(tmp_path), LayerTimed)

    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scratch, here = tmp_path / "scratch", tmp_path / "here"
        scratch.mkdir()
        here.mkdir()
        engine = self.engine(tmp_path)
        before = sorted(tmp_path.iterdir())
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        monkeypatch.chdir(here)
        layers = engine.layer_times(feed(2), runs=3)
        assert layers
        assert (list(scratch.iterdir()), list(here.iterdir())) == ([], [])
        assert sorted(tmp_path.iterdir()) == before

    def test_a_fixed_batch_is_filled(self, tmp_path: Path) -> None:
        assert self.engine(tmp_path, batch=4).layer_times(feed(3), runs=1)

    def test_it_runs_as_the_engine_does(self, tmp_path: Path) -> None:
        """The same sources for one thread and two, and in every run."""
        one, two = (
            [(layer.operator, layer.sources) for layer in OnnxRuntimeEngine(path, threads).layer_times(feed(2), 2)]
            for threads, path in ((1, self.path(tmp_path)), (2, self.path(tmp_path)))
        )
        assert one == two

    def path(self, tmp_path: Path) -> Path:
        return OnnxRuntimeBuilder().build(variant(prepared_cnn(), Precision.FP32), tmp_path)

    def test_a_file_that_changed(self, tmp_path: Path) -> None:
        path = self.path(tmp_path)
        engine = OnnxRuntimeEngine(path, 1)
        sidecar_path(path).unlink()
        with pytest.raises(EngineMismatch, match="has no sidecar"):
            engine.layer_times(feed(1), runs=1)

    def test_inputs_that_do_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(MeasurementError, match="failed to run"):
            self.engine(tmp_path).layer_times({"image": feed(1)["image"]}, runs=1)

    def test_runs_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layers_module, "_MOST_EVENTS", 100)
        with pytest.raises(MeasurementError, match="would be too large"):
            self.engine(tmp_path).layer_times(feed(1), runs=99)
        with pytest.raises(ValueError, match="0 runs"):
            self.engine(tmp_path).layer_times(feed(1), runs=0)

    def test_conversions_are_never_sources(self, tmp_path: Path) -> None:
        path = OnnxRuntimeBuilder().build(variant(prepared_cnn(), Precision.INT8), tmp_path)
        operators = {str(node.name): node.op_type for node in load_model(path).proto.graph.node}
        for layer in OnnxRuntimeEngine(path, 1).layer_times(feed(1), runs=1):
            assert all(operators[source] not in CONVERSIONS for source in layer.sources)


def test_weights_in_files_beside_the_model(tmp_path: Path) -> None:
    """ONNX Runtime reads them from there, and writes the optimized graph's beside that: neither is left changed."""
    proto = prepared_sample("fashion-resnet").model.proto
    files = write_proto(proto, tmp_path / "m.onnx", None, inline_limit_bytes=1000)
    assert len(files) == 2
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = load_model(tmp_path / "m.onnx")
    layers = profile_session(model, "m", {"image": images(1)}, runs=1, threads=1, config={})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    whole = prepared_sample("fashion-resnet").model
    inline = profile_session(whole, "m", {"image": images(1)}, runs=1, threads=1, config={})
    assert [(layer.operator, layer.sources) for layer in layers] == [(one.operator, one.sources) for one in inline]
