"""Strongly typed 16-bit graphs: valid whatever the graph, right where they round, float32 where they must be."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from qdq_checks import UNLIMITED, outputs, prepared_sample, quantized, ranges, sqnr
from qdq_graphs import GRAPHS, Sketch, residual, transformer
from typed_checks import (
    ODD_GRAPHS,
    attention_mask,
    branches,
    check_typed,
    extremes,
    feed,
    layer_norm,
    moved_in_float,
    pooled_image,
    run,
    shared_weight,
    stored,
    unit_vectors,
)

from quantlab.datasets import SAMPLE_MODELS
from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError
from quantlab.graph.half import to_half
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, Optimization, load_model
from quantlab.graph.proof import prove
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.skeleton import typed_graph
from quantlab.graph.targets import TENSORRT
from quantlab.graph.typed import extremes_of, to_typed
from quantlab.graph.typed_emulation import emulate_typed
from quantlab.precision import Precision

BOTH = pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
PAIR = ("QuantizeLinear", "DequantizeLinear")
BITS = {Precision.FP16: 11, Precision.BF16: 8}


def measured(proto: ModelProto, precision: Precision = Precision.FP16, keep: tuple[str, ...] = (), scale: float = 1):
    inputs = feed(proto, scale=scale)
    return to_typed(Model.of(proto), precision, extremes=extremes(proto, inputs), keep=keep), inputs


def node(proto: ModelProto, name: str):
    return next(node for node in proto.graph.node if node.name == name)


def types(proto: ModelProto) -> GraphIndex:
    return GraphIndex(proto.graph, typed_graph(proto))


class TestAnyGraph:
    @BOTH
    @pytest.mark.parametrize("data", ["measured", "not measured"])
    @pytest.mark.parametrize("name", ODD_GRAPHS | GRAPHS)
    def test_is_valid_and_close(self, name: str, data: str, precision: Precision) -> None:
        """Rounding of 16 bits costs 6 dB a bit: from operators of this size at most 15 dB more."""
        proto = (ODD_GRAPHS | GRAPHS)[name]()
        inputs = feed(proto)
        known = extremes(proto, inputs) if data == "measured" else None
        typed = to_typed(Model.of(proto), precision, extremes=known)
        check_typed(proto, typed, precision)
        codes = {degradation.code for degradation in typed.degradations}
        blind = known is None and precision is Precision.FP16
        assert codes == ({DegradationCode.OVERFLOW_NOT_MEASURED} if blind else set())
        if name == "FP16 already":  # its input is what the emulation has no float32 form of
            return
        expected = run(proto, inputs)
        for before, after in zip(expected, run(emulate_typed(typed.proto), inputs), strict=True):
            assert before.dtype == after.dtype
            if before.dtype == np.float32:
                assert sqnr(before, after) > 6.02 * BITS[precision] - 15

    @pytest.mark.parametrize("name", ODD_GRAPHS | GRAPHS)
    def test_onnxruntime_runs_fp16(self, name: str) -> None:
        """Its CPU provider rounds less than the emulation does, never more."""
        proto = (ODD_GRAPHS | GRAPHS)[name]()
        typed, inputs = measured(proto)
        for before, after in zip(run(proto, inputs), run(typed.proto, inputs), strict=True):
            assert before.dtype == after.dtype
            if before.dtype == np.float32:
                assert sqnr(before, after) > 6.02 * 11 - 6

    @pytest.mark.parametrize("kind", [QuantizationKind.INT8, QuantizationKind.FP8])
    @BOTH
    @pytest.mark.parametrize("name", GRAPHS)
    def test_quantized(self, name: str, precision: Precision, kind: QuantizationKind) -> None:
        result, inputs = quantized(GRAPHS[name](), UNLIMITED, kind=kind)
        model = Model.of(result.proto)
        typed = to_typed(model, precision, extremes=None)
        check_typed(result.proto, typed, precision)
        assert codes_of(typed.proto) == codes_of(result.proto), "8-bit weights are what they were"
        for before, after in zip(outputs(model, inputs), outputs(emulate_typed(typed.proto), inputs), strict=True):
            # Values that stand at the edge between two codes change sides: a code is 1/254, or an eighth in FP8.
            assert sqnr(before, after) > (25 if kind is QuantizationKind.INT8 else 20)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_made_up(self, data: st.DataObject) -> None:
        """Any wiring, any nodes kept: valid, without a cast too many, and the same function."""
        s = Sketch(4, 8)
        s.weight("w", 8, 8)
        s.const("axis", 1, np.int64)
        tensors = ["x"]
        for i in range(data.draw(st.integers(2, 12))):
            operator = data.draw(st.sampled_from(["Add", "Mul", "Relu", "Sigmoid", "MatMul", "Transpose", "CumSum"]))
            source = data.draw(st.sampled_from(tensors))
            if operator in ("Add", "Mul"):
                made = s.add(operator, f"n{i}", source, data.draw(st.sampled_from(tensors)))
            elif operator == "MatMul":
                made = s.add(operator, f"n{i}", source, "w")
            elif operator == "Transpose":  # twice, to keep the shape
                made = s.add(operator, f"n{i}", s.add(operator, f"t{i}", source, perm=[1, 0]), perm=[1, 0])
            elif operator == "CumSum":
                made = s.add(operator, f"n{i}", source, "axis")
            else:
                made = s.add(operator, f"n{i}", source)
            tensors.append(made)
        chosen = data.draw(st.lists(st.sampled_from(tensors[1:]), min_size=1, max_size=3, unique=True))
        proto = s.model(*chosen)
        keep = data.draw(st.lists(st.sampled_from([node.name for node in s.nodes]), max_size=4, unique=True))
        precision = data.draw(st.sampled_from([Precision.FP16, Precision.BF16]))
        typed = to_typed(Model.of(proto), precision, extremes=None, keep=keep)
        check_typed(proto, typed, precision)
        assert set(keep) <= set(typed.kept)
        inputs = feed(proto, scale=0.5)
        for before, after in zip(run(proto, inputs), run(emulate_typed(typed.proto), inputs), strict=True):
            error = np.abs(before.astype(np.float64) - after)
            assert (error <= 2.0 ** -BITS[precision] * 64 * max(1.0, float(np.abs(before).max()))).all()


def codes_of(proto: ModelProto) -> dict[str, bytes]:
    kinds = (TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT8E4M3FN)
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in proto.graph.initializer
        if tensor.data_type in kinds
    }


class TestRounding:
    @BOTH
    @pytest.mark.parametrize("name", SAMPLE_MODELS)
    def test_equals_the_emulation(self, name: str, precision: Precision) -> None:
        """Two ways to the same numbers, bit for bit: float32 with rounding written in, and types taken out."""
        prepared, table, images, _ = prepared_sample(name)
        typed = to_typed(prepared.model, precision, extremes=extremes_of(table))
        assert typed.degradations == ()
        image = {"image": images["image"][:24]}
        got = outputs(emulate_typed(typed.proto), image)[0]
        assert np.array_equal(got, outputs(to_half(prepared.model, precision)[0], image)[0])
        exact = outputs(prepared.model, image)[0]
        assert sqnr(exact, got) > (55 if precision is Precision.FP16 else 32)
        if precision is Precision.FP16:
            assert typed.kept == {}, "nothing of these models needs float32"
            assert sqnr(exact, outputs(typed.proto, image)[0]) > sqnr(exact, got)

    @BOTH
    def test_weights_are_stored_in_16_bits(self, precision: Precision) -> None:
        proto = residual()
        typed, _ = measured(proto, precision)
        before, after = stored(proto), stored(typed.proto)
        assert after.keys() == before.keys()
        for name, value in after.items():
            assert value.dtype.name == {Precision.FP16: "float16", Precision.BF16: "bfloat16"}[precision]
            assert np.array_equal(value, before[name].astype(value.dtype))

    def test_a_weight_that_both_types_read_is_stored_twice(self) -> None:
        typed, _ = measured(shared_weight(), keep=("left", "product"))
        check_typed(shared_weight(), typed, Precision.FP16)
        kinds = {name: value.dtype for name, value in stored(typed.proto).items()}
        assert kinds == {"w": np.float32, "w_fp16": np.float16}
        assert node(typed.proto, "left").input[1] == "w"
        assert node(typed.proto, "right").input[1] == "w_fp16"

    def test_one_cast_for_all_readers(self) -> None:
        """The output of a convolution is read by two nodes in float32 and by one in 16 bits."""
        s = Sketch("n", 8)
        hidden = s.add("MatMul", "hidden", "x", s.weight("w", 8, 8))
        names = [s.add("Mul", name, hidden, hidden) for name in ("a", "b", "c")]
        typed, _ = measured(s.model(s.add("Sum", "y", *names)), keep=("a", "b"))
        casts = [n.input[0] for n in typed.proto.graph.node if n.op_type == "Cast"]
        assert casts == ["x", "hidden", "a", "b", "y_fp16"]

    def test_parameters_keep_their_type(self) -> None:
        typed, _ = measured(ODD_GRAPHS["Resize"]())
        resize = next(n for n in typed.proto.graph.node if n.op_type == "Resize")
        assert stored(typed.proto)[resize.input[2]].dtype == np.float32

    def test_subgraphs_read_float32(self) -> None:
        typed, _ = measured(branches())
        index = types(typed.proto)
        chosen = node(typed.proto, "chosen")
        for attribute in chosen.attribute:
            assert all(index.elem_type(name) == TensorProto.FLOAT for name in attribute.g.node[0].input)
        assert index.elem_type(node(typed.proto, "hidden").output[0]) == TensorProto.FLOAT16

    def test_parts_in_16_bits_join(self) -> None:
        """A model's own casts to and from FP16 are gone where both sides are FP16 now."""
        typed, _ = measured(ODD_GRAPHS["FP16 already"]())
        assert [n.name for n in typed.proto.graph.node if n.op_type == "Cast"] == ["x_fp16_Cast", "y_Cast"]

    def test_constants_of_nodes(self) -> None:
        s = Sketch("n", 4)
        s.nodes.append(helper.make_node("Constant", [], ["two"], value_float=2.0))
        s.nodes.append(helper.make_node("Constant", [], ["list"], value_floats=[1.0, 2.0, 3.0, 4.0]))
        value = numpy_helper.from_array(np.float32([4, 3, 2, 1]))
        s.nodes.append(helper.make_node("Constant", [], ["tensor"], value=value))
        product = s.add("Mul", "c", s.add("Mul", "b", s.add("Mul", "a", "x", "two"), "list"), "tensor")
        typed, _ = measured(s.model(product))
        assert {name: v.dtype for name, v in stored(typed.proto).items()} == dict.fromkeys(
            ("two", "list", "tensor"), np.float16
        )
        assert np.array_equal(run(typed.proto, {"x": np.ones((1, 4), np.float32)})[0], [[8, 12, 12, 8]])

    def test_external_weights(self, save_external, build) -> None:
        proto = build.mlp()
        typed = to_typed(load_model(save_external(proto)), Precision.FP16, extremes=None)
        assert {value.dtype.name for value in stored(typed.proto).values()} == {"float16"}
        inputs = {"x": np.ones((2, 8), np.float32)}
        assert sqnr(run(proto, inputs)[0], run(typed.proto, inputs)[0]) > 60


