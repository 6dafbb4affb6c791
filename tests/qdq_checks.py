"""Quantized graphs under test: ranges over one feed, lookups in a written graph, and the promises that all keep."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from quantlab.calibrators import CalibrationTable, Histogram, MinMax, Provenance, measure_tensor
from quantlab.datasets import sample_data, sample_model
from quantlab.graph.model import Model, Optimization, load_model, open_session
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.qdq import QuantizationKind, Quantized, quantize_model
from quantlab.graph.targets import NO_LIMITS, TENSORRT, TargetProfile

Feed = dict[str, NDArray[np.float32]]

UNLIMITED = dataclasses.replace(TENSORRT, int8_limits=NO_LIMITS, fp8_limits=NO_LIMITS)
"""TensorRT's rules for layers of any size, so that the graphs of the tests can be small."""


def ranges(model: Model, feed: Feed, left_out: Sequence[str] = ()) -> CalibrationTable:
    """Min-max ranges of every float tensor over one feed."""
    names = [*feed, *(output for node in model.proto.graph.node for output in node.output if output)]
    session = open_session(model, threads=1, outputs=names)
    present = {value.name: value.type for value in session.get_outputs()}
    values = dict(zip(present, session.run(list(present), feed), strict=True)) | feed
    entries = []
    for name in dict.fromkeys(names):
        if name in left_out or values[name].dtype != np.float32:
            continue
        histogram = Histogram()
        histogram.add(values[name])
        entries.append(measure_tensor(name, histogram, [MinMax()]))
    provenance = Provenance("0", "observed", "m.onnx", "a", "b", {}, None, "", (), 99.99)
    return CalibrationTable("minmax", 1, tuple(entries), provenance, ())


def noise(proto: ModelProto, n: int = 16) -> Feed:
    rng = np.random.default_rng(3)
    shapes = {value.name: [d.dim_value or n for d in value.type.tensor_type.shape.dim] for value in proto.graph.input}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def quantized(
    proto: ModelProto,
    target: TargetProfile,
    exclude: Sequence[str] = (),
    left_out: Sequence[str] = (),
    kind: QuantizationKind = QuantizationKind.INT8,
) -> tuple[Quantized, Feed]:
    model = Model.of(proto)
    feed = noise(proto)
    result = quantize_model(model, ranges(model, feed, left_out), target, exclude, kind=kind)
    check(proto, result, target, kind)
    return result, feed


@functools.cache
def prepared_sample(name: str) -> tuple[Prepared, CalibrationTable, Feed, NDArray[np.int64]]:
    prepared = prepare(load_model(sample_model(name)))
    with np.load(sample_data("calibration")) as stored:
        images, labels = stored["image"][:96], stored["labels"][:96]
    feed = {"image": ((images[:, None] / np.float32(255) - np.float32(0.286)) / np.float32(0.353)).astype(np.float32)}
    return prepared, ranges(prepared.model, feed), feed, labels


def outputs(
    model: Model | ModelProto, feed: Feed, optimize: Optimization = Optimization.ALL
) -> list[NDArray[np.float32]]:
    wrapped = model if isinstance(model, Model) else Model.of(model)
    return list(open_session(wrapped, threads=1, optimize=optimize).run(None, feed))


def sqnr(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    signal = expected.astype(np.float64)
    lost = float(np.sum((got - signal) ** 2))
    return float(10 * np.log10(np.sum(signal**2) / lost)) if lost > 0 else np.inf


class Graph:
    """Lookups in a written graph."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}

    def of_type(self, op_type: str) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type == op_type]

    def named(self, name: str) -> NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def dequantizer(self, tensor: str) -> NodeProto | None:
        node = self.producer.get(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def quantized_tensor(self, tensor: str) -> str | None:
        """The floating-point tensor behind a pair."""
        node = self.dequantizer(tensor)
        source = self.producer.get(node.input[0]) if node is not None else None
        return source.input[0] if source is not None and source.op_type == "QuantizeLinear" else None


def expected_axis(node: NodeProto, rank: int, slot: int) -> int:
    attributes = {a.name: a.i for a in node.attribute}
    if slot == 0:
        return 1 if attributes.get("transA") else rank - 2
    return {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if attributes.get("transB") else 1, "MatMul": rank - 1}[
        node.op_type
    ]


def check(
    original: ModelProto, result: Quantized, target: TargetProfile, kind: QuantizationKind = QuantizationKind.INT8
) -> None:
    """The promises of a target, for any graph that held no pairs before."""
    proto = result.proto
    onnx.checker.check_model(proto, full_check=True)
    assert [v.name for v in proto.graph.output] == [v.name for v in original.graph.output]
    assert [v.name for v in proto.graph.input] == [v.name for v in original.graph.input]
    graph = Graph(proto)
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    activation, weight = ("float8_e4m3fn",) * 2 if kind is QuantizationKind.FP8 else (target.activation.dtype, "int8")
    pairs = graph.of_type("QuantizeLinear")
    assert sorted(node.input[0] for node in pairs) == list(result.tensors), "one pair for each tensor"
    for node in pairs:
        assert node.input[0] not in graph.constants
        assert graph.dequantizer(node.input[0]) is None, "nothing is quantized twice"
        behind = [other for other in graph.nodes if node.output[0] in other.input]
        assert [other.op_type for other in behind] == ["DequantizeLinear"]
        assert list(behind[0].input[1:]) == list(node.input[1:])
        zero = graph.constants[node.input[2]]
        assert zero.dtype.name == activation
        chosen = result.tensors[node.input[0]]
        assert (float(graph.constants[node.input[1]]), int(zero)) == (chosen.scale, chosen.zero_point)
    used = {name for node in graph.nodes for name in node.input} | {v.name for v in proto.graph.output}
    assert set(graph.constants) <= used, "replaced weights are dropped"
    for name in result.layers:
        node = graph.named(name)
        if kind is QuantizationKind.INT8_WEIGHTS:
            assert all(graph.quantized_tensor(tensor) is None for tensor in node.input), "activations stay float"
        for slot, tensor in enumerate(node.input[:2]):
            stored = graph.dequantizer(tensor)
            if stored is None or stored.input[0] not in graph.constants:
                assert kind is QuantizationKind.INT8_WEIGHTS or graph.quantized_tensor(tensor) is not None
                continue
            codes, scales = graph.constants[stored.input[0]], graph.constants[stored.input[1]]
            axis = expected_axis(node, codes.ndim, slot)
            assert [a.i for a in stored.attribute if a.name == "axis"] == [axis]
            assert codes.dtype.name == weight
            assert codes.astype(np.float32).min() >= (-448 if kind is QuantizationKind.FP8 else -127)
            assert scales.shape == (codes.shape[axis],)
            assert (scales > 0).all()
        if target.name == "tensorrt" and len(node.input) > 2:
            assert graph.dequantizer(node.input[2]) is None, "bias stays float"
    zeros = [graph.constants[n.input[2]] for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if target.name == "tensorrt":
        assert all((zero.astype(np.float32) == 0).all() and zero.dtype.name in (activation, weight) for zero in zeros)
    assert all(graph.dequantizer(v.name) is None for v in proto.graph.output), "outputs keep their float producer"
