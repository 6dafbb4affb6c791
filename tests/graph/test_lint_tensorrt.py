"""What the rules say of TensorRT, asked of TensorRT-RTX: its parser and builder need no GPU."""

from __future__ import annotations

from typing import Any

import pytest
from lint_graphs import EXAMPLES, Example, clean
from onnx import ModelProto

from quantlab.findings import Severity
from quantlab.graph.lint import RULES

trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx extra")

SEVERITIES = {rule.name: rule.tensorrt for rule in RULES}
REFUSED = frozenset({"zero-point-not-zero", "scale-shape", "bias-int32", "integer-operator", "batchnorm-training"})
READ_AS_INT8 = frozenset({"quantized-type", "zero-point-missing"})
WITHOUT_PLUGIN = frozenset({"custom-operator"})
CASES = [
    example
    for example in EXAMPLES
    # The parser crashes on computed scales, so they cannot be asked about in this process.
    if example.target == "tensorrt" and example.rule != "scale-not-constant"
]


class Parsed:
    """A model after TensorRT's parser."""

    def __init__(self, proto: ModelProto) -> None:
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(0)
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.accepted = bool(self.parser.parse(proto.SerializeToString()))
        self.errors = [self.parser.get_error(number).desc() for number in range(self.parser.num_errors)]

    def quantized_types(self) -> set[Any]:
        layers = (self.network.get_layer(number) for number in range(self.network.num_layers))
        return {layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.QUANTIZE}

    def builds(self) -> bool:
        profile = self.builder.create_optimization_profile()
        for number in range(self.network.num_inputs):
            tensor = self.network.get_input(number)
            if -1 in tensor.shape:
                shape = [1 if axis == 0 else 8 if size < 0 else size for axis, size in enumerate(tensor.shape)]
                profile.set_shape(tensor.name, shape, shape, shape)
        config = self.builder.create_builder_config()
        config.add_optimization_profile(profile)
        return self.builder.build_serialized_network(self.network, config) is not None


@pytest.mark.parametrize("example", CASES, ids=lambda example: f"{example.rule}-{example.where}")
def test_what_tensorrt_does_with_each_example(example: Example) -> None:
    parsed = Parsed(example.make())
    if example.rule in REFUSED or (example.rule == "scale-not-usable" and "infinite" not in example.says):
        assert not parsed.accepted
        assert SEVERITIES[example.rule] is Severity.ERROR
    elif example.rule in READ_AS_INT8:
        assert parsed.quantized_types() == {trt.DataType.INT8}  # though the model says UINT8
        assert SEVERITIES[example.rule] is Severity.ERROR
    elif example.rule in WITHOUT_PLUGIN:
        assert not parsed.accepted
    elif SEVERITIES[example.rule] is not Severity.ERROR:
        assert parsed.accepted, parsed.errors
        assert parsed.builds()


def test_a_clean_graph_builds() -> None:
    parsed = Parsed(clean("tensorrt"))
    assert parsed.accepted and parsed.builds()