class TestOverflow:
    """A product of values near 300 with themselves, as a loud residual stream has them."""

    def graph(self) -> ModelProto:
        s = Sketch("n", 16)
        hidden = s.add("MatMul", "hidden", "x", s.const("w", np.eye(16) * 300))
        square = s.add("Mul", "square", hidden, hidden)
        return s.model(s.add("MatMul", "y", square, s.const("w2", np.eye(16) / 3e4)))

    def test_a_naive_conversion_overflows(self) -> None:
        proto, inputs = self.graph(), {"x": np.full((1, 16), 2, np.float32)}
        naive = to_typed(Model.of(proto), Precision.FP16, extremes=None)
        assert naive.kept == {}
        (degradation,) = naive.degradations
        assert degradation.code is DegradationCode.OVERFLOW_NOT_MEASURED
        assert degradation.subjects == ("x", "hidden", "square", "y")
        assert not np.isfinite(run(emulate_typed(naive.proto), inputs)[0]).any()
        typed = to_typed(Model.of(proto), Precision.FP16, extremes=extremes(proto, inputs))
        assert list(typed.kept) == ["square", "y"]
        assert typed.kept["square"] == "values beyond 1/4 of FP16's largest (square reaches 3.6e+05)"
        assert np.allclose(run(emulate_typed(typed.proto), inputs)[0], 12, rtol=2e-3)
        assert np.allclose(run(typed.proto, inputs)[0], 12, rtol=2e-3)

    def test_bf16_reaches_as_far_as_float32(self) -> None:
        typed, inputs = measured(self.graph(), Precision.BF16, scale=2)
        assert typed.kept == {} and typed.degradations == ()
        assert np.isfinite(run(emulate_typed(typed.proto), inputs)[0]).all()

    @pytest.mark.parametrize(("value", "kept"), [(16375.0, set()), (16377.0, {"hidden", "square"})])
    def test_a_quarter_of_the_range_is_headroom(self, value: float, kept: set[str]) -> None:
        known = {"x": 1.0, "hidden": value, "square": 1.0, "y": 1.0}
        typed = to_typed(Model.of(self.graph()), Precision.FP16, extremes=known)
        assert set(typed.kept) == kept

    def test_values_that_are_all_subnormal(self) -> None:
        known = {"x": 1.0, "hidden": 1.0, "square": 6e-5, "y": 1.0}
        typed = to_typed(Model.of(self.graph()), Precision.FP16, extremes=known)
        assert "subnormal" in typed.kept["square"]
        assert to_typed(Model.of(self.graph()), Precision.BF16, extremes=known).kept == {}

    def test_unmeasured_tensors_are_named(self) -> None:
        typed = to_typed(Model.of(self.graph()), Precision.FP16, extremes={"x": 1.0, "hidden": 1.0, "y": 1.0})
        (degradation,) = typed.degradations
        assert degradation.subjects == ("square",) and "no range of them" in degradation.message

    def test_what_an_activation_bounds_needs_no_measure(self) -> None:
        """A minmax-only table has Relu outputs and not the inputs that they are fused with."""
        s = Sketch("n", 8)
        relu = s.add("Relu", "relu", s.add("MatMul", "hidden", "x", s.weight("w", 8, 8)))
        proto = s.model(s.add("Softmax", "y", s.add("Reshape", "moved", relu, s.const("s", [0, 8], np.int64))))
        assert to_typed(Model.of(proto), Precision.FP16, extremes={"x": 1.0, "relu": 3.0}).degradations == ()

    def test_weights_beyond_the_format(self) -> None:
        s = Sketch("n", 4)
        proto = s.model(s.add("MatMul", "y", s.add("MatMul", "h", "x", s.const("w", np.eye(4) * 7e4)), "w"))
        typed = to_typed(Model.of(proto), Precision.FP16, extremes={"x": 1e-4, "h": 7.0, "y": 100.0})
        assert typed.kept["h"] == "a constant beyond FP16's largest value (w reaches 7e+04)"

    def test_weights_that_vanish(self) -> None:
        """Measured by energy: a few small weights among normal ones do not count, a tensor of small ones does."""
        s = Sketch("n", 64)
        small = s.const("small", s.rng.standard_normal((64, 64)) * 1e-6)
        some = np.where(s.rng.random((64, 64)) < 0.3, 1e-7, s.rng.standard_normal((64, 64)))
        first = s.add("MatMul", "first", "x", small)
        typed, _ = measured(s.model(s.add("MatMul", "second", "x", s.const("some", some)), first), scale=100)
        assert list(typed.kept) == ["first"]
        assert "too small for FP16 (small loses 0.01" in typed.kept["first"]

    def test_masks_of_the_lowest_number(self) -> None:
        typed, _ = measured(attention_mask())
        assert list(typed.kept) == ["masked", "attention"]
        infinite, inputs = measured(attention_mask(-np.inf))
        assert infinite.kept == {}
        assert np.isfinite(run(emulate_typed(infinite.proto), inputs)[0]).all()


