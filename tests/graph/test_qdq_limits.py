"""Layers that a target's size limits keep in floating point: which, why, and that it is said."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto
from qdq_checks import UNLIMITED, Graph, quantized
from qdq_graphs import Sketch, transformer

from quantlab.errors import EngineBuildError
from quantlab.graph.qdq import QuantizationKind
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT

INT8, FP8 = QuantizationKind.INT8, QuantizationKind.FP8


def with_layer(build_layer: str, *sizes: int, **attributes: int) -> ModelProto:
    """A layer of the given sizes behind one that is always quantized, so that a graph without it is no error."""
    if build_layer == "Conv":
        n_in, n_out, kernel = sizes
        s = Sketch("n", 32, 12, 12)
        hidden = s.conv("anchor", "x", 32, 32)
        hidden = s.add("Slice", "cut", hidden, *_cut(s, 1, n_in))
        return s.model(s.add("Relu", "y", s.conv("layer", hidden, n_in, n_out, kernel, **attributes)))
    rows, k, n = sizes
    s = Sketch(rows or "n", 32)
    hidden = s.add("Slice", "cut", s.add("MatMul", "anchor", "x", s.weight("anchor.w", 32, 32)), *_cut(s, 1, k))
    return s.model(s.add("MatMul", "layer", hidden, s.weight("w", k, n)))


def _cut(s: Sketch, axis: int, size: int) -> list[str]:
    values = {"starts": [0], "ends": [size], "axes": [axis]}
    return [s.const(f"cut.{name}", value, np.int64) for name, value in values.items()]


class TestProducts:
    @pytest.mark.parametrize("kind", [INT8, FP8])
    @pytest.mark.parametrize(
        ("sizes", "reason"),
        [
            ((0, 16, 16), None),
            ((7, 16, 16), None),
            ((0, 15, 32), "its K or N is below 16 (M=n K=15 N=32)"),
            ((0, 32, 15), "its K or N is below 16 (M=n K=32 N=15)"),
            ((0, 32, 1), "a product with a vector (M=n K=32 N=1) is bound by memory, not arithmetic"),
            ((0, 1, 32), "a product with a vector (M=n K=1 N=32) is bound by memory, not arithmetic"),
        ],
    )
    def test_by_size(self, sizes: tuple[int, int, int], reason: str | None, kind: QuantizationKind) -> None:
        result, _ = quantized(with_layer("MatMul", *sizes), TENSORRT, kind=kind)
        assert result.skipped == ({} if reason is None else {"layer": reason})
        assert ("layer" in result.layers) is (reason is None)
        assert result.degradations == (), "a rule of the target is no degradation"
        if reason is not None:
            assert Graph(result.proto).dequantizer(Graph(result.proto).named("layer").input[1]) is None

    def test_a_known_batch_of_one_is_a_vector(self) -> None:
        with pytest.raises(EngineBuildError, match="no layer could be quantized") as caught:
            quantized(with_layer("MatMul", 1, 32, 32), TENSORRT)
        assert "2 too small or large; anchor: a product with a vector (M=1 K=32 N=32)" in str(caught.value)

    def test_one_row_of_several_samples_is_a_matrix(self) -> None:
        """A [n, 1, 32] input: the rows of all samples are multiplied at once."""
        s = Sketch("n", 1, 32)
        result, _ = quantized(s.model(s.add("MatMul", "layer", "x", s.weight("w", 32, 32))), TENSORRT)
        assert result.layers == ("layer",)

    def test_gemm_with_transposed_operands(self) -> None:
        """K is the weight's second axis with transB: 32, not 24."""
        s = Sketch("n", 32)
        result, _ = quantized(s.model(s.add("Gemm", "layer", "x", s.weight("w", 24, 32), transB=1)), TENSORRT)
        assert result.layers == ("layer",)
        s = Sketch("n", 32)
        anchor = s.add("MatMul", "anchor", "x", s.weight("a", 32, 32))
        result, _ = quantized(s.model(s.add("Gemm", "layer", anchor, s.weight("w", 8, 32), transB=1)), TENSORRT)
        assert result.skipped == {"layer": "its K or N is below 16 (M=n K=32 N=8)"}

    def test_a_constant_vector(self) -> None:
        s = Sketch("n", 32)
        anchor = s.add("MatMul", "anchor", "x", s.weight("a", 32, 32))
        result, _ = quantized(s.model(s.add("MatMul", "layer", anchor, s.weight("w", 32))), TENSORRT)
        assert list(result.skipped) == ["layer"]
        assert result.degradations == ()

    @pytest.mark.parametrize(("tokens", "skipped"), [(512, []), (513, ["mixed", "scores"])])
    def test_int8_attention_stays_float_beyond_512_tokens(self, tokens: int, skipped: list[str]) -> None:
        result, _ = quantized(transformer(tokens=tokens), TENSORRT)
        assert sorted(result.skipped) == skipped

    def test_fp8_attention_has_a_largest_head(self) -> None:
        for head, kept in ((256, True), (257, False)):
            s = Sketch("n", 300, head)
            s.add("MatMul", "anchor", "x", s.weight("a", head, 32))
            turned = s.add("Transpose", "turned", "x", perm=[0, 2, 1])
            proto = s.model("anchor", s.add("MatMul", "scores", s.add("Tanh", "t", "x"), turned))
            result, _ = quantized(proto, TENSORRT, kind=FP8)
            assert ("scores" in result.layers) is kept


