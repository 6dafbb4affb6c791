"""Every lint rule on a graph that breaks it alone, and none on graphs that are as they should be."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from lint_graphs import EXAMPLES, Example, clean, fp8_at_opset_17, one_pair, one_weight, residual
from lint_net import CHANNELS, Net
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from project_tree import ROOT
from test_qdq import noise, ranges

from quantlab.calibrators.cache_lint import CACHE_RULES
from quantlab.datasets import sample_model
from quantlab.engines.kernels import integer_kernels
from quantlab.errors import ModelError
from quantlab.findings import Finding, Severity
from quantlab.graph.checks import check_structure
from quantlab.graph.lint import RULES, lint_model, rules_of
from quantlab.graph.model import Model, Optimization, load_model, open_session
from quantlab.graph.prepare import prepare
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import TARGETS, TENSORRT

SAMPLES = ("fashion-resnet", "fashion-mobilenet")


def lint(proto: ModelProto, target: str = "tensorrt") -> tuple[Finding, ...]:
    return lint_model(Model.of(proto), TARGETS[target])


def rules(proto: ModelProto, target: str = "tensorrt") -> set[str]:
    return {finding.rule for finding in lint(proto, target)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.rule}-{example.where}")
def test_rule(example: Example) -> None:
    found = lint(example.make(), example.target)
    assert {finding.rule for finding in found} == {example.rule, *example.others}, "\n".join(map(str, found))
    first = next(finding for finding in found if finding.rule == example.rule)
    assert first.where[:1] == ((example.where,) if example.where else ())
    assert example.says in first.message


@pytest.mark.parametrize("target", TARGETS)
def test_clean_graphs(target: str) -> None:
    assert lint(clean(target), target) == ()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLES)
def test_what_quantlab_writes_is_clean(name: str, target: str) -> None:
    model = prepare(load_model(sample_model(name))).model
    assert {finding.severity for finding in lint_model(model, TARGETS[target])} <= {Severity.INFO}
    written = quantize_model(model, ranges(model, noise(model.proto)), TARGETS[target]).proto
    assert [str(found) for found in lint(written, target) if found.severity is not Severity.INFO] == []


@pytest.mark.parametrize("name", SAMPLES)
def test_float_models_get_no_finding_of_quantized_ones(name: str) -> None:
    assert rules(load_model(sample_model(name)).proto) == {"batchnorm-not-folded"}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[dict[str, NDArray[np.float32]]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.feeds, None)


def quantized_by_onnxruntime(folder: Path, **options: object) -> ModelProto:
    source = sample_model("fashion-resnet")
    feed = noise(load_model(source).proto)
    quantize_static(str(source), str(folder / "q.onnx"), Reader([feed]), quant_format=QuantFormat.QDQ, **options)
    return load_model(folder / "q.onnx").proto


@pytest.mark.filterwarnings("ignore")
class TestOtherProducers:
    def test_onnxruntime_defaults_for_tensorrt(self, tmp_path: Path) -> None:
        """Asymmetric activations, INT32 biases, one scale a weight, pairs before batch norms: nothing is missed."""
        proto = quantized_by_onnxruntime(tmp_path)
        counts = Counter(finding.rule for finding in lint(proto) if finding.severity is not Severity.INFO)
        zeros = {
            tensor.name
            for tensor in proto.graph.initializer
            if tensor.name.endswith("_zero_point") and numpy_helper.to_array(tensor).any()
        }
        shifted = [
            node for node in proto.graph.node if "Linear" in node.op_type and node.input[2:3] and node.input[2] in zeros
        ]
        norms = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
        biases = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"} & {
            tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT32
        }
        assert counts.pop("zero-point-not-zero") == len(shifted) > 50
        assert counts.pop("bias-int32") == len(biases) > 10
        assert counts.pop("pair-inside-fusion") == norms > 10
        assert counts.pop("weight-per-tensor") > 10
        assert counts == {}

    def test_the_fixes_that_the_linter_names_remove_the_errors(self, tmp_path: Path) -> None:
        extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        proto = quantized_by_onnxruntime(tmp_path, per_channel=True, extra_options=extra)
        left = {finding.rule for finding in lint(proto) if finding.severity is not Severity.INFO}
        assert left == {"pair-inside-fusion"}

    def test_integer_operators(self, tmp_path: Path) -> None:
        source = sample_model("fashion-resnet")
        feed = noise(load_model(source).proto)
        path = tmp_path / "q.onnx"
        quantize_static(str(source), str(path), Reader([feed]), quant_format=QuantFormat.QOperator)
        proto = load_model(path).proto
        named = {found.where[0] for found in lint(proto) if found.rule == "integer-operator"}
        assert {node.name for node in proto.graph.node if node.op_type == "QLinearConv"} <= named
        assert not any(found.severity is Severity.ERROR for found in lint(proto, "onnxruntime"))


class TestOnnxRuntimeDoes:
    """What the rules of target onnxruntime say, asked of ONNX Runtime."""

    @staticmethod
    def net(axis: int = 0, bias_factor: float = 1.0) -> Net:
        net = Net("onnxruntime")
        data = net.pair("x", "in")
        weight = net.weight("conv_w", net.values(CHANNELS, CHANNELS, 3, 3), axis)
        scales = next(numpy_helper.to_array(each) for each in net.stored if each.name == "conv_w_dq_scale")
        codes = net.store("codes", np.arange(CHANNELS), "int32")
        bias = net.quantizer(
            "DequantizeLinear", codes, "bias_dq", scales * np.float32(net.scale * bias_factor), None, "int32", 0
        )
        net.conv(data, "conv", weight, bias)
        return net

    @staticmethod
    def kernels(proto: ModelProto, folder: Path) -> int:
        path = folder / "m.onnx"
        onnx.save(proto, path)
        return integer_kernels(path)

    @staticmethod
    def gap(proto: ModelProto) -> float:
        """How far the optimized graph is from the graph as it is written, as a share of the largest value."""
        feed = {"x": np.random.default_rng(1).standard_normal((1, CHANNELS, 8, 8), np.float32)}
        model = Model.of(proto)
        fast, exact = (
            open_session(model, threads=1, optimize=optimize).run(None, feed)[0]
            for optimize in (Optimization.ALL, Optimization.NONE)
        )
        return float(np.abs(fast - exact).max() / np.abs(exact).max())

    def test_a_clean_layer_runs_in_integers(self, tmp_path: Path) -> None:
        net = self.net()
        proto = net.model(net.pair("conv_out", "end"))
        assert rules(proto, "onnxruntime") == set()
        assert self.kernels(proto, tmp_path) == 1
        assert self.gap(proto) < 0.02

    def test_weight_axis_gives_wrong_results(self) -> None:
        net = self.net(axis=1)
        proto = net.model(net.pair("conv_out", "end"))
        assert "weight-axis" in rules(proto, "onnxruntime")
        assert self.gap(proto) > 0.1

    def test_bias_scale_keeps_the_layer_in_float(self, tmp_path: Path) -> None:
        net = self.net(bias_factor=2.0)
        proto = net.model(net.pair("conv_out", "end"))
        assert rules(proto, "onnxruntime") == {"bias-scale"}
        assert self.kernels(proto, tmp_path) == 0

    def test_a_float_output_keeps_the_layer_in_float(self, tmp_path: Path) -> None:
        net = self.net()
        proto = net.model(net.node("Sigmoid", ["conv_out"], "act"))
        assert rules(proto, "onnxruntime") == {"output-float"}
        assert self.kernels(proto, tmp_path) == 0


class TestNotFound:
    """What looks like a fault and is none."""

    def test_skip_quantized_and_branch_left(self) -> None:
        assert rules(residual(quantize_branch=False, quantize_skip=True)) == set()

    def test_a_sum_that_is_not_quantized_needs_no_quantized_skip(self) -> None:
        net = Net()
        first = net.node("Sigmoid", [net.layer("x", "one")], "act")
        total = net.node("Add", [net.layer(first, "two"), first], "add")
        assert rules(net.model(net.node("Sigmoid", [total], "end"))) == set()

    def test_per_tensor_weights_that_lose_nothing(self) -> None:
        values = np.random.default_rng(0).uniform(-1, 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        assert rules(one_weight(values, None)) == set()

    def test_a_transposed_weight_keeps_its_axis(self) -> None:
        for axis, expected in ((0, set()), (1, {"weight-axis"})):
            net = Net()
            net.inputs[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])
            weight = net.node("Transpose", [net.weight("w", net.values(64, 32), axis)], "turn", perm=[1, 0])
            assert rules(net.model(net.node("MatMul", [net.pair("x", "in"), weight], "fc"))) == expected

    def test_a_weight_on_the_left(self) -> None:
        net = Net()
        net.inputs[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 40])
        weight = net.weight("w", net.values(64, 32), 0)
        assert rules(net.model(net.node("MatMul", [weight, net.pair("x", "in")], "fc"))) == set()

    def test_float_weights_behind_a_pair(self) -> None:
        net = Net()
        values = net.values(CHANNELS, CHANNELS, 3, 3)
        scale = np.abs(values).max(axis=(1, 2, 3)) / 127
        data = net.pair("x", "in")
        weight = net.pair(net.store("w", values), "w", scale, np.zeros(CHANNELS), axis=0)
        assert rules(net.model(net.conv(data, "conv", weight))) == set()

    def test_parameters_in_constant_nodes(self) -> None:
        net = Net()
        scale = net.node("Constant", [], "scale", value_float=0.1)
        zero = net.node("Constant", [], "zero", value=helper.make_tensor("", TensorProto.INT8, [], [0]))
        codes = net.node("QuantizeLinear", ["x", scale, zero], "q")
        assert rules(net.model(net.conv(net.node("DequantizeLinear", [codes, scale, zero], "dq"), "conv"))) == set()

    def test_fp8_with_its_opset(self) -> None:
        proto = fp8_at_opset_17()
        proto.opset_import[0].version = 19
        assert rules(proto) == set()

    def test_fixed_shapes_and_listed_weights_of_ir_3(self) -> None:
        net = Net(opset=13, ir_version=3)
        net.conv("x", "conv", net.store("w", net.values(CHANNELS, CHANNELS, 3, 3)), bias=None)
        net.inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [CHANNELS, CHANNELS, 3, 3]))
        assert rules(net.model("conv_out")) == set()

    def test_sparse_channels_are_no_outliers(self) -> None:
        net = Net()
        values = net.values(CHANNELS, CHANNELS, 3, 3)
        values[:, 2:] = 0
        net.conv("x", "conv", net.store("w", values))
        assert rules(net.model("conv_out")) == set()


def test_subgraphs_are_linted() -> None:
    """A scale of the outer graph is constant in the inner one, and a fault in the inner one is found."""
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    scale, zero = net.store("scale", np.float32(0.1)), net.store("zero", 4, "int8")
    branches = []
    for name in ("then", "else"):
        nodes = [
            helper.make_node("QuantizeLinear", ["x", scale, zero], [f"{name}_codes"], name=f"{name}_q"),
            helper.make_node("DequantizeLinear", [f"{name}_codes", scale, zero], [f"{name}_out"], name=f"{name}_dq"),
        ]
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, name, [], [output]))
    found = lint(net.model(net.node("If", ["flag"], "if", then_branch=branches[0], else_branch=branches[1])))
    assert {finding.rule for finding in found} == {"zero-point-not-zero"}
    assert {finding.where[0] for finding in found} == {"then_q", "then_dq", "else_q", "else_dq"}


def test_external_weights(tmp_path: Path) -> None:
    onnx.save(one_pair(zero=3), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = lint_model(load_model(tmp_path / "m.onnx"), TENSORRT)
    assert {finding.rule for finding in found} == {"zero-point-not-zero"}


def mutate(proto: ModelProto, rng: np.random.Generator) -> None:
    """Break one thing: a tensor's shape or type, a connection, an attribute, a node, or a name."""
    graph = proto.graph
    node = graph.node[rng.integers(len(graph.node))]
    match int(rng.integers(6)):
        case 0 | 1:
            tensor = graph.initializer[rng.integers(len(graph.initializer))]
            dtype = rng.choice(["float32", "int8", "uint8", "int32", "float16", "int64"])
            shape = rng.integers(0, 4, rng.integers(0, 5))
            tensor.CopyFrom(numpy_helper.from_array(rng.integers(0, 9, shape).astype(dtype), tensor.name))
        case 2:
            other = graph.node[rng.integers(len(graph.node))]
            if node.input and other.output:
                node.input[rng.integers(len(node.input))] = other.output[0]
        case 3:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("axis", int(rng.integers(-9, 9))))
        case 4:
            node.op_type = str(rng.choice(["Conv", "Gemm", "MatMul", "Add", "MaxPool", "Transpose", "Concat", "Clip"]))
        case _:
            node.name = ""
            if len(node.input) > 2:
                node.input[2] = ""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(4))