class TestPrecision:
    @pytest.mark.parametrize("power", [True, False])
    def test_a_normalization_that_is_written_out(self, power: bool) -> None:
        """Rows of 300: in FP16 their squares are infinite. Rows of 1e-4: their squares, and epsilon, are zero."""
        proto = layer_norm(power=power, epsilon=1e-12)
        everything = {"mean", "centred", "square", "variance", "guarded", "root", "normal"}
        for scale in (300.0, 1e-4):
            typed, inputs = measured(proto, scale=scale)
            assert set(typed.kept) == everything
            expected = run(proto, inputs)[0]
            assert sqnr(expected, run(emulate_typed(typed.proto), inputs)[0]) > 45
            naive = run(emulate_typed(all_half(proto)), inputs)[0]
            assert not np.isfinite(naive).all() or sqnr(expected, naive) < 20

    def test_lengths_and_their_guards(self) -> None:
        """A vector of length 0: 0 / 1e-12 is 0, and 0 / 0, which FP16 makes of it, is not."""
        proto = unit_vectors()
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "b")
        bias.CopyFrom(numpy_helper.from_array(np.zeros(16, np.float32), "b"))
        typed, _ = measured(proto)
        assert list(typed.kept) == ["length", "bound", "y"]
        inputs = {"x": np.zeros((1, 32), np.float32)}
        assert np.array_equal(run(emulate_typed(typed.proto), inputs)[0], np.zeros((1, 16)))
        assert np.isnan(run(emulate_typed(all_half(proto)), inputs)[0]).all()

    def test_sums_of_many(self) -> None:
        assert "4,096 values" in measured(pooled_image(64))[0].kept["pool"]
        assert measured(pooled_image(32))[0].kept == {}
        assert "1,024 values" in measured(pooled_image(32), Precision.BF16)[0].kept["pool"]
        unknown, _ = measured(symbolic(pooled_image(32)))
        assert unknown.kept["pool"] == "it sums over axes of unknown size"

    def test_a_mean_whose_sum_overflows(self) -> None:
        proto = pooled_image(32)
        known = extremes(proto, feed(proto)) | {"pool": 100.0}
        assert "reaches 1.02e+05" in to_typed(Model.of(proto), Precision.FP16, extremes=known).kept["pool"]

    def test_operators_that_only_move_follow(self) -> None:
        typed, _ = measured(moved_in_float())
        assert list(typed.kept) == ["total", "relu", "turned", "again"]
        assert [n.input[0] for n in typed.proto.graph.node if n.op_type == "Cast"] == ["x", "hidden", "again", "y_fp16"]

    def test_native_normalization_and_attention_stay_16_bits(self) -> None:
        """What kernels accumulate in float32 anyway."""
        typed, inputs = measured(transformer())
        assert typed.kept == {}
        assert sqnr(run(transformer(), inputs)[0], run(emulate_typed(typed.proto), inputs)[0]) > 60


