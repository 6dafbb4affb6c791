"""Every rule of Q/DQ placement makes graphs that TensorRT-RTX parses and builds, with weights of a byte each."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from qdq_checks import UNLIMITED, noise, quantized, ranges
from qdq_graphs import GRAPHS, Sketch, residual, transformer
from rtx_builder import PACKAGE, REASON, RtxError, build_engine

from quantlab.graph.model import Model
from quantlab.graph.qdq import ExistingPolicy, QuantizationKind, quantize_model
from quantlab.graph.targets import TENSORRT

pytest.importorskip(PACKAGE, reason=REASON)
pytestmark = pytest.mark.tensorrt_rtx


@pytest.mark.parametrize("kind", QuantizationKind)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_rule_builds(name: str, kind: QuantizationKind) -> None:
    result, _ = quantized(GRAPHS[name](), UNLIMITED, kind=kind)
    assert build_engine(result.proto, batch=4).size_bytes > 0


@pytest.mark.parametrize("existing", ["stem", "second", "last"])
def test_completed_models_build(existing: str) -> None:
    model = Model.of(quantized(residual(), TENSORRT, [existing])[0].proto)
    table = ranges(model, noise(model.proto))
    result = quantize_model(model, table, TENSORRT, existing=ExistingPolicy.COMPLETE)
    assert build_engine(result.proto, batch=4).size_bytes > 0


class TestWeights:
    """The log states how many bytes of weights an engine holds: whether Q/DQ was fused into 8-bit layers."""

    @pytest.mark.parametrize("kind", QuantizationKind)
    def test_products(self, kind: QuantizationKind) -> None:
        proto = transformer()
        n_weights = 64 * 192 + 64 * 64 + 2 * 64 * 128
        assert build_engine(proto).weights_bytes > 4 * n_weights
        built = build_engine(quantized(proto, TENSORRT, kind=kind)[0].proto)
        assert n_weights < built.weights_bytes < 1.3 * n_weights

    @pytest.mark.parametrize("kind", QuantizationKind)
    def test_convolutions(self, kind: QuantizationKind) -> None:
        s = Sketch("n", 64, 14, 14)
        hidden = s.add("Relu", "relu", s.conv("first", "x", 64, 64))
        proto = s.model(s.add("Add", "sum", s.conv("second", hidden, 64, 64), s.add("Sigmoid", "skip", "x")))
        n_weights = 2 * 64 * 64 * 9
        assert build_engine(proto).weights_bytes > 4 * n_weights
        built = build_engine(quantized(proto, TENSORRT, kind=kind)[0].proto)
        assert n_weights < built.weights_bytes < 1.2 * n_weights


class TestErrors:
    """What the builder refuses is reported with the node's name, so that the tests above can fail usefully."""

    def test_the_parser_names_the_node(self) -> None:
        s = Sketch("n", 32)
        s.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
        proto = s.model(s.add("DequantizeLinear", "y", "q", "s", "z"))
        with pytest.raises(RtxError, match=r"node 'dynamic' \(DynamicQuantizeLinear\)"):
            build_engine(proto)

    def test_zero_points_are_refused(self) -> None:
        """The rule behind the writer's zeros."""
        s = Sketch("n", 32)
        scale, zero = s.const("s", 0.1), s.const("z", 3, np.int8)
        codes = s.add("QuantizeLinear", "q", "x", scale, zero)
        with pytest.raises(RtxError, match="node 'q'"):
            build_engine(s.model(s.add("DequantizeLinear", "y", codes, scale, zero)))