def test_broken_graphs_give_findings_and_no_crash(seed: int, target: str) -> None:
    """Whatever passes the check of a loaded model is linted, however senseless it is."""
    rng = np.random.default_rng(seed)
    n_linted = 0
    for _ in range(100):
        proto = clean(target)
        for _ in range(rng.integers(1, 4)):
            mutate(proto, rng)
        try:
            check_structure(proto, "model")
        except ModelError:
            continue
        for other in TARGETS.values():
            lint_model(Model.of(proto), other)
        n_linted += 1
    assert n_linted > 20


class TestRules:
    def test_every_rule_has_an_example(self) -> None:
        assert {example.rule for example in EXAMPLES} == {rule.name for rule in RULES}

    def test_names(self) -> None:
        names = [rule.name for rule in RULES]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)

    def test_every_rule_holds_somewhere_and_is_reachable(self) -> None:
        assert {rule for target in TARGETS.values() for rule in rules_of(target)} == set(RULES)

    def test_texts_are_clauses(self) -> None:
        for rule in RULES:
            for text in (rule.why, rule.fix):
                assert text and text[-1] not in ".;" and text[0] == text[0].strip()

    def test_every_rule_is_explained(self) -> None:
        """docs/lint.md has a section for each rule and no other, with its severities, what, why and fix."""
        text = (ROOT / "docs/lint.md").read_text(encoding="utf-8")
        sections = {part.split("`")[1]: part for part in text.split("\n### ")[1:]}
        assert list(sections) == [rule.name for rule in RULES]
        assert re.findall(r"^\| `([a-z0-9-]+)` \| (?:error|warning|info) \|", text, re.MULTILINE) == list(CACHE_RULES)
        for rule in RULES:
            severities = {target: rule.severity(target) for target in TARGETS}
            stated = ", ".join(f"{target}: {severity}" for target, severity in severities.items() if severity)
            _, line, *parts = sections[rule.name].split("\n\n")
            assert (rule.name, line) == (rule.name, stated)
            assert [part.split(":**")[0] for part in parts[:3]] == ["**What", "**Why", "**Fix"], rule.name
            for said, part in ((rule.why, parts[1]), (rule.fix, parts[2])):
                assert said.casefold() in " ".join(part.replace("`", "").split()).casefold(), rule.name