def symbolic(proto: ModelProto) -> ModelProto:
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    for dim in proto.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "one"
    return proto


def all_half(proto: ModelProto) -> ModelProto:
    """Every float32 tensor as FP16, as a converter without rules does it."""
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    (given,), (output,) = result.graph.input, result.graph.output
    for n in result.graph.node:
        for i, name in enumerate(n.input):
            n.input[i] = "given" if name == given.name else name
        for i, name in enumerate(n.output):
            n.output[i] = "made" if name == output.name else name
    result.graph.node.insert(0, helper.make_node("Cast", [given.name], ["given"], to=TensorProto.FLOAT16))
    result.graph.node.append(helper.make_node("Cast", ["made"], [output.name], to=TensorProto.FLOAT))
    return result


class TestAsked:
    def test_names_and_patterns(self) -> None:
        typed, _ = measured(residual(), keep=("second", "*.relu"))
        assert typed.kept == dict.fromkeys(["stem.relu", "first.relu", "second"], "asked for")
        check_typed(residual(), typed, Precision.FP16)

    def test_a_name_that_no_node_has(self) -> None:
        with pytest.raises(ConfigError, match="no node is named 'secund'") as caught:
            measured(residual(), keep=("secund",))
        assert caught.value.hint == "did you mean 'second'?"

    def test_everything(self) -> None:
        typed, inputs = measured(residual(), keep=("*",))
        assert [n.op_type for n in typed.proto.graph.node].count("Cast") == 0
        assert np.array_equal(run(typed.proto, inputs)[0], run(residual(), inputs)[0])

    def test_other_precisions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="16-bit"):
            to_typed(Model.of(residual()), Precision.INT8, extremes=None)


