"""Networks from ONNX and from Python code, with TensorRT-RTX's own parser."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_data import cnn
from onnx import ModelProto, TensorProto, helper

from quantlab.engines.tensorrt.config import Session
from quantlab.engines.tensorrt.flavour import TENSORRT_RTX, load_flavour
from quantlab.engines.tensorrt.network import (
    described_network,
    fill_network,
    find_network_function,
    graph_sha256,
    network_inputs,
    parse_onnx,
)
from quantlab.engines.tensorrt.options import Typing
from quantlab.engines.tensorrt.profiles import NetworkInput
from quantlab.errors import ConfigError, EngineBuildError
from quantlab.graph.model import Model, load_model

pytestmark = pytest.mark.tensorrt_rtx


@pytest.fixture
def session() -> Session:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13 (Linux on x86-64)")
    return Session.open(load_flavour(TENSORRT_RTX))


def parse(session: Session, proto: ModelProto) -> tuple[NetworkInput, ...]:
    return parse_onnx(session, proto, Model.of(proto), Typing.STRONG).inputs


def with_operator(name: str, domain: str = "") -> ModelProto:
    proto = cnn()
    proto.graph.node[3].op_type, proto.graph.node[3].domain = name, domain
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


class TestParser:
    def test_inputs(self, session: Session) -> None:
        assert parse(session, cnn()) == (NetworkInput("image", (None, 3, 8, 8)), NetworkInput("side", (None, 4)))

    def test_an_input_whose_contents_are_a_shape(self, session: Session) -> None:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Reshape", ["x", "size"], ["y"], name="reshape")],
            "reshaped",
            [value("x", TensorProto.FLOAT, ["n", 6]), value("size", TensorProto.INT64, [2])],
            [value("y", TensorProto.FLOAT, [None, None])],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert parse(session, proto) == (NetworkInput("x", (None, 6)), NetworkInput("size", (2,), values=True))

    def test_unknown_operator_is_named_with_its_node(self, session: Session) -> None:
        with pytest.raises(EngineBuildError, match="cannot parse cnn: no support for MyRelu") as caught:
            parse(session, with_operator("MyRelu", "my.ops"))
        assert str(caught.value.got) == (
            "node 'relu' (MyRelu), number 3: Plugin not found, are the plugin name, version, and namespace correct?"
        )
        assert "--plugin" in str(caught.value.hint)

    def test_unsupported_operator_of_onnx(self, session: Session) -> None:
        with pytest.raises(EngineBuildError, match="no support for Det") as caught:
            parse(session, with_operator("Det"))
        assert "node 'relu' (Det), number 3: the operator, or this use of it, is not supported" in str(caught.value)

    def test_external_weights(self, session: Session, tmp_path: Path) -> None:
        """A graph whose weights are in a file of their own gives the same engine."""
        path = tmp_path / "cnn.onnx"
        onnx.save_model(
            cnn(), path, save_as_external_data=True, location="cnn.weights", size_threshold=0, convert_attribute=False
        )
        model = load_model(path)
        assert model.data_folder == tmp_path
        network = parse_onnx(session, model.proto, model, Typing.STRONG)
        (tmp_path / "cnn.weights").unlink()  # what is built needs it no more
        proto = cnn()
        inline = parse_onnx(session, proto, Model.of(proto), Typing.STRONG)
        for ours, expected in ((network, inline), (inline, network)):
            assert ours.inputs == expected.inputs
            assert ours.native.num_layers == expected.native.num_layers
        assert len(build(session, network.native)) == len(build(session, inline.native))

    def test_hash_is_that_of_the_graph_and_its_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "cnn.onnx"
        hashes = set()
        for scale in (1.0, 2.0):
            proto = cnn()
            weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(scale)
            proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
            onnx.save_model(proto, path, save_as_external_data=True, location=f"{scale}.bin", size_threshold=0)
            model = load_model(path)
            for tensor in model.proto.graph.initializer:
                for entry in tensor.external_data:
                    entry.value = entry.value if entry.key != "location" else "same.bin"
            hashes.add(graph_sha256(model.proto, model))
        assert len(hashes) == 2


def build(session: Session, native: object) -> bytes:
    config = session.builder.create_builder_config()
    profile = session.builder.create_optimization_profile()
    for one in network_inputs(native):
        shape = tuple(size or 1 for size in one.shape)
        profile.set_shape(one.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return bytes(session.builder.build_serialized_network(native, config))


CODE = '''
import numpy as np

def build_network(network, trt):
    """y = relu(x @ w)"""
    x = network.add_input("x", trt.float32, (-1, 4))
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    w = network.add_constant((4, 3), weights).get_output(0)
    product = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, w, trt.MatrixOperation.NONE).get_output(0)
    y = network.add_activation(product, trt.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    return weights

def empty(network, trt):
    pass

def without_output(network, trt):
    x = network.add_input("x", trt.float32, (1, 4))
    network.add_activation(x, trt.ActivationType.RELU)

def without_input(network, trt):
    c = network.add_constant((1,), np.ones(1, np.float32)).get_output(0)
    network.mark_output(c)

def wrong(network, trt):
    return network.add_input("x", trt.float33, (1, 4))

def leaves(network, trt):
    raise SystemExit(3)

number = 7
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


class TestPython:
    def test_a_network(self, session: Session, module: str) -> None:
        source = find_network_function(f"{module}:build_network")
        assert source.file is not None
        assert source.file.name == f"{module}.py"
        network = fill_network(session, source)
        assert network.inputs == (NetworkInput("x", (None, 4)),)
        prepared = described_network(session, network, source)
        (x,), (y,) = prepared.model.proto.graph.input, prepared.model.proto.graph.output
        assert (x.name, y.name) == ("x", "y")
        assert [dim.dim_value for dim in y.type.tensor_type.shape.dim][1:] == [3]
        assert prepared.model.sha256 == source.sha256
        assert prepared.fixed_batch is None

    @pytest.mark.parametrize(
        ("function", "match"),
        [("empty", "without layers"), ("without_output", "without outputs"), ("without_input", "without inputs")],
    )
    def test_what_is_missing(self, function: str, match: str, session: Session, module: str) -> None:
        with pytest.raises(EngineBuildError, match=match) as caught:
            fill_network(session, find_network_function(f"{module}:{function}"))
        assert "network" in str(caught.value.hint)

    def test_an_error_comes_with_its_line(self, session: Session, module: str) -> None:
        with pytest.raises(EngineBuildError, match=f"--network {module}:wrong failed") as caught:
            fill_network(session, find_network_function(f"{module}:wrong"))
        line = CODE.splitlines().index('    return network.add_input("x", trt.float33, (1, 4))') + 1
        assert "AttributeError" in str(caught.value.got)
        assert f"{module}.py, line {line}: return network.add_input" in str(caught.value.got)

    def test_code_that_ends_the_process(self, session: Session, module: str) -> None:
        with pytest.raises(EngineBuildError, match="failed") as caught:
            fill_network(session, find_network_function(f"{module}:leaves"))
        assert "SystemExit: 3" in str(caught.value.got)

    @pytest.mark.parametrize("reference", ["", "a", "a.b", "a:b:c", "a b:c", "a:1", ":a", "a:"])
    def test_malformed(self, reference: str) -> None:
        with pytest.raises(ConfigError, match="is malformed"):
            find_network_function(reference)

    def test_no_such_module(self) -> None:
        with pytest.raises(ConfigError, match="no Python module 'nowhere_at_all'"):
            find_network_function("nowhere_at_all:f")

    def test_no_such_function(self, module: str) -> None:
        with pytest.raises(ConfigError, match="has no function 'build_networks'") as caught:
            find_network_function(f"{module}:build_networks")
        assert "did you mean 'build_network'" in str(caught.value)
        with pytest.raises(ConfigError, match="has no function 'number'"):
            find_network_function(f"{module}:number")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("1/0", "ZeroDivisionError: division by zero"),
            ("def f(:\n", "SyntaxError"),
            ("import no_x", "No mod"),
        ],
    )
    def test_a_module_that_fails(
        self, content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "failing_net.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("failing_net", None)
        with pytest.raises(ConfigError, match="importing 'failing_net' failed") as caught:
            find_network_function("failing_net:f")
        assert said in str(caught.value.got)