class TestConvolutions:
    @pytest.mark.parametrize(
        ("sizes", "group", "int8", "fp8"),
        [
            ((16, 16, 3), 1, True, False),
            ((17, 17, 3), 1, True, True),
            ((32, 32, 5), 1, True, True),
            ((32, 32, 6), 1, True, False),  # 36 taps
            ((8, 16, 3), 1, True, False),  # a multiple of 8 on one side, 16 on the other
            ((12, 20, 3), 1, False, False),
            ((8, 8, 3), 1, False, False),  # neither 16 wide nor the graph's input
            ((32, 32, 3), 32, True, False),  # depthwise
            ((32, 32, 1), 32, False, False),
            ((28, 28, 3), 28, False, False),
        ],
    )
    def test_by_channels(self, sizes: tuple[int, int, int], group: int, int8: bool, fp8: bool) -> None:
        proto = with_layer("Conv", *sizes, group=group)
        for kind, expected in ((INT8, int8), (FP8, fp8)):
            result, _ = quantized(proto, TENSORRT, kind=kind)
            assert ("layer" in result.layers) is expected
            assert ("layer" in result.skipped) is not expected

    @pytest.mark.parametrize(("n_in", "n_out", "expected"), [(3, 32, True), (1, 8, True), (3, 20, False)])
    def test_the_first_convolution_may_have_few_channels(self, n_in: int, n_out: int, expected: bool) -> None:
        s = Sketch("n", n_in, 8, 8)
        first = s.conv("first", "x", n_in, n_out)
        result, _ = quantized(s.model(s.conv("second", first, n_out, 16)), TENSORRT)
        assert ("first" in result.layers) is expected

    def test_kernels_of_unequal_sides(self) -> None:
        s = Sketch("n", 3, 8, 8)
        first = s.add("Conv", "first", "x", s.weight("w", 16, 3, 1, 3))
        result, _ = quantized(s.model(s.conv("second", first, 16, 16)), TENSORRT)
        assert list(result.skipped) == ["first"]


class TestReporting:
    def test_other_targets_have_no_limits(self) -> None:
        for target in (UNLIMITED, ONNXRUNTIME):
            result, _ = quantized(with_layer("MatMul", 0, 15, 3), target)
            assert (result.skipped, result.layers) == ({}, ("anchor", "layer"))

    def test_an_excluded_layer_is_not_skipped_too(self) -> None:
        result, _ = quantized(with_layer("MatMul", 0, 15, 3), TENSORRT, ["layer"])
        assert (result.skipped, result.excluded) == ({}, ("layer",))

    def test_weights_alone_have_no_limits(self) -> None:
        result, _ = quantized(with_layer("MatMul", 0, 15, 3), TENSORRT, kind=QuantizationKind.INT8_WEIGHTS)
        assert result.layers == ("anchor", "layer")

    def test_shapes_are_inferred_where_the_model_has_none(self) -> None:
        proto = with_layer("Conv", 12, 20, 3)
        del proto.graph.value_info[:]
        result, _ = quantized(proto, TENSORRT)
        assert list(result.skipped) == ["layer"]