class TestQuantizedModels:
    def typed(self, precision: Precision = Precision.FP16, kind: QuantizationKind = QuantizationKind.INT8):
        """A residual network in 8 bits."""
        result, inputs = quantized(residual(), UNLIMITED, kind=kind)
        return result.proto, to_typed(Model.of(result.proto), precision, extremes=None), inputs

    @BOTH
    @pytest.mark.parametrize("kind", QuantizationKind)
    def test_pairs_are_float32_between_casts(self, kind: QuantizationKind, precision: Precision) -> None:
        """Scales and codes are what they were, all else is 16 bits; one cast for each tensor and direction."""
        before, typed, _ = self.typed(precision, kind)
        assert typed.kept == {}
        half = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}[precision]
        index, old, new = types(typed.proto), stored(before), stored(typed.proto)
        pairs = [n for n in typed.proto.graph.node if n.op_type in PAIR]
        assert [n.name for n in pairs] == [n.name for n in before.graph.node if n.op_type in PAIR]
        for n in pairs:
            scale = new[n.input[1]]
            assert scale.dtype == np.float32 and np.array_equal(scale, old[n.input[1]])
            if n.op_type == "QuantizeLinear" and n.input[0] not in index.inputs:
                cast = index.producer[n.input[0]]
                assert cast.op_type == "Cast" and index.elem_type(cast.input[0]) == half
            if n.op_type == "DequantizeLinear":
                (cast,) = index.consumers[n.output[0]]
                assert cast.op_type == "Cast" and index.elem_type(cast.output[0]) == half
        for n in typed.proto.graph.node:
            if n.op_type not in (*PAIR, "Cast"):
                assert {index.elem_type(name) for name in (*n.input, *n.output)} == {half}, n.name

    @pytest.mark.parametrize("kind", QuantizationKind)
    def test_casts_are_shared(self, kind: QuantizationKind) -> None:
        """Of each activation with a pair two casts, of each weight one, and one at the output.

        The input has no cast but where something reads it in 16 bits.
        """
        before, typed, _ = self.typed(kind=kind)
        operators = [n.op_type for n in before.graph.node]
        casts = [n.input[0] for n in typed.proto.graph.node if n.op_type == "Cast"]
        activations = operators.count("QuantizeLinear")
        weights = operators.count("DequantizeLinear") - activations
        read_as_half = kind is QuantizationKind.INT8_WEIGHTS
        from_input = 1 if not read_as_half else 0  # its pair reads the float32 input itself
        assert len(casts) == len(set(casts)) == 2 * activations - from_input + weights + 1 + read_as_half

    @pytest.mark.parametrize("opset", [13, 17])
    def test_the_opset_is_not_raised_for_scales(self, opset: int) -> None:
        s = Sketch("n", 16, opset=opset)
        scale, zero = s.const("s", 0.02), s.const("z", 0, np.int8)
        given = s.add("DequantizeLinear", "xd", s.add("QuantizeLinear", "xq", "x", scale, zero), scale, zero)
        codes = s.const("codes", s.rng.integers(-100, 100, (16, 16)), np.int8)
        proto = s.model(s.add("MatMul", "y", given, s.add("DequantizeLinear", "wd", codes, scale, zero)))
        typed = to_typed(Model.of(proto), Precision.FP16, extremes=None)
        assert typed.proto.opset_import[0].version == opset
        assert prove(typed.proto).precision is Precision.INT8_FP16
        inputs = {"x": s.rng.standard_normal((4, 16)).astype(np.float32)}
        assert sqnr(run(proto, inputs)[0], run(typed.proto, inputs)[0]) > 55

    def test_stored_float_weights_are_quantized_from_float32(self) -> None:
        """As PyTorch writes them: a pair behind a float weight. Rounding first would change codes."""
        s = Sketch("n", 16)
        scale, zero = s.const("s", 0.02), s.const("z", 0, np.int8)
        codes = s.add("QuantizeLinear", "wq", s.weight("w", 16, 16), scale, zero)
        activation = s.add("DequantizeLinear", "xd", s.add("QuantizeLinear", "xq", "x", scale, zero), scale, zero)
        proto = s.model(s.add("MatMul", "y", activation, s.add("DequantizeLinear", "wd", codes, scale, zero)))
        typed = to_typed(Model.of(proto), Precision.FP16, extremes=None)
        check_typed(proto, typed, Precision.FP16)
        assert typed.kept == {}
        assert stored(typed.proto)["w"].dtype == np.float32
        assert prove(typed.proto).precision is Precision.INT8_FP16

    def test_accuracy_of_the_samples(self) -> None:
        """FP16 around INT8 costs next to nothing: codes at an edge fall on either side, which is worth about 1 dB."""
        prepared, table, images, _ = prepared_sample("fashion-resnet")
        proto = quantize_model(prepared.model, table, TENSORRT).proto
        typed = to_typed(prepared.model.with_proto(proto), Precision.FP16, extremes=None)
        exact = outputs(prepared.model, images)[0]
        loss = sqnr(exact, outputs(proto, images)[0]), sqnr(exact, outputs(emulate_typed(typed.proto), images)[0])
        assert loss[0] > 32 and loss[1] > loss[0] - 1

    @pytest.mark.parametrize("optimize", [Optimization.NONE, Optimization.ALL])
    def test_onnxruntime_runs_int8_fp16(self, optimize: Optimization) -> None:
        before, typed, inputs = self.typed()
        assert sqnr(outputs(before, inputs)[0], run(typed.proto, inputs, optimize)[0]) > 30


