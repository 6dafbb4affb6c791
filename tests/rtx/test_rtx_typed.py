"""TensorRT-RTX builds every strongly typed variant of whole models, and stores weights in the size of their type."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from efficientnet_graph import efficientnet_lite0
from onnx import ModelProto, TensorProto, helper
from qdq_checks import UNLIMITED, prepared_sample, quantized, ranges
from qdq_graphs import GRAPHS, residual
from rtx_builder import PACKAGE, REASON, RtxError, build_engine
from typed_checks import ODD_GRAPHS

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import SAMPLE_MODELS
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.proof import prove
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.targets import TENSORRT
from quantlab.graph.typed import Typed, extremes_of, to_typed
from quantlab.precision import Precision

pytest.importorskip(PACKAGE, reason=REASON)
pytestmark = pytest.mark.tensorrt_rtx

HALVES = (Precision.FP16, Precision.BF16)
KINDS = (QuantizationKind.INT8, QuantizationKind.FP8)
REFUSED = ("detector",)
"""Graphs that the parser refuses in float32 too."""


@functools.cache
def model(name: str) -> tuple[Prepared, CalibrationTable]:
    if name != "efficientnet-lite0":
        return prepared_sample(name)[:2]
    prepared = prepare(Model.of(efficientnet_lite0()))
    image = np.random.default_rng(5).standard_normal((1, 3, 224, 224), np.float32)
    return prepared, ranges(prepared.model, {"image": image})


def typed(name: str, precision: Precision, kind: QuantizationKind | None = None) -> Typed:
    prepared, table = model(name)
    proto = prepared.model.proto
    if kind is not None:
        proto = quantize_model(prepared.model, table, TENSORRT, kind=kind).proto
    result = to_typed(prepared.model.with_proto(proto), precision, extremes=extremes_of(table))
    assert result.degradations == ()
    return result


def n_weights(proto: ModelProto) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in proto.graph.initializer if len(tensor.dims) > 1)


class TestModels:
    @pytest.mark.parametrize("precision", HALVES)
    @pytest.mark.parametrize("name", [*SAMPLE_MODELS, "efficientnet-lite0"])
    def test_16_bits(self, name: str, precision: Precision) -> None:
        result = typed(name, precision)
        assert prove(result.proto).precision is precision
        built = build_engine(result.proto)
        assert 2 * n_weights(result.proto) <= built.weights_bytes < 2.3 * n_weights(result.proto)

    @pytest.mark.parametrize("name", [*SAMPLE_MODELS, "efficientnet-lite0"])
    def test_int8_fp16(self, name: str) -> None:
        """As many bytes of weights as with float32 around: those of depthwise convolutions are padded."""
        prepared, table = model(name)
        result = typed(name, Precision.FP16, QuantizationKind.INT8)
        assert prove(result.proto).precision is Precision.INT8_FP16
        built = build_engine(result.proto)
        plain = build_engine(quantize_model(prepared.model, table, TENSORRT).proto)
        assert n_weights(result.proto) <= built.weights_bytes < plain.weights_bytes
        if name in ("fashion-resnet", "fashion-vit"):
            assert built.weights_bytes < 1.3 * n_weights(result.proto)

    @pytest.mark.parametrize("name", [*SAMPLE_MODELS, "efficientnet-lite0"])
    def test_fp8_with_fp16(self, name: str) -> None:
        """Layers that FP8 leaves out have FP16 weights."""
        result = typed(name, Precision.FP16, QuantizationKind.FP8)
        proof = prove(result.proto)
        assert (proof.precision, proof.elsewhere) == (Precision.FP8, Precision.FP16)
        built = build_engine(result.proto)
        assert n_weights(result.proto) <= built.weights_bytes < 1.6 * n_weights(result.proto)

    @pytest.mark.parametrize("kind", KINDS)
    def test_8_bits_with_bf16(self, kind: QuantizationKind) -> None:
        assert build_engine(typed("fashion-vit", Precision.BF16, kind).proto).size_bytes > 0


class TestGraphs:
    @pytest.mark.parametrize("precision", HALVES)
    @pytest.mark.parametrize("name", [name for name in ODD_GRAPHS | GRAPHS if name not in REFUSED])
    def test_odd_graphs(self, name: str, precision: Precision) -> None:
        proto = (ODD_GRAPHS | GRAPHS)[name]()
        assert build_engine(to_typed(Model.of(proto), precision, extremes=None).proto, batch=3).size_bytes > 0

    @pytest.mark.parametrize("kind", QuantizationKind)
    @pytest.mark.parametrize("name", GRAPHS)
    def test_every_rule_of_placement(self, name: str, kind: QuantizationKind) -> None:
        result, _ = quantized(GRAPHS[name](), UNLIMITED, kind=kind)
        assert build_engine(to_typed(Model.of(result.proto), Precision.FP16, extremes=None).proto, 4).size_bytes > 0

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("keep", ["stem", "first", "second", "sum", "last", "*"])
    def test_kept_layers_and_pairs(self, keep: str, kind: QuantizationKind) -> None:
        """Dequantized to FP16, cast, and computed in float32."""
        result, _ = quantized(residual(), UNLIMITED, kind=kind)
        proto = to_typed(Model.of(result.proto), Precision.FP16, extremes=None, keep=[keep]).proto
        assert build_engine(proto, 4).size_bytes > 0


class TestRefusals:
    """Why the rules are what they are: if one of these builds, its rule can go."""

    @pytest.mark.parametrize("operator", ["HardSwish", "Mish"])
    def test_activations_without_bf16(self, operator: str) -> None:
        nodes = [
            helper.make_node("Cast", ["x"], ["h"], name="cast", to=TensorProto.BFLOAT16),
            helper.make_node(operator, ["h"], ["a"], name="activation"),
            helper.make_node("Cast", ["a"], ["y"], name="back", to=TensorProto.FLOAT),
        ]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "g", [value("x", TensorProto.FLOAT, [1, 8])], [value("y", TensorProto.FLOAT, [1, 8])]
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        with pytest.raises(RtxError, match="activation"):
            build_engine(proto)