class TestEmulation:
    def test_rounds_every_result(self) -> None:
        typed, inputs = measured(transformer())
        emulation = emulate_typed(typed.proto)
        onnx.checker.check_model(emulation, full_check=True)
        got = run(emulation, inputs)[0]
        assert np.array_equal(got, got.astype(np.float16).astype(np.float32))
        assert {v.dtype for v in stored(emulation).values()} <= {np.dtype(np.float32), np.dtype(np.int64)}

    def test_refuses_what_it_cannot_widen(self) -> None:
        typed, _ = measured(ODD_GRAPHS["FP16 already"]())
        with pytest.raises(ValueError, match="'h' is a 16-bit input"):
            emulate_typed(typed.proto)


class TestProof:
    @BOTH
    def test_all_layers(self, precision: Precision) -> None:
        proof = prove(measured(residual(), precision)[0].proto)
        assert (proof.precision, proof.elsewhere, proof.shares) == (precision, precision, ((precision, 1.0),))
        assert proof.text == f"4 of 4 weighted layers {precision.value.upper()}"

    def test_layers_and_nodes_that_stayed_float32(self) -> None:
        proof = prove(measured(residual(), keep=("second", "skip"))[0].proto)
        assert proof.precision is Precision.FP16
        assert proof.text == (
            "3 of 4 weighted layers FP16; fp32: second; "
            "multiply-accumulates: 75.0 % fp16, 25.0 % fp32; 1 other nodes fp32"
        )
        assert proof.named(Precision.FP32) == ("second",) and proof.float32_nodes == 1

    def test_most_arithmetic_decides(self) -> None:
        proof = prove(measured(residual(), keep=("stem", "second", "last"))[0].proto)
        assert proof.precision is None and proof.text.startswith("mixed: 3 of 4 weighted layers FP32")

    @pytest.mark.parametrize(
        ("kind", "precision", "expected"),
        [
            (QuantizationKind.INT8, Precision.FP16, Precision.INT8_FP16),
            (QuantizationKind.INT8, Precision.BF16, Precision.INT8),
            (QuantizationKind.FP8, Precision.FP16, Precision.FP8),
            (QuantizationKind.INT8_WEIGHTS, Precision.FP16, Precision.INT8_WEIGHTS),
        ],
    )
    def test_quantized(self, kind: QuantizationKind, precision: Precision, expected: Precision) -> None:
        """All layers quantized, so that only what is between them tells INT8 from INT8 with FP16."""
        result, _ = quantized(residual(), UNLIMITED, kind=kind)
        proof = prove(to_typed(Model.of(result.proto), precision, extremes=None).proto)
        assert proof.precision is expected
        assert {found for _, found in proof.layers} == {kind_of(kind)}
        assert proof.elsewhere is precision
        assert f"; {precision.value} between the layers" in proof.text

    def test_partly_quantized(self) -> None:
        result, _ = quantized(residual(), UNLIMITED, exclude=["second"])
        proof = prove(to_typed(Model.of(result.proto), Precision.FP16, extremes=None).proto)
        assert proof.precision is Precision.INT8_FP16
        assert proof.text.startswith("3 of 4 weighted layers INT8; fp16: second; multiply-accumulates: 75.0 % int8")

    def test_a_relu_between_breaks_the_origin(self) -> None:
        """Values that were computed with are no 8-bit operands any more."""
        result, _ = quantized(residual(), UNLIMITED)
        typed = to_typed(Model.of(result.proto), Precision.FP16, extremes=None).proto
        last = node(typed, "last")
        typed.graph.node.append(helper.make_node("Sigmoid", [last.input[0]], ["computed"], name="computed"))
        last.input[0] = "computed"
        assert "last" in dict(prove(typed).layers) and dict(prove(typed).layers)["last"] is not Precision.INT8

    def test_int8_without_fp16_stays_int8(self) -> None:
        result, _ = quantized(residual(), UNLIMITED)
        proof = prove(result.proto)
        assert (proof.precision, proof.elsewhere) == (Precision.INT8, Precision.FP32)
        assert proof.text == "4 of 4 weighted layers INT8"

    def test_emulated_int8_fp16(self) -> None:
        result, _ = quantized(residual(), UNLIMITED)
        proto, _ = to_half(Model.of(result.proto), Precision.FP16)
        assert prove(proto).precision is Precision.INT8_FP16


def kind_of(kind: QuantizationKind) -> Precision:
    return {
        QuantizationKind.INT8: Precision.INT8,
        QuantizationKind.FP8: Precision.FP8,
        QuantizationKind.INT8_WEIGHTS: Precision.INT8_WEIGHTS,
    }[kind]


def test_extremes_of_tables() -> None:
    """Of observed values; imported ranges are chosen ones, and say nothing of the largest value."""
    proto = residual()
    inputs = feed(proto)
    table = ranges(Model.of(proto), {name: np.asarray(value, np.float32) for name, value in inputs.items()})
    found = extremes_of(table)
    assert found == pytest.approx(extremes(proto, inputs)) and found is not None and "x" in found
    imported = dataclasses.replace(table.provenance, source="old.calib")
    assert extremes_of(dataclasses.replace(table, provenance=imported)) is None
